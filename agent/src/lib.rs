//! The host's side of Portcullis: proves what the host booted, takes launch orders, opens tenants' volumes and runs
//! their VMs.
//!
//! The way through this crate follows the agent's life:
//!
//! * [`config`] and [`trust`]: what an operator set, and whom the measured initrd says to obey
//! * [`session`]: one start of the agent, with a TLS key of its own
//! * [`prover`]: the TPM: enrols, quotes, opens released keys
//! * [`agent`]: the state machine that joins it all
//! * [`launch`]: from a verified order to a running VM: [`volume`], [`volume_file`], [`machine`]
//! * [`receipts`] and [`vm_record`]: what became of it, for the verifier and for people on the host
//!
//! Beside it: [`store`] (files that are whole or not there), [`child`] (programs that are confined and never outlive
//! the agent), [`hardening`] (what the agent does to itself), [`backoff`], [`measurements`], [`luks_header`].
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod agent;
pub mod backoff;
pub mod child;
pub mod config;
pub mod hardening;
pub mod launch;
pub mod luks_header;
pub mod machine;
pub mod measurements;
pub mod prover;
pub mod receipts;
pub mod session;
pub mod store;
pub mod trust;
pub mod vm_record;
pub mod volume;
pub mod volume_file;
