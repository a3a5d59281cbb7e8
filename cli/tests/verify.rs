//! Offline verification, and what event logs and IMA lists lead to, against what a software TPM really holds.

mod program;
mod support;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use portcullis_attest::binding::{Binding, Purpose};
use portcullis_attest::endorsement::{ENROLMENT_TYP, EnrolmentStatement};
use portcullis_attest::evidence::Evidence;
use portcullis_attest::key::{Bank, PublicArea};
use portcullis_attest::result::{ResultClaims, TYP};
use portcullis_verifier::service::signer::Signer;
use program::{codes, json, run};
use serde_json::{Value, json as object};
use support::Host;
use support::boot::{Boot, POLICY};
use support::verifier::Verifier;

const NONCE: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const FILES: [&str; 6] = ["--evidence", "evidence.json", "--reference", "reference.toml", "--policy", "policy.toml"];
const ANCHOR: [&str; 4] = ["--ak", "ak.tpmt", "--ek", "ek.tpmt"];

fn verify(dir: &Path, nonce: &str, more: &[&str], code: i32) -> Value {
    json(dir, &[&["verify"], &FILES[..], &["--nonce", nonce], more].concat(), code)
}

#[test]
fn good_evidence_is_trusted_only_with_its_nonce_its_anchor_and_its_host() {
    let verifier = Verifier::new();
    let mut host = Host::new("honest", &verifier);
    let dir = host.evidence(NONCE);
    let good = verify(&dir, NONCE, &ANCHOR, 0);
    assert_eq!((good["trusted"].as_bool(), good["host"].as_str()), (Some(true), Some("honest")), "{good}");
    assert_eq!(good["boot"]["ek"], host.fingerprint());
    let (text, _) = run(&dir, &[&["verify"], &FILES[..], &["--nonce", NONCE], &ANCHOR].concat(), 0);
    assert!(text.starts_with("trusted: honest"), "{text}");

    assert_eq!(codes(&verify(&dir, &NONCE.replace("00", "01"), &ANCHOR, 1)), ["quote.nonce-mismatch"]);
    assert_eq!(codes(&verify(&dir, NONCE, &[], 1)), ["ak.unanchored"]);
    let named = |flag, name| verify(&dir, NONCE, &[&ANCHOR[..], &[flag, name]].concat(), 1);
    assert_eq!(codes(&named("--host", "other")), ["quote.host-mismatch"]);
    assert_eq!(codes(&named("--verifier", "other")), ["quote.verifier-mismatch"]);

    let mut other = Host::new("other", &verifier);
    let theirs = other.evidence(NONCE);
    let (ak, ek) = (theirs.join("ak.tpmt"), theirs.join("ek.tpmt"));
    let (ak, ek) = (ak.to_str().unwrap(), ek.to_str().unwrap());
    assert_eq!(codes(&verify(&dir, NONCE, &["--ak", ak, "--ek", ek], 1)), ["quote.signature-invalid"]);
    // The right attestation key under another endorsement key is another TPM's.
    assert_eq!(codes(&verify(&dir, NONCE, &["--ak", "ak.tpmt", "--ek", ek], 1)), ["quote.signer-mismatch"]);

    // With the length before them, as tpm2-tools write public areas.
    for name in ["ak.tpmt", "ek.tpmt"] {
        let area = std::fs::read(dir.join(name)).unwrap();
        let sized = [&u16::try_from(area.len()).unwrap().to_be_bytes()[..], &area].concat();
        std::fs::write(dir.join(name), sized).unwrap();
    }
    verify(&dir, NONCE, &ANCHOR, 0);
}

#[test]
fn a_nonce_has_sixteen_to_sixty_four_bytes() {
    let verifier = Verifier::new();
    let mut host = Host::new("honest", &verifier);
    for (bytes, code) in [(15, 2), (16, 0), (64, 0), (65, 2)] {
        let nonce = "5a".repeat(bytes);
        let dir = if code == 0 { host.evidence(&nonce) } else { host.dir.path().to_owned() };
        let (_, error) = run(&dir, &[&["verify"], &FILES[..], &["--nonce", &nonce], &ANCHOR].concat(), code);
        assert_eq!(error.contains("16 to 64 bytes"), code == 2, "{error}");
    }
}

