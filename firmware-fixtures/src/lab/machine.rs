//! The machine: QEMU's arguments. The same arguments (but for paths) give the same measurements of firmware.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{LabError, read, variables};

/// Where Debian's package ovmf puts the firmware.
const OVMF: &str = "/usr/share/OVMF";
/// The firmware of Debian's package seabios.
const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";

/// How a host starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Firmware {
    /// OVMF with Microsoft's keys enrolled: shim, GRUB and the kernel must be signed.
    SecureBoot,
    /// The same firmware and keys, but the platform key is gone: Secure Boot is off, all else is the same.
    SecureBootOff,
    /// OVMF built without Secure Boot; the kernel comes from QEMU's command line instead of the boot disk.
    Direct,
    /// SeaBIOS: no UEFI at all; the kernel comes from QEMU's command line.
    SeaBios,
}

impl Firmware {
    /// The firmware's code.
    pub fn code(self) -> PathBuf {
        match self {
            Self::SecureBoot | Self::SecureBootOff => Path::new(OVMF).join("OVMF_CODE_4M.ms.fd"),
            Self::Direct => Path::new(OVMF).join("OVMF_CODE_4M.fd"),
            Self::SeaBios => PathBuf::from(SEABIOS),
        }
    }

    /// The firmware's variables as the factory leaves them; a host gets a copy. SeaBIOS has none.
    pub fn variables(self) -> Option<PathBuf> {
        let name = match self {
            Self::SecureBoot | Self::SecureBootOff => "OVMF_VARS_4M.ms.fd",
            Self::Direct => "OVMF_VARS_4M.fd",
            Self::SeaBios => return None,
        };
        Some(Path::new(OVMF).join(name))
    }

    /// The contents of a new host's variables; nothing for a firmware that has none.
    ///
    /// # Errors
    /// When the file cannot be read or is no variable store.
    pub fn new_variables(self) -> Result<Vec<u8>, LabError> {
        let Some(path) = self.variables() else { return Ok(Vec::new()) };
        let factory = read(&path)?;
        if self != Self::SecureBootOff {
            return Ok(factory);
        }
        variables::without_platform_key(&factory).ok_or_else(|| LabError::BadFile {
            path: path.display().to_string(),
            problem: "not a variable store with a platform key (package ovmf)".to_owned(),
        })
    }

    /// Whether QEMU loads the kernel, instead of a boot loader on the boot disk.
    pub fn is_given_the_kernel(self) -> bool {
        matches!(self, Self::Direct | Self::SeaBios)
    }
}

/// A disk beside the boot disk (`/dev/vda`) and the root (`/dev/vdb`): the first is `/dev/vdc`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The raw image.
    pub image: PathBuf,
    /// Whether the host may not write to it. One image may be shared by hosts when all have it read-only.
    pub read_only: bool,
}

/// What firmware sees of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// How it starts.
    pub firmware: Firmware,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// How many disks there are beside boot disk and root.
    pub extra_disks: usize,
    /// Whether its clock counts the instructions that it executes.
    pub counted: bool,
}

/// What a machine is connected to here.
pub(super) struct Connections<'a> {
    /// The host's own directory: sockets, logs, its copy of the variables.
    pub(super) dir: &'a Path,
    pub(super) esp: &'a Path,
    /// None for the recorder, which has an empty disk there.
    pub(super) root: &'a Path,
    pub(super) disks: &'a [Disk],
    pub(super) tpm_socket: &'a Path,
    /// The port on this machine's loopback that 10.0.2.100:7000 leads to.
    pub(super) verifier_port: Option<u16>,
    /// Kernel, initrd and command line for a firmware that [is given them](Firmware::is_given_the_kernel).
    pub(super) direct: Option<(&'a Path, &'a Path, &'a str)>,
}

/// File names in the host's directory.
pub(super) const SERIAL_LOG: &str = "console.log";
pub(super) const SERIAL_SOCKET: &str = "console";
pub(super) const CONTROL_SOCKET: &str = "control";
pub(super) const MONITOR_SOCKET: &str = "monitor";
pub(super) const VARIABLES: &str = "variables.fd";

impl Machine {
    /// The arguments that do not depend on where files lie; what a recorded boot of the firmware is good for.
    pub fn identity(&self) -> Vec<String> {
        let none = Path::new("/");
        let disk = Disk { image: PathBuf::from("/"), read_only: true };
        let disks = vec![disk; self.extra_disks];
        let connections = Connections {
            dir: none,
            esp: none,
            root: none,
            disks: &disks,
            tpm_socket: none,
            verifier_port: None,
            direct: None,
        };
        self.arguments(&connections)
    }

