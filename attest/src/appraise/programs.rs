//! The programs that ran since boot: how far the TPM vouches for the IMA list, and whether its entries are acceptable.

use std::cell::{LazyCell, OnceCell};
use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::policy::Policy;
use super::program_rules::{AcceptedContent, ProgramRule, ProgramRules, ViolationRule};
use super::replayed::ReplayedLog;
use super::stop::Stop;
use super::{MAX_REASONS, RUNTIME_PCR};
use crate::ima::{Checks, Entry, ExtendRule, FileDigest, GoodSignatures, ImaList, ImaState, Lane, SignatureProblem};
use crate::key::Bank;
use crate::quote::QuotedState;
use crate::reason::{Reason, ReasonCode};
use crate::reference::ReferenceValues;

/// By what entries of the IMA list are judged: one digest for a policy and the reference values that the boot matches. A
/// verifier compares it with [`ImaState::rules`] to know whether a list may go on from what was judged.
pub fn rules(policy: &Policy, values: &ReferenceValues) -> [u8; 32] {
    rules_of(&policy.digest(), values)
}

/// The same of the policy's digest.
pub(super) fn rules_of(policy: &[u8; 32], values: &ReferenceValues) -> [u8; 32] {
    let digest = Bank::Sha256.hash_parts(&[b"portcullis/ima-rules/1", policy, &values.digest()]);
    // SHA-256 digests are 32 bytes.
    digest.try_into().unwrap_or_default()
}

/// How far the quoted PCR 10 covers a list.
#[derive(Clone, Debug, Default)]
pub(super) struct Covered {
    /// The number of its entries.
    pub entries: usize,
    /// The quoted banks that the kernel extended with SHA-1 digests padded with zeros: they agree, and prove nothing.
    pub padded: BTreeSet<Bank>,
}

/// Finds how far the quoted PCR 10 covers the list. Every bank of which it was quoted must agree, by the digests of the
/// bank or by padded ones, and at least one must by its own. With `from` entries left out the list goes on from `previous`;
/// a whole list must begin with what that judged.
///
/// A list is walked over at most twice: once more for what may be padded, or to say why it leads nowhere.
pub(super) fn covered(
    quote: &QuotedState,
    list: &ImaList<'_>,
    from: u64,
    previous: Option<&ImaState>,
    stop: Stop<'_>,
    reasons: &mut Vec<Reason>,
) -> Covered {
    if let Some(reason) = history_missing(quote, from, previous) {
        reasons.push(reason);
        return Covered::default();
    }
    let start = previous.filter(|_| from > 0);
    let lane = |bank, rule| {
        let judged = previous.and_then(|previous| Some((previous.entries, previous.pcrs.get(&bank)?.as_slice())));
        let lane = Lane::new(bank, rule, quote.pcr(bank, RUNTIME_PCR)?);
        match judged {
            Some((_, pcr)) if from > 0 => lane.from(pcr),
            judged => Some(lane.through(judged)),
        }
    };
    // What goes on from an earlier judgement goes on by the rule that held there.
    let is_padded = |bank: &Bank| start.is_some_and(|start| start.padded.contains(bank));
    let (padded, digests): (Vec<Bank>, Vec<Bank>) = quote.banks().partition(is_padded);
    let mut lanes: Vec<_> = digests.into_iter().filter_map(|bank| lane(bank, ExtendRule::Digest)).collect();
    if lanes.is_empty() {
        return Covered::default();
    }
    lanes.extend(padded.into_iter().filter_map(|bank| lane(bank, ExtendRule::PaddedSha1)));
    decide(&mut lanes);
    let mut wrong = Vec::new();
    let covered = list.walk(&mut lanes, |entry, digest_holds| {
        if wrong.len() < MAX_REASONS && entry.pcr != u32::from(RUNTIME_PCR) {
            wrong.push(about(ReasonCode::ImaWrongPcr, entry).expected("10").found(entry.pcr.to_string()));
        }
        if wrong.len() < MAX_REASONS && !digest_holds {
            wrong.push(about(ReasonCode::ImaTemplateMismatch, entry));
        }
        !stop.asked_at(entry.number)
    });
    if stop.asked() {
        reasons.push(Stop::reason());
        return Covered::default();
    }
    let Some(entries) = covered else {
        let missed: Vec<_> = lanes.iter().filter(|lane| !lane.reached).map(|lane| lane.bank).collect();
        reasons.extend(not_reached(quote, list, &missed, start, MAX_EXPLAINED));
        return Covered::default();
    };
    // Where the banks' own digests end in one bank, they end in all of them; what does not may be padded.
    if from == 0 {
        let other: Vec<_> = lanes.extract_if(.., |lane| !lane.here && lane.bank != Bank::Sha1).collect();
        let mut padded: Vec<_> = other.iter().filter_map(|missed| lane(missed.bank, ExtendRule::PaddedSha1)).collect();
        if !padded.is_empty() {
            list.walk_first(entries, &mut padded);
            lanes.extend(padded);
        }
    }
    reasons.extend(lanes.iter().filter(|lane| !lane.here).map(|lane| {
        let pcr = quote.pcr(lane.bank, RUNTIME_PCR).unwrap_or_default();
        here(ReasonCode::ImaPcrMismatch)
            .expected(format!("{} {}, as the TPM signed", lane.bank, hex::encode(pcr)))
            .found(format!("{entries} entries that lead there in another bank only"))
    }));
    if lanes.iter().any(|lane| !lane.continues) {
        let judged = previous.map_or(0, |previous| previous.entries);
        reasons.push(
            here(ReasonCode::ImaHistoryChanged)
                .expected(format!("the {judged} entries that were judged before, and then more"))
                .found(format!("{entries} entries that do not begin with them")),
        );
    }
    reasons.extend(wrong);
    let padded = lanes.iter().filter(|lane| lane.rule == ExtendRule::PaddedSha1).map(|lane| lane.bank).collect();
    Covered { entries, padded }
}

