//! The rules of split virtqueues (virtio 1.2, section 2.7), written a second time, over an image of memory: what a queue
//! is to make of its rings.

use std::ops::Range;

use portcullis_vmm::virtio::QueueState;

use super::memory::Image;

/// A chain that a device may take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// What the device reads, empty parts left out.
    pub readable: Vec<Range<u64>>,
    /// Where it may write, empty parts left out.
    pub writable: Vec<Range<u64>>,
    /// The indirect table, if it has one.
    pub table: Option<Range<u64>>,
}

/// Bytes of ranges.
pub fn bytes(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// Where the three parts of a queue lie: descriptors, available ring, used ring.
pub fn parts(state: &QueueState) -> [Range<u64>; 3] {
    let size = u64::from(state.size);
    let part = |start: u64, len: u64| start..start.saturating_add(len);
    [part(state.descriptors, 16 * size), part(state.available, 6 + 2 * size), part(state.used, 6 + 8 * size)]
}

/// Whether a queue can lie there.
pub fn is_sound(state: &QueueState) -> bool {
    let aligned =
        state.descriptors.is_multiple_of(16) && state.available.is_multiple_of(2) && state.used.is_multiple_of(4);
    aligned && state.size.is_power_of_two() && parts(state).iter().all(|part| part.end < u64::MAX && Image::has(part))
}

/// Entries of the available ring that the device has not taken; `None` if there are more than a queue holds.
pub fn waiting(state: &QueueState, image: &Image) -> Option<u16> {
    let index = image.number::<2>(state.available + 2)?;
    let ahead = u16::try_from(index).ok()?.wrapping_sub(state.next_available);
    (ahead <= state.size).then_some(ahead)
}

/// The head in the available ring that is `ahead` entries behind the next.
pub fn head(state: &QueueState, image: &Image, ahead: u16) -> Option<u16> {
    let slot = u64::from(state.next_available.wrapping_add(ahead) % state.size);
    u16::try_from(image.number::<2>(state.available + 4 + 2 * slot)?).ok()
}

/// The chain that begins with descriptor `head`; `None` if it breaks a rule.
pub fn chain(state: &QueueState, image: &Image, head: u16) -> Option<Chain> {
    let mut chain = Chain::default();
    let (mut table, mut entries, mut index) = (state.descriptors, u64::from(state.size), u64::from(head));
    let (mut count, mut total) = (0, 0u64);
    loop {
        if index >= entries {
            return None;
        }
        let at = table.checked_add(16 * index)?;
        let address = image.number::<8>(at)?;
        let len = image.number::<4>(at.checked_add(8)?)?;
        let flags = image.number::<2>(at.checked_add(12)?)?;
        let (next, write, indirect) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
        if indirect {
            let odd = len == 0 || !len.is_multiple_of(16) || len / 16 > u64::from(u16::MAX);
            if chain.table.is_some() || !state.indirect || next || odd {
                return None;
            }
            let range = address..address.checked_add(len)?;
            if !Image::has(&range) {
                return None;
            }
            chain.table = Some(range);
            (table, entries, index) = (address, len / 16, 0);
            continue;
        }
        (count, total) = (count + 1, total + len);
        let range = address..address.checked_add(len)?;
        let back = !write && !chain.writable.is_empty();
        if count > state.size.min(1024) || total > 1 << 30 || back || !Image::has(&range) {
            return None;
        }
        let side = if write { &mut chain.writable } else { &mut chain.readable };
        side.extend((len > 0).then_some(range));
        if !next {
            return Some(chain);
        }
        index = image.number::<2>(at.checked_add(14)?)?;
    }
}