/// What a host has made for its verifier, or for one order, is no evidence for whoever finds it in a file.
#[test]
fn evidence_for_another_purpose_or_of_a_body_is_not_a_files() {
    let verifier = Verifier::new();
    let mut host = Host::new("honest", &verifier);
    let dir = host.evidence(NONCE);
    let binding = Evidence::from_json(&std::fs::read(dir.join("evidence.json")).unwrap()).unwrap().binding;
    for (changed, expected) in [
        (Binding { purpose: Purpose::Attest, ..binding.clone() }, "quote.purpose-mismatch"),
        (Binding { purpose: Purpose::Enrol, ..binding.clone() }, "quote.purpose-mismatch"),
        (Binding { body_sha256: [1; 32], ..binding.clone() }, "quote.body-mismatch"),
    ] {
        let (evidence, _) = host.session.prover.evidence(&changed, 0).unwrap();
        std::fs::write(dir.join("evidence.json"), evidence.to_json().unwrap()).unwrap();
        assert_eq!(codes(&verify(&dir, NONCE, &ANCHOR, 1)), [expected]);
    }
    host.evidence(NONCE);
    verify(&dir, NONCE, &ANCHOR, 0);
}

#[test]
fn a_verdict_says_what_nobody_signed_and_nobody_judged() {
    const UNSIGNED: &str = "the reference values are not signed";
    const UNJUDGED: &str = "which programs ran";
    let verifier = Verifier::new();
    let mut host = Host::new("honest", &verifier);
    let dir = host.evidence(NONCE);
    let caveats = || {
        let good = verify(&dir, NONCE, &ANCHOR, 0)["caveats"].to_string();
        (good.contains(UNSIGNED), good.contains(UNJUDGED))
    };
    assert_eq!(caveats(), (true, false));
    let policy = |text: &str| std::fs::write(dir.join("policy.toml"), text).unwrap();
    let blind = POLICY.replace("ima = true", "ima = false");
    assert_ne!(blind, POLICY);
    policy(&blind);
    assert_eq!(caveats(), (true, true));
    std::fs::write(dir.join("sign.pem"), SIGNING_KEY).unwrap();
    let signed = json(&dir, &["reference", "sign", "reference.toml", "--key", "sign.pem"], 0);
    let public = signed["public_key"].as_str().unwrap();
    policy(&format!("{POLICY}reference_signers = [\"\"\"\n{public}\"\"\"]\n"));
    assert_eq!(caveats(), (false, false));
}

const SIGNING_KEY: &str = "-----BEGIN PRIVATE KEY-----\n\
    MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgrYe2oteE01w0pflJ\n\
    HIVasn8RqG/tDZKy2BnxpUkdnSyhRANCAARkPUqp+PgusVKQcdOUlfk2DFDC0A66\n\
    is6JpLkEko/k0pcxe2McPWZglZhtdSzEtJXvr1kejscRFrZQBrDqtv9M\n\
    -----END PRIVATE KEY-----\n";

/// Writes what a verifier signs of the host's enrolment, and the verifier's keys.
fn enrol(dir: &Path, host: &str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    enrol_from(dir, host, now - 60, 3600);
}

/// The same for a statement that was issued then, and holds for so many seconds.
fn enrol_from(dir: &Path, host: &str, issued: u64, lifetime: u64) {
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let evidence = Evidence::from_json(&read("evidence.json")).unwrap();
    let verifier = &evidence.binding.verifier;
    let statement = EnrolmentStatement::new(verifier, host, &read("ek.tpmt"), &read("ak.tpmt"), issued, lifetime);
    let statement = statement.unwrap();
    let signer = Signer::from_pem(SIGNING_KEY).unwrap();
    std::fs::write(dir.join("enrolment"), signer.sign(ENROLMENT_TYP, &statement).unwrap()).unwrap();
    std::fs::write(dir.join("keys.json"), signer.jwks_json().unwrap()).unwrap();
}

