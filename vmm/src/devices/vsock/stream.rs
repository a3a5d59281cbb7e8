//! The system calls on the host's sockets. All of them are non-blocking; guest memory goes to them as it lies there.

use std::io::{Error, Result};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr};

use crate::jail::seccomp::Call;
use crate::virtio::IoVec;

const ACCEPTED: libc::c_int = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;

/// What this room asks of the kernel: unix sockets and no others.
pub const CALLS: &[Call] = &[
    Call::with(libc::SYS_socket, 0, libc::AF_UNIX as u32),
    Call::any(libc::SYS_connect),
    Call::with(libc::SYS_accept4, 3, ACCEPTED as u32),
    Call::with(libc::SYS_shutdown, 1, libc::SHUT_RD as u32),
    Call::with(libc::SYS_shutdown, 1, libc::SHUT_WR as u32),
    // Connections come and go: their descriptors are not known when the filter is made.
    Call::any(libc::SYS_read),
    Call::any(libc::SYS_write),
    Call::any(libc::SYS_readv),
    Call::any(libc::SYS_writev),
    Call::with(libc::SYS_epoll_ctl, 1, libc::EPOLL_CTL_ADD as u32),
    Call::with(libc::SYS_epoll_ctl, 1, libc::EPOLL_CTL_DEL as u32),
    // The device has an event loop of its own, which the VM's watches.
    Call::any(libc::SYS_epoll_wait).on_watched(),
    Call::any(libc::SYS_timerfd_settime),
];

/// Connects to the socket at `path`, or fails at once.
pub fn connect(path: &Path) -> Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    nix::sys::socket::connect(socket.as_raw_fd(), &address)?;
    Ok(socket.into())
}

/// Takes the next connection that waits.
pub fn accept(listener: &UnixListener) -> Result<UnixStream> {
    // SAFETY: the descriptor is open, and no address is asked for.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), ACCEPTED) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

/// Reads into the VMM's own memory.
pub fn read(stream: &UnixStream, bytes: &mut [u8]) -> Result<usize> {
    Ok(nix::unistd::read(stream, bytes)?)
}

/// Writes from the VMM's own memory.
pub fn write(stream: &UnixStream, bytes: &[u8]) -> Result<usize> {
    // Rust's runtime ignores SIGPIPE: a peer that has gone is an error.
    Ok(nix::unistd::write(stream, bytes)?)
}

/// Whether the other end is closed in both directions.
pub fn is_hung_up(stream: &UnixStream) -> bool {
    let mut set = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    poll(&mut set, PollTimeout::ZERO).is_ok()
        && set.first().and_then(PollFd::revents).is_some_and(|found| found.contains(PollFlags::POLLHUP))
}

/// Reads into guest memory.
pub fn read_vectored(stream: &UnixStream, vectors: &[IoVec]) -> Result<usize> {
    let count = libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX);
    // SAFETY: each vector is a range of guest memory, which is mapped for as long as the device lives, and which
    // nothing in this process holds a reference to.
    let done = unsafe { libc::readv(stream.as_raw_fd(), vectors.as_ptr(), count) };
    usize::try_from(done).map_err(|_| Error::last_os_error())
}

/// Writes from guest memory.
pub fn write_vectored(stream: &UnixStream, vectors: &[IoVec]) -> Result<usize> {
    let count = libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX);
    // SAFETY: as above; the kernel only reads.
    let done = unsafe { libc::writev(stream.as_raw_fd(), vectors.as_ptr(), count) };
    usize::try_from(done).map_err(|_| Error::last_os_error())
}
