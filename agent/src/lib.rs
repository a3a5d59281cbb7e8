//! The host side of Portcullis: proves what the host booted, takes launch orders, opens tenants' volumes and runs
//! their VMs.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod backoff;
pub mod child;
pub mod config;
pub mod hardening;
pub mod luks_header;
pub mod measurements;
pub mod store;
pub mod volume;
pub mod volume_file;
