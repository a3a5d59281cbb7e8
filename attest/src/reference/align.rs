//! Lays the events of a PCR beside its slots, so that a difference can be named: something unexpected, something
//! missing, or another value at a place that is otherwise right.

use std::cell::Cell;

use super::Slot;
use super::expected::{Acceptance, Expected, Judge, Measured};
use crate::eventlog::EventType;
use crate::work;

/// How many pairs of slot and event may be compared to name differences. Beyond that a boot has nothing in common with
/// the values, and its events and the slots are named one by one.
#[derive(Debug)]
pub(crate) struct Effort(Cell<usize>);

impl Effort {
    /// For all PCRs of a boot that is judged, of so many events: whoever is judged makes the differences.
    pub const fn to_explain(events: usize) -> Self {
        Self(Cell::new(events.saturating_mul(16).saturating_add(1 << 15)))
    }

    /// For one PCR of boots that an operator records.
    pub const fn to_record() -> Self {
        Self(Cell::new(1 << 20))
    }

    fn take(&self, pairs: usize) -> bool {
        let left = self.0.get().checked_sub(pairs);
        self.0.set(left.unwrap_or(self.0.get()));
        left.is_some()
    }
}

/// One step through a boot and its reference values.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step<'a> {
    /// An event that its slot accepts.
    Accepted(&'a Slot, Acceptance),
    /// An optional slot without an event.
    Absent(&'a Slot),
    /// An event for which there is no slot.
    Unexpected(&'a Measured<'a>),
    /// A slot for which there is no event.
    Missing(&'a Slot),
    /// An event at the place of a slot that does not accept it.
    OtherValue(&'a Slot, &'a Measured<'a>),
}

impl Step<'_> {
    /// Whether the boot differs here from the values.
    pub const fn is_difference(&self) -> bool {
        !matches!(self, Self::Accepted(..) | Self::Absent(_))
    }
}

/// What one step of an alignment costs. A step that explains more costs less than the two that would replace it.
const SAME: u32 = 0;
const OTHER_VALUE: u32 = 3;
const ALONE: u32 = 2;

/// All steps, in the order of the boot. None is a difference if and only if the events match the slots one to one and in
/// order, optional slots aside.
pub(crate) fn align<'a>(
    slots: &'a [Expected],
    events: &'a [Measured<'a>],
    judge: &Judge<'_>,
    effort: &Effort,
) -> Vec<Step<'a>> {
    if let Some(steps) = straight(slots, events, judge) {
        return steps;
    }
    let Middle { before, slots, events, after } = middle(slots, events, judge);
    let rest = if effort.take(slots.len().saturating_mul(events.len())) {
        let events: Vec<_> = events.iter().map(Happened::new).collect();
        walk(slots, &events, judge)
    } else {
        let missing = slots.iter().map(Expected::slot).filter(|slot| !slot.optional).map(Step::Missing);
        events.iter().map(Step::Unexpected).chain(missing).collect()
    };
    [before, rest, after].concat()
}

/// About how far a boot is from matching the slots: 0 if it does, else how many slots and events are left when what is
/// equal at both ends is taken away, and one more.
pub(crate) fn distance(slots: &[Expected], events: &[Measured<'_>], judge: &Judge<'_>) -> usize {
    let Middle { slots, events, .. } = middle(slots, events, judge);
    slots.len().saturating_add(events.len()).saturating_add(1)
}

/// A boot and its slots without what is equal at both ends.
struct Middle<'a> {
    before: Vec<Step<'a>>,
    slots: &'a [Expected],
    events: &'a [Measured<'a>],
    after: Vec<Step<'a>>,
}

/// Not past an optional slot: whether an event is its or the next one's only the whole can tell.
fn middle<'a>(slots: &'a [Expected], events: &'a [Measured<'a>], judge: &Judge<'_>) -> Middle<'a> {
    let same = |(expected, event): (&'a Expected, &'a Measured<'a>)| {
        let how = expected.accepts(event, judge).filter(|_| !expected.slot().optional)?;
        Some(Step::Accepted(expected.slot(), how))
    };
    let before: Vec<_> = slots.iter().zip(events).map_while(same).collect();
    let (slots, events) =
        (slots.get(before.len()..).unwrap_or_default(), events.get(before.len()..).unwrap_or_default());
    let mut after: Vec<_> = slots.iter().rev().zip(events.iter().rev()).map_while(same).collect();
    after.reverse();
    let without = |all: usize| all.saturating_sub(after.len());
    let slots = slots.get(..without(slots.len())).unwrap_or_default();
    let events = events.get(..without(events.len())).unwrap_or_default();
    Middle { before, slots, events, after }
}

