//! CPU templates (`cpu-config`): what a guest sees of them, and what it cannot undo.

use portcullis_vmm::config::{CpuConfig, CpuConfigOrPath};
use portcullis_vmm::log::{EndReason, Event};
use serde_json::{Value, json};

use crate::driver::Driven;
use crate::guest::{BASE, Guest, SCRATCH};
use crate::harness::{Ended, Setup, refused};

/// Where guests put what they read.
const AT: u32 = 0x800;
/// `IA32_MC0_CTL`. On any processor guests may write 0 or all ones; it is 0 at first, and KVM does not list it.
const CONTROL: u32 = 0x400;
/// `IA32_MC1_CTL`, which is like it.
const OTHER: u32 = 0x404;
const ONES: u32 = u32::MAX;

/// Bits of leaf 1, ECX: `cmpxchg16b`, which any KVM can hide; VMX, which no guest has; SSE3, which some KVMs show always.
const CX16: usize = 13;
const VMX: usize = 5;
const SSE3: usize = 0;

/// A bitmap of 32 bits with some of them, and `x` for the others.
fn bits(fixed: &[(usize, char)]) -> String {
    let digit = |bit| fixed.iter().find(|(at, _)| *at == bit).map_or('x', |(_, digit)| *digit);
    format!("0b{}", (0..32).rev().map(digit).collect::<String>())
}

fn leaf_with(leaf: u32, flags: u32, register: &str, bitmap: &str) -> Value {
    let modifiers = json!([{"register": register, "bitmap": bitmap}]);
    json!({"cpuid_modifiers": [
        {"leaf": format!("{leaf:#x}"), "subleaf": "0x0", "flags": flags, "modifiers": modifiers}
    ]})
}

fn leaf(leaf: u32, register: &str, bitmap: &str) -> Value {
    leaf_with(leaf, 0, register, bitmap)
}

fn msr(index: u32, bitmap: &str) -> Value {
    json!({"msr_modifiers": [{"addr": format!("{index:#x}"), "bitmap": bitmap}]})
}

/// All ones in a register, or all zeros.
fn whole(index: u32, digit: &str) -> Value {
    msr(index, &digit.repeat(64))
}

fn with(guest: &Guest, template: &Value) -> Setup {
    let mut setup = Setup::new(guest);
    let template: CpuConfig = serde_json::from_value(template.clone()).unwrap();
    setup.config.cpu_config = Some(CpuConfigOrPath::Template(template));
    setup
}

/// EAX to EDX of a leaf, as a guest with this template sees it.
fn seen(template: &Value, leaf: u32) -> [u32; 4] {
    let guest = Guest::new().cpuid(leaf, 0, AT).print_hex(AT, 16).reset();
    let ended = with(&guest, template).run();
    ended.expect_clean(EndReason::Reset);
    words(&ended.output)
}

/// Words of memory that were printed in hexadecimal.
fn words(text: &str) -> [u32; 4] {
    [0, 8, 16, 24].map(|at| u32::from_str_radix(&text[at..at + 8], 16).unwrap().swap_bytes())
}

/// Asserts that a VM with this template is refused, and that the message has these parts.
fn expect_refused(template: &Value, code: i32, parts: &[&str]) {
    let setup = with(&Guest::new().reset(), template);
    let (found, errors) = refused(&mut setup.command());
    assert_eq!(found, code, "{template}: {errors}");
    for part in parts {
        assert!(errors.contains(part), "{part:?} is not in {errors:?}");
    }
}

fn expect_accepted(template: &Value) {
    with(&Guest::new().reset(), template).run().expect_clean(EndReason::Reset);
}

/// Asserts that the guest's last instruction was the write of a register that it may not write.
fn expect_fault_at(ended: &Ended, until_write: &Guest) {
    assert_eq!(ended.end(), (EndReason::Error, Some("triple-fault")), "{ended:?}");
    let registers = ended.events.iter().find_map(|e| if let Event::Registers(r) = e { Some(r) } else { None }).unwrap();
    let len = until_write.elf().len() - Guest::new().elf().len();
    // `wrmsr` has two bytes.
    assert_eq!(registers.rip, BASE + len as u64 - 2, "{ended:?}");
}

#[test]
fn the_guest_sees_bits_as_the_template_says_and_the_others_as_they_are() {
    let usual = seen(&json!({}), 1);
    assert_eq!(usual[2] & (1 << CX16 | 1 << VMX), 1 << CX16);
    let without = seen(&leaf(1, "ecx", &bits(&[(CX16, '0')])), 1);
    assert_eq!(without, [usual[0], usual[1], usual[2] & !(1 << CX16), usual[3]]);
    // Set, it is what it is anyway.
    assert_eq!(seen(&leaf(1, "ecx", &bits(&[(CX16, '1')])), 1), usual);
    // The model is any number: Firecracker's example makes it a Haswell.
    let haswell = seen(&leaf(1, "eax", "0bxxxx000000000011xx00011011110010"), 1);
    assert_eq!((haswell[0] & 0x0fff_3fff, haswell[2]), (0x0003_06f2, usual[2]));
}

