//! TPMS_ATTEST: what a TPM signs (TPM 2.0 Library, Part 2, 10.12).

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::key::Bank;
use crate::wire::{Reader, WireError};

/// TPM_GENERATED_VALUE, "\xffTCG": a restricted key signs no outside data that begins with it.
const MAGIC: u32 = 0xFF54_4347;
const ST_ATTEST_CERTIFY: u16 = 0x8017;
const ST_ATTEST_QUOTE: u16 = 0x8018;
/// Bytes of a PCR selection: 24 PCRs, as the PC Client Platform TPM Profile says.
const SELECT_SIZE: u8 = 3;
/// Most banks in a selection (HASH_COUNT of any TPM is smaller).
const MAX_BANKS: u32 = 16;

/// Why signed bytes are not the attestation that they should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AttestError {
    /// Sizes do not add up, or bytes are left over.
    #[error("TPMS_ATTEST: {0}")]
    Wire(#[from] WireError),
    /// No TPM made this.
    #[error("TPMS_ATTEST: magic is {0:#010x}, not 0xff544347")]
    Magic(u32),
    /// Another kind of attestation.
    #[error("TPMS_ATTEST: type is {found:#06x}, not {expected:#06x}")]
    Type {
        /// The type that is asked for.
        expected: u16,
        /// The type that is there.
        found: u16,
    },
    /// A yes-or-no that is neither.
    #[error("TPMS_ATTEST: clockInfo.safe is {0}, neither 0 nor 1")]
    Safe(u8),
    /// A selection that no quote of ours has.
    #[error("TPMS_ATTEST: {0}")]
    Selection(String),
    /// No PCR is selected.
    #[error("TPMS_ATTEST: the selection is empty")]
    EmptySelection,
}

/// TPMS_CLOCK_INFO: the TPM's own time and its counters of boots.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ClockInfo {
    /// Milliseconds that the TPM has been powered since its last clear.
    pub clock_ms: u64,
    /// TPM resets since the last clear: boots of the machine.
    pub reset_count: u32,
    /// TPM restarts or resumes since the last reset.
    pub restart_count: u32,
    /// False after a crash: `clock_ms` may then have been reported before. Says nothing against the quote.
    pub safe: bool,
}

/// What every attestation begins with.
pub(crate) struct Header<'a> {
    pub qualified_signer: &'a [u8],
    pub extra_data: &'a [u8],
    pub clock: ClockInfo,
    pub firmware_version: u64,
}

/// A quote's TPMS_ATTEST.
pub(crate) struct Quote<'a> {
    pub header: Header<'a>,
    /// Banks in the order in which their PCRs were hashed, each with its PCRs in ascending order.
    pub selection: Vec<(Bank, Vec<u8>)>,
    pub pcr_digest: &'a [u8],
}

/// A certification's TPMS_ATTEST.
pub(crate) struct Certify<'a> {
    pub header: Header<'a>,
    pub name: &'a [u8],
    pub qualified_name: &'a [u8],
}

impl<'a> Quote<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, AttestError> {
        let mut reader = Reader::new(bytes);
        let header = read_header(&mut reader, ST_ATTEST_QUOTE)?;
        let selection = read_selection(&mut reader)?;
        let pcr_digest = reader.sized("pcrDigest")?;
        reader.finish()?;
        if selection.iter().all(|(_, pcrs)| pcrs.is_empty()) {
            return Err(AttestError::EmptySelection);
        }
        Ok(Self { header, selection, pcr_digest })
    }
}

impl<'a> Certify<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, AttestError> {
        let mut reader = Reader::new(bytes);
        let header = read_header(&mut reader, ST_ATTEST_CERTIFY)?;
        let name = reader.sized("certified name")?;
        let qualified_name = reader.sized("certified qualified name")?;
        reader.finish()?;
        Ok(Self { header, name, qualified_name })
    }
}

fn read_header<'a>(reader: &mut Reader<'a>, expected: u16) -> Result<Header<'a>, AttestError> {
    let magic = reader.u32("magic")?;
    if magic != MAGIC {
        return Err(AttestError::Magic(magic));
    }
    let found = reader.u16("type")?;
    if found != expected {
        return Err(AttestError::Type { expected, found });
    }
    let qualified_signer = reader.sized("qualifiedSigner")?;
    let extra_data = reader.sized("extraData")?;
    let clock_ms = reader.u64("clock")?;
    let reset_count = reader.u32("resetCount")?;
    let restart_count = reader.u32("restartCount")?;
    let safe = match reader.u8("safe")? {
        0 => false,
        1 => true,
        other => return Err(AttestError::Safe(other)),
    };
    let firmware_version = reader.u64("firmwareVersion")?;
    let clock = ClockInfo { clock_ms, reset_count, restart_count, safe };
    Ok(Header { qualified_signer, extra_data, clock, firmware_version })
}

fn read_selection(reader: &mut Reader<'_>) -> Result<Vec<(Bank, Vec<u8>)>, AttestError> {
    let count = reader.u32("selection count")?;
    if count > MAX_BANKS {
        return Err(AttestError::Selection(format!("a selection of {count} banks is more than any TPM has")));
    }
    let mut selection: Vec<(Bank, Vec<u8>)> = Vec::new();
    for _ in 0..count {
        let id = reader.u16("selection bank")?;
        let bank = Bank::from_tpm_alg_id(id)
            .ok_or_else(|| AttestError::Selection(format!("bank {id:#06x} is not known here")))?;
        // With a bank named twice, one value could be shown and another one judged.
        if selection.iter().any(|(seen, _)| *seen == bank) {
            return Err(AttestError::Selection(format!("bank {bank} is selected twice")));
        }
        let size = reader.u8("sizeofSelect")?;
        if size != SELECT_SIZE {
            return Err(AttestError::Selection(format!(
                "bank {bank} is selected with {size} bytes, not {SELECT_SIZE}"
            )));
        }
        let bits = reader.take(usize::from(size), "pcrSelect")?;
        let pcrs = (0..SELECT_SIZE.saturating_mul(8))
            .filter(|pcr| bits.get(usize::from(pcr / 8)).is_some_and(|byte| byte >> (pcr % 8) & 1 == 1))
            .collect();
        selection.push((bank, pcrs));
    }
    Ok(selection)
}
