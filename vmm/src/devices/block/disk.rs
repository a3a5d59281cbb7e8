//! The host's file behind a disk: raw sectors, and nothing is ever read out of them by us.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

use super::{DriveConfig, SECTOR};
use crate::devices::DeviceError;
use crate::jail::seccomp::Call;
use crate::memory::GuestRam;
use crate::virtio::{Buffers, IoVec};

/// Deallocate; reads give zeros.
const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
/// Zeros without giving up the space.
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
/// Most vectors of one call (`IOV_MAX`).
const MAX_VECTORS: usize = 1024;

/// An open file or block device, and which part of it is the guest's.
#[derive(Debug)]
pub struct Disk {
    file: File,
    /// Which file it is: one of two equal ones sees what the other writes.
    identity: (u64, u64),
    /// Where the guest's first sector lies, in bytes.
    start: u64,
    sectors: u64,
    read_only: bool,
}

impl Disk {
    /// System calls on a disk that only reads.
    pub(super) const READ_CALLS: [Call; 2] =
        [Call::any(libc::SYS_preadv), Call::with(libc::SYS_flock, 1, (libc::LOCK_SH | libc::LOCK_NB) as u32)];
    /// System calls on a disk that writes, beside those.
    pub(super) const WRITE_CALLS: [Call; 5] = [
        Call::any(libc::SYS_pwritev2),
        Call::any(libc::SYS_fdatasync),
        Call::with(libc::SYS_fallocate, 1, PUNCH_HOLE as u32),
        Call::with(libc::SYS_fallocate, 1, ZERO_RANGE as u32),
        Call::with(libc::SYS_flock, 1, (libc::LOCK_EX | libc::LOCK_NB) as u32),
    ];

