//! What an attester sends: quotes, the firmware event log and the IMA list, as JSON (schema `portcullis/evidence/1`,
//! see `schemas/evidence-1.json`).
//!
//! Reading is strict, because what a lenient reader skips, a later one may believe: unknown fields, duplicate keys (also
//! in nested maps) and oversized input are refused. Reading proves nothing: that is what
//! [`VerifiedQuote::verify`](crate::quote::VerifiedQuote::verify) is for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_with::base64::{Base64, Standard};
use serde_with::formats::Padded;
use serde_with::hex::Hex;
use serde_with::{MapPreventDuplicates, serde_as};
use thiserror::Error;

use crate::binding::Binding;
use crate::key::Bank;

/// The schema that this version reads and writes.
pub const SCHEMA: &str = "portcullis/evidence/1";
/// Longest evidence read, as JSON, in bytes.
pub const MAX_JSON: usize = 16 * 1024 * 1024;
/// Most quotes in one evidence: one a bank, with room to spare.
pub const MAX_QUOTES: usize = 8;
/// Longest signed structure and longest signature, in bytes; a TPM's are far smaller.
pub const MAX_SIGNED: usize = 4096;
/// Highest PCR that a TPM for PCs has, and one more.
pub const PCR_COUNT: u8 = 24;

/// PCR values of one quote: by bank, by PCR.
pub type PcrValues = BTreeMap<Bank, BTreeMap<u8, Vec<u8>>>;

/// Why bytes are not evidence.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EvidenceError {
    /// More than [`MAX_JSON`] bytes.
    #[error("evidence of {0} bytes is larger than the {MAX_JSON} bytes that are read")]
    TooLarge(usize),
    /// Not the JSON of the schema.
    #[error("evidence is not JSON of schema {SCHEMA}: {0}")]
    Json(#[from] serde_json::Error),
}

/// Evidence about one boot instance, as received. Nothing in it is believed yet.
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields, try_from = "Unchecked")]
pub struct Evidence {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// What the attester says its quotes are bound to. Only a diagnosis rests on it; what counts is the binding that the
    /// verifier expects.
    pub binding: Binding,
    /// The quotes: one or more, all for the same binding.
    pub quotes: Vec<SignedQuote>,
    /// The firmware event log, as Linux gives it in `binary_bios_measurements`.
    #[serde_as(as = "Base64<Standard, Padded>")]
    pub eventlog: Vec<u8>,
    /// How many entries the IMA list leaves out at its front, because the verifier judged them before in this boot: what
    /// it asked for. 0 for a whole list.
    #[serde(default, skip_serializing_if = "is_whole")]
    pub ima_from: u64,
    /// The IMA list from there on, as Linux gives it in `binary_runtime_measurements`; empty if there is none.
    #[serde_as(as = "Base64<Standard, Padded>")]
    pub ima: Vec<u8>,
}

// By reference, because serde asks so.
#[allow(clippy::trivially_copy_pass_by_ref)]
const fn is_whole(ima_from: &u64) -> bool {
    *ima_from == 0
}

/// One quote as the TPM made it, with the PCR values it covers.
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct SignedQuote {
    /// TPMS_ATTEST, the bytes that were signed.
    #[serde_as(as = "Base64<Standard, Padded>")]
    pub message: Vec<u8>,
    /// TPMT_SIGNATURE.
    #[serde_as(as = "Base64<Standard, Padded>")]
    pub signature: Vec<u8>,
    /// The values of exactly the selected PCRs.
    #[serde_as(as = "MapPreventDuplicates<_, MapPreventDuplicates<serde_with::DisplayFromStr, Hex>>")]
    pub pcrs: PcrValues,
}

impl Evidence {
    /// Evidence of this version's schema, from its parts; the IMA list whole.
    #[must_use]
    pub fn new(binding: Binding, quotes: Vec<SignedQuote>, eventlog: Vec<u8>, ima: Vec<u8>) -> Self {
        Self { schema: SCHEMA.to_owned(), binding, quotes, eventlog, ima_from: 0, ima }
    }

    /// Reads evidence.
    pub fn from_json(json: &[u8]) -> Result<Self, EvidenceError> {
        if json.len() > MAX_JSON {
            return Err(EvidenceError::TooLarge(json.len()));
        }
        Ok(serde_json::from_slice(json)?)
    }

    /// Writes evidence, readable by [`Evidence::from_json`].
    pub fn to_json(&self) -> Result<Vec<u8>, EvidenceError> {
        let json = serde_json::to_vec(self)?;
        if json.len() > MAX_JSON { Err(EvidenceError::TooLarge(json.len())) } else { Ok(json) }
    }
}

/// Evidence whose fields are well-formed but whose bounds are unchecked. Every reader of [`Evidence`] comes through
/// here, also where evidence is a part of a larger message.
#[serde_as]
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    schema: String,
    binding: Binding,
    quotes: Vec<SignedQuote>,
    #[serde_as(as = "Base64<Standard, Padded>")]
    eventlog: Vec<u8>,
    #[serde(default)]
    ima_from: u64,
    #[serde_as(as = "Base64<Standard, Padded>")]
    ima: Vec<u8>,
}

/// A bound that evidence breaks.
#[derive(Debug, Error)]
enum OutOfBounds {
    #[error("schema is not {SCHEMA}")]
    Schema,
    #[error("{0} quotes are more than the {MAX_QUOTES} that are read")]
    Quotes(usize),
    #[error(
        "quote {quote}: {bytes} bytes of signed structure or signature are more than the {MAX_SIGNED} that are read"
    )]
    Signed { quote: usize, bytes: usize },
    #[error("quote {quote}: there is no PCR {pcr}")]
    Pcr { quote: usize, pcr: u8 },
    #[error("quote {quote}: a PCR value of {bytes} bytes is longer than any bank's")]
    PcrValue { quote: usize, bytes: usize },
    #[error("binding: {0}")]
    Binding(&'static str),
}

impl TryFrom<Unchecked> for Evidence {
    type Error = OutOfBounds;

    fn try_from(read: Unchecked) -> Result<Self, OutOfBounds> {
        if read.schema != SCHEMA {
            return Err(OutOfBounds::Schema);
        }
        if read.quotes.len() > MAX_QUOTES {
            return Err(OutOfBounds::Quotes(read.quotes.len()));
        }
        if !crate::binding::is_valid_id(&read.binding.verifier) || !crate::binding::is_valid_id(&read.binding.host) {
            return Err(OutOfBounds::Binding("verifier and host are 1 to 64 characters of [a-z0-9.-]"));
        }
        if read.binding.nonce.len() > 64 {
            return Err(OutOfBounds::Binding("a nonce has at most 64 bytes"));
        }
        for (quote, signed) in read.quotes.iter().enumerate() {
            let bytes = signed.message.len().max(signed.signature.len());
            if bytes > MAX_SIGNED {
                return Err(OutOfBounds::Signed { quote, bytes });
            }
            for (&pcr, value) in signed.pcrs.values().flatten() {
                if pcr >= PCR_COUNT {
                    return Err(OutOfBounds::Pcr { quote, pcr });
                }
                if value.len() > 64 {
                    return Err(OutOfBounds::PcrValue { quote, bytes: value.len() });
                }
            }
        }
        let Unchecked { schema, binding, quotes, eventlog, ima_from, ima } = read;
        Ok(Self { schema, binding, quotes, eventlog, ima_from, ima })
    }
}
