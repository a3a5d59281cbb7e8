//! Commands that ask the verifier, against the real service and hosts with software TPMs.

mod program;
mod support;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use portcullis_attest::endorsement::{EnrolmentStatement, VerifierKeys};
use program::{json, run};
use support::verifier::Verifier;
use support::{Host, config_of};

const KERNEL: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

fn launch<'a>(config: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["vm", "--config", config, "launch", "--name", "web", "--volume", "data", "--vcpus", "2"];
    [&fixed[..], &["--kernel", "boot/vmlinuz", "--kernel-sha256", KERNEL], more].concat()
}

#[test]
fn an_operator_admits_a_host_and_a_tenant_gets_a_vm() {
    let verifier = Verifier::started();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (olga, alice) = (config_of(&verifier, "olga", dir), config_of(&verifier, "alice", dir));
    let (olga, alice) = (olga.as_str(), alice.as_str());
    let (text, _) = run(dir, &["host", "--config", olga, "ls"], 0);
    assert_eq!(text, "No host is enrolled.\n");

    std::fs::write(dir.join("data.key"), [7; 32]).unwrap();
    run(dir, &["volume", "--config", alice, "put", "data", "--key-file", "data.key"], 0);
    let value = json(dir, &launch(alice, &[]), 1);
    assert_eq!((value["placed"].as_bool(), value["why_not"].as_array().map(Vec::len)), (Some(false), Some(0)));

    // Pins: given, shown, kept when none are given, taken away; not for whoever mistypes them.
    let put = |more: &[&str], code| {
        let fixed = ["volume", "--config", alice, "put", "pinned", "--key-file", "data.key"];
        run(dir, &[&fixed[..], more].concat(), code)
    };
    let pins = || json(dir, &["volume", "--config", alice, "ls"], 0)["volumes"][1]["pins"].clone();
    put(&["--pin-policy", KERNEL, "--pin-signer", &"ab".repeat(32)], 0);
    put(&[], 0);
    let given = serde_json::json!({ "policies": [KERNEL], "signers": ["ab".repeat(32)], "tpms": [] });
    assert_eq!(pins(), given);
    // One kind is replaced, the others stay.
    put(&["--pin-tpm", &"cd".repeat(32)], 0);
    put(&["--pin-signer", &"ef".repeat(32)], 0);
    let changed = serde_json::json!({ "policies": [KERNEL], "signers": ["ef".repeat(32)], "tpms": ["cd".repeat(32)] });
    assert_eq!(pins(), changed);
    put(&["--pin-signer", &"ab".repeat(32)], 0);
    assert!(run(dir, &["volume", "--config", alice, "ls"], 0).0.contains(&format!("policy {KERNEL}, signer abab")));
    put(&["--pin-policy", "9f86"], 2);
    put(&["--pin-policy", KERNEL, "--no-pins"], 2);
    put(&["--no-pins"], 0);
    assert_eq!(pins(), serde_json::json!({ "policies": [], "signers": [], "tpms": [] }));

    let mut host = Host::new("honest", &verifier);
    host.session.enrol().unwrap();
    host.session.attest().unwrap_err();
    let (text, _) = run(dir, &["host", "--config", olga, "ls"], 0);
    assert!(text.starts_with("HOST") && text.contains("honest") && text.contains("endorsement.not-admitted"), "{text}");
    let value = json(dir, &launch(alice, &[]), 1);
    assert_eq!(value["why_not"][0]["host"], "honest", "{value}");
    assert!(!value["why_not"][0]["reasons"].as_array().unwrap().is_empty());

    let fingerprint = host.fingerprint();
    run(dir, &["host", "--config", olga, "admit", &fingerprint], 2);
    run(dir, &["host", "--config", olga, "admit", &fingerprint, "--name", "Not A Name"], 2);
    run(dir, &["host", "--config", olga, "admit", &fingerprint, "--name", "honest", "--note", "the test's"], 0);
    let (_, stderr) = run(dir, &["host", "--config", olga, "admit", &fingerprint, "--name", "other"], 1);
    assert!(stderr.contains("admission.other-name") && stderr.contains("honest"), "{stderr}");
    host.session.attest().unwrap();
    let (text, _) = run(dir, &["host", "--config", olga, "show", "honest"], 0);
    assert!(text.contains(&fingerprint) && text.contains("trust           trusted"), "{text}");
    assert_eq!(json(dir, &["host", "--config", olga, "show", "honest"], 0)["trust"], "trusted");

    let (jws, _) = run(dir, &["host", "--config", olga, "enrolment", "honest", "--keys-out", "keys.json"], 0);
    let keys = VerifierKeys::from_jwks(&std::fs::read(dir.join("keys.json")).unwrap()).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(EnrolmentStatement::verify(&jws, &keys, now).unwrap().ak_public, host.session.prover.ak_public());
    let value = json(dir, &["host", "--config", olga, "enrolment", "honest"], 0);
    assert_eq!(value["host"], "honest", "{value}");
    run(dir, &["host", "--config", olga, "enrolment", "honest", "--keys-out", "/nonexistent/keys"], 2);
    run(dir, &["host", "--config", alice, "enrolment", "honest"], 1);

    let placed = json(dir, &launch(alice, &["--cmdline", "console=ttyS0", "--mem-mib", "64"]), 0);
    assert_eq!(placed["host"], "honest", "{placed}");
    let (text, _) = run(dir, &["vm", "--config", alice, "ls"], 0);
    assert!(text.contains("web") && text.contains("placed") && text.contains(placed["order_id"].as_str().unwrap()));
    let (text, _) = run(dir, &["volume", "--config", alice, "ls"], 0);
    assert!(text.contains("data"), "{text}");

    let order = placed["order_id"].as_str().unwrap();
    assert_eq!(json(dir, &["host", "--config", olga, "admissions"], 0)["admissions"][0]["note"], "the test's");
    run(dir, &["host", "--config", alice, "fence", order, "--note", "not mine to say"], 1);
    let (_, stderr) = run(dir, &["host", "--config", olga, "fence", order, "--note", "powered off"], 1);
    assert!(stderr.contains("order.not-open"), "its key was never released: {stderr}");

    run(dir, &["volume", "--config", alice, "put", "spare", "--key-file", "data.key"], 0);
    let spare: Vec<&str> =
        launch(alice, &["--host", "honest"]).iter().map(|word| if *word == "data" { "spare" } else { word }).collect();
    run(dir, &["host", "--config", olga, "cordon", "honest", "--reason", "a new disk"], 0);
    let (_, stderr) = run(dir, &spare, 1);
    assert!(stderr.starts_with("no host can take the VM:\n  honest\n    host.cordoned: "), "{stderr}");
    run(dir, &["host", "--config", olga, "uncordon", "honest"], 0);
    json(dir, &spare, 0);
    run(dir, &["host", "--config", olga, "withdraw", &fingerprint], 0);
    assert_ne!(json(dir, &["host", "--config", olga, "show", "honest"], 0)["trust"], "trusted");
}