#[test]
fn n84_an_anchor_comes_from_outside_and_says_how_much_it_proves() {
    const ENROLMENT: [&str; 4] = ["--enrolment", "enrolment", "--verifier-keys", "keys.json"];
    let verifier = Verifier::new();
    let mut host = Host::new("honest", &verifier);
    let dir = host.evidence(NONCE);
    assert_eq!(codes(&verify(&dir, NONCE, &[], 1)), ["ak.unanchored"]);

    // The key alone: one TPM, and not which boot of it.
    let good = verify(&dir, NONCE, &["--ak", "ak.tpmt"], 0);
    assert_eq!((good["trusted"].as_bool(), &good["boot"]["ek"]), (Some(true), &Value::Null), "{good}");
    assert!(good["caveats"].to_string().contains("in which boot"), "{good}");
    let area = PublicArea::parse(&std::fs::read(dir.join("ak.tpmt")).unwrap()).unwrap();
    let spki = base64(&area.spki_der().unwrap());
    std::fs::write(dir.join("ak.pem"), format!("-----BEGIN PUBLIC KEY-----\n{spki}\n-----END PUBLIC KEY-----\n"))
        .unwrap();
    assert_eq!(codes(&verify(&dir, NONCE, &["--ak", "ak.pem"], 1)), ["ak.attributes-unknown"]);

    // A statement, with the keys that signed it.
    enrol(&dir, "honest");
    let good = verify(&dir, NONCE, &ENROLMENT, 0);
    assert_eq!(good["boot"]["ek"], host.fingerprint());
    assert_eq!(codes(&verify(&dir, NONCE, &ENROLMENT[..2], 1)), ["ak.unanchored"]);
    let whole = std::fs::read(dir.join("keys.json")).unwrap();
    let mut keys: Value = serde_json::from_slice(&whole).unwrap();
    keys["keys"][0]["kid"] = "another".into();
    std::fs::write(dir.join("keys.json"), keys.to_string()).unwrap();
    assert_eq!(codes(&verify(&dir, NONCE, &ENROLMENT, 1)), ["ak.unanchored"]);
    enrol(&dir, "other");
    assert_eq!(codes(&verify(&dir, NONCE, &ENROLMENT, 1)), ["quote.host-mismatch"]);
    // A statement about one host does not become one about whoever is asked for.
    let asked = |flag, name| verify(&dir, NONCE, &[&ENROLMENT[..], &[flag, name]].concat(), 1);
    assert_eq!(codes(&asked("--host", "honest")), ["ak.unanchored"]);
    enrol(&dir, "honest");
    assert_eq!(codes(&asked("--verifier", "another")), ["ak.unanchored"]);
    verify(&dir, NONCE, &[&ENROLMENT[..], &["--host", "honest"]].concat(), 0);
}

