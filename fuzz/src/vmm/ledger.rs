//! What a device may do to its driver's memory, kept book of: chains that it took and has not given back.

use std::ops::Range;

use portcullis_vmm::memory::GuestRam;
use portcullis_vmm::virtio::QueueState;

use super::guest::gather;
use super::memory::{Image, contains, overlap};
use super::model;

/// A chain that the device holds.
struct Held {
    queue: usize,
    /// Its place in the available ring.
    at: u16,
    head: u16,
    chain: model::Chain,
    /// What the device may change beside what it may write.
    taken: Vec<Range<u64>>,
}

/// The book.
pub struct Ledger {
    before: Image,
    after: Image,
    queues: Vec<Option<QueueState>>,
    live: bool,
    held: Vec<Held>,
    /// The driver's rings and buffers overlap, or nobody knows what it has offered: what it gets is its own doing.
    tangled: bool,
    served: usize,
    /// Bytes that the device writes for one chain, at most.
    most: u64,
}

/// The queues of a device: none before its driver is ready.
type Queues = Option<Vec<Option<QueueState>>>;

impl Ledger {
    /// Nothing was offered yet.
    pub fn new(ram: &GuestRam, most: u64) -> Self {
        let (before, after) = (Image::of(ram), Image::of(ram));
        Self { before, after, queues: Vec::new(), live: false, held: Vec::new(), tangled: false, served: 0, most }
    }

    /// Chains that were given back.
    pub fn served(&self) -> usize {
        self.served
    }

    /// The driver has reset the device: it may touch nothing any more.
    pub fn reset(&mut self) {
        (self.held, self.tangled) = (Vec::new(), false);
    }

    /// Nobody knows what the device holds, until its reset.
    pub fn distrust(&mut self) {
        (self.held, self.tangled) = (Vec::new(), true);
    }

    /// Before the device has its turn. `takes` as for [`Ledger::end`].
    pub fn begin(
        &mut self,
        ram: &GuestRam,
        queues: Queues,
        live: bool,
        takes: impl Fn(usize, &[u8]) -> Vec<Range<u64>>,
    ) {
        self.before.refresh(ram);
        (self.queues, self.live) = (queues.unwrap_or_default(), live);
        self.tangled |= live && self.is_tangled(takes);
    }

    /// Whether something that the device may write is something that it reads to know what to do.
    fn is_tangled(&self, takes: impl Fn(usize, &[u8]) -> Vec<Range<u64>>) -> bool {
        let (mut read, mut used, mut written) = (Vec::new(), Vec::new(), Vec::new());
        let queues = self.queues.iter().enumerate();
        for (index, state) in queues.filter_map(|(index, state)| state.as_ref().map(|state| (index, state))) {
            let [descriptors, available, ring] = model::parts(state);
            read.extend([descriptors, available]);
            used.push(ring);
            for ahead in 0..model::waiting(state, &self.before).unwrap_or(0) {
                let head = model::head(state, &self.before, ahead);
                if let Some(chain) = head.and_then(|head| model::chain(state, &self.before, head)) {
                    written.extend(takes(index, &gather(&self.before, &chain.readable)));
                    read.extend(chain.table);
                    // What is read may say what else is changed.
                    read.extend(chain.readable);
                    written.extend(chain.writable);
                }
            }
        }
        written.extend(self.held.iter().flat_map(|held| held.chain.writable.iter().chain(&held.taken)).cloned());
        let any = |these: &[Range<u64>], those: &[Range<u64>]| {
            these.iter().any(|this| those.iter().any(|that| overlap(this, that)))
        };
        let between_rings =
            used.iter().enumerate().any(|(number, ring)| any(&used[number + 1..], std::slice::from_ref(ring)));
        between_rings || any(&written, &read) || any(&used, &read) || any(&written, &used)
    }

