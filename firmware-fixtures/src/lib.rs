//! Test support for Portcullis: real TPMs (swtpm), recorded boots, and the lab that boots measured hosts in QEMU.
//!
//! Nothing here is a mock.
//! - [`tpm::Swtpm`] is a TPM 2.0 with its own endorsement key and a certificate chain to a vendor root made for the lab.
//! - [`lab`] builds images and boots hosts from them: Secure Boot, measured initrd, IMA, KVM. `portcullis-lab` (behind
//!   `scripts/lab`) does the same by hand.
//! - [`recorded`] has what such hosts measured, for tests that must be quick.
//!
//! Everything that is started ends with the process that started it, also after a panic or `kill -9`: see [`child`].

pub mod child;
pub mod lab;
pub mod recorded;
pub mod tpm;
pub mod workdir;
