//! The socket file.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};

use crate::socket_file::SocketFile;

/// Why there is no API socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Something is there already. Exit code 2.
    #[error(
        "cannot make the API socket {path}: there is a file of that name already; if no other VM uses it, remove it, \
         or give another --api-sock"
    )]
    InUse {
        /// What was asked for.
        path: PathBuf,
    },
    /// No socket can have this name. Exit code 2.
    #[error("cannot make the API socket {path}: {source}; give another --api-sock")]
    Bind {
        /// What was asked for.
        path: PathBuf,
        /// What the system said.
        source: Errno,
    },
    /// The host lacks something. Exit code 3.
    #[error("cannot {step} for the API socket: {source}")]
    Host {
        /// What was tried.
        step: &'static str,
        /// What the system said.
        source: Errno,
    },
}

impl SocketError {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::InUse { .. } | Self::Bind { .. } => 2,
            Self::Host { .. } => 3,
        }
    }
}

/// A listening socket in the file system, for its owner only. Dropping it takes the file away.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    file: SocketFile,
}

impl Socket {
    /// Listens at `path`, where nothing may be yet: neither another VM's socket nor what one left behind is replaced.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let host = |step| move |source| SocketError::Host { step, source };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(host("open a socket"))?;
        // The file gets its mode from the socket at once, so there is no moment in which others could connect.
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).map_err(host("set rights"))?;
        let refused = |source| SocketError::Bind { path: path.to_owned(), source };
        let address = UnixAddr::new(path).map_err(refused)?;
        bind(fd.as_raw_fd(), &address).map_err(|source| match source {
            Errno::EADDRINUSE => SocketError::InUse { path: path.to_owned() },
            other => refused(other),
        })?;
        listen(&fd, Backlog::new(64).unwrap_or(Backlog::MAXALLOWABLE)).map_err(host("listen"))?;
        Ok(Self { fd, file: SocketFile::new(path) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The next connection that waits, non-blocking.
    pub(super) fn accept(&self) -> Result<OwnedFd, Errno> {
        let fd = accept4(self.fd.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
        // SAFETY: the call has just made the descriptor, and nothing else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        (dir, path)
    }

    #[test]
    fn it_is_the_owners_only_and_is_removed() {
        let (_dir, path) = place();
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(socket.accept().unwrap_err(), Errno::EAGAIN);
        let _client = UnixStream::connect(&path).unwrap();
        socket.accept().unwrap();
        drop(socket);
        assert!(!path.exists());
        Socket::bind(&path).unwrap();
    }

    #[test]
    fn what_is_there_is_left_alone() {
        let (_dir, path) = place();
        let first = Socket::bind(&path).unwrap();
        assert!(matches!(Socket::bind(&path), Err(SocketError::InUse { .. })));
        // What a killed VM leaves behind.
        std::mem::forget(first);
        assert!(matches!(Socket::bind(&path), Err(SocketError::InUse { .. })));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "a file").unwrap();
        assert!(matches!(Socket::bind(&path), Err(SocketError::InUse { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
    }

    #[test]
    fn anothers_file_is_not_removed() {
        let (_dir, path) = place();
        let old = Socket::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _new = Socket::bind(&path).unwrap();
        drop(old);
        assert!(path.exists());
    }

    #[test]
    fn names_that_cannot_be_are_said_so() {
        let (dir, _) = place();
        for path in [dir.path().join("x".repeat(120)), dir.path().join("no/such/folder")] {
            let error = Socket::bind(&path).unwrap_err();
            assert!(matches!(error, SocketError::Bind { .. }) && error.exit_code() == 2, "{error}");
        }
    }
}