/// A statement of 2026 that held for an hour: now it anchors nothing; whoever judges what is old says so.
#[test]
fn n96_an_enrolment_statement_past_its_time() {
    const ENROLMENT: [&str; 4] = ["--enrolment", "enrolment", "--verifier-keys", "keys.json"];
    let verifier = Verifier::new();
    let mut host = Host::new("honest", &verifier);
    let dir = host.evidence(NONCE);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    enrol(&dir, "honest");
    verify(&dir, NONCE, &ENROLMENT, 0);
    enrol_from(&dir, "honest", now - 7200, 3600);
    let refused = verify(&dir, NONCE, &ENROLMENT, 1);
    assert_eq!(codes(&refused), ["ak.enrolment-expired"]);
    assert!(refused["reasons"][0]["text"].to_string().contains("ask the verifier for a new one"), "{refused}");
    enrol_from(&dir, "honest", now + 3600, 3600);
    assert_eq!(codes(&verify(&dir, NONCE, &ENROLMENT, 1)), ["ak.enrolment-expired"], "not issued yet");
    // As of a time at which it held, which the verdict says.
    enrol_from(&dir, "honest", 1_796_083_200, 3600);
    for (at, code) in
        [("2026-12-01T00:59:59Z", 0), ("1796083200", 0), ("2026-12-01T01:00:00Z", 1), ("2026-11-30T23:59:59Z", 1)]
    {
        let verdict = verify(&dir, NONCE, &[&ENROLMENT[..], &["--at", at]].concat(), code);
        assert_eq!(verdict["caveats"].to_string().contains("judged as of"), code == 0, "{at}: {verdict}");
    }
    // No token says today what held then.
    for wrong in [&["--at", "1796083200", "--token-out", "token"][..], &["--at", "yesterday"]] {
        let (_, told) = run(&dir, &[&["verify"], &FILES[..], &["--nonce", NONCE], &ENROLMENT, wrong].concat(), 2);
        assert!(told.contains("--at"), "{told}");
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let number = chunk.iter().chain([&0; 2]).take(3).fold(0, |number, byte| number << 8 | usize::from(*byte));
        for place in 0..4 {
            let digit = DIGITS[number >> (18 - 6 * place) & 63];
            out.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
        if out.len() % 65 == 64 {
            out.push('\n');
        }
    }
    out
}

#[test]
fn n77_a_verdict_is_a_token_of_one_boot_of_one_host() {
    let verifier = Verifier::new();
    let mut host = Host::new("honest", &verifier);
    let dir = host.evidence(NONCE);
    std::fs::write(dir.join("token.pem"), SIGNING_KEY).unwrap();
    let signed =
        |out: &str| verify(&dir, NONCE, &[&ANCHOR[..], &["--token-out", out, "--token-key", "token.pem"]].concat(), 0);
    let good = signed("first.jwt");
    signed("second.jwt");
    std::fs::write(dir.join("keys.json"), object!({ "keys": [good["token_key"]] }).to_string()).unwrap();
    let keys = ["--verifier-keys", "keys.json"];
    let checked = json(&dir, &[&["result", "check", "first.jwt"], &keys[..]].concat(), 0);
    assert_eq!(checked["result"]["submods"]["honest"]["portcullis.boot"]["ek"], host.fingerprint(), "{checked}");
    assert_eq!(checked["result"]["iss"], "portcullis-offline");
    let other = json(&dir, &[&["result", "check", "first.jwt", "--host", "other"], &keys[..]].concat(), 1);
    assert_eq!(codes(&other), ["result.other-host"]);
    let same = json(&dir, &[&["result", "compare", "first.jwt", "second.jwt"], &keys[..]].concat(), 0);
    assert_eq!((&same["same_boot"], &same["continuity"]["continuity"]), (&true.into(), &"same-boot".into()), "{same}");

    // A key made for one run signs what no other run's key checks.
    let own = verify(&dir, NONCE, &[&ANCHOR[..], &["--token-out", "own.jwt"]].concat(), 0);
    let refused = json(&dir, &[&["result", "check", "own.jwt"], &keys[..]].concat(), 1);
    assert_eq!(codes(&refused), ["result.signature-invalid"]);
    std::fs::write(dir.join("own.json"), object!({ "keys": [own["token_key"]] }).to_string()).unwrap();
    json(&dir, &["result", "check", "own.jwt", "--verifier-keys", "own.json"], 0);

    // Without the parent's key the boot is unproved: two such results say nothing of each other.
    let ak = ["--ak", "ak.tpmt", "--token-out", "unproved.jwt", "--token-key", "token.pem"];
    verify(&dir, NONCE, &ak, 0);
    let unproved = json(&dir, &[&["result", "compare", "unproved.jwt", "unproved.jwt"], &keys[..]].concat(), 1);
    assert_eq!(codes(&unproved), ["boot.unproved"]);
    // Nothing is signed for evidence that does not hold.
    verify(&dir, NONCE, &["--ak", "ak.pem", "--token-out", "never.jwt"], 2);
    assert!(!dir.join("never.jwt").exists());
}

/// A key names no host. Whoever has an anchored TPM could make evidence in another name: the verdict must not look as if
/// it knew the name from elsewhere.
#[test]
fn a_name_that_only_the_evidence_gives_is_said_to_be_that() {
    const WORDS: &str = "what the evidence calls itself";
    let verifier = Verifier::new();
    let mut host = Host::new("honest", &verifier);
    let dir = host.evidence(NONCE);
    let named = |more: &[&str]| {
        let arguments = [&["verify"], &FILES[..], &["--nonce", NONCE], more].concat();
        let (text, _) = run(&dir, &arguments, 0);
        let in_json = json(&dir, &arguments, 0)["caveats"].to_string().contains(WORDS);
        assert_eq!(text.contains(&format!("but: the host's name is {WORDS}")), in_json, "{text}");
        !in_json
    };
    assert!(!named(&ANCHOR));
    assert!(named(&[&ANCHOR[..], &["--host", "honest"]].concat()));
    // That a verifier was named names no host.
    let of = Evidence::from_json(&std::fs::read(dir.join("evidence.json")).unwrap()).unwrap().binding.verifier;
    assert!(!named(&[&ANCHOR[..], &["--verifier", &of]].concat()));
    enrol(&dir, "honest");
    assert!(named(&["--enrolment", "enrolment", "--verifier-keys", "keys.json"]));
}

/// Writes a result that a verifier signed under a name, changed before.
type Results = Box<dyn Fn(&str, &dyn Fn(&mut ResultClaims))>;

/// A directory with a verifier's keys, and what writes its results there.
fn results() -> (tempfile::TempDir, Results) {
    let dir = tempfile::tempdir().unwrap();
    let signer = Signer::from_pem(SIGNING_KEY).unwrap();
    std::fs::write(dir.path().join("keys.json"), object!({ "keys": [signer.jwk()] }).to_string()).unwrap();
    let folder = dir.path().to_owned();
    let write = move |name: &str, change: &dyn Fn(&mut ResultClaims)| {
        let example = include_str!("../../attest/schemas/examples/result-1.json");
        let mut result = serde_json::from_str(example).unwrap();
        change(&mut result);
        std::fs::write(folder.join(name), signer.sign(TYP, &result).unwrap()).unwrap();
    };
    (dir, Box::new(write))
}

#[test]
fn a_result_holds_for_its_time_and_is_compared_with_one_of_its_own_host() {
    let (dir, write) = results();
    let keys = ["--verifier-keys", "keys.json"];
    let check = |code| json(dir.path(), &[&["result", "check", "result"], &keys[..]].concat(), code);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    write("result", &|result| (result.iat, result.exp) = (now - 60, now + 600));
    check(0);
    write("result", &|result| (result.iat, result.exp) = (now - 600, now - 60));
    assert_eq!(codes(&check(1)), ["result.expired"]);

    write("theirs", &|result| {
        let submodules = std::mem::take(&mut result.submods);
        result.submods = submodules.into_values().map(|submodule| ("other".to_owned(), submodule)).collect();
    });
    // What went by is no matter of expiry.
    json(dir.path(), &[&["result", "compare", "result", "result"], &keys[..]].concat(), 0);
    let two = json(dir.path(), &[&["result", "compare", "result", "theirs"], &keys[..]].concat(), 1);
    assert_eq!(codes(&two), ["result.other-host"]);
}

/// What two verdicts say of the time between them; a host remembered nowhere else.
#[test]
fn n40_n41_counters_that_go_back_are_refused_and_after_a_reset_nothing_continues() {
    let (dir, write_result) = results();
    let write = |name: &str, counters: (u32, u32)| {
        write_result(name, &|result| {
            for submodule in result.submods.values_mut() {
                (submodule.boot.reset_count, submodule.boot.restart_count) = counters;
            }
        });
    };
    let compare = |later: (u32, u32), code: i32| {
        write("earlier", (7, 2));
        write("later", later);
        json(dir.path(), &["result", "compare", "earlier", "later", "--verifier-keys", "keys.json"], code)
    };
    assert_eq!(compare((7, 2), 0)["same_boot"], true);
    for backwards in [(6, 2), (6, 9), (7, 1)] {
        assert_eq!(codes(&compare(backwards, 1)), ["boot.reset-count"], "{backwards:?}");
    }
    for (later, continuity) in [((8, 0), "reset"), ((7, 3), "restarted")] {
        let answer = compare(later, 0);
        assert_eq!((&answer["same_boot"], &answer["continuity"]["continuity"]), (&false.into(), &continuity.into()));
    }
}

#[test]
fn n35_n36_the_nonce_is_the_one_that_was_asked_for_and_the_one_that_was_signed() {
    let verifier = Verifier::new();
    let mut host = Host::new("honest", &verifier);
    let dir = host.evidence(NONCE);
    verify(&dir, &NONCE.to_uppercase(), &ANCHOR, 0);
    for almost in [&NONCE[..32], &format!("{NONCE}00"), &hex::encode(NONCE)[..128]] {
        assert_eq!(codes(&verify(&dir, almost, &ANCHOR, 1)), ["quote.nonce-mismatch"], "{almost}");
    }
    // The right one in the envelope, around a quote for another.
    host.evidence(&NONCE.replace("00", "01"));
    change(&dir, |evidence| evidence["binding"]["nonce"] = NONCE.into());
    assert_eq!(codes(&verify(&dir, NONCE, &ANCHOR, 1)), ["quote.binding-mismatch"]);
}

/// Changes the evidence as JSON.
fn change(dir: &Path, change: impl FnOnce(&mut Value)) {
    let path = dir.join("evidence.json");
    let mut evidence = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut evidence);
    std::fs::write(path, evidence.to_string()).unwrap();
}

