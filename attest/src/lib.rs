//! Judges attestation evidence: quotes, firmware event logs and IMA lists in, a verdict out.
//!
//! The way through this crate is a chain of types. Each can be made only by the check before it, so code that holds
//! a later type cannot have skipped an earlier check:
//!
//! ```text
//! Evidence (bytes) ─verify quote─► VerifiedQuote ─replay─► ReplayedLog ─read─► Claims ─policy─► Appraisal
//! ```
//!
//! * [`evidence`] and [`binding`]: what an attester sends, and what its quotes must be bound to
//! * [`key`]: TPM public areas, names and signatures
//! * [`quote`]: checks quotes
//! * [`endorsement`]: endorsement key certificates and credential challenges
//! * [`eventlog`] and [`ima`]: parse and replay the measurement logs
//! * [`reference`](mod@reference): what a good boot looks like
//! * [`appraise`]: the whole judgement, from evidence to a verdict or to every reason against it
//! * [`result`]: the attestation result that relying parties read
//! * [`release`]: wraps a secret so that one TPM, in one boot and one state, can open it
//! * [`reason`]: why something was denied
//! * `tpm` (feature `tpm`): the attester's side, which talks to a TPM
//!
//! Without the feature `tpm` this crate does no I/O. It never panics on input: that is what the lints below hold it to.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::panic,
        clippy::unreachable
    )
)]

pub mod appraise;
pub mod binding;
pub mod endorsement;
pub mod eventlog;
pub mod evidence;
pub mod ima;
pub mod key;
mod protect;
pub mod quote;
pub mod reason;
pub mod reference;
pub mod release;
pub mod result;
#[cfg(feature = "tpm")]
pub mod tpm;
mod wire;
