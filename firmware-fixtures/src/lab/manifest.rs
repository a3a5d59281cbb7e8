//! What an image build put on its image: the source of reference values. Nothing here comes from a host that ran.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256, Sha384};

/// Digests of a file's contents, as lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests {
    /// SHA-256.
    pub sha256: String,
    /// SHA-384.
    pub sha384: String,
}

impl Digests {
    /// Hashes `contents`.
    pub fn of(contents: &[u8]) -> Self {
        Self { sha256: hex::encode(Sha256::digest(contents)), sha384: hex::encode(Sha384::digest(contents)) }
    }
}

/// A program that firmware, shim or GRUB starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootProgram {
    /// Where it lies on the boot disk, for example `/EFI/BOOT/BOOTX64.EFI`.
    pub path: String,
    /// The digest of the whole file.
    pub file: Digests,
    /// The Authenticode digest: what is measured into PCR 4 when it is started.
    pub authenticode: Digests,
}

/// An event that GRUB logs: its digest is over `text`, or over the contents of the file it names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrubEvent {
    /// 8 for commands and the kernel's command line, 9 for files.
    pub pcr: u32,
    /// The event's text as it stands in the log, without the NUL at its end.
    pub text: String,
    /// What was measured.
    pub digests: Digests,
}

/// What is on an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The first boot program.
    pub shim: BootProgram,
    /// The boot loader.
    pub grub: BootProgram,
    /// The kernel.
    pub kernel: BootProgram,
    /// The measured initrd.
    pub initrd: Digests,
    /// The text of `/EFI/debian/grub.cfg`.
    pub grub_cfg: String,
    /// What follows `linux` in it: the path and the command line.
    pub kernel_command_line: String,
    /// What GRUB logs from reading `grub.cfg` on, in order.
    pub grub_events: Vec<GrubEvent>,
    /// Path on the host → SHA-256 of every program, library, script and kernel module of the initrd and the root file
    /// system: what the IMA list may contain. A path that exists in both with different contents has two.
    pub executables: BTreeMap<String, BTreeSet<String>>,
    /// The IMA policy that the initrd loads.
    pub ima_policy: String,
    /// The Debian packages of the boot files, one a line with their versions.
    pub packages: String,
}