    /// Opens the file of a drive; for reading only if that is how the drive is configured. It is not locked yet.
    pub fn open(config: &DriveConfig) -> Result<Self, DeviceError> {
        let path = config.path_on_host.display();
        let unusable = |reason: String| DeviceError::Unusable { device: format!("drive {}", config.drive_id), reason };
        let mut options = OpenOptions::new();
        // Non-blocking: a FIFO must not hang the start.
        options.read(true).write(!config.is_read_only).custom_flags(libc::O_NONBLOCK);
        let mut file = options.open(&config.path_on_host).map_err(|e| unusable(format!("cannot open {path}: {e}")))?;
        let info = file.metadata().map_err(|e| unusable(format!("cannot look at {path}: {e}")))?;
        let kind = info.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(unusable(format!("{path} is neither a regular file nor a block device")));
        }
        // A block device's metadata does not have its size.
        let len = file.seek(SeekFrom::End(0)).map_err(|e| unusable(format!("{path} has no size: {e}")))?;
        let len = len.checked_sub(config.offset).ok_or_else(|| {
            unusable(format!("{path} has {len} bytes, but its data is to begin at byte {}", config.offset))
        })?;
        if !len.is_multiple_of(SECTOR) {
            tracing::warn!(
                drive = config.drive_id,
                "the size of {path} is no multiple of 512 bytes; the guest does not see the last {}",
                len % SECTOR
            );
        }
        let identity = if kind.is_file() { (info.dev(), info.ino()) } else { (u64::MAX, info.rdev()) };
        Ok(Self { file, identity, start: config.offset, sectors: len / SECTOR, read_only: config.is_read_only })
    }

    /// Makes sure that nobody writes what somebody else uses: a disk that can be written is one VM's alone. The lock is
    /// the file's (`flock`) and ends with the descriptor.
    pub fn lock(&self) -> Result<(), String> {
        let kind = if self.read_only { libc::LOCK_SH } else { libc::LOCK_EX };
        // SAFETY: a call without pointers, on a descriptor that is open.
        if unsafe { libc::flock(self.file.as_raw_fd(), kind | libc::LOCK_NB) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        Err(match error.kind() {
            ErrorKind::WouldBlock if self.read_only => {
                "somebody writes to the file, another VM or another drive of this one".to_owned()
            }
            ErrorKind::WouldBlock => {
                "the file is in use by another VM, or by another drive of this one; a drive that is written has its \
                 file alone"
                    .to_owned()
            }
            _ => format!("cannot lock the file: {error}"),
        })
    }

    /// Whether both are the same file, or the same block device.
    pub fn is_same_file(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// Takes over the size that another descriptor of the same file has shown.
    pub fn resize_as(&mut self, other: &Self) {
        (self.start, self.sectors) = (other.start, other.sectors);
    }

    /// Number of sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether it was opened for reading only.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Where `bytes` bytes from `sector` on lie in the file. `None` if they are not all on the disk.
    pub fn locate(&self, sector: u64, bytes: u64) -> Option<u64> {
        let end = sector.checked_add(bytes.div_ceil(SECTOR))?;
        // On the disk, and so in the file: nothing below overflows.
        (end <= self.sectors).then(|| self.start + sector * SECTOR)
    }

    /// Fills guest memory from byte `at` of the file on. An error if the file is shorter.
    pub fn read(&self, ram: &GuestRam, data: &Buffers, at: u64) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        transfer(vectors(ram, data)?, at, ErrorKind::UnexpectedEof, |vectors, count, at| {
            // SAFETY: `transfer` gives as many vectors as it says, each of memory that is the guest's and mapped.
            unsafe { libc::preadv(fd, vectors, count, at) }
        })
    }

    /// Writes guest memory to the file from byte `at` on; when `durable`, it is on the host's disk after it.
    pub fn write(&self, ram: &GuestRam, data: &Buffers, at: u64, durable: bool) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        let flags = if durable { libc::RWF_DSYNC } else { 0 };
        transfer(vectors(ram, data)?, at, ErrorKind::WriteZero, |vectors, count, at| {
            // SAFETY: as in `read`.
            unsafe { libc::pwritev2(fd, vectors, count, at, flags) }
        })
    }

    /// What was written is on the host's disk after it.
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Makes a range read as zeros, and gives its space up where `deallocate` says so and the host can.
    pub fn zero(&self, at: u64, len: u64, deallocate: bool) -> io::Result<()> {
        if len == 0 {
            // fallocate does not take it.
            return Ok(());
        }
        // Not every file system and device has both.
        let (first, second) = if deallocate { (PUNCH_HOLE, ZERO_RANGE) } else { (ZERO_RANGE, PUNCH_HOLE) };
        match self.fallocate(first, at, len) {
            Err(error) if is_unsupported(&error) => self.fallocate(second, at, len),
            result => result,
        }
    }

    /// Gives the space of a range up; it reads as zeros then.
    pub fn discard(&self, at: u64, len: u64) -> io::Result<()> {
        if len == 0 { Ok(()) } else { self.fallocate(PUNCH_HOLE, at, len) }
    }

    fn fallocate(&self, mode: i32, at: u64, len: u64) -> io::Result<()> {
        let too_big = |_| io::Error::from(ErrorKind::InvalidInput);
        let (at, len) = (i64::try_from(at).map_err(too_big)?, i64::try_from(len).map_err(too_big)?);
        loop {
            // SAFETY: a call without pointers, on a descriptor that is open.
            if unsafe { libc::fallocate(self.file.as_raw_fd(), mode, at, len) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

/// Whether the host says that it has no such operation.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    // ENOSYS and ENOTTY: file systems in user space, and some block devices.
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY))
}

/// Guest memory as the host's kernel takes it.
fn vectors(ram: &GuestRam, data: &Buffers) -> io::Result<Vec<IoVec>> {
    data.io_vecs(ram).map_err(io::Error::other)
}

/// Repeats `call` until all vectors are done. `at_end` is the error when it moves nothing any more.
fn transfer(
    mut vectors: Vec<IoVec>,
    at: u64,
    at_end: ErrorKind,
    call: impl Fn(*const IoVec, libc::c_int, libc::off_t) -> isize,
) -> io::Result<()> {
    let too_big = |_| io::Error::from(ErrorKind::InvalidInput);
    let mut at = libc::off_t::try_from(at).map_err(too_big)?;
    let mut next = 0;
    while let Some(rest) = vectors.get_mut(next..).filter(|rest| !rest.is_empty()) {
        let count = libc::c_int::try_from(rest.len().min(MAX_VECTORS)).unwrap_or(0);
        let done = call(rest.as_ptr(), count, at);
        if done < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        if done == 0 {
            return Err(at_end.into());
        }
        at = at.saturating_add(done as libc::off_t);
        let mut left = done.unsigned_abs();
        for vector in rest {
            let part = left.min(vector.iov_len);
            vector.iov_base = vector.iov_base.wrapping_byte_add(part);
            vector.iov_len -= part;
            left -= part;
            if vector.iov_len > 0 {
                break;
            }
            next += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
