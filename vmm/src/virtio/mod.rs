//! Virtio (OASIS Virtual I/O Device 1.2): what all virtio devices share.
//!
//! - [`registers`]: the registers of a memory-mapped device and the state machine behind them.
//! - [`transport`]: what goes on between vCPU threads, which meet the registers, and the main thread, which serves the
//!   queues.
//! - [`queue`]: split virtqueues; every number in them is the guest's and is checked when it is read, once.
//! - [`buffers`]: the memory of one request.
//! - [`device`]: what a device brings along.
//! - [`event_loop`]: the main thread's loop over all devices.
//! - [`queue_thread`]: threads for queues whose work may take the host long.
//! - [`interrupt`]: how a device calls its driver.
//!
//! The devices themselves are folders of `devices`.

pub mod buffers;
pub mod device;
pub mod event_loop;
pub mod interrupt;
pub mod queue;
pub mod queue_thread;
pub mod registers;
pub mod transport;

pub use buffers::{Buffers, IoVec};
pub use device::{Active, DeviceKind, Progress, VirtioDevice};
pub use event_loop::{EventLoop, Heard, Source, Watch};
pub use interrupt::Interrupt;
pub use queue::{Chain, Queue, QueueError, QueueState};
pub use transport::{MmioTransport, Slot, SlotState};
