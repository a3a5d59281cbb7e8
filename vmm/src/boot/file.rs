//! A kernel or initrd file.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::memory::GuestRam;

/// An open kernel or initrd. Its length is that of the moment it was opened.
pub struct BootFile {
    what: &'static str,
    path: PathBuf,
    file: File,
    len: u64,
}

impl BootFile {
    /// Opens a regular file for reading.
    pub fn open(what: &'static str, path: &Path) -> Result<Self, BootError> {
        let read = |source| BootError::Read { what, path: path.to_owned(), source };
        // Non-blocking: opening a FIFO must not hang before its kind is known.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(read)?;
        let meta = file.metadata().map_err(read)?;
        if !meta.is_file() {
            return Err(BootError::NotAFile { what, path: path.to_owned() });
        }
        Ok(Self { what, path: path.to_owned(), file, len: meta.len() })
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Reads at most `max` bytes from `offset`; fewer where the file ends.
    pub(super) fn read_up_to(&mut self, offset: u64, max: u64) -> Result<Vec<u8>, BootError> {
        let there = max.min(self.len.saturating_sub(offset));
        let mut bytes = Vec::with_capacity(usize::try_from(there).unwrap_or(0));
        self.seek(offset)?;
        (&self.file).take(max).read_to_end(&mut bytes).map_err(|source| self.read_error(source))?;
        Ok(bytes)
    }

    /// Copies `len` bytes at `offset` of the file to guest memory at `to`; `part` names them in errors.
    pub(super) fn copy_to(
        &mut self,
        ram: &GuestRam,
        offset: u64,
        to: u64,
        len: u64,
        part: &'static str,
    ) -> Result<(), BootError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(self.truncated(part));
        }
        let too_little = || BootError::TooLittleMemory {
            what: self.what,
            needed: to.saturating_add(len),
            end: vm_memory::GuestMemoryBackend::last_addr(ram).0.saturating_add(1),
        };
        let count = usize::try_from(len).map_err(|_| too_little())?;
        // Checked before the copy, so that a failure of the copy is one of the file.
        if !vm_memory::GuestMemoryBackend::check_range(ram, GuestAddress(to), count) {
            return Err(too_little());
        }
        self.seek(offset)?;
        ram.read_exact_volatile_from(GuestAddress(to), &mut self.file, count).map_err(|_| self.truncated(part))
    }

    fn seek(&mut self, offset: u64) -> Result<(), BootError> {
        self.file.seek(SeekFrom::Start(offset)).map(drop).map_err(|source| self.read_error(source))
    }

    fn read_error(&self, source: std::io::Error) -> BootError {
        BootError::Read { what: self.what, path: self.path.clone(), source }
    }

    /// The error for a kernel whose `missing` part is not there.
    pub(super) fn truncated(&self, missing: &'static str) -> BootError {
        BootError::Truncated { path: self.path.clone(), missing }
    }

    /// The error for what is no bootable kernel.
    pub(super) fn bad_format(&self, reason: &'static str) -> BootError {
        BootError::Format { path: self.path.clone(), reason }
    }
}

/// The little-endian number of `N` bytes at `offset`, if all of it is there.
pub(super) fn bytes_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

/// The `u16` at `offset`.
pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes_at(bytes, offset).map(u16::from_le_bytes)
}

/// The `u32` at `offset`.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes_at(bytes, offset).map(u32::from_le_bytes)
}

/// The `u64` at `offset`.
pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes_at(bytes, offset).map(u64::from_le_bytes)
}