#[test]
fn n73_n74_n76_n78_evidence_that_is_not_whole_or_says_more() {
    let verifier = Verifier::new();
    let mut host = Host::new("honest", &verifier);
    let dir = host.evidence(NONCE);
    let path = dir.join("evidence.json");
    let whole = std::fs::read(&path).unwrap();
    change(&dir, |_| ());
    verify(&dir, NONCE, &ANCHOR, 0);
    change(&dir, |evidence| evidence["quotes"] = object!([]));
    assert_eq!(codes(&verify(&dir, NONCE, &ANCHOR, 1)), ["evidence.no-quote"]);

    let text = String::from_utf8(whole.clone()).unwrap();
    for unreadable in [
        [0x1f, 0x8b, 8, 0, 0, 0, 0, 0].to_vec(),
        text.replacen('{', "{\"more\":1,", 1).into_bytes(),
        text.replacen('{', "{\"ima\":\"\",", 1).into_bytes(),
        text.replacen("\"eventlog\":", "\"eventlog\":null,\"log\":", 1).into_bytes(),
        [whole.as_slice(), b"{}"].concat(),
        [whole.as_slice(), &vec![b' '; 16 << 20]].concat(),
    ] {
        std::fs::write(&path, &unreadable).unwrap();
        assert!(verify(&dir, NONCE, &ANCHOR, 2)["error"]["text"].is_string());
    }
    std::fs::write(&path, whole).unwrap();
    verify(&dir, NONCE, &ANCHOR, 0);
}

