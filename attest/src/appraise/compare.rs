//! Compares claims with what the policy and the reference values say.

use std::collections::{BTreeMap, BTreeSet};

use super::RUNTIME_PCR;
use super::claims::Claims;
use super::policy::Policy;
use super::policy::demands::{self, Judgement, UnclearLine};
use super::programs::{self, Programs};
use crate::eventlog::{Coverage, Event, EventKind};
use crate::evidence::PCR_COUNT;
use crate::key::Bank;
use crate::reason::{Reason, ReasonCode};
use crate::reference::{Acceptance, Judge, ReferenceValues, Rule, Slot, Step, align};
use crate::result::ByRule;

/// Most differences that are named for one PCR.
const MAX_PER_PCR: usize = 10;

/// What a boot matches in full.
pub(super) struct Match<'r> {
    pub values: &'r ReferenceValues,
    /// What of the boot was accepted by a rule of theirs, each once.
    pub by_rule: BTreeSet<ByRule>,
    /// How many programs were accepted by a rule of the policy, by the rule's reason.
    pub programs_by_rule: BTreeMap<String, u64>,
}

/// The reference values that the boot matches in full, if the policy's other demands hold too.
pub(super) fn policy<'r>(
    claims: &Claims<'_>,
    policy: &Policy,
    references: &'r [ReferenceValues],
    now: u64,
) -> Result<Match<'r>, Vec<Reason>> {
    let Judgement { mut reasons, unclear } = demands::check(claims, policy);
    let secure_boot_denied = demands::secure_boot_denied(claims, policy);
    match best(claims, policy, references, &unclear, now) {
        Ok(matched) if reasons.is_empty() => return Ok(matched),
        Ok(_) => {}
        Err(differences) => reasons.extend(differences.into_iter().filter(|reason| {
            // Said already, and better.
            !(secure_boot_denied && reason.pcr == Some(7) && is_secure_boot_state(reason))
        })),
    }
    Err(reasons)
}

fn is_secure_boot_state(reason: &Reason) -> bool {
    reason.event.as_deref().is_some_and(|event| event.starts_with("Secure Boot o"))
}

/// The reference values that match. If none do, the differences from those that come nearest.
fn best<'r>(
    claims: &Claims<'_>,
    policy: &Policy,
    references: &'r [ReferenceValues],
    unclear: &[UnclearLine<'_>],
    now: u64,
) -> Result<Match<'r>, Vec<Reason>> {
    let mut nearest: Option<Vec<Reason>> = None;
    let mut distrusted = Vec::new();
    for values in references.iter().filter(|values| policy.references.iter().any(|name| name == values.name())) {
        if let Some(reason) = policy.distrust(values, now) {
            distrusted.push(reason);
            continue;
        }
        let (mut differences, mut by_rule) = compare(claims, policy, values);
        let unlisted = command_lines(claims, policy, values, unclear, &mut by_rule);
        // Named where the comparison has not named the same event already.
        if differences.is_empty() {
            differences.extend(unlisted);
        }
        let programs = Programs::judge(claims.replayed(), policy, values);
        differences.extend(programs.reasons);
        differences.extend(programs::left_out(claims.replayed(), policy, values));
        if differences.is_empty() {
            return Ok(Match { values, by_rule, programs_by_rule: programs.by_rule });
        }
        if nearest.as_ref().is_none_or(|nearest| differences.len() < nearest.len()) {
            nearest = Some(differences);
        }
    }
    Err(nearest.unwrap_or_else(|| {
        if distrusted.is_empty() {
            let reason = Reason::new(ReasonCode::ReferenceMissing);
            distrusted.push(reason.expected(policy.references.join(", ")).found("none of them"));
        }
        distrusted
    }))
}

