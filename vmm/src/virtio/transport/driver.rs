//! The driver's side of a device, for tests of devices: it does what a guest's kernel does, and what none should.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vm_memory::{ByteValued, Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::super::registers::{offset, status};
use super::{MmioTransport, Slot, SlotState};
use crate::devices::Device;
use crate::memory::{self, GuestRam};
use crate::virtio::queue_thread::QueueThread;
use crate::virtio::{EventLoop, VirtioDevice};

/// Entries of every queue.
pub(crate) const SIZE: u16 = 16;
/// Descriptors that a chain may have.
const PER_CHAIN: u16 = 4;
/// Chains that a queue holds.
pub(crate) const CHAINS: u16 = SIZE / PER_CHAIN;
/// From here on memory is the test's.
pub(crate) const FREE: u64 = 0x10_0000;

/// One part of a chain: address, length, and whether it is the device's to write.
pub(crate) type Part = (u64, u32, bool);

/// How far a queue is.
#[derive(Clone, Copy, Default)]
struct Ring {
    offered: u16,
    seen: u16,
}

/// A guest of 8 MiB without a processor.
pub(crate) struct Driver {
    pub(crate) ram: GuestRam,
    pub(crate) slot: Arc<Slot>,
    pub(crate) events: EventLoop,
    /// Without threads: they work when the driver lets the device work.
    pub(crate) threads: Vec<QueueThread>,
    registers: MmioTransport,
    rings: Vec<Ring>,
}

