//! Compares claims with what the policy and the reference values say.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::RUNTIME_PCR;
use super::claims::Claims;
use super::policy::demands::{self, Judgement, UnclearLine};
use super::policy::{Policy, PreparedRules};
use super::programs;
use super::stop::Stop;
use crate::eventlog::{Coverage, Description, EventKind};
use crate::evidence::PCR_COUNT;
use crate::key::Bank;
use crate::reason::{Reason, ReasonCode};
use crate::reference::{Acceptance, Effort, Judge, Measured, ReferenceValues, Rule, Slot, Step};
use crate::reference::{align, distance, straight};
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
    let rules = policy.command_line.prepare();
    let Judgement { mut reasons, unclear } = demands::check(claims, policy, &rules);
    let secure_boot_denied = demands::secure_boot_denied(claims, policy);
    match best(claims, policy, &rules, references, &unclear, now) {
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

/// The reference values that match. If none do, the differences from those that come nearest; only for these the
/// differences are sought.
fn best<'r>(
    claims: &Claims<'_>,
    policy: &Policy,
    rules: &PreparedRules<'_>,
    references: &'r [ReferenceValues],
    unclear: &[UnclearLine<'_>],
    now: u64,
) -> Result<Match<'r>, Vec<Reason>> {
    let command_line = |line: &str| rules.accepts(line);
    let judge = Judge { bank: claims.bank(), command_line: &command_line };
    let events = Events::of(claims);
    let mut programs = programs::Judged::new(claims.replayed(), policy, claims.certificates().signatures());
    // How far they are, and the reasons against lines and programs if the boot itself matches.
    let mut nearest: Option<(usize, &ReferenceValues, Vec<Reason>)> = None;
    let mut distrusted = Vec::new();
    for values in references.iter().filter(|values| policy.references.iter().any(|name| name == values.name())) {
        if claims.replayed().stop().asked() {
            return Err(vec![Stop::reason()]);
        }
        if let Some(reason) = policy.distrust(values, now) {
            distrusted.push(reason);
            continue;
        }
        let (distance, reasons) = match events.matches(&judge, values) {
            Ok(mut by_rule) => {
                let mut reasons = command_lines(claims, rules, values, unclear, &mut by_rule);
                let programs_by_rule = programs.accepted_by(values).unwrap_or_else(|found| {
                    reasons.extend(found);
                    programs::ByReason::new()
                });
                if reasons.is_empty() {
                    return Ok(Match { values, by_rule, programs_by_rule });
                }
                (0, reasons)
            }
            Err(distance) => (distance, Vec::new()),
        };
        let is_nearer = |(far, _, known): &(usize, _, Vec<Reason>)| (distance, reasons.len()) < (*far, known.len());
        if nearest.as_ref().is_none_or(is_nearer) {
            nearest = Some((distance, values, reasons));
        }
    }
    Err(match nearest {
        Some((0, _, reasons)) => reasons,
        Some((_, values, _)) => {
            let mut reasons = events.differences(&judge, values);
            reasons.extend(programs.accepted_by(values).err().into_iter().flatten());
            // Optional events that accept the same can be there in endless ways, of which only some are tried.
            if reasons.is_empty() {
                let text = "The reference values have too many optional events that accept the same: whether the boot \
                            matches them cannot be told in bounded work.";
                reasons.push(Reason::new(ReasonCode::EventlogEventMismatch).event(values.name()).text(text));
            }
            reasons
        }
        None => {
            if distrusted.is_empty() {
                let reason = Reason::new(ReasonCode::ReferenceMissing);
                distrusted.push(reason.expected(policy.references.join(", ")).found("none of them"));
            }
            distrusted
        }
    })
}

/// The events of a boot by PCR. Every PCR but the one that changes while the system runs: one without reference values
/// must not be extended.
struct Events<'a> {
    all: Vec<Measured<'a>>,
    /// Where those of each PCR are.
    of_pcr: Vec<(u8, Range<usize>)>,
}

impl<'a> Events<'a> {
    fn of(claims: &'a Claims<'_>) -> Self {
        let mut all = Vec::with_capacity(claims.replayed().log().events().len());
        let mut of_pcr = Vec::with_capacity(PCR_COUNT.into());
        for pcr in (0..PCR_COUNT).filter(|pcr| *pcr != RUNTIME_PCR) {
            let begin = all.len();
            all.extend(claims.measured(pcr));
            of_pcr.push((pcr, begin..all.len()));
        }
        Self { all, of_pcr }
    }

