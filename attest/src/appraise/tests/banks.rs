//! Which PCRs of which banks must be quoted, and what their values must be.

use super::host::{BANKS, Host, codes};
use crate::appraise::{BankCaveat, Claims, JUDGED_PCRS, ReplayedLog, STATIC_PCRS};
use crate::eventlog::log_builder::LogBuilder;
use crate::eventlog::{CertificateCache, EventLog, EventType};
use crate::key::Bank;
use crate::quote::VerifiedQuote;
use crate::reason::ReasonCode as Code;
use crate::reference::{ReferenceBuilder, Slot};

#[test]
fn n55_n89_a_quoted_value_that_no_event_explains_is_refused() {
    let host = Host::good();
    // PCR 14 was extended behind the log's back: take its events out of the log.
    let mut log = Host::good().log;
    log.events.retain(|event| event[0] != 14);
    let mut evidence = host.evidence_of(host.pcrs());
    evidence.eventlog = log.bytes();
    let reasons = host.appraise_with(&evidence, None).unwrap_err();
    assert_eq!(codes(&reasons), [Code::EventlogPcrWithoutEvents]);
    assert!(reasons.iter().all(|reason| reason.pcr == Some(14)));

    // Any PCR that the log does not tell of, in any bank, judged or not.
    for bank in BANKS {
        for pcr in [11, 12, 13, 15] {
            let mut pcrs = host.pcrs();
            pcrs.get_mut(&bank).unwrap().insert(pcr, vec![0; bank.digest_size()]);
            host.appraise_with(&host.evidence_of(pcrs.clone()), None).unwrap();
            pcrs.get_mut(&bank).unwrap().insert(pcr, vec![7; bank.digest_size()]);
            let reasons = host.appraise_with(&host.evidence_of(pcrs), None).unwrap_err();
            assert_eq!((codes(&reasons), reasons[0].pcr), (vec![Code::EventlogPcrWithoutEvents], Some(pcr.into())));
        }
    }

    // And the reverse: the log tells of a PCR that the TPM never extended.
    let mut pcrs = host.pcrs();
    pcrs.get_mut(&Bank::Sha256).unwrap().insert(14, vec![0; 32]);
    let reasons = host.appraise_with(&host.evidence_of(pcrs), None).unwrap_err();
    assert_eq!(codes(&reasons), [Code::EventlogPcrMismatch]);
}

/// All values of the bank as they are after a reset.
fn blank(pcrs: &mut crate::evidence::PcrValues, bank: Bank) {
    let zeros = (0..=15).map(|pcr| (pcr, vec![0; bank.digest_size()]));
    pcrs.entry(bank).or_default().extend(zeros);
}

/// The good log without the digests of `bank` in the events of these PCRs.
fn without_digests(bank: Bank, pcrs: impl Fn(u8) -> bool) -> Vec<u8> {
    let log = LogBuilder::good_boot(&BANKS);
    let fewer: Vec<Bank> = BANKS.into_iter().filter(|other| *other != bank).collect();
    let other = LogBuilder::good_boot(&fewer);
    let events = log.events.iter().zip(&other.events).map(|(all, fewer)| if pcrs(all[0]) { fewer } else { all });
    let mut bytes = log.bytes();
    bytes.truncate(bytes.len() - log.events.concat().len());
    bytes.extend(events.flatten());
    bytes
}

#[test]
fn n56_a_bank_that_the_firmware_does_not_measure_into_is_refused() {
    // The firmware measures SHA-1 only; the SHA-256 bank is active and all its PCRs still have their initial values, or
    // somebody extended them with an honest host's log, of which only the SHA-1 digests are shown.
    for filled in [false, true] {
        let mut host = Host::good();
        let mut pcrs = host.pcrs();
        if !filled {
            blank(&mut pcrs, Bank::Sha256);
            host.ima.entries.clear();
            for values in pcrs.values_mut() {
                values.insert(10, vec![0; values[&0].len()]);
            }
        }
        host.log = LogBuilder::good_boot(&[Bank::Sha1]);
        pcrs.remove(&Bank::Sha384);
        let reasons = host.appraise_with(&host.evidence_of(pcrs), None).unwrap_err();
        assert_eq!(codes(&reasons), [Code::EventlogBankMissing], "{filled}");
        let found = reasons[0].found.as_deref();
        assert_eq!(found, Some("sha1"), "{filled}");
    }
    // The log has digests for the bank, but the TPM was never extended with them.
    let host = Host::good();
    let mut pcrs = host.pcrs();
    blank(&mut pcrs, Bank::Sha256);
    let reasons = host.appraise_with(&host.evidence_of(pcrs), None).unwrap_err();
    assert_eq!(codes(&reasons), [Code::EventlogPcrMismatch, Code::ImaPcrMismatch]);
    // Events that would extend its PCR 6 are missing.
    for pcr in 0..=7 {
        let mut host = Host::good();
        host.log.events.retain(|event| event[0] != pcr);
        let reasons = host.denied();
        assert_eq!(codes(&reasons), [Code::EventlogBankUnextended]);
        assert!(reasons.iter().all(|reason| reason.pcr == Some(pcr.into())));
    }
    // One event of the judged bank without its digest.
    for pcr in 0..=9 {
        let mut host = Host::good();
        host.raw_log = Some(without_digests(Bank::Sha256, |found| found == pcr));
        let evidence = host.evidence_of(Host::good().pcrs());
        let reasons = host.appraise_with(&evidence, None).unwrap_err();
        assert_eq!(codes(&reasons), [Code::EventlogBankMissing], "PCR {pcr}");
        assert_eq!(reasons[0].pcr, Some(pcr.into()));
    }
}

