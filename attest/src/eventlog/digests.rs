//! The digests of an event, where they stand in the log.

use core::fmt;

use super::Format;
use crate::key::Bank;

/// The digests of one event, by bank.
#[derive(Clone, Copy)]
pub struct Digests<'a> {
    /// All of them, with what the log writes between them.
    bytes: &'a [u8],
    layout: Layout,
}

/// Where in the bytes of an event's digests that of each bank begins. All events of a log have the same: the header says
/// which digests there are, and in which order. As small as it can be, for each event has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout([u16; Bank::ALL.len()]);

/// Where a bank's digest begins of which there is none.
const NOWHERE: u16 = u16::MAX;

/// Size of the algorithm id in front of each digest.
const ID: u16 = 2;

impl Layout {
    pub fn of(format: &Format<'_>) -> Self {
        let mut begins = [NOWHERE; Bank::ALL.len()];
        let mut set = |bank: Bank, at| {
            if let Some(begin) = begins.get_mut(bank as usize) {
                *begin = at;
            }
        };
        match format {
            Format::Sha1 => set(Bank::Sha1, 0),
            Format::Agile(spec) => {
                let mut at = ID;
                for (id, size) in &spec.algorithms {
                    if let Some(bank) = Bank::from_tpm_alg_id(*id) {
                        set(bank, at);
                    }
                    at = at.saturating_add(*size).saturating_add(ID);
                }
            }
        }
        Self(begins)
    }
}

impl<'a> Digests<'a> {
    /// `bytes` are the digests of one event, each of the size that the header gives it.
    pub(super) const fn new(bytes: &'a [u8], layout: Layout) -> Self {
        Self { bytes, layout }
    }

    /// The digest of one bank, as long as the bank's digests are.
    pub fn get(&self, bank: Bank) -> Option<&'a [u8]> {
        let begin = self.layout.0.get(bank as usize).filter(|begin| **begin != NOWHERE)?;
        self.bytes.get(usize::from(*begin)..)?.get(..bank.digest_size())
    }

    /// All digests, by algorithm id.
    pub fn iter(&self) -> impl Iterator<Item = (Bank, &'a [u8])> + '_ {
        Bank::ALL.into_iter().filter_map(|bank| self.get(bank).map(|digest| (bank, digest)))
    }
}

impl fmt::Debug for Digests<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}
