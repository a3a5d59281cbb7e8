use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::reserve;

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const INDIRECT: u64 = 0x8000;
const BUFFER: u64 = 0x1_0000;
const SIZE: u16 = 8;

/// The driver's side of one queue.
struct Driver {
    ram: GuestRam,
    offered: u16,
}

impl Driver {
    fn new() -> Self {
        Self { ram: reserve(2).unwrap(), offered: 0 }
    }

    fn state() -> QueueState {
        QueueState {
            size: SIZE,
            descriptors: DESCRIPTORS,
            available: AVAILABLE,
            used: USED,
            indirect: true,
            ..QueueState::default()
        }
    }

    fn queue(&self) -> Queue {
        Queue::new(self.ram.clone(), Self::state()).unwrap()
    }

    fn put<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.ram.write_obj(value, GuestAddress(at)).unwrap();
    }

    fn get<T: vm_memory::ByteValued>(&self, at: u64) -> T {
        self.ram.read_obj(GuestAddress(at)).unwrap()
    }

    fn descriptor(&self, table: u64, index: u64, address: u64, len: u32, flags: u16, next: u16) {
        let at = table + 16 * index;
        self.put(at, address);
        self.put(at + 8, len);
        self.put(at + 12, flags);
        self.put(at + 14, next);
    }

    fn offer(&mut self, head: u16) {
        self.put(AVAILABLE + 4 + 2 * u64::from(self.offered % SIZE), head);
        self.offered = self.offered.wrapping_add(1);
        self.put(AVAILABLE + 2, self.offered);
    }

    /// What the device says to one chain.
    fn judge(&mut self, head: u16) -> Result<Chain, QueueError> {
        self.offer(head);
        self.queue().pop().map(Option::unwrap)
    }
}

#[test]
fn a_request_goes_in_and_comes_back() {
    let mut driver = Driver::new();
    driver.descriptor(DESCRIPTORS, 3, BUFFER, 4, FLAG_NEXT, 5);
    driver.descriptor(DESCRIPTORS, 5, BUFFER + 16, 8, FLAG_WRITE, 0);
    driver.put(BUFFER, *b"ping");
    driver.offer(3);
    let mut queue = driver.queue();
    let mut chain = queue.pop().unwrap().unwrap();
    assert_eq!((chain.head, chain.readable.len(), chain.writable.len()), (3, 4, 8));
    assert_eq!(&chain.readable.read_array::<4>(&driver.ram).unwrap(), b"ping");
    assert_eq!(chain.writable.write(&driver.ram, b"pong and more").unwrap(), 8);
    queue.push(chain.head, 8).unwrap();
    assert!(queue.needs_notification().unwrap() && !queue.needs_notification().unwrap());
    assert_eq!((driver.get::<u16>(USED + 2), driver.get::<u32>(USED + 4), driver.get::<u32>(USED + 8)), (1, 3, 8));
    assert_eq!(&driver.get::<[u8; 8]>(BUFFER + 16), b"pong and");
    assert!(queue.pop().unwrap().is_none());
}

#[test]
fn a_chain_that_was_put_back_comes_again() {
    let mut driver = Driver::new();
    driver.descriptor(DESCRIPTORS, 0, BUFFER, 4, 0, 0);
    driver.offer(0);
    let mut queue = driver.queue();
    assert_eq!(queue.pop().unwrap().unwrap().head, 0);
    assert!(queue.pop().unwrap().is_none());
    queue.unpop();
    assert_eq!(queue.pop().unwrap().unwrap().head, 0);
}

