//! Reference values from the command line: made of recorded boots, read, signed and checked; and verdicts that rest on them.

mod program;
mod support;

use std::path::Path;

use program::{json, run};
use serde_json::Value;
use support::Host;
use support::boot::{self, Boot};
use support::verifier::Verifier;

const NONCE: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIEC/TK4S4FFq68d2DxtQk0v9znR3a2bDc0bKiwVMqbDI\n\
                   -----END PRIVATE KEY-----\n";

fn verify(dir: &Path, reference: &str, code: i32) -> Value {
    let evidence = ["verify", "--evidence", "evidence.json", "--nonce", NONCE, "--ak", "ak.tpmt"];
    json(dir, &[&evidence[..], &["--reference", reference, "--policy", "policy.toml"]].concat(), code)
}

fn codes(value: &Value) -> Vec<&str> {
    value["reasons"].as_array().unwrap().iter().map(|reason| reason["code"].as_str().unwrap()).collect()
}

/// A host's directory with evidence of a good boot.
fn recorded() -> (Verifier, Host) {
    let verifier = Verifier::new();
    let mut host = Host::new("honest", &verifier);
    host.evidence(NONCE);
    (verifier, host)
}

#[test]
fn a_recorded_boot_is_accepted_and_an_update_is_one_more_value() {
    let (verifier, host) = recorded();
    let dir = host.dir.path();
    let made = json(dir, &["reference", "make", "--name", "good", "--out", "made.toml", "evidence.json"], 0);
    assert_eq!(
        (made["version"].as_u64(), made["programs"].as_u64(), &made["left_out"]),
        (Some(1), Some(1), &Value::Array(vec![])),
        "{made}"
    );
    let good = verify(dir, "made.toml", 0);
    assert_eq!((good["reference"].as_str(), good["reference_version"].as_u64()), (Some("good"), Some(1)));

    // Another boot is accepted once it was recorded, and the first one still is.
    let mut other = Host::booted("updated", &verifier, Boot::with(true, "console=ttyS0 quiet debug"));
    let theirs = other.evidence(NONCE);
    std::fs::copy(dir.join("made.toml"), theirs.join("made.toml")).unwrap();
    assert!(codes(&verify(&theirs, "made.toml", 1)).contains(&"eventlog.command-line"));
    let list = ["--eventlog", "eventlog", "--ima", "ima", "--out", "next.toml"];
    let next = json(&theirs, &[&["reference", "make", "--from", "made.toml"], &list[..]].concat(), 0);
    assert_eq!(next["version"], 2);
    let changed = next["changes"].as_array().unwrap();
    assert!(!changed.is_empty() && changed.iter().all(|change| change["change"] == "added"), "{next}");
    assert!(changed.iter().any(|change| change["value"] == "\"/vmlinuz console=ttyS0 quiet debug\""), "{next}");
    assert_eq!(verify(&theirs, "next.toml", 0)["reference_version"], 2);
    std::fs::copy(theirs.join("next.toml"), dir.join("next.toml")).unwrap();
    verify(dir, "next.toml", 0);

    let checked = json(dir, &["reference", "check", "next.toml", "--against", "made.toml"], 0);
    assert_eq!((checked["signature"].as_str(), checked["changes"].as_array()), (Some("none"), Some(changed)));
    let older = json(dir, &["reference", "check", "made.toml", "--against", "next.toml"], 1);
    assert_eq!(codes(&older), ["reference.not-newer"]);
    // Values of another name are no edition of these, however much newer they are.
    let next = std::fs::read_to_string(dir.join("next.toml")).unwrap();
    let named = next.replacen("name = \"good\"", "name = \"better\"", 1);
    assert_ne!(named, next);
    std::fs::write(dir.join("named.toml"), named).unwrap();
    let other = json(dir, &["reference", "check", "named.toml", "--against", "made.toml"], 1);
    assert_eq!(codes(&other), ["reference.not-newer"]);
    assert!(other.to_string().contains("better"), "{other}");
    let (text, _) = run(dir, &["reference", "show", "next.toml"], 0);
    assert!(text.contains("quiet debug") && text.contains("/usr/bin/portcullis-agent"), "{text}");
    assert_eq!(json(dir, &["reference", "show", "next.toml"], 0)["version"], 2);
}

#[test]
fn evidence_whose_logs_lead_elsewhere_is_no_record() {
    let (_verifier, host) = recorded();
    let dir = host.dir.path();
    let make = |code| json(dir, &["reference", "make", "--name", "good", "evidence.json"], code);
    make(0);
    let whole = std::fs::read(dir.join("evidence.json")).unwrap();
    let mut evidence = portcullis_attest::evidence::Evidence::from_json(&whole).unwrap();
    evidence.eventlog = Boot::with(true, "init=/bin/sh").eventlog();
    std::fs::write(dir.join("evidence.json"), evidence.to_json().unwrap()).unwrap();
    assert_eq!(codes(&make(1)), ["eventlog.pcr-mismatch"]);
    let mut evidence = portcullis_attest::evidence::Evidence::from_json(&whole).unwrap();
    evidence.ima.clear();
    std::fs::write(dir.join("evidence.json"), evidence.to_json().unwrap()).unwrap();
    assert_eq!(codes(&make(1)), ["ima.pcr-mismatch"]);
    run(dir, &["reference", "make", "evidence.json"], 2);
}

