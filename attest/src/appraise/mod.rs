//! The whole judgement: from evidence to a verdict, or to every reason against it.
//!
//! ```text
//! VerifiedQuote ─replay─► ReplayedLog ─read─► Claims ─policy, reference values─► Appraisal
//! ```
//!
//! Each of these can be made only from the one before it. A stage that fails gives all its reasons, not only the first;
//! the stages behind it are not reached, for what they would look at is not proved.

mod banks;
mod boot;
pub mod claims;
mod compare;
mod name_pattern;
mod policy;
mod program_rules;
mod programs;
mod replayed;
mod separators;
mod stop;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

pub use banks::{BankCaveat, BankState, PinnedBanks};
pub use boot::{BootInstance, Judged, static_digest};
pub use claims::Claims;
pub use name_pattern::{NamePattern, NamePatternError};
pub use policy::{
    AmbiguousLine, Argument, ArgumentRule, CommandLineRules, DbxRules, FirmwareRules, JUDGED_PCRS, MAX_POLICY, Policy,
    PolicyError, QUOTED_PCRS, SCHEMA as POLICY_SCHEMA, STATIC_PCRS, ShimRules, arguments,
};
pub use program_rules::{AcceptedContent, ProgramRule, ProgramRules, ProgramRulesError, ViolationRule};
pub use programs::rules as ima_rules;
pub use replayed::ReplayedLog;

pub use crate::reason::Denial;
use stop::Stop;

use crate::eventlog::CertificateCache;
use crate::evidence::Evidence;
use crate::ima::ImaState;
use crate::key::Bank;
use crate::quote::VerifiedQuote;
use crate::reason::{Reason, ReasonCode};
use crate::reference::ReferenceValues;
use crate::result::ByRule;

/// The PCR that changes while the system runs: IMA's.
pub const RUNTIME_PCR: u8 = crate::ima::PCR;

/// Most reasons that a denial gives. Whoever needs more than these to understand it would not read them.
pub const MAX_REASONS: usize = 100;

/// What evidence is judged against.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The reference values that the policy may name.
    pub references: &'a [ReferenceValues],
    /// What is required.
    pub policy: &'a Policy,
    /// Databases of keys that were read before: give the same one each time.
    pub certificates: &'a CertificateCache,
    /// What was judged of this host before, if anything was: time does not go backwards, and within one boot the IMA
    /// list only grows.
    pub previous: Option<&'a Judged>,
    /// The time as of which it is judged, in seconds since 1970: signatures of reference values end.
    pub now: u64,
    /// Becomes true when nobody waits any more for the verdict: then the judgement is stopped, and is a denial with the
    /// code `evidence.abandoned`.
    pub abandoned: Option<&'a AtomicBool>,
}

/// The denial of one stage: the gravest reasons first, and no more of them than anybody reads.
fn denial(mut reasons: Vec<Reason>) -> Denial {
    reasons.sort_by_key(|reason| compare::weight(reason.code));
    let more = reasons.len().saturating_sub(MAX_REASONS);
    reasons.truncate(MAX_REASONS);
    if more > 0
        && let Some(last) = reasons.last_mut()
    {
        last.text = format!("{} (And {more} more reasons.)", last.text);
    }
    reasons.into()
}

/// The positive verdict: the host booted what the reference values say, as the policy requires.
///
/// Made only by [`Claims::appraise`], and so only from evidence that passed every stage.
#[derive(Clone, Debug)]
pub struct Appraisal {
    quote: VerifiedQuote,
    boot: BootInstance,
    bank: Bank,
    policy: String,
    policy_digest: [u8; 32],
    reference: MatchedReference,
    by_rule: Vec<ByRule>,
    secure_boot: Option<bool>,
    shim_validation: Option<bool>,
    sbat_date: Option<u64>,
    command_line: Option<String>,
    ima: Option<ImaState>,
    ima_judged: bool,
    programs_known: bool,
    continued: Option<ImaState>,
    bank_caveats: Vec<(Bank, BankCaveat)>,
}

/// Reference values that a boot matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchedReference {
    /// Their name.
    pub name: String,
    /// Which edition of them.
    pub version: u64,
    /// SHA-256 of what they say.
    pub digest: [u8; 32],
    /// The id of the key that signed them, if one did.
    pub signed_by: Option<String>,
}

impl MatchedReference {
    fn new(values: &ReferenceValues) -> Self {
        Self {
            name: values.name().to_owned(),
            version: values.version(),
            digest: values.digest(),
            signed_by: values.signed_by().map(str::to_owned),
        }
    }
}

