//! One tenant VM in one confined process.
//!
//! `portcullis-vmm` boots one guest on KVM. Everything that a tenant can reach (the kernel image, the guest's memory,
//! its port and memory-mapped accesses, its serial line) is treated as hostile: sizes are bounded, guest memory is
//! only touched through `vm-memory`'s typed accesses, and the process that holds the guest gives up what it does not
//! need before the first guest instruction runs.
//!
//! # The rooms
//! - [`config`]: Firecracker's JSON configuration, checked; also the way for other programs to *write* one.
//! - [`log`]: the lines that the VMM writes to its log, and their parser.
//! - [`vm`]: puts one VM together, runs it and says how it ended.
//! - `memory`, `boot`, `vcpu`, `devices`, `console`, `jail`: the parts.
//!
//! # The way of one VM
//! configuration → memory → KVM VM and irqchip → kernel, initrd and tables in guest memory → vCPUs → jail → run → end.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod boot;
pub mod config;
pub mod console;
pub mod devices;
pub mod jail;
pub mod log;
pub mod memory;
pub mod vcpu;
pub mod vm;
