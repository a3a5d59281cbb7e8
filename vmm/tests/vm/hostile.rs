//! Drivers that mean harm: what they do ends in a device that waits for its reset, and in nothing else.

use portcullis_vmm::config::{RateLimiterConfig, TokenBucketConfig};
use portcullis_vmm::log::EndReason;

use crate::block::{DATA, READ_KIND, STATUSES, WRITE_KIND, header, numbered, queue, room, status, with_disk};
use crate::guest::Guest;
use crate::virtio::{
    Descriptor, FIRST, NEEDS_RESET, NEXT, QUEUE_DESC, QUEUE_DEVICE, QUEUE_DRIVER, QUEUE_NOTIFY, QUEUE_NUM, QUEUE_READY,
    QUEUE_SEL, Queue, STATUS, WRITE,
};

/// A descriptor of an indirect table, which no driver here has agreed on.
const INDIRECT: u16 = 4;

/// Ends with a request as it should be, by a driver that begins anew; it prints the status: `00`.
fn then_read(guest: Guest) -> Guest {
    let guest = guest.virtio_start(FIRST, 0, &[queue()]).disk(1, READ_KIND, 0, &[room(0, 512)]);
    guest.print_statuses(1).reset()
}

/// Runs a guest whose disk has two sectors, and asserts what it prints, what the log warns of, and that the disk is as
/// before.
fn expect(what: &str, guest: &Guest, output: &str, warnings: &[&str]) {
    let (setup, path) = with_disk(guest, &numbered(2));
    let (printed, after) = crate::block::run_warned(setup, &path, warnings);
    assert_eq!(printed, output, "{what}");
    assert!(after == numbered(2), "{what}");
}

/// A driver that has started, and has the descriptors of a good request in its table: 0, 1 and 2.
fn prepared(kind: u32) -> Guest {
    let guest = Guest::new().virtio_start(FIRST, 0, &[queue()]).disk_header(1, kind, 0);
    let parts = [header(1), room(0, 512), status(1)];
    (0u16..).zip(parts).fold(guest, |guest, (index, (address, len, flags))| {
        let flags = if index < 2 { flags | NEXT } else { flags };
        guest.descriptor(queue().descriptors, index.into(), Descriptor { address, len, flags, next: index + 1 })
    })
}

#[test]
fn chains_that_lie_stop_the_device_until_it_is_reset() {
    let table = queue().descriptors;
    let (address, len, _) = room(0, 512);
    let at_1 = |flags, next| prepared(READ_KIND).descriptor(table, 1, Descriptor { address, len, flags, next });
    let empty = Descriptor { address, len: 0, flags: WRITE | NEXT, next: 1 };
    let offer = |guest: Guest| guest.offer(queue(), 1, 0);
    for (what, guest) in [
        ("a loop", offer(at_1(WRITE | NEXT, 1))),
        ("a loop of nothing", offer(prepared(READ_KIND).descriptor(table, 1, empty))),
        ("a loop over the head", offer(at_1(WRITE | NEXT, 0))),
        ("a successor outside the table", offer(at_1(WRITE | NEXT, 256))),
        ("a head outside the table", prepared(READ_KIND).offer(queue(), 1, 0xffff)),
        ("an indirect table that was not agreed on", offer(at_1(INDIRECT, 0))),
        ("more chains than the queue holds", prepared(READ_KIND).store16(queue().available + 2, 257)),
    ] {
        let guest = guest.notify(queue()).wait_for32(FIRST + STATUS, NEEDS_RESET | 15).print_hex(STATUSES + 1, 1);
        expect(what, &then_read(guest), "ee00", &["the guest's driver broke the rules"]);
    }
}

#[test]
fn buffers_that_overlap_are_the_guests_own_loss() {
    // Both sectors into the same place, and the status into the middle of it.
    let middle = (u64::from(DATA + 5), 1, WRITE);
    let twice = Guest::new().virtio_start(FIRST, 0, &[queue()]).disk_header(1, READ_KIND, 0);
    let twice = twice.request(queue(), 1, 0, &[header(1), room(0, 512), room(0, 512), middle]);
    expect("the same buffer twice", &then_read(twice.print_hex(DATA + 4, 3)), "02000200", &[]);
    // The disk's content over the available ring: its index is far ahead then, once the request is answered.
    let ring = (u64::from(queue().available), 512, WRITE);
    let over = Guest::new().virtio_start(FIRST, 0, &[queue()]).disk_header(1, READ_KIND, 1);
    let over = over.request(queue(), 1, 0, &[header(1), ring, status(1)]);
    let over = over.wait_for32(FIRST + STATUS, NEEDS_RESET | 15).print_statuses(1);
    expect("the ring itself", &then_read(over), "0000", &["runs 513 entries ahead"]);
}