/// Judges evidence whose quotes were verified: replays its logs against them, and compares what the logs say with the policy
/// and the reference values.
///
/// `quote` is what [`VerifiedQuote::verify`] made of this evidence. Logs of other evidence would not lead to its PCR values.
///
/// # Errors
/// Every reason of the stage that was reached, the gravest first.
pub fn appraise(quote: VerifiedQuote, evidence: &Evidence, context: &Context<'_>) -> Result<Appraisal, Denial> {
    let previous = context.previous.map(|previous| (previous, BootInstance::of(&quote)));
    let fresh = previous.as_ref().map_or_else(Vec::new, |(then, boot)| boot::freshness(&quote, boot, then));
    let same_boot = previous.filter(|(then, boot)| then.boot.is_same_boot(boot)).map(|(then, _)| then);
    let ima = same_boot.and_then(|previous| previous.ima.as_ref());
    let replayed = match ReplayedLog::replay_until(quote, evidence, ima, Stop::when(context.abandoned)) {
        Ok(replayed) if fresh.is_empty() => replayed,
        Ok(_) => return Err(denial(fresh)),
        Err(replay) => return Err(denial([fresh, replay.into()].concat())),
    };
    let Some(bank) = context.policy.bank_if_any() else {
        return Err(ReasonCode::PolicyEmpty.into());
    };
    let claims = Claims::read(replayed, bank, context.certificates).map_err(|bad| denial(bad.into()))?;
    let appraisal =
        claims.appraise(context.policy, context.references, context.now).map_err(|bad| denial(bad.into()))?;
    match same_boot.map(|previous| appraisal.same_static_pcrs(previous)) {
        Some(reasons) if !reasons.is_empty() => Err(denial(reasons)),
        _ => Ok(appraisal),
    }
}

impl Claims<'_> {
    /// Compares the claims with what the policy requires at `now` (seconds since 1970): the last stage.
    ///
    /// # Errors
    /// Every difference.
    pub fn appraise(self, policy: &Policy, references: &[ReferenceValues], now: u64) -> Result<Appraisal, Denial> {
        let matched = compare::policy(&self, policy, references, now)?;
        let policy_digest = policy.digest();
        let rules = || programs::rules_of(&policy_digest, matched.values);
        let ima = self.replayed().ima_state(rules, matched.programs_by_rule);
        let mut rules_used = ima.iter().flat_map(|ima| ima.by_rule.keys());
        let programs_known = policy.ima && !rules_used.any(|reason| policy.programs.accept_any_content(reason));
        Ok(Appraisal {
            boot: BootInstance::of(self.replayed().quote()),
            bank: self.bank(),
            policy: policy.name.clone(),
            policy_digest,
            reference: MatchedReference::new(matched.values),
            by_rule: matched.by_rule.into_iter().collect(),
            secure_boot: self.secure_boot().map(|claim| claim.value),
            shim_validation: self.shim_validation().map(|claim| claim.value),
            sbat_date: self.sbat_level().and_then(|claim| claim.value.date()),
            command_line: self.command_line().and_then(|claim| claim.value.text),
            ima,
            ima_judged: policy.ima,
            programs_known,
            continued: self.replayed().continued().cloned(),
            bank_caveats: self.replayed().bank_caveats().to_vec(),
            quote: self.into_quote(),
        })
    }
}

impl Appraisal {
    /// The boot that was judged.
    pub fn boot(&self) -> BootInstance {
        self.boot.clone()
    }

    /// The quote that it rests on.
    pub const fn quote(&self) -> &VerifiedQuote {
        &self.quote
    }

    /// The bank that it rests on.
    pub const fn bank(&self) -> Bank {
        self.bank
    }

    /// The quoted banks on which nothing may rest, with the reason why; the judged bank can only be one of which PCR 10
    /// is padded SHA-1, and then the programs were judged in another bank.
    pub fn bank_caveats(&self) -> &[(Bank, BankCaveat)] {
        &self.bank_caveats
    }

    /// The PCRs that do not change in this boot, with their values in the judged bank: [`STATIC_PCRS`].
    pub fn static_pcrs(&self) -> BTreeMap<u8, Vec<u8>> {
        let pcr = |pcr: u8| Some((pcr, self.quote.pcr(self.bank, pcr)?.to_vec()));
        STATIC_PCRS.into_iter().filter_map(pcr).collect()
    }

