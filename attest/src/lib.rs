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
//! # Example: is this quote what I asked for?
//!
//! ```
//! use portcullis_attest::{binding::Binding, evidence::Evidence, key::{Bank, EnrolledAk}, quote::VerifiedQuote};
//!
//! fn check(json: &[u8], ak_public: &[u8], ek_public: &[u8], asked: &Binding) -> Result<VerifiedQuote, String> {
//!     let evidence = Evidence::from_json(json).map_err(|error| error.to_string())?;
//!     // Both keys come from enrolment: evidence that brings its own key proves nothing.
//!     let ak = EnrolledAk::new(ak_public, ek_public).map_err(|reasons| format!("{reasons:?}"))?;
//!     VerifiedQuote::verify(&evidence, &ak, asked).map_err(|reasons| format!("{reasons:?}"))
//! }
//! # let json = include_bytes!("../schemas/examples/evidence-1.json");
//! # let keys: serde_json::Value = serde_json::from_slice(include_bytes!("../schemas/examples/evidence-1.keys.json")).unwrap();
//! # let key = |name: &str| hex::decode(keys[name].as_str().unwrap()).unwrap();
//! # let asked = Evidence::from_json(json).unwrap().binding;
//! # let quote = check(json, &key("ak_public"), &key("ek_public"), &asked).unwrap();
//! # assert_eq!(quote.pcr(Bank::Sha256, 9), Some([9; 32].as_slice()));
//! # let other = Binding { nonce: vec![0; 32], ..asked };
//! # assert!(check(json, &key("ak_public"), &key("ek_public"), &other).is_err());
//! ```
//!
//! # Example: what did `tpm2_quote` write?
//!
//! A quote by itself, with the files of `tpm2_quote -m message -s signature -o pcrs`, the key as `tpm2_createak -u` wrote it
//! and the firmware's log. It says what a key signed; [`quote::Caveat`] says what that leaves open.
//!
//! ```
//! use portcullis_attest::{eventlog::EventLog, key::{Bank, QuotingKey}, quote::{CheckedQuote, PcrFile}, reason::Denial};
//!
//! fn check(ak: &[u8], files: [&[u8]; 3], nonce: &[u8], log: &EventLog<'_>) -> Result<CheckedQuote, Denial> {
//!     let [message, signature, pcrs] = files;
//!     let ak = QuotingKey::parse(ak)?;
//!     let quote = CheckedQuote::check(&ak, message, signature, &PcrFile::parse(pcrs)?, nonce)?;
//!     quote.replay_eventlog(log)?;
//!     Ok(quote)
//! }
//! # use portcullis_firmware_fixtures::recorded::{NONCE, SECURE_BOOT as boot};
//! # let values: serde_json::Value = serde_json::from_str(boot.pcrs_json).unwrap();
//! # let value = |bank: &str, pcr: u8| hex::decode(values[bank][pcr.to_string()].as_str().unwrap()).unwrap();
//! # let sha256 = (0..=10).chain([14]).flat_map(|pcr| value("sha256", pcr));
//! # let pcrs: Vec<u8> = sha256.chain((0..=9).chain([14]).flat_map(|pcr| value("sha384", pcr))).collect();
//! # let files = [boot.quote_message, boot.quote_signature, &pcrs];
//! # let log = EventLog::parse(boot.event_log).unwrap();
//! # let quote = check(boot.ak_public, files, NONCE, &log).unwrap();
//! # assert_eq!(quote.pcr(Bank::Sha256, 7).unwrap(), value("sha256", 7));
//! # assert!(check(boot.ak_public, files, b"another nonce", &log).is_err());
//! # assert!(check(boot.ak_public, [boot.quote_message, boot.quote_signature, &pcrs[1..]], NONCE, &log).is_err());
//! ```
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
mod pem;
mod protect;
pub mod quote;
pub mod reason;
pub mod reference;
pub mod release;
pub mod result;
#[cfg(feature = "tpm")]
pub mod tpm;
mod wire;
mod work;
