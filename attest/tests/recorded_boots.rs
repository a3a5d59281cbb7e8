//! Real firmware's quotes and endorsement keys, as recorded on lab hosts.

mod software_tpm;

use std::time::SystemTime;

use portcullis_attest::endorsement::{EkRoots, EndorsementKey};
use portcullis_attest::eventlog::EventLog;
use portcullis_attest::evidence::SignedQuote;
use portcullis_attest::ima::ImaList;
use portcullis_attest::key::{Bank, EnrolledAk, PublicArea, QuotingKey};
use portcullis_attest::quote::{Caveat, CheckedQuote, PcrFile};
use portcullis_attest::reason::{Denial, ReasonCode};
use portcullis_firmware_fixtures::recorded::{ALL, NONCE, RecordedBoot, SEABIOS};
use serde_json::json;

fn area(tpm2b: &[u8]) -> Vec<u8> {
    PublicArea::parse_tpm2b(tpm2b).unwrap().bytes().to_vec()
}

/// The attestation key of one boot under the endorsement key of another, or the same.
fn key(ak: &RecordedBoot, ek: &RecordedBoot) -> QuotingKey {
    QuotingKey::parse(ak.ak_public).unwrap().under(&PublicArea::parse_tpm2b(ek.ek_public).unwrap()).unwrap()
}

fn check(quote: &SignedQuote, key: &QuotingKey, nonce: &[u8]) -> Result<CheckedQuote, Denial> {
    CheckedQuote::check(key, &quote.message, &quote.signature, &PcrFile::Named(quote.pcrs.clone()), nonce)
}

fn quote(boot: &RecordedBoot) -> SignedQuote {
    let pcrs: serde_json::Value = serde_json::from_str(boot.pcrs_json).unwrap();
    let mut quote: SignedQuote = serde_json::from_value(json!({"message": "", "signature": "", "pcrs": pcrs})).unwrap();
    // The recording has more values than were quoted.
    for (bank, pcrs) in &mut quote.pcrs {
        let quoted = |pcr: &u8| match bank.name() {
            "sha256" => *pcr <= 10 || *pcr == 14,
            "sha384" => *pcr <= 9 || *pcr == 14,
            _ => false,
        };
        pcrs.retain(|pcr, _| quoted(pcr));
    }
    quote.pcrs.retain(|_, pcrs| !pcrs.is_empty());
    SignedQuote { message: boot.quote_message.to_vec(), signature: boot.quote_signature.to_vec(), ..quote }
}

#[test]
fn recorded_quotes_and_endorsement_keys_hold() {
    for boot in ALL.iter().chain([&SEABIOS]) {
        let ek = area(boot.ek_public);
        let ak = EnrolledAk::new(&area(boot.ak_public), &ek).unwrap();
        assert_eq!(ak.name(), boot.ak_name, "{}", boot.name);
        let quote = check(&quote(boot), &key(boot, boot), NONCE).unwrap_or_else(|bad| panic!("{}: {bad:?}", boot.name));
        assert!(quote.clock().reset_count > 0);
        assert_eq!(quote.caveats(), []);

        let roots = EkRoots::from_dir_files([("vendor.pem", boot.vendor_pem)]).unwrap();
        let ek = EndorsementKey::check(&ek, Some(boot.ek_certificate), &[], &roots, SystemTime::now()).unwrap();
        assert!(ek.is_certified(), "{}", boot.name);
    }
}

/// SeaBIOS logs no UEFI's variables, and ends its separators in ones: the quote accounts for its log all the same.
#[test]
fn the_log_of_a_bios_leads_to_its_quote_and_to_nothing_more() {
    let quote = check(&quote(&SEABIOS), &key(&SEABIOS, &SEABIOS), NONCE).unwrap();
    let log = EventLog::parse(SEABIOS.event_log).unwrap();
    assert_eq!((log.events().len(), log.banks()), (13, vec![Bank::Sha1, Bank::Sha256, Bank::Sha384]));
    assert_eq!(quote.replay_eventlog(&log), Ok(vec![Caveat::RuntimeUnchecked]));
    let list = ImaList::parse(SEABIOS.ima).unwrap();
    assert_eq!(quote.replay_ima(&list), Ok(list.entries().count()));

    let mut other = SEABIOS.event_log.to_vec();
    let final_byte = other.len() - 4 - 4 - 1;
    other[final_byte] ^= 1;
    let reasons = quote.replay_eventlog(&EventLog::parse(&other).unwrap()).unwrap_err();
    assert_eq!(
        reasons.iter().map(|reason| (reason.code, reason.pcr)).collect::<Vec<_>>(),
        [(ReasonCode::EventlogPcrMismatch, Some(7))]
    );
}

#[test]
fn recorded_quotes_hold_for_nothing_else() {
    let [one, other, ..] = ALL;
    let codes = |quote: &SignedQuote, key: &QuotingKey, nonce: &[u8]| {
        check(quote, key, nonce).unwrap_err().iter().map(|reason| reason.code).collect::<Vec<_>>()
    };
    let own = key(&one, &one);
    assert_eq!(codes(&quote(&one), &own, b"another nonce"), [ReasonCode::QuoteNonceMismatch]);
    assert_eq!(codes(&quote(&one), &key(&other, &other), NONCE), [ReasonCode::QuoteSignatureInvalid]);
    // One boot's values under the other's quote.
    let swapped = SignedQuote { pcrs: quote(&other).pcrs, ..quote(&one) };
    assert_eq!(codes(&swapped, &own, NONCE), [ReasonCode::QuotePcrDigestMismatch]);
    // The attestation key under another host's endorsement key.
    assert_eq!(codes(&quote(&one), &key(&one, &other), NONCE), [ReasonCode::QuoteSignerMismatch]);
}

