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
fn a_queue_is_a_power_of_two_and_no_larger_than_the_device_allows() {
    let ready = |queue: u32, size: u32| {
        let mut r = negotiated();
        r.write(offset::QUEUE_SEL, queue);
        r.write(offset::QUEUE_NUM, size);
        r.write(offset::QUEUE_READY, 1);
        r.read(offset::QUEUE_READY) == Some(1)
    };
    assert!([1, 2, 64, 256].into_iter().all(|size| ready(0, size)) && ready(1, 64));
    for (queue, size) in [(0, 0), (0, 3), (0, 200), (0, 512), (0, 0x1_0001), (0, u32::MAX), (1, 128)] {
        assert!(!ready(queue, size), "{size} entries of queue {queue}");
    }
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
    for early in [DRIVER, ACKNOWLEDGE | DRIVER | FEATURES_OK, READY, FEATURES_OK, DRIVER_OK] {
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
fn a_driver_may_notice_the_device_and_know_it_in_one_go() {
    let mut r = device();
    r.write(offset::STATUS, ACKNOWLEDGE | DRIVER);
    assert_eq!(r.read(offset::STATUS), Some(ACKNOWLEDGE | DRIVER));
    r.write(offset::DRIVER_FEATURES_SEL, 1);
    r.write(offset::DRIVER_FEATURES, 1);
    r.write(offset::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(r.write(offset::STATUS, READY), Change::Activate);
    assert!(r.is_live());
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
    let anything = Registers { queue_sel: 99, device_features_sel: 7, driver_features_sel: 8, generation: 5, ..good };
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
