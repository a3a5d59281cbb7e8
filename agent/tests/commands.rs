//! The agent's commands as a person or a script meets them: exit codes, messages, and what they leave.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use portcullis_agent::config::Config;
use portcullis_agent::session::{Exclusive, Session};
use portcullis_attest::binding::{Binding, EMPTY_BODY, Purpose};
use portcullis_attest::evidence::Evidence;
use portcullis_attest::key::EnrolledAk;
use portcullis_attest::quote::VerifiedQuote;
use serde_json::Value;
use support::host::{Host, outputs};
use support::verifier::{VERIFIER, Verifier};

const NONCE: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn bare(arguments: &[&str], code: i32) -> (String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis-agent")).args(arguments).output().unwrap();
    outputs(&output, code, arguments)
}

#[test]
fn bad_arguments_are_2_and_help_is_0() {
    for arguments in [
        &[][..],
        &["no-such-command"],
        &["evidence"],
        &["evidence", "--nonce", "xyz"],
        &["evidence", "--nonce", "0011"],
        &["ek", "--tcti"],
        &["run", "--config"],
    ] {
        let (stdout, stderr) = bare(arguments, 2);
        assert!(stdout.is_empty() && !stderr.is_empty(), "{arguments:?}: {stdout}");
    }
    for arguments in [&["--help"][..], &["evidence", "--help"], &["ek", "--help"]] {
        let (stdout, _) = bare(arguments, 0);
        assert!(stdout.contains("Example"), "{arguments:?}: {stdout}");
    }
}

#[test]
fn an_unwritable_standard_error_changes_no_exit_code() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis-agent"));
    let status = command.args(["--config", "/nonexistent", "attest"]).stderr(full).status().unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
fn a_bad_configuration_is_2_and_names_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    let config = path.to_str().unwrap();
    for command in [&["run"][..], &["enrol"], &["attest"], &["ek"], &["evidence", "--nonce", NONCE]] {
        let (_, stderr) = bare(&[&["--config", config], command].concat(), 2);
        assert!(stderr.starts_with("error: ") && stderr.contains("agent.toml"), "{stderr}");
    }
    for (text, word) in [
        ("host = \"a\"\n", "verifier_url"),
        ("host = \"A\"\nverifier_url = \"https://x\"\n", "host"),
        ("host = \"a\"\nverifier_url = \"https://x\"\nsecret = 1\n", "secret"),
        ("host = ", "agent.toml"),
    ] {
        std::fs::write(&path, text).unwrap();
        let (stdout, stderr) = bare(&["--config", config, "--json", "attest"], 2);
        assert!(stderr.contains(word), "{stderr}");
        let json: Value = serde_json::from_str(&stdout).unwrap();
        assert!(json["error"]["text"].as_str().unwrap().contains(word), "{stdout}");
    }
}

#[test]
fn a_tpm_that_is_not_there_is_3_and_a_bad_address_is_2() {
    // Nothing listens on port 1.
    let (_, stderr) = bare(&["ek", "--tcti", "swtpm:host=127.0.0.1,port=1"], 3);
    assert!(stderr.starts_with("error: the TPM at swtpm:host=127.0.0.1,port=1 is unavailable"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "libraries are silent: {stderr}");
    let (_, stderr) = bare(&["ek", "--tcti", "device:/nonexistent/tpm"], 3);
    assert!(stderr.contains("/nonexistent/tpm"), "{stderr}");
    let (_, stderr) = bare(&["ek", "--tcti", "telepathy"], 2);
    assert!(stderr.contains("telepathy"), "{stderr}");
}

#[test]
fn every_command_says_3_when_the_tpm_goes() {
    let verifier = Verifier::started();
    let mut host = Host::new("honest", &verifier);
    host.expect(&["ek"], 0);
    host.swtpm.kill9();
    for command in [&["ek"][..], &["enrol"], &["attest"], &["evidence", "--nonce", NONCE], &["run"]] {
        let (_, stderr) = host.expect(command, 3);
        assert!(stderr.contains("TPM"), "{command:?}: {stderr}");
    }
}

#[test]
fn ek_prints_what_an_operator_admits() {
    let verifier = Verifier::new();
    let host = Host::new("honest", &verifier);
    let (text, _) = host.expect(&["ek"], 0);
    let fingerprint = text.trim();
    assert!(fingerprint.len() == 64 && fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit()), "{text}");
    let (json, _) = host.expect(&["--json", "ek", "--tcti", &host.swtpm.tcti()], 0);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((json["ek_fingerprint"].as_str(), json["certificate"].as_bool()), (Some(fingerprint), Some(true)));
}

#[test]
fn evidence_holds_for_the_nonce_and_the_keys_written_beside_it() {
    let verifier = Verifier::new();
    let host = Host::new("honest", &verifier);
    let (keys, out) = (host.path("keys"), host.path("evidence.json"));
    std::fs::create_dir(&keys).unwrap();
    let (keys, out) = (keys.to_str().unwrap(), out.to_str().unwrap());
    host.expect(&["evidence", "--nonce", NONCE, "--out", out, "--keys", keys], 0);
    let evidence = Evidence::from_json(&std::fs::read(out).unwrap()).unwrap();
    let read = |name: &str| std::fs::read(host.path("keys").join(name)).unwrap();
    let ak = EnrolledAk::new(&read("ak.tpmt"), &read("ek.tpmt")).unwrap();
    let expected = Binding {
        purpose: Purpose::Offline,
        verifier: VERIFIER.to_owned(),
        host: "honest".to_owned(),
        nonce: hex::decode(NONCE).unwrap(),
        tls_spki_sha256: evidence.binding.tls_spki_sha256,
        body_sha256: EMPTY_BODY,
    };
    VerifiedQuote::verify(&evidence, &ak, &expected).unwrap();
    let other = Binding { nonce: vec![0; 32], ..expected };
    assert_eq!(VerifiedQuote::verify(&evidence, &ak, &other).unwrap_err()[0].code.as_str(), "quote.nonce-mismatch");
    assert_eq!((evidence.eventlog, evidence.ima), (host.boot.eventlog(), host.boot.ima()));
    // The next start uses the same key.
    host.expect(&["evidence", "--nonce", NONCE, "--out", out, "--keys", keys], 0);
    assert_eq!(read("ak.tpmt"), ak.public().bytes());
}

