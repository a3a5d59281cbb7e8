//! The measured initrd: closes the ways around measurement, holds what the host trusts, then starts the root.

use std::collections::BTreeMap;

use super::boot_files::BootFiles;
use super::cpio::{Archive, Entry};
use super::{LabError, kmod, read};

/// Measures what runs, on every file system; loaded before the root is mounted and never changed again.
pub const IMA_POLICY: &str = include_str!("host_files/ima-policy");
const INIT: &str = include_str!("host_files/initrd-init");
const RECORDER: &str = include_str!("host_files/recorder-init");

/// What the initrd needs to reach its disks, its network and the harness.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio_net", "virtio_console"];

/// The archive of the initrd that starts hosts.
///
/// `trust` are the files of `/portcullis/trust` (the verifier's CA, the keys that sign orders), by name. `replaced` puts
/// other contents at a path, or a further file: what a tampered host has.
///
/// # Errors
/// When a boot file cannot be read.
pub fn archive(
    files: &BootFiles,
    trust: &BTreeMap<String, Vec<u8>>,
    replaced: &BTreeMap<String, Vec<u8>>,
) -> Result<Archive, LabError> {
    let mut archive = base(files, INIT)?;
    archive.put("/etc/ima-policy", Entry::File(0o644, IMA_POLICY.as_bytes().to_vec()));
    archive.put("/portcullis/trust", Entry::Directory);
    for (name, contents) in trust {
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(LabError::BadSpec(format!("{name:?} is no name for a file in /portcullis/trust")));
        }
        archive.put(&format!("/portcullis/trust/{name}"), Entry::File(0o644, contents.clone()));
    }
    for (path, contents) in replaced {
        let mode = match archive.entries().get(path.trim_matches('/')) {
            Some(Entry::File(mode, _)) => *mode,
            _ => 0o755,
        };
        archive.put(path, Entry::File(mode, contents.clone()));
    }
    Ok(archive)
}

/// The archive of the initrd that only reports the firmware's event log and powers off.
///
/// # Errors
/// When a boot file cannot be read.
pub fn recorder(files: &BootFiles) -> Result<Archive, LabError> {
    base(files, RECORDER)
}

fn base(files: &BootFiles, init: &str) -> Result<Archive, LabError> {
    let mut archive = Archive::new();
    for dir in ["/dev", "/proc", "/sys", "/run", "/sysroot"] {
        archive.put(dir, Entry::Directory);
    }
    archive.put("/dev/console", Entry::Character(5, 1));
    archive.put("/init", Entry::File(0o755, init.as_bytes().to_vec()));
    archive.put("/bin/busybox", Entry::File(0o755, read(&files.busybox())?));
    archive.put("/bin/sh", Entry::Symlink("busybox".to_owned()));
    let mut order = String::new();
    for module in kmod::closure(&files.modules(), &MODULES)? {
        let path = format!("/lib/modules/{}/{}", files.kernel_release(), module.path);
        order += &path;
        order.push('\n');
        archive.put(&path, Entry::File(0o644, module.contents));
    }
    archive.put("/etc/modules-in-order", Entry::File(0o644, order.into_bytes()));
    Ok(archive)
}
