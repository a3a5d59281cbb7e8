//! The VMMs that are compared, and how each is told to run one guest with 1 vCPU and 128 MiB.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use portcullis_vmm::config::{DriveConfig, VmConfig};

use crate::guest::{Guest, SCRATCH};

/// Guest memory in MiB.
pub const MEM_MIB: u64 = 128;

/// A guest that prints a sign and ends itself: by Cloud Hypervisor's power-off (its resets are restarts), by the keyboard
/// controller, and where there is none by a triple fault.
pub fn short_lived() -> Guest {
    let guest = Guest::new().print("!").out8(0x600, 0x34).out8(0x64, 0xfe).store64(SCRATCH, 0).store64(SCRATCH + 8, 0);
    // lidt [rdi]; ud2
    guest.edi(SCRATCH).raw(&[0x0f, 0x01, 0x1f, 0x0f, 0x0b]).hang()
}

/// The arguments that run the guest whose files are in a directory.
type Arguments = fn(&Path) -> Vec<String>;

/// A VMM that is there.
pub struct Program {
    pub name: &'static str,
    /// A build of portcullis-vmm.
    pub is_ours: bool,
    path: PathBuf,
    arguments: Arguments,
}

/// Every VMM that is there, ours first, then the floor.
pub struct Programs {
    pub all: Vec<Program>,
    /// Names of those that are not.
    pub missing: Vec<&'static str>,
    directory: tempfile::TempDir,
}

impl Programs {
    /// Looks for the peers, and compiles the floor. `before` is another build of ours.
    pub fn find(ours: PathBuf, before: Option<PathBuf>) -> Self {
        let directory = tempfile::tempdir().expect("a directory for the guests");
        let floor = directory.path().join("floor");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/vmm/floor.c");
        let compiled = Command::new("cc").args(["-O2", "-Wall", "-o"]).arg(&floor).arg(source).status();
        assert!(compiled.is_ok_and(|status| status.success()), "the floor needs a C compiler: install gcc");
        let mut all = vec![
            Program { name: "portcullis-vmm", is_ours: true, path: ours, arguments: portcullis },
            Program {
                name: "floor (C program)",
                is_ours: false,
                path: floor,
                arguments: |at| vec![shown(&at.join("kernel"))],
            },
        ];
        all.extend(before.map(|path| Program { name: "build before", is_ours: true, path, arguments: portcullis }));
        let peers: [(&'static str, &str, Arguments); 3] = [
            ("QEMU microvm", "qemu-system-x86_64", qemu),
            ("Firecracker", "firecracker", firecracker),
            ("Cloud Hypervisor", "cloud-hypervisor", cloud_hypervisor),
        ];
        let mut missing = Vec::new();
        for (name, file, arguments) in peers {
            match on_path(file) {
                Some(path) => all.push(Program { name, is_ours: false, path, arguments }),
                None => missing.push(name),
            }
        }
        Self { all, missing, directory }
    }

    /// Writes the files of one guest, for every VMM.
    pub fn guest(&self, name: &str, guest: &Guest) -> PathBuf {
        self.guest_with_disks(name, guest, 0)
    }

    /// The same, with `disks` disks of 1 MiB in the configuration of our own builds.
    pub fn guest_with_disks(&self, name: &str, guest: &Guest, disks: usize) -> PathBuf {
        let at = self.directory.path().join(name);
        let write = |file: &str, bytes: &[u8]| std::fs::write(at.join(file), bytes).expect("a guest's files");
        std::fs::create_dir(&at).expect("a guest's directory");
        write("kernel", &guest.elf());
        write("pvh", &guest.pvh_elf());
        let disks: Vec<String> = (0..disks).map(|number| format!("disk{number}")).collect();
        for disk in &disks {
            write(disk, &vec![0; 1 << 20]);
        }
        let config = VmConfig::new(at.join("kernel")).with_mem_mib(MEM_MIB);
        let config = disks.iter().fold(config, |all, disk| all.with_drive(DriveConfig::new(disk, at.join(disk))));
        write("vm.json", config.to_json().expect("a configuration").as_bytes());
        let firecracker = serde_json::json!({
            "boot-source": {"kernel_image_path": at.join("kernel")},
            "machine-config": {"vcpu_count": 1, "mem_size_mib": MEM_MIB},
            "drives": [],
        });
        write("firecracker.json", firecracker.to_string().as_bytes());
        at
    }
}

impl Program {
    /// The command that runs the guest whose files are at `at`; its serial line is standard output.
    pub fn command(&self, at: &Path) -> Command {
        let mut command = Command::new(&self.path);
        command.args((self.arguments)(at)).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command
    }

    /// The command that runs `serving.json` at `at` and serves the API on `socket`. Of ours only.
    pub fn serving(&self, at: &Path, socket: &Path) -> Command {
        let mut command = Command::new(&self.path);
        command.arg("--api-sock").arg(socket).arg("--config-file").arg(at.join("serving.json"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn portcullis(at: &Path) -> Vec<String> {
    ["--no-api".into(), "--level".into(), "Off".into(), "--config-file".into(), shown(&at.join("vm.json"))].into()
}

fn firecracker(at: &Path) -> Vec<String> {
    ["--no-api".into(), "--level".into(), "Off".into(), "--config-file".into(), shown(&at.join("firecracker.json"))]
        .into()
}

fn qemu(at: &Path) -> Vec<String> {
    let kernel = shown(&at.join("pvh"));
    let options = "-M microvm -enable-kvm -m 128 -smp 1 -nodefaults -no-user-config \
                   -display none -no-reboot -serial stdio -kernel";
    options.split_whitespace().map(str::to_owned).chain([kernel]).collect()
}

fn cloud_hypervisor(at: &Path) -> Vec<String> {
    let kernel = shown(&at.join("pvh"));
    let options = "--cpus boot=1 --memory size=128M --serial tty --console off --kernel";
    options.split_whitespace().map(str::to_owned).chain([kernel]).collect()
}