#[test]
fn an_indirect_table_is_one_chain() {
    let mut driver = Driver::new();
    driver.descriptor(DESCRIPTORS, 1, INDIRECT, 3 * 16, FLAG_INDIRECT, 0);
    driver.descriptor(INDIRECT, 0, BUFFER, 1, FLAG_NEXT, 2);
    driver.descriptor(INDIRECT, 2, BUFFER + 1, 2, FLAG_NEXT | FLAG_WRITE, 1);
    driver.descriptor(INDIRECT, 1, BUFFER + 3, 3, FLAG_WRITE, 0);
    let chain = driver.judge(1).unwrap();
    assert_eq!((chain.head, chain.readable.len(), chain.writable.len()), (1, 1, 5));
    // Whether it may be written says nothing about a table (virtio 1.2, section 2.7.5.3.2).
    driver.descriptor(DESCRIPTORS, 1, INDIRECT, 3 * 16, FLAG_INDIRECT | FLAG_WRITE, 0);
    let chain = Queue::new(driver.ram.clone(), Driver::state()).unwrap().pop().unwrap().unwrap();
    assert_eq!((chain.head, chain.readable.len(), chain.writable.len()), (1, 1, 5));
    // Only where it was agreed on.
    let state = QueueState { indirect: false, ..Driver::state() };
    assert_eq!(Queue::new(driver.ram.clone(), state).unwrap().pop().unwrap_err(), QueueError::BadIndirect);
}

#[test]
fn what_breaks_the_rules_is_an_error_and_never_a_shorter_chain() {
    type Make = fn(&Driver);
    let cases: [(&str, Make, QueueError); 11] = [
        ("a loop", |d| d.descriptor(DESCRIPTORS, 0, BUFFER, 1, FLAG_NEXT, 0), QueueError::ChainTooLong),
        (
            "a loop of two",
            |d| {
                d.descriptor(DESCRIPTORS, 0, BUFFER, 0, FLAG_NEXT, 1);
                d.descriptor(DESCRIPTORS, 1, BUFFER, 0, FLAG_NEXT, 0);
            },
            QueueError::ChainTooLong,
        ),
        (
            "next outside",
            |d| d.descriptor(DESCRIPTORS, 0, BUFFER, 1, FLAG_NEXT, SIZE),
            QueueError::NoSuchDescriptor(SIZE),
        ),
        ("buffer outside", |d| d.descriptor(DESCRIPTORS, 0, 2 << 20, 1, 0, 0), QueueError::OutsideMemory("buffer")),
        (
            "buffer over the end",
            |d| d.descriptor(DESCRIPTORS, 0, (2 << 20) - 1, 2, 0, 0),
            QueueError::OutsideMemory("buffer"),
        ),
        ("wraps around", |d| d.descriptor(DESCRIPTORS, 0, u64::MAX, 2, 0, 0), QueueError::OutsideMemory("buffer")),
        ("4 GiB", |d| d.descriptor(DESCRIPTORS, 0, BUFFER, u32::MAX, 0, 0), QueueError::ChainTooBig),
        (
            "readable after writable",
            |d| {
                d.descriptor(DESCRIPTORS, 0, BUFFER, 1, FLAG_NEXT | FLAG_WRITE, 1);
                d.descriptor(DESCRIPTORS, 1, BUFFER, 1, 0, 0);
            },
            QueueError::ReadableAfterWritable,
        ),
        (
            "indirect in indirect",
            |d| {
                d.descriptor(DESCRIPTORS, 0, INDIRECT, 16, FLAG_INDIRECT, 0);
                d.descriptor(INDIRECT, 0, INDIRECT, 16, FLAG_INDIRECT, 0);
            },
            QueueError::BadIndirect,
        ),
        ("an odd table", |d| d.descriptor(DESCRIPTORS, 0, INDIRECT, 17, FLAG_INDIRECT, 0), QueueError::BadIndirect),
        (
            "a table outside",
            |d| d.descriptor(DESCRIPTORS, 0, u64::MAX - 7, 16, FLAG_INDIRECT, 0),
            QueueError::OutsideMemory("descriptor table"),
        ),
    ];
    for (name, make, error) in cases {
        let mut driver = Driver::new();
        make(&driver);
        assert_eq!(driver.judge(0).unwrap_err(), error, "{name}");
    }
    assert_eq!(Driver::new().judge(SIZE).unwrap_err(), QueueError::NoSuchDescriptor(SIZE));
}

