//! What a recorded boot adds to reference values.

use super::expected::{Expected, Judge, Measured};
use super::{Effort, ReferenceBuilder, Slot, Step, align};
use crate::eventlog::{Coverage, Event, EventLog};
use crate::ima::Entry;
use crate::key::Bank;

/// Longest text in a slot; a longer one is told by its digest.
const MAX_TEXT: usize = 4096;

/// A measured program that cannot be listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotTaken {
    /// Its name in the list.
    pub name: String,
    /// Why.
    pub problem: &'static str,
}

impl ReferenceBuilder {
    /// Adds a slot for each event of a recorded log that extends one of these PCRs, with its digests of these banks.
    ///
    /// A text that a digest covers is written as text. Call it once for each PCR that shall come from the recording;
    /// what follows for the same PCR is expected behind it.
    pub fn recorded(&mut self, log: &EventLog<'_>, banks: &[Bank], pcrs: &[u8]) -> &mut Self {
        for (pcr, event) in events(log, pcrs) {
            self.slots.push(recorded_slot(log, event, pcr, banks));
        }
        self
    }

    /// Takes in one more good boot. Where it shows another value, that becomes one more accepted value of the same slot;
    /// what only some boots show becomes optional. The first boot is taken as it is.
    pub fn boot(&mut self, log: &EventLog<'_>, banks: &[Bank], pcrs: &[u8]) -> &mut Self {
        if !core::mem::replace(&mut self.has_boot, true) {
            return self.recorded(log, banks, pcrs);
        }
        for pcr in pcrs {
            let of_pcr: Vec<Slot> = self.slots.extract_if(.., |slot| slot.pcr == *pcr).collect();
            let events: Vec<_> = events(log, core::slice::from_ref(pcr)).map(|(_, event)| event).collect();
            self.slots.extend(merged(of_pcr, log, &events, *pcr, banks));
        }
        self
    }

    /// Lists the programs of a recorded IMA list, the boot's own entry aside. What it gives back could not be listed.
    pub fn programs<'e>(&mut self, entries: impl IntoIterator<Item = Entry<'e>>) -> Vec<NotTaken> {
        let mut not_taken = Vec::new();
        for entry in entries {
            let digest = entry.digest();
            let name = core::str::from_utf8(entry.name()).ok().filter(|name| !name.chars().any(char::is_control));
            let problem = match name {
                _ if entry.is_boot_aggregate() => continue,
                None => "its name is not plain text",
                Some(_) if entry.is_violation() => "it was written while it was measured",
                Some(_) if digest.verity => "what was measured is its fs-verity digest",
                Some(_) if digest.bank() != Some(Bank::Sha256) => "it was measured with another hash than SHA-256",
                Some(name) => {
                    self.ima_digest(name, digest.digest.to_vec());
                    continue;
                }
            };
            not_taken.push(NotTaken { name: entry.name_lossy().into_owned(), problem });
        }
        not_taken
    }
}

fn events<'l, 'a>(log: &'l EventLog<'a>, pcrs: &'l [u8]) -> impl Iterator<Item = (u8, &'l Event<'a>)> {
    let of_pcrs = |event: &&Event<'a>| u8::try_from(event.pcr).ok().filter(|pcr| pcrs.contains(pcr));
    log.events().iter().filter(|event| event.extends()).filter_map(move |event| Some((of_pcrs(&event)?, event)))
}

/// The slots of a PCR and the events of one more boot, as slots that accept both.
fn merged(slots: Vec<Slot>, log: &EventLog<'_>, events: &[&Event<'_>], pcr: u8, banks: &[Bank]) -> Vec<Slot> {
    let slots: Vec<_> = slots.into_iter().map(Expected::new).collect();
    let judge = Judge { bank: banks.first().copied().unwrap_or(Bank::Sha256), command_line: &|_| false };
    let events: Vec<_> = events.iter().map(|event| Measured::new(event, event.coverage(judge.bank))).collect();
    let steps = align(&slots, &events, &judge, &Effort::to_record());
    let slot = |step: &Step<'_>| match step {
        Step::Accepted(slot, ..) | Step::Absent(slot) => (*slot).clone(),
        Step::Missing(slot) => (*slot).clone().optional(),
        Step::Unexpected(measured) => recorded_slot(log, measured.event, pcr, banks).optional(),
        Step::OtherValue(slot, measured) => {
            let mut slot = (*slot).clone();
            let more = recorded_slot(log, measured.event, pcr, banks);
            slot.texts.extend(more.texts);
            for (bank, digests) in more.digests {
                slot.digests.entry(bank).or_default().extend(digests);
            }
            slot
        }
    };
    steps.iter().map(slot).collect()
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
        // Not where the digest is of more than the text, such as a terminator.
        let is_all = |bank: &Bank| event.digests.get(*bank).is_some_and(|digest| digest == bank.hash(text.as_bytes()));
        if banks.iter().all(is_all) {
            return Slot::text(pcr, event.event_type, &description.words, text);
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
    Slot { digests, ..Slot::new(pcr, event.event_type, &what) }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(120).collect()
}
