//! A stock Debian system for guests: its root file system and the initrd that its own tools make for the lab's kernel.
//!
//! Packages are Debian's, installed as on any machine: systemd, udev, dbus, kmod, initramfs-tools. The kernel's package is
//! not among them: its modules come from the [`BootFiles`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use sha2::{Digest, Sha256};

use super::boot_files::BootFiles;
use super::host::copy_sparse;
use super::image::image_cache;
use super::rootfs::{self, HostFile, Tree};
use super::{LabError, io_error, run};
use crate::workdir::{self, CacheLock};

const BUILD: &str = include_str!("debian_root/build");

/// What a system consists of; the last to be put into the cache is the last here.
const PARTS: [&str; 3] = ["versions", "initrd", "ext4"];

/// How the directories begin in which systems are built.
const STAGING: &str = ".debian-build-";

/// A built system. Its files lie in the lab's cache and are never written by a guest.
#[derive(Debug, Clone)]
pub struct DebianRoot {
    cache: PathBuf,
    key: String,
}

impl DebianRoot {
    /// The system in the cache; it is built when it is not there, which takes about a minute and downloads 60 MB.
    ///
    /// # Errors
    /// When it cannot be built: without root, mmdebstrap, or a Debian mirror that apt knows.
    pub fn build(files: &BootFiles) -> Result<Self, LabError> {
        let cache = image_cache()?;
        let _lock = CacheLock::take_in(&cache, "debian").map_err(io_error("cannot lock the lab's cache"))?;
        let key = Sha256::new().chain_update(BUILD).chain_update(files.versions()).finalize();
        let system = Self { cache, key: hex::encode(&key[..12]) };
        if PARTS.iter().all(|part| workdir::has(&system.part(part))) {
            return Ok(system);
        }
        if !nix::unistd::geteuid().is_root() {
            let problem =
                "a Debian root file system is built as root (it needs chroot, and has files of several owners)";
            return Err(LabError::BadSpec(format!("{problem}: run this once as root")));
        }
        workdir::prune(&system.cache, "debian-");
        // Whoever had the lock before and was killed could not remove its own; what it had started has died with it.
        workdir::remove_directories(&system.cache, STAGING);
        let start = Instant::now();
        eprintln!("lab: building a Debian root file system, about a minute");
        system.construct(files)?;
        eprintln!("lab: {} built in {} s", system.part("ext4").display(), start.elapsed().as_secs());
        Ok(system)
    }

    fn part(&self, part: &str) -> PathBuf {
        self.cache.join(format!("debian-{}.{part}", self.key))
    }

    fn construct(&self, files: &BootFiles) -> Result<(), LabError> {
        let staging = tempfile::Builder::new().prefix(STAGING).tempdir_in(&self.cache);
        let staging = staging.map_err(io_error("cannot make a staging directory"))?;
        let script = staging.path().join("build");
        super::write(&script, BUILD.as_bytes())?;
        // In namespaces of its own: whatever ends the build, no mount and no process of it stays.
        let mut build = Command::new("unshare");
        build.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh"]);
        build.arg(script).arg(files.root()).arg(files.kernel_release()).current_dir(&staging);
        run(build)?;
        for part in PARTS {
            // On disk before it has its name: a machine that stops leaves no name with nothing behind it.
            let from = staging.path().join(part);
            fs::File::open(&from)
                .and_then(|file| file.sync_all())
                .and_then(|()| fs::rename(from, self.part(part)))
                .map_err(io_error(format!("the build has left no {part}")))?;
        }
        Ok(())
    }

    /// The initrd.
    pub fn initrd(&self) -> PathBuf {
        self.part("initrd")
    }

    /// Names and versions of the packages, one a line.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub fn versions(&self) -> Result<String, LabError> {
        let path = self.part("versions");
        fs::read_to_string(&path).map_err(io_error(format!("cannot read {}", path.display())))
    }

    /// Makes a copy of the root file system (raw ext4) at `to`, for a guest to write to, with `files` put into it.
    ///
    /// # Errors
    /// When it cannot be copied or written.
    pub fn copy(&self, to: &Path, files: &[HostFile]) -> Result<(), LabError> {
        copy_sparse(&self.part("ext4"), to)?;
        let mut tree = Tree::default();
        for dir in ["/etc/systemd/system", "/usr/local/sbin"] {
            tree.directory(dir);
        }
        let scratch = tempfile::tempdir().map_err(io_error("cannot make a temporary directory"))?;
        rootfs::add_files(to, &tree, files, scratch.path())
    }
}
