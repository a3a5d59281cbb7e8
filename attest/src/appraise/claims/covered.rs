//! Events together with what was found once for each: how far its digest of the judged bank covers what it says.

use super::{Claim, Ground};
use crate::appraise::stop::Stop;
use crate::eventlog::{Coverage, Event, EventKind, EventType, PCR_COUNT, Variable};
use crate::key::Bank;

/// Number of PCRs, as a number of places.
const PCRS: usize = PCR_COUNT as usize;

/// What was found for each event, and where the events of each PCR are: claims ask for them again and again.
#[derive(Clone, Debug)]
pub(super) struct Coverages<'a> {
    of_event: Vec<Found<'a>>,
    /// Places of the events that extend a PCR, by PCR and then in the order of the log.
    by_pcr: Vec<usize>,
    /// Where in that the events of each PCR begin and end.
    ranges: [(usize, usize); PCRS],
}

/// What was found for one event.
#[derive(Clone, Copy, Debug)]
struct Found<'a> {
    coverage: Coverage,
    grub_text: Option<(EventKind, &'a str)>,
}

impl<'a> Found<'a> {
    const NOTHING: Self = Self { coverage: Coverage::Nothing, grub_text: None };

    /// Hashes the event's data.
    fn of(event: &Event<'a>, bank: Bank) -> Self {
        let text = event.text_of_grub();
        let coverage = event.coverage_beside(bank, text.map(|(_, text)| text));
        let covered = text.filter(|_| coverage == Coverage::Text);
        let grub_text = covered.and_then(|(kind, text)| Some((kind, core::str::from_utf8(text).ok()?)));
        Self { coverage, grub_text }
    }
}

impl<'a> Coverages<'a> {
    /// Hashes the data of every event; `None` if it was stopped.
    pub fn of(events: &[Event<'a>], bank: Bank, stop: Stop<'_>) -> Option<Self> {
        let mut counts = [0_usize; PCRS];
        let pcr = |event: &Event<'_>| usize::try_from(event.pcr).ok().filter(|_| event.extends());
        for event in events {
            if let Some(count) = pcr(event).and_then(|pcr| counts.get_mut(pcr)) {
                *count = count.saturating_add(1);
            }
        }
        let mut ranges = [(0, 0); PCRS];
        let mut begin: usize = 0;
        for (range, count) in ranges.iter_mut().zip(counts) {
            *range = (begin, begin);
            begin = begin.saturating_add(count);
        }
        let mut by_pcr = vec![0; begin];
        for (place, event) in events.iter().enumerate() {
            let Some((_, end)) = pcr(event).and_then(|pcr| ranges.get_mut(pcr)) else { continue };
            if let Some(slot) = by_pcr.get_mut(*end) {
                *slot = place;
                *end = end.saturating_add(1);
            }
        }
        let mut of_event = Vec::with_capacity(events.len());
        for event in events {
            if stop.asked() {
                return None;
            }
            of_event.push(Found::of(event, bank));
        }
        Some(Self { of_event, by_pcr, ranges })
    }

    /// The coverage of the event at this place.
    pub fn get(&self, place: usize) -> Coverage {
        self.found(place).coverage
    }

    fn found(&self, place: usize) -> Found<'a> {
        self.of_event.get(place).copied().unwrap_or(Found::NOTHING)
    }

    fn of_pcr(&self, pcr: u32) -> &[usize] {
        let range = usize::try_from(pcr).ok().and_then(|pcr| self.ranges.get(pcr));
        range.and_then(|(begin, end)| self.by_pcr.get(*begin..*end)).unwrap_or_default()
    }
}

/// All events of a log with their coverage.
#[derive(Clone, Copy, Debug)]
pub(super) struct CoveredLog<'l, 'a> {
    events: &'l [Event<'a>],
    coverages: &'l Coverages<'a>,
    pub bank: Bank,
}

/// One event that extends a PCR, with its coverage.
#[derive(Clone, Copy, Debug)]
pub(super) struct Covered<'l, 'a> {
    pub event: &'l Event<'a>,
    pub coverage: Coverage,
    /// The text that GRUB measured, with its kind, where the digest covers that.
    pub grub_text: Option<(EventKind, &'a str)>,
    pub digest: &'a [u8],
}

impl<'l, 'a> CoveredLog<'l, 'a> {
    pub const fn new(events: &'l [Event<'a>], coverages: &'l Coverages<'a>, bank: Bank) -> Self {
        Self { events, coverages, bank }
    }

    /// Also those that extend nothing.
    pub const fn all(self) -> &'l [Event<'a>] {
        self.events
    }

    /// Those that extend a PCR, in the order of the log.
    pub fn iter(self) -> impl Iterator<Item = Covered<'l, 'a>> {
        (0..self.events.len()).filter_map(move |place| self.at(place)).filter(|covered| covered.event.extends())
    }

    /// Those that extend this PCR, in their order.
    pub fn of_pcr(self, pcr: u32) -> impl DoubleEndedIterator<Item = Covered<'l, 'a>> {
        self.coverages.of_pcr(pcr).iter().filter_map(move |place| self.at(*place))
    }

    /// How many extend this PCR.
    pub fn count_of_pcr(self, pcr: u32) -> usize {
        self.coverages.of_pcr(pcr).len()
    }

    /// The one at this place among those that extend this PCR.
    pub fn at_of_pcr(self, pcr: u32, place: usize) -> Option<Covered<'l, 'a>> {
        self.at(*self.coverages.of_pcr(pcr).get(place)?)
    }

    fn at(self, place: usize) -> Option<Covered<'l, 'a>> {
        let event = self.events.get(place)?;
        let Found { coverage, grub_text } = self.coverages.found(place);
        Some(Covered { event, coverage, grub_text, digest: event.digests.get(self.bank)? })
    }
}

impl<'a> Covered<'_, 'a> {
    pub fn is(&self, event_type: EventType) -> bool {
        self.event.event_type == event_type
    }

    /// The variable that a digest covers in full, with its name, whatever the type says that it is for.
    pub fn variable(&self) -> Option<Variable<'a>> {
        let data = self.event.covered_data(self.coverage);
        Variable::parse_prefix(data).ok().map(|(variable, _)| variable)
    }

    pub const fn ground(&self) -> Ground<'a> {
        Ground { event: self.event.number, pcr: self.event.pcr, digest: self.digest, coverage: self.coverage }
    }

    pub const fn claim<T>(&self, value: T) -> Claim<'a, T> {
        Claim { value, ground: self.ground() }
    }
}
