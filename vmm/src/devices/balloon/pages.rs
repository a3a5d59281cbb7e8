//! Pages that the guest gives: their numbers, checked and merged, and how the host takes them.

use std::ops::Range;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::jail::seccomp::Call;
use crate::memory::GuestRam;
use crate::virtio::{Buffers, QueueError};

/// Bytes of a page, whatever the guest's pages are (virtio 1.2, section 5.5.6).
pub const PAGE: u64 = 4096;
/// Most page numbers of one request. Linux sends 256, Windows 1024.
pub const MAX_NUMBERS: usize = 1024;

/// Mappings that may be put into the place of a file's. Each splits one in two or three, a process has no more than
/// 65,530 (`vm.max_map_count`), and at that limit its allocator gets no memory either.
const MAX_REPLACED: u32 = 16_384;

/// What of guest memory is a file's no more. A guest that gives every second page takes a mapping for each.
pub struct Replaced {
    /// A bit for each page.
    pages: Vec<u64>,
    /// Mappings that may still be made.
    left: u32,
}

impl Default for Replaced {
    fn default() -> Self {
        Self::with_limit(MAX_REPLACED)
    }
}

impl Replaced {
    /// For so many mappings.
    pub fn with_limit(left: u32) -> Self {
        Self { pages: Vec::new(), left }
    }

    /// Words and bits of the pages of a range.
    fn bits(range: &Range<u64>) -> impl Iterator<Item = (usize, u64)> {
        (range.start / PAGE..range.end / PAGE)
            .map(|page| (usize::try_from(page / 64).unwrap_or(usize::MAX), 1 << (page % 64)))
    }

    fn has(&self, range: &Range<u64>) -> bool {
        Self::bits(range).all(|(word, bit)| self.pages.get(word).is_some_and(|bits| bits & bit != 0))
    }

    /// Notes a range inside guest memory.
    fn add(&mut self, range: &Range<u64>) {
        for (word, bit) in Self::bits(range) {
            if word >= self.pages.len() {
                self.pages.resize(word + 1, 0);
            }
            if let Some(bits) = self.pages.get_mut(word) {
                *bits |= bit;
            }
        }
    }
}

/// Reads the page numbers of a request; gives the ranges of guest memory that they make up, in order, none of which
/// touch.
pub fn read_ranges(mut buffers: Buffers, ram: &GuestRam) -> Result<Vec<Range<u64>>, QueueError> {
    let len = usize::try_from(buffers.len()).unwrap_or(usize::MAX);
    if len % 4 != 0 || len > 4 * MAX_NUMBERS {
        return Err(QueueError::BadRequest("it is no list of up to 1024 page numbers"));
    }
    let mut bytes = [0; 4 * MAX_NUMBERS];
    let read = buffers.read(ram, bytes.get_mut(..len).unwrap_or_default())?;
    let (numbers, _) = bytes.get(..read).unwrap_or_default().as_chunks();
    let mut numbers: Vec<u32> = numbers.iter().map(|number| u32::from_le_bytes(*number)).collect();
    merge(&mut numbers, |page| ram.check_range(GuestAddress(page.start), 4096)).ok_or(QueueError::OutsideMemory("page"))
}

/// Merges pages to ranges; nothing, if one is not `allowed`.
fn merge(numbers: &mut [u32], allowed: impl Fn(&Range<u64>) -> bool) -> Option<Vec<Range<u64>>> {
    numbers.sort_unstable();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for number in numbers.iter() {
        let start = u64::from(*number) * PAGE;
        let page = start..start + PAGE;
        if !allowed(&page) {
            return None;
        }
        match ranges.last_mut() {
            // The same page again is no more than once.
            Some(last) if page.start <= last.end => last.end = page.end,
            _ => ranges.push(page),
        }
    }
    Some(ranges)
}

/// The whole pages of a range.
pub fn whole_pages(range: &Range<u64>) -> Range<u64> {
    let start = range.start.div_ceil(PAGE).saturating_mul(PAGE);
    let end = range.end / PAGE * PAGE;
    start..end.max(start)
}