#[test]
fn recorded_logs_lead_to_what_their_quotes_cover() {
    let [one, other, ..] = ALL;
    let quote = check(&quote(&one), &key(&one, &one), NONCE).unwrap();
    let codes = |denial: Denial| denial.iter().map(|reason| reason.code).collect::<Vec<_>>();
    let events = |log: &[u8]| quote.replay_eventlog(&EventLog::parse(log).unwrap()).map_err(codes);
    let entries = |list: &[u8]| quote.replay_ima(&ImaList::parse(list).unwrap()).map_err(codes);
    // PCR 10 is the IMA list's, so a log alone leaves it open.
    assert_eq!(events(one.event_log), Ok(vec![Caveat::RuntimeUnchecked]));
    let all = ImaList::parse(one.ima).unwrap().entries().count();
    assert_eq!(entries(one.ima), Ok(all));

    // N54 and N64: a log that was cut, one that goes on, and another boot's.
    let log = EventLog::parse(one.event_log).unwrap();
    assert!(EventLog::parse(&one.event_log[..one.event_log.len() - log.trailing().len() - 1]).is_err());
    assert_eq!(events(other.event_log), Err(vec![ReasonCode::EventlogPcrMismatch; 4]));
    // N66 and N69: a list that was cut, or is another boot's.
    assert_eq!(entries(other.ima), Err(vec![ReasonCode::ImaPcrMismatch]));
    assert_eq!(entries(&[]), Err(vec![ReasonCode::ImaMissing]));
    let longer = [one.ima, other.ima].concat();
    assert_eq!(entries(&longer), Ok(all), "what follows is not covered, and that is said");

    // A quote that does not cover PCR 10 says nothing of a list.
    let tpm = software_tpm::SoftTpm::new();
    let values = [(Bank::Sha256, [(0, vec![1; 32])].into())].into();
    let evidence = tpm.evidence(&software_tpm::binding(), &values);
    let own = QuotingKey::parse(&tpm.ak.bytes()).unwrap();
    let quote = check(&evidence.quotes[0], &own, &software_tpm::binding().extra_data()).unwrap();
    let reasons = quote.replay_ima(&ImaList::parse(one.ima).unwrap()).unwrap_err();
    assert_eq!(codes(reasons), [ReasonCode::ImaPcrNotQuoted]);
    // Nor does a log account for values that it does not lead to.
    assert!(quote.replay_eventlog(&log).is_err());
}

/// A log whose events are of more PCRs than were quoted: the rest of it is only what somebody says.
#[test]
fn a_log_of_pcrs_that_were_not_quoted_is_refused_unless_that_is_asked_for() {
    let log = EventLog::parse(ALL[0].event_log).unwrap();
    let values = log.replay(Bank::Sha256);
    let of = |pcrs: &[u8]| {
        let tpm = software_tpm::SoftTpm::new();
        let quoted: std::collections::BTreeMap<u8, Vec<u8>> =
            pcrs.iter().map(|pcr| (*pcr, values.get(pcr).cloned().unwrap_or(vec![0; 32]))).collect();
        let evidence = tpm.evidence(&software_tpm::binding(), &[(Bank::Sha256, quoted)].into());
        let own = QuotingKey::parse(&tpm.ak.bytes()).unwrap();
        check(&evidence.quotes[0], &own, &software_tpm::binding().extra_data()).unwrap()
    };
    let all: Vec<u8> = values.keys().copied().collect();
    let whole = of(&all);
    assert_eq!((whole.replay_eventlog(&log), whole.replay_quoted_part(&log)), (Ok(vec![]), Ok(vec![])));
    assert_eq!(whole.unquoted_pcrs(&log), Vec::<u8>::new());
    // PCR 7 is Secure Boot's, PCR 4 the boot loader's.
    let without: Vec<u8> = all.iter().copied().filter(|pcr| ![4, 7].contains(pcr)).collect();
    let part = of(&without);
    let reasons = part.replay_eventlog(&log).unwrap_err();
    let found: Vec<_> = reasons.iter().map(|reason| (reason.code, reason.pcr)).collect();
    assert_eq!(found, [4, 7].map(|pcr| (ReasonCode::EventlogPcrNotQuoted, Some(pcr))));
    assert_eq!(part.unquoted_pcrs(&log), [4, 7]);
    assert_eq!(part.replay_quoted_part(&log), Ok(vec![Caveat::UnquotedPcrs]));
    // That it was asked for excuses nothing else.
    let other = EventLog::parse(ALL[1].event_log).unwrap();
    assert!(part.replay_quoted_part(&other).is_err());
    let codes: Vec<_> = part.replay_eventlog(&other).unwrap_err().iter().map(|reason| reason.code).collect();
    assert!(codes.contains(&ReasonCode::EventlogPcrMismatch) && codes.contains(&ReasonCode::EventlogPcrNotQuoted));
}