#[test]
fn a_forgotten_host_is_gone_and_an_unknown_one_is_1() {
    let verifier = Verifier::started();
    let dir = tempfile::tempdir().unwrap();
    let olga = config_of(&verifier, "olga", dir.path());
    let mut host = Host::new("honest", &verifier);
    host.session.enrol().unwrap();
    run(dir.path(), &["host", "--config", &olga, "forget", "honest"], 0);
    for command in ["forget", "show"] {
        let (_, stderr) = run(dir.path(), &["host", "--config", &olga, command, "honest"], 1);
        assert!(stderr.starts_with("error: ") || stderr.starts_with("denied:"), "{stderr}");
    }
}

#[test]
fn keys_are_checked_here_and_never_shown() {
    let verifier = Verifier::started();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let alice = config_of(&verifier, "alice", dir);
    let put =
        |file: &str, code: i32| run(dir, &["volume", "--config", &alice, "put", "data", "--key-file", file], code);
    std::fs::write(dir.join("short"), "too short").unwrap();
    std::fs::write(dir.join("long"), "x".repeat(129)).unwrap();
    std::fs::write(dir.join("good"), "a secret of thirty-two characters").unwrap();
    assert!(put("short", 2).1.contains("too short, 16 to 128"));
    assert!(put("long", 2).1.contains("long is larger than the 128 bytes"));
    assert!(put("missing", 2).1.contains("missing"));
    let (stdout, stderr) = put("good", 0);
    assert!(!stdout.contains("secret") && !stderr.contains("secret"));
    std::fs::write(dir.join("other"), "another secret, for the same name").unwrap();
    let (stdout, stderr) = put("other", 1);
    assert!(!stdout.contains("secret") && !stderr.contains("secret"), "{stderr}");
}

#[test]
fn the_wrong_role_is_1_and_a_verifier_that_is_down_or_another_is_3() {
    let mut verifier = Verifier::started();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let alice = config_of(&verifier, "alice", dir);
    let (_, stderr) = run(dir, &["host", "--config", &alice, "ls"], 1);
    assert!(stderr.contains("peer.role"), "{stderr}");
    let other = Verifier::new();
    let ca = other.trust().join("ca.pem");
    let (_, stderr) = run(dir, &["vm", "--config", &alice, "--ca", ca.to_str().unwrap(), "ls"], 3);
    assert!(stderr.contains("certificate"), "{stderr}");
    verifier.stop();
    let (stdout, stderr) = run(dir, &["vm", "--config", &alice, "ls"], 3);
    assert!(stdout.is_empty() && stderr.contains("unavailable") && stderr.contains(&verifier.url()), "{stderr}");
}

#[test]
fn certificates_and_keys_that_are_none_are_2() {
    let verifier = Verifier::new();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let alice = config_of(&verifier, "alice", dir);
    std::fs::write(dir.join("junk.pem"), "junk").unwrap();
    for flag in ["--ca", "--cert", "--key"] {
        let (_, stderr) = run(dir, &["vm", "--config", &alice, flag, "junk.pem", "ls"], 2);
        assert!(stderr.starts_with("error: ") && !stderr.contains("PRIVATE"), "{flag}: {stderr}");
    }
    let (_, stderr) = run(Path::new(dir), &["vm", "--config", &alice, "--url", "http://x", "ls"], 2);
    assert!(stderr.contains("https://"), "{stderr}");
}
