//! The judgement on hosts whose TPM is software. Each case is a genuine host but for the one thing that its name says;
//! its signature is good, its logs lead to its PCRs unless that is the case.
//!
//! Only by what the library offers to anyone: `cli/tests/appraisal.rs` asks the program of the same cases.

mod banks;
mod boot;
mod command_line;
mod editions;
pub(super) mod host;
mod logs;
mod policy;
mod program_rules;
mod programs;
mod round_the_policy;
mod secure_boot;
mod shim;

use host::Host;
use proptest::prelude::*;

use crate::key::EnrolledAk;
use crate::reason::ReasonCode as Code;

#[test]
fn a_good_host_is_trusted() {
    let host = Host::good();
    let appraisal = host.appraise().unwrap();
    assert_eq!(appraisal.secure_boot(), Some(true));
    assert_eq!(appraisal.command_line(), Some("/vmlinuz console=ttyS0 quiet"));
    assert_eq!(appraisal.reference().name, "good");
    assert_eq!(appraisal.policy_name(), "test");
    assert_eq!(appraisal.ima_entries(), 3);
    assert_eq!(appraisal.static_pcrs().len(), 14);
    assert_eq!(appraisal.bank_caveats(), []);
    let boot = appraisal.boot();
    assert_eq!((boot.ek, boot.reset_count, boot.restart_count), (host.ak.ek().map(hex::encode), 7, 0));
    appraisal.continues(&appraisal.judged()).expect_err("its list was not compared with an earlier one");
}

#[test]
fn the_verdict_is_written_as_an_attestation_result() {
    use crate::result::{AttestationResult, ResultClaims, ResultContext};
    let appraisal = Host::good().appraise().unwrap();
    let context = ResultContext { verifier: "verifier", host: "host-1", issued_at: 1_000, expires_at: 1_300 };
    let result = AttestationResult::new(&appraisal, &context);
    let json = serde_json::to_value(&result).unwrap();
    assert_eq!(json["eat_profile"], "tag:github.com,2023:veraison/ear");
    assert_eq!((&json["iat"], &json["exp"], &json["iss"]), (&1_000.into(), &1_300.into(), &"verifier".into()));
    let submodule = &json["submods"]["host-1"];
    assert_eq!(submodule["ear.status"], "affirming");
    assert_eq!(submodule["ear.trustworthiness-vector"]["executables"], 2);
    assert_eq!(submodule["ear.appraisal-policy-id"], "test");
    assert_eq!(submodule["portcullis.boot"]["reset_count"], 7);
    assert_eq!(submodule["portcullis.tls-spki-sha256"], "03".repeat(32));
    assert_eq!(serde_json::from_value::<ResultClaims>(json).unwrap(), *result);
}

/// An attestation key without an endorsement key: what it signed is good, but nobody said in which TPM it lives.
#[test]
fn the_verdict_on_a_bare_attestation_key_says_nothing_of_its_tpm() {
    use crate::result::{AttestationResult, ResultContext};
    let host = Host::good();
    let context = ResultContext { verifier: "verifier", host: "host", issued_at: 1_000, expires_at: 1_300 };
    let vector = |ak: &EnrolledAk| {
        let appraisal = host.appraise_by(ak, &host.evidence_of(host.pcrs()), None).unwrap();
        let result = AttestationResult::new(&appraisal, &context);
        let submodule = &result.submods["host"];
        assert_eq!(submodule.boot.ek.is_some(), submodule.trustworthiness_vector.instance_identity.is_some());
        let vector = submodule.trustworthiness_vector;
        (vector.instance_identity, vector.configuration, vector.executables, vector.hardware)
    };
    let affirmed = (Some(2), Some(2), Some(2), Some(2));
    assert_eq!(vector(&host.ak), affirmed);
    let unknown = (None, Some(2), Some(2), None);
    let bare = EnrolledAk::without_parent(&host.ak_public()).unwrap();
    assert_eq!(vector(&bare), unknown, "an endorsement key that nobody named");
    let json = serde_json::to_value(AttestationResult::new(&host.appraise().unwrap(), &context)).unwrap();
    assert_eq!(json["submods"]["host"]["ear.trustworthiness-vector"]["hardware"], 2);
}

#[test]
fn n75_an_empty_policy_trusts_nothing() {
    let mut host = Host::good();
    for text in [
        "",
        "schema = \"portcullis/policy/1\"\nname = \"x\"\n",
        "schema = \"portcullis/policy/1\"\nname = \"x\"\nbank = \"sha256\"\n",
        "schema = \"portcullis/policy/1\"\nname = \"x\"\nreferences = [\"good\"]\n",
    ] {
        host.policy = crate::appraise::Policy::from_toml(text).unwrap();
        assert_eq!(host.codes(), [Code::PolicyEmpty], "{text}");
    }
    assert!(crate::appraise::Policy::from_toml(&" ".repeat(crate::appraise::MAX_POLICY + 1)).is_err());
    for text in [
        "name = \"x\"\n",
        "schema = \"portcullis/policy/2\"\nname = \"x\"\n",
        "schema = \"portcullis/policy/1\"\nname = \"x\"\nbank = \"sha1\"\n",
        "schema = \"portcullis/policy/1\"\nname = \"x\"\nsecureboot = true\n",
        "schema = \"portcullis/policy/1\"\nname = \"x\"\nsecure_boot = \"yes\"\n",
    ] {
        assert!(crate::appraise::Policy::from_toml(text).is_err(), "{text}");
    }
}

#[test]
fn reference_values_that_are_not_there_match_nothing() {
    let mut host = Host::good();
    host.policy.references = vec!["other".to_owned()];
    assert_eq!(host.codes(), [Code::ReferenceMissing]);
    // A policy may name several: one that matches is enough.
    host.policy.references.push("good".to_owned());
    host.appraise().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever a host's firmware may have logged, with PCRs to match: the judgement ends in a verdict, and a good one only
    /// for a boot that measured exactly what the reference values accept.
    #[test]
    fn no_log_is_trusted_that_leads_elsewhere(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        // Damage that keeps the form reaches further than damage anywhere.
        only_events in any::<bool>(),
    ) {
        let mut host = Host::good();
        let good = host.pcrs();
        if only_events {
            for (at, value) in &changes {
                let event = at.index(host.log.events.len());
                let bytes = &mut host.log.events[event];
                let last = bytes.len() - 1;
                bytes[last] = *value;
            }
        } else {
            let mut bytes = host.log.bytes();
            for (at, value) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            host.raw_log = Some(bytes);
        }
        host.boot_aggregate(10);
        match host.appraise() {
            Ok(appraisal) => prop_assert_eq!(
                appraisal.static_pcrs(),
                good[&crate::key::Bank::Sha256]
                    .iter()
                    .filter(|(pcr, _)| crate::appraise::STATIC_PCRS.contains(pcr))
                    .map(|(pcr, value)| (*pcr, value.clone()))
                    .collect()
            ),
            Err(reasons) => {
                prop_assert!(!reasons.is_empty() && reasons.len() <= crate::appraise::MAX_REASONS);
                prop_assert!(reasons.iter().all(|reason| !reason.text.is_empty()));
            }
        }
    }

    #[test]
    fn no_list_of_programs_makes_the_judgement_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut host = Host::good();
        for (at, value) in changes {
            let entry = &mut host.ima.entries[1];
            let at = at.index(entry.len());
            entry[at] = value;
        }
        let unchanged = host.ima.entries[1] == Host::good().ima.entries[1];
        prop_assert_eq!(host.appraise().is_ok(), unchanged);
    }
}
