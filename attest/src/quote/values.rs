//! What a quote says of a TPM, and the PCR values that come along with it: exactly the selected ones, and those that the
//! TPM hashed.

use subtle::ConstantTimeEq as _;

use super::attest::{ClockInfo, Quote};
use crate::evidence::{PCR_COUNT, PcrValues};
use crate::key::{Bank, Digest};
use crate::reason::{Reason, ReasonCode};

/// The values of one bank's PCRs, where they were quoted.
type Registers = [Option<Digest>; PCR_COUNT as usize];

/// The state in which a TPM was when it signed: the values of the quoted PCRs, its clock and counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotedState {
    /// Banks of which at least one PCR was quoted, by algorithm id.
    banks: Vec<(Bank, Registers)>,
    clock: ClockInfo,
    firmware_version: u64,
}

impl QuotedState {
    /// Without any PCR yet.
    pub(super) const fn new(clock: ClockInfo, firmware_version: u64) -> Self {
        Self { banks: Vec::new(), clock, firmware_version }
    }

    /// Adds values that were checked. Where another one is known of a PCR already, that stays, and `conflict` is told of
    /// both.
    pub(super) fn add(&mut self, checked: &PcrValues, mut conflict: impl FnMut(u8, &[u8], &[u8])) {
        for (&bank, pcrs) in checked.iter().filter(|(_, pcrs)| !pcrs.is_empty()) {
            let place = self.banks.binary_search_by_key(&bank, |(bank, _)| *bank).unwrap_or_else(|place| {
                self.banks.insert(place, (bank, Registers::default()));
                place
            });
            let Some((_, registers)) = self.banks.get_mut(place) else { continue };
            for (&pcr, value) in pcrs {
                let Some(register) = registers.get_mut(usize::from(pcr)) else { continue };
                match register {
                    Some(first) if !first.is(value) => conflict(pcr, first.as_slice(), value),
                    Some(_) => {}
                    None => *register = Digest::new(bank, value),
                }
            }
        }
    }

    /// The value of a PCR, if it was quoted.
    #[must_use]
    pub fn pcr(&self, bank: Bank, index: u8) -> Option<&[u8]> {
        let (_, registers) = self.banks.iter().find(|(known, _)| *known == bank)?;
        registers.get(usize::from(index))?.as_ref().map(Digest::as_slice)
    }

    /// The banks of which at least one PCR was quoted.
    pub fn banks(&self) -> impl Iterator<Item = Bank> + '_ {
        self.banks.iter().map(|(bank, _)| *bank)
    }

    /// The values of all quoted PCRs, by bank and PCR.
    #[must_use]
    pub fn values(&self) -> PcrValues {
        let value = |(pcr, register): (u8, &Option<Digest>)| Some((pcr, register.as_ref()?.as_slice().to_vec()));
        let of_bank = |registers: &Registers| (0..).zip(registers).filter_map(value).collect();
        self.banks.iter().map(|(bank, registers)| (*bank, of_bank(registers))).collect()
    }

    /// The TPM's clock and counters; of several quotes, those of the latest.
    #[must_use]
    pub const fn clock(&self) -> ClockInfo {
        self.clock
    }

    /// The version of the TPM's own firmware, as its vendor numbers it; obfuscated for keys outside the endorsement
    /// hierarchy.
    #[must_use]
    pub const fn firmware_version(&self) -> u64 {
        self.firmware_version
    }
}

/// Checks `values` against the quote's selection and digest. `scheme_hash` is the hash of the signing scheme, which is
/// also the one that a TPM makes pcrDigest with (Part 3, 18.4).
///
/// The selection is the one inside the signature, and its order decides what is hashed: values cannot be relabelled.
pub(super) fn check(quote: &Quote<'_>, values: &PcrValues, scheme_hash: Bank) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut selected: Vec<&[u8]> = Vec::new();
    for (bank, pcrs) in &quote.selection {
        for &pcr in pcrs {
            match values.get(bank).and_then(|bank| bank.get(&pcr)) {
                None => reasons.push(about(ReasonCode::QuotePcrMissing, *bank, pcr)),
                Some(value) if value.len() != bank.digest_size() => reasons.push(
                    about(ReasonCode::QuotePcrLength, *bank, pcr)
                        .expected(format!("{} bytes", bank.digest_size()))
                        .found(format!("{} bytes", value.len())),
                ),
                Some(value) => selected.push(value),
            }
        }
    }
    for (bank, extra) in values {
        let covered = quote.selection.iter().find(|(selected, _)| selected == bank).map(|(_, pcrs)| pcrs.as_slice());
        for &pcr in extra.keys().filter(|pcr| !covered.unwrap_or_default().contains(pcr)) {
            reasons.push(about(ReasonCode::QuotePcrExtra, *bank, pcr));
        }
        if covered.is_none() && extra.is_empty() {
            reasons.push(Reason::new(ReasonCode::QuotePcrExtra).event(format!("bank {bank}")));
        }
    }
    // With values missing or misshapen the digest could only differ: that would say nothing new.
    if reasons.is_empty() {
        let digest = scheme_hash.hash_parts(&selected);
        if !bool::from(digest.ct_eq(quote.pcr_digest)) {
            reasons.push(
                Reason::new(ReasonCode::QuotePcrDigestMismatch)
                    .expected(hex::encode(quote.pcr_digest))
                    .found(hex::encode(digest)),
            );
        }
    }
    reasons
}

fn about(code: ReasonCode, bank: Bank, pcr: u8) -> Reason {
    Reason::new(code).pcr(pcr.into()).event(format!("bank {bank}"))
}
