//! What changed from one edition of reference values to the next, for whoever reviews it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::{ReferenceValues, Slot};

/// One change.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The PCR; none for a program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcr: Option<u8>,
    /// The slot in words, or the program's path.
    pub what: String,
    /// What became of it.
    pub change: ChangeKind,
    /// The value: a text, or an algorithm and a digest.
    pub value: String,
}

/// What became of a value.
#[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ChangeKind {
    /// It is accepted now.
    Added,
    /// It is accepted no more.
    Removed,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.change {
            ChangeKind::Added => '+',
            ChangeKind::Removed => '-',
        };
        match self.pcr {
            Some(pcr) => write!(f, "{sign} PCR {pcr}, {}: {}", self.what, self.value),
            None => write!(f, "{sign} {}: {}", self.what, self.value),
        }
    }
}

/// Slots and programs by what they are, each with how often a value stands there.
type Values = BTreeMap<(Option<u8>, String), BTreeMap<String, usize>>;

/// Everything that the new values accept and the old ones did not, or the other way round; with the number of slots that
/// are required, in which slots differ that accept the same.
pub fn changes(old: &ReferenceValues, new: &ReferenceValues) -> Vec<Change> {
    let (old, new) = (values(old), values(new));
    let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let mut changes = Vec::new();
    for key in keys {
        let nothing = BTreeMap::new();
        let (before, after) = (old.get(key).unwrap_or(&nothing), new.get(key).unwrap_or(&nothing));
        let values: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        for value in values {
            let count = |values: &BTreeMap<String, usize>| values.get(value).copied().unwrap_or(0);
            let (was, is) = (count(before), count(after));
            let change = match was.cmp(&is) {
                std::cmp::Ordering::Less => ChangeKind::Added,
                std::cmp::Ordering::Greater => ChangeKind::Removed,
                std::cmp::Ordering::Equal => continue,
            };
            for _ in 0..was.abs_diff(is) {
                changes.push(Change { pcr: key.0, what: key.1.clone(), change, value: value.clone() });
            }
        }
    }
    changes
}

fn values(of: &ReferenceValues) -> Values {
    let mut values = Values::new();
    let mut add = |pcr, what: &str, value| {
        let count = values.entry((pcr, what.to_owned())).or_default().entry(value).or_default();
        *count = count.saturating_add(1);
    };
    for slot in of.pcrs().flat_map(|pcr| of.slots(pcr)) {
        for value in accepted(slot) {
            add(Some(slot.pcr), &slot.what, value);
        }
    }
    for (path, digests) in of.programs() {
        for digest in digests {
            add(None, path, format!("sha256:{}", hex::encode(digest)));
        }
    }
    values
}

fn accepted(slot: &Slot) -> Vec<String> {
    let texts = slot.texts.iter().map(|text| format!("{text:?}"));
    let patterns = slot.patterns.iter().map(|pattern| format!("pattern {:?}", pattern.as_str()));
    let rule = slot.rule.iter().map(|rule| format!("rule {rule}"));
    let digests = slot.digests.iter();
    let digests =
        digests.flat_map(|(bank, all)| all.iter().map(move |digest| format!("{bank}:{}", hex::encode(digest))));
    let optional = slot.optional.then(|| "may be missing".to_owned());
    texts.chain(patterns).chain(rule).chain(digests).chain(optional).collect()
}