/// Events of a PCR that no quote covers are what the sender says.
#[test]
fn evidence_that_does_not_quote_every_pcr_of_its_log_is_no_record() {
    let (_verifier, host) = recorded();
    let dir = host.dir.path();
    let make = |code| json(dir, &["reference", "make", "--name", "good", "evidence.json"], code);
    let whole = std::fs::read(dir.join("evidence.json")).unwrap();
    let without = |pcr: u8, one_bank: bool| {
        let mut evidence = portcullis_attest::evidence::Evidence::from_json(&whole).unwrap();
        let pcrs = evidence.quotes.iter_mut().flat_map(|quote| quote.pcrs.values_mut());
        let removed = pcrs.take(if one_bank { 1 } else { usize::MAX }).filter_map(|pcrs| pcrs.remove(&pcr)).count();
        assert!(removed > 0, "PCR {pcr} was not quoted");
        std::fs::write(dir.join("evidence.json"), evidence.to_json().unwrap()).unwrap();
    };
    for pcr in [0, 4, 7, 8, 9] {
        without(pcr, false);
        let found = make(1);
        assert_eq!(codes(&found), ["eventlog.pcr-not-quoted"]);
        let text = found["reasons"][0]["text"].as_str().unwrap();
        assert!(text.contains(&format!("events of PCR {pcr}, ")), "{text}");
    }
    // The twins: all are quoted; and one that has no events need not be.
    std::fs::write(dir.join("evidence.json"), &whole).unwrap();
    make(0);
    without(15, false);
    make(0);
    // In one bank is enough: the log must lead there in each that has it.
    without(4, true);
    make(0);
}

#[test]
fn only_signed_values_count_where_the_policy_says_so() {
    let (_verifier, host) = recorded();
    let dir = host.dir.path();
    std::fs::write(dir.join("key.pem"), KEY).unwrap();
    let signed = json(dir, &["reference", "sign", "reference.toml", "--key", "key.pem"], 0);
    assert!(signed["warnings"][0].as_str().unwrap().contains("chmod 600"), "{signed}");
    let public = signed["public_key"].as_str().unwrap();
    std::fs::write(dir.join("key.pub"), public).unwrap();

    let strict = boot::POLICY.replace("unsigned_references = true\n", "");
    assert_ne!(strict, boot::POLICY);
    std::fs::write(dir.join("policy.toml"), format!("{strict}reference_signers = [\"\"\"\n{public}\"\"\"]\n")).unwrap();
    assert_eq!(verify(dir, "reference.toml", 0)["reference_signer"], signed["signer"]);
    let checked = json(dir, &["reference", "check", "reference.toml", "--key", "key.pub"], 0);
    assert_eq!((&checked["signed_by"], checked["signature"].as_str()), (&signed["signer"], Some("good")));

    // For a time: what has ended counts no more, whoever signed it.
    let ends = json(dir, &["reference", "sign", "reference.toml", "--key", "key.pem", "--valid-for", "1"], 0);
    assert!(ends["expires_at"].as_u64().is_some(), "{ends}");
    verify(dir, "reference.toml", 0);
    run(dir, &["reference", "sign", "reference.toml", "--key", "key.pem", "--valid-for", "0"], 2);
    let text = std::fs::read_to_string(dir.join("reference.toml")).unwrap();
    let key = portcullis_attest::reference::signature::ReferenceSigner::from_pem(KEY).unwrap();
    std::fs::write(dir.join("reference.toml.sig"), key.sign_until(text.as_bytes(), 1).unwrap()).unwrap();
    assert_eq!(codes(&verify(dir, "reference.toml", 1)), ["reference.signature-expired"]);
    let checked = json(dir, &["reference", "check", "reference.toml", "--key", "key.pub"], 1);
    assert_eq!(codes(&checked), ["reference.signature-expired"]);
    run(dir, &["reference", "sign", "reference.toml", "--key", "key.pem"], 0);

    // The same values in another file are not what was signed.
    let text = std::fs::read_to_string(dir.join("reference.toml")).unwrap();
    std::fs::write(dir.join("reference.toml"), format!("# edited\n{text}")).unwrap();
    assert_eq!(codes(&verify(dir, "reference.toml", 1)), ["reference.signature-invalid"]);
    let checked = json(dir, &["reference", "check", "reference.toml", "--key", "key.pub"], 1);
    assert_eq!(codes(&checked), ["reference.signature-invalid"]);
    std::fs::write(dir.join("reference.toml"), text).unwrap();
    // By whom the policy does not name.
    std::fs::write(dir.join("policy.toml"), &strict).unwrap();
    assert_eq!(codes(&verify(dir, "reference.toml", 1)), ["reference.signer-unknown"]);
    // By nobody.
    std::fs::remove_file(dir.join("reference.toml.sig")).unwrap();
    assert_eq!(codes(&verify(dir, "reference.toml", 1)), ["reference.unsigned"]);
    let checked = json(dir, &["reference", "check", "reference.toml", "--key", "key.pub"], 1);
    assert_eq!(codes(&checked), ["reference.unsigned"]);
    // What is no key signs nothing, and what is no file of values is not signed.
    run(dir, &["reference", "sign", "reference.toml", "--key", "key.pub"], 2);
    run(dir, &["reference", "sign", "policy.toml", "--key", "key.pem"], 2);
    assert!(!dir.join("policy.toml.sig").exists());
}

