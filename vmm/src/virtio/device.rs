//! What a virtio device brings along.

use std::sync::Arc;

use vmm_sys_util::epoll::EventSet;

use super::queue_thread::QueueServer;
use super::{Interrupt, Queue, QueueError, Source, Watch};
use crate::jail::seccomp::Call;
use crate::memory::GuestRam;

/// Virtio device numbers (virtio 1.2, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceKind {
    /// Network card.
    Net = 1,
    /// Disk.
    Block = 2,
    /// Source of entropy.
    Entropy = 4,
    /// Memory balloon.
    Balloon = 5,
    /// Sockets between guest and host.
    Vsock = 19,
}

/// A device whose driver is ready: what the two have agreed on.
pub struct Active {
    /// The guest's memory.
    pub ram: GuestRam,
    /// The queues, in the order of [`VirtioDevice::queue_sizes`].
    /// `None` for a queue that the driver did not set up.
    pub queues: Vec<Option<Queue>>,
    /// The features that both sides have.
    pub features: u64,
    /// The way to the driver.
    pub interrupt: Arc<Interrupt>,
}

impl Active {
    /// Whether a feature bit was agreed on.
    pub fn has(&self, feature: u32) -> bool {
        self.features & (1 << feature) != 0
    }

    /// The queue `index`; an error for one that the driver did not set up.
    pub fn queue(&mut self, index: usize) -> Result<&mut Queue, QueueError> {
        self.queues.get_mut(index).and_then(Option::as_mut).ok_or(QueueError::NoSuchQueue(index))
    }

    /// Calls the driver if it wants to hear of what was used in queue `index`.
    pub fn notify(&mut self, index: usize) -> Result<(), QueueError> {
        if self.queue(index)?.needs_notification()? {
            self.interrupt.used_buffers();
        }
        Ok(())
    }
}

/// Whether a queue was served to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is empty, or waits for something that the device hears of ([`VirtioDevice::serve_source`]).
    Idle,
    /// There is more; others should have a turn first. The queue is served again soon.
    More,
}

/// One virtio device, behind its transport.
///
/// Calls come with the device's lock held, from the main thread; only those for configuration space come from vCPU
/// threads, which may use no system calls beyond locks. Queues may have threads, see [`VirtioDevice::queue_servers`]. No
/// call may block for longer than the operation of the host that
/// it stands for, panic, or take memory that the guest decides about.
///
/// A [`QueueError`] means that the driver broke the rules: the transport sets `DEVICE_NEEDS_RESET` and serves the
/// device no more until the driver resets it.
pub trait VirtioDevice: Send {
    /// Its number in the standard.
    fn kind(&self) -> DeviceKind;

    /// Its name in logs and metrics, such as `drive rootfs`.
    fn name(&self) -> String;

    /// The device's own feature bits. The transport adds `VERSION_1`, `RING_EVENT_IDX` and `RING_INDIRECT_DESC`.
    fn features(&self) -> u64;

    /// Largest size of each queue, powers of two up to 32768.
    fn queue_sizes(&self) -> &[u16];

    /// System calls that serving it takes, beside those of every VM ([`crate::jail::seccomp`]). As few as it can do with.
    fn system_calls(&self) -> &'static [Call] {
        &[]
    }

    /// Bytes of the largest regular file that it writes to: the host lets the process make no file larger.
    fn largest_file(&self) -> u64 {
        0
    }

    /// Fills `data` from the configuration space at `offset`; it comes filled with zeros.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Takes what the driver writes to the configuration space.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The VM is about to run, and the process may change nothing in the file system any more: what was made there for
    /// it stays. A device that is dropped before takes it away.
    fn settle(&mut self) {}

    /// The driver is ready (`DRIVER_OK`), or was when a snapshot was made that has been loaded. Called before any queue
    /// is served; each queue is served once after it, whether the driver notified or not.
    fn activate(&mut self, _active: &mut Active) {}

    /// The driver has reset the device: forget everything that belongs to requests in flight.
    fn reset(&mut self) {}

    /// What serves its queues on threads of their own, one for each of [`VirtioDevice::queue_sizes`] and in their order.
    /// Asked for once, when the device gets its place. Without any, the main thread serves the queues.
    fn queue_servers(&mut self) -> std::io::Result<Vec<Box<dyn QueueServer>>> {
        Ok(Vec::new())
    }

    /// The driver may have put something into queue `index`. Serve as many chains as the queue has entries, at most:
    /// a driver that puts in more meanwhile must not keep the main thread from everything else. Not called for a device
    /// whose queues have threads.
    fn serve_queue(&mut self, _active: &mut Active, index: usize) -> Result<Progress, QueueError> {
        Err(QueueError::NoSuchQueue(index))
    }

    /// What to hear of from the start: taps, timers, listening sockets.
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    /// A descriptor has something, or has been closed meanwhile. `active` is there while the driver is ready.
    fn serve_source(
        &mut self,
        _active: Option<&mut Active>,
        _token: u32,
        _set: EventSet,
        _watch: Watch<'_>,
    ) -> Result<(), QueueError> {
        Ok(())
    }

    /// What has to be in a snapshot beside the queues and the features. Called while the VM is paused.
    fn save(&mut self, _active: Option<&mut Active>) -> Vec<u8> {
        Vec::new()
    }

    /// Puts back what [`VirtioDevice::save`] gave; the text says what is wrong with it.
    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        if state.is_empty() { Ok(()) } else { Err("a state for a device that has none".to_owned()) }
    }

    /// Counters since the last call, by Firecracker's names: (`block_rootfs`, object).
    fn metrics(&self) -> Vec<(String, serde_json::Value)> {
        Vec::new()
    }

    /// The device itself, for control commands that only its own kind understands.
    fn as_any(&mut self) -> &mut dyn std::any::Any;
}
