//! The entropy device.

use portcullis_vmm::config::EntropyConfig;
use portcullis_vmm::log::EndReason;

use crate::guest::Guest;
use crate::harness::{Ended, Setup};
use crate::virtio::{BUFFERS, Descriptor, FIRST, Queue, STATUS, WRITE};

/// Runs a guest on a VM with the device.
fn run(guest: &Guest) -> Ended {
    let mut setup = Setup::new(guest);
    setup.config.entropy = Some(EntropyConfig::default());
    setup.run()
}

#[test]
fn the_guest_gets_bytes_and_they_differ() {
    let queue = Queue::at(FIRST, 0, 8);
    let buffer = u64::from(BUFFERS);
    let guest = Guest::new()
        .virtio_start(FIRST, 0, &[queue])
        .request(queue, 1, 0, &[(buffer, 12, WRITE), (buffer + 16, 4, WRITE)])
        .request(queue, 2, 2, &[(buffer + 32, 16, WRITE)])
        .print_hex(BUFFERS, 48)
        .print_hex(queue.used_len(0), 4)
        .print_hex(queue.used_len(1), 4)
        .reset();
    let ended = run(&guest);
    ended.expect_clean(EndReason::Reset);
    let bytes: Vec<u8> = (0..ended.output.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&ended.output[at..at + 2], 16).unwrap())
        .collect();
    let (first, gap, last, second, lengths) =
        (&bytes[..12], &bytes[12..16], &bytes[16..20], &bytes[32..48], &bytes[48..]);
    assert_eq!(lengths, [16, 0, 0, 0, 16, 0, 0, 0]);
    assert_eq!(gap, [0; 4], "between the buffers");
    assert!(first != [0; 12] && second[..12] != *first && last != [0; 4], "{}", ended.output);
}

#[test]
fn a_limited_device_gives_no_more_than_it_may_and_the_rest_later() {
    const HOUR: u64 = 3_600_000;
    let queue = Queue::at(FIRST, 0, 8);
    let offer_all = |guest: Guest| {
        (1..=3).fold(guest, |guest, number: u16| {
            let address = u64::from(BUFFERS + 0x100 * u32::from(number));
            let descriptor = Descriptor { address, len: 100, flags: WRITE, next: 0 };
            guest.descriptor(queue.descriptors, u32::from(number), descriptor).offer(queue, number, number)
        })
    };
    let limited = |guest: &Guest, limit: &str| {
        let mut setup = Setup::new(guest);
        let config = format!(r#"{{"rate_limiter": {limit}}}"#);
        setup.config.entropy = Some(serde_json::from_str(&config).unwrap());
        setup
    };
    let start = || offer_all(Guest::new().virtio_start(FIRST, 0, &[queue])).notify(queue);
    let ops = |size: u32, refill: u64| format!(r#"{{"ops": {{"size": {size}, "refill_time": {refill}}}}}"#);
    let bytes = |size: u32, refill: u64| format!(r#"{{"bandwidth": {{"size": {size}, "refill_time": {refill}}}}}"#);
    for (limit, passes) in [(ops(2, HOUR), 2), (bytes(250, HOUR), 2), (bytes(50, HOUR), 1), (ops(3, HOUR), 3)] {
        let guest = start().wait_for16(queue.used_index(), passes).print("R").echo_until(b'x');
        let mut vmm = limited(&guest.print_hex(queue.used_index(), 2).reset(), &limit).start();
        vmm.wait_for("R");
        vmm.type_in("x");
        let ended = vmm.wait();
        ended.expect_clean(EndReason::Reset);
        assert_eq!(ended.output, format!("Rx{passes:02x}00"), "{limit}");
    }
    for limit in [ops(1, 20), bytes(100, 20)] {
        let ended = limited(&start().wait_for16(queue.used_index(), 3).print("done").reset(), &limit).run();
        ended.expect_clean(EndReason::Reset);
        assert_eq!(ended.output, "done", "{limit}");
    }
}

#[test]
fn a_device_without_its_configuration_is_not_there() {
    let ended = Setup::new(&Guest::new().print_register(FIRST, 0).reset()).run();
    ended.expect_clean(EndReason::Reset);
    assert_eq!(ended.output, "ffffffff");
    let ended =
        run(&Guest::new().print_register(FIRST, 0).print_register(FIRST, 8).print_register(FIRST, STATUS).reset());
    assert_eq!(ended.output, "766972740400000000000000");
}