#[test]
fn a_driver_that_runs_ahead_is_stopped() {
    let driver = Driver::new();
    driver.put(AVAILABLE + 2, SIZE + 1);
    assert_eq!(driver.queue().pop().unwrap_err(), QueueError::TooFarAhead(SIZE + 1));
    driver.put(AVAILABLE + 2, SIZE);
    assert_eq!(driver.queue().waiting(), Ok(SIZE));
}

#[test]
fn a_queue_must_lie_in_memory_and_be_aligned() {
    let driver = Driver::new();
    let end = 2 << 20;
    let good = Driver::state();
    for (state, error) in [
        (QueueState { descriptors: DESCRIPTORS + 8, ..good }, QueueError::Misaligned("descriptor table")),
        (QueueState { available: AVAILABLE + 1, ..good }, QueueError::Misaligned("available ring")),
        (QueueState { used: USED + 2, ..good }, QueueError::Misaligned("used ring")),
        (QueueState { descriptors: end - 16 * 7, ..good }, QueueError::OutsideMemory("descriptor table")),
        (QueueState { available: end - 20, ..good }, QueueError::OutsideMemory("available ring")),
        (QueueState { used: !3, ..good }, QueueError::OutsideMemory("used ring")),
    ] {
        assert_eq!(Queue::new(driver.ram.clone(), state).map(drop).unwrap_err(), error);
    }
    for size in [0, 3, 0x8001] {
        assert!(Queue::new(driver.ram.clone(), QueueState { size, ..good }).is_err());
    }
}

#[test]
fn the_drivers_wish_for_silence_is_kept() {
    let mut driver = Driver::new();
    driver.put(AVAILABLE, AVAIL_NO_INTERRUPT);
    driver.descriptor(DESCRIPTORS, 0, BUFFER, 4, 0, 0);
    let mut queue = driver.queue();
    driver.offer(0);
    queue.pop().unwrap().unwrap();
    queue.push(0, 0).unwrap();
    assert!(!queue.needs_notification().unwrap());
    driver.put(AVAILABLE, 0u16);
    queue.push(0, 0).unwrap();
    assert!(queue.needs_notification().unwrap());

    // With RING_EVENT_IDX: from which used index on.
    let state = QueueState { event_idx: true, ..Driver::state() };
    let mut queue = Queue::new(driver.ram.clone(), state).unwrap();
    driver.put(AVAILABLE + 4 + 2 * u64::from(SIZE), 2u16);
    let calls: Vec<bool> = (0..4)
        .map(|_| {
            queue.push(0, 0).unwrap();
            queue.needs_notification().unwrap()
        })
        .collect();
    assert_eq!(calls, [false, false, true, false]);
    // And the device says from which available index on it wants to hear.
    queue.pop().unwrap().unwrap();
    assert!(!queue.enable_notification().unwrap());
    assert_eq!(driver.get::<u16>(USED + 4 + 8 * u64::from(SIZE)), 1);
    driver.offer(0);
    assert!(queue.enable_notification().unwrap());
}

#[test]
fn indexes_wrap_around() {
    let mut driver = Driver::new();
    driver.offered = u16::MAX - 2;
    let state = QueueState { next_available: u16::MAX - 2, next_used: u16::MAX - 2, ..Driver::state() };
    let mut queue = Queue::new(driver.ram.clone(), state).unwrap();
    driver.descriptor(DESCRIPTORS, 0, BUFFER, 4, 0, 0);
    for _ in 0..6 {
        driver.offer(0);
        assert_eq!(queue.pop().unwrap().unwrap().head, 0);
        queue.push(0, 1).unwrap();
    }
    assert_eq!((driver.get::<u16>(USED + 2), queue.state().next_available), (3, 3));
}

