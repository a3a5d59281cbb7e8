//! What fuzzers throw bytes at, each as a [`Target`](target::Target): what the attestation library parses and judges
//! ([`attest`]), and what guests, clients and files can do to a VM's process ([`vmm`]).
//!
//! A target's body asserts what must hold for any bytes at all; that nothing panics and that memory stays in proportion
//! to the input ([`memory`]) is asserted of every one of them. `fuzz_targets/` gives each body to libFuzzer, and the tests
//! of `portcullis-attest` and `portcullis-vmm` include their room and run each body over its seeds and simple changes of
//! them.

pub mod attest;
pub mod memory;
pub mod recordings;
pub mod target;
pub mod vmm;
