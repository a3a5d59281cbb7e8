//! Directories: short-lived ones a test, and the cache that lives across runs.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

/// Where what is expensive to make is kept between runs: `$PORTCULLIS_LAB_CACHE`, else `target/lab` of the workspace.
///
/// # Errors
/// When the directory cannot be made.
pub fn cache_dir() -> io::Result<PathBuf> {
    let dir = match std::env::var_os("PORTCULLIS_LAB_CACHE") {
        Some(dir) if !dir.is_empty() => std::path::absolute(dir)?,
        _ => Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).join("target/lab"),
    };
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// Makes a private directory for one TPM or host, removed when the handle is dropped.
///
/// A process that was killed could not remove its own; its id is in the name, so the next one does.
///
/// # Errors
/// When the directory cannot be made.
pub fn scratch(what: &str) -> io::Result<TempDir> {
    let base = scratch_base()?;
    sweep(&base);
    tempfile::Builder::new().prefix(&format!("{}-{what}-", std::process::id())).tempdir_in(base)
}

/// The directory that holds the short-lived directories of this user. Short, because Unix socket paths are limited to
/// 107 bytes; nobody else may write to it.
///
/// # Errors
/// When the directory cannot be made, or belongs to somebody else.
pub fn scratch_base() -> io::Result<PathBuf> {
    let base = std::env::temp_dir().join(format!("portcullis-lab-{}", nix::unistd::getuid()));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&base)?;
    let metadata = fs::symlink_metadata(&base)?;
    if metadata.uid() != nix::unistd::geteuid().as_raw() || !metadata.is_dir() {
        let problem = format!("{} is not a directory of ours: remove it", base.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
    }
    Ok(base)
}

/// Removes what dead processes left. Errors do not matter: another process may be doing the same.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.split('-').next()).and_then(|pid| pid.parse::<u32>().ok())
        else {
            continue;
        };
        if !Path::new("/proc").join(pid.to_string()).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// How many files of a kind the cache keeps in any case, and how long it keeps the others after their last use.
const KEPT: usize = 6;
const KEPT_FOR: Duration = Duration::from_hours(6);

/// Says whether the cache has `path`, and notes that it was used, which only its owner may.
pub(crate) fn has(path: &Path) -> bool {
    fs::File::open(path).map(|file| file.set_modified(SystemTime::now())).is_ok()
}

/// Removes the directories in `dir` whose names start with `prefix`, as far as that can be.
pub(crate) fn remove_directories(dir: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)) {
        let _ = fs::remove_dir_all(entry.path());
    }
}

/// Removes files of `dir` whose names start with `kind` and that were not used for long. Errors do not matter: another
/// process may be doing the same.
pub(crate) fn prune(dir: &Path, kind: &str) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut files: Vec<(SystemTime, PathBuf)> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(kind))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    files.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
    for (used, path) in files.into_iter().skip(KEPT) {
        if used.elapsed().is_ok_and(|age| age > KEPT_FOR) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Holds a lock on a file in the cache, so that two processes do not make the same thing at once. Released on drop.
#[derive(Debug)]
pub struct CacheLock {
    _held: nix::fcntl::Flock<fs::File>,
}

impl CacheLock {
    /// Waits for the lock `name` in the cache directory.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub fn take(name: &str) -> io::Result<Self> {
        Self::take_in(&cache_dir()?, name)
    }

    /// Waits for the lock `name` in `dir`.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub fn take_in(dir: &Path, name: &str) -> io::Result<Self> {
        let path = dir.join(format!(".{name}.lock"));
        // Another user's, who has made what is there, can be locked all the same.
        let file = fs::File::create(&path).or_else(|error| fs::File::open(&path).map_err(|_| error))?;
        let held = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
        Ok(Self { _held: held })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_build_has_left_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(".build-x/tree/etc")).unwrap();
        fs::create_dir(dir.path().join("other")).unwrap();
        fs::write(dir.path().join(".build-file"), "").unwrap();
        remove_directories(dir.path(), ".build-");
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".build-file", "other"]);
    }
}
