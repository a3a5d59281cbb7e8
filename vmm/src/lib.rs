//! One tenant VM in one confined process.
//!
//! `portcullis-vmm` boots one guest on KVM. Everything that a tenant can reach (the kernel image, the guest's memory,
//! its port and memory-mapped accesses, its serial line) is treated as hostile: sizes are bounded, guest memory is
//! only touched through `vm-memory`'s typed accesses, and the process that holds the guest gives up what it does not
//! need before the first guest instruction runs.
//!
//! # The rooms
//! - [`config`]: Firecracker's JSON configuration, checked; also the way for other programs to *write* one.
//! - [`api`]: the same and more over a unix socket, as Firecracker's API has it.
//! - [`log`]: the lines that the VMM writes to its log, and their parser.
//! - [`vm`]: puts one VM together, runs it and says how it ended.
//! - [`snapshot`]: a paused VM in two files, and the way back.
//! - [`virtio`]: what all virtio devices share; [`devices`]: a folder for each device.
//! - `memory`, `boot`, `vcpu`, `console`, `rate_limiter`, `mmds`, `metrics`, `socket_file`, `jail`: the other parts.
//!
//! # For a program that runs VMs
//! ```no_run
//! use portcullis_vmm::config::VmConfig;
//! use portcullis_vmm::log::{EndReason, Event, LogLine};
//!
//! let config = VmConfig::new("/vol/vmlinuz").with_initrd("/vol/initrd").with_boot_args("console=ttyS0").with_mem_mib(256);
//! config.check()?;
//! std::fs::write("vm.json", config.to_json()?)?;
//! // portcullis-vmm --id web-1 --no-api --config-file vm.json --log-path vm.log --boot-timer
//! for line in std::fs::read_to_string("vm.log")?.lines() {
//!     match LogLine::parse(line).map(|line| line.event) {
//!         Some(Event::GuestBoot(mark)) => println!("booted after {} us", mark.boot_us),
//!         Some(Event::End { reason: EndReason::Error, text, .. }) => println!("failed: {text:?}"),
//!         Some(Event::End { reason, .. }) => println!("ended: {}", reason.as_str()),
//!         _ => {}
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The way of one VM
//! configuration → memory → KVM VM and devices → kernel, initrd and tables in guest memory → vCPUs → jail → run → end.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod api;
pub mod boot;
pub mod config;
pub mod console;
pub mod devices;
pub mod jail;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod mmds;
pub mod rate_limiter;
pub mod snapshot;
mod socket_file;
pub mod vcpu;
pub mod virtio;
pub mod vm;
