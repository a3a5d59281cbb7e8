//! Makes reference values: from what an image's build knows, and from a recorded good boot.

use std::collections::{BTreeMap, BTreeSet};

use super::{MAX_SLOTS, ReferenceError, ReferenceValues, Slot};
use crate::eventlog::{Coverage, Event, EventLog};
use crate::key::Bank;

/// Highest PCR that a boot extends.
const MAX_PCR: u8 = 23;

/// PCRs that any program can reset and extend anew: debug and application.
const RESETTABLE: [u8; 2] = [16, 23];

/// Longest text in a slot; a longer one is told by its digest.
const MAX_TEXT: usize = 4096;

/// Reference values in the making.
///
/// What an image's build put on a disk is added slot by slot; what only a boot can tell (the firmware's own
/// measurements) comes from a log that was recorded on a machine known to be good.
#[derive(Clone, Debug, Default)]
pub struct ReferenceBuilder {
    name: String,
    description: String,
    version: u64,
    slots: Vec<Slot>,
    ima: BTreeMap<String, BTreeSet<Vec<u8>>>,
}

impl ReferenceBuilder {
    /// Begins with nothing: no PCR may be extended.
    pub fn new(name: &str, description: &str) -> Self {
        Self { name: name.to_owned(), description: description.to_owned(), ..Self::default() }
    }

    /// Which edition of these values it is: higher than that of those that they replace.
    pub fn version(&mut self, version: u64) -> &mut Self {
        self.version = version;
        self
    }

    /// Adds a slot for each event of a recorded log that extends one of these PCRs, with its digests of these banks.
    ///
    /// A text that a digest covers is written as text. Call it once for each PCR that shall come from the recording;
    /// what follows for the same PCR is expected behind it.
    pub fn recorded(&mut self, log: &EventLog<'_>, banks: &[Bank], pcrs: &[u8]) -> &mut Self {
        for event in log.events().iter().filter(|event| event.extends()) {
            let Some(pcr) = u8::try_from(event.pcr).ok().filter(|pcr| pcrs.contains(pcr)) else { continue };
            self.slots.push(recorded_slot(log, event, pcr, banks));
        }
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
        let mut slots: BTreeMap<u8, Vec<Slot>> = BTreeMap::new();
        for (slot, number) in self.slots.iter().zip(1_usize..) {
            let of_pcr = slots.entry(slot.pcr).or_default();
            if let Some(problem) = problem_of(slot, of_pcr.len()) {
                return Err(ReferenceError::Slot { number, what: slot.what.clone(), problem });
            }
            of_pcr.push(slot.clone());
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
    if slot.texts.is_empty() && slot.digests.values().all(Vec::is_empty) {
        return Some("it accepts neither a text nor a digest".to_owned());
    }
    slot.digests
        .iter()
        .find(|(bank, digests)| **bank == Bank::Sha1 || digests.iter().any(|digest| digest.len() != bank.digest_size()))
        .map(|(bank, _)| format!("it has {bank} digests that prove nothing"))
}

fn recorded_slot(log: &EventLog<'_>, event: &Event<'_>, pcr: u8, banks: &[Bank]) -> Slot {
    let description = log.describe(event);
    let covered = match description.coverage {
        Coverage::Text => event.grub_text(),
        Coverage::Data => core::str::from_utf8(event.data).ok(),
        Coverage::Beginning(_) | Coverage::Value | Coverage::Nothing => None,
    };
    // Written as text only where a reader sees every character of it.
    let text = covered.filter(|text| {
        !text.is_empty() && text.len() <= MAX_TEXT && text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\t'))
    });
    if let Some(text) = text {
        let slot = Slot::text(pcr, event.event_type, &description.words, text);
        // Not where the digest is of more than the text, such as a terminator.
        if banks.iter().all(|bank| slot.accepts(event, *bank)) {
            return slot;
        }
    }
    let what = match &description.text {
        // A label, for the reader: it names the file or variable that was measured.
        Some(label) => format!("{}: {}", description.words, first_line(label)),
        None => description.words,
    };
    let digests = banks
        .iter()
        .filter(|bank| **bank != Bank::Sha1)
        .filter_map(|bank| Some((*bank, vec![event.digests.get(*bank)?.to_vec()])))
        .collect();
    Slot { pcr, event_type: event.event_type, what, texts: Vec::new(), digests, optional: false }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(120).collect()
}