/// Lets only those lanes say where the list ends that prove most: by their own digests rather than by padded ones, with
/// another hash than SHA-1, and of a bank into which the kernel measured something.
fn decide(lanes: &mut [Lane<'_>]) {
    let weight = |lane: &Lane<'_>| match (lane.rule, lane.bank) {
        (ExtendRule::PaddedSha1 | ExtendRule::PaddedThroughout, _) => 0,
        (ExtendRule::Digest, Bank::Sha1) => 1,
        (ExtendRule::Digest, _) if lane.is_initial() => 2,
        (ExtendRule::Digest, _) => 3,
    };
    let best = lanes.iter().map(weight).max();
    for lane in lanes {
        lane.decides = Some(weight(lane)) == best;
    }
}

/// Whether what a list leaves out, or what was judged before, cannot be compared with it in the quoted banks.
fn history_missing(quote: &QuotedState, from: u64, previous: Option<&ImaState>) -> Option<Reason> {
    let quoted = || quote.banks().filter(|bank| quote.pcr(*bank, RUNTIME_PCR).is_some());
    let Some(previous) = previous else {
        return (from > 0).then(|| {
            here(ReasonCode::ImaHistoryMissing).expected("a whole list").found(format!("a list from entry {from} on"))
        });
    };
    // Another bank proves nothing about what was judged; nor do the digests of SHA-1, padded or not.
    let proves = |bank: &Bank| *bank != Bank::Sha1 && !previous.padded.contains(bank);
    let comparable = quoted().any(|bank| proves(&bank) && previous.pcrs.contains_key(&bank));
    if !comparable {
        let found = "no PCR 10 of a bank that was judged before";
        return Some(here(ReasonCode::ImaHistoryChanged).found(found));
    }
    if from == 0 {
        return None;
    }
    if from != previous.entries {
        return Some(
            here(ReasonCode::ImaHistoryMissing)
                .expected(format!("a whole list, or one from entry {} on", previous.entries))
                .found(format!("a list from entry {from} on")),
        );
    }
    let unknown = quoted().find(|bank| !previous.pcrs.contains_key(bank))?;
    Some(here(ReasonCode::ImaHistoryMissing).expected("a whole list").found(format!("{unknown}, not quoted before")))
}

/// Longest list, in entries, that is replayed by the other rule too, to say why it leads nowhere. Longer ones are refused
/// all the same.
const MAX_EXPLAINED: usize = 500_000;

