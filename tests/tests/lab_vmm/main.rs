//! `portcullis-vmm` as a person runs it on a measured host: stock Debian in the guest, on the KVM of a Debian kernel.
//!
//! A subject's checks share one host, because its start takes longer than many of them; each says its name as it begins.

mod api;
mod balloon;
mod boot;
mod debian;
mod harness;
mod network;
mod snapshot;
mod stock_guest;
mod vsock;
