//! Firmware event logs, UEFI variables and signature lists.

use portcullis_attest::eventlog::{EventLog, SignatureDatabase, Variable, signature_lists};

use super::Target;
use super::log_edit::LogParts;
use super::recordings::Recordings;

/// A whole log: read, replayed in every bank, and every event told in words.
pub const EVENT_LOG: Target =
    Target { name: "event_log", body: event_log, max_len: 4096, seeds: |recordings| small_logs(recordings) };

fn event_log(bytes: &[u8]) -> bool {
    let Ok(log) = EventLog::parse(bytes) else { return false };
    for bank in log.banks() {
        for (pcr, value) in log.replay(bank) {
            assert_eq!(value.len(), bank.digest_size(), "{bank} PCR {pcr}");
        }
        assert!(log.declared_banks().contains(&bank) && log.first_without_digest(bank).is_none());
        for event in log.events() {
            let digest = event.digests.get(bank);
            assert!(digest.is_some() || !event.extends());
            assert!(digest.is_none_or(|digest| digest.len() == bank.digest_size()));
            let _ = event.coverage(bank);
        }
    }
    for (event, number) in log.events().iter().zip(1_usize..) {
        assert_eq!(event.number, number);
        assert!(!log.describe(event).words.is_empty());
        let _ = event.grub_text();
    }
    assert!(bytes.ends_with(log.trailing()));
    true
}

/// The header of every log with each of its events alone, so that a short input has every kind of event; and short logs.
fn small_logs(recordings: &Recordings) -> Vec<Vec<u8>> {
    let mut seeds = recordings.event_logs.clone();
    for bytes in &recordings.event_logs {
        let Some(log) = LogParts::parse(bytes) else { continue };
        seeds.extend(log.events.iter().map(|event| log.with(std::slice::from_ref(event))));
        seeds.extend(log.events.chunks(4).map(|events| log.with(events)));
    }
    seeds
}

/// The data of an event that measures a variable.
pub const VARIABLE: Target = Target { name: "variable", body: variable, max_len: 2048, seeds: variables };

fn variable(bytes: &[u8]) -> bool {
    let Ok(variable) = Variable::parse(bytes) else { return false };
    assert!(bytes.ends_with(variable.data));
    assert!(!variable.name().contains('\0'));
    assert!(variable.is(variable.guid, &variable.name()));
    let _ = (variable.guid.to_string(), signature_lists(variable.data));
    true
}

fn variables(recordings: &Recordings) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for log in recordings.event_logs.iter().filter_map(|bytes| EventLog::parse(bytes).ok()) {
        seeds.extend(
            log.events().iter().filter(|event| Variable::parse(event.data).is_ok()).map(|one| one.data.to_vec()),
        );
    }
    seeds
}

/// The content of db, dbx, KEK or PK.
pub const SIGNATURE_LISTS: Target =
    Target { name: "signature_lists", body: lists, max_len: 2048, seeds: |recordings| contents(recordings) };

fn lists(bytes: &[u8]) -> bool {
    let entry = SignatureDatabase::from_entry(bytes);
    assert!(entry.certificates().len() <= 1);
    let database = SignatureDatabase::from_lists(bytes);
    let Ok(signatures) = signature_lists(bytes) else {
        assert!(database.is_err());
        return false;
    };
    let database = database.expect("as the lists are");
    assert!(database.sha256().iter().all(|digest| database.has_sha256(digest)));
    assert!(database.certificates().len() <= signatures.len());
    let content: usize = signatures.iter().map(|signature| signature.data.len()).sum();
    assert!(content <= bytes.len());
    !signatures.is_empty()
}

fn contents(recordings: &Recordings) -> Vec<Vec<u8>> {
    let variables = variables(recordings);
    variables.iter().filter_map(|bytes| Some(Variable::parse(bytes).ok()?.data.to_vec())).collect()
}