proptest! {
    /// Whatever lies in the rings: no panic, no endless walk, and every buffer that is handed out lies in memory.
    #[test]
    fn any_memory_is_survived(
        words in proptest::collection::vec((0u64..0x4000, prop_oneof![any::<u64>(), 0u64..0x2_0000]), 0..400),
        event_idx: bool,
    ) {
        let driver = Driver::new();
        for (slot, word) in words {
            driver.put(DESCRIPTORS + slot % 0x2400 / 8 * 8, word);
        }
        let state = QueueState { event_idx, ..Driver::state() };
        let mut queue = Queue::new(driver.ram.clone(), state).unwrap();
        for _ in 0..2 * SIZE {
            match queue.pop() {
                Ok(Some(mut chain)) => {
                    for range in chain.readable.ranges().iter().chain(chain.writable.ranges()) {
                        prop_assert!(range.start < range.end && range.end <= 2 << 20);
                    }
                    let mut bytes = [0; 64];
                    chain.readable.read(&driver.ram, &mut bytes).unwrap();
                    chain.writable.write(&driver.ram, &bytes).unwrap();
                    queue.push(chain.head, 1).unwrap();
                    queue.needs_notification().unwrap();
                }
                Ok(None) => { queue.enable_notification().ok(); break; }
                Err(_) => break,
            }
        }
    }

    #[test]
    fn taking_from_buffers_loses_and_invents_nothing(
        lens in proptest::collection::vec(0u32..300, 0..8), first in 0u64..1000, last in 0u64..1000
    ) {
        let ram = reserve(2).unwrap();
        let mut all = Buffers::default();
        for (number, len) in (0u64..).zip(&lens) {
            all.add(&ram, BUFFER + 0x1000 * number, *len, 1).unwrap();
        }
        let total: u64 = lens.iter().map(|len| u64::from(*len)).sum();
        let flat = |buffers: &Buffers| buffers.ranges().iter().cloned().flatten().collect::<Vec<u64>>();
        let whole = flat(&all);
        let front = all.take(first);
        prop_assert_eq!(front.len(), first.min(total));
        let end = all.take_last(last);
        prop_assert_eq!(end.len(), last.min(total - front.len()));
        prop_assert_eq!([flat(&front), flat(&all), flat(&end)].concat(), whole);
        let bytes: usize = end.io_vecs(&ram).unwrap().iter().map(|vector| vector.iov_len).sum();
        prop_assert_eq!(bytes as u64, end.len());
    }

    #[test]
    fn what_is_copied_lies_where_the_buffers_are_and_nowhere_else(
        lens in proptest::collection::vec(0u32..40, 0..6), skip in 0usize..100, bytes in proptest::collection::vec(1u8.., 0..100)
    ) {
        let ram = reserve(2).unwrap();
        let mut all = Buffers::default();
        for (number, len) in (0u64..).zip(&lens) {
            all.add(&ram, BUFFER + 64 * number, *len, 1).unwrap();
        }
        let memory = || { let mut bytes = [0; 512]; ram.read_slice(&mut bytes, GuestAddress(BUFFER)).unwrap(); bytes };
        let places: Vec<u64> = all.ranges().iter().cloned().flatten().collect();
        let mut expected = [0; 512];
        for (place, byte) in places.iter().skip(skip).zip(&bytes) {
            expected[usize::try_from(place - BUFFER).unwrap()] = *byte;
        }
        let fits = bytes.len().min(places.len().saturating_sub(skip));
        prop_assert_eq!(all.write_at(&ram, skip as u64, &bytes).unwrap(), fits);
        prop_assert_eq!(memory(), expected);
        // The same by moving on, and back out again.
        let mut rest = all.clone();
        let _ = rest.take(skip as u64);
        let mut copy = rest.clone();
        prop_assert_eq!(copy.write(&ram, &bytes).unwrap(), fits);
        prop_assert_eq!((memory(), copy.len()), (expected, rest.len() - fits as u64));
        let mut read = vec![0; bytes.len()];
        prop_assert_eq!(rest.read(&ram, &mut read).unwrap(), fits);
        prop_assert_eq!(&read[..fits], &bytes[..fits]);
        prop_assert_eq!(rest, copy);
    }
}
