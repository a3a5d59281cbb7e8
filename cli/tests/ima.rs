//! `portcullis ima replay`: lists as kernels write them, with the PCR 10 that their TPMs had.

mod program;

use portcullis_attest::ima::ImaList;
use portcullis_attest::key::Bank;
use portcullis_firmware_fixtures::recorded;
use program::{codes, json, run};
use serde_json::Value;
use tempfile::TempDir;

/// A directory with the file `list`.
fn with_list(bytes: &[u8]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("list"), bytes).unwrap();
    dir
}

fn replay(dir: &TempDir, more: &[&str], code: i32) -> Value {
    json(dir.path(), &[&["ima", "replay", "list"], more].concat(), code)
}

/// The list as newer kernels show it for one bank: with that bank's template digests.
fn of_bank(list: &[u8], digest: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in ImaList::parse_binary(list).unwrap().entries() {
        let (name, data) = (entry.template.name(), entry.template_data());
        out.extend(entry.pcr.to_le_bytes());
        out.extend(digest(&data));
        for part in [name.as_bytes(), &data] {
            out.extend(u32::try_from(part.len()).unwrap().to_le_bytes());
            out.extend(part);
        }
    }
    out
}

#[test]
fn a_list_leads_to_the_recorded_pcr_and_says_by_which_rule() {
    for boot in &recorded::ALL {
        let dir = with_list(boot.ima);
        let all = replay(&dir, &[], 0);
        assert_eq!((&all["violations"], &all["template_mismatches"]), (&0.into(), &0.into()));
        assert_eq!((&all["template_digests"], &all["rule"]), (&"sha1".into(), &Value::Null));
        let pcrs: Value = serde_json::from_str(boot.pcrs_json).unwrap();
        // The kernel has no SHA-384 at hand when IMA starts.
        for (bank, rule) in [("sha1", "digest"), ("sha256", "digest"), ("sha384", "padded-sha1")] {
            let pcr10 = pcrs[bank]["10"].as_str().unwrap();
            let found = replay(&dir, &["--pcr10", pcr10], 0);
            assert_eq!((&found["bank"], &found["rule"]), (&bank.into(), &rule.into()), "{}", boot.name);
            let key = if rule == "digest" { bank.to_owned() } else { format!("{bank}_padded_sha1") };
            // The list went on after the PCRs were read, or it did not.
            assert_eq!(found["reached_after"] == all["entries"], all["banks"][&key] == pcr10, "{}", boot.name);
        }
    }
}

#[test]
fn a_list_of_a_larger_bank_says_by_which_rule_that_was_extended() {
    let list = recorded::SECURE_BOOT.ima;
    let expected = replay(&with_list(list), &[], 0)["banks"].clone();
    let padded = |data: &[u8]| [Bank::Sha1.hash(data), vec![0; 28]].concat();
    for (list, bank, rule) in [
        (of_bank(list, |data| Bank::Sha256.hash(data)), "sha256", "digest"),
        (of_bank(list, |data| Bank::Sm3_256.hash(data)), "sm3_256", "digest"),
        (of_bank(list, |data| Bank::Sha384.hash(data)), "sha384", "digest"),
        (of_bank(list, padded), "sha384", "padded-sha1"),
    ] {
        let dir = with_list(&list);
        let all = replay(&dir, &[], 0);
        assert_eq!((&all["template_digests"], &all["rule"]), (&bank.into(), &rule.into()));
        assert_eq!((&all["banks"], &all["template_mismatches"]), (&expected, &0.into()));
        let (text, _) = run(dir.path(), &["ima", "replay", "list"], 0);
        assert!(text.contains(&format!("bank {bank} was extended by the rule {rule}")), "{text}");
    }
}

#[test]
fn what_the_list_never_reaches_is_1_and_what_no_bank_holds_is_2() {
    let dir = with_list(recorded::SECURE_BOOT.ima);
    for size in [20, 32, 48, 64] {
        let denied = replay(&dir, &["--pcr10", &"01".repeat(size)], 1);
        assert_eq!(codes(&denied), ["ima.pcr-mismatch"]);
    }
    replay(&dir, &["--pcr10", "0101"], 2);
    replay(&dir, &["--pcr10", &"xx".repeat(32)], 2);
    replay(&dir, &["--pcr10", &"01".repeat(32), "--bank", "sha384"], 2);
    let only = replay(&dir, &["--bank", "sha384"], 0);
    assert_eq!(only["banks"].as_object().unwrap().len(), 2);
}

