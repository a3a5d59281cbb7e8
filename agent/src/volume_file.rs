//! Files inside a tenant's volume: found without ever leaving it, and equal to the digest in the order.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use sha2::{Digest, Sha256};

/// Larger kernels and initrds are refused.
const MAX_FILE_BYTES: u64 = 1024 * 1024 * 1024;

/// Why a file of a volume is not used.
#[derive(Debug, thiserror::Error)]
pub enum VolumeFileError {
    /// It cannot be opened, or the way to it leads out of the volume or through a symbolic link.
    #[error("cannot open {path} inside the volume: {source}{hint}")]
    Open {
        /// The path in the order.
        path: PathBuf,
        /// What the system said.
        source: nix::Error,
        /// What that error means here, or nothing.
        hint: &'static str,
    },
    /// It cannot be read.
    #[error("cannot read {path} inside the volume: {source}")]
    Read {
        /// The path in the order.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is a directory, a device or a pipe, or it is too large.
    #[error("{path} inside the volume is not a file of at most {MAX_FILE_BYTES} bytes")]
    NotAFile {
        /// The path in the order.
        path: PathBuf,
    },
    /// Its digest is not the one in the order.
    #[error("{path} inside the volume has SHA-256 {found}, the order says {expected}")]
    Digest {
        /// The path in the order.
        path: PathBuf,
        /// The order's digest, hex.
        expected: String,
        /// The file's digest, hex.
        found: String,
    },
}

/// Checks that `path`, taken relative to the volume mounted at `root`, is a regular file with this SHA-256, and gives
/// the path under which the VMM can open it. Symbolic links are refused anywhere on the way, so that this path leads to the
/// very file that was hashed.
pub fn check(root: &Path, path: &str, sha256: &[u8; 32]) -> Result<PathBuf, VolumeFileError> {
    let relative = Path::new(path.trim_start_matches('/'));
    let named = || PathBuf::from(path);
    let mut file = File::from(open_beneath(root, relative).map_err(|source| VolumeFileError::Open {
        path: named(),
        source,
        hint: hint(source),
    })?);
    let read = |source| VolumeFileError::Read { path: named(), source };
    let metadata = file.metadata().map_err(read)?;
    if !metadata.is_file() || metadata.len() > MAX_FILE_BYTES {
        return Err(VolumeFileError::NotAFile { path: named() });
    }
    let found = digest(&mut file).map_err(read)?;
    if found != *sha256 {
        return Err(VolumeFileError::Digest {
            path: named(),
            expected: hex::encode(sha256),
            found: hex::encode(found),
        });
    }
    Ok(root.join(relative))
}

/// Opens `path` below `root`; the kernel refuses every way out of it.
pub fn open_beneath(root: &Path, path: &Path) -> nix::Result<OwnedFd> {
    let dir = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    // Non-blocking: a pipe that lies there must not stop the agent.
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(&dir, path, how)
}

fn hint(error: nix::Error) -> &'static str {
    match error {
        nix::Error::ELOOP => " (symbolic links are not followed)",
        nix::Error::EXDEV => " (it would lead out of the volume)",
        _ => "",
    }
}

fn digest(file: &mut File) -> std::io::Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0_u8; 256 * 1024];
    loop {
        let count = file.read(&mut buffer)?;
        match buffer.get(..count) {
            Some(part) if count > 0 => hasher.update(part),
            _ => return Ok(hasher.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn volume() -> (tempfile::TempDir, PathBuf, [u8; 32]) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("volume");
        std::fs::create_dir_all(root.join("boot")).unwrap();
        std::fs::write(root.join("boot/vmlinuz"), b"kernel").unwrap();
        std::fs::write(dir.path().join("secret"), b"kernel").unwrap();
        (dir, root, Sha256::digest(b"kernel").into())
    }

    #[test]
    fn the_right_file_is_found_with_and_without_a_leading_slash() {
        let (_dir, root, sha256) = volume();
        for path in ["boot/vmlinuz", "/boot/vmlinuz"] {
            assert_eq!(check(&root, path, &sha256).unwrap(), root.join("boot/vmlinuz"));
        }
    }

    #[test]
    fn no_way_leads_out() {
        let (_dir, root, sha256) = volume();
        symlink("../secret", root.join("link")).unwrap();
        symlink("/", root.join("root")).unwrap();
        symlink("boot", root.join("inner")).unwrap();
        for path in ["../secret", "/../secret", "boot/../../secret", "link", "root/etc/passwd", "inner/vmlinuz", ""] {
            let error = check(&root, path, &sha256).unwrap_err();
            assert!(matches!(error, VolumeFileError::Open { .. }), "{path}: {error}");
        }
    }

    #[test]
    fn another_content_is_refused_with_both_digests() {
        let (_dir, root, _) = volume();
        let error = check(&root, "boot/vmlinuz", &[0; 32]).unwrap_err().to_string();
        assert!(error.contains(&"0".repeat(64)) && error.contains(&hex::encode(Sha256::digest(b"kernel"))), "{error}");
    }

    #[test]
    fn directories_and_pipes_are_no_kernels() {
        let (_dir, root, sha256) = volume();
        nix::unistd::mkfifo(&root.join("pipe"), Mode::S_IRWXU).unwrap();
        for path in ["boot", "pipe"] {
            assert!(matches!(check(&root, path, &sha256), Err(VolumeFileError::NotAFile { .. })), "{path}");
        }
    }
}
