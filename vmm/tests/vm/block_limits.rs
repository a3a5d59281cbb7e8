//! Rate limiters of disks.

use portcullis_vmm::config::{CacheType, DriveConfig, RateLimiterConfig, TokenBucketConfig};

use crate::block::*;
use crate::guest::Guest;
use crate::virtio::{Descriptor, FIRST, NEXT, Queue, WRITE};

#[test]
fn ranges_and_flushes_count_where_a_disk_is_limited() {
    const HOUR: u64 = 3_600_000;
    const FEATURES: u32 = FLUSH | (1 << 13) | (1 << 14);
    let (limited, free) = (Queue::at(FIRST, 0, 16), Queue::at(FIRST + 0x1000, 0, 8));
    // Three times the same request is offered at once: of 16 bytes of data, if any, about a range of four sectors.
    let offer_all = |guest: Guest, kind: u32, flags: u32| {
        let guest = guest.store64(DATA, 0).store32(DATA + 8, 4).store32(DATA + 12, flags);
        let guest = (1..=3).fold(guest, |guest, number| {
            let parts = if kind == FLUSH_KIND { vec![] } else { vec![data(0, 16)] };
            let all = [&[header(number)], &parts[..], &[status(number)]].concat();
            let first = 4 * (number - 1);
            let guest = all.iter().zip(first..).fold(guest, |guest, ((address, len, flags), index)| {
                let last = *address == status(number).0;
                let flags = if last { *flags } else { flags | NEXT };
                let descriptor = Descriptor { address: *address, len: *len, flags, next: index + 1 };
                guest.descriptor(limited.descriptors, u32::from(index), descriptor)
            });
            guest.disk_header(number, kind, 0).offer(limited, number, first)
        });
        guest.notify(limited)
    };
    for (kind, flags, limit, passes) in [
        // Each range has 2048 bytes; the data that describes it costs too.
        (DISCARD_KIND, 0, limits(Some((4200, HOUR)), None), "02"),
        (ZEROES_KIND, 0, limits(Some((4200, HOUR)), None), "02"),
        (ZEROES_KIND, 1, limits(Some((4200, HOUR)), None), "02"),
        // More than the bucket holds passes once, and leaves a debt.
        (DISCARD_KIND, 0, limits(Some((1000, HOUR)), None), "01"),
        (DISCARD_KIND, 0, limits(Some((10_000, HOUR)), None), "03"),
        // What is refused costs its data alone.
        (DISCARD_KIND, 1, limits(Some((1000, HOUR)), None), "03"),
        (DISCARD_KIND, 0, limits(None, Some((2, HOUR))), "02"),
        (FLUSH_KIND, 0, limits(None, Some((2, HOUR))), "02"),
        (FLUSH_KIND, 0, limits(Some((1, HOUR)), None), "03"),
    ] {
        let start = Guest::new().virtio_start(FIRST, FEATURES, &[limited]).virtio_start(FIRST + 0x1000, 0, &[free]);
        // What may pass has passed then; the second disk's requests give time to what may not.
        let guest = (1..=4)
            .fold(offer_all(start, kind, flags).wait_for16(limited.used_index(), count(passes)), |guest, number| {
                guest.disk_request_at(free, number + 4, READ_KIND, 0, &[room(0x8000, 512)])
            });
        let guest = guest.print_hex(limited.used_index(), 1).reset();
        let (mut setup, path) = with_disk(&guest, &numbered(4));
        setup.config.drives[0].cache_type = CacheType::Writeback;
        setup.config.drives[0].rate_limiter = Some(limit);
        let second = path.with_file_name("second");
        std::fs::write(&second, numbered(1)).unwrap();
        setup.config = setup.config.with_drive(DriveConfig::new("second", second));
        assert_eq!(run(setup, &path).0, passes, "{kind} {flags} {limit:?}");
    }
}

fn count(hex: &str) -> u16 {
    u16::from_str_radix(hex, 16).unwrap()
}

/// Limits of one kind: so many at once, and so many milliseconds until as many again.
pub fn limits(bandwidth: Option<(u64, u64)>, ops: Option<(u64, u64)>) -> RateLimiterConfig {
    let bucket = |(size, refill_time)| TokenBucketConfig { size, one_time_burst: None, refill_time };
    RateLimiterConfig { bandwidth: bandwidth.map(bucket), ops: ops.map(bucket) }
}

#[test]
fn limits_let_through_what_they_allow_and_the_rest_later() {
    const HOUR: u64 = 3_600_000;
    let (limited, free) = (Queue::at(FIRST, 0, 8), Queue::at(FIRST + 0x1000, 0, 8));
    // Four reads of two sectors are offered at once.
    let offer_all = |guest: Guest| {
        let guest = (1..=4).fold(guest, |guest, number| {
            let first = 2 * (number - 1);
            let at = |index: u16| u32::from(first + index);
            let link = |(address, len, flags): (u64, u32, u16), next| Descriptor { address, len, flags, next };
            let (head, end) = (header(number), (u64::from(DATA) + 0x800 * u64::from(number), 1025, WRITE));
            let head = (head.0, head.1, NEXT);
            let guest = guest.disk_header(number, READ_KIND, 0);
            let guest = guest.descriptor(limited.descriptors, at(0), link(head, first + 1));
            guest.descriptor(limited.descriptors, at(1), link(end, 0)).offer(limited, number, first)
        });
        guest.notify(limited)
    };
    for (limit, passes) in [
        (Some(limits(None, Some((3, HOUR)))), "03"),
        (Some(limits(Some((2100, HOUR)), None)), "02"),
        (Some(limits(Some((2100, HOUR)), Some((1, HOUR)))), "01"),
        (Some(limits(Some((0, 0)), Some((100, HOUR)))), "04"),
        (None, "04"),
    ] {
        let start = Guest::new().virtio_start(FIRST, 0, &[limited]).virtio_start(FIRST + 0x1000, 0, &[free]);
        // What may pass has passed then; the second disk's requests give time to what may not.
        let guest = (1..=4).fold(offer_all(start).wait_for16(limited.used_index(), count(passes)), |guest, number| {
            guest.disk_request_at(free, number, READ_KIND, 0, &[room(0x8000, 512)])
        });
        let guest = guest.print_hex(limited.used_index(), 1).reset();
        let (mut setup, path) = with_disk(&guest, &numbered(4));
        setup.config.drives[0].rate_limiter = limit;
        let second = path.with_file_name("second");
        std::fs::write(&second, numbered(1)).unwrap();
        setup.config = setup.config.with_drive(DriveConfig::new("second", second));
        assert_eq!(run(setup, &path).0, passes, "{limit:?}");
    }
    // With time, all of them are done, though two at once are more than is allowed.
    for limit in [limits(None, Some((1, 20))), limits(Some((512, 10)), None)] {
        let guest = offer_all(Guest::new().virtio_start(FIRST, 0, &[limited]));
        let guest = guest.wait_for16(limited.used_index(), 4).print("done").reset();
        let (mut setup, path) = with_disk(&guest, &numbered(4));
        setup.config.drives[0].rate_limiter = Some(limit);
        assert_eq!(run(setup, &path).0, "done");
    }
}
