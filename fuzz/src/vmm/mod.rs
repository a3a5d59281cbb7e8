//! What a guest, a client of the API or a file can do to the process of a VM. The tests of `portcullis-vmm` include this
//! folder.
//!
//! For devices the bytes are a program: the driver's accesses to registers and memory, in any order, and what happens on
//! the host's side meanwhile. They run against the devices themselves in this process, with a small memory of their own,
//! files in memory for disks and sockets in the place of taps. No KVM is needed: what takes it (vCPUs, interrupt
//! controllers) is not fuzzed.

pub mod api;
pub mod block;
pub mod boot;
pub mod config;
mod files;
mod guest;
mod input;
mod ledger;
mod log;
mod memory;
pub mod mmds;
mod model;
pub mod net;
pub mod ports;
mod program;
pub mod queue;
pub mod small;
pub mod snapshot;
pub mod vsock;

use super::memory::{allow, in_proportion};
use super::target::Target;

/// All targets.
pub const TARGETS: &[Target] = &[
    queue::QUEUE,
    block::BLOCK,
    net::NET,
    vsock::VSOCK,
    small::ENTROPY,
    small::BALLOON,
    ports::PORTS,
    boot::KERNEL,
    config::VM_CONFIG,
    config::CPU_CONFIG,
    snapshot::SNAPSHOT,
    api::API,
    mmds::MMDS_HTTP,
    mmds::MERGE_PATCH,
    mmds::MMDS_NETWORK,
];
