//! Events together with what was found once for each: how far its digest of the judged bank covers what it says.

use super::{Claim, Ground};
use crate::eventlog::{Coverage, Event, EventType, Variable};
use crate::key::Bank;

/// All events of a log that extend a PCR, with their coverage.
#[derive(Clone, Copy, Debug)]
pub(super) struct CoveredLog<'l, 'a> {
    events: &'l [Event<'a>],
    coverage: &'l [Coverage],
    pub bank: Bank,
}

/// One event that extends a PCR, with its coverage.
#[derive(Clone, Copy, Debug)]
pub(super) struct Covered<'l, 'a> {
    pub event: &'l Event<'a>,
    pub coverage: Coverage,
    pub digest: &'a [u8],
}

impl<'l, 'a> CoveredLog<'l, 'a> {
    pub const fn new(events: &'l [Event<'a>], coverage: &'l [Coverage], bank: Bank) -> Self {
        Self { events, coverage, bank }
    }

    /// Also those that extend nothing.
    pub const fn all(self) -> &'l [Event<'a>] {
        self.events
    }

    pub fn iter(self) -> impl DoubleEndedIterator<Item = Covered<'l, 'a>> {
        self.events.iter().zip(self.coverage).filter(|(event, _)| event.extends()).filter_map(
            move |(event, coverage)| {
                Some(Covered { event, coverage: *coverage, digest: event.digests.get(self.bank)? })
            },
        )
    }

    pub fn of_pcr(self, pcr: u32) -> impl DoubleEndedIterator<Item = Covered<'l, 'a>> {
        self.iter().filter(move |covered| covered.event.pcr == pcr)
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
