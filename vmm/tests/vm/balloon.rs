//! The memory balloon.

use portcullis_vmm::config::BalloonConfig;
use portcullis_vmm::log::EndReason;

use crate::guest::Guest;
use crate::harness::{Setup, Vmm};
use crate::virtio::{BUFFERS, FIRST, Queue, STATUS, WRITE};

const MIB: u32 = 1 << 20;
const PAGE: u32 = 4096;
/// The memory that the guest fills and gives.
const GIVEN: u32 = 16 * MIB;
const GIVEN_PAGES: u32 = 32 * MIB / PAGE;
/// What the guest writes to each page.
const MARK: u32 = 0x1234_5678;

/// Offsets in configuration space.
const TARGET: u32 = 0x100;
const ACTUAL: u32 = 0x104;

const STATISTICS: u32 = 1 << 1;
const DEFLATE_ON_OOM: u32 = 1 << 2;
const REPORTING: u32 = 1 << 5;

fn queue(index: u32) -> Queue {
    Queue::at(FIRST, index, 8)
}

/// A VM of 64 MiB with a balloon.
fn setup(guest: &Guest, balloon: BalloonConfig) -> Setup {
    let mut setup = Setup::new(guest);
    setup.config = setup.config.with_mem_mib(64);
    setup.config.balloon = Some(balloon);
    setup
}

/// Resident memory of the process, in MiB.
fn resident_mib(vmm: &Vmm) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", vmm.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u32>().unwrap() / 1024
}

impl Guest {
    /// Fills memory, says so, and waits for a key.
    fn fill(self) -> Self {
        self.store_all32(GIVEN, GIVEN_PAGES, PAGE, MARK, 0).print("filled\n").echo_until(b'g')
    }
}

/// Runs a guest that fills memory, gives it in some way, and prints a page of it and one that it did not give. The
/// host is to have at least nine tenths of it back.
fn memory_comes_back(give: impl Fn(Guest) -> Guest, balloon: BalloonConfig) {
    let guest = give(Guest::new().fill()).print("given\n").echo_until(b'g');
    // The last page stayed: see below.
    let guest = guest.print_hex(GIVEN, 4).print_hex(GIVEN + (GIVEN_PAGES - 1) * PAGE, 4);
    // A page that was given is memory as before.
    let guest = guest.store32(GIVEN, 0xaabb_ccdd).print_hex(GIVEN, 4).reset();
    let mut vmm = setup(&guest, balloon).start();
    vmm.wait_for("filled");
    let before = resident_mib(&vmm);
    vmm.type_in("g");
    vmm.wait_for("given");
    let after = resident_mib(&vmm);
    vmm.type_in("g");
    let ended = vmm.wait();
    ended.expect_clean(EndReason::Reset);
    assert!(ended.output.ends_with("0000000078563412ddccbbaa"), "{}", ended.output);
    assert!(before >= 32, "{before} MiB");
    assert!(before - after >= 32 * 9 / 10, "{before} MiB, then {after} MiB");
}

#[test]
fn inflating_gives_the_host_its_memory_back() {
    // All pages but the last, whose number is that of the first again; 1024 numbers a request.
    let give = |guest: Guest| {
        let guest = guest.virtio_start(FIRST, DEFLATE_ON_OOM, &[queue(0), queue(1)]);
        let guest = guest.store_all32(BUFFERS, GIVEN_PAGES - 1, 4, GIVEN / PAGE, 1);
        let guest = guest.store32(BUFFERS + 4 * (GIVEN_PAGES - 1), GIVEN / PAGE);
        let guest = (0..GIVEN_PAGES / 1024).fold(guest, |guest, i| {
            let numbers = u64::from(BUFFERS + i * 4096);
            guest.request(queue(0), u16::try_from(i + 1).unwrap(), 0, &[(numbers, 4096, 0)])
        });
        // Taking it back costs the guest nothing but the words.
        guest.request(queue(1), 1, 0, &[(u64::from(BUFFERS), 4096, 0)])
    };
    memory_comes_back(give, BalloonConfig { amount_mib: 32, deflate_on_oom: true, ..BalloonConfig::default() });
}

