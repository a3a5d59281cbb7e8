//! A driver of virtio devices, in the words of [`Guest`].
//!
//! Each queue has a place of its own in guest memory: [`Queue::at`]. Buffers are the test's, from [`BUFFERS`] on.

use crate::guest::Guest;

/// First virtio device.
pub const FIRST: u32 = 0xc000_1000;
/// From here on guest memory is free for buffers; the guest needs 4 MiB of memory.
pub const BUFFERS: u32 = 0x28_0000;

/// Registers.
pub const DRIVER_FEATURES: u32 = 0x20;
pub const DRIVER_FEATURES_SEL: u32 = 0x24;
pub const QUEUE_SEL: u32 = 0x30;
pub const QUEUE_NUM: u32 = 0x38;
pub const QUEUE_READY: u32 = 0x44;
pub const QUEUE_NOTIFY: u32 = 0x50;
pub const STATUS: u32 = 0x70;
pub const QUEUE_DESC: u32 = 0x80;
pub const QUEUE_DRIVER: u32 = 0x90;
pub const QUEUE_DEVICE: u32 = 0xa0;

/// Status after each step of the start.
pub const FEATURES_OK: u32 = 1 | 2 | 8;
pub const DRIVER_OK: u32 = FEATURES_OK | 4;
pub const NEEDS_RESET: u32 = 64;

/// Descriptor flags.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;

/// Where one queue lies.
#[derive(Clone, Copy)]
pub struct Queue {
    pub device: u32,
    pub index: u32,
    pub size: u16,
    pub descriptors: u32,
    pub available: u32,
    pub used: u32,
}

impl Queue {
    /// Queue `index` of the device whose registers are at `device`.
    pub fn at(device: u32, index: u32, size: u16) -> Self {
        let number = (device - FIRST) / 0x1000 * 4 + index;
        let base = 0x20_0000 + number * 0x3000;
        assert!(size <= 256 && base + 0x3000 <= BUFFERS);
        Self { device, index, size, descriptors: base, available: base + 0x1000, used: base + 0x2000 }
    }

    /// The used ring's index.
    pub fn used_index(self) -> u32 {
        self.used + 2
    }

    /// The length in the used ring's entry `slot`.
    pub fn used_len(self, slot: u32) -> u32 {
        self.used + 4 + 8 * slot + 4
    }
}

/// One descriptor.
#[derive(Clone, Copy)]
pub struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Guest {
    /// Acknowledges the device and agrees on `VERSION_1` and these of the low 32 features.
    pub fn virtio_features(self, device: u32, low: u32) -> Self {
        let guest = self.store32(device + STATUS, 0).store32(device + STATUS, 1).store32(device + STATUS, 3);
        let guest = guest.store32(device + DRIVER_FEATURES_SEL, 0).store32(device + DRIVER_FEATURES, low);
        let guest = guest.store32(device + DRIVER_FEATURES_SEL, 1).store32(device + DRIVER_FEATURES, 1);
        guest.store32(device + STATUS, FEATURES_OK)
    }

    /// Sets a queue up, its rings empty.
    pub fn virtio_queue(self, queue: Queue) -> Self {
        let device = queue.device;
        let guest = self.store32(queue.available, 0).store32(queue.used, 0);
        let guest = guest.store32(device + QUEUE_SEL, queue.index).store32(device + QUEUE_NUM, u32::from(queue.size));
        let guest = guest.store32(device + QUEUE_DESC, queue.descriptors).store32(device + QUEUE_DESC + 4, 0);
        let guest = guest.store32(device + QUEUE_DRIVER, queue.available).store32(device + QUEUE_DRIVER + 4, 0);
        let guest = guest.store32(device + QUEUE_DEVICE, queue.used).store32(device + QUEUE_DEVICE + 4, 0);
        guest.store32(device + QUEUE_READY, 1)
    }

    /// The driver is ready.
    pub fn virtio_ready(self, device: u32) -> Self {
        self.store32(device + STATUS, DRIVER_OK)
    }

    /// All of the above for a device with these queues.
    pub fn virtio_start(self, device: u32, low: u32, queues: &[Queue]) -> Self {
        let guest = self.virtio_features(device, low);
        queues.iter().fold(guest, |guest, queue| guest.virtio_queue(*queue)).virtio_ready(device)
    }

    /// Writes a descriptor into a table.
    pub fn descriptor(self, table: u32, index: u32, descriptor: Descriptor) -> Self {
        let at = table + 16 * index;
        let guest = self.store64(at, descriptor.address).store32(at + 8, descriptor.len);
        guest.store16(at + 12, descriptor.flags).store16(at + 14, descriptor.next)
    }

    /// Puts the chain that begins with descriptor `head` into the available ring as its `number`-th, counted from 1.
    pub fn offer(self, queue: Queue, number: u16, head: u16) -> Self {
        let slot = u32::from((number - 1) % queue.size);
        self.store16(queue.available + 4 + 2 * slot, head).store16(queue.available + 2, number)
    }

    /// Notifies the device of a queue.
    pub fn notify(self, queue: Queue) -> Self {
        self.store32(queue.device + QUEUE_NOTIFY, queue.index)
    }

    /// A whole request of descriptors that follow each other in the table from `first` on, and the wait for its end:
    /// the `number`-th of this queue. Flags other than [`NEXT`] are the caller's.
    pub fn request(self, queue: Queue, number: u16, first: u16, buffers: &[(u64, u32, u16)]) -> Self {
        let last = buffers.len() - 1;
        let guest = buffers.iter().enumerate().fold(self, |guest, (i, (address, len, flags))| {
            let index = first + u16::try_from(i).unwrap();
            let flags = if i < last { flags | NEXT } else { *flags };
            let descriptor = Descriptor { address: *address, len: *len, flags, next: index + 1 };
            guest.descriptor(queue.descriptors, u32::from(index), descriptor)
        });
        guest.offer(queue, number, first).notify(queue).wait_for16(queue.used_index(), number)
    }

    /// Prints a register of a device, in hexadecimal, little end first.
    pub fn print_register(self, device: u32, register: u32) -> Self {
        self.copy32(device + register, crate::guest::SCRATCH).print_hex(crate::guest::SCRATCH, 4)
    }
}