#[test]
fn a_keylime_policy_is_imported_by_content_and_the_rest_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let digest = "5f4b0c4de1d3b7a6b0a7b6ad7c7e7e4a53b0ae6b5d6c2b6aeb1d9a60ff7a7c01";
    let policy = format!(
        "{{\"meta\": {{\"version\": 1}}, \"digests\": {{\"/usr/bin/ls\": [\"{digest}\"]}}, \"excludes\": [\"/tmp/.*\"]}}"
    );
    std::fs::write(dir.join("keylime.json"), policy).unwrap();
    let import = ["reference", "make", "--name", "imported", "--keylime-policy", "keylime.json"];
    let (_, stderr) = run(dir, &import, 2);
    assert!(stderr.contains("\n    excludes: \"/tmp/.*\" accepts any content by its name alone"), "{stderr}");
    let made = json(dir, &[&import[..], &["--drop-unsupported"]].concat(), 0);
    assert_eq!(made["left_out"].as_array().unwrap().len(), 1);
    let written = made["reference"].as_str().unwrap();
    assert!(written.contains("path = \"/usr/bin/ls\"") && written.contains(digest), "{written}");
}

/// The arguments of an import.
fn make<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["reference", "make", "--name", "imported", "--keylime-policy"], more].concat()
}

#[test]
fn a_signed_keylime_policy_opens_and_its_keys_become_a_keyring() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (name, content) in [
        ("signed.json", include_str!("../../attest/tests/fixtures/keylime/ecdsa.json")),
        ("signer.pem", include_str!("../../attest/tests/fixtures/keylime/ecdsa.pem")),
        ("other.pem", include_str!("../../attest/tests/fixtures/keylime/x509.pem")),
        ("plain.json", "{\"meta\": {\"version\": 1}}"),
    ] {
        std::fs::write(dir.join(name), content).unwrap();
    }
    // Its keys are no reference values: they are named, or written for a policy.
    let (_, stderr) = run(dir, &make(&["signed.json"]), 2);
    assert!(stderr.contains("verification-keys: 2 keys") && stderr.contains("--policy-out"), "{stderr}");
    let part = ["signed.json", "--policy-out", "part.toml"];
    let made = json(dir, &make(&part), 0);
    assert!(made["warnings"][0].as_str().unwrap().contains("signature was not checked"), "{made}");
    let (stdout, _) = run(dir, &make(&part), 0);
    assert!(stdout.starts_with("# warning: signed.json: its signature was not checked"), "{stdout}");
    portcullis_attest::reference::ReferenceValues::from_toml(&stdout).unwrap();
    let made =
        json(dir, &make(&[&part[..], &["--keylime-key", "other.pem", "--keylime-key", "signer.pem"]].concat()), 0);
    assert_eq!(made["warnings"], Value::Array(vec![]));
    // What is written is a part of a policy.
    let part = std::fs::read_to_string(dir.join("part.toml")).unwrap();
    let policy = portcullis_attest::appraise::Policy::from_toml(&format!("{}{part}", boot::POLICY)).unwrap();
    assert_eq!(policy.programs.keyring("keylime").unwrap().len(), 2);
    assert_eq!(policy.programs.rules().len(), 1);
    // Nobody who was named signed it; and it is not signed at all.
    let no = json(dir, &make(&["signed.json", "--drop-unsupported", "--keylime-key", "other.pem"]), 1);
    assert_eq!(codes(&no), ["reference.signature-invalid"]);
    let no = json(dir, &make(&["plain.json", "--keylime-key", "signer.pem"]), 1);
    assert_eq!(codes(&no), ["reference.unsigned"]);
    run(dir, &make(&["signed.json", "--keylime-key", "plain.json"]), 2);
}