#[test]
fn other_files_are_no_lists_and_an_empty_one_is_none_either() {
    let list = recorded::SECURE_BOOT.ima;
    for (bytes, words) in [
        (&b""[..], "the list is empty: read it from /sys/kernel/security/ima"),
        (recorded::SECURE_BOOT.event_log, "not an IMA list: entry 1"),
        (b"Once upon a time there was a text file.\n", "not an IMA list: entry 1"),
        (b"10 apples and 5 pears\n", "not an IMA list: entry 1"),
        (&list[..list.len() - 1], "the list was cut short"),
    ] {
        let dir = with_list(bytes);
        let error = replay(&dir, &[], 2)["error"]["text"].as_str().unwrap().to_owned();
        assert!(error.starts_with("list: ") && error.contains(words), "{error}");
        replay(&dir, &["--pcr10", &"00".repeat(32)], 2);
    }
    let cut = replay(&with_list(&list[..list.len() - 1]), &[], 2);
    assert!(!cut["error"]["text"].as_str().unwrap().contains("not an IMA list"), "{cut}");
    run(with_list(list).path(), &["ima", "replay", "/dev/null"], 2);
}

/// Kernels before 5.8 padded the ones of a violation, newer ones do not.
#[test]
fn n65_violations_are_replayed_as_newer_and_as_older_kernels_extend_them() {
    let mut list = recorded::SECURE_BOOT.ima.to_vec();
    let first = list.len() - portcullis_attest::ima::after(&list, 1).unwrap().len();
    let mut violation = list[..first].to_vec();
    // The template digest stands behind the PCR index.
    violation[4..24].fill(0);
    list.extend(violation);
    let dir = with_list(&list);
    let all = replay(&dir, &[], 0);
    assert_eq!(all["violations"], 1);
    for (key, bank, rule) in [
        ("sha256", "sha256", "digest"),
        ("sha256_padded_sha1", "sha256", "padded-sha1"),
        ("sha256_padded_throughout", "sha256", "padded-throughout"),
        ("sha384_padded_throughout", "sha384", "padded-throughout"),
    ] {
        let found = replay(&dir, &["--pcr10", all["banks"][key].as_str().unwrap()], 0);
        assert_eq!(
            (&found["bank"], &found["rule"], &found["reached_after"]),
            (&bank.into(), &rule.into(), &all["entries"])
        );
    }
    let (text, _) = run(dir.path(), &["ima", "replay", "list"], 0);
    assert!(text.contains("1 violations") && text.contains("of kernels before 5.8"), "{text}");
    assert!(replay(&with_list(recorded::SECURE_BOOT.ima), &[], 0)["banks"].get("sha256_padded_throughout").is_none());
}

#[test]
fn n66_a_template_digest_of_something_else_is_counted() {
    let mut list = recorded::SECURE_BOOT.ima.to_vec();
    // Behind the first entry's PCR index.
    list[4] ^= 1;
    let dir = with_list(&list);
    assert_eq!(replay(&dir, &[], 0)["template_mismatches"], 1);
    let (text, _) = run(dir.path(), &["ima", "replay", "list"], 0);
    assert!(text.contains("1 entries have a template digest"), "{text}");
}

#[test]
fn lists_of_the_corpus_replay_as_an_independent_program_computed() {
    let Some(corpus) = recorded::corpus("replay of a real IMA list") else { return };
    let expected = std::fs::read_to_string(corpus.join("expected-ima.json")).unwrap();
    let expected: serde_json::Map<String, Value> = serde_json::from_str(&expected).unwrap();
    assert!(!expected.is_empty());
    for (name, expected) in &expected {
        let all = json(&corpus.join("ima"), &["ima", "replay", name], 0);
        for key in ["entries", "violations", "template_mismatches"] {
            assert_eq!(all[key], expected[key], "{name} {key}");
        }
        for (bank, value) in expected["banks"].as_object().unwrap() {
            assert_eq!(all["banks"][bank], *value, "{name} {bank}");
        }
    }
}
