//! The whole judgement over boots that lab hosts really made: their firmware logs, IMA lists and PCR values, as recorded.
//!
//! The recorded quotes are of tpm2-tools and not bound as ours are; so a software TPM signs the recorded PCR values.

mod software_tpm;

use std::collections::BTreeMap;

use portcullis_attest::appraise::{Appraisal, BankCaveat, Context, Policy, QUOTED_PCRS, STATIC_PCRS, appraise};
use portcullis_attest::eventlog::{CertificateCache, EventLog};
use portcullis_attest::evidence::{Evidence, PcrValues};
use portcullis_attest::ima::{ExtendRule, ImaList};
use portcullis_attest::key::Bank;
use portcullis_attest::quote::VerifiedQuote;
use portcullis_attest::reason::{Denial, ReasonCode};
use portcullis_attest::reference::{ReferenceBuilder, ReferenceValues};
use portcullis_firmware_fixtures::recorded::{self, RecordedBoot};
use serde_json::Value;
use software_tpm::{SoftTpm, binding};

/// All PCR values of a recording.
fn pcrs(boot: &RecordedBoot) -> PcrValues {
    let json: BTreeMap<Bank, BTreeMap<String, String>> = serde_json::from_str(boot.pcrs_json).unwrap();
    let bank = |(bank, pcrs): (Bank, BTreeMap<String, String>)| {
        (bank, pcrs.into_iter().map(|(pcr, value)| (pcr.parse().unwrap(), hex::decode(value).unwrap())).collect())
    };
    json.into_iter().map(bank).collect()
}

/// The PCRs that agents quote, of every active bank.
fn quoted(boot: &RecordedBoot) -> PcrValues {
    let mut pcrs = pcrs(boot);
    for values in pcrs.values_mut() {
        values.retain(|pcr, _| QUOTED_PCRS.contains(pcr));
    }
    pcrs
}

/// Reference values: the boot chain as the good host's firmware measured it, the programs as its image was built.
fn reference() -> ReferenceValues {
    let boot = recorded::SECURE_BOOT;
    let log = EventLog::parse(boot.event_log).unwrap();
    let manifest: Value = serde_json::from_str(boot.manifest_json).unwrap();
    let mut builder = ReferenceBuilder::new("lab", "recorded");
    builder.recorded(&log, &[Bank::Sha256], &STATIC_PCRS);
    for (path, digests) in manifest["executables"].as_object().unwrap() {
        for digest in digests.as_array().unwrap() {
            builder.ima(path, &hex::decode(digest.as_str().unwrap()).unwrap().try_into().unwrap());
        }
    }
    builder.build().unwrap()
}

fn judge(boot: &RecordedBoot) -> Result<Appraisal, Denial> {
    let tpm = SoftTpm::new();
    let quote = tpm.evidence(&binding(), &quoted(boot)).quotes;
    let evidence = Evidence::new(binding(), quote, boot.event_log.to_vec(), boot.ima.to_vec());
    let policy = "schema = \"portcullis/policy/1\"\nname = \"lab\"\nbank = \"sha256\"\nsecure_boot = true\nima = true\n\
                  references = [\"lab\"]\nhosts = [\"*\"]\nunsigned_references = true\n";
    let context = Context {
        references: &[reference()],
        policy: &Policy::from_toml(policy).unwrap(),
        certificates: &CertificateCache::new(),
        previous: None,
        now: 0,
        abandoned: None,
    };
    appraise(VerifiedQuote::verify(&evidence, &tpm.enrolled().unwrap(), &binding())?, &evidence, &context)
}

/// The command line that an image's build gave its kernel.
fn command_line(boot: &RecordedBoot) -> String {
    let manifest: Value = serde_json::from_str(boot.manifest_json).unwrap();
    manifest["kernel_command_line"].as_str().unwrap().to_owned()
}