/// Every difference, and what was accepted by a rule.
fn compare(claims: &Claims<'_>, policy: &Policy, values: &ReferenceValues) -> (Vec<Reason>, BTreeSet<ByRule>) {
    let bank = claims.bank();
    let log = claims.replayed().log();
    let command_line = |line: &str| policy.command_line.accepts(line);
    let judge = Judge { bank, command_line: &command_line };
    let (mut reasons, mut by_rule) = (Vec::new(), BTreeSet::new());
    // Every PCR but the one that changes while the system runs: one without reference values must not be extended.
    for pcr in (0..PCR_COUNT).filter(|pcr| *pcr != RUNTIME_PCR) {
        let events: Vec<&Event<'_>> =
            log.events().iter().filter(|event| event.extends() && event.pcr == u32::from(pcr)).collect();
        let steps = align(values.expected(pcr), &events, &judge);
        let differences: Vec<_> = steps.iter().filter(|step| step.is_difference()).collect();
        let more = differences.len().saturating_sub(MAX_PER_PCR);
        reasons.extend(differences.iter().take(MAX_PER_PCR).filter_map(|step| explain(step, bank)));
        if more > 0 {
            let text = format!("PCR {pcr} differs in {more} more events.");
            reasons.push(Reason::new(ReasonCode::EventlogEventMismatch).pcr(pcr.into()).text(text));
        }
        by_rule.extend(steps.iter().filter_map(accepted_by_rule));
    }
    (reasons, by_rule)
}

