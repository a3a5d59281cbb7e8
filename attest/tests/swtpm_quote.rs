//! Quotes of software TPMs.

mod swtpm;

use std::time::{Duration, Instant};

use portcullis_attest::appraise::QUOTED_PCRS;
use portcullis_attest::binding::Purpose;
use portcullis_attest::evidence::Evidence;
use portcullis_attest::key::Bank;
use portcullis_attest::quote::VerifiedQuote;
use portcullis_attest::reason::ReasonCode;
use portcullis_attest::tpm::TpmError;
use swtpm::{Host, binding, codes, selection};

#[test]
fn a_quote_verifies_and_says_which_boot() {
    let mut host = Host::new();
    let asked = binding(Purpose::Attest);
    host.tpm.extend(14, &[(Bank::Sha256, vec![9; 32])]).unwrap();
    let evidence = host.evidence(&asked, &selection());
    let quote = VerifiedQuote::verify(&evidence, &host.ak, &asked).unwrap();
    assert_eq!(quote.banks().collect::<Vec<_>>(), [Bank::Sha1, Bank::Sha256, Bank::Sha384]);
    let expected = Bank::Sha256.extend(&[0; 32], &[9; 32]);
    assert_eq!(quote.pcr(Bank::Sha256, 14), Some(expected.as_slice()));
    assert_eq!(quote.pcr(Bank::Sha384, 14), Some([0; 48].as_slice()));
    assert_eq!(quote.pcr(Bank::Sha256, 15), Some([0; 32].as_slice()));
    assert_eq!(quote.pcr(Bank::Sha256, 16), None);
    let before = quote.clock();
    assert!(before.safe);

    // The same over JSON.
    let read = Evidence::from_json(&evidence.to_json().unwrap()).unwrap();
    assert_eq!(read, evidence);

    // After a reset the counter has grown by one, and the key is still the same.
    let mut host = host.power_cycle();
    let evidence = host.evidence(&asked, &selection());
    let after = VerifiedQuote::verify(&evidence, &host.ak, &asked).unwrap().clock();
    assert_eq!(after.reset_count, before.reset_count + 1);
    assert_eq!(after.restart_count, 0);
}

#[test]
fn n39_two_quotes_of_one_evidence_must_be_of_one_boot() {
    let mut host = Host::new();
    let asked = binding(Purpose::Attest);
    let first = host.tpm.quote(&asked, &selection()[..1]).unwrap();
    let second = host.tpm.quote(&asked, &selection()[1..]).unwrap();
    VerifiedQuote::verify(&swtpm::evidence(&asked, vec![first.clone(), second]), &host.ak, &asked).unwrap();

    let mut host = host.power_cycle();
    let second = host.tpm.quote(&asked, &selection()[1..]).unwrap();
    let denied = VerifiedQuote::verify(&swtpm::evidence(&asked, vec![first, second]), &host.ak, &asked).unwrap_err();
    assert_eq!(codes(&denied), [ReasonCode::QuoteInstanceMismatch]);
}

#[test]
fn n42_after_a_crash_the_clock_is_unsafe_and_the_quote_holds() {
    // The TPM saves its clock every 4096 ms, and calls it safe from the first time on: on a busy machine that may come before
    // the quote. Then nothing was seen, and it crashes again.
    const SAVED_AFTER: Duration = Duration::from_secs(3);
    let asked = binding(Purpose::Attest);
    let Host { mut tpm, ak_blob, ak, mut swtpm, .. } = Host::new();
    for _ in 0..20 {
        swtpm.kill9();
        drop(tpm);
        let started = Instant::now();
        swtpm.start().unwrap();
        tpm = portcullis_attest::tpm::Tpm::open(&swtpm.tcti()).unwrap();
        tpm.load_ak(&ak_blob).unwrap();
        let quote = tpm.quote(&asked, &selection()).unwrap();
        let in_time = started.elapsed() < SAVED_AFTER;
        let quote = VerifiedQuote::verify(&swtpm::evidence(&asked, vec![quote]), &ak, &asked).unwrap();
        if in_time {
            assert!(!quote.clock().safe);
            return;
        }
    }
    panic!("this machine is too slow to quote within {SAVED_AFTER:?} of a crash");
}

#[test]
fn n80_another_tpms_quote_is_refused() {
    let mut honest = Host::new();
    let tampered = Host::new();
    let asked = binding(Purpose::Attest);
    let evidence = honest.evidence(&asked, &selection());
    VerifiedQuote::verify(&evidence, &honest.ak, &asked).unwrap();
    let denied = VerifiedQuote::verify(&evidence, &tampered.ak, &asked).unwrap_err();
    assert_eq!(codes(&denied), [ReasonCode::QuoteSignatureInvalid]);
}

#[test]
fn n90_the_tpm_says_which_banks_are_active() {
    let mut host = Host::new();
    let all: Vec<_> = [Bank::Sha1, Bank::Sha256, Bank::Sha384].map(|bank| (bank, QUOTED_PCRS.collect())).to_vec();
    assert_eq!(host.tpm.active_pcrs().unwrap(), all);
    // All of them fit into one quote.
    let asked = binding(Purpose::Enrol);
    let quote = host.tpm.quote_active(&asked).unwrap();
    let quote = VerifiedQuote::verify(&swtpm::evidence(&asked, vec![quote]), &host.ak, &asked).unwrap();
    for (bank, pcrs) in all {
        assert!(pcrs.iter().all(|pcr: &u8| quote.pcr(bank, *pcr).is_some()), "{bank}");
    }
}

#[test]
fn a_bank_that_the_tpm_lacks_is_named() {
    let mut host = Host::new();
    let refused = host.tpm.quote(&binding(Purpose::Attest), &[(Bank::Sha512, vec![0])]).unwrap_err();
    assert!(matches!(refused, TpmError::NoPcr { bank: Bank::Sha512, pcr: 0 }), "{refused:?}");
}
