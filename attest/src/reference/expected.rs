//! Slots with everything that they accept by its digest, computed once, and events with what was found of them.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use super::{Rule, Slot};
use crate::eventlog::{Coverage, Event};
use crate::key::Bank;
use crate::work;

/// Banks in which anything is judged.
const BANKS: [Bank; 4] = [Bank::Sha256, Bank::Sha384, Bank::Sha512, Bank::Sm3_256];

/// A slot, ready to be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    slot: Slot,
    /// The accepted digests of each bank, by the bank's place in [`Bank::ALL`]: those that are listed, and those of the
    /// texts with their places. Sorted.
    accepted: [Vec<(Vec<u8>, Option<usize>)>; Bank::ALL.len()],
}

/// An event, and how far its digest of the judged bank covers what it says.
#[derive(Clone, Debug)]
pub(crate) struct Measured<'a> {
    pub event: &'a Event<'a>,
    pub coverage: Coverage,
    /// Whether each rule accepts it, once one was asked: many slots may have the same.
    by_rule: [OnceCell<bool>; Rule::ALL.len()],
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

impl<'a> Measured<'a> {
    pub const fn new(event: &'a Event<'a>, coverage: Coverage) -> Self {
        Self { event, coverage, by_rule: [const { OnceCell::new() }; Rule::ALL.len()] }
    }

    fn fits_rule(&self, rule: Rule, judge: &Judge<'_>) -> bool {
        let accepts = || rule.accepts(self.event, self.coverage, judge.command_line);
        self.by_rule.get(rule as usize).is_some_and(|known| *known.get_or_init(accepts))
    }

    /// The text that the digest covers, for patterns.
    fn text(&self) -> Option<&'a str> {
        match self.coverage {
            Coverage::Text => self.event.grub_text(),
            Coverage::Data => core::str::from_utf8(self.event.data).ok(),
            Coverage::Beginning(_) | Coverage::Value | Coverage::Nothing => None,
        }
    }
}

impl Expected {
    pub fn new(slot: Slot) -> Self {
        let mut accepted = [const { Vec::new() }; Bank::ALL.len()];
        for bank in BANKS {
            let listed = slot.digests.get(&bank).into_iter().flatten().map(|digest| (digest.clone(), None));
            let texts = slot.texts.iter().enumerate().map(|(place, text)| (bank.hash(text.as_bytes()), Some(place)));
            let digests: BTreeMap<_, _> = listed.chain(texts).collect();
            if let Some(of_bank) = accepted.get_mut(bank as usize) {
                *of_bank = digests.into_iter().collect();
            }
        }
        Self { slot, accepted }
    }

    pub const fn slot(&self) -> &Slot {
        &self.slot
    }

    /// The digests of one bank that it lists, each with the text that it is of.
    pub fn listed(&self, bank: Bank) -> impl Iterator<Item = (&[u8], Option<&str>)> {
        let text = |place: &usize| self.slot.texts.get(*place).map(String::as_str);
        self.accepted(bank).iter().map(move |(digest, place)| (digest.as_slice(), place.as_ref().and_then(text)))
    }

    fn accepted(&self, bank: Bank) -> &[(Vec<u8>, Option<usize>)] {
        self.accepted.get(bank as usize).map_or(&[], Vec::as_slice)
    }

    /// How it accepts an event, if it does.
    pub fn accepts(&self, measured: &Measured<'_>, judge: &Judge<'_>) -> Option<Acceptance> {
        work::steps(1);
        let event = measured.event;
        let digest = event.digests.get(judge.bank).filter(|_| event.event_type == self.slot.event_type)?;
        if self.accepted(judge.bank).binary_search_by(|(known, _)| known.as_slice().cmp(digest)).is_ok() {
            return Some(Acceptance::Value);
        }
        let by_rule = self.slot.rule.is_some_and(|rule| measured.fits_rule(rule, judge));
        (by_rule || self.fits_a_pattern(measured)).then_some(Acceptance::Rule)
    }

    fn fits_a_pattern(&self, measured: &Measured<'_>) -> bool {
        let patterns = &self.slot.patterns;
        !patterns.is_empty() && measured.text().is_some_and(|text| patterns.iter().any(|pattern| pattern.matches(text)))
    }
}
