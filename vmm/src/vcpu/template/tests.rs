use std::collections::BTreeSet;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::bits::{Bitmap, Number};
use super::config::{CpuConfig, KvmCapability, Register};
use super::{TemplateError, cpuid, msrs};

fn parse(template: &Value) -> Result<CpuConfig, String> {
    let template: CpuConfig = serde_json::from_value(template.clone()).map_err(|error| error.to_string())?;
    template.check().map_err(|error| error.to_string())?;
    Ok(template)
}

/// A template with one change of a leaf.
fn change(leaf: &str, register: &str, bitmap: &str) -> Value {
    json!({"cpuid_modifiers": [{"leaf": leaf, "subleaf": "0x0", "flags": 0,
        "modifiers": [{"register": register, "bitmap": bitmap}]}]})
}

fn msr(addr: &str, bitmap: &str) -> Value {
    json!({"msr_modifiers": [{"addr": addr, "bitmap": bitmap}]})
}

#[test]
fn firecrackers_example_is_read() {
    let mut template = change("0x1", "eax", "0bxxxx000000000011xx00011011110010");
    template["kvm_capabilities"] = json!(["171", "!56"]);
    template["msr_modifiers"] = msr("0x10a", "0b1_0x")["msr_modifiers"].clone();
    let template = parse(&template).unwrap();
    assert_eq!(template.kvm_capabilities, [KvmCapability::Needed(171), KvmCapability::NotNeeded(56)]);
    assert_eq!(template.cpuid_modifiers[0].modifiers[0].bitmap.apply(u32::MAX), 0xf003_c6f2);
    assert_eq!(template.cpuid_modifiers[0].modifiers[0].bitmap.apply(0), 0x0003_06f2);
    // Bits that are not there stay.
    assert_eq!(template.msr_modifiers[0].bitmap.apply(0xff03), 0xff05);
    assert_eq!(template.msrs(), [0x10a]);
    assert_eq!(parse(&json!({})).unwrap(), CpuConfig::default());
    let binary = parse(&change("0b11", "edx", "x")).unwrap();
    assert_eq!(binary.cpuid_modifiers[0].leaf, Number(3));
}

