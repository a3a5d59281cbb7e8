//! Guests that cannot go on, and guests that touch what is not there.

use portcullis_vmm::log::{EndReason, Event};

use crate::guest::{BASE, Guest};
use crate::harness::{Ended, Setup};

fn expect_fault(ended: &Ended, code: &str) {
    assert_eq!((ended.code(), ended.end()), (Some(1), (EndReason::Error, Some(code))), "{ended:?}");
    assert!(ended.errors.contains("rip=0x"), "no registers: {}", ended.errors);
}

fn registers(ended: &Ended) -> portcullis_vmm::log::Registers {
    ended
        .events
        .iter()
        .find_map(|event| if let Event::Registers(registers) = event { Some(**registers) } else { None })
        .expect("no registers in the log")
}

#[test]
fn a_triple_fault_is_named_and_has_registers() {
    // mov ebx, 0x1234; ud2, without an interrupt table
    let ended = Setup::new(&Guest::new().print("x").raw(&[0xbb, 0x34, 0x12, 0, 0, 0x0f, 0x0b])).run();
    expect_fault(&ended, "triple-fault");
    assert_eq!(ended.output, "x");
    let registers = registers(&ended);
    assert_eq!((registers.vcpu, registers.cs, registers.efer & 0x400), (0, 0x10, 0x400));
}

#[test]
fn an_instruction_that_kvm_cannot_emulate_is_named_so() {
    // Code where there is no memory has to be emulated, and cannot be fetched: no KVM can run this.
    let ended = Setup::new(&Guest::new().edi(0xe000_0000).raw(&[0xff, 0xe7])).run();
    expect_fault(&ended, "cannot-emulate");
    assert!(ended.errors.contains("this host's KVM cannot run what the guest does"), "{}", ended.errors);
    assert_eq!(registers(&ended).rip, 0xe000_0000);
}

#[test]
fn a_fault_of_one_vcpu_ends_all() {
    let at = 0x1_0000;
    let guest = Guest::new()
        // The others load an empty interrupt table and fault: lidt [cs:0x10]; ud2
        .copy_low(at, &[0x2e, 0x0f, 0x01, 0x1e, 0x10, 0x00, 0x0f, 0x0b])
        .copy_low(at + 0x10, &[0; 6])
        .store32(0xfee0_00f0, 0x1ff)
        .store32(0xfee0_0300, 0x000c_4500)
        .store32(0xfee0_0300, 0x000c_4610)
        .hang();
    let mut setup = Setup::new(&guest);
    setup.config = setup.config.with_vcpus(2);
    let ended = setup.run();
    // A KVM that emulates real mode may not get as far as the fault; either way the second vCPU cannot go on.
    let code = ended.end().1.unwrap_or_default().to_owned();
    assert!(["triple-fault", "cannot-emulate"].contains(&code.as_str()), "{code}");
    expect_fault(&ended, &code);
    assert_eq!(registers(&ended).vcpu, 1);
}

#[test]
fn ports_and_memory_where_nothing_is_read_ones_and_swallow_writes() {
    let guest = Guest::new()
        .out8(0x1234, 1)
        .out16(0xffff, 0xabcd)
        .in8(0x1234)
        .print_if_al(0xff, "port ")
        .store32(0xf000_0000, 7)
        .load8(0xf000_0000)
        .print_if_al(0xff, "memory")
        .reset();
    let ended = Setup::new(&guest).run();
    ended.expect_clean(EndReason::Reset);
    assert_eq!(ended.output, "port memory");
}

#[test]
fn string_output_is_one_byte_after_the_other() {
    // mov esi, text; mov ecx, 5; mov dx, 0x3f8; rep outsb
    let code = Guest::new().raw(&[0xbe]).raw(&u32::try_from(BASE + 0x800).unwrap().to_le_bytes());
    let code = code.raw(&[0xb9, 5, 0, 0, 0, 0x66, 0xba, 0xf8, 0x03, 0xf3, 0x6e]).reset();
    let padding = 0x800 - (code.elf().len() - Guest::new().elf().len());
    let ended = Setup::new(&code.raw(&vec![0x90; padding]).raw(b"hello")).run();
    ended.expect_clean(EndReason::Reset);
    assert_eq!(ended.output, "hello");
}

#[test]
fn there_are_no_performance_counters() {
    // xor ecx, ecx; rdpmc: faults where there is no counter 0, and this guest has no handler.
    let ended = Setup::new(&Guest::new().raw(&[0x31, 0xc9, 0x0f, 0x33]).print("counted").reset()).run();
    expect_fault(&ended, "triple-fault");
    assert!(!ended.output.contains("counted"), "{}", ended.output);
}
