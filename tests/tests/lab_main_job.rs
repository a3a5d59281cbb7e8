//! The main job, end to end: firmware, TPM, verifier, agent, KVM and a tenant's Linux, with the attacks carried out.

use portcullis_tests::narrator::Narrator;
use portcullis_tests::scenario;

#[test]
fn lab_main_job() {
    let report = scenario::run(&Narrator::new()).unwrap_or_else(|trouble| panic!("the run broke off: {trouble}"));
    let faults = report.faults();
    assert!(faults.is_empty(), "{}\nthe whole report: {report:#?}", faults.join("\n"));
}
