//! The tenant's side: a guest, the volume that holds it, and the disks that carry files to the hosts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use portcullis_firmware_fixtures::lab::boot_files::BootFiles;
use portcullis_firmware_fixtures::lab::cpio::{Archive, Entry};
use sha2::{Digest, Sha256};

use crate::Trouble;
use crate::volume::{TenantVolume, run};

/// The volume's name.
pub const VOLUME: &str = "data";
/// Where kernel and initrd lie in the volume.
pub const KERNEL: &str = "boot/vmlinuz";
/// See [`KERNEL`].
pub const INITRD: &str = "boot/initrd";
/// Room for a distribution's kernel and a small initrd.
const VOLUME_MIB: u64 = 32;

/// What the tenant's guest does. The write of 123 is the VMM's boot mark: the moment at which init runs.
const GUEST_INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /proc /dev /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox devmem 0xc0000000 8 123
/bin/busybox mount -t proc proc /proc
exec </dev/console >/dev/console 2>&1
/bin/busybox echo \"tenant: Linux $(/bin/busybox uname -r) on $(/bin/busybox nproc) vCPU, this is my init\"
/bin/busybox echo \"tenant: $(/bin/busybox grep MemTotal /proc/meminfo | /bin/busybox tr -s ' ')\"
/bin/busybox echo \"tenant: my files came from a volume that only this host could open\"
/bin/busybox sleep 20
/bin/busybox echo \"tenant: done, powering off\"
/bin/busybox poweroff -f
";

/// The tenant's volume and what is in it.
pub struct Tenant {
    /// The encrypted volume and its key.
    pub volume: TenantVolume,
    /// SHA-256 of the kernel, hex.
    pub kernel_sha256: String,
    /// SHA-256 of the initrd, hex.
    pub initrd_sha256: String,
}

impl Tenant {
    /// Makes the guest and encrypts it into a volume below `dir`.
    pub fn make(files: &BootFiles, dir: &Path) -> Result<Self, Trouble> {
        let mut archive = Archive::new();
        archive.put("/dev/console", Entry::Character(5, 1));
        archive.put("/bin/busybox", Entry::File(0o755, fs::read(files.busybox())?));
        archive.put("/init", Entry::File(0o755, GUEST_INIT.as_bytes().to_vec()));
        let initrd = dir.join("tenant-initrd");
        fs::write(&initrd, archive.to_bytes())?;
        let path = dir.join(format!("{}.{VOLUME}.luks", crate::service::tenant()));
        let kernel = files.kernel();
        let volume = TenantVolume::make(&path, VOLUME_MIB, &[(KERNEL, &kernel), (INITRD, &initrd)])?;
        Ok(Self { volume, kernel_sha256: sha256(&kernel)?, initrd_sha256: sha256(&initrd)? })
    }
}

/// SHA-256 of a file, hex.
pub fn sha256(path: &Path) -> Result<String, Trouble> {
    Ok(hex::encode(Sha256::digest(fs::read(path)?)))
}

/// Makes a disk (ext4) with `files` in its root.
pub fn disk(path: &Path, files: &[&Path]) -> Result<PathBuf, Trouble> {
    let tree = tempfile::tempdir()?;
    let mut bytes = 0;
    for file in files {
        let name = file.file_name().ok_or_else(|| Trouble::Step(format!("{} is no file", file.display())))?;
        bytes += fs::copy(file, tree.path().join(name))?;
    }
    // The file system's own structures and some slack.
    fs::File::create(path)?.set_len(bytes + bytes / 8 + (8 << 20))?;
    run(Command::new("/sbin/mkfs.ext4").args(["-q", "-F", "-m", "0", "-d"]).arg(tree.path()).arg(path), &[])?;
    Ok(path.to_owned())
}