    fn by_pcr(&self) -> impl Iterator<Item = (u8, &[Measured<'a>])> {
        self.of_pcr.iter().map(|(pcr, range)| (*pcr, self.all.get(range.clone()).unwrap_or_default()))
    }

    /// What was accepted by a rule, if all of it matches; else about how far it is from that.
    fn matches(&self, judge: &Judge<'_>, values: &ReferenceValues) -> Result<BTreeSet<ByRule>, usize> {
        let mut by_rule = BTreeSet::new();
        let mut far = 0_usize;
        for (pcr, events) in self.by_pcr() {
            match straight(values.expected(pcr), events, judge) {
                Some(steps) => by_rule.extend(steps.iter().filter_map(accepted_by_rule)),
                None => far = far.saturating_add(distance(values.expected(pcr), events, judge)),
            }
        }
        if far == 0 { Ok(by_rule) } else { Err(far) }
    }

    /// Every difference.
    fn differences(&self, judge: &Judge<'_>, values: &ReferenceValues) -> Vec<Reason> {
        let effort = Effort::to_explain(self.all.len());
        let mut reasons = Vec::new();
        for (pcr, events) in self.by_pcr() {
            let steps = align(values.expected(pcr), events, judge, &effort);
            let mut differences = steps.iter().filter(|step| step.is_difference());
            reasons.extend(differences.by_ref().take(MAX_PER_PCR).filter_map(|step| explain(step, judge.bank)));
            let more = differences.count();
            if more > 0 {
                let text = format!("PCR {pcr} differs in {more} more events.");
                reasons.push(Reason::new(ReasonCode::EventlogEventMismatch).pcr(pcr.into()).text(text));
            }
        }
        reasons
    }
}

/// What is wrong with the command lines that the policy's rules cannot be applied to. One that the reference values list by
/// its value is accepted, and said to be.
fn command_lines(
    claims: &Claims<'_>,
    rules: &PreparedRules<'_>,
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
        let found = line.if_listed(*text, rules);
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
        Step::Unexpected(measured) => {
            let description = described(measured);
            let code = match description.kind {
                EventKind::KernelCommandLine | EventKind::StubCommandLine => ReasonCode::EventlogCommandLine,
                _ => ReasonCode::EventlogEventUnexpected,
            };
            let text = format!("The host measured something that no reference value foresees: {}.", description.words);
            let reason = Reason::new(code).pcr(measured.event.pcr).event(&description.words).text(text);
            reason.found(shown(measured, description, bank))
        }
        Step::Missing(slot) => {
            let reason = Reason::new(ReasonCode::EventlogEventMissing).pcr(slot.pcr.into()).event(&slot.what);
            reason
                .expected(slot.expected(bank))
                .text(format!("The host did not measure what is required: {}.", slot.what))
        }
        Step::OtherValue(slot, measured) => {
            let description = described(measured);
            let code = code_of(slot, description.kind);
            let words = words(slot, &description);
            let reason = Reason::new(code).pcr(measured.event.pcr).event(words);
            let reason = if code == ReasonCode::EventlogEventMismatch {
                reason.text(format!("The host measured another value than is accepted: {words}."))
            } else {
                reason
            };
            reason.expected(expected(slot, &description, bank)).found(shown(measured, description, bank))
        }
    })
}

fn described(measured: &Measured<'_>) -> Description {
    measured.event.describe_covered(measured.coverage)
}

/// The slot's words, for whoever wrote them knows what should be there; without the label that a recording adds. The
/// event's own where they say in which state something is, and a digest covers that.
fn words<'d>(slot: &'d Slot, description: &'d Description) -> &'d str {
    let state = description.kind == EventKind::SecureBootState && description.coverage == Coverage::Data;
    if state || slot.what.starts_with(&description.words) { &description.words } else { &slot.what }
}

/// What a slot accepts, with the label that a recording gave it.
fn expected(slot: &Slot, description: &Description, bank: Bank) -> String {
    let accepted = slot.expected(bank);
    let label = slot.what.strip_prefix(&description.words).and_then(|rest| rest.strip_prefix(": "));
    match label {
        Some(label) if slot.texts.is_empty() => format!("{accepted} ({label})"),
        _ => accepted,
    }
}

/// What an event says, as far as its digest covers that; the digest otherwise, with the label called a label.
fn shown(measured: &Measured<'_>, description: Description, bank: Bank) -> String {
    let digest = hex::encode(measured.event.digests.get(bank).unwrap_or_default());
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

fn code_of(slot: &Slot, kind: EventKind) -> ReasonCode {
    let what = slot.what.to_lowercase();
    match kind {
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
