//! Clients of Firecracker that others wrote, from PyPI, drive a VM.
//!
//! They are installed into a folder below `target` when they are not there yet. A machine that cannot install them fails
//! these tests: a client that was not tried does not work.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use crate::client::Vmm;
use crate::guest::Guest;

/// The clients, and what they need.
const PACKAGES: [&str; 2] = ["firecracker-python==0.0.5", "microheart==0.3.0"];

/// The Python that has them.
static PYTHON: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("api-clients");
    let (python, ready) = (folder.join("bin/python"), folder.join("ready"));
    let wanted = PACKAGES.join("\n");
    if std::fs::read_to_string(&ready).is_ok_and(|found| found == wanted) {
        return python;
    }
    let run = |what: &str, command: &mut Command| {
        let output = command.output().unwrap_or_else(|error| panic!("ATTENTION: cannot {what}: {error}"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ATTENTION: cannot {what}, so no client was tried: {errors}");
    };
    run("make a Python environment (python3-venv)", Command::new("python3").args(["-m", "venv"]).arg(&folder));
    let mut install = Command::new(&python);
    install.args(["-m", "pip", "install", "-q", "--disable-pip-version-check"]).args(PACKAGES);
    run("install clients from PyPI", &mut install);
    std::fs::write(ready, wanted).unwrap();
    python
});

/// Another name for a socket, in small letters: where it stands for a host's name in an address, capitals are lost.
struct Link(PathBuf);

impl Link {
    fn to(vmm: &Vmm) -> Self {
        let link = std::env::temp_dir().join(format!("portcullis-api-{}.sock", vmm.pid()));
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(vmm.socket(), &link).unwrap();
        Self(link)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Runs `script` with the socket, the kernel and a disk as arguments; what it prints.
fn run(vmm: &Vmm, script: &str) -> String {
    let at = |name: &str| vmm.dir.path().join(name);
    std::fs::write(at("kernel"), Guest::new().print("ready").hang().elf()).unwrap();
    std::fs::write(at("disk"), vec![0; 4096]).unwrap();
    let mut command = Command::new(&*PYTHON);
    let socket = Link::to(vmm);
    command.arg("-c").arg(script).args([socket.0.clone(), at("kernel"), at("disk")]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn firecracker_python_drives_a_vm() {
    let mut vmm = Vmm::new();
    let script = r#"
import sys
from firecracker.api import Api
from firecracker.exceptions import APIError

socket, kernel, disk = sys.argv[1:]
api = Api(socket)
assert api.describe.get().json()["state"] == "Not started"
# What clients compare before they use what came with Firecracker 1.16.
version = api.version.get().json()["firecracker_version"]
assert [int(part) for part in version.split(".")] >= [1, 16, 0], version
assert api.describe.get().json()["vmm_version"] != version
try:
    api.actions.put(action_type="InstanceStart")
    sys.exit("started without a kernel")
except APIError as error:
    assert "kernel" in str(error), error
api.boot.put(kernel_image_path=kernel, boot_args="console=ttyS0 reboot=k panic=1", initrd_path=None)
api.machine_config.put(vcpu_count=1, mem_size_mib=4)
api.machine_config.patch(vcpu_count=2)
assert api.machine_config.get().json()["vcpu_count"] == 2
api.drive.put(drive_id="rootfs", path_on_host=disk, is_root_device=True, is_read_only=False)
api.vsock.put(guest_cid=3, uds_path=disk + ".vsock")
config = api.vm_config.get().json()
assert config["drives"][0]["drive_id"] == "rootfs" and config["boot-source"]["kernel_image_path"] == kernel, config
api.actions.put(action_type="InstanceStart")
try:
    api.machine_config.put(vcpu_count=1, mem_size_mib=8)
    sys.exit("changed the memory of a running VM")
except APIError as error:
    assert "after starting" in str(error), error
api.vm.patch(state="Paused")
assert api.describe.get().json()["state"] == "Paused"
api.create_snapshot.put(snapshot_path=disk + ".state", mem_file_path=disk + ".memory", snapshot_type="Full")
api.vm.patch(state="Resumed")
print(api.describe.get().json()["state"])
api.close()
"#;
    // Before it, the client complains of Firecracker's own program, which it does not find.
    let output = run(&vmm, script);
    assert!(output.ends_with("Running\n"), "{output}");
    vmm.wait_for("ready");
}

#[test]
fn microheart_drives_a_vm() {
    let mut vmm = Vmm::new();
    let script = r#"
import sys
from microheart import api

socket, kernel, disk = sys.argv[1:]
request = lambda *arguments: api.request(socket, *arguments)
request("PUT", "/boot-source", {"kernel_image_path": kernel, "boot_args": "console=ttyS0"})
request("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 4})
request("PUT", "/drives/rootfs", {"drive_id": "rootfs", "path_on_host": disk, "is_root_device": True, "is_read_only": False})
try:
    request("PUT", "/drives/rootfs", {"drive_id": "rootfs"})
    sys.exit("took a drive without a file")
except RuntimeError as error:
    assert "400" in str(error) and "fault_message" in str(error), error
request("PUT", "/actions", {"action_type": "InstanceStart"})
print(request("GET", "/machine-config")["mem_size_mib"], request("GET", "/")["state"])
"#;
    assert_eq!(run(&vmm, script), "4 Running\n");
    vmm.wait_for("ready");
}