/// Why a list does not lead to the quoted PCR 10 of these banks, going on from `start` where that is given. Of more than
/// `most_explained` entries it is only said that it does not.
fn not_reached(
    quote: &QuotedState,
    list: &ImaList<'_>,
    banks: &[Bank],
    start: Option<&ImaState>,
    most_explained: usize,
) -> Vec<Reason> {
    let quoted = |bank| quote.pcr(bank, RUNTIME_PCR).unwrap_or_default();
    let padded = |bank: &Bank| {
        let lane = Lane::new(*bank, ExtendRule::PaddedSha1, quoted(*bank));
        match start.and_then(|start| start.pcrs.get(bank)) {
            Some(pcr) => lane.from(pcr),
            None => Some(lane),
        }
    };
    let mut lanes: Vec<_> = banks.iter().filter_map(padded).collect();
    if list.len() <= most_explained {
        list.walk_first(list.len(), &mut lanes);
    }
    let reason = |bank: &Bank| {
        let code = if list.is_empty() && start.is_none() {
            ReasonCode::ImaMissing
        } else if lanes.iter().any(|lane| lane.bank == *bank && lane.reached) {
            ReasonCode::ImaPaddedSha1
        } else {
            ReasonCode::ImaPcrMismatch
        };
        here(code)
            .expected(format!("{bank} {}, as the TPM signed", hex::encode(quoted(*bank))))
            .found(format!("{} entries that never lead there", list.len()))
    };
    banks.iter().map(reason).collect()
}

/// The entries that the quote covers must begin with this boot.
pub(super) fn check(replayed: &ReplayedLog<'_>, bank: Bank) -> Vec<Reason> {
    let mut reasons = Vec::new();
    // What goes on from an earlier judgement has no first entry: that was judged then.
    let first = replayed.ima().next().filter(|_| replayed.ima_from() == 0);
    // What a violation lists is covered by no digest, so it ties nothing to the boot.
    if let Some(first) = first
        && !(first.is_boot_aggregate() && !first.is_violation() && boot_aggregate_holds(replayed, bank, &first))
    {
        reasons.push(
            about(ReasonCode::ImaBootAggregate, &first)
                .expected(format!("boot_aggregate with the {bank} digest of PCRs 0 to 9"))
                .found(format!("{} {}", first.name_lossy(), shown(&first.digest()))),
        );
    }
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

/// How many entries each rule accepted that no reference values list, by the rule's reason.
pub(super) type ByReason = BTreeMap<String, u64>;

/// The programs that a list names, to be compared with reference values.
pub(super) struct Judged<'r> {
    replayed: &'r ReplayedLog<'r>,
    policy: &'r Policy,
    policy_digest: OnceCell<[u8; 32]>,
    checks: Checks<'r>,
}

impl<'r> Judged<'r> {
    /// Signatures of files that are known to be good are not checked again.
    pub fn new(replayed: &'r ReplayedLog<'r>, policy: &'r Policy, good: &'r GoodSignatures) -> Self {
        Self { replayed, policy, policy_digest: OnceCell::new(), checks: Checks::new(good) }
    }

    /// How many entries each rule accepted, if all are acceptable by these values and the policy's rules.
    pub fn accepted_by(&mut self, values: &ReferenceValues) -> Result<ByReason, Vec<Reason>> {
        let (by_rule, mut reasons) = self.judge(values);
        reasons.extend(self.left_out(values));
        if reasons.is_empty() { Ok(by_rule) } else { Err(reasons) }
    }

    /// Why the entries that a list leaves out are not acceptable, if they are not: by these very rules they must have
    /// been judged before. Those of two reference values may each accept a part of a list that neither accepts as a whole.
    fn left_out(&self, values: &ReferenceValues) -> Option<Reason> {
        let from = self.replayed.ima_from();
        let rules = || rules_of(self.policy_digest.get_or_init(|| self.policy.digest()), values);
        let by_these = || self.replayed.continued().is_some_and(|state| state.rules == rules());
        (from > 0 && !by_these()).then(|| {
            here(ReasonCode::ImaHistoryMissing)
                .expected(
                    "a whole list, because policy or reference values are others than when its beginning was judged",
                )
                .found(format!("a list from entry {from} on"))
        })
    }

