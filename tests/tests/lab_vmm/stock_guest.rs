//! A guest that does what it is told: Debian's kernel with its own modules for every device, busybox and socat. Its init
//! reads commands from the console, so that they reach it whatever becomes of network and disks.

use std::fs;
use std::path::Path;

use portcullis_firmware_fixtures::lab::boot_files::BootFiles;
use portcullis_firmware_fixtures::lab::image::Program;
use portcullis_firmware_fixtures::lab::kmod;
use portcullis_firmware_fixtures::lab::rootfs::{HostFile, Tree};
use portcullis_vmm::config::{BalloonConfig, EntropyConfig, MmdsConfig, NetworkInterface, VmConfig, VsockConfig};
use portcullis_vmm::mmds::Version;

use crate::harness::{Lab, LabSpec, all};
use crate::{balloon, network, vsock};

/// The program for sockets of all kinds, of Debian's package of the same name: for the host and its guests.
const SOCAT: &str = "/usr/bin/socat";

/// The guest's drivers, as Debian builds them.
const MODULES: [&str; 6] =
    ["virtio_mmio", "virtio_blk", "virtio_net", "vmw_vsock_virtio_transport", "virtio_balloon", "virtio_rng"];
/// Longest line that the guest's terminal takes, in bytes, less some for the number.
const LONGEST: usize = 4000;
/// Memory of the guest in MiB.
pub const MEM_MIB: u64 = 192;
/// The guest's network card.
pub const CARD: &str = "net0";
/// The host's address on its tap, and the guest's.
pub const HOST: &str = "192.168.77.1";
pub const GUEST: &str = "192.168.77.2";
/// Size of the file `/run/bulk` of the host, in MiB.
pub const BULK_MIB: u64 = 8;

/// A command comes as its number and its text in hexadecimal, so that no letter of it means anything to terminals.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox devmem 0xc0000000 8 123
/bin/busybox mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs -o size=90% memory /mnt
exec </dev/console >/dev/console 2>&1
stty -echo
while read -r module; do insmod $module; done </etc/modules-in-order
ip link set lo up
[ -z \"$address\" ] || { ip address add $address/24 dev eth0; ip link set eth0 up; }
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

/// The guest's initramfs, with these modules of Debian's cloud kernel and what they need.
pub fn initrd(files: &BootFiles, modules: &[&str]) -> Vec<u8> {
    let mut tree = Tree::default();
    for dir in ["proc", "sys", "run", "tmp", "mnt"] {
        tree.directory(dir);
    }
    tree.put(HostFile::program("/init", INIT));
    tree.put(HostFile::program("/bin/busybox", fs::read(files.busybox()).unwrap()));
    tree.link("/bin/sh", "busybox");
    tree.program(SOCAT, Path::new(SOCAT)).unwrap();
    let mut order = String::new();
    for module in kmod::closure(&files.modules(), modules).unwrap() {
        let path = format!("/lib/modules/{}.ko", module.name);
        order += &path;
        order.push('\n');
        tree.put(HostFile::data(&path, module.contents));
    }
    tree.put(HostFile::data("/etc/modules-in-order", order));
    tree.archive().to_bytes()
}

/// The VM that most checks share.
pub const VM: &str = "stock";

/// The guest with a card on the tap `tap`, sockets, entropy and a balloon. Paths are below the VM's directory.
pub fn config(tap: &str) -> VmConfig {
    let mut config = VmConfig::new("/mnt/vmlinuz").with_initrd("/mnt/stock-initrd").with_mem_mib(MEM_MIB);
    let mut card = NetworkInterface::new(CARD, tap);
    card.guest_mac = Some("06:00:c0:a8:4d:02".parse().unwrap());
    config.network_interfaces = vec![card];
    config.vsock = Some(VsockConfig { vsock_id: None, guest_cid: 52, uds_path: "vsock".into() });
    config.entropy = Some(EntropyConfig::default());
    config.balloon =
        Some(BalloonConfig { deflate_on_oom: true, stats_polling_interval_s: 1, ..BalloonConfig::default() });
    config.with_boot_args(format!("console=ttyS0 quiet panic=-1 reboot=k address={GUEST}"))
}

/// A host with what the guest boots, a tap and a file to be sent about.
pub fn lab(more: &[&Path]) -> Lab {
    let files = BootFiles::fetch().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (kernel, archive) = (dir.path().join("vmlinuz"), dir.path().join("stock-initrd"));
    fs::copy(files.kernel(), &kernel).unwrap();
    fs::write(&archive, initrd(&files, &MODULES)).unwrap();
    let files = [&[kernel.as_path(), &archive], more].concat();
    let socat = Program { path: SOCAT.to_owned(), source: SOCAT.into() };
    let mut lab = Lab::with(LabSpec { files: &files, programs: vec![socat], ..LabSpec::default() });
    lab.must(&format!("tunctl -t tap0 && ip address add {HOST}/24 dev tap0 && ip link set tap0 up"));
    lab.must(&format!("head -c {} /dev/urandom >/run/bulk", BULK_MIB << 20));
    lab
}

/// The checksum of a line of `sha256sum`.
pub fn sha256(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
}

/// The shared VM, with a metadata service.
pub fn ensure(lab: &mut Lab) {
    let mut config = config("tap0");
    let network_interfaces = vec![CARD.to_owned()];
    config.mmds_config =
        Some(MmdsConfig { version: Version::V2, network_interfaces, ipv4_address: None, imds_compat: false });
    lab.ensure(VM, &config);
}

#[test]
fn lab_vmm_gives_stock_linux_its_devices() {
    let checks = [&balloon::CHECKS[..], &vsock::CHECKS, &network::CHECKS].concat();
    all(&mut lab(&[]), &checks);
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

    /// Leaves a shell command (without single quotes) running in the guest.
    pub fn guest_background(&mut self, name: &str, command: &str) {
        assert!(!command.contains('\''), "{command}");
        self.guest(name, &format!("setsid sh -c '{command}' </dev/null >/dev/null 2>&1 &"));
    }

    /// Waits until a shell command in the guest succeeds.
    pub fn wait_in_guest(&mut self, name: &str, condition: &str) {
        self.guest(name, &format!("until {condition}; do usleep 100000; done"));
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
