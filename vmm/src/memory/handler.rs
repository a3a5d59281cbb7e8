//! Guest memory whose pages another process hands out: a page-fault handler, as Firecracker's clients know it
//! (Firecracker, docs/snapshotting/handling-page-faults-on-snapshot-resume.md; Linux
//! Documentation/admin-guide/mm/userfaultfd.rst).
//!
//! It listens on a unix socket. It is sent one message: where the memory lies, as JSON, and with it the descriptor of its page
//! faults. What it does then is between it and the kernel.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, sendmsg, sockopt,
};
use serde::Serialize;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{GuestRam, MemoryError, anonymous, from_mappings};

/// Linux 6.1 and later have it; whoever may open it may handle faults of the kernel's accesses too, which are KVM's.
const DEVICE: &str = "/dev/userfaultfd";

// Linux include/uapi/linux/userfaultfd.h.
const NEW: libc::c_ulong = 0xaa00;
const API: libc::c_ulong = 0xc018_aa3f;
const REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFD_API: u64 = 0xaa;
/// The handler hears of pages that the balloon gives back, and hands out zeros for them from then on.
const EVENT_REMOVE: u64 = 1 << 3;
const MODE_MISSING: u64 = 1;

/// Bytes of a page.
const PAGE: usize = 4096;

/// Why a page-fault handler cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// The host cannot hand page faults over.
    #[error(
        "cannot hand page faults over: {DEVICE}: {0}; it takes Linux 6.1 or later with CONFIG_USERFAULTFD, and the right to \
         open that device"
    )]
    Device(io::Error),
    /// The socket cannot be reached.
    #[error("cannot connect to the page-fault handler at {path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel refused a step.
    #[error("cannot hand page faults over: {step}: {source}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// `struct uffdio_api`.
#[repr(C)]
struct Agreement {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Registered {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// What the handler is told of a region. The names are Firecracker's, and `page_size_kib` are bytes there, too.
#[derive(Serialize)]
struct Mapping {
    base_host_virt_addr: u64,
    size: usize,
    offset: u64,
    page_size: usize,
    page_size_kib: usize,
}

/// A handler that hands out pages.
#[derive(Debug)]
pub struct Handler {
    /// Held open: were its last descriptor closed, pages that nobody has handed out would be zeros.
    _faults: OwnedFd,
    /// Held open: handlers may see from it that the VM has ended.
    _stream: OwnedFd,
}

/// What shows that a handler has ended.
#[derive(Debug)]
pub struct HandlerEnd {
    descriptor: OwnedFd,
    /// What to poll for. A connection that was closed is always reported.
    events: PollFlags,
}

impl HandlerEnd {
    /// Ready when it has.
    pub fn poll_fd(&self) -> PollFd<'_> {
        PollFd::new(self.descriptor.as_fd(), self.events)
    }

    /// Of the process that listened on the other end. Where that is none of this PID namespace, or has passed the socket on
    /// to another, the other end's closing stands for it: a handler that may be anywhere must keep it open.
    fn of_peer(stream: &OwnedFd) -> io::Result<Self> {
        let peer = getsockopt(stream, sockopt::PeerCredentials)?;
        // SAFETY: the call takes numbers and makes a descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, peer.pid(), 0) };
        if let Ok(fd @ 0..) = libc::c_int::try_from(fd) {
            // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
            return Ok(Self { descriptor: unsafe { OwnedFd::from_raw_fd(fd) }, events: PollFlags::POLLIN });
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ESRCH) || peer.pid() == 0 => {
                Ok(Self { descriptor: stream.try_clone()?, events: PollFlags::empty() })
            }
            error => Err(error),
        }
    }
}

/// `mib` MiB of memory whose pages come from the handler that listens at `path`.
pub fn map(mib: u64, path: &Path) -> Result<(GuestRam, Handler, HandlerEnd), MemoryError> {
    let stream = reach(path).map_err(|source| HandlerError::Connect { path: path.to_owned(), source })?;
    let ram = from_mappings(mib, anonymous(mib, libc::MAP_NORESERVE)?, |e| MemoryError::Reserve {
        mib,
        reason: e.to_string(),
    })?;
    let faults = hand_over(&ram)?;
    let step = |step| move |source: io::Error| HandlerError::Step { step, source };
    let end = HandlerEnd::of_peer(&stream).map_err(step("watch the handler's process"))?;
    send(&stream, &ram, &faults).map_err(step("tell the handler"))?;
    Ok((ram, Handler { _faults: faults, _stream: stream }, end))
}

/// Connects to the socket, or fails at once. Landlock does not know of that, so it is asked for the folder.
fn reach(path: &Path) -> io::Result<OwnedFd> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = File::open(folder)?;
    let inside = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    if !std::fs::symlink_metadata(&inside)?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no socket"));
    }
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = nix::sys::socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(&inside)?)?;
    Ok(socket)
}

/// The faults of this memory. It is to have no pages yet.
fn hand_over(ram: &GuestRam) -> Result<OwnedFd, HandlerError> {
    let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(DEVICE);
    let device = device.map_err(HandlerError::Device)?;
    // SAFETY: this request takes flags and makes a descriptor.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), NEW, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    if fd < 0 {
        return Err(HandlerError::Device(io::Error::last_os_error()));
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    let faults = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut agreement = Agreement { api: UFFD_API, features: EVENT_REMOVE, ioctls: 0 };
    ask(&faults, API, &raw mut agreement, "agree on what it can")?;
    for region in ram.iter() {
        let (start, len) = (region.as_ptr().addr() as u64, region.len());
        let mut registered = Registered { start, len, mode: MODE_MISSING, ioctls: 0 };
        ask(&faults, REGISTER, &raw mut registered, "register the guest's memory")?;
    }
    Ok(faults)
}

fn ask<T>(faults: &OwnedFd, request: libc::c_ulong, argument: *mut T, step: &'static str) -> Result<(), HandlerError> {
    // SAFETY: `argument` points to the live structure of this request, which the kernel reads and writes.
    match unsafe { libc::ioctl(faults.as_raw_fd(), request, argument) } {
        0.. => Ok(()),
        _ => Err(HandlerError::Step { step, source: io::Error::last_os_error() }),
    }
}

fn send(stream: &OwnedFd, ram: &GuestRam, faults: &OwnedFd) -> io::Result<()> {
    let mut offset = 0u64;
    let mut mappings = Vec::new();
    for region in ram.iter() {
        let (base_host_virt_addr, size) = (region.as_ptr().addr() as u64, region.size());
        mappings.push(Mapping { base_host_virt_addr, size, offset, page_size: PAGE, page_size_kib: PAGE });
        offset = offset.saturating_add(region.len());
    }
    let text = serde_json::to_vec(&mappings)?;
    let descriptors = [faults.as_fd().as_raw_fd()];
    let with = [ControlMessage::ScmRights(&descriptors)];
    let sent = sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&text)], &with, MsgFlags::MSG_NOSIGNAL, None)?;
    if sent == text.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}