#[test]
fn recorded_logs_lead_to_the_recorded_pcrs() {
    for boot in &recorded::ALL {
        let log = EventLog::parse(boot.event_log).unwrap();
        let pcrs = pcrs(boot);
        assert!(log.trailing().is_empty());
        assert_eq!(log.banks(), [Bank::Sha1, Bank::Sha256, Bank::Sha384], "{}", boot.name);
        for bank in log.banks() {
            for (pcr, value) in log.replay(bank) {
                assert_eq!(hex::encode(&pcrs[&bank][&pcr]), hex::encode(value), "{}: {bank} PCR {pcr}", boot.name);
            }
        }
        let ima = ImaList::parse(boot.ima).unwrap();
        assert!(ima.entries().all(|entry| entry.template_digest_holds()));
        for (bank, rule) in [
            (Bank::Sha1, ExtendRule::Digest),
            (Bank::Sha256, ExtendRule::Digest),
            // The kernel has no SHA-384 at hand when IMA starts.
            (Bank::Sha384, ExtendRule::PaddedSha1),
        ] {
            let position = ima.position_of(bank, rule, &pcrs[&bank][&10]);
            assert!(position.is_some_and(|entries| entries > 1), "{}: {bank}", boot.name);
        }
    }
}

#[test]
fn the_good_host_is_trusted() {
    let appraisal = judge(&recorded::SECURE_BOOT).unwrap_or_else(|reasons| panic!("{reasons:#?}"));
    assert_eq!(appraisal.secure_boot(), Some(true));
    assert_eq!(appraisal.command_line(), Some(command_line(&recorded::SECURE_BOOT).as_str()));
    assert!(appraisal.ima_entries() > 10);
    // Its kernel has no SHA-384 at hand when IMA starts (N87).
    assert_eq!(appraisal.bank_caveats(), [(Bank::Sha384, BankCaveat::PaddedSha1)]);
}

#[test]
fn the_edited_command_line_is_the_first_thing_said() {
    let reasons = judge(&recorded::TAMPERED).unwrap_err();
    let first = &reasons[0];
    assert_eq!(first.code, ReasonCode::EventlogCommandLine, "{reasons:#?}");
    assert_eq!((first.pcr, first.event.as_deref()), (Some(8), Some("kernel command line")));
    assert_eq!(first.expected, Some(command_line(&recorded::SECURE_BOOT)));
    assert_eq!(first.found, Some(command_line(&recorded::TAMPERED)));
    // Beside it the command that gave it and the file that it stands in, and nothing else.
    let codes: Vec<_> = reasons.iter().map(|reason| reason.code).collect();
    assert_eq!(
        codes,
        [ReasonCode::EventlogCommandLine, ReasonCode::EventlogGrubCommand, ReasonCode::EventlogBootFile],
        "{reasons:#?}"
    );
}

#[test]
fn secure_boot_off_is_the_first_thing_said() {
    for boot in [recorded::SECURE_BOOT_OFF, recorded::DIRECT] {
        let reasons = judge(&boot).unwrap_err();
        let first = &reasons[0];
        assert_eq!(first.code, ReasonCode::SecureBootDisabled, "{}: {reasons:#?}", boot.name);
        assert_eq!((first.pcr, first.event.as_deref()), (Some(7), Some("Secure Boot off")));
        assert_eq!((first.expected.as_deref(), first.found.as_deref()), (Some("on"), Some("off")));
        assert!(reasons.iter().skip(1).all(|reason| reason.code != ReasonCode::SecureBootDisabled));
    }
}

#[test]
fn reasons_name_the_keys_that_are_missing() {
    // One host has lost its platform key, the other has firmware without any.
    for (boot, words) in [
        (recorded::SECURE_BOOT_OFF, "Secure Boot platform key (PK)"),
        (recorded::DIRECT, "Secure Boot allowed signers (db)"),
    ] {
        let reasons = judge(&boot).unwrap_err();
        let reason = reasons.iter().find(|reason| reason.event.as_deref() == Some(words));
        let reason = reason.unwrap_or_else(|| panic!("{}: {reasons:#?}", boot.name));
        assert_eq!(reason.code, ReasonCode::EventlogEventMismatch);
        assert!(reason.found.as_deref().unwrap().ends_with("(empty)"), "{reason:?}");
        if words.contains("(db)") {
            assert!(reason.expected.as_deref().unwrap().contains("Microsoft Corporation UEFI CA 2011"), "{reason:?}");
        }
    }
}
