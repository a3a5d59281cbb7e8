//! What the agent keeps on disk: files are written whole or not at all, readable by the agent only.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// No file of ours comes near this; a larger one is refused before it is read.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another agent works on the same state.
    #[error("{path} is held by another portcullis-agent: stop it first")]
    Busy {
        /// The lock file.
        path: PathBuf,
    },
    /// A file is larger than any of ours.
    #[error("{path} is larger than {MAX_FILE_BYTES} bytes: it is not what this agent wrote")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

/// The agent's state directory.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

/// Holds the state directory for one process; dropped, it is free again.
#[derive(Debug)]
pub struct StoreLock {
    _lock: Flock<File>,
}

impl Store {
    /// Opens the directory and makes it (0700) when it is missing.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        make_private_dir(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Takes the state for this process, so that two agents never quote on two TLS keys in turn.
    pub fn lock(&self) -> Result<StoreLock, StoreError> {
        let path = self.dir.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| StoreError::Io { action: "open", path: path.clone(), source })?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(StoreLock { _lock: lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(StoreError::Busy { path }),
            Err((_, errno)) => Err(StoreError::Io { action: "lock", path, source: errno.into() }),
        }
    }

    /// The file that holds the attestation key's blob.
    pub fn ak_path(&self) -> PathBuf {
        self.dir.join("ak.json")
    }

    /// Keeps a copy of something that was sent, in `artifacts/`. That it cannot be kept is no reason not to go on.
    pub fn keep_artifact(&self, name: &str, bytes: &[u8]) {
        let dir = self.dir.join("artifacts");
        if let Err(error) = make_private_dir(&dir).and_then(|()| write(&dir.join(name), bytes)) {
            tracing::warn!(%error, name, "an artifact could not be kept");
        }
    }

    /// The directory that holds one directory a VM.
    pub fn vms_dir(&self) -> PathBuf {
        self.dir.join("vms")
    }
}

/// Makes a directory, and those above it, that only the agent may enter.
pub fn make_private_dir(dir: &Path) -> Result<(), StoreError> {
    let io = |source| StoreError::Io { action: "make", path: dir.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
    std::fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(io)
}

/// Reads a whole file of ours; `None` when it does not exist.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let io = |source| StoreError::Io { action: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io)?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(StoreError::TooLarge { path: path.to_owned() });
    }
    Ok(Some(bytes))
}

/// Writes a file so that after a crash it is either the old or the new one, whole (0600).
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let io = |action| move |source| StoreError::Io { action, path: path.to_owned(), source };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let draft = path.with_file_name(name);
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&draft).map_err(io("write"))?;
    file.write_all(bytes).map_err(io("write"))?;
    file.sync_all().map_err(io("sync"))?;
    std::fs::rename(&draft, path).map_err(io("replace"))?;
    if let Some(dir) = path.parent() {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("sync the directory of"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_private_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("a/b")).unwrap();
        let path = store.ak_path();
        assert!(read(&path).unwrap().is_none());
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some(&b"two"[..]));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn one_agent_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let first = store.lock().unwrap();
        assert!(matches!(store.lock(), Err(StoreError::Busy { .. })));
        drop(first);
        store.lock().unwrap();
    }

    #[test]
    fn a_swollen_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ak.json");
        std::fs::write(&path, vec![b' '; 1024 * 1024 + 1]).unwrap();
        assert!(matches!(read(&path), Err(StoreError::TooLarge { .. })));
    }
}
