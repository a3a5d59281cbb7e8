//! Makes reference values: from what an image's build knows, and from a recorded good boot.

use std::collections::{BTreeMap, BTreeSet};

use super::{Expected, MAX_SLOTS, ReferenceError, ReferenceValues, Slot};
use crate::key::Bank;

/// Highest PCR that a boot extends.
const MAX_PCR: u8 = 23;

/// PCRs that any program can reset and extend anew: debug and application.
const RESETTABLE: [u8; 2] = [16, 23];

/// Longest reason, in characters.
const MAX_REASON: usize = 300;

/// Reference values in the making.
///
/// What an image's build put on a disk is added slot by slot; what only a boot can tell (the firmware's own
/// measurements) comes from a log that was recorded on a machine known to be good.
#[derive(Clone, Debug, Default)]
pub struct ReferenceBuilder {
    name: String,
    description: String,
    version: u64,
    /// In the order in which they are expected, PCR by PCR or mixed.
    pub(super) slots: Vec<Slot>,
    /// Whether a boot is in it already: what another one does not show, or shows beside, is optional then.
    pub(super) has_boot: bool,
    ima: BTreeMap<String, BTreeSet<Vec<u8>>>,
}

impl ReferenceBuilder {
    /// Begins with nothing: no PCR may be extended.
    pub fn new(name: &str, description: &str) -> Self {
        Self { name: name.to_owned(), description: description.to_owned(), ..Self::default() }
    }

    /// Begins with what there is, as its next edition: more boots are more accepted values.
    pub fn from_values(values: &ReferenceValues) -> Self {
        Self {
            name: values.name.clone(),
            description: values.description.clone(),
            version: values.version.saturating_add(1),
            slots: values.slots.values().flatten().map(|expected| expected.slot().clone()).collect(),
            has_boot: !values.slots.is_empty(),
            ima: values.ima.clone(),
        }
    }

    /// Where the values come from, in words.
    pub fn description(&mut self, description: &str) -> &mut Self {
        description.clone_into(&mut self.description);
        self
    }

    /// Which edition of these values it is: higher than that of those that they replace.
    pub fn version(&mut self, version: u64) -> &mut Self {
        self.version = version;
        self
    }

    /// Adds a slot behind those that its PCR has.
    pub fn slot(&mut self, slot: Slot) -> &mut Self {
        self.slots.push(slot);
        self
    }

    /// Accepts a program with this SHA-256 digest of its content under this path; call it again for another digest.
    pub fn ima(&mut self, path: &str, sha256: &[u8; 32]) -> &mut Self {
        self.ima_digest(path, sha256.to_vec());
        self
    }

    pub(super) fn ima_digest(&mut self, path: &str, digest: Vec<u8>) {
        self.ima.entry(path.to_owned()).or_default().insert(digest);
    }

    pub(super) fn lists(&self, path: &str) -> bool {
        self.ima.contains_key(path)
    }

    /// Checks what was put together.
    ///
    /// # Errors
    /// If the name is no plain word, or a slot or path could not be meant.
    pub fn build(&self) -> Result<ReferenceValues, ReferenceError> {
        if !crate::binding::is_valid_id(&self.name) {
            return Err(ReferenceError::Name(self.name.chars().take(64).collect()));
        }
        let mut slots: BTreeMap<u8, Vec<Expected>> = BTreeMap::new();
        for (slot, number) in self.slots.iter().zip(1_usize..) {
            let of_pcr = slots.entry(slot.pcr).or_default();
            if let Some(problem) = problem_of(slot, of_pcr.len()) {
                return Err(ReferenceError::Slot { number, what: slot.what.clone(), problem });
            }
            of_pcr.push(Expected::new(slot.clone()));
        }
        for path in self.ima.keys() {
            if path.is_empty() || path.chars().any(char::is_control) {
                return Err(ReferenceError::Ima { path: path.clone(), problem: "is not a plain path" });
            }
        }
        let mut values = ReferenceValues {
            name: self.name.clone(),
            description: self.description.clone(),
            slots,
            ima: self.ima.clone(),
            version: self.version,
            digest: [0; 32],
            signed_by: None,
            signature_expires: None,
        };
        values.digest = super::document::digest(&values);
        Ok(values)
    }
}

fn problem_of(slot: &Slot, before: usize) -> Option<String> {
    if slot.pcr > MAX_PCR {
        return Some(format!("there is no PCR {}", slot.pcr));
    }
    if RESETTABLE.contains(&slot.pcr) {
        return Some(format!(
            "any program can reset PCR {}, so nothing that it holds says anything of the boot",
            slot.pcr
        ));
    }
    if before >= MAX_SLOTS {
        return Some(format!("PCR {} has more than {MAX_SLOTS} slots", slot.pcr));
    }
    if slot.what.trim().is_empty() {
        return Some("it does not say what it is".to_owned());
    }
    let by_rule = slot.rule.is_some() || !slot.patterns.is_empty();
    if slot.texts.is_empty() && slot.digests.values().all(Vec::is_empty) && !by_rule {
        return Some("it accepts nothing: neither a text nor a digest, a pattern or a rule".to_owned());
    }
    let reason = slot.reason.trim();
    if by_rule && reason.is_empty() {
        return Some("a pattern or a rule needs a reason".to_owned());
    }
    if reason.chars().count() > MAX_REASON || reason.chars().any(char::is_control) {
        return Some(format!("its reason is not one line of at most {MAX_REASON} characters"));
    }
    slot.digests
        .iter()
        .find(|(bank, digests)| **bank == Bank::Sha1 || digests.iter().any(|digest| digest.len() != bank.digest_size()))
        .map(|(bank, _)| format!("it has {bank} digests that prove nothing"))
}