impl Driver {
    /// A driver that has not found the device yet.
    pub(crate) fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self::over(device, memory::reserve(8).unwrap())
    }

    /// The same, over this memory.
    pub(crate) fn over(device: Box<dyn VirtioDevice>, ram: GuestRam) -> Self {
        let rings = vec![Ring::default(); device.queue_sizes().len()];
        let slot = Slot::new(device, ram.clone(), EventFd::new(libc::EFD_NONBLOCK).unwrap()).unwrap();
        let mut events = EventLoop::new().unwrap();
        events.add(Arc::clone(&slot)).unwrap();
        let threads = events.take_threads();
        events.resume();
        Self { ram, registers: MmioTransport::new(Arc::clone(&slot)), slot, events, threads, rings }
    }

    /// The same guest, saved and put into a new process with `device`.
    pub(crate) fn restore(&self, device: Box<dyn VirtioDevice>) -> Result<Self, String> {
        let state: SlotState = postcard::from_bytes(&postcard::to_stdvec(&self.slot.save()).unwrap()).unwrap();
        let mut restored = Self::over(device, self.ram.clone());
        restored.rings.clone_from(&self.rings);
        restored.slot.restore(state).map(|()| restored)
    }

    fn put<T: ByteValued>(&self, at: u64, value: T) {
        self.ram.write_obj(value, GuestAddress(at)).unwrap();
    }

    pub(crate) fn set(&self, register: u64, value: u32) {
        self.registers.write(register, &value.to_le_bytes());
    }

    pub(crate) fn get(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.registers.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn base(queue: usize) -> u64 {
        0x1_0000 + 0x4000 * queue as u64
    }

    /// Resets the device and starts it, with these of the low 32 features and all of its queues.
    pub(crate) fn start(&mut self, low: u32) {
        let before = status::ACKNOWLEDGE | status::DRIVER;
        self.set(offset::STATUS, 0);
        self.set(offset::STATUS, status::ACKNOWLEDGE);
        self.set(offset::STATUS, before);
        for (half, value) in [(0, low), (1, 1)] {
            self.set(offset::DRIVER_FEATURES_SEL, half);
            self.set(offset::DRIVER_FEATURES, value);
        }
        self.set(offset::STATUS, before | status::FEATURES_OK);
        for queue in 0..self.rings.len() {
            let base = Self::base(queue);
            for at in (base..base + 0x4000).step_by(8) {
                self.put(at, 0u64);
            }
            self.set(offset::QUEUE_SEL, u32::try_from(queue).unwrap());
            self.set(offset::QUEUE_NUM, u32::from(SIZE));
            for (register, at) in
                [(offset::QUEUE_DESC_LOW, 0), (offset::QUEUE_DRIVER_LOW, 0x1000), (offset::QUEUE_DEVICE_LOW, 0x2000)]
            {
                self.set(register, u32::try_from(base + at).unwrap());
            }
            self.set(offset::QUEUE_READY, 1);
        }
        self.rings.fill(Ring::default());
        self.set(offset::STATUS, before | status::FEATURES_OK | status::DRIVER_OK);
    }

    /// Whether the device gave up on this driver.
    pub(crate) fn is_given_up(&self) -> bool {
        self.get(offset::STATUS) & status::NEEDS_RESET != 0
    }

    /// Whether the queue has room for one more chain.
    pub(crate) fn has_room(&self, queue: usize) -> bool {
        let ring = self.rings[queue];
        ring.offered.wrapping_sub(ring.seen) < CHAINS
    }

    /// Puts a chain into a queue and notifies the device. Gives the chain's place, 0 to [`CHAINS`] - 1.
    pub(crate) fn offer(&mut self, queue: usize, parts: &[Part]) -> u16 {
        assert!(self.has_room(queue) && parts.len() <= usize::from(PER_CHAIN));
        let (base, place) = (Self::base(queue), self.rings[queue].offered % CHAINS);
        for (index, (address, len, writable)) in parts.iter().enumerate() {
            let number = place * PER_CHAIN + u16::try_from(index).unwrap();
            let at = base + 16 * u64::from(number);
            let next = u16::from(index + 1 < parts.len());
            self.put(at, *address);
            self.put(at + 8, *len);
            self.put(at + 12, next | if *writable { 2 } else { 0 });
            self.put(at + 14, number + 1);
        }
        let ring = &mut self.rings[queue];
        let slot = u64::from(ring.offered % SIZE);
        ring.offered = ring.offered.wrapping_add(1);
        let offered = ring.offered;
        self.put(base + 0x1004 + 2 * slot, place * PER_CHAIN);
        self.put(base + 0x1002, offered);
        self.set(offset::QUEUE_NOTIFY, u32::try_from(queue).unwrap());
        place
    }

    /// The next chain that the device gave back: its place, and how many bytes were written.
    pub(crate) fn used(&mut self, queue: usize) -> Option<(u16, u32)> {
        let base = Self::base(queue) + 0x2000;
        let ring = &mut self.rings[queue];
        if self.ram.read_obj::<u16>(GuestAddress(base + 2)).unwrap() == ring.seen {
            return None;
        }
        let slot = u64::from(ring.seen % SIZE);
        ring.seen = ring.seen.wrapping_add(1);
        let [head, len]: [u32; 2] = self.ram.read_obj(GuestAddress(base + 4 + 8 * slot)).unwrap();
        Some((u16::try_from(head).unwrap() / PER_CHAIN, len))
    }

    /// Whether the event loop, or a queue's thread, has something to do.
    pub(crate) fn is_busy(&self) -> bool {
        let threads = self.threads.iter().map(AsRawFd::as_raw_fd);
        let ready = |fd| {
            // SAFETY: the descriptor lives as long as the loop or the thread, which are borrowed here.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() > 0
        };
        threads.chain([self.events.as_raw_fd()]).any(ready)
    }

    /// Lets the device work a while.
    pub(crate) fn work(&mut self) {
        self.events.serve().unwrap();
        for thread in &mut self.threads {
            thread.serve(0).unwrap();
        }
    }

    /// Lets the device work until `done` gives something. A device that never does is a failure, not a hang.
    pub(crate) fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let limit = Instant::now() + Duration::from_secs(30);
        loop {
            self.work();
            if let Some(found) = done(self) {
                return found;
            }
            assert!(Instant::now() < limit, "{what}: it never happened");
            if !self.is_busy() {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }

    /// Lets the device work until it has nothing to do. One that always has is a failure.
    pub(crate) fn settle(&mut self) {
        for _ in 0..100_000 {
            if !self.is_busy() {
                return;
            }
            self.work();
        }
        panic!("the device is busy for ever");
    }
}
