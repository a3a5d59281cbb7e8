//! Computes the PCR values to which a log leads.

use std::collections::BTreeMap;

use super::{Event, EventLog, PCR_COUNT};
use crate::key::{Bank, Digest};
use crate::work;

impl EventLog<'_> {
    /// The value of every PCR that the log extends (and of PCR 0 where the log tells from which locality it starts),
    /// for one bank. Empty if an event that extends a PCR has no digest of that bank: then the log leads nowhere in it.
    pub fn replay(&self, bank: Bank) -> BTreeMap<u8, Vec<u8>> {
        if !self.replays(bank) {
            return BTreeMap::new();
        }
        let is_told = |pcr| self.extends_pcr(pcr) || (pcr == 0 && self.startup_locality.is_some());
        let told = (0..).zip(self.values(bank)).filter(|(pcr, _)| is_told(*pcr));
        told.map(|(pcr, value)| (pcr, value.as_slice().to_vec())).collect()
    }

    /// The value of each PCR after the log. The PCRs that the log does not extend keep the value from which they start;
    /// those of which an event has no digest of this bank ([`EventLog::replays_pcr`]) have no meaning.
    pub(crate) fn values(&self, bank: Bank) -> [Digest; PCR_COUNT as usize] {
        let mut values = std::array::from_fn(|pcr| self.start(bank, pcr));
        for event in &self.events {
            let Some((pcr, digest)) = extended_by(event, bank) else { continue };
            let Some(value) = values.get_mut(pcr) else { continue };
            value.extend_by(bank, digest);
        }
        values
    }

    /// The value from which a PCR starts in the boot that the log tells of.
    fn start(&self, bank: Bank, pcr: usize) -> Digest {
        start(bank, pcr, self.startup_locality.unwrap_or(0))
    }

    /// Where the log passes each of these PCR values, found in one walk over it.
    pub(crate) fn passes(&self, bank: Bank, wanted: &[Option<&[u8]>; PCR_COUNT as usize]) -> Passes<'_> {
        let mut values: [Digest; PCR_COUNT as usize] = std::array::from_fn(|pcr| self.start(bank, pcr));
        let is = |value: &Digest, wanted: Option<&[u8]>| wanted.is_some_and(|wanted| value.is(wanted));
        let mut passes: Passes<'_> = std::array::from_fn(|_| None);
        for ((pass, value), wanted) in passes.iter_mut().zip(&values).zip(wanted) {
            *pass = is(value, *wanted).then_some(Pass { next: None });
        }
        for event in &self.events {
            work::steps(1);
            let Some((pcr, digest)) = extended_by(event, bank) else { continue };
            let (Some(value), Some(pass), Some(wanted)) =
                (values.get_mut(pcr), passes.get_mut(pcr), wanted.get(pcr).filter(|wanted| wanted.is_some()))
            else {
                continue;
            };
            if let Some(Pass { next }) = pass {
                next.get_or_insert(event);
            } else {
                value.extend_by(bank, digest);
                *pass = is(value, *wanted).then_some(Pass { next: None });
            }
        }
        passes
    }
}

/// Where a log passes a value of each PCR; `None` where it never does.
pub(crate) type Passes<'l> = [Option<Pass<'l>>; PCR_COUNT as usize];

/// A log passes a value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass<'l> {
    /// The first event by which it goes on from there.
    pub next: Option<&'l Event<'l>>,
}

/// The PCR that an event extends, and with what.
fn extended_by<'a>(event: &Event<'a>, bank: Bank) -> Option<(usize, &'a [u8])> {
    if !event.extends() {
        return None;
    }
    Some((usize::try_from(event.pcr).ok()?, event.digests.get(bank)?))
}

/// The value of a PCR after a reset of the TPM (TCG PC Client Platform TPM Profile, section 4.6): zeros; for PCR 0
/// the locality that started the TPM in the last byte; for PCRs 17 to 22, which only a dynamic launch sets to zero, ones.
pub fn initial_value(bank: Bank, pcr: u8, startup_locality: u8) -> Vec<u8> {
    start(bank, pcr.into(), startup_locality).as_slice().to_vec()
}

/// Whether a PCR from 0 to 15 still has a value from which TPMs start: zeros, but for PCR 0 the locality that started the
/// TPM in the last byte.
pub(crate) fn is_initial_value(pcr: u8, value: &[u8]) -> bool {
    let Some((last, others)) = value.split_last() else { return false };
    others.iter().all(|byte| *byte == 0) && (*last == 0 || pcr == 0 && matches!(last, 3 | 4))
}

fn start(bank: Bank, pcr: usize, startup_locality: u8) -> Digest {
    match pcr {
        0 => Digest::filled(bank, 0).ending_with(startup_locality),
        17..=22 => Digest::filled(bank, 0xff),
        _ => Digest::filled(bank, 0),
    }
}