#[test]
fn n56_a_bank_on_which_nothing_rests_may_be_blank_or_lack_digests_above_the_firmwares_pcrs() {
    // Active, and not measured into: it is blank, and said to be so.
    let mut host = Host::good();
    host.log = LogBuilder::good_boot(&[Bank::Sha1, Bank::Sha256]);
    let mut pcrs = host.pcrs();
    let ima = pcrs[&Bank::Sha384][&10].clone();
    blank(&mut pcrs, Bank::Sha384);
    pcrs.get_mut(&Bank::Sha384).unwrap().insert(10, ima);
    let appraisal = host.appraise_with(&host.evidence_of(pcrs.clone()), None).unwrap();
    assert_eq!(appraisal.bank_caveats(), [(Bank::Sha384, BankCaveat::Unextended)]);
    // Extended with anything, be it one PCR of the firmware's, it is not.
    for pcr in 0..=7 {
        let mut pcrs = pcrs.clone();
        pcrs.get_mut(&Bank::Sha384).unwrap().insert(pcr, vec![7; 48]);
        let reasons = host.appraise_with(&host.evidence_of(pcrs), None).unwrap_err();
        assert_eq!(codes(&reasons), [Code::EventlogBankMissing], "PCR {pcr}");
    }

    // A boot loader that measures into fewer banks than the firmware: Windows.
    for bank in [Bank::Sha1, Bank::Sha384] {
        let mut host = Host::good();
        host.raw_log = Some(without_digests(bank, |pcr| pcr > 7));
        let genuine = Host::good().pcrs();
        let appraisal = host.appraise_with(&host.evidence_of(genuine.clone()), None).unwrap();
        assert_eq!(appraisal.bank_caveats(), [(bank, BankCaveat::Incomplete)]);
        // What there are digests of must still lead to the quote.
        let mut other = genuine.clone();
        other.get_mut(&bank).unwrap().insert(4, vec![7; bank.digest_size()]);
        let reasons = host.appraise_with(&host.evidence_of(other), None).unwrap_err();
        assert_eq!((codes(&reasons), reasons[0].pcr), (vec![Code::EventlogPcrMismatch], Some(4)));
        // Where it was the firmware's events that lost their digests, another boot could be behind them.
        host.raw_log = Some(without_digests(bank, |pcr| pcr == 4));
        let reasons = host.appraise_with(&host.evidence_of(genuine), None).unwrap_err();
        assert_eq!((codes(&reasons), reasons[0].pcr), (vec![Code::EventlogBankMissing], Some(4)));
    }
}

#[test]
fn n57_sha1_alone_proves_nothing() {
    let mut host = Host::good();
    host.selection.retain(|bank, _| *bank == Bank::Sha1);
    let reasons = host.denied();
    assert_eq!(codes(&reasons), [Code::PolicyBank]);
    assert_eq!((reasons[0].expected.as_deref(), reasons[0].found.as_deref()), (Some("sha256"), Some("sha1")));
    // Nor for whoever asks without a policy, though it was quoted, too.
    let host = Host::good();
    let evidence = host.evidence_of(host.pcrs());
    let claims = |bank| {
        let quote = VerifiedQuote::verify(&evidence, &host.ak, &Host::binding()).unwrap();
        let replayed = ReplayedLog::replay(quote, &evidence, None).unwrap();
        Claims::read(replayed, bank, &CertificateCache::new()).map(|_| ()).map_err(|denial| codes(&denial.reasons))
    };
    assert_eq!((claims(Bank::Sha256), claims(Bank::Sha1)), (Ok(()), Err(vec![Code::PolicyBank])));
    // Nor in a log of the old form beside a quote of both banks.
    let mut host = Host::good();
    let (log, sha1) = (host.log.bytes(), LogBuilder::good_boot(&[Bank::Sha1]));
    host.raw_log = Some(sha1.events.iter().flat_map(|event| old_form(event)).collect());
    host.selection.remove(&Bank::Sha384);
    let mut evidence = host.evidence_of(Host::good().pcrs());
    assert_eq!(codes(&host.appraise_with(&evidence, None).unwrap_err()), [Code::EventlogBankMissing]);
    evidence.eventlog = log;
    host.appraise_with(&evidence, None).unwrap();
}

