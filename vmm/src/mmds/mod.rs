//! The metadata service: a small JSON document that the host writes and the guest reads, at an address of its own on
//! the guest's network.
//!
//! Firecracker's, in its two versions: with sessions (V2) and without (V1).
//!
//! - `store`: the document, and what is given of it.
//! - `merge_patch`: changes to it (RFC 7396).
//! - `token`: the sessions of version 2.
//! - `http`: the guest's requests and their answers.
//! - `network`: the guest's frames; TCP without any network of the host.
//! - `file`: the document at the start.
//! - `config`: which cards reach it, and how.

mod config;
mod file;
mod http;
mod merge_patch;
mod metrics;
mod network;
mod store;
mod token;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use config::{DEFAULT_ADDRESS, MmdsConfig, Version};
pub use file::FileError;
pub use http::{Outcome, outcome};
pub use merge_patch::merge;
pub use network::{Network, is_for};
pub use store::{DEFAULT_LIMIT, Format, Mmds, MmdsError};

/// The document, shared by who writes it and the cards that give it to the guest.
pub type SharedMmds = Arc<Mutex<Mmds>>;

/// The document, for as long as it is looked at or changed. Cards wait meanwhile: not for a file, nor for a client.
pub fn lock(mmds: &SharedMmds) -> MutexGuard<'_, Mmds> {
    // A panic has aborted the process: the lock is never poisoned.
    mmds.lock().unwrap_or_else(PoisonError::into_inner)
}