    /// What the verifier stores, to give it back as [`Context::previous`].
    pub fn judged(&self) -> Judged {
        let clock = self.quote.clock();
        Judged {
            boot: self.boot(),
            clock_ms: clock.clock_ms,
            clock_safe: clock.safe,
            firmware_version: self.quote.firmware_version(),
            bank: self.bank,
            static_pcrs: static_digest(self.bank, &self.static_pcrs()),
            static_of: STATIC_PCRS.to_vec(),
            ima: self.ima.clone(),
        }
    }

    /// Whether this is the same boot in the same state as what was judged before, with the IMA list continued. Launch
    /// and receipt require it: they give `judged` as [`Context::previous`] too, so that the list is compared.
    ///
    /// # Errors
    /// Everything that changed.
    pub fn continues(&self, judged: &Judged) -> Result<(), Denial> {
        let mut reasons = Vec::new();
        if !self.boot.is_same_boot(&judged.boot) {
            let (then, now) = (judged.boot.to_string(), self.boot.to_string());
            reasons.push(Reason::new(ReasonCode::BootChanged).expected(then).found(now));
        }
        reasons.extend(self.same_static_pcrs(judged));
        if judged.ima.is_some() && self.continued != judged.ima {
            let text = "The list of measured programs was not compared with what this boot showed before.";
            reasons.push(Reason::new(ReasonCode::ImaHistoryChanged).pcr(RUNTIME_PCR.into()).text(text));
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons.into()) }
    }

    fn same_static_pcrs(&self, judged: &Judged) -> Vec<Reason> {
        let mut pcrs = self.static_pcrs();
        pcrs.retain(|pcr, _| judged.static_of.contains(pcr));
        let now = static_digest(self.bank, &pcrs);
        if now == judged.static_pcrs {
            return Vec::new();
        }
        let reason = Reason::new(ReasonCode::BootStaticPcrs);
        vec![reason.expected(hex::encode(judged.static_pcrs)).found(hex::encode(now))]
    }

    /// The name of the policy.
    pub fn policy_name(&self) -> &str {
        &self.policy
    }

    /// SHA-256 of what the policy says.
    pub const fn policy_digest(&self) -> [u8; 32] {
        self.policy_digest
    }

    /// The reference values that the boot matches.
    pub const fn reference(&self) -> &MatchedReference {
        &self.reference
    }

    /// What was accepted by a stated rule and not by its digest, each once.
    pub fn by_rule(&self) -> &[ByRule] {
        &self.by_rule
    }

    /// Whether Secure Boot was on; `None` if the firmware did not measure that and the policy did not ask.
    pub const fn secure_boot(&self) -> Option<bool> {
        self.secure_boot
    }

    /// The kernel's command line, where GRUB measured one.
    pub fn command_line(&self) -> Option<&str> {
        self.command_line.as_deref()
    }

    /// How many entries of the IMA list the quote covers; all of them were compared if [`Appraisal::ima_judged`].
    pub fn ima_entries(&self) -> u64 {
        self.ima.as_ref().map_or(0, |ima| ima.entries)
    }

    /// How many entries of the IMA list are no listed programs but were accepted by a rule of the policy, by the reason
    /// that the rule gives.
    pub fn programs_by_rule(&self) -> impl Iterator<Item = (&str, u64)> {
        self.ima.iter().flat_map(|ima| &ima.by_rule).map(|(reason, count)| (reason.as_str(), *count))
    }

    /// Whether shim verified what it started; `None` if the host was started without shim.
    pub const fn shim_validation(&self) -> Option<bool> {
        self.shim_validation
    }

    /// The date of shim's list of the oldest generations of boot loaders that it starts (SBAT), as it is written there.
    pub const fn sbat_date(&self) -> Option<u64> {
        self.sbat_date
    }

    /// Whether the programs that ran were compared with the reference values.
    pub const fn ima_judged(&self) -> bool {
        self.ima_judged
    }

    /// Whether all programs that ran since boot are known by their content: they were judged, and none was accepted
    /// whatever it is, by a rule for the place where it lies, or although its measurement is a violation.
    pub const fn programs_known(&self) -> bool {
        self.programs_known
    }
}

/// Verifies the quotes and appraises: what the tests ask. The same tests ask the program too, with another one of these.
#[cfg(test)]
pub(crate) fn judge(
    evidence: &Evidence,
    ak: &crate::key::EnrolledAk,
    binding: &crate::binding::Binding,
    context: &Context<'_>,
) -> Result<Appraisal, Denial> {
    appraise(VerifiedQuote::verify(evidence, ak, binding)?, evidence, context)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod work_tests;
