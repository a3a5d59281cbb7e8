//! Every fuzz target over its seeds and over simple changes of them, the same ones in every run. `scripts/fuzz` tries
//! millions of others.

#[path = "../../fuzz/src/lib.rs"]
#[allow(dead_code, reason = "only the fuzzers themselves read folders of recordings")]
mod fuzz;

use std::collections::BTreeSet;
use std::path::Path;

use fuzz::appraisal::{APPRAISE_EDITED, CONTINUED, GENUINE_QUOTE, JUDGED_BEFORE, POLICY_SHIFT, SHIM, TRAILING};
use fuzz::recordings::Recordings;
use fuzz::{TARGETS, Target, memory};

/// Changed inputs that a target gets.
const CHANGED: usize = 300;

/// Numbers that look random and are the same in every run (xorshift, Marsaglia 2003).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(end.max(1)).unwrap()).unwrap()
    }
}

/// The seed with one to four bytes set, inserted or removed, or cut short; often with a value at the edge of its range.
fn changed(seed: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    const EDGES: [u8; 6] = [0, 1, 0x7F, 0x80, 0xFE, 0xFF];
    let mut bytes = seed.to_vec();
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(bytes.len());
        let byte = match numbers.below(2) {
            0 => EDGES[numbers.below(EDGES.len())],
            _ => u8::try_from(numbers.below(256)).unwrap(),
        };
        match numbers.below(8) {
            0 => bytes.insert(at, byte),
            1 if !bytes.is_empty() => drop(bytes.remove(at)),
            2 => bytes.truncate(at),
            _ if !bytes.is_empty() => bytes[at] = byte,
            _ => {}
        }
    }
    bytes
}

fn run(target: &Target) {
    let seeds = target.short_seeds(&Recordings::of_the_lab());
    let accepted = seeds.iter().filter(|seed| target.run(seed)).count();
    assert!(accepted > 0, "{}: none of {} genuine inputs is accepted", target.name, seeds.len());
    let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
    let mut refused = 0;
    for number in 0..CHANGED {
        let bytes = changed(&seeds[number % seeds.len()], &mut numbers);
        refused += usize::from(!target.run(&bytes));
    }
    assert!(refused > 0, "{}: whatever is changed, it is accepted", target.name);
}

#[test]
fn parsers_hold_for_seeds_and_simple_changes() {
    for target in TARGETS.iter().filter(|target| !target.name.starts_with("appraise_")) {
        run(target);
    }
}

#[test]
fn the_appraisal_holds_for_seeds_and_simple_changes() {
    for target in TARGETS.iter().filter(|target| target.name.starts_with("appraise_")) {
        run(target);
    }
}

#[test]
fn genuine_boots_are_trusted_in_every_way_that_they_can_be_shown() {
    let ima = 1 << POLICY_SHIFT;
    for flags in [0, ima, ima | JUDGED_BEFORE, ima | JUDGED_BEFORE | CONTINUED, ima | GENUINE_QUOTE] {
        for boot in [0, SHIM] {
            assert!(APPRAISE_EDITED.run(&[flags | boot]), "flags {flags:#x}, boot {boot}");
            let trailing = [flags | boot | TRAILING, 1, 0x55];
            assert!(!APPRAISE_EDITED.run(&trailing), "flags {flags:#x}, boot {boot}, with a byte behind its log");
        }
    }
    assert!(!APPRAISE_EDITED.run(&[ima | CONTINUED]), "half a list, and nobody judged the other half");
}

#[test]
fn every_target_is_one_that_scripts_fuzz_runs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let files: BTreeSet<String> = std::fs::read_dir(folder.join("fuzz_targets"))
        .unwrap()
        .map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let names: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(files, names);
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    for name in names {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name} is not built");
        let constant = format!("::{}.run(", name.to_uppercase());
        let file = std::fs::read_to_string(folder.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(file.contains(&constant), "{name} runs another target");
    }
}

#[test]
fn memory_in_proportion_to_the_input_is_allowed() {
    assert_eq!(memory::in_proportion(1 << 20, || vec![1_u8; 8 << 20].len()), 8 << 20);
}

#[test]
#[should_panic(expected = "an input of 10 bytes took")]
fn memory_that_an_input_is_not_worth_is_found_though_it_was_never_written() {
    memory::in_proportion(10, || Vec::<u8>::with_capacity(1 << 30).capacity());
}
