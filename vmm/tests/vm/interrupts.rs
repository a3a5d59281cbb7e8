//! Interrupts: from a device's edge through the I/O APIC to a vCPU's local APIC.

use std::time::Duration;

use nix::sys::signal::Signal;
use portcullis_vmm::config::EntropyConfig;
use portcullis_vmm::log::EndReason;

use crate::guest::{Guest, SCRATCH};
use crate::harness::Setup;

/// Register select and window of the I/O APIC.
const SELECT: u32 = 0xfec0_0000;
const WINDOW: u32 = 0xfec0_0010;
const VERSION: u32 = 1;
/// Of the local APIC: the requests of vectors 0x40 to 0x5f.
pub const IRR: u32 = 0xfee0_0220;
const MASKED: u32 = 1 << 16;
/// The UART's interrupt enable register, its bit for an empty transmitter, and its line.
const INTERRUPT_ENABLE: u16 = 0x3f9;
const TRANSMITTER_EMPTY: u8 = 2;
const SERIAL: u32 = 4;

/// Sets what line `gsi` sends to the first vCPU.
fn connect(guest: Guest, gsi: u32, entry: u32) -> Guest {
    let guest = guest.store32(SELECT, 0x11 + 2 * gsi).store32(WINDOW, 0);
    guest.store32(SELECT, 0x10 + 2 * gsi).store32(WINDOW, entry)
}

/// Switches the local APIC on and connects a line of the I/O APIC to bit `bit` of [`IRR`]; interrupts stay off, so that it
/// can be seen there.
pub fn watch_line(guest: Guest, gsi: u32, bit: u32) -> Guest {
    connect(guest.store32(0xfee0_00f0, 0x1ff), gsi, 0x40 + bit)
}

/// What a guest prints before it resets.
fn output(setup: Setup) -> String {
    let ended = setup.run();
    ended.expect_clean(EndReason::Reset);
    ended.output
}

#[test]
fn the_controller_has_lines_up_to_the_last_device_and_no_more() {
    let guest = Guest::new().store32(SELECT, VERSION).copy32(WINDOW, SCRATCH).print_hex(SCRATCH, 4).reset();
    assert_eq!(output(Setup::new(&guest)), "11000400");
    let mut setup = Setup::new(&guest);
    setup.config.entropy = Some(EntropyConfig::default());
    assert_eq!(output(setup), "11000500");
}

#[test]
fn an_edge_comes_to_the_vcpu_if_its_line_is_not_masked() {
    let edge = |guest: Guest| {
        let guest = guest.out8(INTERRUPT_ENABLE, TRANSMITTER_EMPTY).copy32(IRR, SCRATCH);
        output(Setup::new(&guest.out8(INTERRUPT_ENABLE, 0).print_hex(SCRATCH, 4).reset()))
    };
    let watched = || watch_line(Guest::new(), SERIAL, 9);
    assert_eq!(edge(watched()), "00020000");
    assert_eq!(edge(connect(watched(), SERIAL, MASKED | 0x49)), "00000000");
    // One that was masked when the edge came has lost it.
    let late = |guest: Guest| connect(guest.out8(INTERRUPT_ENABLE, TRANSMITTER_EMPTY), SERIAL, 0x49);
    let lost = late(connect(watched(), SERIAL, MASKED | 0x49)).copy32(IRR, SCRATCH);
    assert_eq!(output(Setup::new(&lost.out8(INTERRUPT_ENABLE, 0).print_hex(SCRATCH, 4).reset())), "00000000");
    // Another line's edge.
    assert_eq!(edge(watch_line(Guest::new(), 3, 9)), "00000000");
}

/// An INIT brings the first vCPU to the firmware of a PC, which resets the machine; here nothing is there.
#[test]
fn a_guest_that_sends_itself_an_init_has_reset() {
    for entry in [0x500, 0x549, 0x8549] {
        let guest = connect(Guest::new().store32(0xfee0_00f0, 0x1ff), SERIAL, entry);
        assert_eq!(output(Setup::new(&guest.print("now").out8(INTERRUPT_ENABLE, TRANSMITTER_EMPTY).hang())), "now");
    }
}

/// Whatever a guest lets a line send to itself, an SMI, an NMI, an INIT or what no APIC knows: it harms nobody else.
#[test]
fn a_guest_that_interrupts_itself_in_every_way_can_be_ended() {
    // Vectors that are none, and all delivery and destination modes, to itself and to nobody.
    let entries = (0..16).flat_map(|modes| [0x00, 0x49].map(|vector| (modes << 8) | vector));
    for entry in entries {
        for destination in [0u32, 0xff] {
            let guest = connect(Guest::new().store32(0xfee0_00f0, 0x1ff), SERIAL, entry);
            let guest = guest.store32(SELECT, 0x11 + 2 * SERIAL).store32(WINDOW, destination << 24);
            let mut vmm = Setup::new(&guest.print("now").out8(INTERRUPT_ENABLE, TRANSMITTER_EMPTY).hang()).start();
            vmm.wait_for("now");
            // The edge is the guest's next instruction but one.
            std::thread::sleep(Duration::from_millis(10));
            vmm.signal(Signal::SIGTERM);
            let ended = vmm.wait();
            match ended.end() {
                (EndReason::Killed, None) => assert_eq!(ended.code(), Some(0)),
                // Unless it had reset itself before, by an INIT.
                (EndReason::Reset, None) => assert_eq!((ended.code(), entry >> 8 & 7), (Some(0), 5)),
                (EndReason::Error, Some("triple-fault")) => assert_eq!(ended.code(), Some(1)),
                other => panic!("{entry:#x} to {destination:#x}: {other:?}: {ended:?}"),
            }
        }
    }
}
