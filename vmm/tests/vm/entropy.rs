//! The entropy device.

use portcullis_vmm::config::EntropyConfig;
use portcullis_vmm::log::EndReason;

use crate::guest::Guest;
use crate::harness::{Ended, Setup};
use crate::virtio::{BUFFERS, FIRST, Queue, STATUS, WRITE};

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
fn a_device_without_its_configuration_is_not_there() {
    let ended = Setup::new(&Guest::new().print_register(FIRST, 0).reset()).run();
    ended.expect_clean(EndReason::Reset);
    assert_eq!(ended.output, "ffffffff");
    let ended =
        run(&Guest::new().print_register(FIRST, 0).print_register(FIRST, 8).print_register(FIRST, STATUS).reset());
    assert_eq!(ended.output, "766972740400000000000000");
}
