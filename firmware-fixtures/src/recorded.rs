//! Boots of lab hosts as `scripts/record-fixtures` recorded them, for unit tests that need no lab.
//!
//! All of one boot is of one moment: the quote and the PCR values agree with the event log and the IMA list.

use std::path::{Path, PathBuf};

/// What one recorded host showed.
#[derive(Debug, Clone, Copy)]
pub struct RecordedBoot {
    /// What the recording is called.
    pub name: &'static str,
    /// The firmware's event log, as the kernel gives it in `binary_bios_measurements`.
    pub event_log: &'static [u8],
    /// The IMA list, as the kernel gives it in `binary_runtime_measurements`.
    pub ima: &'static [u8],
    /// PCR values: JSON, bank name → index → lower-case hex.
    pub pcrs_json: &'static str,
    /// What was on the host's image: JSON of [`crate::lab::manifest::Manifest`].
    pub manifest_json: &'static str,
    /// TPMS_ATTEST of a quote by tpm2-tools over sha256 PCRs 0–10 and 14 and sha384 PCRs 0–9 and 14. Its extraData is
    /// [`NONCE`].
    pub quote_message: &'static [u8],
    /// TPMT_SIGNATURE of the quote (ECDSA with SHA-256).
    pub quote_signature: &'static [u8],
    /// TPM2B_PUBLIC of the attestation key, a child of the endorsement key.
    pub ak_public: &'static [u8],
    /// The attestation key's name.
    pub ak_name: &'static [u8],
    /// TPM2B_PUBLIC of the RSA-2048 endorsement key.
    pub ek_public: &'static [u8],
    /// Its certificate, DER.
    pub ek_certificate: &'static [u8],
    /// PEM: the TPM vendor's root, then its issuing CA.
    pub vendor_pem: &'static str,
}

/// The extraData of the recorded quotes.
pub const NONCE: &[u8] = b"portcullis recorded boot";

macro_rules! boot {
    ($name:literal) => {
        RecordedBoot {
            name: $name,
            event_log: include_bytes!(concat!("../recorded/", $name, "/eventlog.bin")),
            ima: include_bytes!(concat!("../recorded/", $name, "/ima.bin")),
            pcrs_json: include_str!(concat!("../recorded/", $name, "/pcrs.json")),
            manifest_json: include_str!(concat!("../recorded/", $name, "/manifest.json")),
            quote_message: include_bytes!(concat!("../recorded/", $name, "/quote.msg")),
            quote_signature: include_bytes!(concat!("../recorded/", $name, "/quote.sig")),
            ak_public: include_bytes!(concat!("../recorded/", $name, "/ak.pub")),
            ak_name: include_bytes!(concat!("../recorded/", $name, "/ak.name")),
            ek_public: include_bytes!(concat!("../recorded/", $name, "/ek.pub")),
            ek_certificate: include_bytes!(concat!("../recorded/", $name, "/ek.crt")),
            vendor_pem: include_str!(concat!("../recorded/", $name, "/vendor.pem")),
        }
    };
}

/// A good host: Secure Boot through shim and GRUB.
pub const SECURE_BOOT: RecordedBoot = boot!("secure-boot");
/// The same, but the kernel's command line has `mitigations=off` at its end.
pub const TAMPERED: RecordedBoot = boot!("tampered");
/// The same as the good host, but the firmware's platform key is gone, so that Secure Boot is off.
pub const SECURE_BOOT_OFF: RecordedBoot = boot!("secure-boot-off");

/// QEMU loaded the kernel itself: no shim, no GRUB, no Secure Boot; the kernel's EFI stub measures into PCR 9.
pub const DIRECT: RecordedBoot = boot!("direct");

/// No UEFI at all: SeaBIOS, and the kernel loaded by QEMU. Only the firmware's own part is in the log.
pub const SEABIOS: RecordedBoot = boot!("seabios");

/// The recordings that went through shim and GRUB.
pub const ALL: [RecordedBoot; 3] = [SECURE_BOOT, TAMPERED, SECURE_BOOT_OFF];

/// The event log of a machine that started a unified kernel image, without Secure Boot: systemd-stub measures its
/// sections into PCR 11. Recorded by `scripts/record-uki`.
pub const UKI_EVENT_LOG: &[u8] = include_bytes!("../recorded/uki/eventlog.bin");

/// The same machine's PCR values: JSON, bank name → index → lower-case hex.
pub const UKI_PCRS_JSON: &str = include_str!("../recorded/uki/pcrs.json");

/// The command line in that image.
pub const UKI_COMMAND_LINE: &str = "console=ttyS0 loglevel=4 rdinit=/init";

/// Logs, lists and quotes of real machines, with what they lead to as another program computed it. They stand beside the
/// project where it is developed, and are not part of it.
pub fn corpus_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus")
}

/// The same for tests: where it is not there, that says so, with what was therefore not checked.
pub fn corpus(unchecked: &str) -> Option<PathBuf> {
    let dir = corpus_dir();
    if dir.is_dir() {
        return Some(dir);
    }
    eprintln!("ATTENTION: no corpus of real logs at {}: {unchecked} was NOT checked", dir.display());
    None
}
