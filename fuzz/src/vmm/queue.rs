//! A queue whose rings, descriptors and buffers are anything: what it hands out and what it writes is what a second
//! reading of the standard says ([`model`]), and nothing else in memory changes.

use std::ops::Range;

use portcullis_vmm::memory::GuestRam;
use portcullis_vmm::virtio::{Buffers, Chain, Queue, QueueState};

use super::Target;
use super::input::Input;
use super::memory::{self, Image, contains};
use super::model;

/// A queue, and a driver's program: writes to memory, and calls in any order.
pub const QUEUE: Target = Target { name: "queue", body: queue, max_len: 1024, seeds: |_| seeds() };

struct Bench {
    ram: GuestRam,
    queue: Queue,
    before: Image,
    after: Image,
    /// Entries that the driver was not asked about.
    added: u16,
    /// Chains that were handed out.
    taken: usize,
}

fn queue(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let ram = memory::reserve();
    let state = state(&mut input);
    let image = Image::of(&ram);
    let sound = model::is_sound(&state);
    let queue = Queue::new(ram.clone(), state);
    assert_eq!(queue.is_ok(), sound, "{state:?}");
    let Ok(queue) = queue else { return false };
    let mut bench = Bench { after: Image::of(&ram), ram, queue, before: image, added: 0, taken: 0 };
    let mut fine = true;
    while !input.is_empty() {
        fine &= bench.step(&mut input);
    }
    fine && bench.taken > 0
}

fn state(input: &mut Input<'_>) -> QueueState {
    let flags = input.u8();
    let size = match input.u8() {
        exponent @ 0..16 => 1 << exponent,
        _ => input.u16(),
    };
    let mut state = QueueState { size, descriptors: 0, available: 0x2000, used: 0x3000, ..QueueState::default() };
    if flags & 4 != 0 {
        (state.descriptors, state.available, state.used) = (input.address(), input.address(), input.address());
    }
    if flags & 8 != 0 {
        (state.next_available, state.next_used) = (input.u16(), input.u16());
    }
    QueueState { event_idx: flags & 1 != 0, indirect: flags & 2 != 0, ..state }
}

impl Bench {
    /// One operation; gives whether it went well.
    fn step(&mut self, input: &mut Input<'_>) -> bool {
        match input.u8() % 8 {
            0 => {
                let (at, len) = (input.address(), input.below(0..64));
                memory::poke(&self.ram, at, input.bytes(len));
                true
            }
            1 => self.descriptor(input),
            2 => self.offer(input),
            3 | 4 => self.pop(input),
            5 => self.push(input),
            6 => self.needs_notification(),
            _ => self.enable_notification(),
        }
    }

    /// A descriptor, with fewer bytes of the input than by hand.
    fn descriptor(&mut self, input: &mut Input<'_>) -> bool {
        let (index, address, len) = (u64::from(input.u8()), input.address(), input.len());
        let (flags, next) = (u16::from(input.u8()), u16::from(input.u8()));
        let table = if flags & 0x80 == 0 { self.queue.state().descriptors } else { 0x7f80 };
        let parts = [&address.to_le_bytes()[..], &len.to_le_bytes(), &(flags & 7).to_le_bytes(), &next.to_le_bytes()];
        memory::poke(&self.ram, table.saturating_add(16 * index), &parts.concat());
        true
    }

    /// Puts a head into the next place of the available ring.
    fn offer(&mut self, input: &mut Input<'_>) -> bool {
        let state = self.queue.state();
        let index = Image::of(&self.ram).number::<2>(state.available + 2).expect("the ring is in memory");
        let at = state.available + 4 + 2 * (index % u64::from(state.size));
        memory::poke(&self.ram, at, &u16::from(input.u8()).to_le_bytes());
        memory::poke(&self.ram, state.available + 2, &(index + 1).to_le_bytes()[..2]);
        true
    }

    fn pop(&mut self, input: &mut Input<'_>) -> bool {
        self.before.refresh(&self.ram);
        let state = self.queue.state();
        let waiting = model::waiting(&state, &self.before);
        assert_eq!(self.queue.waiting().ok(), waiting);
        let expected = waiting.map(|waiting| {
            let head = (waiting > 0).then(|| model::head(&state, &self.before, 0).expect("the ring is in memory"));
            head.map(|head| model::chain(&state, &self.before, head).map(|chain| (head, chain)))
        });
        let found = self.queue.pop();
        let next = self.queue.state().next_available;
        match (expected, found) {
            (None | Some(Some(None)), Err(_)) => {
                assert_eq!(next, state.next_available, "a chain that breaks the rules is not taken");
                false
            }
            (Some(None), Ok(None)) => {
                assert_eq!(next, state.next_available);
                true
            }
            (Some(Some(Some((head, model)))), Ok(Some(chain))) => {
                assert_eq!((chain.head, chain.readable.ranges()), (head, model.readable.as_slice()));
                assert_eq!(chain.writable.ranges(), model.writable);
                assert_eq!(next, state.next_available.wrapping_add(1));
                self.taken += 1;
                self.use_chain(chain, input);
                true
            }
            (expected, found) => panic!("{expected:?}, and not {found:?}"),
        }
    }

