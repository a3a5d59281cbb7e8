//! Computes the PCR values to which a log leads.

use std::collections::BTreeMap;

use super::{Event, EventLog, PCR_COUNT};
use crate::key::Bank;

impl EventLog<'_> {
    /// The value of every PCR that the log extends (and of PCR 0 where the log tells from which locality it starts),
    /// for one bank. Empty if the log has no digests of that bank.
    pub fn replay(&self, bank: Bank) -> BTreeMap<u8, Vec<u8>> {
        if !self.banks().contains(&bank) {
            return BTreeMap::new();
        }
        let mut values: [Option<Vec<u8>>; PCR_COUNT as usize] = Default::default();
        if self.startup_locality.is_some() {
            values[0] = Some(self.start(bank, 0));
        }
        for event in &self.events {
            let Some((pcr, digest)) = extended_by(event, bank) else { continue };
            let Some(value) = values.get_mut(usize::from(pcr)) else { continue };
            bank.extend_in_place(value.get_or_insert_with(|| self.start(bank, pcr)), digest);
        }
        (0..).zip(values).filter_map(|(pcr, value)| Some((pcr, value?))).collect()
    }

    /// The value from which a PCR starts in the boot that the log tells of.
    pub(crate) fn start(&self, bank: Bank, pcr: u8) -> Vec<u8> {
        initial_value(bank, pcr, self.startup_locality.unwrap_or(0))
    }

    /// The number of the event after which the PCR has the value, 0 if it starts from it; `None` if it never has it.
    pub(crate) fn reaches(&self, bank: Bank, pcr: u8, wanted: &[u8]) -> Option<usize> {
        let mut value = self.start(bank, pcr);
        if value == wanted {
            return Some(0);
        }
        for event in &self.events {
            match extended_by(event, bank) {
                Some((index, digest)) if index == pcr => bank.extend_in_place(&mut value, digest),
                _ => continue,
            }
            if value == wanted {
                return Some(event.number);
            }
        }
        None
    }
}

/// The PCR that an event extends, and with what.
fn extended_by<'a>(event: &Event<'a>, bank: Bank) -> Option<(u8, &'a [u8])> {
    if !event.extends() {
        return None;
    }
    Some((u8::try_from(event.pcr).ok()?, event.digests.get(bank)?))
}

/// The value of a PCR after a reset of the TPM (TCG PC Client Platform TPM Profile, section 4.6): zeros; for PCR 0
/// the locality that started the TPM in the last byte; for PCRs 17 to 22, which only a dynamic launch sets to zero, ones.
pub fn initial_value(bank: Bank, pcr: u8, startup_locality: u8) -> Vec<u8> {
    let mut value = vec![if matches!(pcr, 17..=22) { 0xff } else { 0 }; bank.digest_size()];
    if pcr == 0
        && let Some(last) = value.last_mut()
    {
        *last = startup_locality;
    }
    value
}