    pub(super) fn arguments(&self, to: &Connections) -> Vec<String> {
        let dir = to.dir.display();
        let mut arguments: Vec<String> = Vec::new();
        let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        if self.firmware.is_given_the_kernel() {
            option("-machine", "q35".to_owned());
        } else {
            // Without SMM the guest could write the Secure Boot variables.
            option("-machine", "q35,smm=on".to_owned());
            option("-global", "driver=cfi.pflash01,property=secure,value=on".to_owned());
        }
        option("-accel", "tcg".to_owned());
        if self.counted {
            option("-icount", "shift=0,sleep=off".to_owned());
        }
        // Linux in a VM there warns at its start ("XSAVE consistency problem: size 832 != kernel_size 576"), under QEMU's
        // own microvm as well: under QEMU 7.2 the KVM inside does not learn what its guests enable by XSETBV.
        option("-cpu", "EPYC,+svm,+npt".to_owned());
        option("-m", self.memory_mib.to_string());
        // One processor: on two, each emulated by a thread of its own, the kernel of the host or of its guest crashed in
        // one of about twenty guest boots (QEMU 7.2, nested SVM); on one, in none of 68.
        option("-smp", "1".to_owned());
        option("-nodefaults", String::new());
        option("-display", "none".to_owned());
        option("-chardev", format!("socket,id=mon,path={dir}/{MONITOR_SOCKET},server=on,wait=off"));
        option("-mon", "chardev=mon,mode=control".to_owned());
        option(
            "-chardev",
            format!("socket,id=con,path={dir}/{SERIAL_SOCKET},server=on,wait=off,logfile={dir}/{SERIAL_LOG}"),
        );
        option("-serial", "chardev:con".to_owned());
        let code = self.firmware.code();
        if self.firmware == Firmware::SeaBios {
            option("-bios", code.display().to_string());
        } else {
            option("-drive", format!("if=pflash,format=raw,unit=0,readonly=on,file={}", code.display()));
            option("-drive", format!("if=pflash,format=raw,unit=1,file={dir}/{VARIABLES}"));
        }
        option("-chardev", format!("socket,id=tpm,path={}", to.tpm_socket.display()));
        option("-tpmdev", "emulator,id=tpm,chardev=tpm".to_owned());
        option("-device", "tpm-crb,tpmdev=tpm".to_owned());
        // The boot disk is opened read-only, so that one image serves many hosts.
        let esp = to.esp.display();
        option("-drive", format!("if=none,id=boot,format=raw,readonly=on,file={esp}"));
        // QEMU gives the first place to a kernel that it loads itself.
        let first = if self.firmware.is_given_the_kernel() { "" } else { ",bootindex=0" };
        option("-device", format!("virtio-blk-pci,drive=boot{first}"));
        option("-drive", format!("if=none,id=root,format=raw,cache=unsafe,file={}", to.root.display()));
        option("-device", "virtio-blk-pci,drive=root".to_owned());
        for (number, disk) in to.disks.iter().enumerate() {
            let mode = if disk.read_only { "readonly=on" } else { "cache=unsafe" };
            let image = disk.image.display();
            option("-drive", format!("if=none,id=disk{number},format=raw,{mode},file={image}"));
            option("-device", format!("virtio-blk-pci,drive=disk{number}"));
        }
        // restrict=on: nothing but the one forwarded address is reached. `cmd:` makes a new connection each time.
        let forward = to.verifier_port.map_or_else(String::new, |port| {
            format!(",guestfwd=tcp:{VERIFIER_ADDRESS}:{VERIFIER_PORT}-cmd:socat STDIO TCP:127.0.0.1:{port}")
        });
        option("-netdev", format!("user,id=net,restrict=on{forward}"));
        option("-device", "virtio-net-pci,netdev=net,romfile=".to_owned());
        option("-chardev", format!("socket,id=ctl,path={dir}/{CONTROL_SOCKET},server=on,wait=off"));
        option("-device", "virtio-serial-pci".to_owned());
        option("-device", "virtserialport,chardev=ctl,nr=1,name=lab.control".to_owned());
        if let Some((kernel, initrd, command_line)) = to.direct {
            option("-kernel", kernel.display().to_string());
            option("-initrd", initrd.display().to_string());
            option("-append", command_line.to_owned());
        }
        arguments.retain(|argument| !argument.is_empty());
        arguments
    }
}

/// The address on a host's network that leads to the verifier.
pub const VERIFIER_ADDRESS: &str = "10.0.2.100";
/// The port there.
pub const VERIFIER_PORT: u16 = 7000;