    /// After it. `told` says whether the driver was interrupted, or has no right to it; `takes` what the device may
    /// change for a chain of a queue with these bytes, beside what is there to be written.
    pub fn end(&mut self, ram: &GuestRam, queues: Queues, told: bool, takes: impl Fn(usize, &[u8]) -> Vec<Range<u64>>) {
        self.after.refresh(ram);
        let queues = queues.unwrap_or_default();
        let differences = self.before.differences(&self.after);
        if !self.live {
            assert!(differences.is_empty(), "{differences:x?} was written by a device that is not to be served");
            // Saving puts back what was taken and not given back, and that changes no memory.
            return;
        }
        assert_eq!(self.queues.len(), queues.len(), "a driver that is ready stays so");
        let pairs: Vec<_> = self.queues.iter().copied().zip(queues).enumerate().collect();
        for (index, (old, new)) in &pairs {
            if let (Some(old), Some(new)) = (old, new) {
                let moved = QueueState { next_available: new.next_available, next_used: new.next_used, ..*old };
                assert_eq!(moved, *new, "a queue stays where it is");
                self.taken(*index, old, new, &takes);
            }
        }
        if !self.tangled {
            let rings = pairs.iter().filter_map(|(_, (old, _))| old.as_ref()).map(|old| {
                let [.., used] = model::parts(old);
                used
            });
            let held = self.held.iter().flat_map(|held| held.chain.writable.iter().chain(&held.taken)).cloned();
            let allowed: Vec<_> = rings.chain(held).collect();
            for range in &differences {
                assert!(contains(&allowed, range), "{range:x?} was written, and not only {allowed:x?}");
            }
        }
        for (index, (old, new)) in &pairs {
            if let (Some(old), Some(new)) = (old, new) {
                self.given_back(*index, old, new, told);
            }
        }
    }

    /// Enters the chains that the device took, and strikes out those that it put back.
    fn taken(
        &mut self,
        queue: usize,
        old: &QueueState,
        new: &QueueState,
        takes: impl Fn(usize, &[u8]) -> Vec<Range<u64>>,
    ) {
        let count = new.next_available.wrapping_sub(old.next_available);
        if count > u16::MAX / 2 {
            let back = old.next_available.wrapping_sub(new.next_available);
            self.held.retain(|held| held.queue != queue || held.at.wrapping_sub(new.next_available) >= back);
            return;
        }
        if self.tangled || count == 0 {
            return;
        }
        let waiting = model::waiting(old, &self.before).expect("a driver that runs ahead is stopped");
        assert!(count <= waiting, "{count} chains were taken of {waiting}");
        for ahead in 0..count {
            let head = model::head(old, &self.before, ahead).expect("the ring is in memory");
            let chain = model::chain(old, &self.before, head).expect("a chain that breaks the rules is not taken");
            let also = takes(queue, &gather(&self.before, &chain.readable));
            self.held.push(Held { queue, at: old.next_available.wrapping_add(ahead), head, chain, taken: also });
        }
    }

    /// Strikes out the chains that the device gave back.
    fn given_back(&mut self, queue: usize, old: &QueueState, new: &QueueState, told: bool) {
        let count = new.next_used.wrapping_sub(old.next_used);
        self.served += usize::from(count);
        if self.tangled || count == 0 {
            return;
        }
        assert_eq!(self.after.number::<2>(old.used + 2), Some(u64::from(new.next_used)));
        for number in 0..count {
            let slot = u64::from(old.next_used.wrapping_add(number) % old.size);
            let entry = self.after.number::<8>(old.used + 4 + 8 * slot).expect("the ring is in memory");
            let (head, written) = (entry & 0xffff_ffff, entry >> 32);
            let found = self.held.iter().position(|held| held.queue == queue && u64::from(held.head) == head);
            let found = found.unwrap_or_else(|| panic!("chain {head} was given back, and not taken"));
            let room = model::bytes(&self.held.remove(found).chain.writable).min(self.most);
            assert!(written <= room, "{written} bytes were written to {room}");
        }
        assert!(told || !self.wants_to_know(old, new, count), "{count} chains were given back and nobody was told");
    }

    fn wants_to_know(&self, old: &QueueState, new: &QueueState, count: u16) -> bool {
        let number =
            |at| self.after.number::<2>(at).and_then(|n| u16::try_from(n).ok()).expect("the ring is in memory");
        if old.event_idx {
            let event = number(old.available + 4 + 2 * u64::from(old.size));
            return new.next_used.wrapping_sub(event).wrapping_sub(1) < count;
        }
        number(old.available) & 1 == 0
    }
}