/// The steps of a boot without any difference: nearly all boots are. Each event is given to the first slot that accepts
/// it; where that leads nowhere, an optional slot before it is passed over.
pub(crate) fn straight<'a>(
    slots: &'a [Expected],
    events: &'a [Measured<'a>],
    judge: &Judge<'_>,
) -> Option<Vec<Step<'a>>> {
    // Each event takes a slot: the work is bounded by the reference values.
    if events.len() > slots.len() {
        return None;
    }
    let mut steps = Vec::with_capacity(slots.len());
    // Optional slots that took an event: how many steps were made before, which slot, and which event.
    let mut choices = Vec::new();
    // Slots that accept the same could be tried in endless ways; then the differences are sought instead.
    let mut patience = slots.len().saturating_add(events.len()).saturating_mul(4);
    let (mut s, mut e) = (0_usize, 0_usize);
    loop {
        let (expected, event) = (slots.get(s), events.get(e));
        let accepted = expected.zip(event).and_then(|(expected, event)| expected.accepts(event, judge));
        match (expected.map(Expected::slot), event) {
            (None, None) => return Some(steps),
            (Some(slot), Some(_)) if let Some(how) = accepted => {
                if slot.optional {
                    choices.push((steps.len(), s, e));
                }
                steps.push(Step::Accepted(slot, how));
                (s, e) = (s.saturating_add(1), e.saturating_add(1));
            }
            (Some(slot), _) if slot.optional => {
                steps.push(Step::Absent(slot));
                s = s.saturating_add(1);
            }
            _ => {
                let (before, slot, event) = choices.pop()?;
                steps.truncate(before);
                steps.push(Step::Absent(slots.get(slot)?.slot()));
                (s, e) = (slot.saturating_add(1), event);
            }
        }
        patience = patience.checked_sub(1)?;
    }
}

/// An event with what is asked of it for every slot.
struct Happened<'a> {
    measured: &'a Measured<'a>,
    words: String,
    is_text: bool,
}

impl<'a> Happened<'a> {
    fn new(measured: &'a Measured<'a>) -> Self {
        let event = measured.event;
        Self { measured, words: event.words(), is_text: event.grub_text().is_some() }
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

fn pair_cost(expected: &Expected, happened: &Happened<'_>, judge: &Judge<'_>) -> Option<u32> {
    work::steps(1);
    if expected.accepts(happened.measured, judge).is_some() {
        return Some(SAME);
    }
    // Events of different types are not the same thing with another value.
    let slot = expected.slot();
    (slot.event_type == happened.measured.event.event_type && similar(slot, happened)).then_some(OTHER_VALUE)
}

/// Whether an event could be what a slot means: a command is no command line, a file is no text, and a variable no
/// other variable.
fn similar(slot: &Slot, happened: &Happened<'_>) -> bool {
    match slot.event_type {
        EventType::IPL if !happened.is_text => slot.texts.is_empty() && slot.patterns.is_empty(),
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

fn walk<'a>(slots: &'a [Expected], events: &[Happened<'a>], judge: &Judge<'_>) -> Vec<Step<'a>> {
    let width = events.len().saturating_add(1);
    let height = slots.len().saturating_add(1);
    let mut costs = Costs { table: vec![0; width.saturating_mul(height)], width };
    for s in (0..height).rev() {
        for e in (0..width).rev() {
            let (expected, event) = (slots.get(s), events.get(e));
            let mut best = if expected.is_none() && event.is_none() { 0 } else { u32::MAX / 2 };
            if let Some(expected) = expected {
                best = best.min(costs.get(s.saturating_add(1), e).saturating_add(missing_cost(expected.slot())));
            }
            if event.is_some() {
                best = best.min(costs.get(s, e.saturating_add(1)).saturating_add(ALONE));
            }
            if let (Some(expected), Some(event)) = (expected, event)
                && let Some(cost) = pair_cost(expected, event, judge)
            {
                best = best.min(costs.get(s.saturating_add(1), e.saturating_add(1)).saturating_add(cost));
            }
            costs.set(s, e, best);
        }
    }
    follow(slots, events, &costs, judge)
}

/// Walks along the cheapest way.
fn follow<'a>(slots: &'a [Expected], events: &[Happened<'a>], costs: &Costs, judge: &Judge<'_>) -> Vec<Step<'a>> {
    let mut steps = Vec::new();
    let (mut s, mut e) = (0, 0);
    loop {
        let here = costs.get(s, e);
        let (next_s, next_e): (usize, usize) = (s.saturating_add(1), e.saturating_add(1));
        match (slots.get(s), events.get(e)) {
            (None, None) => return steps,
            (Some(expected), Some(event))
                if pair_cost(expected, event, judge)
                    .is_some_and(|cost| here == costs.get(next_s, next_e).saturating_add(cost)) =>
            {
                let slot = expected.slot();
                steps.push(match expected.accepts(event.measured, judge) {
                    Some(how) => Step::Accepted(slot, how),
                    None => Step::OtherValue(slot, event.measured),
                });
                (s, e) = (next_s, next_e);
            }
            (Some(expected), _) if here == costs.get(next_s, e).saturating_add(missing_cost(expected.slot())) => {
                let slot = expected.slot();
                steps.push(if slot.optional { Step::Absent(slot) } else { Step::Missing(slot) });
                s = next_s;
            }
            (_, Some(event)) => {
                steps.push(Step::Unexpected(event.measured));
                e = next_e;
            }
            // Not reached: without an event the cost is that of passing the slot.
            (Some(expected), None) => {
                steps.push(Step::Missing(expected.slot()));
                s = next_s;
            }
        }
    }
}
