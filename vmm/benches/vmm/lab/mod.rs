//! Stock Linux in a VM on a host of the lab whose clock counts instructions: two runs agree to about a percent, however
//! busy the machine is that runs the lab.

pub mod boot;
mod guest;
pub mod inside;
pub mod io;
pub mod load;

use std::path::{Path, PathBuf};
use std::time::Duration;

use portcullis_firmware_fixtures::lab::boot_files::BootFiles;
use portcullis_firmware_fixtures::lab::host::{Host, HostSpec};
use portcullis_firmware_fixtures::lab::image::{Image, ImageSpec, Program};
use portcullis_firmware_fixtures::lab::machine::Firmware;
use portcullis_firmware_fixtures::lab::rootfs::HostFile;
use serde_json::Value;

/// Memory of the host, in MiB: what lies in its file system in memory, and two guests.
const HOST_MIB: u32 = 2048;
/// The most that one measurement takes, by the host's clock and by half of ours.
const LIMIT: Duration = Duration::from_mins(30);

/// A host with a KVM of its own, `portcullis-vmm` and QEMU, and `vmlinuz`, `initrd` and `loaded` for their guests, in
/// `/srv` on its disk and in `/tmp` in memory.
pub struct Lab {
    host: Host,
}

impl Lab {
    /// Boots it. `vmm` is the program that is measured.
    pub fn boot(vmm: &Path) -> Self {
        let files = BootFiles::fetch().expect("the boot files of Debian");
        let me = std::env::current_exe().expect("this program");
        let program = |path: &str, source: PathBuf| Program { path: path.to_owned(), source };
        let kernel = std::fs::read(files.kernel()).expect("Debian's kernel");
        let mut guest_files = vec![HostFile::data("/srv/vmlinuz", kernel)];
        guest_files.push(HostFile::data("/srv/initrd", guest::small(&files)));
        guest_files.push(HostFile::data("/srv/loaded", guest::loaded(&files)));
        for (folder, names) in QEMU_FILES {
            for name in *names {
                let contents = std::fs::read(Path::new(folder).join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
                guest_files.push(HostFile::data(&format!("/usr/share/qemu/{name}"), contents));
            }
        }
        let spec = ImageSpec {
            programs: vec![
                program("/usr/bin/portcullis-vmm", vmm.to_owned()),
                program("/usr/bin/measure", me),
                program("/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-system-x86_64".into()),
            ],
            files: guest_files,
            modules: vec!["vhost_net".to_owned()],
            ..ImageSpec::default()
        };
        let image = Image::build(&spec).unwrap_or_else(|error| panic!("{error}"));
        let mut spec = HostSpec::new("counted", &image);
        spec.firmware = Firmware::Direct;
        spec.memory_mib = HOST_MIB;
        spec.counted = true;
        spec.boot_limit *= 4;
        let mut lab = Self { host: Host::boot(spec).unwrap_or_else(|error| panic!("{error}")) };
        // What is measured must not wait for the host's disk: the clock leaps over such waits.
        lab.must(
            "cp /srv/* /usr/bin/portcullis-vmm /usr/bin/measure /tmp && mount -t debugfs debugfs /sys/kernel/debug && \
             mount -t tracefs tracefs /sys/kernel/tracing",
        );
        lab
    }

    /// Runs a command that has to succeed.
    pub fn must(&mut self, command: &str) -> String {
        self.host.must_run(command, LIMIT).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Writes a file on the host.
    pub fn write(&mut self, path: &str, contents: &[u8]) {
        self.host.write_file(path, contents).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Lets [`inside`] measure something, and gives back its figures.
    pub fn measure(&mut self, arguments: &str) -> Value {
        let text = self.must(&format!("cd /tmp && ./measure {} {arguments}", inside::WORD));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

/// What QEMU reads at its start, and where Debian's packages have it.
const QEMU_FILES: &[(&str, &[&str])] =
    &[("/usr/share/qemu", &["bios-microvm.bin", "kvmvapic.bin", "linuxboot_dma.bin", "pvh.bin"])];