/// What is wrong with the command lines that the policy's rules cannot be applied to. One that the reference values list by
/// its value is accepted, and said to be.
fn command_lines(
    claims: &Claims<'_>,
    policy: &Policy,
    values: &ReferenceValues,
    unclear: &[UnclearLine<'_>],
    by_rule: &mut BTreeSet<ByRule>,
) -> Vec<Reason> {
    let mut listed: BTreeMap<u32, BTreeMap<&[u8], Option<&str>>> = BTreeMap::new();
    let mut reasons = Vec::new();
    for line in unclear {
        let of_pcr = listed.entry(line.ground.pcr).or_insert_with(|| {
            u8::try_from(line.ground.pcr).map_or_else(|_| BTreeMap::new(), |pcr| values.listed(pcr, claims.bank()))
        });
        let Some(text) = of_pcr.get(line.ground.digest) else {
            reasons.push(line.reason.clone());
            continue;
        };
        let found = line.if_listed(*text, policy);
        if found.is_empty() {
            let why = &line.reason.text;
            by_rule.insert(ByRule {
                what: "kernel command line".to_owned(),
                rule: "listed".to_owned(),
                reason: format!("The reference values list exactly this one. {why}"),
            });
        }
        reasons.extend(found);
    }
    reasons
}

fn accepted_by_rule(step: &Step<'_>) -> Option<ByRule> {
    let Step::Accepted(slot, Acceptance::Rule) = step else { return None };
    let rule = slot.rule.map_or("pattern", Rule::as_str).to_owned();
    Some(ByRule { what: slot.what.clone(), rule, reason: slot.reason.clone() })
}

/// A difference in words.
fn explain(step: &Step<'_>, bank: Bank) -> Option<Reason> {
    Some(match step {
        Step::Accepted(..) | Step::Absent(_) => return None,
        Step::Unexpected(event) => {
            let description = event.describe(bank);
            let code = match description.kind {
                EventKind::KernelCommandLine | EventKind::StubCommandLine => ReasonCode::EventlogCommandLine,
                _ => ReasonCode::EventlogEventUnexpected,
            };
            let reason = Reason::new(code).pcr(event.pcr).event(&description.words).found(shown(event, bank));
            reason.text(format!("The host measured something that no reference value foresees: {}.", description.words))
        }
        Step::Missing(slot) => {
            let reason = Reason::new(ReasonCode::EventlogEventMissing).pcr(slot.pcr.into()).event(&slot.what);
            reason
                .expected(slot.expected(bank))
                .text(format!("The host did not measure what is required: {}.", slot.what))
        }
        Step::OtherValue(slot, event) => {
            let code = code_of(slot, event, bank);
            let reason = Reason::new(code).pcr(event.pcr).event(words(slot, event, bank));
            let reason = reason.expected(expected(slot, event, bank)).found(shown(event, bank));
            if code == ReasonCode::EventlogEventMismatch {
                reason.text(format!("The host measured another value than is accepted: {}.", words(slot, event, bank)))
            } else {
                reason
            }
        }
    })
}

/// The slot's words, for whoever wrote them knows what should be there; without the label that a recording adds. The
/// event's own where they say in which state something is, and a digest covers that.
fn words(slot: &Slot, event: &Event<'_>, bank: Bank) -> String {
    let description = event.describe(bank);
    let state = description.kind == EventKind::SecureBootState && description.coverage == Coverage::Data;
    if state || slot.what.starts_with(&description.words) { description.words } else { slot.what.clone() }
}

/// What a slot accepts, with the label that a recording gave it.
fn expected(slot: &Slot, event: &Event<'_>, bank: Bank) -> String {
    let accepted = slot.expected(bank);
    let label = slot.what.strip_prefix(&event.describe(bank).words).and_then(|rest| rest.strip_prefix(": "));
    match label {
        Some(label) if slot.texts.is_empty() => format!("{accepted} ({label})"),
        _ => accepted,
    }
}

/// What an event says, as far as its digest covers that; the digest otherwise, with the label called a label.
fn shown(event: &Event<'_>, bank: Bank) -> String {
    let description = event.describe(bank);
    let digest = hex::encode(event.digests.get(bank).unwrap_or_default());
    match (description.coverage, description.text) {
        (Coverage::Text | Coverage::Data, Some(text)) if is_text(description.kind) => text,
        (Coverage::Data, Some(summary)) => format!("{digest} ({summary})"),
        (_, Some(label)) => format!("{digest} (labelled {label})"),
        _ => digest,
    }
}

/// Kinds whose text is all that was measured; of others it is a summary.
const fn is_text(kind: EventKind) -> bool {
    !matches!(
        kind,
        EventKind::PlatformKey
            | EventKind::ExchangeKeys
            | EventKind::AllowedSignatures
            | EventKind::RevokedSignatures
            | EventKind::Authority
            | EventKind::BootOption
    )
}

fn code_of(slot: &Slot, event: &Event<'_>, bank: Bank) -> ReasonCode {
    let what = slot.what.to_lowercase();
    match event.describe(bank).kind {
        EventKind::KernelCommandLine | EventKind::StubCommandLine => ReasonCode::EventlogCommandLine,
        EventKind::GrubCommand | EventKind::ModuleCommandLine => ReasonCode::EventlogGrubCommand,
        EventKind::StubInitrd => ReasonCode::EventlogInitrd,
        EventKind::GrubFile | EventKind::BootImage if what.contains("initrd") => ReasonCode::EventlogInitrd,
        EventKind::GrubFile | EventKind::BootImage if is_kernel(&what) => ReasonCode::EventlogKernel,
        EventKind::GrubFile => ReasonCode::EventlogBootFile,
        EventKind::BootImage => ReasonCode::EventlogBootLoader,
        EventKind::FirmwareCode | EventKind::FirmwareVersion => ReasonCode::EventlogFirmware,
        _ => ReasonCode::EventlogEventMismatch,
    }
}

/// "kernel" alone; a recorded image that may be either is called a boot loader.
fn is_kernel(what: &str) -> bool {
    what.contains("kernel") && !what.contains("boot loader")
}

/// Order of reasons: what explains most first. Within one weight they stay in the order of the boot.
pub(super) fn weight(code: ReasonCode) -> u8 {
    match code {
        ReasonCode::SecureBootDisabled | ReasonCode::SecureBootUnknown => 0,
        ReasonCode::EventlogCommandLine => 1,
        ReasonCode::EventlogInitrd | ReasonCode::EventlogKernel | ReasonCode::EventlogBootLoader => 2,
        _ => 3,
    }
}
