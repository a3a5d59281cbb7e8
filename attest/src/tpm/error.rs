//! What can go wrong with a TPM, told apart by what can be done about it.

use thiserror::Error;
use tss_esapi::constants::response_code::{Tss2ResponseCode, Tss2ResponseCodeKind};

use crate::key::Bank;

/// Why the TPM did not do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TpmError {
    /// The TCTI string is not one that libtss2 knows.
    #[error("{0:?} names no TPM: use device:/dev/tpmrm0, swtpm:host=HOST,port=PORT, mssim:… or tabrmd:…")]
    Tcti(String),
    /// No TPM answers, or it refuses all work.
    #[error("the TPM at {tcti} is unavailable: {problem}; check that it is there, started, and may be opened")]
    Unavailable {
        /// The TCTI string.
        tcti: String,
        /// What libtss2 or the TPM said.
        problem: String,
    },
    /// The TPM's state is not the one that the key was wrapped for.
    #[error("the TPM does not open this key: its PCRs are not those that the key was released for")]
    PolicyFailed,
    /// The key was wrapped for another storage parent: another TPM's, or that of another boot.
    #[error("the TPM does not open this key: it was wrapped for another TPM or another boot")]
    WrongParent,
    /// The credential was made for another pair of endorsement and attestation key.
    #[error("the TPM does not open this credential: it was made for another endorsement or attestation key")]
    WrongCredential,
    /// The TPM has no such PCR, or its bank is not enabled.
    #[error("the TPM has no PCR {pcr} in bank {bank}: enable the bank in the firmware's setup")]
    NoPcr {
        /// The bank.
        bank: Bank,
        /// The PCR.
        pcr: u8,
    },
    /// No quote and set of values matched in many attempts.
    #[error("the PCRs changed faster than they could be read, {0} times in a row: try again when the host is calmer")]
    PcrsMoved(u32),
    /// The certificate in the TPM is for another key than the TPM makes from the default template.
    #[error(
        "the TPM's endorsement key is not the one in its certificate: the TPM was reset to a new endorsement seed, or its \
         vendor used another template"
    )]
    EkMismatch,
    /// Something that needs the attestation key was asked before it was loaded.
    #[error("no attestation key is loaded")]
    NoAk,
    /// A storage parent that is no longer loaded.
    #[error("this storage parent is no longer loaded: ask for a new one")]
    NoParent,
    /// Bytes that no TPM structure has.
    #[error("{what} is not what a TPM takes: {problem}")]
    Malformed {
        /// What it should have been.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Anything else that the TPM or libtss2 said.
    #[error("the TPM failed to {action}: {source}")]
    Failed {
        /// What it was asked.
        action: &'static str,
        /// What it said.
        source: tss_esapi::Error,
    },
}

/// libtss2's layer that speaks with the device or simulator.
const LAYER_TCTI: u32 = 0x0A;

/// What an error says, whatever layer it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// The connection to the TPM is broken.
    NoConnection,
    /// The TPM itself said so.
    Tpm(Option<Tss2ResponseCodeKind>),
    /// libtss2 or its wrapper said so, on this side.
    Here,
}

pub(super) fn answer(error: tss_esapi::Error) -> Answer {
    let tss_esapi::Error::Tss2Error(code) = error else { return Answer::Here };
    match raw(code).map(|raw| raw >> 16 & 0xFF) {
        Some(LAYER_TCTI) => Answer::NoConnection,
        // 0: the TPM; 11 and 12: a resource manager that answers in the TPM's own codes.
        Some(0 | 11 | 12) => Answer::Tpm(code.kind()),
        _ => Answer::Here,
    }
}

/// The whole response code. tss-esapi gives its layer in no other way than in the code's text.
fn raw(code: Tss2ResponseCode) -> Option<u32> {
    let text = match code {
        Tss2ResponseCode::Success => return Some(0),
        Tss2ResponseCode::FormatZero(code) => code.to_string(),
        Tss2ResponseCode::FormatOne(code) => code.to_string(),
    };
    u32::from_str_radix(text.rsplit_once("0x")?.1, 16).ok()
}

/// The code as people look it up, beside what it means.
pub(super) fn words(error: tss_esapi::Error) -> String {
    match error {
        tss_esapi::Error::Tss2Error(code) => match raw(code) {
            Some(raw) => format!("{error} (response code {raw:#010x})"),
            None => error.to_string(),
        },
        tss_esapi::Error::WrapperError(_) => error.to_string(),
    }
}
