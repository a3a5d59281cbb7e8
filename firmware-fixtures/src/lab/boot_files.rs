//! Debian's signed boot files, downloaded and unpacked by `scripts/install-packages` and never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{LabError, io_error, read, run, vmlinux, write};
use crate::workdir::{self, CacheLock};

/// Where the unpacked boot files are.
#[derive(Debug, Clone)]
pub struct BootFiles {
    root: PathBuf,
    kernel_release: String,
    versions: String,
}

impl BootFiles {
    /// The boot files in the cache; they are downloaded when they are not there.
    ///
    /// # Errors
    /// When they cannot be downloaded, or a package does not have the file it should have.
    pub fn fetch() -> Result<Self, LabError> {
        let cache = cached("boot-files", "stamp", "--boot-files")?;
        let stamp = cache.join("boot-files/stamp");
        let versions = fs::read_to_string(&stamp).map_err(io_error(format!("cannot read {}", stamp.display())))?;
        let root = cache.join("boot-files/root");
        let modules = root.join("lib/modules");
        let kernel_release = fs::read_dir(&modules)
            .map_err(io_error(format!("cannot list {}", modules.display())))?
            .flatten()
            .find_map(|entry| entry.file_name().into_string().ok())
            .ok_or_else(|| LabError::BadFile {
                path: modules.display().to_string(),
                problem: "no kernel modules here; remove the directory boot-files and try again".to_owned(),
            })?;
        let files = Self { root, kernel_release, versions };
        for path in [files.shim(), files.grub(), files.kernel(), files.busybox()] {
            if !path.is_file() {
                return Err(LabError::BadFile {
                    path: path.display().to_string(),
                    problem: "not in the downloaded package; remove the directory boot-files and try again".to_owned(),
                });
            }
        }
        Ok(files)
    }

    /// The directory into which the packages were unpacked.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The shim that Microsoft signed.
    pub fn shim(&self) -> PathBuf {
        self.root.join("usr/lib/shim/shimx64.efi.signed")
    }

    /// The GRUB that Debian signed.
    pub fn grub(&self) -> PathBuf {
        self.root.join("usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed")
    }

    /// The kernel that Debian signed.
    pub fn kernel(&self) -> PathBuf {
        self.root.join(format!("boot/vmlinuz-{}", self.kernel_release))
    }

    /// The kernel without its decompressor: an ELF file with a PVH note. Unpacked once, into the cache.
    ///
    /// # Errors
    /// When the kernel is not packed as Debian packs its cloud kernel, or the cache cannot be written.
    pub fn vmlinux(&self) -> Result<PathBuf, LabError> {
        let path = self.root.join(format!("boot/vmlinux-{}", self.kernel_release));
        let cache = workdir::cache_dir().map_err(io_error("cannot make the lab's cache directory"))?;
        let _lock = CacheLock::take_in(&cache, "boot-files").map_err(io_error("cannot lock the lab's cache"))?;
        if !path.exists() {
            let kernel = vmlinux::unpack(&read(&self.kernel())?)
                .map_err(|problem| LabError::BadFile { path: self.kernel().display().to_string(), problem })?;
            let new = path.with_extension("new");
            write(&new, &kernel)?;
            fs::rename(&new, &path).map_err(io_error(format!("cannot rename {}", new.display())))?;
        }
        Ok(path)
    }

    /// The static busybox.
    pub fn busybox(&self) -> PathBuf {
        self.root.join("bin/busybox")
    }

    /// The directory of the kernel's modules.
    pub fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.kernel_release)
    }

    /// What `uname -r` prints on a host, for example `6.1.0-56-cloud-amd64`.
    pub fn kernel_release(&self) -> &str {
        &self.kernel_release
    }

    /// Names and versions of the packages, one a line.
    pub fn versions(&self) -> &str {
        &self.versions
    }
}

/// The kernel that Debian builds for machines of all kinds: with drivers built in that the cloud kernel lacks, such as
/// that of the VM generation ID. Downloaded when it is not in the cache.
///
/// # Errors
/// When it cannot be downloaded.
pub fn generic_kernel() -> Result<PathBuf, LabError> {
    Ok(cached("generic-kernel", "vmlinuz", "--generic-kernel")?.join("generic-kernel/vmlinuz"))
}

/// The cache, with a directory in it that has a file `complete`; else `scripts/install-packages` makes it.
fn cached(directory: &str, complete: &str, option: &str) -> Result<PathBuf, LabError> {
    let cache = workdir::cache_dir().map_err(io_error("cannot make the lab's cache directory"))?;
    let _lock = CacheLock::take_in(&cache, directory).map_err(io_error("cannot lock the lab's cache"))?;
    if !cache.join(directory).join(complete).exists() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/install-packages");
        let mut command = Command::new(script);
        command.arg(option).env("PORTCULLIS_LAB_CACHE", &cache);
        run(command)?;
    }
    Ok(cache)
}