/// Gives the memory behind a range of whole pages back to the host. The guest then reads zeros there.
pub fn discard(ram: &GuestRam, range: &Range<u64>, replaced: &mut Replaced) -> std::io::Result<()> {
    let outside = || std::io::Error::from(std::io::ErrorKind::InvalidInput);
    let len = usize::try_from(range.end.saturating_sub(range.start)).map_err(|_| outside())?;
    let region = ram.find_region(GuestAddress(range.start)).ok_or_else(outside)?;
    let of_file = region.file_offset().is_some() && !replaced.has(range);
    if of_file && replaced.left == 0 {
        return Err(std::io::Error::other("its memory is in too many pieces"));
    }
    for slice in ram.get_slices(GuestAddress(range.start), len) {
        let slice = slice.map_err(|_| outside())?;
        let start: *mut libc::c_void = slice.ptr_guard_mut().as_ptr().cast();
        let done = if of_file {
            replace(start, slice.len())
        } else {
            // SAFETY: the range is whole pages of guest memory, to which this process holds no references.
            unsafe { libc::madvise(start, slice.len(), libc::MADV_DONTNEED) }
        };
        if done != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    if of_file {
        replaced.left -= 1;
        replaced.add(range);
    }
    Ok(())
}

/// System calls of putting fresh memory in the place of a file's.
pub(super) const REPLACE: [Call; 2] = [
    Call::with_both(libc::SYS_mmap, (2, FRESH.0.cast_unsigned()), (3, FRESH.1.cast_unsigned())),
    Call::with(libc::SYS_madvise, 2, libc::MADV_DONTDUMP.cast_unsigned()),
];
/// Protection and flags of fresh memory.
const FRESH: (libc::c_int, libc::c_int) = (
    libc::PROT_READ | libc::PROT_WRITE,
    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
);

/// Puts fresh memory in the place of a file's, whose old content would come back otherwise. Not zero if it failed.
fn replace(start: *mut libc::c_void, len: usize) -> libc::c_int {
    let (protection, flags) = FRESH;
    // SAFETY: the range is whole pages of a mapping that guest memory owns and later unmaps; this process holds no
    // references to it, and KVM looks pages up anew.
    let mapped = unsafe { libc::mmap(start, len, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return -1;
    }
    // As all of guest memory: kept out of core dumps.
    // SAFETY: the mapping was made above; the advice does not change its content.
    unsafe { libc::madvise(start, len, libc::MADV_DONTDUMP) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Write;

    use proptest::prelude::*;
    use vm_memory::{Bytes, FileOffset};

    use super::*;
    use crate::memory;

    proptest! {
        #[test]
        fn merged_ranges_hold_each_page_once_and_no_other(numbers in proptest::collection::vec(0u32..300, 0..200)) {
            let expected: BTreeSet<u64> = numbers.iter().map(|number| u64::from(*number)).collect();
            let ranges = merge(&mut numbers.clone(), |_| true).unwrap();
            let pages: Vec<u64> = ranges.iter().flat_map(|r| r.start / PAGE..r.end / PAGE).collect();
            prop_assert_eq!(&pages, &expected.into_iter().collect::<Vec<_>>());
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
        }

        #[test]
        fn one_page_that_is_not_allowed_refuses_all(numbers in proptest::collection::vec(any::<u32>(), 1..50), at in 0usize..50) {
            let bad = u64::from(numbers[at % numbers.len()]) * PAGE;
            prop_assert_eq!(merge(&mut numbers.clone(), |page| page.start != bad), None);
        }

        #[test]
        fn what_was_replaced_is_known_page_by_page(ranges in proptest::collection::vec((0u64..300, 1u64..90), 0..20), at in 0u64..400) {
            let mut replaced = Replaced::default();
            let pages: BTreeSet<u64> = ranges.iter().flat_map(|(start, len)| *start..start + len).collect();
            for (start, len) in ranges {
                replaced.add(&(start * PAGE..(start + len) * PAGE));
            }
            prop_assert_eq!(replaced.has(&(at * PAGE..(at + 1) * PAGE)), pages.contains(&at));
            prop_assert_eq!(replaced.has(&(at * PAGE..(at + 3) * PAGE)), (at..at + 3).all(|page| pages.contains(&page)));
        }

        #[test]
        fn whole_pages_lie_inside(start in 0u64..1 << 40, len in 0u64..1 << 30) {
            let inner = whole_pages(&(start..start + len));
            prop_assert!(inner.start.is_multiple_of(PAGE) && inner.end.is_multiple_of(PAGE) && inner.start <= inner.end);
            prop_assert!(inner.is_empty() || (inner.start >= start && inner.end <= start + len));
            prop_assert!(inner.end - inner.start + 2 * PAGE > len);
        }
    }

    #[test]
    fn discarded_pages_read_as_zeros_and_their_neighbours_stay() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 4 * 4096]).unwrap();
        let from_file = GuestRam::from_ranges_with_files([(GuestAddress(0), 4 * 4096, Some(FileOffset::new(file, 0)))]);
        for ram in [memory::reserve(2).unwrap(), from_file.unwrap()] {
            ram.write_slice(&[9; 4 * 4096], GuestAddress(0)).unwrap();
            let mut replaced = Replaced::default();
            discard(&ram, &(PAGE..3 * PAGE), &mut replaced).unwrap();
            let bytes = |page: u64| ram.read_obj::<[u8; 4]>(GuestAddress(page * PAGE)).unwrap();
            assert_eq!([bytes(0), bytes(1), bytes(2), bytes(3)], [[9; 4], [0; 4], [0; 4], [9; 4]]);
            // They are memory as before.
            ram.write_obj(5u32, GuestAddress(PAGE)).unwrap();
            assert_eq!(ram.read_obj::<u32>(GuestAddress(PAGE)).unwrap(), 5);
            discard(&ram, &(PAGE..2 * PAGE), &mut replaced).unwrap();
            assert_eq!([bytes(0), bytes(1), bytes(2), bytes(3)], [[9; 4], [0; 4], [0; 4], [9; 4]]);
        }
        let outside = discard(&memory::reserve(2).unwrap(), &(0..4 << 20), &mut Replaced::default());
        assert!(outside.is_err());
    }
}
