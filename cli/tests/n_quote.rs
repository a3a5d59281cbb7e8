//! What `portcullis quote check` must refuse, signed by a key that is no TPM's, so that everything but the one thing is
//! genuine: N01 to N07, N09 to N14, N16 to N18, N20 to N22, N24, N25, N27, N35 and N42. `genuine_quotes_hold` is the twin without the
//! defect.

// One TPM in software for the tests of both crates.
#[path = "../../attest/tests/software_tpm/mod.rs"]
mod software_tpm;

mod program;

use std::collections::BTreeMap;

use portcullis_attest::eventlog::EventLog;
use portcullis_attest::evidence::PcrValues;
use portcullis_attest::key::Bank;
use portcullis_firmware_fixtures::recorded;
use program::{codes, output};
use serde_json::Value;
use software_tpm::*;

/// The files of a quote, and the directory that they are written into.
#[derive(Clone)]
struct Files {
    ak: Vec<u8>,
    message: Vec<u8>,
    signature: Vec<u8>,
    pcrs: Vec<u8>,
    nonce: Vec<u8>,
}

impl Files {
    fn of(tpm: &SoftTpm, attest: &Attest) -> Self {
        let quote = tpm.quote(attest, &pcrs());
        Self {
            ak: sized(&tpm.ak.bytes()),
            message: quote.message,
            signature: quote.signature,
            pcrs: serialized(&pcrs()),
            nonce: binding().extra_data().to_vec(),
        }
    }

    /// A quote of these values by an enrolled key, right in all but what it leaves out.
    fn of_values(values: &PcrValues) -> Self {
        let tpm = SoftTpm::new();
        let quote = tpm.quote(&tpm.attest(&binding(), values), values);
        Self {
            message: quote.message,
            signature: quote.signature,
            pcrs: serialized(values),
            ..Self::of(&tpm, &tpm.attest(&binding(), values))
        }
    }

    fn genuine() -> Self {
        let tpm = SoftTpm::new();
        Self::of(&tpm, &tpm.attest(&binding(), &pcrs()))
    }

    /// The exit code, and the codes for which it is a no.
    fn check(&self) -> (i32, Vec<String>) {
        let (code, answer) = self.answer();
        (code, codes(&answer).into_iter().map(str::to_owned).collect())
    }

    fn answer(&self) -> (i32, Value) {
        let (code, stdout, _) = self.run(&[], &["--json"]);
        (code, serde_json::from_str(&stdout).unwrap())
    }

