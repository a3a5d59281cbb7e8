//! The registers of a memory-mapped virtio device (virtio 1.2, section 4.2.2) and the state machine behind them
//! (section 3.1): what the driver may do when. No memory, no descriptors, no locks: those are the transport's.
//!
//! A write that the state does not allow is lost, as on hardware; the registers then read as before.

use serde::{Deserialize, Serialize};

use super::queue::QueueState;

/// "virt".
const MAGIC: u32 = 0x7472_6976;
/// Version of the register layout: the one of virtio 1.0 and later.
const VERSION: u32 = 2;
/// Vendor "PCLS".
const VENDOR: u32 = 0x534c_4350;

/// Status bits (section 2.1).
pub mod status {
    /// The guest has noticed the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// The guest knows how to drive it.
    pub const DRIVER: u32 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u32 = 4;
    /// Features are agreed on.
    pub const FEATURES_OK: u32 = 8;
    /// The device gave up on its driver.
    pub const NEEDS_RESET: u32 = 64;
    /// The driver gave up on the device.
    pub const FAILED: u32 = 128;
}

/// The driver's way, one step after the other: from which status to which. The first two mean nothing to the device, and
/// there are drivers that take them in one go (crate `virtio-drivers`).
const STEPS: [(u32, u32); 5] = {
    use status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
    [
        (0, ACKNOWLEDGE),
        (0, ACKNOWLEDGE | DRIVER),
        (ACKNOWLEDGE, ACKNOWLEDGE | DRIVER),
        (ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | FEATURES_OK),
        (ACKNOWLEDGE | DRIVER | FEATURES_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK),
    ]
};

/// Offsets of the registers.
pub mod offset {
    #![allow(missing_docs)] // each is the register of that name in the standard
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// `VIRTIO_F_INDIRECT_DESC`, `VIRTIO_F_EVENT_IDX` and `VIRTIO_F_VERSION_1` (section 6).
pub const COMMON_FEATURES: u64 = (1 << INDIRECT_DESC) | (1 << EVENT_IDX) | (1 << VERSION_1);
const INDIRECT_DESC: u32 = 28;
const EVENT_IDX: u32 = 29;
const VERSION_1: u32 = 32;

/// One queue, as the driver sets it up.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueRegisters {
    max: u16,
    size: u16,
    ready: bool,
    descriptors: u64,
    driver: u64,
    device: u64,
}

impl QueueRegisters {
    /// A queue of at most `max` entries that no driver has touched.
    fn new(max: u16) -> Self {
        Self { max, size: 0, ready: false, descriptors: 0, driver: 0, device: 0 }
    }
}

/// All registers but the interrupt's.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    device_id: u32,
    offered: u64,
    status: u32,
    accepted: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    queues: Vec<QueueRegisters>,
    generation: u32,
}

/// What a write asks of the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing beside the registers.
    None,
    /// The driver is ready: make the queues.
    Activate,
    /// The driver has reset the device.
    Reset,
}

impl Registers {
    /// After power-on: a device that offers `features`, with queues of at most these sizes.
    pub fn new(device_id: u32, features: u64, queue_sizes: &[u16]) -> Self {
        Self {
            device_id,
            offered: features | COMMON_FEATURES,
            status: 0,
            accepted: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            queues: queue_sizes.iter().map(|max| QueueRegisters::new(*max)).collect(),
            generation: 0,
        }
    }

    /// Whether these are registers of the same device, as a driver can have left them: what a snapshot's must be before
    /// they are taken over. The selectors and the generation may be anything.
    pub fn fit(&self, other: &Self) -> bool {
        let sizes = |registers: &Self| registers.queues.iter().map(|queue| queue.max).collect::<Vec<_>>();
        (self.device_id, self.offered) == (other.device_id, other.offered)
            && sizes(self) == sizes(other)
            && other.can_be()
    }

    /// Whether [`Registers::write`] and [`Registers::set_needs_reset`] can lead here.
    fn can_be(&self) -> bool {
        use status::{DRIVER, FAILED, FEATURES_OK, NEEDS_RESET};
        let status = self.status & !(NEEDS_RESET | FAILED);
        let accepted = match status {
            _ if status & FEATURES_OK != 0 => !self.features_are_bad(),
            // What is not offered is found out with the next step.
            _ if status & DRIVER != 0 => true,
            _ => self.accepted == 0,
        };
        let untouched = |queue: &QueueRegisters| *queue == QueueRegisters::new(queue.max);
        let set_up = |queue: &QueueRegisters| {
            let size = queue.size == 0 || queue.size.is_power_of_two() && queue.size <= queue.max;
            size && !(queue.ready && queue.size == 0)
        };
        let queues =
            self.queues.iter().all(|queue| if status & FEATURES_OK == 0 { untouched(queue) } else { set_up(queue) });
        (status == 0 || STEPS.iter().any(|(_, step)| *step == status)) && accepted && queues
    }

    /// Whether the driver wants what is not offered, or leaves out what must be.
    fn features_are_bad(&self) -> bool {
        self.accepted & !self.offered != 0 || self.accepted & (1 << VERSION_1) == 0
    }

