//! How a device calls its driver (virtio 1.2, section 4.2.2: `InterruptStatus`, `InterruptACK`).

use std::sync::atomic::{AtomicU32, Ordering};

use crate::devices::Line;

/// The device has used buffers of a queue.
pub const USED_BUFFERS: u32 = 1;
/// The device's configuration, or its status, has changed.
pub const CONFIG_CHANGED: u32 = 2;

/// The interrupt of one device: an edge on a line, and the bits that say why.
pub struct Interrupt {
    status: AtomicU32,
    line: Box<dyn Line>,
}

impl Interrupt {
    /// An idle interrupt whose line is `line`.
    pub fn new(line: impl Line + 'static) -> Self {
        Self { status: AtomicU32::new(0), line: Box::new(line) }
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
        self.line.pulse();
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
}
