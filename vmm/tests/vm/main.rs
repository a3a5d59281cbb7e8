//! Whole VMs on this machine's `/dev/kvm`, with guests of a few bytes.
//!
//! The guests are assembled by hand ([`guest`]) so that they run on any KVM, also on one that emulates every
//! instruction of ring 0. The VMM is run as people run it: as a process, with a configuration file.

mod balloon;
mod block;
mod block_file;
mod block_limits;
mod console;
mod control;
mod cpu_template;
mod driver;
mod entropy;
mod faults;
mod firecracker;
mod foreign_driver;
mod guest;
mod harness;
mod hostile;
mod interrupts;
mod jail;
mod life;
mod mmds;
mod net;
mod probe;
mod refusals;
mod slow_disk;
mod tap;
mod virtio;
mod vsock;
