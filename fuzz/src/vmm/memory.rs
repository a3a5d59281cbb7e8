//! A guest's memory, small enough to be looked at as a whole: a region, a hole as in every guest that has much, and another.

use std::ops::Range;

use portcullis_vmm::memory::GuestRam;
use vm_memory::{Bytes, GuestAddress};

/// Begin of the second region.
pub const HIGH: u64 = 0x10_0000;
const REGIONS: [(u64, usize); 2] = [(0, 0x1_0000), (HIGH, 0x2000)];

/// Zeroed memory.
pub fn reserve() -> GuestRam {
    GuestRam::from_ranges(&REGIONS.map(|(start, len)| (GuestAddress(start), len))).expect("some memory")
}

/// Writes what lies in memory of these bytes; like a guest's own access, what does not is lost.
pub fn poke(ram: &GuestRam, at: u64, bytes: &[u8]) {
    let _ = ram.write(bytes, GuestAddress(at));
}

/// What memory held at one moment.
pub struct Image(Vec<(u64, Vec<u8>)>);

impl Image {
    /// Looks at all of it.
    pub fn of(ram: &GuestRam) -> Self {
        let mut image = Self(REGIONS.map(|(start, len)| (start, vec![0; len])).to_vec());
        image.refresh(ram);
        image
    }

    /// Looks again.
    pub fn refresh(&mut self, ram: &GuestRam) {
        for (start, bytes) in &mut self.0 {
            ram.read_slice(bytes, GuestAddress(*start)).expect("a region of memory");
        }
    }

    fn byte(&self, at: u64) -> Option<u8> {
        let at_in = |start: u64| at.checked_sub(start).and_then(|at| usize::try_from(at).ok());
        self.0.iter().find_map(|(start, bytes)| bytes.get(at_in(*start)?).copied())
    }

    /// The number of `N` bytes at `at`, if all of it is memory.
    pub fn number<const N: u64>(&self, at: u64) -> Option<u64> {
        let mut number = 0;
        for byte in (0..N).rev() {
            number = number << 8 | u64::from(self.byte(at.checked_add(byte)?)?);
        }
        Some(number)
    }

    /// Whether all of a range is memory.
    pub fn has(range: &Range<u64>) -> bool {
        let within = |from: u64, to: u64| from <= range.start && range.end <= to;
        range.is_empty() || within(0, 0x1_0000) || within(HIGH, HIGH + 0x2000)
    }

    /// The addresses at which two images differ, as ranges in order.
    pub fn differences(&self, other: &Self) -> Vec<Range<u64>> {
        let mut found: Vec<Range<u64>> = Vec::new();
        for ((start, ours), (_, theirs)) in self.0.iter().zip(&other.0) {
            // Equal pages are the rule.
            let pages = ours.chunks(512).zip(theirs.chunks(512)).zip((*start..).step_by(512));
            for ((ours, theirs), page) in pages.filter(|((ours, theirs), _)| ours != theirs) {
                for ((ours, theirs), at) in ours.iter().zip(theirs).zip(page..) {
                    match found.last_mut() {
                        _ if ours == theirs => {}
                        Some(last) if last.end == at => last.end += 1,
                        _ => found.push(at..at + 1),
                    }
                }
            }
        }
        found
    }
}

/// Whether two ranges share an address.
pub fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// Whether each address of `range` is in one of `ranges`.
pub fn contains(ranges: &[Range<u64>], range: &Range<u64>) -> bool {
    let mut at = range.start;
    while at < range.end {
        match ranges.iter().find(|part| part.contains(&at)) {
            Some(part) => at = part.end,
            None => return false,
        }
    }
    true
}
