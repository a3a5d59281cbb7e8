//! The programs that ran since boot: how far the TPM vouches for the IMA list, and whether its entries are acceptable.

use super::RUNTIME_PCR;
use super::policy::Policy;
use super::replayed::ReplayedLog;
use crate::ima::{Entry, ExtendRule, ImaList, ImaState, Start};
use crate::key::Bank;
use crate::quote::VerifiedQuote;
use crate::reason::{Reason, ReasonCode};
use crate::reference::ReferenceValues;

/// By what entries are judged: one digest for a policy and the reference values that the boot matches.
pub(super) fn rules(policy: &Policy, values: &ReferenceValues) -> [u8; 32] {
    let policy = serde_json::to_vec(policy).unwrap_or_default();
    let values = values.to_toml().unwrap_or_default();
    let (policy, values) = (Bank::Sha256.hash(&policy), Bank::Sha256.hash(values.as_bytes()));
    let digest = Bank::Sha256.hash_parts(&[b"portcullis/ima-rules/1", &policy, &values]);
    // SHA-256 digests are 32 bytes.
    digest.try_into().unwrap_or_default()
}

/// Finds how far the quoted PCR 10 covers the list: the number of its entries. Every bank of which it was quoted must
/// agree. With `from` entries left out the list goes on from `previous`; a whole list must begin with what that judged.
pub(super) fn covered(
    quote: &VerifiedQuote,
    list: &ImaList<'_>,
    from: u64,
    previous: Option<&ImaState>,
    reasons: &mut Vec<Reason>,
) -> usize {
    if let Some(reason) = history_missing(quote, from, previous) {
        reasons.push(reason);
        return 0;
    }
    let mut covered: Option<usize> = None;
    for bank in quote.banks() {
        let Some(quoted) = quote.pcr(bank, RUNTIME_PCR) else { continue };
        let judged = previous.and_then(|previous| Some((previous.entries, previous.pcrs.get(&bank)?.as_slice())));
        let start = judged.filter(|_| from > 0).map(|(entries, pcr)| Start { entries, pcr });
        let Some(reached) = list.reach(bank, ExtendRule::Digest, start, quoted, judged) else {
            reasons.push(not_reached(list, bank, start, quoted));
            continue;
        };
        if !reached.continues {
            let judged = judged.map_or(0, |(entries, _)| entries);
            reasons.push(
                here(ReasonCode::ImaHistoryChanged)
                    .expected(format!("the {judged} entries that were judged before, and then more"))
                    .found(format!("{} entries that do not begin with them", reached.entries)),
            );
        }
        if covered.is_some_and(|entries| entries != reached.entries) {
            reasons.push(here(ReasonCode::ImaPcrMismatch).found("banks that cover different parts of the list"));
        }
        covered = Some(reached.entries);
    }
    let covered = covered.unwrap_or(0);
    for entry in list.entries().iter().take(covered) {
        if entry.pcr != u32::from(RUNTIME_PCR) {
            reasons.push(about(ReasonCode::ImaWrongPcr, entry).expected("10").found(entry.pcr.to_string()));
        }
        if !entry.template_digest_holds() {
            reasons.push(about(ReasonCode::ImaTemplateMismatch, entry));
        }
    }
    covered
}

/// Whether what a list leaves out, or what was judged before, cannot be compared with it in the quoted banks.
fn history_missing(quote: &VerifiedQuote, from: u64, previous: Option<&ImaState>) -> Option<Reason> {
    let mut quoted = quote.banks().filter(|bank| quote.pcr(*bank, RUNTIME_PCR).is_some());
    let Some(previous) = previous else {
        return (from > 0).then(|| {
            here(ReasonCode::ImaHistoryMissing).expected("a whole list").found(format!("a list from entry {from} on"))
        });
    };
    if from == 0 {
        // Another bank proves nothing about what was judged; nor do the digests of SHA-1.
        let comparable = quoted.any(|bank| bank != Bank::Sha1 && previous.pcrs.contains_key(&bank));
        let found = "no PCR 10 of a bank that was judged before";
        return (!comparable).then(|| here(ReasonCode::ImaHistoryChanged).found(found));
    }
    if from != previous.entries {
        return Some(
            here(ReasonCode::ImaHistoryMissing)
                .expected(format!("a whole list, or one from entry {} on", previous.entries))
                .found(format!("a list from entry {from} on")),
        );
    }
    let unknown = quoted.find(|bank| !previous.pcrs.contains_key(bank))?;
    Some(here(ReasonCode::ImaHistoryMissing).expected("a whole list").found(format!("{unknown}, not quoted before")))
}