/// An event with a SHA-1 digest alone as logs without a header have it: without the number of digests and the algorithm.
fn old_form(event: &[u8]) -> Vec<u8> {
    [&event[..8], &event[14..]].concat()
}

#[test]
fn n08_n89_every_pcr_that_is_judged_must_be_quoted() {
    for pcr in JUDGED_PCRS {
        let mut host = Host::good();
        host.selection.get_mut(&Bank::Sha256).unwrap().retain(|quoted| *quoted != pcr);
        // Quoted in other banks only, it is proved but not judged.
        let reasons = host.denied();
        assert_eq!((codes(&reasons), reasons[0].pcr), (vec![Code::PolicyPcr], Some(pcr.into())));
        // Nor does it help to have measured nothing there, or to leave it out of the log.
        host.log.events.retain(|event| event[0] != pcr);
        let code = if pcr <= 7 { Code::EventlogBankUnextended } else { Code::PolicyPcr };
        assert_eq!(host.codes(), [code], "PCR {pcr}");
        // Quoted in no bank, events of it are only what the host says.
        let mut host = Host::good();
        host.selection.values_mut().for_each(|pcrs| pcrs.retain(|quoted| *quoted != pcr));
        host.log.measure(pcr.into(), EventType::IPL, b"something", b"something");
        let reasons = host.denied();
        assert_eq!((codes(&reasons), reasons[0].pcr), (vec![Code::EventlogPcrNotQuoted], Some(pcr.into())));
    }
    // PCR 10 is IMA's: it is needed where programs are judged.
    let mut host = Host::good();
    host.selection.values_mut().for_each(|pcrs| pcrs.retain(|quoted| *quoted != 10));
    assert_eq!(host.codes(), [Code::PolicyPcr]);
}

#[test]
fn n58_digests_that_agree_in_some_banks_only_are_refused() {
    for lying in BANKS {
        let host = Host::good();
        let at = host.log.position(b"kernel_cmdline");
        let mut log = Host::good().log;
        log.events[at] = log.encode(8, EventType::IPL, b"kernel_cmdline: /vmlinuz console=ttyS0 quiet\0", |bank| {
            bank.hash(if bank == lying { b"/vmlinuz something else" } else { b"/vmlinuz console=ttyS0 quiet" })
        });
        let mut evidence = host.evidence_of(host.pcrs());
        evidence.eventlog = log.bytes();
        let reasons = host.appraise_with(&evidence, None).unwrap_err();
        assert_eq!(codes(&reasons), [Code::EventlogPcrMismatch], "{lying}");
        assert_eq!(reasons.len(), 1);
        assert!(reasons[0].found.as_deref().unwrap().starts_with(lying.name()));
    }
}

#[test]
fn n89_a_pcr_without_reference_values_may_not_be_extended_though_it_was_quoted() {
    // Such as PCR 12, into which a boot stub measures what was added to the kernel's command line.
    for pcr in [11, 12, 13, 15] {
        let mut host = Host::good();
        host.log.measure(pcr, EventType::IPL, b"addition", b"init=/bin/sh");
        let reasons = host.denied();
        let code = if pcr == 12 { Code::EventlogCommandLine } else { Code::EventlogEventUnexpected };
        assert_eq!((codes(&reasons), reasons[0].pcr), (vec![code], Some(pcr)));
        // With reference values it is as any other.
        let (bank, place) = (Bank::Sha256, u8::try_from(pcr).unwrap());
        let slot = Slot::digest(place, EventType::IPL, "addition", bank, &bank.hash(b"init=/bin/sh"));
        let bytes = host.log.bytes();
        let mut builder = Host::programs(ReferenceBuilder::new("good", ""));
        builder.recorded(&EventLog::parse(&bytes).unwrap(), &[bank], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14]).slot(slot);
        host.references = vec![builder.build().unwrap()];
        host.appraise().unwrap();
    }
}

#[test]
fn reference_values_of_every_pcr_are_compared() {
    let mut host = Host::good();
    let slot = crate::reference::Slot::text(12, EventType::IPL, "credentials", "none");
    let mut builder = crate::reference::ReferenceBuilder::new("good", "");
    let bytes = host.log.bytes();
    builder.recorded(&crate::eventlog::EventLog::parse(&bytes).unwrap(), &[Bank::Sha256], &STATIC_PCRS).slot(slot);
    host.references = vec![builder.build().unwrap()];
    host.policy.ima = false;
    let reasons = host.denied();
    assert_eq!((codes(&reasons), reasons[0].pcr), (vec![Code::EventlogEventMissing], Some(12)));
}
