//! Rules on shim, the boot loader that verifies the next one by keys of its own.

use std::cell::LazyCell;
use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_with::{hex::Hex, serde_as};

use super::super::claims::Claims;
use super::Policy;
use crate::appraise::MAX_REASONS;
use crate::reason::{Reason, ReasonCode};
use crate::work;

/// The PCR of Secure Boot.
const SECURE_BOOT: u32 = 7;

/// The PCR of shim's lists.
const LISTS: u32 = 14;

/// What shim must have said of itself. A host that was started without shim has nothing to say and fulfils all of it.
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct ShimRules {
    /// Where the policy demands Secure Boot: whether shim must verify what it starts (`MokSBState` not set). Default: true.
    pub validation: bool,
    /// Where the policy demands Secure Boot: whether shim must have measured below which generation it starts no boot
    /// loader (SBAT), as all do since version 15.3. Default: true.
    pub sbat: bool,
    /// The lowest date of that list, as it is written there: 2025021800. Absent: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum_sbat_date: Option<u64>,
    /// The lowest generations that the list must demand, by component: `grub = 5`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub minimum_generations: BTreeMap<String, u32>,
    /// Digests, of the policy's bank, of the only lists of keys (MokList) that shim may trust. The distribution's own keys
    /// are in the list, so no list is empty; a key that the machine's owner enrolled makes it another one. Absent: whatever
    /// the reference values accept.
    #[serde_as(as = "Option<Vec<Hex>>")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mok_lists: Option<Vec<Vec<u8>>>,
}

impl Default for ShimRules {
    fn default() -> Self {
        Self {
            validation: true,
            sbat: true,
            minimum_sbat_date: None,
            minimum_generations: BTreeMap::new(),
            mok_lists: None,
        }
    }
}

impl ShimRules {
    /// Whether these are the rules of a policy that says nothing of shim.
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Everything that the policy demands of shim and the claims do not show.
pub(super) fn check(claims: &Claims<'_>, policy: &Policy) -> Vec<Reason> {
    let rules = &policy.shim;
    let mut reasons = Vec::new();
    if policy.secure_boot && rules.validation {
        reasons.extend(validation(claims));
    }
    if claims.shim_validation().is_none() {
        return reasons;
    }
    reasons.extend(sbat(claims, policy));
    if let Some(accepted) = &rules.mok_lists {
        reasons.extend(mok_lists(claims, accepted));
    }
    reasons
}

fn validation(claims: &Claims<'_>) -> Vec<Reason> {
    let about = |pcr: u32| Reason::new(ReasonCode::PolicyShimValidation).pcr(pcr).event("MokSBState");
    let disabled = claims.shim_validation().filter(|claim| !claim.value);
    let disabled = disabled.map(|claim| about(claim.ground.pcr).found(format!("set, event {}", claim.ground.event)));
    // What no digest covers may be this very setting.
    let unknown = claims.uncovered_settings().next();
    let unknown = unknown.map(|event| about(SECURE_BOOT).found(format!("event {event}, which no digest covers")));
    disabled.into_iter().chain(unknown).collect()
}

fn sbat(claims: &Claims<'_>, policy: &Policy) -> Vec<Reason> {
    let rules = &policy.shim;
    let about = || Reason::new(ReasonCode::PolicySbat).pcr(SECURE_BOOT).event("SbatLevel");
    let Some(level) = claims.sbat_level() else {
        let is_demanded = policy.secure_boot && rules.sbat
            || rules.minimum_sbat_date.is_some()
            || !rules.minimum_generations.is_empty();
        return is_demanded.then(|| about().found("not measured")).into_iter().collect();
    };
    let mut reasons = Vec::new();
    let date = level.value.date();
    if let Some(minimum) = rules.minimum_sbat_date.filter(|minimum| date.is_none_or(|date| date < *minimum)) {
        let found = date.map_or_else(|| "no date".to_owned(), |date| date.to_string());
        reasons.push(about().expected(format!("{minimum} or later")).found(found));
    }
    for (component, minimum) in &rules.minimum_generations {
        let generation = level.value.generation(component);
        if generation.is_none_or(|generation| generation < *minimum) {
            let found = generation.map_or_else(|| format!("no {component}"), |found| format!("{component},{found}"));
            reasons.push(about().expected(format!("{component},{minimum} or higher")).found(found));
        }
    }
    reasons
}

/// By its place, for its name is a label: shim measures this list before everything else into PCR 14.
fn mok_lists(claims: &Claims<'_>, accepted: &[Vec<u8>]) -> Vec<Reason> {
    let about = || Reason::new(ReasonCode::PolicyMokList).pcr(LISTS).event("MokList");
    let lists = claims.shim_lists();
    if lists.is_empty() {
        return vec![about().found("not measured")];
    }
    let known: HashSet<&[u8]> = accepted.iter().map(Vec::as_slice).collect();
    let is_list = |(place, label): (usize, &str)| place == 0 || label == "MokList";
    let others = lists
        .iter()
        .enumerate()
        .inspect(|_| work::steps(1))
        .filter(|(place, claim)| is_list((*place, &claim.value.label)))
        .filter(|(_, claim)| !known.contains(claim.ground.digest));
    let expected = LazyCell::new(|| accepted.iter().map(hex::encode).collect::<Vec<_>>().join(" | "));
    let reason = |digest: &[u8]| about().expected(&*expected).found(hex::encode(digest));
    others.map(|(_, claim)| reason(claim.ground.digest)).take(MAX_REASONS).collect()
}
