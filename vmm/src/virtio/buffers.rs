//! The memory of one request: ranges of guest memory that were checked when they were taken from the queue.

use std::ops::Range;

use vm_memory::{Bytes, VolatileSlice};

use super::QueueError;
use crate::memory::{self, GuestRam};

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
    /// Adds `len` bytes from `address` on, perhaps the first of so many ranges. An empty one is left out, wherever it lies.
    pub(super) fn add(&mut self, ram: &GuestRam, address: u64, len: u32, many: usize) -> Result<(), QueueError> {
        let range = address..address.checked_add(u64::from(len)).ok_or(OUTSIDE)?;
        if len > 0 {
            memory(ram, &range)?;
            if self.ranges.is_empty() {
                self.ranges.reserve_exact(many);
            }
            self.ranges.push(range);
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
        self.copy(ram, bytes.len(), |from, done| {
            let part = bytes.get_mut(done..done.saturating_add(from.len())).unwrap_or_default();
            from.read_slice(part, 0).map_err(|_| OUTSIDE)
        })
    }

    /// Copies to guest memory, from the front, and moves on. Gives how much fitted.
    pub fn write(&mut self, ram: &GuestRam, bytes: &[u8]) -> Result<usize, QueueError> {
        self.copy(ram, bytes.len(), |to, done| {
            let part = bytes.get(done..done.saturating_add(to.len())).unwrap_or_default();
            to.write_slice(part, 0).map_err(|_| OUTSIDE)
        })
    }

    /// Copies to guest memory so many bytes behind the front, which stays where it is. Gives how much fitted.
    pub fn write_at(&self, ram: &GuestRam, offset: u64, bytes: &[u8]) -> Result<usize, QueueError> {
        let (mut skip, mut done) = (offset, 0usize);
        for range in &self.ranges {
            let len = range.end - range.start;
            if skip >= len {
                skip -= len;
                continue;
            }
            let rest = bytes.get(done..).unwrap_or_default();
            let start = range.start + skip;
            let end = range.end.min(start.saturating_add(u64::try_from(rest.len()).unwrap_or(u64::MAX)));
            let part = memory(ram, &(start..end))?;
            let len = part.len();
            part.write_slice(rest.get(..len).unwrap_or_default(), 0).map_err(|_| OUTSIDE)?;
            done = done.saturating_add(len);
            skip = 0;
            if done >= bytes.len() {
                break;
            }
        }
        Ok(done)
    }

    /// Copies exactly `N` bytes from the front; an error if there are fewer.
    pub fn read_array<const N: usize>(&mut self, ram: &GuestRam) -> Result<[u8; N], QueueError> {
        let mut bytes = [0; N];
        if self.read(ram, &mut bytes)? == N { Ok(bytes) } else { Err(QueueError::BadRequest("it is too short")) }
    }

    /// The ranges as the host's kernel takes them.
    pub fn io_vecs(&self, ram: &GuestRam) -> Result<Vec<IoVec>, QueueError> {
        self.ranges.iter().map(|range| io_vec(ram, range)).collect()
    }

    /// The same, behind others. After an error some of them are there.
    pub fn add_io_vecs(&self, ram: &GuestRam, to: &mut Vec<IoVec>) -> Result<(), QueueError> {
        self.ranges.iter().try_for_each(|range| io_vec(ram, range).map(|vector| to.push(vector)))
    }

    /// The ranges of guest addresses.
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// Lets `each` copy up to `count` bytes from the front, part by part, and moves on. It is told how many are done.
    fn copy(
        &mut self,
        ram: &GuestRam,
        count: usize,
        mut each: impl FnMut(VolatileSlice<'_>, usize) -> Result<(), QueueError>,
    ) -> Result<usize, QueueError> {
        let (mut done, mut whole) = (0usize, 0);
        for range in &mut self.ranges {
            let left = u64::try_from(count.saturating_sub(done)).unwrap_or(u64::MAX);
            let end = range.end.min(range.start.saturating_add(left));
            let part = memory(ram, &(range.start..end))?;
            let len = part.len();
            each(part, done)?;
            done = done.saturating_add(len);
            range.start = end;
            if range.start < range.end {
                break;
            }
            whole += 1;
        }
        self.ranges.drain(..whole);
        Ok(done)
    }
}

const OUTSIDE: QueueError = QueueError::OutsideMemory("buffer");

/// The memory of a range.
fn memory<'a>(ram: &'a GuestRam, range: &Range<u64>) -> Result<VolatileSlice<'a>, QueueError> {
    memory::part(ram, range.start, range.end.saturating_sub(range.start)).ok_or(OUTSIDE)
}

fn io_vec(ram: &GuestRam, range: &Range<u64>) -> Result<IoVec, QueueError> {
    let part = memory(ram, range)?;
    Ok(IoVec { iov_base: part.ptr_guard_mut().as_ptr().cast(), iov_len: part.len() })
}
