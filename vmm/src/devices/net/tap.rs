//! The tap: an interface of the host whose other end is a file.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TUNSETIFF, TUNSETVNETHDRSZ};

use super::frame;
use crate::virtio::IoVec;

/// `TUNSETOFFLOAD`, as filters of system calls compare it.
pub(super) const SET_OFFLOAD: u32 = 0x4004_54d0;
const _: () = assert!(SET_OFFLOAD as u64 == libc::TUNSETOFFLOAD);

/// Why a tap could not be opened. Exit code 3.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The kernel has no taps, or the process may not have them.
    #[error("/dev/net/tun cannot be opened: {0}; load the module 'tun', and let this user read and write the file")]
    NoTun(io::Error),
    /// There is no such interface. The VMM makes none, whatever its rights.
    #[error("there is no network interface '{name}'; make it with: ip tuntap add dev {name} mode tap user {user}")]
    Missing {
        /// The interface that was asked for.
        name: String,
        /// The user that this process runs as.
        user: u32,
    },
    /// It belongs to somebody else.
    #[error(
        "the user {user} may not use the tap '{name}'; give it to him: \
         ip tuntap del dev {name} mode tap && ip tuntap add dev {name} mode tap user {user}"
    )]
    NotAllowed {
        /// The tap that was asked for.
        name: String,
        /// The user that this process runs as.
        user: u32,
    },
    /// Another program, or another VM, holds it.
    #[error("the tap '{0}' is in use by another program; each VM needs a tap of its own")]
    Busy(String),
    /// An interface of another kind.
    #[error("the network interface '{0}' is not a tap of one queue; make one with: ip tuntap add dev NAME mode tap")]
    NotATap(String),
    /// The kernel refused a setting.
    #[error("the tap '{name}' does not take {setting}: {source}")]
    Setting {
        /// The tap.
        name: String,
        /// What was to be set.
        setting: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// An open tap. Each read and write is one frame with its header, and none of them waits.
pub struct Tap {
    file: File,
    offload: u32,
}

impl Tap {
    /// Takes hold of the tap `name`, which exists.
    pub fn open(name: &str) -> Result<Self, TapError> {
        // SAFETY: a call without arguments that cannot fail.
        let user = unsafe { libc::geteuid() };
        let missing = || TapError::Missing { name: name.to_owned(), user };
        let text = CString::new(name).map_err(|_| missing())?;
        // With the right to, TUNSETIFF would make the interface: one that no firewall or bridge knows of.
        // SAFETY: `text` is a live string that ends in NUL.
        if unsafe { libc::if_nametoindex(text.as_ptr()) } == 0 {
            return Err(missing());
        }
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/net/tun");
        let mut tap = Self { file: file.map_err(TapError::NoTun)?, offload: 0 };
        tap.attach(&text).map_err(|source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => TapError::NotAllowed { name: name.to_owned(), user },
            Some(libc::EBUSY) => TapError::Busy(name.to_owned()),
            Some(libc::EINVAL) => TapError::NotATap(name.to_owned()),
            _ => TapError::Setting { name: name.to_owned(), setting: "this program", source },
        })?;
        let setting = |setting| move |source| TapError::Setting { name: name.to_owned(), setting, source };
        tap.set_header_len().map_err(setting("headers of 12 bytes"))?;
        // It may have been another's before.
        tap.set_offload(0).map_err(setting("frames without offloads"))?;
        Ok(tap)
    }

    fn attach(&self, name: &CString) -> io::Result<()> {
        // SAFETY: all zeros is a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR).unwrap_or(0);
        // SAFETY: the request points to a live `ifreq`, which is what this call reads and writes.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETIFF, &raw mut request) })
    }

    fn set_header_len(&self) -> io::Result<()> {
        let len = libc::c_int::try_from(frame::HEADER).unwrap_or(0);
        // SAFETY: the call reads an `int` that lives as long.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETVNETHDRSZ, &raw const len) })
    }

    /// Says what the tap may leave undone in the frames that it gives: flags `TUN_F_…`.
    pub fn set_offload(&mut self, flags: u32) -> io::Result<()> {
        // SAFETY: the call takes a number.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), SET_OFFLOAD.into(), libc::c_ulong::from(flags)) })?;
        self.offload = flags;
        Ok(())
    }

    /// What was set last.
    pub fn offload(&self) -> u32 {
        self.offload
    }

    /// Reads one frame; `None` if there is none. What does not fit is lost.
    ///
    /// # Safety
    /// Each vector is memory that may be written to, of guest or VMM, that nobody has borrowed.
    pub unsafe fn read(&self, vectors: &[IoVec]) -> io::Result<Option<usize>> {
        let count = libc::c_int::try_from(vectors.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the caller answers for what the vectors point to; the array itself lives as long as the call.
        transferred(unsafe { libc::readv(self.file.as_raw_fd(), vectors.as_ptr(), count) })
    }

    /// Writes one frame; `None` if the tap takes none now.
    ///
    /// # Safety
    /// Each vector is memory that may be read, of guest or VMM.
    pub unsafe fn write(&self, vectors: &[IoVec]) -> io::Result<Option<usize>> {
        let count = libc::c_int::try_from(vectors.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: as above.
        transferred(unsafe { libc::writev(self.file.as_raw_fd(), vectors.as_ptr(), count) })
    }
}

impl From<File> for Tap {
    /// A tap that somebody has opened and set up, or what keeps frames and their headers apart as one does: a socket of
    /// datagrams. It does not wait (`O_NONBLOCK`).
    fn from(file: File) -> Self {
        Self { file, offload: 0 }
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn transferred(result: libc::ssize_t) -> io::Result<Option<usize>> {
    if let Ok(count) = usize::try_from(result) {
        return Ok(Some(count));
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) }
}
