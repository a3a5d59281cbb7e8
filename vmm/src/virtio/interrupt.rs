//! How a device calls its driver (virtio 1.2, section 4.2.2: `InterruptStatus`, `InterruptACK`).

use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// The device has used buffers of a queue.
pub const USED_BUFFERS: u32 = 1;
/// The device's configuration, or its status, has changed.
pub const CONFIG_CHANGED: u32 = 2;

/// The interrupt of one device: an edge on a line of the IOAPIC, and the bits that say why.
pub struct Interrupt {
    status: AtomicU32,
    line: EventFd,
}

impl Interrupt {
    /// An idle interrupt whose line is `line`, an event counter that KVM listens to.
    pub fn new(line: EventFd) -> Self {
        Self { status: AtomicU32::new(0), line }
    }

    /// Tells the driver that buffers were used.
    pub fn used_buffers(&self) {
        self.raise(USED_BUFFERS);
    }

    /// Tells the driver that the configuration has changed.
    pub fn config_changed(&self) {
        self.raise(CONFIG_CHANGED);
    }

    fn raise(&self, why: u32) {
        // Before the edge: the driver reads the bits when it comes.
        self.status.fetch_or(why, Ordering::SeqCst);
        // Full only if KVM has not taken billions of edges, which it has not missed then.
        let _ = self.line.write(1);
    }

    /// The bits that the driver has not acknowledged.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The driver has seen these bits.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Whether these can be the bits of [`Interrupt::status`].
    pub fn is_status(bits: u32) -> bool {
        bits & !(USED_BUFFERS | CONFIG_CHANGED) == 0
    }

    /// Puts the bits back that a snapshot has kept, and the edge that may have been lost with it.
    pub fn restore(&self, bits: u32) {
        self.status.store(0, Ordering::SeqCst);
        if bits != 0 {
            self.raise(bits);
        }
    }

    /// The event counter of the line.
    pub fn line(&self) -> &EventFd {
        &self.line
    }
}
