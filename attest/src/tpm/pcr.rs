//! Reads PCRs and quotes them, so that values and quote belong together.

use std::collections::BTreeMap;

use tss_esapi::constants::CapabilityType;
use tss_esapi::handles::PcrHandle;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{CapabilityData, Digest, DigestValues, PcrSelectSize, PcrSelectionList, PcrSlot};

use super::{Tpm, TpmError};
use crate::appraise::QUOTED_PCRS;
use crate::evidence::PcrValues;
use crate::key::Bank;

/// What is to be quoted: banks, each with its PCRs.
pub(super) type Selection<'a> = &'a [(Bank, Vec<u8>)];

pub(super) const fn algorithm(bank: Bank) -> HashingAlgorithm {
    match bank {
        Bank::Sha1 => HashingAlgorithm::Sha1,
        Bank::Sha256 => HashingAlgorithm::Sha256,
        Bank::Sha384 => HashingAlgorithm::Sha384,
        Bank::Sha512 => HashingAlgorithm::Sha512,
        Bank::Sm3_256 => HashingAlgorithm::Sm3_256,
    }
}

pub(super) fn selection_list(selection: Selection<'_>) -> Result<PcrSelectionList, TpmError> {
    let malformed =
        |error: tss_esapi::Error| TpmError::Malformed { what: "a PCR selection", problem: error.to_string() };
    let mut builder = PcrSelectionList::builder().with_size_of_select(PcrSelectSize::ThreeOctets);
    for (bank, pcrs) in selection {
        let slots: Vec<_> = pcrs
            .iter()
            .map(|pcr| PcrSlot::try_from(1_u32.checked_shl((*pcr).into()).unwrap_or(0)))
            .collect::<Result<_, _>>()
            .map_err(malformed)?;
        builder = builder.with_selection(algorithm(*bank), &slots);
    }
    builder.build().map_err(malformed)
}

/// The bank of an algorithm, if it is one that is known here.
fn bank(algorithm: HashingAlgorithm) -> Option<Bank> {
    Bank::ALL.into_iter().find(|bank| self::algorithm(*bank) == algorithm)
}

impl Tpm {
    /// The active banks with those of PCRs 0 to 15 that they have, by algorithm id: what a host quotes.
    ///
    /// Banks of hashes that are not known here (SHA-3) are left out: no judgement can rest on them.
    ///
    /// # Errors
    /// If the TPM does not answer.
    pub fn active_pcrs(&mut self) -> Result<Vec<(Bank, Vec<u8>)>, TpmError> {
        let failed = self.failed("list its PCR banks");
        let (found, _) = self.context.get_capability(CapabilityType::AssignedPcr, 0, 1).map_err(failed)?;
        let CapabilityData::AssignedPcr(assigned) = found else { return Ok(Vec::new()) };
        let mut active = Vec::new();
        for selection in assigned.get_selections() {
            let has = |pcr: &u8| {
                let slot = PcrSlot::try_from(1_u32.checked_shl((*pcr).into()).unwrap_or(0));
                slot.is_ok_and(|slot| selection.is_selected(slot))
            };
            let pcrs: Vec<u8> = QUOTED_PCRS.filter(has).collect();
            if let Some(bank) = bank(selection.hashing_algorithm()).filter(|_| !pcrs.is_empty()) {
                active.push((bank, pcrs));
            }
        }
        active.sort_unstable();
        Ok(active)
    }

    /// Extends a PCR with one digest a bank. Banks that are left out keep their value.
    pub fn extend(&mut self, pcr: u8, digests: &[(Bank, Vec<u8>)]) -> Result<(), TpmError> {
        let failed = self.failed("extend a PCR");
        // A PCR's handle is its index.
        let handle = PcrHandle::try_from(u32::from(pcr)).map_err(&failed)?;
        let mut values = DigestValues::new();
        for (bank, digest) in digests {
            values.set(algorithm(*bank), Digest::try_from(digest.as_slice()).map_err(&failed)?);
        }
        self.context
            .execute_with_session(Some(AuthSession::Password), |context| context.pcr_extend(handle, values))
            .map_err(failed)
    }

    /// The values of all selected PCRs. A TPM gives at most eight at a time.
    pub(super) fn read_pcrs(&mut self, selection: Selection<'_>) -> Result<PcrValues, TpmError> {
        let mut values = PcrValues::new();
        for (bank, pcrs) in selection {
            let mut read: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
            for some in pcrs.chunks(8) {
                let failed = self.failed("read PCRs");
                let list = selection_list(&[(*bank, some.to_vec())])?;
                let (_, _, digests) =
                    self.context.execute_without_session(|context| context.pcr_read(list)).map_err(failed)?;
                // The TPM answers in ascending order, whatever the order of the question; what it does not have it leaves out.
                let mut ascending = some.to_vec();
                ascending.sort_unstable();
                ascending.dedup();
                let digests = digests.value();
                for (index, pcr) in ascending.into_iter().enumerate() {
                    let digest = digests.get(index).ok_or(TpmError::NoPcr { bank: *bank, pcr })?;
                    read.insert(pcr, digest.value().to_vec());
                }
            }
            values.entry(*bank).or_default().extend(read);
        }
        Ok(values)
    }
}
