//! The PCR values that come along with a quote: exactly the selected ones, and those that the TPM hashed.

use std::collections::BTreeMap;

use subtle::ConstantTimeEq as _;

use super::attest::Quote;
use crate::evidence::PcrValues;
use crate::key::Bank;
use crate::reason::{Reason, ReasonCode};

/// The values of the PCRs that a quote covers: what the TPM held when it signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotedPcrs(PcrValues);

impl QuotedPcrs {
    /// Banks of which no PCR was selected are left out. Only for values that were checked.
    pub(super) fn new(mut checked: PcrValues) -> Self {
        checked.retain(|_, pcrs| !pcrs.is_empty());
        Self(checked)
    }

    /// The value of a PCR, if it was quoted.
    #[must_use]
    pub fn pcr(&self, bank: Bank, index: u8) -> Option<&[u8]> {
        self.0.get(&bank)?.get(&index).map(Vec::as_slice)
    }

    /// The banks of which at least one PCR was quoted.
    pub fn banks(&self) -> impl Iterator<Item = Bank> + '_ {
        self.0.keys().copied()
    }

    /// The quoted PCRs of a bank.
    #[must_use]
    pub fn pcrs(&self, bank: Bank) -> Option<&BTreeMap<u8, Vec<u8>>> {
        self.0.get(&bank)
    }

    /// All of them, by bank and PCR.
    #[must_use]
    pub fn all(&self) -> &PcrValues {
        &self.0
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