    /// Reads a register. `None` for what is no register of this file.
    pub fn read(&self, at: u64) -> Option<u32> {
        let queue = usize::try_from(self.queue_sel).ok().and_then(|index| self.queues.get(index));
        Some(match at {
            offset::MAGIC_VALUE => MAGIC,
            offset::VERSION => VERSION,
            offset::DEVICE_ID => self.device_id,
            offset::VENDOR_ID => VENDOR,
            offset::DEVICE_FEATURES => half(self.offered, self.device_features_sel),
            offset::QUEUE_NUM_MAX => queue.map_or(0, |queue| u32::from(queue.max)),
            offset::QUEUE_READY => queue.map_or(0, |queue| u32::from(queue.ready)),
            offset::STATUS => self.status,
            // There is no shared memory: a length of all ones says so.
            offset::SHM_LEN_LOW..=offset::SHM_BASE_HIGH => u32::MAX,
            offset::CONFIG_GENERATION => self.generation,
            _ => return None,
        })
    }

    /// Writes a register.
    pub fn write(&mut self, at: u64, value: u32) -> Change {
        match at {
            offset::STATUS => return self.set_status(value),
            offset::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            offset::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            offset::QUEUE_SEL => self.queue_sel = value,
            offset::DRIVER_FEATURES if self.is(status::ACKNOWLEDGE | status::DRIVER) => {
                match self.driver_features_sel {
                    0 => self.accepted = (self.accepted & !0xffff_ffff) | u64::from(value),
                    1 => self.accepted = (self.accepted & 0xffff_ffff) | (u64::from(value) << 32),
                    _ => {}
                }
            }
            _ if self.is(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK) => self.write_queue(at, value),
            _ => {}
        }
        Change::None
    }

    /// Whether the status is exactly this.
    fn is(&self, status: u32) -> bool {
        self.status == status
    }

    /// Queue registers; only called between `FEATURES_OK` and `DRIVER_OK`. A queue that is ready is frozen.
    fn write_queue(&mut self, at: u64, value: u32) {
        let Some(queue) = usize::try_from(self.queue_sel).ok().and_then(|index| self.queues.get_mut(index)) else {
            return;
        };
        if at == offset::QUEUE_READY {
            queue.ready = value == 1 && queue.size > 0;
        }
        if queue.ready {
            return;
        }
        let low = |old: u64| (old & !0xffff_ffff) | u64::from(value);
        let high = |old: u64| (old & 0xffff_ffff) | (u64::from(value) << 32);
        match at {
            offset::QUEUE_NUM => {
                let size = u16::try_from(value).ok().filter(|size| size.is_power_of_two() && *size <= queue.max);
                queue.size = size.unwrap_or(0);
            }
            offset::QUEUE_DESC_LOW => queue.descriptors = low(queue.descriptors),
            offset::QUEUE_DESC_HIGH => queue.descriptors = high(queue.descriptors),
            offset::QUEUE_DRIVER_LOW => queue.driver = low(queue.driver),
            offset::QUEUE_DRIVER_HIGH => queue.driver = high(queue.driver),
            offset::QUEUE_DEVICE_LOW => queue.device = low(queue.device),
            offset::QUEUE_DEVICE_HIGH => queue.device = high(queue.device),
            _ => {}
        }
    }

    /// The driver goes one step on, gives up, or resets.
    fn set_status(&mut self, value: u32) -> Change {
        use status::{DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET};
        if value == 0 {
            let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max).collect();
            let generation = self.generation;
            *self = Self { generation, ..Self::new(self.device_id, self.offered, &sizes) };
            return Change::Reset;
        }
        if value & FAILED != 0 {
            self.status |= FAILED;
            return Change::None;
        }
        // NEEDS_RESET is the device's; a driver that writes back what it read means the rest.
        let (now, wanted) = (self.status & !NEEDS_RESET, value & !NEEDS_RESET);
        if !STEPS.contains(&(now, wanted)) {
            return Change::None;
        }
        let step = wanted & !now;
        if step == FEATURES_OK && self.features_are_bad() {
            return Change::None;
        }
        self.status |= step;
        if step == DRIVER_OK { Change::Activate } else { Change::None }
    }

    /// The driver broke the rules. Gives whether it can be told: it was ready before.
    pub fn set_needs_reset(&mut self) -> bool {
        self.status |= status::NEEDS_RESET;
        self.status & status::DRIVER_OK != 0
    }

    /// Whether the driver is ready and the device has not given up on it.
    pub fn is_live(&self) -> bool {
        self.status & (status::DRIVER_OK | status::NEEDS_RESET | status::FAILED) == status::DRIVER_OK
    }

    /// The configuration space has changed.
    pub fn next_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// What both sides have agreed on.
    pub fn features(&self) -> u64 {
        self.accepted
    }

    /// The queues as they are to be made, `None` for those that the driver did not set up.
    pub fn queues(&self) -> Vec<Option<QueueState>> {
        let state = |queue: &QueueRegisters| {
            queue.ready.then_some(QueueState {
                size: queue.size,
                descriptors: queue.descriptors,
                available: queue.driver,
                used: queue.device,
                event_idx: self.accepted & (1 << EVENT_IDX) != 0,
                indirect: self.accepted & (1 << INDIRECT_DESC) != 0,
                ..QueueState::default()
            })
        };
        self.queues.iter().map(state).collect()
    }
}

/// 32 bits of 64, chosen by a selector.
fn half(value: u64, selector: u32) -> u32 {
    let shifted = match selector {
        0 => value,
        1 => value >> 32,
        _ => 0,
    };
    u32::try_from(shifted & 0xffff_ffff).unwrap_or(0)
}

#[cfg(test)]
mod tests;
