//! Lays the events of a PCR beside its slots, so that a difference can be named: something unexpected, something
//! missing, or another value at a place that is otherwise right.

use super::Slot;
use crate::eventlog::{Event, EventType};
use crate::key::Bank;

/// Most pairs of slot and event that are compared. Beyond that a boot has nothing in common with the values, and
/// the differences are named from both ends only.
const MAX_PAIRS: usize = 1 << 20;

/// One difference between a boot and its reference values.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Difference<'a> {
    /// An event for which there is no slot.
    Unexpected(&'a Event<'a>),
    /// A slot for which there is no event.
    Missing(&'a Slot),
    /// An event at the place of a slot that does not accept it.
    OtherValue(&'a Slot, &'a Event<'a>),
}

/// What one step of an alignment costs. A step that explains more costs less than the two that would replace it.
const SAME: u32 = 0;
const OTHER_VALUE: u32 = 3;
const ALONE: u32 = 2;

/// All differences, in the order of the boot. None if and only if the events match the slots one to one and in order,
/// optional slots aside.
pub(crate) fn align<'a>(slots: &'a [Slot], events: &[&'a Event<'a>], bank: Bank) -> Vec<Difference<'a>> {
    // What is equal at the beginning is left out: in nearly all boots that is everything. Not past an optional slot:
    // whether an event is its or the next one's only the whole can tell.
    let equal =
        slots.iter().zip(events).take_while(|(slot, event)| !slot.optional && slot.accepts(event, bank)).count();
    let (slots, events) = (slots.get(equal..).unwrap_or_default(), events.get(equal..).unwrap_or_default());
    if slots.len().saturating_mul(events.len()) > MAX_PAIRS {
        let missing = slots.iter().filter(|slot| !slot.optional).map(Difference::Missing);
        return events.iter().map(|event| Difference::Unexpected(event)).chain(missing).collect();
    }
    let slots: Vec<_> = slots.iter().map(|slot| Place::new(slot, bank)).collect();
    let events: Vec<_> = events.iter().map(|event| Happened::new(event, bank)).collect();
    walk(&slots, &events)
}

/// A slot with what is asked of it for every event.
struct Place<'a> {
    slot: &'a Slot,
    accepted: Vec<Vec<u8>>,
}

/// An event with what is asked of it for every slot.
struct Happened<'a> {
    event: &'a Event<'a>,
    digest: &'a [u8],
    words: String,
    is_text: bool,
}

impl<'a> Place<'a> {
    fn new(slot: &'a Slot, bank: Bank) -> Self {
        Self { slot, accepted: slot.accepted(bank).collect() }
    }
}

impl<'a> Happened<'a> {
    fn new(event: &'a Event<'a>, bank: Bank) -> Self {
        let digest = event.digests.get(bank).unwrap_or_default();
        Self { event, digest, words: event.describe(bank).words, is_text: event.grub_text().is_some() }
    }

    /// The words without the state that they may end in: Secure Boot on is Secure Boot off with another value.
    fn stem(&self) -> &str {
        if self.words.starts_with("Secure Boot o") { "Secure Boot o" } else { &self.words }
    }
}

/// Costs of the best alignment of everything from a slot and an event on, as a table with one row a slot.
struct Costs {
    table: Vec<u32>,
    width: usize,
}

impl Costs {
    fn get(&self, slot: usize, event: usize) -> u32 {
        let index = slot.saturating_mul(self.width).saturating_add(event);
        self.table.get(index).copied().unwrap_or(u32::MAX / 2)
    }

    fn set(&mut self, slot: usize, event: usize, cost: u32) {
        let index = slot.saturating_mul(self.width).saturating_add(event);
        if let Some(place) = self.table.get_mut(index) {
            *place = cost;
        }
    }
}

fn same(place: &Place<'_>, happened: &Happened<'_>) -> bool {
    place.slot.event_type == happened.event.event_type && place.accepted.iter().any(|digest| digest == happened.digest)
}

fn pair_cost(place: &Place<'_>, happened: &Happened<'_>) -> Option<u32> {
    if same(place, happened) {
        return Some(SAME);
    }
    // Events of different types are not the same thing with another value.
    (place.slot.event_type == happened.event.event_type && similar(place.slot, happened)).then_some(OTHER_VALUE)
}

/// Whether an event could be what a slot means: a command is no command line, a file is no text, and a variable no
/// other variable.
fn similar(slot: &Slot, happened: &Happened<'_>) -> bool {
    match slot.event_type {
        EventType::IPL if !happened.is_text => slot.texts.is_empty(),
        EventType::IPL
        | EventType::EFI_VARIABLE_DRIVER_CONFIG
        | EventType::EFI_VARIABLE_BOOT
        | EventType::EFI_VARIABLE_BOOT2
        | EventType::EFI_VARIABLE_AUTHORITY => slot.what.starts_with(happened.stem()),
        _ => true,
    }
}

fn missing_cost(slot: &Slot) -> u32 {
    if slot.optional { SAME } else { ALONE }
}

fn walk<'a>(slots: &[Place<'a>], events: &[Happened<'a>]) -> Vec<Difference<'a>> {
    let width = events.len().saturating_add(1);
    let height = slots.len().saturating_add(1);
    let mut costs = Costs { table: vec![0; width.saturating_mul(height)], width };
    for s in (0..height).rev() {
        for e in (0..width).rev() {
            let (slot, event) = (slots.get(s), events.get(e));
            let mut best = if slot.is_none() && event.is_none() { 0 } else { u32::MAX / 2 };
            if let Some(place) = slot {
                best = best.min(costs.get(s.saturating_add(1), e).saturating_add(missing_cost(place.slot)));
            }
            if event.is_some() {
                best = best.min(costs.get(s, e.saturating_add(1)).saturating_add(ALONE));
            }
            if let (Some(slot), Some(event)) = (slot, event)
                && let Some(cost) = pair_cost(slot, event)
            {
                best = best.min(costs.get(s.saturating_add(1), e.saturating_add(1)).saturating_add(cost));
            }
            costs.set(s, e, best);
        }
    }
    follow(slots, events, &costs)
}

/// Walks along the cheapest way and names what is different on it.
fn follow<'a>(slots: &[Place<'a>], events: &[Happened<'a>], costs: &Costs) -> Vec<Difference<'a>> {
    let mut differences = Vec::new();
    let (mut s, mut e) = (0, 0);
    loop {
        let here = costs.get(s, e);
        let (next_s, next_e): (usize, usize) = (s.saturating_add(1), e.saturating_add(1));
        match (slots.get(s), events.get(e)) {
            (None, None) => return differences,
            (Some(slot), Some(event))
                if pair_cost(slot, event)
                    .is_some_and(|cost| here == costs.get(next_s, next_e).saturating_add(cost)) =>
            {
                if !same(slot, event) {
                    differences.push(Difference::OtherValue(slot.slot, event.event));
                }
                (s, e) = (next_s, next_e);
            }
            (Some(slot), _) if here == costs.get(next_s, e).saturating_add(missing_cost(slot.slot)) => {
                if !slot.slot.optional {
                    differences.push(Difference::Missing(slot.slot));
                }
                s = next_s;
            }
            (_, Some(event)) => {
                differences.push(Difference::Unexpected(event.event));
                e = next_e;
            }
            // Not reached: without an event the cost is that of passing the slot.
            (Some(slot), None) => {
                differences.push(Difference::Missing(slot.slot));
                s = next_s;
            }
        }
    }
}