    /// Runs the check with these files beside the quote's, and further arguments.
    fn run(&self, beside: &[(&str, &[u8])], more: &[&str]) -> (i32, String, String) {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in beside {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        for (name, bytes) in
            [("ak", &self.ak), ("message", &self.message), ("signature", &self.signature), ("pcrs", &self.pcrs)]
        {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
        let files = ["--ak", "ak", "--message", "message", "--signature", "signature", "--pcrs", "pcrs"];
        let nonce = hex::encode(&self.nonce);
        output(dir.path(), &[&["quote", "check"], &files[..], &["--nonce", &nonce], more].concat())
    }

    fn refused(&self, code: &str) {
        assert_eq!(self.check(), (1, vec![code.to_owned()]));
    }
}

/// What `tpm2_quote -o` writes: C structures, little-endian.
fn serialized(values: &PcrValues) -> Vec<u8> {
    let mut out = u32::try_from(values.len()).unwrap().to_le_bytes().to_vec();
    for (bank, pcrs) in values {
        let bits = pcrs.keys().fold(0_u32, |bits, pcr| bits | 1 << pcr);
        out.extend(bank.tpm_alg_id().to_le_bytes());
        out.push(3);
        out.extend(bits.to_le_bytes());
        out.push(0);
    }
    out.resize(4 + 16 * 8, 0);
    let digests: Vec<&Vec<u8>> = values.values().flat_map(|pcrs| pcrs.values()).collect();
    out.extend(u32::try_from(digests.len().div_ceil(8)).unwrap().to_le_bytes());
    for list in digests.chunks(8) {
        let mut bytes = u32::try_from(list.len()).unwrap().to_le_bytes().to_vec();
        for digest in list {
            bytes.extend(u16::try_from(digest.len()).unwrap().to_le_bytes());
            bytes.extend(*digest);
            bytes.resize(bytes.len() + 64 - digest.len(), 0);
        }
        bytes.resize(4 + 8 * 66, 0);
        out.extend(bytes);
    }
    out
}

fn refused_after(code: &str, change: impl FnOnce(&mut Attest)) {
    let tpm = SoftTpm::new();
    let mut attest = tpm.attest(&binding(), &pcrs());
    change(&mut attest);
    Files::of(&tpm, &attest).refused(code);
}

fn refused_with_values(code: &str, change: impl FnOnce(&mut PcrValues)) {
    let mut values = pcrs();
    change(&mut values);
    Files { pcrs: serialized(&values), ..Files::genuine() }.refused(code);
}

#[test]
fn genuine_quotes_hold() {
    let files = Files::genuine();
    assert_eq!(files.check(), (0, vec![]));
    let in_order = pcrs().values().flat_map(|bank| bank.values()).flatten().copied().collect();
    assert_eq!(Files { pcrs: in_order, ..files }.check(), (0, vec![]));
}

/// What is wrong with a signature: unreadable, of another scheme, by another key; each in its own words.
#[test]
fn signatures_are_malformed_of_another_scheme_or_do_not_verify() {
    let (one, other) = (Files::genuine(), Files::genuine());
    let rsa = |size| SoftTpm::rsa(size, RSASSA, Bank::Sha256);
    let (small, large) = (rsa(aws_lc_rs::rsa::KeySize::Rsa2048), rsa(aws_lc_rs::rsa::KeySize::Rsa3072));
    let rsa = Files::of(&small, &small.attest(&binding(), &pcrs()));
    let plain = |tpm: &SoftTpm| tpm.sign_numbers(&rsa.message).concat();
    let with = |files: &Files, signature: Vec<u8>| {
        let files = Files {
            ak: files.ak.clone(),
            message: files.message.clone(),
            pcrs: files.pcrs.clone(),
            nonce: files.nonce.clone(),
            signature,
        };
        let (code, stdout, stderr) = files.run(&[], &["--json"]);
        let answer: Value = serde_json::from_str(&stdout).unwrap();
        (code, codes(&answer).concat(), stderr)
    };
    for (files, signature, reason, words) in [
        (&one, other.signature.clone(), "quote.signature-invalid", "did not sign this quote"),
        (&rsa, large.sign(&rsa.message), "quote.signature-invalid", "a number of 384 bytes, this key's have 256"),
        (&rsa, plain(&large)[..256].to_vec(), "quote.signature-invalid", "did not sign this quote"),
        (&rsa, one.signature.clone(), "quote.signature-scheme", "expected  RSASSA-sha256"),
        (&rsa, plain(&large), "quote.signature-malformed", "nor a plain signature (256 bytes of RSA): 384 bytes"),
        (&one, b"This is no signature.".to_vec(), "quote.signature-malformed", "neither a TPMT_SIGNATURE ("),
        (&one, Vec::new(), "quote.signature-malformed", "0 bytes"),
    ] {
        let (code, found, stderr) = with(files, signature);
        assert_eq!((code, found.as_str()), (1, reason), "{stderr}");
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
    // The twins, as a TPM writes them and plain.
    assert_eq!(with(&rsa, rsa.signature.clone()).0, 0);
    assert_eq!(with(&rsa, plain(&small)).0, 0);
}

/// A quote that covers only some of the PCRs of which the log has events proves only those.
#[test]
fn a_log_with_events_of_pcrs_that_were_not_quoted_is_a_no_unless_that_is_asked_for() {
    let bytes = recorded::SECURE_BOOT.event_log;
    let values = EventLog::parse(bytes).unwrap().replay(Bank::Sha256);
    let quoted = |without: &[u8]| {
        let pcrs = values.iter().filter(|(pcr, _)| !without.contains(pcr));
        Files::of_values(&[(Bank::Sha256, pcrs.map(|(pcr, value)| (*pcr, value.clone())).collect())].into())
    };
    let run = |files: &Files, more: &[&str]| files.run(&[("log", bytes)], &[&["--eventlog", "log"], more].concat());
    let (code, stdout, _) = run(&quoted(&[]), &[]);
    assert!(
        code == 0 && stdout.contains("events lead to the quoted PCRs") && !stdout.contains("WARNING: The event log")
    );

    let part = quoted(&[4, 7]);
    let (code, stdout, stderr) = run(&part, &[]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("eventlog.pcr-not-quoted") && stderr.contains("--allow-unquoted"), "{stderr}");
    assert!(stderr.contains("PCR 4") && stderr.contains("PCR 7"), "{stderr}");
    let (code, stdout, _) = run(&part, &["--json"]);
    assert_eq!((code, codes(&serde_json::from_str(&stdout).unwrap())), (1, vec!["eventlog.pcr-not-quoted"; 2]));

    let (code, stdout, _) = run(&part, &["--allow-unquoted"]);
    assert!(code == 0 && stdout.contains("events of PCRs 4, 7 are not covered by the quote"), "{stdout}");
    let (code, stdout, _) = run(&part, &["--allow-unquoted", "--json"]);
    let answer: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &answer["eventlog"]["unquoted_pcrs"]), (0, &serde_json::json!([4, 7])));
    assert_eq!(answer["caveats"].as_array().unwrap().last().unwrap()["code"], "unquoted-pcrs");
    // And a list with a quote that leaves out PCR 10.
    let (code, _, stderr) = part.run(&[("list", recorded::SECURE_BOOT.ima)], &["--ima", "list"]);
    assert!(code == 1 && stderr.contains("ima.pcr-not-quoted") && stderr.contains("did not sign PCR 10"), "{stderr}");
}

/// What holds and still leaves something open is said.
#[test]
fn what_a_quote_and_its_log_leave_open_is_a_caveat() {
    let tpm = SoftTpm::new();
    let caveats = |files: &Files, log: Option<&[u8]>| {
        let named = log.map(|log| ("log", log));
        let more = [&["--json"][..], if log.is_some() { &["--eventlog", "log"] } else { &[] }].concat();
        let (code, stdout, stderr) = files.run(named.as_slice(), &more);
        assert_eq!(code, 0, "{stderr}");
        let answer: Value = serde_json::from_str(&stdout).unwrap();
        let codes =
            answer["caveats"].as_array().unwrap().iter().map(|caveat| caveat["code"].as_str().unwrap().to_owned());
        codes.filter(|code| code != "parent-unknown").collect::<Vec<_>>()
    };
    let mut attest = tpm.attest(&binding(), &pcrs());
    assert_eq!(caveats(&Files::of(&tpm, &attest), None), [""; 0]);
    attest.extra_data = Vec::new();
    assert_eq!(caveats(&Files { nonce: Vec::new(), ..Files::of(&tpm, &attest) }, None), ["no-nonce"]);

    let log = recorded::SECURE_BOOT.event_log;
    let quoted = Files::of_values(&[(Bank::Sha256, EventLog::parse(log).unwrap().replay(Bank::Sha256))].into());
    assert_eq!(caveats(&quoted, Some(log)), [""; 0]);
    assert_eq!(caveats(&quoted, Some(&[log, &[0; 64]].concat())), ["trailing-bytes"]);
}

#[test]
fn n04_signed_bytes_that_are_more_than_any_quote_has() {
    let tpm = SoftTpm::new();
    let mut attest = tpm.attest(&binding(), &pcrs());
    attest.extra_data = vec![7; 4096];
    Files::of(&tpm, &attest).refused("quote.malformed");
}

/// The file of values selects a PCR that no TPM has.
#[test]
fn n07_a_file_of_values_with_a_25th_pcr() {
    let genuine = Files::genuine();
    let select = |last: u8| {
        let mut pcrs = genuine.pcrs.clone();
        // Of the first bank: hash (2 bytes), size, bits.
        (pcrs[4 + 2], pcrs[4 + 6]) = (4, last);
        Files { pcrs, ..genuine.clone() }
    };
    assert_eq!(select(0).run(&[], &[]).0, 0);
    let (code, _, stderr) = select(1).run(&[], &[]);
    assert!(code == 2 && stderr.contains("pcrs"), "{code}: {stderr}");
}

/// What was measured into a bank of which the log has no digests, it does not tell.
#[test]
fn n57_a_log_without_digests_of_a_quoted_bank_does_not_lead_to_the_quote() {
    let bytes = recorded::SECURE_BOOT.event_log;
    let log = EventLog::parse(bytes).unwrap();
    assert!(!log.declared_banks().contains(&Bank::Sm3_256));
    let own = (Bank::Sha256, log.replay(Bank::Sha256));
    let run = |banks: &[(Bank, BTreeMap<u8, Vec<u8>>)]| {
        let files = Files::of_values(&banks.iter().cloned().collect());
        files.run(&[("log", bytes)], &["--eventlog", "log", "--json"])
    };
    let answer = |stdout: &str| serde_json::from_str::<Value>(stdout).unwrap();
    let (code, stdout, _) = run(std::slice::from_ref(&own));
    assert_eq!((code, codes(&answer(&stdout))), (0, Vec::<&str>::new()));
    for value in [0, 7] {
        let (code, stdout, _) = run(&[own.clone(), (Bank::Sm3_256, [(7, vec![value; 32])].into())]);
        assert_eq!((code, codes(&answer(&stdout))), (1, vec!["eventlog.bank-missing"]), "{value}");
    }
}

#[test]
fn n01_n02_n03_other_structures() {
    refused_after("quote.magic", |attest| attest.magic = 0xFF54_4346);
    for kind in [0x8014, 0x8017, 0x8019, 0x801A] {
        refused_after("quote.type", |attest| attest.kind = kind);
    }
    refused_after("quote.malformed", |attest| attest.body.push(0));
}

#[test]
fn n04_cut_short() {
    let tpm = SoftTpm::new();
    let genuine = Files::of(&tpm, &tpm.attest(&binding(), &pcrs()));
    for length in [0, 3, 7, 50, genuine.message.len() - 1] {
        let message = genuine.message[..length].to_vec();
        let signature = tpm.sign(&message);
        let ak = genuine.ak.clone();
        Files { ak, message, signature, ..Files::genuine() }.refused("quote.malformed");
    }
    Files { signature: genuine.signature[..9].to_vec(), ..genuine }.refused("quote.signature-malformed");
}

#[test]
fn n05_n06_n07_selections_that_no_quote_has() {
    let digest = sized(&Bank::Sha256.hash(&[1; 32]));
    let body = |count: u32, select: &[u8]| [&count.to_be_bytes()[..], select, &digest].concat();
    let one = select(0x000B, &[0]);
    for bad in [
        body(2, &[one.clone(), one.clone()].concat()),
        body(1, &select(0x0027, &[0])),
        body(17, &one.repeat(17)),
        body(1, &[0, 0x0B, 2, 1, 0]),
        body(1, &[0, 0x0B, 4, 1, 0, 0, 1]),
    ] {
        refused_after("quote.selection", |attest| attest.body = bad);
    }
    refused_after("quote.empty-selection", |attest| attest.body = body(1, &select(0x000B, &[])));
}

#[test]
fn n09_n10_n11_n12_values_that_were_not_quoted() {
    refused_with_values("quote.pcr-digest-mismatch", |values| {
        values.get_mut(&Bank::Sha256).unwrap().insert(0, vec![9; 32]);
    });
    let relabelled = Files::genuine();
    let mut pcrs_file = relabelled.pcrs.clone();
    // PCR 14 of SHA-256 called 15: the selection's second byte.
    pcrs_file[4 + 4] ^= 0b1100_0000;
    let (code, mut codes) = Files { pcrs: pcrs_file, ..relabelled }.check();
    codes.sort();
    assert_eq!((code, codes), (1, vec!["quote.pcr-extra".to_owned(), "quote.pcr-missing".to_owned()]));
    refused_with_values("quote.pcr-extra", |values| {
        values.get_mut(&Bank::Sha256).unwrap().insert(23, vec![0; 32]);
    });
    refused_with_values("quote.pcr-missing", |values| {
        values.get_mut(&Bank::Sha384).unwrap().remove(&14);
    });
    refused_with_values("quote.pcr-length", |values| {
        values.get_mut(&Bank::Sha384).unwrap().insert(14, vec![15; 32]);
    });
    // A bank that the file names twice cannot be read as either.
    let mut twice = Files::genuine();
    twice.pcrs[4 + 8..4 + 10].copy_from_slice(&[0x0B, 0]);
    assert_eq!(twice.check(), (2, vec![]));
}

#[test]
fn n13_n14_digests_of_another_hash_or_order() {
    let values: Vec<Vec<u8>> = pcrs().values().flat_map(|bank| bank.values().cloned()).collect();
    let parts: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
    let turned: Vec<&[u8]> = parts.iter().rev().copied().collect();
    for digest in [Bank::Sha384.hash_parts(&parts), Bank::Sha256.hash_parts(&turned)] {
        refused_after("quote.pcr-digest-mismatch", |attest| {
            attest.body.truncate(attest.body.len() - 34);
            attest.body.extend(sized(&digest));
        });
    }
}

#[test]
fn n16_n17_n18_signatures_of_another_key_or_hash_or_no_numbers() {
    let tpm = SoftTpm::new();
    let genuine = || Files::of(&tpm, &tpm.attest(&binding(), &pcrs()));
    let rsa = SoftTpm::rsa(aws_lc_rs::rsa::KeySize::Rsa2048, RSASSA, Bank::Sha256);
    let files = genuine();
    Files { signature: rsa.sign(&files.message), ..files }.refused("quote.signature-scheme");
    let files = genuine();
    Files { ak: rsa.ak.bytes(), ..files }.refused("quote.signature-scheme");
    for hash in [0x0004, 0x000C, 0x0012, NULL] {
        let files = genuine();
        let signature = signature((ECDSA, hash), &tpm.sign_numbers(&files.message));
        Files { signature, ..files }.refused("quote.signature-scheme");
    }
    for number in [vec![0; 32], vec![0xFF; 32]] {
        let files = genuine();
        let signature = signature((ECDSA, 0x000B), &[number.clone(), number]);
        Files { signature, ..files }.refused("quote.signature-invalid");
    }
}

#[test]
fn n20_n21_n24_n25_keys_that_are_no_attestation_keys() {
    let with = |change: &dyn Fn(&mut Public)| {
        let tpm = SoftTpm::new();
        let mut ak = tpm.ak.clone();
        change(&mut ak);
        Files { ak: ak.bytes(), ..Files::of(&tpm, &tpm.attest(&binding(), &pcrs())) }
    };
    assert_eq!(with(&|_| ()).check(), (0, vec![]));
    for (bit, code) in [
        (16, "ak.not-restricted"),
        (18, "ak.not-signing"),
        (1, "ak.not-fixed-tpm"),
        (4, "ak.not-fixed-parent"),
        (5, "ak.foreign-secret"),
    ] {
        with(&|ak| ak.attributes &= !(1 << bit)).refused(code);
    }
    with(&|ak| ak.attributes |= 1 << 17).refused("ak.decrypts");
    with(&|ak| ak.name_alg = NULL).refused("ak.name-algorithm");
    // N19 and N22: a weak curve, and a signer whose name another algorithm made.
    let (code, codes) = with(&|ak| ak.size = 0x0001).check();
    assert!(code == 1 && codes.contains(&"ak.weak-key".to_owned()), "{codes:?}");
    with(&|ak| ak.name_alg = 0x000C).refused("quote.signer-mismatch");
    let mut longer = with(&|_| ());
    longer.ak.push(0);
    assert_eq!(longer.check(), (2, vec![]), "a file that is no public area");
}

#[test]
fn n27_rsassa_and_rsapss_are_not_interchangeable() {
    for (own, other) in [(RSASSA, RSAPSS), (RSAPSS, RSASSA)] {
        let tpm = SoftTpm::rsa(aws_lc_rs::rsa::KeySize::Rsa2048, own, Bank::Sha256);
        let genuine = Files::of(&tpm, &tpm.attest(&binding(), &pcrs()));
        assert_eq!(genuine.check(), (0, vec![]));
        let signature = signature((other, 0x000B), &tpm.sign_numbers(&genuine.message));
        Files { signature, ..genuine }.refused("quote.signature-scheme");
    }
}

#[test]
fn n42_an_unsafe_clock_is_said_and_voids_nothing_else() {
    let tpm = SoftTpm::new();
    for safe in [1, 0] {
        let mut attest = tpm.attest(&binding(), &pcrs());
        attest.safe = safe;
        let (code, answer) = Files::of(&tpm, &attest).answer();
        assert_eq!((code, &answer["safe"]), (0, &(safe == 1).into()));
    }
}

#[test]
fn n35_nonces_that_are_almost_right() {
    let nonce = binding().extra_data();
    for other in [vec![], nonce[..31].to_vec(), [&nonce[..], &[0]].concat(), hex::encode(nonce).into_bytes()] {
        Files { nonce: other, ..Files::genuine() }.refused("quote.nonce-mismatch");
    }
}
