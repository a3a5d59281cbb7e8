//! The digests of an event, where they stand in the log.

use core::fmt;

use super::parse::MAX_DIGEST;
use super::{Cursor, Short};
use crate::key::Bank;

/// The digests of one event, by bank.
#[derive(Clone, Copy)]
pub struct Digests<'a> {
    /// All of them, with what the log writes between them.
    bytes: &'a [u8],
    layout: Layout,
}

/// Where in the bytes of an event's digests that of each bank begins. The header says which digests there can be; each
/// event has its own order of them, and may lack some. As small as it can be, for each event has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// [`PLACE_BITS`] for each bank. One number, for it is made and copied for every event of a log.
    begins: u64,
    /// One bit for each bank of which there is a digest.
    banks: u8,
}

/// Bits in which a place within an event's digests is written.
const PLACE_BITS: u32 = 12;

/// The bit that stands for a bank.
pub(super) const fn bank_bit(bank: Bank) -> u8 {
    1 << bank as u8
}

const _: () = assert!(Bank::ALL.len() * PLACE_BITS as usize <= u64::BITS as usize, "there is room for each bank");
const _: () = assert!(
    MAX_ALGORITHMS as usize * (ID as usize + MAX_DIGEST as usize) < 1 << PLACE_BITS,
    "every place can be written"
);

/// Size of the algorithm id in front of each digest.
const ID: u16 = 2;

/// Largest number of algorithms that a header declares, by which [`take`] tells them apart.
const MAX_ALGORITHMS: u32 = u16::BITS;

impl Layout {
    /// That of events in the old form, with their one digest.
    pub const SHA1: Self = Self { begins: 0, banks: bank_bit(Bank::Sha1) };
}

/// Why an event's digests are not what the header allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DigestsError {
    /// Fewer bytes than a field needs.
    Short(Short),
    /// An algorithm that the header does not declare.
    Undeclared(u16),
    /// A second digest of the same algorithm.
    Repeated(u16),
}

/// Takes the digests of one event from the front of `cursor`: `count` of them, in any order, each of an algorithm that the
/// header declares with its size, and none twice.
pub(super) fn take<'a>(
    cursor: &mut Cursor<'a>,
    count: u32,
    algorithms: &[(u16, u16)],
) -> Result<Digests<'a>, DigestsError> {
    let begin = *cursor;
    let (mut begins, mut banks, mut seen, mut at) = (0, 0, 0_u16, ID);
    for number in 0..count.min(MAX_ALGORITHMS) {
        let id = cursor.u16().map_err(DigestsError::Short)?;
        // Nearly always at the same place as in the header.
        let expected = usize::try_from(number).unwrap_or(usize::MAX);
        let place = match algorithms.get(expected) {
            Some((known, _)) if *known == id => Some(expected),
            _ => algorithms.iter().position(|(known, _)| *known == id),
        };
        let declared = place.and_then(|place| Some((*algorithms.get(place)?, u32::try_from(place).ok()?)));
        let Some(((_, size), place)) = declared else { return Err(DigestsError::Undeclared(id)) };
        let bit = 1_u16.checked_shl(place).unwrap_or(0);
        if bit == 0 || seen & bit != 0 {
            return Err(DigestsError::Repeated(id));
        }
        seen |= bit;
        cursor.take(u64::from(size)).map_err(DigestsError::Short)?;
        if let Some(bank) = Bank::from_tpm_alg_id(id) {
            begins |= u64::from(at) << (bank as u32 * PLACE_BITS);
            banks |= bank_bit(bank);
        }
        at = at.saturating_add(size).saturating_add(ID);
    }
    Ok(Digests { bytes: cursor.since(&begin), layout: Layout { begins, banks } })
}

impl<'a> Digests<'a> {
    /// The digest of an event in the old form: 20 bytes.
    pub(super) const fn sha1(bytes: &'a [u8]) -> Self {
        Self { bytes, layout: Layout::SHA1 }
    }

    /// One bit for each bank of which there is a digest, see [`bank_bit`].
    pub(super) const fn banks(&self) -> u8 {
        self.layout.banks
    }

    /// The digest of one bank, as long as the bank's digests are.
    pub fn get(&self, bank: Bank) -> Option<&'a [u8]> {
        let begin = (self.layout.begins >> (bank as u32 * PLACE_BITS)) & ((1 << PLACE_BITS) - 1);
        let has = self.layout.banks & bank_bit(bank) != 0;
        has.then(|| self.bytes.get(usize::try_from(begin).ok()?..)?.get(..bank.digest_size()))?
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
