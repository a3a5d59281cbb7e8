//! The file: what is read and written.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Expected, Pattern, ReferenceBuilder, ReferenceError, ReferenceValues, Rule, SCHEMA, Slot};
use crate::eventlog::EventType;
use crate::key::Bank;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    schema: String,
    name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    version: u64,
    #[serde(default)]
    event: Vec<EventEntry>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ima: Vec<ImaEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventEntry {
    pcr: u8,
    #[serde(rename = "type")]
    event_type: String,
    what: String,
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    optional: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pattern: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    text: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sha256: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sha384: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sha512: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sm3_256: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImaEntry {
    path: String,
    sha256: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_zero(version: &u64) -> bool {
    *version == 0
}

pub(super) fn read(text: &str) -> Result<ReferenceValues, ReferenceError> {
    if text.len() > super::MAX_BYTES {
        return Err(ReferenceError::TooLarge(text.len()));
    }
    let document: Document = toml::from_str(text)?;
    if document.schema != SCHEMA {
        return Err(ReferenceError::Schema(document.schema.chars().take(64).collect()));
    }
    let mut builder = ReferenceBuilder::new(&document.name, &document.description);
    builder.version(document.version);
    for (entry, number) in document.event.into_iter().zip(1_usize..) {
        builder.slot(slot(entry, number)?);
    }
    for entry in document.ima {
        if builder.lists(&entry.path) {
            return Err(ReferenceError::Ima { path: entry.path, problem: "is there twice" });
        }
        if entry.sha256.is_empty() {
            return Err(ReferenceError::Ima { path: entry.path, problem: "accepts no digest" });
        }
        for digest in &entry.sha256 {
            let Some(digest) = digest_from_hex(Bank::Sha256, digest) else {
                let problem = "has a digest that is not 64 lower-case hex digits";
                return Err(ReferenceError::Ima { path: entry.path, problem });
            };
            builder.ima_digest(&entry.path, digest);
        }
    }
    builder.build()
}

fn slot(entry: EventEntry, number: usize) -> Result<Slot, ReferenceError> {
    let wrong = |problem: String| ReferenceError::Slot { number, what: entry.what.clone(), problem };
    let event_type = event_type(&entry.event_type).ok_or_else(|| {
        wrong(format!("type {:?} is neither a name of the profile nor 0x and 8 digits", entry.event_type))
    })?;
    let mut digests = BTreeMap::new();
    for (bank, list) in [
        (Bank::Sha256, &entry.sha256),
        (Bank::Sha384, &entry.sha384),
        (Bank::Sha512, &entry.sha512),
        (Bank::Sm3_256, &entry.sm3_256),
    ] {
        let mut read = Vec::new();
        for digest in list {
            let size = bank.digest_size().saturating_mul(2);
            let digest = digest_from_hex(bank, digest)
                .ok_or_else(|| wrong(format!("a {bank} digest is not {size} lower-case hex digits")))?;
            read.push(digest);
        }
        if !read.is_empty() {
            digests.insert(bank, read);
        }
    }
    let rule = match &entry.rule {
        Some(name) => Some(name.parse::<Rule>().map_err(|()| wrong(format!("there is no rule {name:?}")))?),
        None => None,
    };
    let pattern = |text: &String| {
        let problem = || wrong(format!("{text:?} is no pattern: it needs a hole such as {{uuid}}, and text beside it"));
        Pattern::new(text).ok_or_else(problem)
    };
    let patterns = entry.pattern.iter().map(pattern).collect::<Result<_, _>>()?;
    let EventEntry { pcr, what, text: texts, optional, reason, .. } = entry;
    Ok(Slot { pcr, event_type, what, texts, digests, patterns, rule, reason, optional })
}

/// One way to write each digest, so that files can be compared and searched as text.
fn digest_from_hex(bank: Bank, text: &str) -> Option<Vec<u8>> {
    let lower = text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    hex::decode(text).ok().filter(|digest| lower && digest.len() == bank.digest_size())
}

fn event_type(text: &str) -> Option<EventType> {
    EventType::from_name(text).or_else(|| {
        let number = text.strip_prefix("0x").filter(|digits| digits.len() == 8)?;
        let found = EventType(u32::from_str_radix(number, 16).ok()?);
        (found.to_string() == text).then_some(found)
    })
}

pub(super) fn write(values: &ReferenceValues) -> Result<String, ReferenceError> {
    Ok(toml::to_string(&document(values))?)
}

/// Of the canonical JSON: the fields of this schema, in its order.
pub(super) fn digest(values: &ReferenceValues) -> [u8; 32] {
    // Maps with text as keys and plain numbers: JSON holds all of it.
    let json = serde_json::to_vec(&document(values)).unwrap_or_default();
    Sha256::digest(json).into()
}

fn document(values: &ReferenceValues) -> Document {
    let digests =
        |slot: &Slot, bank| -> Vec<String> { slot.digests.get(&bank).into_iter().flatten().map(hex::encode).collect() };
    let event = values.slots.values().flatten().map(Expected::slot).map(|slot| EventEntry {
        pcr: slot.pcr,
        event_type: slot.event_type.to_string(),
        what: slot.what.clone(),
        optional: slot.optional,
        reason: slot.reason.clone(),
        rule: slot.rule.map(|rule| rule.to_string()),
        pattern: slot.patterns.iter().map(|pattern| pattern.as_str().to_owned()).collect(),
        text: slot.texts.clone(),
        sha256: digests(slot, Bank::Sha256),
        sha384: digests(slot, Bank::Sha384),
        sha512: digests(slot, Bank::Sha512),
        sm3_256: digests(slot, Bank::Sm3_256),
    });
    let ima = values
        .ima
        .iter()
        .map(|(path, digests)| ImaEntry { path: path.clone(), sha256: digests.iter().map(hex::encode).collect() });
    Document {
        schema: SCHEMA.to_owned(),
        name: values.name.clone(),
        description: values.description.clone(),
        version: values.version,
        event: event.collect(),
        ima: ima.collect(),
    }
}
