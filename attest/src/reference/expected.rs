//! Slots with the digests of their texts, computed once.

use std::collections::BTreeMap;

use super::Slot;
use crate::eventlog::{Coverage, Event};
use crate::key::Bank;

/// Banks in which anything is judged.
const BANKS: [Bank; 4] = [Bank::Sha256, Bank::Sha384, Bank::Sha512, Bank::Sm3_256];

/// A slot, ready to be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    slot: Slot,
    /// Digests of the texts.
    texts: BTreeMap<Bank, Vec<Vec<u8>>>,
}

/// By what events are judged beside the values themselves.
#[derive(Clone, Copy)]
pub(crate) struct Judge<'a> {
    /// The bank whose digests count.
    pub bank: Bank,
    /// Whether the policy accepts a kernel's arguments, for slots that leave them to it.
    pub command_line: &'a dyn Fn(&str) -> bool,
}

/// How a slot accepts an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acceptance {
    /// By its digest, or by the text that the digest is of.
    Value,
    /// By a rule.
    Rule,
}

impl Expected {
    pub fn new(slot: Slot) -> Self {
        let digests = |bank: Bank| slot.texts.iter().map(|text| bank.hash(text.as_bytes())).collect();
        let texts = if slot.texts.is_empty() {
            BTreeMap::new()
        } else {
            BANKS.into_iter().map(|bank| (bank, digests(bank))).collect()
        };
        Self { slot, texts }
    }

    pub const fn slot(&self) -> &Slot {
        &self.slot
    }

    /// The digests of one bank that it lists, each with the text that it is of.
    pub fn listed(&self, bank: Bank) -> impl Iterator<Item = (&[u8], Option<&str>)> {
        let digests = self.slot.digests.get(&bank).into_iter().flatten().map(|digest| (digest.as_slice(), None));
        let of_texts = self.texts.get(&bank).into_iter().flatten().map(Vec::as_slice);
        digests.chain(of_texts.zip(self.slot.texts.iter().map(|text| Some(text.as_str()))))
    }

    /// How it accepts an event, if it does.
    pub fn accepts(&self, event: &Event<'_>, judge: &Judge<'_>) -> Option<Acceptance> {
        let digest = event.digests.get(judge.bank).filter(|_| event.event_type == self.slot.event_type)?;
        let listed = |known: &BTreeMap<Bank, Vec<Vec<u8>>>| {
            known.get(&judge.bank).is_some_and(|known| known.iter().any(|known| known == digest))
        };
        if listed(&self.slot.digests) || listed(&self.texts) {
            return Some(Acceptance::Value);
        }
        let by_rule = self.slot.rule.is_some_and(|rule| rule.accepts(event, judge.bank, judge.command_line));
        (by_rule || self.fits_a_pattern(event, judge.bank)).then_some(Acceptance::Rule)
    }

    fn fits_a_pattern(&self, event: &Event<'_>, bank: Bank) -> bool {
        if self.slot.patterns.is_empty() {
            return false;
        }
        let text = match event.coverage(bank) {
            Coverage::Text => event.grub_text(),
            Coverage::Data => core::str::from_utf8(event.data).ok(),
            Coverage::Beginning(_) | Coverage::Value | Coverage::Nothing => None,
        };
        text.is_some_and(|text| self.slot.patterns.iter().any(|pattern| pattern.matches(text)))
    }
}