    /// Judges every entry but the one that speaks of the boot itself. If the policy does not ask which programs ran, only
    /// violations are judged: a list with them is not the list of what was measured.
    fn judge(&mut self, values: &ReferenceValues) -> (ByReason, Vec<Reason>) {
        let (mut by_rule, mut reasons) = (ByReason::new(), Vec::new());
        let (stop, policy) = (self.replayed.stop(), self.policy);
        if !policy.ima && !self.replayed.has_violations() {
            return (by_rule, reasons);
        }
        let mut judge = Judge { rules: &policy.programs, values, listed: OnceCell::new(), checks: &mut self.checks };
        // What goes on from an earlier judgement has no entry of the boot: that was judged then.
        let first = usize::from(self.replayed.ima_from() == 0);
        for entry in self.replayed.ima().skip(first) {
            if stop.asked_at(entry.number) {
                return (by_rule, vec![Stop::reason()]);
            }
            let accepted = if entry.is_violation() {
                judge.accepts_violation(&entry).map(Some)
            } else if policy.ima {
                judge.accepts(&entry).map(|rule| rule.map(|rule| rule.reason.as_str()))
            } else {
                Ok(None)
            };
            match accepted {
                Ok(None) => {}
                Ok(Some(reason)) => match by_rule.get_mut(reason) {
                    Some(count) => *count = count.saturating_add(1),
                    None => drop(by_rule.insert(reason.to_owned(), 1)),
                },
                Err(reason) => reasons.push(reason),
            }
            if reasons.len() >= MAX_REASONS {
                break;
            }
        }
        (by_rule, reasons)
    }
}

/// By what entries are judged.
struct Judge<'r, 'c, 'g> {
    rules: &'r ProgramRules,
    values: &'r ReferenceValues,
    /// All listed digests, put together when a rule first asks for them.
    listed: OnceCell<HashSet<&'r [u8]>>,
    checks: &'c mut Checks<'g>,
}