#[test]
fn bytes_behind_the_last_event_are_a_denial() {
    let verifier = Verifier::new();
    let mut host = Host::new("honest", &verifier);
    let dir = host.evidence(NONCE);
    let mut evidence = Evidence::from_json(&std::fs::read(dir.join("evidence.json")).unwrap()).unwrap();
    evidence.eventlog.extend([0; 4]);
    std::fs::write(dir.join("evidence.json"), evidence.to_json().unwrap()).unwrap();
    assert_eq!(codes(&verify(&dir, NONCE, &ANCHOR, 1)), ["eventlog.trailing-bytes"]);
}

#[test]
fn another_command_line_is_told_in_words() {
    let verifier = Verifier::new();
    let mut host = Host::booted("tampered", &verifier, Boot::with(true, "console=ttyS0 quiet init=/bin/sh"));
    let dir = host.evidence(NONCE);
    let value = verify(&dir, NONCE, &ANCHOR, 1);
    assert!(codes(&value).contains(&"eventlog.command-line"), "{value}");
    let (_, stderr) = run(&dir, &[&["verify"], &FILES[..], &["--nonce", NONCE], &ANCHOR].concat(), 1);
    let found = "found     /vmlinuz console=ttyS0 quiet init=/bin/sh";
    assert!(stderr.starts_with("not trusted:") && stderr.contains(found), "{stderr}");
}