#[test]
fn what_the_vm_needs_is_put_in_after_the_template() {
    // The hypervisor's bit, and the APIC id.
    let usual = seen(&json!({}), 1);
    assert_eq!(seen(&leaf(1, "ecx", &bits(&[(31, '0')])), 1), usual);
    let id = "11111111".to_owned() + &"x".repeat(24);
    assert_eq!(seen(&leaf(1, "ebx", &id), 1), usual);
}

#[test]
fn what_guests_do_not_have_is_not_opened() {
    expect_refused(
        &leaf(1, "ecx", &bits(&[(VMX, '1')])),
        2,
        &["cpu-config", "0x20", "ecx", "leaf 0x1", "takes features"],
    );
    expect_accepted(&leaf(1, "ecx", &bits(&[(VMX, '0')])));
    // Performance counters.
    expect_refused(&leaf_with(0x8000_0001, 0, "ecx", &bits(&[(23, '1')])), 2, &["0x800000", "leaf 0x80000001"]);
    expect_accepted(&leaf_with(0x8000_0001, 0, "ecx", &bits(&[(23, '0')])));
    let highest = seen(&json!({}), 0)[0];
    let exactly = |number: u32| format!("0b{number:032b}");
    expect_refused(&leaf(0, "eax", &exactly(highest + 1)), 2, &["eax of CPUID leaf 0x0", "at most"]);
    assert_eq!(seen(&leaf(0, "eax", &exactly(highest - 1)), 0)[0], highest - 1);
    let vendor = seen(&json!({}), 0)[1];
    expect_refused(&leaf(0, "ebx", &exactly(vendor ^ 1)), 2, &["vendor", "ebx"]);
    expect_accepted(&leaf(0, "ebx", &exactly(vendor)));
}

#[test]
fn a_template_that_is_not_for_this_host_is_refused_by_name() {
    expect_refused(&leaf(0x1234, "eax", "0bx"), 2, &["leaf 0x1234, subleaf 0x0", "does not have"]);
    expect_refused(&leaf_with(1, 1, "eax", "0bx"), 2, &["leaf 0x1", "flags 1", "has 0"]);
    expect_accepted(&leaf_with(1, 0, "eax", "0bx"));
    expect_refused(&json!({"kvm_capabilities": ["3", "40000"]}), 3, &["capability 40000", "cpu-config"]);
    expect_accepted(&json!({"kvm_capabilities": ["3", "!56", "!40000"]}));
    expect_refused(&whole(0xc0ff_ee00, "x"), 2, &["register 0xc0ffee00", "does not have"]);
    // It takes 0 and all ones only.
    expect_refused(&msr(CONTROL, &("0".repeat(60) + "0110")), 2, &["register 0x400 to 0x6", "(it is 0x0)"]);
    expect_accepted(&whole(CONTROL, "1"));
}

#[test]
fn a_feature_is_hidden_or_the_template_is_refused() {
    let template = leaf(1, "ecx", &bits(&[(SSE3, '0')]));
    let guest = Guest::new().cpuid(1, 0, AT).print_hex(AT, 16).reset();
    let ended = with(&guest, &template).run();
    match ended.code() {
        Some(0) => assert_eq!(words(&ended.output)[2] & (1 << SSE3), 0),
        code => {
            assert_eq!((code, ended.end()), (Some(2), (EndReason::Error, Some("cpu-config"))), "{ended:?}");
            assert!(ended.errors.contains("bits 0x1 in ecx of CPUID leaf 0x1"), "{ended:?}");
            assert!(ended.errors.contains("shows to guests all the same"), "{ended:?}");
        }
    }
}

#[test]
fn a_register_that_the_template_sets_is_read_and_not_written() {
    let read = |guest: Guest, msr| guest.rdmsr(msr, AT).print_hex(AT, 8).print(" ");
    let until_write = read(read(Guest::new(), CONTROL).wrmsr(OTHER, ONES), OTHER).wrmsr(CONTROL, 0);
    let guest = read(until_write.clone().print("written "), CONTROL).reset();
    let ended = with(&guest, &whole(CONTROL, "1")).run();
    assert_eq!(ended.output, "ffffffffffffffff ffffffffffffffff ");
    expect_fault_at(&ended, &until_write);
    // Without a template, and with one that says nothing of it, it is the guest's.
    for template in [json!({}), whole(OTHER, "1")] {
        let guest = read(Guest::new().wrmsr(CONTROL, ONES), CONTROL).reset();
        let ended = with(&guest, &template).run();
        ended.expect_clean(EndReason::Reset);
        assert_eq!(ended.output, "ffffffffffffffff ");
    }
}