impl<'r> Judge<'r, '_, '_> {
    /// The rule that accepts an entry; none if its path is listed with its digest. Otherwise why it is not acceptable.
    fn accepts(&mut self, entry: &Entry<'_>) -> Result<Option<&'r ProgramRule>, Reason> {
        let content = entry.content();
        if !is_plain(content.name) {
            return Err(about(ReasonCode::ImaBadName, entry).found(shown(&content.digest)));
        }
        let accepted = self.values.ima(content.name);
        // The only hash that reference values list programs by.
        let sha256 = content.digest.bank() == Some(Bank::Sha256) && !content.digest.verity;
        if sha256 && accepted.is_some_and(|accepted| accepted.contains(content.digest.digest)) {
            return Ok(None);
        }
        let mut unsigned = None;
        let text = LazyCell::new(|| content.buffer.filter(|text| is_of(text, &content.digest)));
        for (place, rule) in self.rules.about(content.name) {
            let accepts = match &rule.accept {
                AcceptedContent::Digests(_) => content.digest.bank().is_some_and(|bank| {
                    !content.digest.verity && self.rules.accept_digest(place, bank, content.digest.digest)
                }),
                AcceptedContent::Listed => sha256 && self.lists(content.digest.digest),
                AcceptedContent::SignedBy(keyring) => match self.rules.keyring(keyring) {
                    Some(keyring) => {
                        content.signed_by(keyring, self.checks).map_err(|problem| unsigned = Some(problem)).is_ok()
                    }
                    None => false,
                },
                AcceptedContent::Text(texts) => {
                    text.is_some_and(|text| texts.iter().any(|accepted| text == accepted.as_bytes()))
                }
                AcceptedContent::Any => accepted.is_none(),
            };
            if accepts {
                return Ok(Some(rule));
            }
        }
        let found = shown(&content.digest);
        Err(match (accepted, unsigned) {
            (Some(_), _) if !sha256 => {
                about(ReasonCode::ImaWeakHash, entry).expected("sha256 of the file").found(found)
            }
            (Some(accepted), _) => {
                let expected: Vec<_> =
                    accepted.iter().take(3).map(|one| format!("sha256:{}", hex::encode(one))).collect();
                about(ReasonCode::ImaWrongHash, entry).expected(expected.join(" | ")).found(found)
            }
            (None, Some(problem)) => about(code_of(&problem), entry).found(format!("{found}; {problem}")),
            (None, None) => about(ReasonCode::ImaUnlisted, entry).found(found),
        })
    }

    /// The reason of the rule that accepts a violation. Its name is all that there is, and only what the host says: it must
    /// be plain, and a listed program's is accepted only by a rule that names it alone.
    fn accepts_violation(&self, entry: &Entry<'_>) -> Result<&'r str, Reason> {
        let name = entry.name();
        let listed = self.values.ima(name).is_some();
        let accepts = |rule: &&ViolationRule| rule.names.is_literal() || !listed;
        let rule = is_plain(name).then(|| self.rules.about_violation(name).find(accepts)).flatten();
        rule.map(|rule| rule.reason.as_str()).ok_or_else(|| about(ReasonCode::ImaViolation, entry))
    }

    fn lists(&self, digest: &[u8]) -> bool {
        self.listed.get_or_init(|| self.values.ima_digests().collect()).contains(digest)
    }
}

/// Whether a digest is of this text, by a hash that cannot be forged.
fn is_of(text: &[u8], digest: &FileDigest<'_>) -> bool {
    let bank = digest.bank().filter(|bank| *bank != Bank::Sha1 && !digest.verity);
    bank.is_some_and(|bank| bank.hash(text) == digest.digest)
}

const fn code_of(problem: &SignatureProblem) -> ReasonCode {
    match problem {
        SignatureProblem::Missing => ReasonCode::ImaUnsigned,
        SignatureProblem::Malformed(_) | SignatureProblem::Unsupported(_) | SignatureProblem::TooMany => {
            ReasonCode::ImaSignatureUnusable
        }
        SignatureProblem::UnknownKey(_) => ReasonCode::ImaSignatureKey,
        SignatureProblem::Invalid(_) => ReasonCode::ImaSignatureInvalid,
    }
}

/// Longest name of a measured file, in bytes: Linux's `PATH_MAX`.
const MAX_NAME: usize = 4096;

/// A name that reads as what it is: no control characters, and no way around the directory that it names.
fn is_plain(name: &[u8]) -> bool {
    name.len() <= MAX_NAME
        && core::str::from_utf8(name).is_ok_and(|name| {
            !name.is_empty()
                && name.chars().all(|c| !c.is_control())
                && name.split('/').all(|part| part != ".." && part != ".")
        })
}

fn shown(digest: &FileDigest<'_>) -> String {
    format!("{}:{}", digest.algorithm, hex::encode(digest.digest))
}

fn here(code: ReasonCode) -> Reason {
    Reason::new(code).pcr(RUNTIME_PCR.into())
}

fn about(code: ReasonCode, entry: &Entry<'_>) -> Reason {
    here(code).event(entry.name_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::appraise::tests::host::Host;
    use crate::quote::VerifiedQuote;

    /// A list that is too long to be replayed by the other rule too is refused all the same, with the plainer reason.
    #[test]
    fn a_very_long_list_that_leads_nowhere_is_refused_without_saying_why() {
        let mut host = Host::good();
        let bytes = host.ima.bytes();
        let list = ImaList::parse_binary(&bytes).unwrap();
        host.pcr10 = Some(list.replay(Bank::Sha256, ExtendRule::PaddedSha1));
        let evidence = host.evidence_of(host.pcrs());
        let quote = VerifiedQuote::verify(&evidence, &host.ak, &Host::binding()).unwrap();
        let code = |most: usize| not_reached(&quote, &list, &[Bank::Sha256], None, most)[0].code;
        assert_eq!(list.len(), 3);
        assert_eq!((code(4), code(3)), (ReasonCode::ImaPaddedSha1, ReasonCode::ImaPaddedSha1));
        assert_eq!((code(2), code(0)), (ReasonCode::ImaPcrMismatch, ReasonCode::ImaPcrMismatch));
    }
}
