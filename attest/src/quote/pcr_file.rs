//! PCR values in the two forms that `tpm2_quote -o` writes them.

use thiserror::Error;

use super::attest::Quote;
use crate::evidence::{PCR_COUNT, PcrValues};
use crate::key::Bank;

/// Bytes of TPML_PCR_SELECTION as a C structure: a count and 16 times hash, size and bits, padded to 8 bytes.
const SELECTION_SIZE: usize = 4 + 16 * 8;
/// Bytes of TPML_DIGEST as a C structure: a count and 8 times a length and 64 bytes.
const DIGESTS_SIZE: usize = 4 + 8 * (2 + 64);
/// Most lists of eight digests: `tpm2_quote` has room for as many.
const MAX_LISTS: usize = 32;

/// Why bytes are no PCR values.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PcrFileError {
    /// More than all PCRs of all banks.
    #[error("{0} bytes are more than the PCRs of a TPM have")]
    TooLong(usize),
    /// The serialized form, but its parts do not fit together.
    #[error("PCR values as tpm2_quote serializes them: {0}")]
    Serialized(&'static str),
    /// Plain values, but not as many bytes as the quote selects.
    #[error("{found} bytes of PCR values, where the quote selects PCRs of {expected} bytes")]
    Length {
        /// Bytes of the selected PCRs.
        expected: usize,
        /// Bytes that are there.
        found: usize,
    },
}

/// PCR values that came with a quote, not believed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PcrFile {
    /// Values with the names of their PCRs. The names are only what the file says.
    Named(PcrValues),
    /// Values one after the other in the order of the quote's selection, without names (`--pcrs_format=values`).
    InOrder(Vec<u8>),
}

impl PcrFile {
    /// Reads what `tpm2_quote -o` writes: the C structures of its default form, or else plain values.
    pub fn parse(bytes: &[u8]) -> Result<Self, PcrFileError> {
        if bytes.len() > SELECTION_SIZE.saturating_add(4).saturating_add(DIGESTS_SIZE.saturating_mul(MAX_LISTS)) {
            return Err(PcrFileError::TooLong(bytes.len()));
        }
        match Serialized::recognise(bytes) {
            Some(serialized) => serialized.values().map(Self::Named),
            None => Ok(Self::InOrder(bytes.to_vec())),
        }
    }

    /// The values under the names of the PCRs that they are for, as the file or else the quote says.
    pub(super) fn named(&self, quote: &Quote<'_>) -> Result<PcrValues, PcrFileError> {
        let bytes = match self {
            Self::Named(values) => return Ok(values.clone()),
            Self::InOrder(bytes) => bytes,
        };
        let selected = || quote.selection.iter().flat_map(|(bank, pcrs)| pcrs.iter().map(|pcr| (*bank, *pcr)));
        let expected = selected().map(|(bank, _)| bank.digest_size()).sum();
        if bytes.len() != expected {
            return Err(PcrFileError::Length { expected, found: bytes.len() });
        }
        let mut values = PcrValues::new();
        let mut rest = bytes.as_slice();
        for (bank, pcr) in selected() {
            let Some((value, left)) = rest.split_at_checked(bank.digest_size()) else { break };
            values.entry(bank).or_default().insert(pcr, value.to_vec());
            rest = left;
        }
        Ok(values)
    }
}

/// The parts of the serialized form. Numbers are little-endian.
struct Serialized<'a> {
    selections: &'a [u8],
    count: usize,
    lists: &'a [u8],
}

impl<'a> Serialized<'a> {
    /// The size of the whole and a selection that makes sense tell it from plain values, whose first bytes are a digest's.
    fn recognise(bytes: &'a [u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(SELECTION_SIZE)?;
        let (count, selections) = head.split_at_checked(4)?;
        let (list_count, lists) = rest.split_at_checked(4)?;
        let (count, list_count) = (number(count), number(list_count));
        let fits = (1..=16).contains(&count) && lists.len().checked_div(DIGESTS_SIZE) == Some(list_count);
        (fits && lists.len().is_multiple_of(DIGESTS_SIZE)).then_some(Self { selections, count, lists })
    }

    fn values(&self) -> Result<PcrValues, PcrFileError> {
        let mut digests = Vec::new();
        for list in self.lists.chunks_exact(DIGESTS_SIZE) {
            digests.extend(list_digests(list)?);
        }
        let mut digests = digests.into_iter();
        let mut values = PcrValues::new();
        for selection in self.selections.chunks_exact(8).take(self.count) {
            let (bank, pcrs) = read_selection(selection)?;
            let entry = values.entry(bank).or_default();
            if !entry.is_empty() {
                return Err(PcrFileError::Serialized("a bank is selected twice"));
            }
            for pcr in pcrs {
                let value = digests.next().ok_or(PcrFileError::Serialized("fewer values than PCRs are selected"))?;
                entry.insert(pcr, value.to_vec());
            }
        }
        if digests.next().is_some() {
            return Err(PcrFileError::Serialized("more values than PCRs are selected"));
        }
        values.retain(|_, pcrs| !pcrs.is_empty());
        Ok(values)
    }
}

/// TPMS_PCR_SELECTION as a C structure: hash, size, bits.
fn read_selection(bytes: &[u8]) -> Result<(Bank, Vec<u8>), PcrFileError> {
    let (hash, rest) = bytes.split_at_checked(2).unwrap_or_default();
    let bank = u16::try_from(number(hash)).ok().and_then(Bank::from_tpm_alg_id);
    let bank = bank.ok_or(PcrFileError::Serialized("a bank is not known here"))?;
    let (size, bits) = rest.split_first().ok_or(PcrFileError::Serialized("a selection is cut short"))?;
    let bits = bits.get(..usize::from(*size)).filter(|bits| bits.len() <= 4);
    let bits = bits.ok_or(PcrFileError::Serialized("a selection has an impossible size"))?;
    let selected = |pcr: &u8| bits.get(usize::from(pcr / 8)).is_some_and(|byte| byte >> (pcr % 8) & 1 == 1);
    if (PCR_COUNT..32).any(|pcr| selected(&pcr)) {
        return Err(PcrFileError::Serialized("a PCR is selected that no TPM has"));
    }
    Ok((bank, (0..PCR_COUNT).filter(selected).collect()))
}

/// The digests of a TPML_DIGEST as a C structure.
fn list_digests(list: &[u8]) -> Result<Vec<&[u8]>, PcrFileError> {
    let (count, digests) = list.split_at_checked(4).unwrap_or_default();
    let count = number(count);
    if count > 8 {
        return Err(PcrFileError::Serialized("a list has more than eight values"));
    }
    let value = |digest| -> Option<&[u8]> {
        let (length, buffer) = <[u8]>::split_at_checked(digest, 2)?;
        buffer.get(..number(length))
    };
    digests
        .chunks_exact(66)
        .take(count)
        .map(|digest| value(digest).ok_or(PcrFileError::Serialized("a value is longer than 64 bytes")))
        .collect()
}

/// A little-endian number of up to four bytes.
fn number(bytes: &[u8]) -> usize {
    bytes.iter().take(4).rev().fold(0, |sum: usize, byte| sum.saturating_mul(256).saturating_add(usize::from(*byte)))
}
