//! The memory of one request: ranges of guest memory that were checked when they were taken from the queue.

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::QueueError;
use crate::memory::GuestRam;

/// Ranges of guest memory, in order. Each lay in guest memory when it was added, and guest memory never shrinks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buffers {
    ranges: Vec<Range<u64>>,
}

/// A range of guest memory as the host's kernel takes it, for `readv` and its kin.
///
/// It is an address, not a borrow: it is good for as long as the guest's memory is mapped, and the guest may change
/// what it holds meanwhile.
pub type IoVec = libc::iovec;

impl Buffers {
    /// Adds `len` bytes from `address` on. An empty range is left out.
    pub(super) fn add(&mut self, ram: &GuestRam, address: u64, len: u32) -> Result<(), QueueError> {
        let outside = QueueError::OutsideMemory("buffer");
        let size = usize::try_from(len).map_err(|_| outside)?;
        let end = address.checked_add(u64::from(len)).ok_or(outside)?;
        if !ram.check_range(GuestAddress(address), size) {
            return Err(outside);
        }
        if len > 0 {
            self.ranges.push(address..end);
        }
        Ok(())
    }

    /// Bytes that are left.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Takes up to `count` bytes off the front.
    #[must_use]
    pub fn take(&mut self, count: u64) -> Self {
        let mut taken = Vec::new();
        let mut left = count;
        while left > 0
            && let Some(first) = self.ranges.first_mut()
        {
            let part = left.min(first.end - first.start);
            taken.push(first.start..first.start + part);
            first.start += part;
            left -= part;
            if first.start == first.end {
                self.ranges.remove(0);
            }
        }
        Self { ranges: taken }
    }

    /// Takes the last `count` bytes off the end, or all if there are fewer.
    #[must_use]
    pub fn take_last(&mut self, count: u64) -> Self {
        let front = self.take(self.len().saturating_sub(count));
        std::mem::replace(self, front)
    }

    /// Copies from guest memory, from the front, and moves on. Gives how much there was.
    pub fn read(&mut self, ram: &GuestRam, bytes: &mut [u8]) -> Result<usize, QueueError> {
        self.copy(bytes.len(), |range, done| {
            let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            let part = bytes.get_mut(done..done.saturating_add(len)).unwrap_or_default();
            ram.read_slice(part, GuestAddress(range.start)).map_err(|_| QueueError::OutsideMemory("buffer"))
        })
    }

    /// Copies to guest memory, from the front, and moves on. Gives how much fitted.
    pub fn write(&mut self, ram: &GuestRam, bytes: &[u8]) -> Result<usize, QueueError> {
        self.copy(bytes.len(), |range, done| {
            let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            let part = bytes.get(done..done.saturating_add(len)).unwrap_or_default();
            ram.write_slice(part, GuestAddress(range.start)).map_err(|_| QueueError::OutsideMemory("buffer"))
        })
    }

    /// Copies exactly `N` bytes from the front; an error if there are fewer.
    pub fn read_array<const N: usize>(&mut self, ram: &GuestRam) -> Result<[u8; N], QueueError> {
        let mut bytes = [0; N];
        if self.read(ram, &mut bytes)? == N { Ok(bytes) } else { Err(QueueError::BadRequest("it is too short")) }
    }

    /// The ranges as the host's kernel takes them. A range that crosses from one mapping to another gives two.
    pub fn io_vecs(&self, ram: &GuestRam) -> Result<Vec<IoVec>, QueueError> {
        let outside = QueueError::OutsideMemory("buffer");
        let mut vectors = Vec::with_capacity(self.ranges.len());
        for range in &self.ranges {
            let len = usize::try_from(range.end - range.start).map_err(|_| outside)?;
            for slice in ram.get_slices(GuestAddress(range.start), len) {
                let slice = slice.map_err(|_| outside)?;
                let base = slice.ptr_guard_mut().as_ptr();
                vectors.push(IoVec { iov_base: base.cast(), iov_len: slice.len() });
            }
        }
        Ok(vectors)
    }

    /// The ranges of guest addresses.
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    fn copy(
        &mut self,
        count: usize,
        mut part: impl FnMut(&Range<u64>, usize) -> Result<(), QueueError>,
    ) -> Result<usize, QueueError> {
        let taken = self.take(u64::try_from(count).unwrap_or(u64::MAX));
        let mut done = 0usize;
        for range in &taken.ranges {
            part(range, done)?;
            done = done.saturating_add(usize::try_from(range.end - range.start).unwrap_or(usize::MAX));
        }
        Ok(done)
    }
}