    /// What devices do with the buffers of a chain.
    fn use_chain(&mut self, mut chain: Chain, input: &mut Input<'_>) {
        if input.u8() & 1 != 0 {
            let before = self.queue.state().next_available;
            self.queue.unpop();
            let again = self.queue.pop().ok().flatten().expect("the chain that was put back");
            assert_eq!((again.head, &again.readable, &again.writable), (chain.head, &chain.readable, &chain.writable));
            assert_eq!(self.queue.state().next_available, before);
        }
        let (front, last) = (u64::from(input.len()), u64::from(input.len()));
        let all = chain.writable.clone();
        let begin = chain.writable.take(front);
        let end = chain.writable.take_last(last);
        let parts = [begin.ranges(), chain.writable.ranges(), end.ranges()].concat();
        assert_eq!(joined(&parts), joined(all.ranges()));
        assert_eq!(begin.len(), front.min(all.len()));
        assert_eq!(end.len(), last.min(all.len() - begin.len()));
        self.io_vecs(&all);
        let mut bytes = vec![0; input.below(0..256)];
        let count = chain.readable.read(&self.ram, &mut bytes).expect("they were checked");
        let mut end = end;
        end.write(&self.ram, &bytes).expect("they were checked");
        assert!(count <= bytes.len());
        self.expect_changes(all.ranges());
    }

    fn io_vecs(&self, buffers: &Buffers) {
        let vectors = buffers.io_vecs(&self.ram).expect("they were checked");
        let total: usize = vectors.iter().map(|vector| vector.iov_len).sum();
        assert_eq!(u64::try_from(total), Ok(buffers.len()));
    }

    fn push(&mut self, input: &mut Input<'_>) -> bool {
        self.before.refresh(&self.ram);
        let state = self.queue.state();
        let chains: Vec<_> = (0..input.below(1..4)).map(|_| (input.u16(), input.u32())).collect();
        self.queue.push_all(&chains).expect("the ring is in memory");
        let count = u16::try_from(chains.len()).expect("a few");
        let next = state.next_used.wrapping_add(count);
        assert_eq!(self.queue.state(), QueueState { next_used: next, ..state });
        self.added = self.added.wrapping_add(count);
        let entry = |number: u16| state.used + 4 + 8 * u64::from(state.next_used.wrapping_add(number) % state.size);
        let mut written: Vec<_> = (0..count).map(|number| entry(number)..entry(number) + 8).collect();
        written.push(state.used + 2..state.used + 4);
        self.expect_changes(&written);
        assert_eq!(self.after.number::<2>(state.used + 2), Some(u64::from(next)));
        if count <= state.size {
            for (number, (head, len)) in (0..).zip(&chains) {
                let expected = u64::from(*len) << 32 | u64::from(*head);
                assert_eq!(self.after.number::<8>(entry(number)), Some(expected));
            }
        }
        true
    }

    /// `vring_need_event` of the standard's appendix, and the flag without it.
    fn needs_notification(&mut self) -> bool {
        self.before.refresh(&self.ram);
        let state = self.queue.state();
        let added = std::mem::take(&mut self.added);
        let number = |at| self.before.number::<2>(at).and_then(|n| u16::try_from(n).ok()).expect("in memory");
        let wanted = if state.event_idx {
            let event = number(state.available + 4 + 2 * u64::from(state.size));
            state.next_used.wrapping_sub(event).wrapping_sub(1) < added
        } else {
            added > 0 && number(state.available) & 1 == 0
        };
        assert_eq!(self.queue.needs_notification(), Ok(wanted));
        self.expect_changes(&[]);
        true
    }

    fn enable_notification(&mut self) -> bool {
        self.before.refresh(&self.ram);
        let state = self.queue.state();
        let more = self.queue.enable_notification();
        let at = state.used + 4 + 8 * u64::from(state.size);
        let place = at..at + 2;
        self.expect_changes(if state.event_idx { std::slice::from_ref(&place) } else { &[] });
        if state.event_idx {
            assert_eq!(self.after.number::<2>(at), Some(u64::from(state.next_available)));
        }
        // Rings may overlap: what counts is what lies there after it.
        assert_eq!(more.ok(), model::waiting(&state, &self.after).map(|waiting| waiting > 0));
        more.is_ok()
    }

    /// Nothing has changed since `before` but these ranges.
    fn expect_changes(&mut self, allowed: &[Range<u64>]) {
        self.after.refresh(&self.ram);
        for range in self.before.differences(&self.after) {
            assert!(contains(allowed, &range), "{range:x?} was written, and not only {allowed:x?}");
        }
    }
}

/// The same addresses with as few ranges as there can be, in their order.
fn joined(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range.clone()),
        }
    }
    joined
}

/// Ordinary requests: direct and indirect ones, given back and told of.
fn seeds() -> Vec<Vec<u8>> {
    let descriptor = |index, address: u16, len, flags, next| {
        let [low, high] = address.to_le_bytes();
        [1, index, low, high, len, flags, next].to_vec()
    };
    let (offer, pop) = (|head| vec![2, head], vec![3, 0, 8, 1, 16]);
    let push = vec![5, 0, 0, 0, 17, 0, 0, 0];
    let (needs, enable) = (vec![6], vec![7]);
    let direct = [
        descriptor(0, 0x6000, 16, 1, 1),
        descriptor(1, 0x6100, 64, 3, 2),
        descriptor(2, 0x6200, 1, 2, 0),
        offer(0),
        pop.clone(),
        push.clone(),
        needs.clone(),
        enable.clone(),
    ]
    .concat();
    let indirect = [
        descriptor(0, 0x7f80, 48, 4, 0),
        descriptor(0, 0x6000, 16, 0x81, 1),
        descriptor(1, 0x7ff0, 32, 0x83, 2),
        descriptor(2, 0x8200, 1, 0x82, 0),
        offer(0),
        vec![4, 1, 8, 1, 16],
        push,
        needs,
        enable,
    ]
    .concat();
    let mut seeds = Vec::new();
    for flags in [2, 3] {
        seeds.push([&[flags, 3], direct.as_slice(), &indirect].concat());
        seeds.push([&[flags | 8, 8, 0xfe, 0xff, 0xff, 0xff], direct.as_slice(), &direct, &indirect].concat());
    }
    seeds
}