#[test]
fn files_that_are_not_what_they_should_be_are_2() {
    let verifier = Verifier::new();
    let mut host = Host::new("honest", &verifier);
    let dir = host.evidence(NONCE);
    for name in ["evidence.json", "reference.toml", "policy.toml", "ak.tpmt", "ek.tpmt"] {
        let whole = std::fs::read(dir.join(name)).unwrap();
        std::fs::write(dir.join(name), &whole[..whole.len() - 3]).unwrap();
        let value = verify(&dir, NONCE, &ANCHOR, 2);
        assert!(value["error"]["text"].as_str().unwrap().contains(name), "{value}");
        std::fs::write(dir.join(name), whole).unwrap();
    }
    std::fs::write(dir.join("policy.toml"), "").unwrap();
    assert_eq!(codes(&verify(&dir, NONCE, &ANCHOR, 1)), ["policy.empty"]);
}

#[test]
fn logs_lead_to_what_the_tpm_holds() {
    let verifier = Verifier::new();
    let mut host = Host::new("honest", &verifier);
    let dir = host.evidence(NONCE);
    let evidence = Evidence::from_json(&std::fs::read(dir.join("evidence.json")).unwrap()).unwrap();
    let quoted = |bank: Bank, pcr: u8| {
        evidence.quotes.iter().find_map(|quote| quote.pcrs.get(&bank)?.get(&pcr).map(hex::encode)).unwrap()
    };
    let value = json(&dir, &["eventlog", "replay", "eventlog"], 0);
    for bank in [Bank::Sha256, Bank::Sha384] {
        for pcr in [0_u8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14] {
            assert_eq!(value["banks"][bank.to_string()][pcr.to_string()], quoted(bank, pcr), "{bank} {pcr}");
        }
    }
    let (text, _) = run(&dir, &["eventlog", "replay", "eventlog", "--bank", "sha256"], 0);
    assert!(text.contains(&format!(" 8: {}", quoted(Bank::Sha256, 8))) && !text.contains("sha384"), "{text}");
    let (text, _) = run(&dir, &["eventlog", "show", "eventlog"], 0);
    assert!(text.contains("kernel command line") && text.contains("/vmlinuz console=ttyS0 quiet"), "{text}");
    let (_, stderr) = run(&dir, &["eventlog", "replay", "eventlog", "--bank", "sm3_256"], 2);
    assert!(stderr.contains("sm3_256"), "{stderr}");

    let value = json(&dir, &["ima", "replay", "ima"], 0);
    let pcr10 = value["banks"]["sha256"].as_str();
    assert_eq!((pcr10, value["entries"].as_u64()), (Some(&*quoted(Bank::Sha256, 10)), Some(2)));
    let value = json(&dir, &["ima", "replay", "ima", "--pcr10", &quoted(Bank::Sha256, 10)], 0);
    assert_eq!(value["reached_after"], 2, "{value}");
    assert_eq!(codes(&json(&dir, &["ima", "replay", "ima", "--pcr10", &"01".repeat(32)], 1)).len(), 1);
    run(&dir, &["ima", "replay", "ima", "--pcr10", "00"], 2);
}

#[test]
fn truncated_logs_are_2_and_say_where() {
    let verifier = Verifier::new();
    let host = Host::new("honest", &verifier);
    let (log, ima) = (host.boot.eventlog(), host.boot.ima());
    let dir = host.dir.path();
    std::fs::write(dir.join("log"), &log[..log.len() - 1]).unwrap();
    std::fs::write(dir.join("list"), &ima[..ima.len() - 1]).unwrap();
    for arguments in [&["eventlog", "show", "log"][..], &["eventlog", "replay", "log"], &["ima", "replay", "list"]] {
        let (stdout, stderr) = run(dir, arguments, 2);
        assert!(stdout.is_empty() && stderr.contains("cut short"), "{stderr}");
    }
}
