//! A recorded good boot of the firmware: what a machine measures before and around the boot disk's own contents
//! (PCRs 0 to 7 and 14, and what GRUB has built in).
//!
//! The machine is the same as the hosts' (QEMU, firmware, devices), with a TPM of its own and an initrd that only reports
//! the log. Recordings are kept in the cache, by everything that goes into them.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use sha2::{Digest, Sha256};

use super::boot_files::BootFiles;
use super::host::{BOOT_LIMIT, Host, Parts};
use super::image::{self, BootDisk, COMMAND_LINE};
use super::machine::{Disk, Machine};
use super::manifest::Manifest;
use super::rootfs::Tree;
use super::{LabError, initrd, io_error, read, run, write};
use crate::workdir::{self, CacheLock};

/// A recorded boot.
#[derive(Debug, Clone)]
pub struct Recording {
    /// The firmware's event log as the kernel gives it (`binary_bios_measurements`).
    pub event_log: Vec<u8>,
    /// What was on the recording machine's boot disk: its own parts of the log are these, not a host's.
    pub manifest: Manifest,
}

/// Records a boot of `machine`, or finds the recording made earlier of the same.
///
/// # Errors
/// When the machine does not boot or does not report its log.
pub fn firmware_boot(machine: &Machine) -> Result<Recording, LabError> {
    let files = BootFiles::fetch()?;
    let cache = image::image_cache()?;
    let archive = initrd::recorder(&files)?;
    let boot = BootDisk::make(&files, &archive, COMMAND_LINE, &cache)?;
    let manifest = boot.manifest(&files, &archive, &Tree::default())?;
    let kept = cache.join(format!("recording-{}.log", key(machine, &boot.esp)?));
    let _lock = CacheLock::take_in(&cache, "recording").map_err(io_error("cannot lock the lab's cache"))?;
    if kept.exists() {
        return Ok(Recording { event_log: read(&kept)?, manifest });
    }
    let event_log = record(machine, &boot, &files)?;
    let new = tempfile::NamedTempFile::new_in(&cache).map_err(io_error("cannot keep the recording"))?;
    write(new.path(), &event_log)?;
    new.persist(&kept)
        .map_err(|error| LabError::Io { what: "cannot keep the recording".to_owned(), source: error.error })?;
    Ok(Recording { event_log, manifest })
}

/// Everything the measurements depend on.
fn key(machine: &Machine, esp: &Path) -> Result<String, LabError> {
    let mut version = Command::new("qemu-system-x86_64");
    version.arg("--version");
    let mut hash = Sha256::new();
    hash.update(run(version)?.stdout);
    hash.update(machine.identity().join("\n"));
    hash.update(Sha256::digest(read(&machine.firmware.code())?));
    hash.update(Sha256::digest(machine.firmware.new_variables()?));
    hash.update(esp.as_os_str().as_encoded_bytes());
    Ok(hex::encode(&hash.finalize()[..12]))
}

fn record(machine: &Machine, boot: &BootDisk, files: &BootFiles) -> Result<Vec<u8>, LabError> {
    let dir = workdir::scratch("recorder").map_err(io_error("cannot make a directory for the recorder"))?;
    // Disks of the same number, with nothing on them.
    let empty = |name: String| -> Result<std::path::PathBuf, LabError> {
        let path = dir.path().join(name);
        let file = std::fs::File::create(&path).map_err(io_error("cannot make an empty disk"))?;
        file.set_len(1024 * 1024).map_err(io_error("cannot make an empty disk"))?;
        Ok(path)
    };
    let root = empty("root".to_owned())?;
    let disks = (0..machine.extra_disks)
        .map(|number| Ok(Disk { image: empty(format!("disk{number}"))?, read_only: false }))
        .collect::<Result<Vec<Disk>, LabError>>()?;
    let kernel = files.kernel();
    let direct =
        machine.firmware.is_given_the_kernel().then_some((kernel.as_path(), boot.initrd.as_path(), COMMAND_LINE));
    let parts = Parts { esp: &boot.esp, root: &root, disks: &disks, verifier_port: None, direct };
    let mut host = Host::power_on("recorder", machine, &parts, None, dir, BOOT_LIMIT)?;
    let end = Instant::now() + BOOT_LIMIT;
    let text = host.with_control("its event log", BOOT_LIMIT, |control, alive| {
        control.wait_line("@@begin", end, alive)?;
        let mut text = String::new();
        loop {
            let line = control.line(end, alive)?;
            if line == "@@end" {
                return Ok(text);
            }
            text += &line;
        }
    })?;
    host.wait_end(Duration::from_mins(1))?;
    base64::engine::general_purpose::STANDARD.decode(text).map_err(|error| LabError::BadFile {
        path: "the recorder's event log".to_owned(),
        problem: format!("what came is not base64 ({error}); try again"),
    })
}
