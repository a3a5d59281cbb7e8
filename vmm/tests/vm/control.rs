//! Commands to a VM, and snapshots.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use portcullis_vmm::config::EntropyConfig;
use portcullis_vmm::log::EndReason;

use crate::driver::Driven;
use crate::guest::{Guest, SCRATCH};
use crate::harness::Setup;
use crate::virtio::{BUFFERS, Descriptor, FIRST, QUEUE_NOTIFY, Queue, WRITE};

/// A double word that guests count in.
const COUNT: u32 = 0x700;
/// Another one, of the second vCPU.
const OTHER: u32 = 0x704;
const IRR: u32 = 0xfee0_0220;

/// `inc dword [COUNT]`
fn count() -> Guest {
    Guest::new().edi(COUNT).raw(&[0xff, 0x07])
}

/// Connects a line of the IOAPIC to bit `bit` of [`IRR`]; interrupts stay off, so that it can be seen there.
fn watch_line(guest: Guest, gsi: u32, bit: u32) -> Guest {
    let guest = guest.store32(0xfee0_00f0, 0x1ff).store32(0xfec0_0000, 0x11 + 2 * gsi).store32(0xfec0_0010, 0);
    guest.store32(0xfec0_0000, 0x10 + 2 * gsi).store32(0xfec0_0010, 0x40 + bit)
}

/// Asks the guest for what it prints at a key; gives that.
fn press(driven: &mut Driven, len: usize) -> String {
    let before = driven.vmm.output_text().len();
    driven.vmm.type_in("p");
    driven.vmm.wait_for_more(before, len)
}

/// A number that a guest printed in hexadecimal, little end first.
fn number(hex: &str) -> u32 {
    u32::from_str_radix(hex.trim(), 16).unwrap_or_else(|_| panic!("{hex:?}")).swap_bytes()
}

/// What lies at an address in a snapshot's memory below the hole.
fn in_memory(path: &Path, address: u32) -> u32 {
    let mut file = std::fs::File::open(path).unwrap();
    let mut bytes = [0; 4];
    file.seek(SeekFrom::Start(address.into())).unwrap();
    file.read_exact(&mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

#[test]
fn a_vm_is_started_paused_and_resumed_by_commands() {
    let mut vm = Driven::new(Setup::new(&Guest::new().print("ready").serve_keys(&count(), COUNT, 4)));
    assert_eq!(vm.ok("state"), "Not started");
    for early in ["pause", "resume", "keys", "save x"] {
        let early = early.replace('x', vm.dir.join("early").to_str().unwrap());
        assert_eq!(vm.ask(&early).unwrap_err(), "the VM has not been started", "{early}");
    }
    vm.ok("start");
    assert_eq!(vm.ok("state"), "Running");
    assert_eq!(vm.ask("start").unwrap_err(), "the VM has been started already");
    vm.vmm.wait_for("ready");
    let first = number(&press(&mut vm, 8));
    for _ in 0..20 {
        for command in ["pause", "pause"] {
            vm.ok(command);
            assert_eq!(vm.ok("state"), "Paused");
        }
        for command in ["resume", "resume"] {
            vm.ok(command);
            assert_eq!(vm.ok("state"), "Running");
        }
    }
    assert!(number(&press(&mut vm, 8)) > first);
    vm.vmm.type_in("q");
    vm.vmm.wait().expect_end(EndReason::Reset);
}

#[test]
fn a_start_that_fails_can_be_tried_again() {
    let mut vm = Driven::new(Setup::new(&Guest::new().print("ready").reset()));
    let kernel = vm.dir.join("kernel");
    let bytes = std::fs::read(&kernel).unwrap();
    std::fs::write(&kernel, "no kernel").unwrap();
    assert!(vm.ask("start").unwrap_err().contains("no kernel this VMM can boot"));
    assert_eq!(vm.ok("state"), "Not started");
    std::fs::write(&kernel, bytes).unwrap();
    vm.ok("start");
    let ended = vm.vmm.wait();
    ended.expect_end(EndReason::Reset);
    assert!(ended.output.contains("ready"));
}

#[test]
fn a_paused_vm_and_one_that_never_started_end_by_a_signal() {
    for start in [true, false] {
        let mut vm = Driven::new(Setup::new(&Guest::new().hang()));
        if start {
            vm.ok("start");
            vm.ok("pause");
        }
        vm.ok("state");
        vm.vmm.signal(nix::sys::signal::Signal::SIGTERM);
        vm.vmm.wait().expect_end(EndReason::Killed);
    }
}

#[test]
fn ctrl_alt_del_reaches_the_guest_with_its_interrupt() {
    // Waits for the interrupt, then prints the scan codes of the press.
    let guest = watch_line(Guest::new(), 1, 1).print("ready").wait_for(IRR, 2);
    let guest = (0..4).fold(guest, |guest, _| guest.in8(0x60).edi(SCRATCH).raw(&[0x88, 0x07]).print_hex(SCRATCH, 1));
    let mut vm = Driven::started(Setup::new(&guest.reset()));
    vm.vmm.wait_for("ready");
    vm.ok("keys");
    let ended = vm.vmm.wait();
    ended.expect_end(EndReason::Reset);
    assert!(ended.output.contains("1411e071"), "{}", ended.output);
}

#[test]
fn a_restored_guest_goes_on_where_it_stood() {
    let mut vm = Driven::started(Setup::new(&Guest::new().print("ready").serve_keys(&count(), COUNT, 4)));
    vm.vmm.wait_for("ready");
    let first = number(&press(&mut vm, 8));
    let path = vm.dir.join("snapshot");
    let save = format!("save {}", path.display());
    assert_eq!(vm.ask(&save).unwrap_err(), "the VM is not paused");
    vm.ok("pause");
    vm.ok(&save);
    let saved = in_memory(&path.with_extension("memory"), COUNT);
    assert!(saved >= first);

    // Loaded and not resumed it stands still: a snapshot of it holds the same.
    let mut copy = Driven::new(Setup::new(&Guest::new()));
    copy.ok(&format!("load {}", path.display()));
    assert_eq!(copy.ok("state"), "Paused");
    let again = vm.dir.join("again");
    copy.ok(&format!("save {}", again.display()));
    assert_eq!(in_memory(&again.with_extension("memory"), COUNT), saved);
    copy.ok("resume");
    assert!(number(&press(&mut copy, 8)) > saved);
    copy.vmm.type_in("q");
    copy.vmm.wait().expect_end(EndReason::Reset);

    // So do the second snapshot, resumed at once and with its clock put forward, and the first VM itself.
    let mut second = Driven::new(Setup::new(&Guest::new()));
    println!("restored within {} us", second.ok(&format!("load {} resume realtime", again.display())));
    assert_eq!(second.ok("state"), "Running");
    vm.ok("resume");
    for vm in [&mut second, &mut vm] {
        assert!(number(&press(vm, 8)) > saved);
        vm.vmm.type_in("q");
    }
    for vm in [second, vm] {
        vm.vmm.wait().expect_end(EndReason::Reset);
    }
}