fn not_reached(list: &ImaList<'_>, bank: Bank, start: Option<Start<'_>>, quoted: &[u8]) -> Reason {
    let code = if list.entries().is_empty() && start.is_none() {
        ReasonCode::ImaMissing
    } else if list.reach(bank, ExtendRule::PaddedSha1, start, quoted, None).is_some() {
        ReasonCode::ImaPaddedSha1
    } else {
        ReasonCode::ImaPcrMismatch
    };
    here(code)
        .expected(format!("{bank} {}, as the TPM signed", hex::encode(quoted)))
        .found(format!("{} entries that never lead there", list.entries().len()))
}

/// The entries that the quote covers: they begin with this boot, and none is a violation.
pub(super) fn check(replayed: &ReplayedLog<'_>, bank: Bank) -> Vec<Reason> {
    let mut reasons = Vec::new();
    // What goes on from an earlier judgement has no first entry: that was judged then.
    let first = replayed.ima().first().filter(|_| replayed.ima_from() == 0);
    if let Some(first) = first
        && !(first.is_boot_aggregate() && boot_aggregate_holds(replayed, bank, first))
    {
        reasons.push(
            about(ReasonCode::ImaBootAggregate, first)
                .expected(format!("boot_aggregate with the {bank} digest of PCRs 0 to 9"))
                .found(format!("{} {}", first.name_lossy(), shown(first))),
        );
    }
    reasons.extend(
        replayed.ima().iter().filter(|entry| entry.is_violation()).map(|entry| about(ReasonCode::ImaViolation, entry)),
    );
    reasons
}

/// Since Linux 5.8 the digest is that of PCRs 0 to 9, before of 0 to 7; of whichever bank the kernel chose.
fn boot_aggregate_holds(replayed: &ReplayedLog<'_>, bank: Bank, first: &Entry<'_>) -> bool {
    let digest = first.digest();
    let Some(aggregated) = digest.bank().filter(|found| *found != Bank::Sha1 || bank == Bank::Sha1) else {
        return false;
    };
    [10, 8].into_iter().any(|count| {
        let pcrs: Option<Vec<&[u8]>> = (0..count).map(|pcr| replayed.quote().pcr(aggregated, pcr)).collect();
        pcrs.is_some_and(|pcrs| aggregated.hash_parts(&pcrs) == digest.digest)
    })
}

/// Why the entries that a list leaves out are not acceptable, if they are not: by these very rules they must have been
/// judged before. Those of two reference values may each accept a part of a list that neither accepts as a whole.
pub(super) fn left_out(replayed: &ReplayedLog<'_>, policy: &Policy, values: &ReferenceValues) -> Option<Reason> {
    let from = replayed.ima_from();
    let by_these = || replayed.continued().is_some_and(|state| state.rules == rules(policy, values));
    (from > 0 && !by_these()).then(|| {
        here(ReasonCode::ImaHistoryMissing)
            .expected("a whole list, because policy or reference values are others than when its beginning was judged")
            .found(format!("a list from entry {from} on"))
    })
}

/// Why an entry is not acceptable, if it is not.
pub(super) fn check_program(entry: &Entry<'_>, values: &ReferenceValues) -> Option<Reason> {
    let digest = entry.digest();
    if !is_plain(entry.name()) {
        return Some(about(ReasonCode::ImaBadName, entry).found(shown(entry)));
    }
    let Some(accepted) = values.ima(entry.name()) else {
        return Some(about(ReasonCode::ImaUnlisted, entry).found(shown(entry)));
    };
    if digest.bank() != Some(Bank::Sha256) || digest.verity {
        return Some(about(ReasonCode::ImaWeakHash, entry).expected("sha256 of the file").found(shown(entry)));
    }
    if accepted.contains(digest.digest) {
        return None;
    }
    let expected: Vec<_> = accepted.iter().take(3).map(|digest| format!("sha256:{}", hex::encode(digest))).collect();
    Some(about(ReasonCode::ImaWrongHash, entry).expected(expected.join(" | ")).found(shown(entry)))
}

/// A name that reads as what it is: no control characters, and no way around the directory that it names.
fn is_plain(name: &[u8]) -> bool {
    core::str::from_utf8(name).is_ok_and(|name| {
        !name.is_empty()
            && name.chars().all(|c| !c.is_control())
            && name.split('/').all(|part| part != ".." && part != ".")
    })
}

fn shown(entry: &Entry<'_>) -> String {
    let digest = entry.digest();
    format!("{}:{}", digest.algorithm, hex::encode(digest.digest))
}

fn here(code: ReasonCode) -> Reason {
    Reason::new(code).pcr(RUNTIME_PCR.into())
}

fn about(code: ReasonCode, entry: &Entry<'_>) -> Reason {
    here(code).event(entry.name_lossy())
}
