//! The boot disk: a FAT image with shim, GRUB, its configuration, the kernel and the initrd; made by mtools, without root.

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::{LabError, io_error, run, write};
use crate::workdir::{self, CacheLock};

/// The lines of `grub.cfg`, each a command that GRUB measures.
///
/// `linuxefi` and not `linux`: with Secure Boot off Debian's `linux` goes around the kernel's EFI stub, and then the
/// kernel has no event log to show. There is no `search`: GRUB's root is the disk that it came from, and `search` would measure
/// the file that it looks for once more.
pub fn grub_commands(command_line: &str) -> Vec<String> {
    vec![format!("linuxefi /vmlinuz {command_line}"), "initrdefi /initrd".to_owned(), "boot".to_owned()]
}

/// Makes the boot disk in `cache` of `files` (path on the disk, contents), or finds the one made earlier of the same.
///
/// # Errors
/// When mtools fails.
pub fn image(cache: &Path, files: &[(&str, &[u8])]) -> Result<PathBuf, LabError> {
    let mut hash = Sha256::new();
    hash.update(b"esp 2");
    for (path, contents) in files {
        hash.update(format!(" {path} {} ", contents.len()).as_bytes());
        hash.update(contents);
    }
    let image = cache.join(format!("esp-{}.img", hex::encode(&hash.finalize()[..12])));
    let _lock = CacheLock::take_in(cache, "esp").map_err(io_error("cannot lock the lab's cache"))?;
    if workdir::has(&image) {
        return Ok(image);
    }
    workdir::prune(cache, "esp-");
    let staging = tempfile::tempdir_in(cache).map_err(io_error("cannot make a staging directory"))?;
    let disk = staging.path().join("disk");
    let bytes: usize = files.iter().map(|(_, contents)| contents.len()).sum();
    let mib = (bytes / 1024 / 1024 + 12).max(36);
    let file = std::fs::File::create(&disk).map_err(io_error("cannot make the boot disk"))?;
    file.set_len(mib as u64 * 1024 * 1024).map_err(io_error("cannot make the boot disk"))?;
    let mut format = Command::new("mformat");
    format.arg("-i").arg(&disk).args(["-F", "-N", "706f7274", "-v", "BOOT", "-T", &(mib * 2048).to_string(), "::"]);
    run(format)?;
    let mut dirs = std::collections::BTreeSet::new();
    for (path, _) in files {
        for (end, _) in path.match_indices('/').filter(|(end, _)| *end > 0) {
            dirs.insert(&path[..end]);
        }
    }
    let mut make = Command::new("mmd");
    make.arg("-i").arg(&disk).args(dirs.iter().map(|dir| format!("::{dir}")));
    run(make)?;
    for (number, (path, contents)) in files.iter().enumerate() {
        let source = staging.path().join(number.to_string());
        write(&source, contents)?;
        let mut copy = Command::new("mcopy");
        copy.arg("-i").arg(&disk).arg(&source).arg(format!("::{path}"));
        run(copy)?;
    }
    std::fs::rename(&disk, &image).map_err(io_error(format!("cannot make {}", image.display())))?;
    Ok(image)
}
