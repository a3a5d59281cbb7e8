//! A guest that does what it is told: Debian's kernel with its own modules for every device, busybox and socat. Its init
//! reads commands from the console, so that they reach it whatever becomes of network and disks.

use std::fs;
use std::path::Path;

use portcullis_firmware_fixtures::lab::boot_files::BootFiles;
use portcullis_firmware_fixtures::lab::image::Program;
use portcullis_firmware_fixtures::lab::kmod;
use portcullis_firmware_fixtures::lab::rootfs::{HostFile, Tree};
use portcullis_vmm::config::VmConfig;

use crate::harness::{Lab, LabSpec};

/// The program for sockets of all kinds, of Debian's package of the same name: for the host and its guests.
const SOCAT: &str = "/usr/bin/socat";

/// The guest's drivers, as Debian builds them.
const MODULES: [&str; 6] =
    ["virtio_mmio", "virtio_blk", "virtio_net", "vmw_vsock_virtio_transport", "virtio_balloon", "virtio_rng"];
/// Longest line that the guest's terminal takes, in bytes, less some for the number.
const LONGEST: usize = 4000;
/// Memory of the guest in MiB.
pub const MEM_MIB: u64 = 192;

/// A command comes as its number and its text in hexadecimal, so that no letter of it means anything to terminals.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox devmem 0xc0000000 8 123
/bin/busybox mount -t proc proc /proc
mount -t sysfs sys /sys
exec </dev/console >/dev/console 2>&1
stty -echo
while read -r module; do insmod $module; done </etc/modules-in-order
ip link set lo up
echo \"guest: init on $(nproc) vCPU, Linux $(uname -r)\"
while read -r number command; do
    echo $command | xxd -r -p >/run/command
    sh /run/command </dev/null >/run/output 2>&1
    status=$?
    echo \"@@begin $number\"
    cat /run/output
    echo
    echo \"@@end $number $status\"
done
";

/// What a command in the guest did.
#[derive(Debug)]
pub struct Answer {
    pub status: i32,
    pub text: String,
}

/// The guest's initramfs.
pub fn initrd(files: &BootFiles) -> Vec<u8> {
    let mut tree = Tree::default();
    for dir in ["proc", "sys", "run", "tmp", "mnt"] {
        tree.directory(dir);
    }
    tree.put(HostFile::program("/init", INIT));
    tree.put(HostFile::program("/bin/busybox", fs::read(files.busybox()).unwrap()));
    tree.link("/bin/sh", "busybox");
    tree.program(SOCAT, Path::new(SOCAT)).unwrap();
    let mut order = String::new();
    for module in kmod::closure(&files.modules(), &MODULES).unwrap() {
        let path = format!("/lib/modules/{}.ko", module.name);
        order += &path;
        order.push('\n');
        tree.put(HostFile::data(&path, module.contents));
    }
    tree.put(HostFile::data("/etc/modules-in-order", order));
    tree.archive().to_bytes()
}

/// The guest without any device.
pub fn config() -> VmConfig {
    let config = VmConfig::new("/mnt/vmlinuz").with_initrd("/mnt/stock-initrd").with_mem_mib(MEM_MIB);
    config.with_boot_args("console=ttyS0 quiet panic=-1 reboot=k")
}

/// A host with what the guest boots.
pub fn lab() -> Lab {
    let files = BootFiles::fetch().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (kernel, archive) = (dir.path().join("vmlinuz"), dir.path().join("stock-initrd"));
    fs::copy(files.kernel(), &kernel).unwrap();
    fs::write(&archive, initrd(&files)).unwrap();
    let socat = Program { path: SOCAT.to_owned(), source: SOCAT.into() };
    Lab::with(LabSpec { files: &[&kernel, &archive], programs: vec![socat], ..LabSpec::default() })
}

impl Lab {
    /// Sees to it that the VM runs and its guest listens: also when a check before has failed and ended it.
    pub fn ensure(&mut self, name: &str, config: &VmConfig) {
        if self.run(&format!("kill -0 $(cat /run/vm/{name}/pid)")).status != 0 {
            self.must(&format!("rm -rf /run/vm/{name}"));
            self.start_with_api(name, config);
            self.wait_for(name, "guest: init");
            assert_eq!(self.get(name, "/")["state"], "Running");
        }
    }

    /// Runs a shell command in the guest.
    pub fn in_guest(&mut self, name: &str, command: &str) -> Answer {
        let text = hex::encode(command);
        assert!(text.len() < LONGEST, "too long for the guest's terminal: {command}");
        self.commands += 1;
        let (number, console) = (self.commands, format!("/run/vm/{name}/console"));
        self.must(&format!("echo '{number} {text}' >/run/vm/{name}/in"));
        self.wait_until(name, &format!("grep -q '^@@end {number} ' {console} || test -e /run/vm/{name}/code"));
        let answer = self.must(&format!("sed -n '/^@@begin {number}\\r/,/^@@end {number} /p' {console}"));
        let mut lines: Vec<&str> = answer.lines().map(|line| line.trim_end_matches('\r')).collect();
        let end = lines.pop().and_then(|line| line.strip_prefix(&format!("@@end {number} "))?.parse().ok());
        let status = end.unwrap_or_else(|| panic!("VM {name} ended in {command:?}"));
        Answer { status, text: lines.get(1..).unwrap_or_default().join("\n").trim_end().to_owned() }
    }

    /// Runs a shell command in the guest that has to succeed, and gives what it printed.
    pub fn guest(&mut self, name: &str, command: &str) -> String {
        let answer = self.in_guest(name, command);
        assert_eq!(answer.status, 0, "VM {name}: {command}:\n{}", answer.text);
        answer.text
    }
}