#[test]
fn what_is_wrong_is_named() {
    let long = "x".repeat(65);
    for (template, part) in [
        (json!({"cpu": 1}), "cpu"),
        (json!({"vcpu_features": []}), "ARM"),
        (json!({"reg_modifiers": [{"addr": "0x1", "bitmap": "0b1"}]}), "ARM"),
        (json!({"kvm_capabilities": [171]}), "string"),
        (json!({"kvm_capabilities": ["+1"]}), "\"+1\" is no number of a KVM capability"),
        (json!({"kvm_capabilities": ["!!1"]}), "\"!!1\""),
        (json!({"kvm_capabilities": [""]}), "capability"),
        (json!({"kvm_capabilities": ["4294967296"]}), "4294967296"),
        (change("1", "eax", "0b1"), "\"1\" is no number of 32 bits that begins with 0x or 0b"),
        (change("0x", "eax", "0b1"), "begins with"),
        (change("0x+1", "eax", "0b1"), "begins with"),
        (change("0x100000000", "eax", "0b1"), "begins with"),
        (change("0b2", "eax", "0b1"), "begins with"),
        (change("0x1", "rax", "0b1"), "rax"),
        (change("0x1", "eax", "0b12"), "'2' is none of 0, 1, x and _"),
        (change("0x1", "eax", "0bX"), "'X'"),
        (change("0x1", "eax", "0b"), "the bitmap \"0b\": it has no bits"),
        (change("0x1", "eax", "_"), "no bits"),
        (change("0x1", "eax", &long[..33]), "more than 32 bits"),
        (msr("0x10a", &long), "more than 64 bits"),
        (msr("0x10a", &"\u{20ac}".repeat(100)), "'\u{20ac}'"),
        (json!({"msr_modifiers": [["0x10a", "0b1"]]}), "object"),
        (json!({"msr_modifiers": [{"addr": "0x10a", "bitmap": "0b1", "size": 1}]}), "size"),
        (json!({"cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "modifiers": []}]}), "flags"),
        (msr("0xc0000080", "0b1"), "0xc0000080 (EFER, SYSCALL)"),
        (msr("0x8ff", "0b1"), "x2APIC"),
        (msr("0xffffffff", "0b1"), "0xffffffff"),
    ] {
        let error = parse(&template).unwrap_err();
        assert!(error.contains(part), "{template}: {error}");
    }
    // Their neighbours are not wrong.
    for template in [
        change("0xffffffff", "eax", &long[..32]),
        change("0x1", "eax", "0b1x_0"),
        msr("0x10a", &long[..64]),
        msr("0x900", "0b1"),
        msr("0xc0000085", "0b1"),
        msr("0xffffffbf", "0b1"),
        json!({"kvm_capabilities": ["4294967295", "!0"]}),
    ] {
        parse(&template).unwrap();
    }
}

#[test]
fn lists_are_bounded_and_nothing_is_said_twice() {
    let list = |name: &str, entry: &dyn Fn(usize) -> Value, count: usize| {
        let entries: Vec<_> = (0..count).map(entry).collect();
        parse(&json!({ name: entries }))
    };
    let one = |name: &str, of: Value| of[name][0].clone();
    let leaf = |i: usize| one("cpuid_modifiers", change(&format!("{i:#x}"), "eax", "x"));
    let register = |i: usize| one("msr_modifiers", msr(&format!("{:#x}", 0x1000 + i), "x"));
    for (name, entry, most) in [
        ("kvm_capabilities", &(|i: usize| json!(i.to_string())) as &dyn Fn(usize) -> Value, 64),
        ("cpuid_modifiers", &leaf, 256),
        ("msr_modifiers", &register, 256),
    ] {
        assert!(list(name, entry, most).is_ok(), "{name}");
        assert!(list(name, entry, most + 1).unwrap_err().contains("entries"), "{name}");
    }
    assert!(list("msr_modifiers", &|_| register(5), 2).unwrap_err().contains("0x1005 twice"));
    assert!(list("cpuid_modifiers", &|_| leaf(5), 2).unwrap_err().contains("eax of leaf 0x5, subleaf 0x0 twice"));
    // In ranges that are too far from each other there are 16 at most.
    let scattered = |i: usize| one("msr_modifiers", msr(&format!("{:#x}", 0x10_0000 * (i + 1)), "x"));
    assert!(list("msr_modifiers", &scattered, 16).is_ok());
    assert!(list("msr_modifiers", &scattered, 17).unwrap_err().contains("scattered"));
}

fn table(entries: &[(u32, u32, [u32; 4])]) -> CpuId {
    let entry = |&(function, index, [eax, ebx, ecx, edx]): &(u32, u32, [u32; 4])| kvm_cpuid_entry2 {
        function,
        index,
        flags: u32::from(function == 0xd),
        eax,
        ebx,
        ecx,
        edx,
        ..kvm_cpuid_entry2::default()
    };
    CpuId::from_entries(&entries.iter().map(entry).collect::<Vec<_>>()).unwrap()
}

fn register() -> impl Strategy<Value = Register> {
    prop_oneof![Just(Register::Eax), Just(Register::Ebx), Just(Register::Ecx), Just(Register::Edx)]
}

fn value(entry: &kvm_cpuid_entry2, register: Register) -> u32 {
    match register {
        Register::Eax => entry.eax,
        Register::Ebx => entry.ebx,
        Register::Ecx => entry.ecx,
        Register::Edx => entry.edx,
    }
}

/// The text of a bitmap that makes the bits of `fixed` those of `ones`.
fn text(bits: u32, fixed: u64, ones: u64) -> String {
    let digit = |bit| match ((fixed >> bit) & 1, (ones >> bit) & 1) {
        (0, _) => 'x',
        (_, 0) => '0',
        _ => '1',
    };
    (0..bits).rev().map(digit).collect()
}

#[test]
fn sizes_of_the_extended_state_are_not_raised() {
    let supported = table(&[(0xd, 0, [7, 0x340, 0x340, 0]), (0xd, 2, [0x100, 0x240, 0, 0])]);
    let apply = |subleaf: u32, register: &str, number: u32| {
        let mut template = change("0xd", register, &format!("0b{number:032b}"));
        template["cpuid_modifiers"][0]["subleaf"] = json!(format!("{subleaf:#x}"));
        template["cpuid_modifiers"][0]["flags"] = json!(1);
        parse(&template).unwrap().apply(&supported, &supported)
    };
    for (subleaf, register, number) in
        [(0, "ebx", 0x23f), (0, "ecx", 0x23f), (0, "eax", 3), (2, "eax", 0xff), (2, "ebx", 0x23f), (2, "ecx", 0)]
    {
        apply(subleaf, register, number).unwrap();
    }
    for (subleaf, register, number) in [(0, "ebx", 0x341), (0, "ecx", 0x341), (2, "eax", 0x101), (2, "ebx", 0x241)] {
        let error = apply(subleaf, register, number).unwrap_err();
        assert!(matches!(error, TemplateError::TooMuch { most, found, .. } if found == most + 1), "{error}");
    }
    for (subleaf, register, number) in [(0, "eax", 0xf), (2, "ecx", 1)] {
        let error = apply(subleaf, register, number).unwrap_err();
        assert!(matches!(error, TemplateError::NotSupported { .. }), "{error}");
    }
}

#[test]
fn what_kvm_shows_all_the_same_is_named() {
    let given = table(&[(1, 0, [1, 0, 4, 0])]);
    let hides = |register, bitmap: &str, shown: [u32; 4]| {
        parse(&change("0x1", register, bitmap)).unwrap().check_shown(&given, &table(&[(1, 0, shown)]))
    };
    hides("ecx", "0b0xx", [1, 0, 4, 0]).unwrap();
    hides("ecx", "0b0xx", [1, 0, 3, u32::MAX]).unwrap();
    // Bits of a number are no features.
    hides("eax", "0b0x", [3, 0, 4, 0]).unwrap();
    for (register, shown, found) in [("ecx", [1, 0, 6, 0], 2), ("edx", [1, 0, 4, 2], 2)] {
        match hides(register, "0b0x", shown) {
            Err(TemplateError::Shown { bits, leaf: 1, .. }) => assert_eq!(bits, found),
            other => panic!("{other:?}"),
        }
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(0[bx])?[01x_f+ ]{0,70}|.{0,80}") {
        let text = json!(text);
        let _ = serde_json::from_value::<Bitmap<u32>>(text.clone());
        let _ = serde_json::from_value::<Number>(text.clone());
        let _ = serde_json::from_value::<KvmCapability>(text);
    }

    #[test]
    fn a_bitmap_does_to_each_bit_what_its_digit_says(fixed: u64, ones: u64, before: u64, len in 1..=64u32) {
        let digits = text(64, fixed, ones);
        let digits = &digits[64 - len as usize..];
        let bitmap: Bitmap<u64> = serde_json::from_value(json!(format!("0b{digits}"))).unwrap();
        let after = bitmap.apply(before);
        for bit in 0..64 {
            let (old, new) = ((before >> bit) & 1, (after >> bit) & 1);
            let wanted = if bit < len && (fixed >> bit) & 1 == 1 { (ones >> bit) & 1 } else { old };
            prop_assert_eq!(new, wanted, "bit {}", bit);
        }
        let again: Bitmap<u64> = serde_json::from_value(serde_json::to_value(bitmap).unwrap()).unwrap();
        prop_assert_eq!(again, bitmap);
    }

    #[test]
    fn a_template_is_the_same_when_it_is_written_and_read(
        capabilities in prop::collection::vec((any::<bool>(), any::<u32>()), 0..4),
        leaves in prop::collection::btree_map((any::<u32>(), any::<u32>()), (any::<u32>(), any::<u32>()), 0..4),
        registers in prop::collection::btree_set(0x1000..0x2000u32, 0..4),
        bits: u64,
    ) {
        let capability = |(needed, number): &(bool, u32)| format!("{}{number}", if *needed { "" } else { "!" });
        let leaf = |((leaf, subleaf), (fixed, ones)): (&(u32, u32), &(u32, u32))| json!({
            "leaf": format!("{leaf:#x}"), "subleaf": format!("0b{subleaf:b}"), "flags": 1,
            "modifiers": [{"register": "ecx", "bitmap": text(32, u64::from(*fixed), u64::from(*ones))}],
        });
        let register = |msr: &u32| json!({"addr": format!("{msr:#x}"), "bitmap": text(64, bits, !bits)});
        let template = parse(&json!({
            "kvm_capabilities": capabilities.iter().map(capability).collect::<Vec<_>>(),
            "cpuid_modifiers": leaves.iter().map(leaf).collect::<Vec<_>>(),
            "msr_modifiers": registers.iter().map(register).collect::<Vec<_>>(),
        })).unwrap();
        prop_assert_eq!(parse(&serde_json::to_value(&template).unwrap()).unwrap(), template);
    }

    #[test]
    fn no_feature_is_added(
        supported: [u32; 4], hidden: [u32; 4], leaf in prop_oneof![Just(1u32), Just(7), Just(0x4000_0001), Just(0x8000_0001)],
        register in register(), fixed: u32, ones: u32,
    ) {
        let usual = [0, 1, 2, 3].map(|at: usize| supported[at] & !hidden[at]);
        let (supported, usual) = (table(&[(leaf, 0, supported)]), table(&[(leaf, 0, usual)]));
        let template = change(&format!("{leaf:#x}"), &register.to_string(), &text(32, fixed.into(), ones.into()));
        let template = parse(&template).unwrap();
        let has = value(&usual.as_slice()[0], register);
        let before = value(&supported.as_slice()[0], register);
        match cpuid::apply(&template.cpuid_modifiers, &supported, &usual) {
            Ok(after) => {
                let new = value(&after.as_slice()[0], register);
                prop_assert_eq!(new, (before & !fixed) | (ones & fixed));
                let number = leaf == 1 && matches!(register, Register::Eax | Register::Ebx);
                let topology = (1 << 28) | (1 << 1);
                prop_assert!(number || fixed & ones & !has & !topology == 0);
            }
            Err(TemplateError::NotSupported { bits, .. }) => {
                prop_assert!(bits != 0 && bits & !(fixed & ones & !has) == 0);
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn the_filter_denies_these_registers_and_no_other(
        registers in prop::collection::btree_set(
            prop_oneof![0..0x300u32, 0x2f00..0x3100u32, 0xc000_0000..0xc002_0000u32, 0..0xffff_ffc0u32], 0..12),
        others in prop::collection::vec(any::<u32>(), 16),
    ) {
        let list: Vec<_> = registers.iter().rev().copied().collect();
        let denied = msrs::denied(&list);
        prop_assert!(registers.iter().all(|msr| denied(*msr)));
        let beside: BTreeSet<u32> = registers.iter().flat_map(|msr| [msr.wrapping_sub(1), msr.wrapping_add(1)]).collect();
        for msr in beside.into_iter().chain(others) {
            prop_assert_eq!(denied(msr), registers.contains(&msr), "{:#x}", msr);
        }
    }
}