#[test]
fn registers_in_two_ranges_are_all_kept() {
    // Of the microcode: without a template, what a guest writes has no effect.
    const LEVEL: u32 = 0x8b;
    // `HWCR`, which is too far from the others for one range.
    const FAR: u32 = 0xc001_0015;
    let mut template = whole(CONTROL, "1");
    let more = [msr(LEVEL, &("0".repeat(62) + "11")), msr(FAR, "x")].map(|one| one["msr_modifiers"][0].clone());
    template["msr_modifiers"].as_array_mut().unwrap().extend(more);
    for kept in [CONTROL, LEVEL, FAR] {
        let until_write = Guest::new().wrmsr(OTHER, ONES).wrmsr(kept, 0);
        expect_fault_at(&with(&until_write.clone().print("written").reset(), &template).run(), &until_write);
    }
    let guest = Guest::new().wrmsr(LEVEL, 0).rdmsr(LEVEL, AT).print_hex(AT, 8).reset();
    with(&guest, &json!({})).run().expect_clean(EndReason::Reset);
    let ended = with(&Guest::new().rdmsr(LEVEL, AT).print_hex(AT, 8).reset(), &template).run();
    assert_eq!(ended.output, "0300000000000000");
}

#[test]
fn every_vcpu_has_the_template() {
    let at = 0x1_0000;
    let [control, scratch] = [CONTROL, SCRATCH].map(u32::to_le_bytes);
    // 16-bit code: mov ecx, CONTROL; rdmsr; mov [SCRATCH], al; hlt for ever.
    let mut other = vec![0x66, 0xb9];
    other.extend(control);
    other.extend([0x0f, 0x32, 0xa2, scratch[0], scratch[1], 0xf4, 0xeb, 0xfd]);
    let guest = Guest::new()
        .copy_low(at, &other)
        .store32(0xfee0_00f0, 0x1ff)
        .store32(0xfee0_0300, 0x000c_4500)
        .store32(0xfee0_0300, 0x000c_4610)
        .wait_for(SCRATCH, 0xff)
        .reset();
    let mut setup = with(&guest, &whole(CONTROL, "1"));
    setup.config = setup.config.with_vcpus(2);
    setup.run().expect_clean(EndReason::Reset);
}

#[test]
fn a_restored_guest_has_the_template_and_still_cannot_write_its_registers() {
    let show = |guest: Guest| guest.cpuid(1, 0, AT).rdmsr(CONTROL, AT + 16).print_hex(AT, 24).print(" ");
    let before = show(Guest::new()).print("ready").echo_until(b'x');
    let until_write = show(before).wrmsr(CONTROL, 0);
    let guest = until_write.clone().print("written").reset();
    let mut template = leaf(1, "ecx", &bits(&[(CX16, '0')]));
    template["msr_modifiers"] = whole(CONTROL, "1")["msr_modifiers"].clone();
    for (template, kept) in [(template, true), (json!({}), false)] {
        let mut vm = Driven::started(with(&guest, &template));
        vm.vmm.wait_for("ready");
        let text = vm.vmm.output_text();
        let end = text.find(" ready").unwrap();
        let shown = &text[end - 48..end];
        let path = vm.dir.join("snapshot");
        vm.ok("pause");
        vm.ok(&format!("save {}", path.display()));
        let mut copy = Driven::new(Setup::new(&Guest::new()));
        copy.ok(&format!("load {} resume", path.display()));
        copy.vmm.type_in("x");
        let ended = copy.vmm.wait();
        let hidden = words(shown)[2] & (1 << CX16) == 0;
        assert_eq!((hidden, &shown[32..] == "ffffffffffffffff"), (kept, kept));
        assert!(ended.output.contains(&format!("x{shown}")), "{shown} {}", ended.output);
        assert_eq!(ended.output.contains("written"), !kept, "{ended:?}");
        if kept {
            let fault = ended
                .events
                .iter()
                .any(|event| matches!(event, Event::End { error: Some(error), .. } if error == "triple-fault"));
            assert!(fault, "{ended:?}");
        }
    }
}

#[test]
fn a_template_in_a_file_of_its_own_is_the_same() {
    let mut setup = Setup::new(&Guest::new().cpuid(1, 0, AT).print_hex(AT, 16).reset());
    let path = setup.dir.path().join("template.json");
    std::fs::write(&path, leaf(1, "ecx", &bits(&[(CX16, '0')])).to_string()).unwrap();
    setup.config.cpu_config = Some(CpuConfigOrPath::Path(path));
    let ended = setup.run();
    ended.expect_clean(EndReason::Reset);
    assert_eq!(words(&ended.output)[2] & (1 << CX16), 0);
}
