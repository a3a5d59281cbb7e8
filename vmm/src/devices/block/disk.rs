//! The host's file behind a disk: raw sectors, and nothing is ever read out of them by us.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::sync::Arc;

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
/// Most bytes that one call moves: whoever wants the queue waits for it.
const MOVED_AT_ONCE: usize = 1 << 20;
/// Most bytes that one call gives up or makes zeros. Some disks have to write them.
const ZEROED_AT_ONCE: u64 = 16 << 20;
/// Between two calls for one request: whether to stop there. An error of the kind [`ErrorKind::Interrupted`] says so then.
pub(super) type Wish<'a> = &'a dyn Fn() -> bool;

/// An open file or block device, and which part of it is the guest's.
#[derive(Debug)]
pub struct Disk {
    file: Arc<File>,
    /// Which file it is: one of two equal ones sees what the other writes.
    identity: (u64, u64),
    /// Where the guest's first sector lies, in bytes.
    start: u64,
    sectors: u64,
    read_only: bool,
}

impl Disk {
    /// System calls on a disk that only reads.
    pub(super) const READ_CALLS: [Call; 1] = [Call::any(libc::SYS_preadv)];
    /// System calls on a disk that writes, beside those.
    pub(super) const WRITE_CALLS: [Call; 4] = [
        Call::any(libc::SYS_pwritev),
        Call::any(libc::SYS_fdatasync),
        Call::with(libc::SYS_fallocate, 1, PUNCH_HOLE as u32),
        Call::with(libc::SYS_fallocate, 1, ZERO_RANGE as u32),
    ];
    /// What locks a disk that only reads, and one that writes.
    pub(super) const LOCK_CALLS: [Call; 2] = [
        Call::with(libc::SYS_flock, 1, (libc::LOCK_SH | libc::LOCK_NB) as u32),
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
        Ok(Self {
            file: Arc::new(file),
            identity,
            start: config.offset,
            sectors: len / SECTOR,
            read_only: config.is_read_only,
        })
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

    /// The same disk, of the size that another descriptor of the same file has shown.
    #[must_use]
    pub fn resized_as(&self, other: &Self) -> Self {
        Self { file: Arc::clone(&self.file), start: other.start, sectors: other.sectors, ..*self }
    }

    /// Number of sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Up to where its file can be written, in bytes: 0 for what is no regular file, or not written.
    pub fn file_bytes(&self) -> u64 {
        let regular = self.identity.0 != u64::MAX;
        if regular && !self.read_only { self.start + self.sectors * SECTOR } else { 0 }
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
    pub(super) fn read(&self, ram: &GuestRam, data: &Buffers, at: u64, wish: Wish<'_>) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        transfer(vectors(ram, data)?, at, ErrorKind::UnexpectedEof, wish, |vectors, count, at| {
            // SAFETY: `transfer` gives as many vectors as it says, each of memory that is the guest's and mapped.
            unsafe { libc::preadv(fd, vectors, count, at) }
        })
    }

    /// Writes guest memory to the file from byte `at` on.
    pub(super) fn write(&self, ram: &GuestRam, data: &Buffers, at: u64, wish: Wish<'_>) -> io::Result<()> {
        let fd = self.file.as_raw_fd();
        transfer(vectors(ram, data)?, at, ErrorKind::WriteZero, wish, |vectors, count, at| {
            // SAFETY: as in `read`.
            unsafe { libc::pwritev(fd, vectors, count, at) }
        })
    }

    /// What was written is on the host's disk after it.
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Makes a range read as zeros, and gives its space up where `deallocate` says so and the host can.
    pub(super) fn zero(&self, at: u64, len: u64, deallocate: bool, wish: Wish<'_>) -> io::Result<()> {
        // Not every file system and device has both.
        let (first, second) = if deallocate { (PUNCH_HOLE, ZERO_RANGE) } else { (ZERO_RANGE, PUNCH_HOLE) };
        by_pieces(at, len, wish, |at, len| match self.fallocate(first, at, len) {
            Err(error) if is_unsupported(&error) => self.fallocate(second, at, len),
            result => result,
        })
    }

    /// Gives the space of a range up; it reads as zeros then.
    pub(super) fn discard(&self, at: u64, len: u64, wish: Wish<'_>) -> io::Result<()> {
        by_pieces(at, len, wish, |at, len| self.fallocate(PUNCH_HOLE, at, len))
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

/// Stops where it is wished.
fn go_on(wish: Wish<'_>) -> io::Result<()> {
    if wish() { Err(ErrorKind::Interrupted.into()) } else { Ok(()) }
}

/// Does `call` for one piece of a range after the other.
fn by_pieces(at: u64, len: u64, wish: Wish<'_>, call: impl Fn(u64, u64) -> io::Result<()>) -> io::Result<()> {
    let end = at.checked_add(len).ok_or(ErrorKind::InvalidInput)?;
    let mut next = at;
    // fallocate does not take an empty range.
    while next < end {
        if next > at {
            go_on(wish)?;
        }
        let piece = ZEROED_AT_ONCE.min(end - next);
        call(next, piece)?;
        next += piece;
    }
    Ok(())
}

/// Repeats `call` until all vectors are done. `at_end` is the error when it moves nothing any more.
fn transfer(
    mut vectors: Vec<IoVec>,
    at: u64,
    at_end: ErrorKind,
    wish: Wish<'_>,
    call: impl Fn(*const IoVec, libc::c_int, libc::off_t) -> isize,
) -> io::Result<()> {
    let too_big = |_| io::Error::from(ErrorKind::InvalidInput);
    let begin = libc::off_t::try_from(at).map_err(too_big)?;
    let (mut at, mut next) = (begin, 0);
    while let Some(rest) = vectors.get_mut(next..).filter(|rest| !rest.is_empty()) {
        if at > begin {
            go_on(wish)?;
        }
        let done = move_piece(rest, at, &call);
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

/// Does `call` for as many of the first vectors as one call moves.
fn move_piece(
    vectors: &[IoVec],
    at: libc::off_t,
    call: impl Fn(*const IoVec, libc::c_int, libc::off_t) -> isize,
) -> isize {
    let mut bytes = 0usize;
    let fits = |vector: &&IoVec| {
        bytes = bytes.saturating_add(vector.iov_len);
        bytes <= MOVED_AT_ONCE
    };
    let count = vectors.iter().take(MAX_VECTORS).take_while(fits).count();
    match (libc::c_int::try_from(count), vectors.first()) {
        (Ok(count @ 1..), _) => call(vectors.as_ptr(), count, at),
        // The first alone is too long.
        (_, Some(first)) => call([IoVec { iov_len: MOVED_AT_ONCE, ..*first }].as_ptr(), 1, at),
        (_, None) => 0,
    }
}

#[cfg(test)]
mod tests;
