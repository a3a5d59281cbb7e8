//! Every fuzz target over its seeds and over simple changes of them, the same ones in every run. `scripts/fuzz` tries
//! millions of others.

#[path = "../../fuzz/src/attest/mod.rs"]
mod fuzz;
#[path = "../../fuzz/src/memory.rs"]
mod memory;
#[path = "../../fuzz/src/recordings.rs"]
#[allow(dead_code, reason = "only the fuzzers themselves read folders of recordings")]
mod recordings;
#[path = "../../fuzz/src/target.rs"]
mod target;

use fuzz::TARGETS;
use fuzz::appraisal::{APPRAISE_EDITED, CONTINUED, GENUINE_QUOTE, JUDGED_BEFORE, POLICY_SHIFT, SHIM, TRAILING};
use recordings::Recordings;
use target::check_files;

#[test]
fn parsers_hold_for_seeds_and_simple_changes() {
    for target in TARGETS.iter().filter(|target| !target.name.starts_with("appraise_")) {
        target.run_simple_changes(&Recordings::of_the_lab());
    }
}

#[test]
fn the_appraisal_holds_for_seeds_and_simple_changes() {
    for target in TARGETS.iter().filter(|target| target.name.starts_with("appraise_")) {
        target.run_simple_changes(&Recordings::of_the_lab());
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
    check_files("attest", TARGETS);
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
