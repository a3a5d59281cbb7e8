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

/// The driver's way, one step after the other: from which status to which.
const STEPS: [(u32, u32); 4] = {
    use status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
    [
        (0, ACKNOWLEDGE),
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
mod tests {
    use proptest::prelude::*;

    use super::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};
    use super::*;

    fn device() -> Registers {
        Registers::new(2, 1 << 9, &[256, 64])
    }

    /// As a driver does it, up to the queues.
    fn negotiated() -> Registers {
        let mut r = device();
        for step in [ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
            assert_eq!(r.write(offset::STATUS, step), Change::None);
        }
        r.write(offset::DRIVER_FEATURES_SEL, 1);
        r.write(offset::DRIVER_FEATURES, 1);
        r.write(offset::DRIVER_FEATURES_SEL, 0);
        r.write(offset::DRIVER_FEATURES, 1 << 9);
        r.write(offset::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(r.read(offset::STATUS), Some(ACKNOWLEDGE | DRIVER | FEATURES_OK));
        r
    }

    const READY: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

    #[test]
    fn a_driver_that_keeps_to_the_order_gets_its_queues() {
        let mut r = negotiated();
        for (queue, size) in [(0, 128), (1, 64)] {
            r.write(offset::QUEUE_SEL, queue);
            r.write(offset::QUEUE_NUM, size);
            r.write(offset::QUEUE_DESC_LOW, 0x1000);
            r.write(offset::QUEUE_DESC_HIGH, 1);
            r.write(offset::QUEUE_DRIVER_LOW, 0x2000);
            r.write(offset::QUEUE_DEVICE_LOW, 0x3000);
            r.write(offset::QUEUE_READY, 1);
        }
        assert_eq!(r.write(offset::STATUS, READY), Change::Activate);
        let queues = r.queues();
        let first = queues[0].unwrap();
        assert_eq!((first.size, first.descriptors, first.available, first.used), (128, 0x1_0000_1000, 0x2000, 0x3000));
        assert!(!first.event_idx && !first.indirect);
        assert_eq!(queues[1].unwrap().size, 64);
        assert_eq!(r.features(), (1 << 32) | (1 << 9));
    }

    #[test]
    fn queues_are_frozen_once_they_or_the_driver_are_ready() {
        let mut r = negotiated();
        r.write(offset::QUEUE_NUM, 128);
        r.write(offset::QUEUE_READY, 1);
        r.write(offset::QUEUE_NUM, 8);
        r.write(offset::QUEUE_DESC_LOW, 0x1000);
        assert_eq!((r.queues()[0].unwrap().size, r.queues()[0].unwrap().descriptors), (128, 0));
        // Taken back, it can be changed; after DRIVER_OK no more.
        r.write(offset::QUEUE_READY, 0);
        r.write(offset::QUEUE_NUM, 8);
        r.write(offset::QUEUE_READY, 1);
        r.write(offset::STATUS, READY);
        for (at, value) in [(offset::QUEUE_READY, 0), (offset::QUEUE_NUM, 4), (offset::QUEUE_DEVICE_LOW, 0x5000)] {
            r.write(at, value);
        }
        assert_eq!((r.queues()[0].unwrap().size, r.queues()[0].unwrap().used), (8, 0));
    }

    #[test]
    fn steps_cannot_be_left_out_and_features_not_made_up() {
        let mut r = device();
        for early in [DRIVER, ACKNOWLEDGE | DRIVER, READY, FEATURES_OK, DRIVER_OK] {
            assert_eq!(r.write(offset::STATUS, early), Change::None);
            assert_eq!(r.read(offset::STATUS), Some(0), "{early}");
        }
        r.write(offset::STATUS, ACKNOWLEDGE);
        r.write(offset::STATUS, ACKNOWLEDGE | DRIVER);
        let wish = |r: &mut Registers, low: u32, high: u32| {
            for (half, value) in [(0, low), (1, high)] {
                r.write(offset::DRIVER_FEATURES_SEL, half);
                r.write(offset::DRIVER_FEATURES, value);
            }
            r.write(offset::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
            r.read(offset::STATUS).unwrap() & FEATURES_OK != 0
        };
        assert!(!wish(&mut r, 1 << 5, 1), "not offered");
        assert!(!wish(&mut r, 1 << 9, 0), "no VERSION_1");
        assert!(!wish(&mut r, 0, 3), "not offered");
        assert!(wish(&mut r, 0, 1));
        // Agreed on: they stay.
        r.write(offset::DRIVER_FEATURES, 0);
        assert_eq!(r.features(), 1 << 32);
    }

    #[test]
    fn a_device_that_gave_up_stays_so_until_reset() {
        let mut r = negotiated();
        r.write(offset::STATUS, READY);
        assert!(r.is_live() && r.set_needs_reset() && !r.is_live());
        assert_eq!(r.write(offset::STATUS, READY), Change::None);
        assert!(!r.is_live());
        assert_eq!(r.write(offset::STATUS, 0), Change::Reset);
        assert_eq!((r.read(offset::STATUS), r.features()), (Some(0), 0));
        r.write(offset::STATUS, FAILED);
        r.write(offset::STATUS, ACKNOWLEDGE);
        assert_eq!(r.read(offset::STATUS), Some(FAILED));
    }

    #[test]
    fn registers_that_no_driver_can_leave_are_not_taken_over() {
        type Bend = fn(&mut Registers);
        let wrong: [(&str, Bend); 16] = [
            ("another device", |r| r.device_id = 3),
            ("another offer", |r| r.offered ^= 1),
            ("another number of queues", |r| r.queues.truncate(1)),
            ("another largest size", |r| r.queues[0].max = 128),
            ("a status out of order", |r| r.status = DRIVER_OK),
            ("a status that there is not", |r| r.status |= 16),
            ("a feature that is not offered", |r| r.accepted |= 2),
            ("no VERSION_1", |r| r.accepted = 1 << 9),
            ("features before there is a driver", |r| (r.status, r.queues) = (ACKNOWLEDGE, device().queues)),
            ("queues before the features", |r| r.status = ACKNOWLEDGE | DRIVER),
            ("a queue that is too large", |r| r.queues[0].size = 512),
            ("a size that is no power of two", |r| r.queues[0].size = 3),
            ("a ready queue without a size", |r| r.queues[0].size = 0),
            ("a small queue that is too large", |r| r.queues[1].size = 128),
            ("an address before the features", |r| {
                (r.status, r.queues) = (ACKNOWLEDGE | DRIVER, device().queues);
                r.queues[1].device = 0x1000;
            }),
            ("a size after a reset", |r| (r.status, r.accepted) = (0, 0)),
        ];
        let mut good = negotiated();
        good.write(offset::QUEUE_NUM, 128);
        good.write(offset::QUEUE_READY, 1);
        // Also where the driver never came to its end.
        for live in [false, true] {
            if live {
                assert_eq!(good.write(offset::STATUS, READY), Change::Activate);
            }
            assert!(device().fit(&good) && good.is_live() == live);
            for (what, bend) in wrong {
                let mut bad = good.clone();
                bend(&mut bad);
                assert!(!device().fit(&bad), "{what}: {bad:?}");
            }
        }
        let anything =
            Registers { queue_sel: 99, device_features_sel: 7, driver_features_sel: 8, generation: 5, ..good };
        assert!(device().fit(&anything));
    }

    proptest! {
        #[test]
        fn whatever_is_written_queues_and_features_stay_within_the_offer(
            writes in proptest::collection::vec((0u64..0x42, any::<u32>(), 0u32..300), 0..200)
        ) {
            let mut r = device();
            for (register, wild, tame) in writes {
                let value = if wild & 1 == 0 { wild } else { tame };
                let was_live = r.is_live();
                let before = r.queues();
                let change = r.write(register * 4, value);
                if was_live && change != Change::Reset {
                    prop_assert_eq!(r.queues(), before);
                }
                if change == Change::Activate {
                    prop_assert_eq!(r.features() & !((1 << 9) | COMMON_FEATURES), 0);
                    prop_assert_ne!(r.features() & (1 << 32), 0);
                }
                for (queue, max) in r.queues().into_iter().zip([256, 64]) {
                    if let Some(queue) = queue {
                        prop_assert!(queue.size.is_power_of_two() && queue.size <= max);
                    }
                }
                // A snapshot may be made at any time.
                prop_assert!(device().fit(&r), "{r:?}");
                if wild % 16 == 0 {
                    r.set_needs_reset();
                    prop_assert!(device().fit(&r), "{r:?}");
                }
            }
        }
    }
}