#[test]
fn reported_pages_come_back_to_the_host_too() {
    // One range, whose end is not a whole page.
    let give = |guest: Guest| {
        let range = (u64::from(GIVEN), (GIVEN_PAGES - 1) * PAGE + 100, WRITE);
        guest.virtio_start(FIRST, REPORTING, &[queue(0), queue(1), queue(2)]).request(queue(2), 1, 0, &[range])
    };
    memory_comes_back(give, BalloonConfig { free_page_reporting: true, ..BalloonConfig::default() });
}

#[test]
fn the_guest_learns_the_target_and_says_what_it_has_reached() {
    let guest = Guest::new().print_register(FIRST, 8).virtio_start(FIRST, DEFLATE_ON_OOM, &[queue(0), queue(1)]);
    let guest = guest.print_register(FIRST, TARGET).print_register(FIRST, ACTUAL);
    // Only what it has reached is the guest's to say.
    let guest = guest.store32(FIRST + ACTUAL, 99).store32(FIRST + TARGET, 7);
    let guest = guest.print_register(FIRST, TARGET).print_register(FIRST, ACTUAL).reset();
    let balloon = BalloonConfig { amount_mib: 3, deflate_on_oom: true, ..BalloonConfig::default() };
    let ended = setup(&guest, balloon).run();
    ended.expect_clean(EndReason::Reset);
    assert_eq!(ended.output, format!("{}{}{}", "05000000", "0003000000000000", "0003000063000000"));
}

#[test]
fn pages_outside_memory_and_odd_lists_stop_the_device_and_nothing_else() {
    // In one list with a good page, which stays: all or nothing.
    let outside = |number: u32| {
        let guest = Guest::new().store32(BUFFERS, GIVEN / PAGE).store32(BUFFERS + 4, number);
        (guest, vec![(u64::from(BUFFERS), 8, 0)])
    };
    let cases = [
        outside(64 * MIB / PAGE),
        outside(0xc_0000),
        outside(u32::MAX),
        (Guest::new(), vec![(u64::from(BUFFERS), 7, 0)]),
        (Guest::new(), vec![(u64::from(BUFFERS), 4100, 0)]),
        (Guest::new(), vec![(u64::from(64 * MIB), 8, 0)]),
    ];
    for (guest, buffers) in cases {
        let guest = guest.store32(GIVEN, MARK).virtio_start(FIRST, 0, &[queue(0), queue(1)]);
        let descriptor = |(address, len, flags)| crate::virtio::Descriptor { address, len, flags, next: 0 };
        let guest = guest.descriptor(queue(0).descriptors, 0, descriptor(buffers[0]));
        let guest = guest.offer(queue(0), 1, 0).notify(queue(0)).until32(FIRST + STATUS, 15 | 64, &Guest::new());
        // After a reset it serves again.
        let guest = guest.print_hex(GIVEN, 4).virtio_start(FIRST, 0, &[queue(0), queue(1)]);
        let guest = guest.store32(BUFFERS, GIVEN / PAGE).request(queue(0), 1, 0, &[(u64::from(BUFFERS), 4, 0)]);
        let ended = setup(&guest.print_hex(GIVEN, 4).reset(), BalloonConfig::default()).run();
        ended.expect_warnings(EndReason::Reset, &["balloon"]);
        assert_eq!(ended.output, "7856341200000000");
    }
}

#[test]
fn statistics_are_asked_for_again_and_again() {
    let entry = |guest: Guest, at: u32, tag: u16, value: u64| guest.store16(at, tag).store64(at + 2, value);
    let guest = Guest::new().virtio_start(FIRST, STATISTICS, &[queue(0), queue(1), queue(2)]);
    let guest = entry(entry(guest, BUFFERS, 4, 1000), BUFFERS + 10, 5, 2000);
    // Each comes back after the interval, as the sign that new ones are wanted.
    let guest = guest.request(queue(2), 1, 0, &[(u64::from(BUFFERS), 20, 0)]).print("1");
    let guest = guest.request(queue(2), 2, 0, &[(u64::from(BUFFERS), 20, 0)]).print("2").reset();
    let balloon = BalloonConfig { stats_polling_interval_s: 1, ..BalloonConfig::default() };
    let ended = setup(&guest, balloon).run();
    ended.expect_clean(EndReason::Reset);
    assert_eq!(ended.output, "12");
}
