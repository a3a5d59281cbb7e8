//! Every fuzz target over its seeds and over simple changes of them, the same ones in every run. `scripts/fuzz` tries
//! millions of others.

#[path = "../../fuzz/src/vmm/mod.rs"]
mod fuzz;
#[path = "../../fuzz/src/memory.rs"]
mod memory;
#[path = "../../fuzz/src/recordings.rs"]
#[allow(dead_code, reason = "a VM's process reads no recordings")]
mod recordings;
#[path = "../../fuzz/src/target.rs"]
mod target;

use fuzz::TARGETS;
use recordings::Recordings;
use target::check_files;

#[test]
fn every_target_holds_for_seeds_and_simple_changes() {
    for target in TARGETS {
        target.run_simple_changes(&Recordings::default());
    }
}

#[test]
fn every_target_is_one_that_scripts_fuzz_runs() {
    check_files("vmm", TARGETS);
}