#[test]
fn the_stored_key_is_private_and_replaced_when_it_is_of_no_use() {
    let verifier = Verifier::new();
    let host = Host::new("honest", &verifier);
    let stored = host.path("state/ak.json");
    let key = || {
        host.expect(&["evidence", "--nonce", NONCE, "--out", "/dev/null"], 0);
        std::fs::read_to_string(&stored).unwrap()
    };
    let first = key();
    assert_eq!(std::fs::metadata(&stored).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(key(), first);
    std::fs::write(&stored, &first[..first.len() / 2]).unwrap();
    let second = key();
    assert_ne!(second, first, "a damaged key is replaced");
    let other = Host::new("other", &verifier);
    std::fs::copy(&stored, other.path("state/ak.json")).unwrap();
    other.expect(&["evidence", "--nonce", NONCE, "--out", "/dev/null"], 0);
    assert_ne!(std::fs::read_to_string(other.path("state/ak.json")).unwrap(), second, "another TPM's key is replaced");
}

#[test]
fn unreadable_logs_and_trust_are_2_and_named() {
    let verifier = Verifier::new();
    let host = Host::new("honest", &verifier);
    for (file, part) in [("eventlog", "firmware event log"), ("ima", "IMA list"), ("trust/ca.pem", "ca.pem")] {
        let (from, to) = (host.path(file), host.path("moved"));
        std::fs::rename(&from, &to).unwrap();
        let (_, stderr) = host.expect(&["evidence", "--nonce", NONCE], 2);
        assert!(stderr.contains(part) && stderr.contains(from.to_str().unwrap()), "{stderr}");
        std::fs::rename(&to, &from).unwrap();
    }
    let (_, stderr) = host.expect(&["evidence", "--nonce", NONCE, "--out", "/nonexistent/evidence.json"], 2);
    assert!(stderr.contains("/nonexistent/evidence.json"), "{stderr}");
}

#[test]
fn a_verifier_that_is_down_is_3() {
    let verifier = Verifier::new();
    let host = Host::new("honest", &verifier);
    for command in ["enrol", "attest"] {
        let (_, stderr) = host.expect(&[command], 3);
        assert!(stderr.contains("unavailable") && stderr.contains(&verifier.url()), "{stderr}");
    }
}

#[test]
fn a_verifier_of_another_ca_is_not_talked_to() {
    let (verifier, other) = (Verifier::started(), Verifier::new());
    let host = Host::new("honest", &verifier);
    std::fs::copy(other.trust().join("ca.pem"), host.path("trust/ca.pem")).unwrap();
    let (_, stderr) = host.expect(&["enrol"], 3);
    assert!(stderr.contains("certificate"), "{stderr}");
}

#[test]
fn a_verifier_of_another_id_gets_no_quote() {
    let verifier = Verifier::started();
    let host = Host::new("honest", &verifier);
    host.expect(&["enrol"], 0);
    std::fs::write(host.path("trust/verifier-id"), "somebody-else\n").unwrap();
    let (_, stderr) = host.expect(&["attest"], 1);
    assert!(stderr.contains("somebody-else") && stderr.contains(VERIFIER), "{stderr}");
}

#[test]
fn from_enrolment_to_trust_and_back() {
    let verifier = Verifier::started();
    let host = Host::new("honest", &verifier);
    let (_, stderr) = host.expect(&["attest"], 1);
    assert!(stderr.contains("host.unknown"), "{stderr}");
    let (text, _) = host.expect(&["enrol"], 0);
    let fingerprint = host.expect(&["ek"], 0).0.trim().to_owned();
    assert!(text.contains(&format!("portcullis host admit {fingerprint} --name honest")), "{text}");
    let (json, stderr) = host.expect(&["--json", "attest"], 1);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["trusted"], false);
    assert_eq!(json["reasons"][0]["code"], "endorsement.not-admitted", "{json}");
    assert!(stderr.starts_with("denied:\n"), "{stderr}");
    verifier.person("olga").admit(&fingerprint, "honest", "a test").unwrap();
    let (json, _) = host.expect(&["--json", "attest"], 0);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((json["trusted"].as_bool(), json["boot"]["ek"].as_str()), (Some(true), Some(&*fingerprint)));
    assert_eq!(json["token"].as_str().unwrap().split('.').count(), 3);
    // A list from which the last entry was cut no longer leads to the quoted PCR 10.
    let ima = host.boot.ima();
    std::fs::write(host.path("ima"), &ima[..ima.len() - 1]).unwrap();
    let (_, stderr) = host.expect(&["attest"], 1);
    assert!(stderr.contains("ima.unreadable"), "{stderr}");
}

#[test]
fn a_tpm_is_opened_again() {
    let verifier = Verifier::started();
    let host = Host::new("honest", &verifier);
    let mut session = Session::start(Config::load(&host.path("agent.toml")).unwrap(), Exclusive::Yes).unwrap();
    let before = session.prover.ak_public().to_vec();
    session.reopen_tpm().unwrap();
    assert_eq!(session.prover.ak_public(), before);
    session.offline_evidence(vec![1; 32]).unwrap();
}