#[test]
fn a_driver_that_changes_descriptors_while_they_are_read_harms_nobody() {
    // In low memory, where the second vCPU gets at it in real mode.
    let low = Queue { device: FIRST, index: 0, size: 16, descriptors: 0x3_0000, available: 0x3_1000, used: 0x3_2000 };
    // mov ax, 0x3000; mov ds, ax; not dword [0x14]; not dword [0x18]; jmp back: the high half of an address, a length
    let flip = [0xb8, 0, 0x30, 0x8e, 0xd8, 0x66, 0xf7, 0x16, 0x14, 0, 0x66, 0xf7, 0x16, 0x18, 0, 0xeb, 0xf4];
    let guest = Guest::new().copy_low(0x1_0000, &flip).store32(0xfee0_00f0, 0x1ff);
    let mut guest = guest.store32(0xfee0_0300, 0x000c_4500).store32(0xfee0_0300, 0x000c_4610);
    for _ in 0..40 {
        guest = guest.virtio_start(FIRST, 0, &[low]);
        for number in 1..=8 {
            let parts = [header(1), room(0, 512), status(1)];
            for (index, (address, len, flags)) in (0u16..).zip(parts) {
                let flags = if index < 2 { flags | NEXT } else { flags };
                let descriptor = Descriptor { address, len, flags, next: index + 1 };
                guest = guest.descriptor(low.descriptors, index.into(), descriptor);
            }
            // Each look at a register gives the device time.
            guest = guest.disk_header(1, READ_KIND, 0).offer(low, number, 0).notify(low).load8(FIRST + STATUS);
        }
    }
    let (mut setup, _) = with_disk(&then_read(guest), &numbered(2));
    setup.config = setup.config.with_vcpus(2);
    let ended = setup.run();
    ended.expect_end(EndReason::Reset);
    assert_eq!(ended.output, "00");
    assert!(ended.warnings.len() <= 8, "{:?}", ended.warnings);
}

#[test]
fn registers_of_a_queue_mean_nothing_after_the_start() {
    let mut guest = Guest::new().virtio_start(FIRST, 0, &[queue()]).store32(FIRST + QUEUE_SEL, 0);
    for (register, value) in [
        (QUEUE_READY, 0),
        (QUEUE_NUM, 2),
        (QUEUE_DESC, 0x4000_0000),
        (QUEUE_DRIVER, 0xffff_f000),
        (QUEUE_DEVICE + 4, 0xffff_ffff),
        (QUEUE_READY, 1),
    ] {
        guest = guest.store32(FIRST + register, value);
    }
    let guest = guest.disk(1, READ_KIND, 1, &[room(0, 512)]).print_statuses(1).print_hex(DATA, 1).reset();
    expect("written late", &guest, "0002", &[]);
}

#[test]
fn a_storm_of_doorbells_is_answered_with_silence() {
    // Of a queue that has nothing, and of queues that are not there.
    let guest = Guest::new().virtio_start(FIRST, 0, &[queue()]);
    let guest = guest.store_all32(FIRST + QUEUE_NOTIFY, 5000, 0, 0, 0);
    let guest = guest.store_all32(FIRST + QUEUE_NOTIFY, 5000, 0, 1, 1);
    let (setup, _) = with_disk(&then_read(guest), &numbered(2));
    let log = setup.log_path();
    let mut command = setup.command();
    command.args(["--level", "Trace"]);
    let output = command.stdin(std::process::Stdio::null()).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"00"[..]));
    let lines = std::fs::read_to_string(log).unwrap().lines().count();
    assert!(lines < 20, "{lines} lines in the log");
}

#[test]
fn devices_that_are_reset_in_the_middle_forget_their_requests() {
    // At once, again and again.
    let mut guest = Guest::new();
    for _ in 0..50 {
        let parts = prepared(READ_KIND).offer(queue(), 1, 0).notify(queue()).store32(FIRST + STATUS, 0);
        guest = guest.then(&parts);
    }
    expect("at once", &then_read(guest), "00", &[]);
    // While a request waits for the limiter: the next driver's is answered, it is not.
    let wait = TokenBucketConfig { size: 1, one_time_burst: None, refill_time: 300 };
    let first = Guest::new().virtio_start(FIRST, 0, &[queue()]).disk(1, READ_KIND, 0, &[room(0, 512)]);
    let second = first.disk_header(2, WRITE_KIND, 0).descriptor(
        queue().descriptors,
        0,
        Descriptor { address: header(2).0, len: 16, flags: NEXT, next: 1 },
    );
    let second =
        [(room(0, 512), 1), (status(2), 2)].into_iter().fold(second, |guest, ((address, len, flags), index)| {
            let flags = if index == 1 { NEXT } else { flags };
            guest.descriptor(queue().descriptors, index.into(), Descriptor { address, len, flags, next: index + 1 })
        });
    let guest = second.offer(queue(), 2, 0).notify(queue()).load8(FIRST + STATUS).disk_fill(0, 512, 0x0909_0909);
    let guest = guest.virtio_start(FIRST, 0, &[queue()]).disk(1, READ_KIND, 1, &[room(0, 512)]);
    let guest = guest.print_statuses(2).print_hex(DATA, 1).reset();
    let (mut setup, path) = with_disk(&guest, &numbered(2));
    setup.config.drives[0].rate_limiter = Some(RateLimiterConfig { bandwidth: None, ops: Some(wait) });
    let (output, after) = crate::block::run(setup, &path);
    assert_eq!(output, "00ee02");
    assert!(after == numbered(2));
}
