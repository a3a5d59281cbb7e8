//! The verifier: enrols hosts, appraises their evidence, places tenant VMs on trusted ones and releases volume keys.
//!
//! Without the feature `server` this library is what talks to a verifier: [`api`] (what crosses the wire), [`client`]
//! (blocking, pinned to the verifier's own CA), [`order`] (launch orders and their check) and [`receipt`].
//! With it comes `service`, the verifier itself.
//!
//! Where things are decided:
//! * who is calling: `service::peer`, from the TLS handshake alone
//! * what a call may do: the handlers in `service::{hosts, people, launch}`
//! * what is remembered: `service::store`, and nowhere else
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

pub mod api;
pub mod client;
pub mod name;
pub mod order;
pub mod reason;
pub mod receipt;
#[cfg(feature = "server")]
pub mod service;
