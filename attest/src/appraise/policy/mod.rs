//! What is required of a host (TOML, schema `portcullis/policy/1`, see `schemas/policy-1.json`).
//!
//! A policy says what must be; it cannot say what may be overlooked. Whatever it leaves out makes it trust less.

mod arguments;
mod command_line;
pub(super) mod demands;
mod shim;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_with::{hex::Hex, serde_as};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

pub use arguments::{AmbiguousLine, Argument, arguments};
pub(super) use command_line::PreparedRules;
pub use command_line::{ArgumentRule, CommandLineRules};
pub use shim::ShimRules;

use super::program_rules::ProgramRules;
use crate::key::Bank;
use crate::reason::{Reason, ReasonCode};
use crate::reference::ReferenceValues;
use crate::reference::signature::SignerKey;

/// The schema that this version reads.
pub const SCHEMA: &str = "portcullis/policy/1";

/// The PCRs that a host quotes of every active bank: all that only a reset of the TPM sets back. What runs may extend
/// PCRs 16 and 23 from their beginning again, and 17 to 22 belong to dynamic launches, which are not judged.
pub const QUOTED_PCRS: core::ops::RangeInclusive<u8> = 0..=15;

/// The PCRs without which there is no judgement: all that are quoted but IMA's, of which the list of programs tells. Each
/// must be what the event log leads to, and what the reference values foresee; one without reference values must not be
/// extended. So nothing is hidden by leaving it out.
pub const JUDGED_PCRS: [u8; 15] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15];

/// The PCRs that do not change after the operating system started: firmware, Secure Boot, boot loader, kernel, unified
/// images and what is given to them, shim. Within one boot they are compared with what was judged before, and keys are
/// released to their values.
///
/// PCR 15 is none of them: the running system extends it with what it finds out about itself (systemd: the machine's id,
/// the keys of its volumes). It is judged with every quote, but it binds no key: a key would be lost at its next change.
pub const STATIC_PCRS: [u8; 14] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14];

/// Longest policy that is read, in bytes.
pub const MAX_POLICY: usize = 1 << 20;

/// What is required of a host.
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// A name for people; results repeat it.
    pub name: String,
    /// The PCR bank on which the judgement rests: sha256, sha384, sha512 or sm3_256.
    pub bank: Option<Bank>,
    /// The hosts that it is for, by their ids; `*` at the end of one stands for any end, so `["*"]` is for all hosts.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Whether the TPM's endorsement key must have had a certificate of a configured vendor when the host enrolled. Without
    /// it an operator's admission is enough, and an operator can admit a TPM that is made in software.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub certified_ek: bool,
    /// Whether Secure Boot must be on.
    #[serde(default)]
    pub secure_boot: bool,
    /// Whether every program that the kernel measured must be listed in the reference values.
    #[serde(default)]
    pub ima: bool,
    /// Names of the reference values of which the host must match one, in full.
    #[serde(default)]
    pub references: Vec<String>,
    /// The lowest edition ([`ReferenceValues::version`]) that counts of those reference values, by their name. A name that
    /// is not here has none: whoever can replace its file can then bring back an older one that was signed, too.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub minimum_reference_versions: BTreeMap<String, u64>,
    /// The keys that may sign reference values (PEM).
    #[serde(default)]
    pub reference_signers: Vec<SignerKey>,
    /// Whether their signatures must say when they end: whoever can replace a file can else bring back what was signed once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub signatures_must_expire: bool,
    /// Whether reference values that nobody signed count: whoever can write their file then says what a good boot is.
    #[serde(default)]
    pub unsigned_references: bool,
    /// What may have verified boot loaders, kernels and drivers: SHA-256 of certificates (DER), or of images that
    /// Secure Boot's own lists name by digest. With an empty list whatever the firmware and shim trust.
    #[serde_as(as = "Vec<Hex>")]
    #[serde(default)]
    pub boot_signers: Vec<[u8; 32]>,
    /// Digests, of the policy's bank, of all that may be the kernel: the file that GRUB read, the last image that the
    /// firmware loaded, a unified kernel image's `.linux`. Where GRUB started a unified image (`chainloader`) it read no
    /// kernel, and the image is judged. With an empty list whatever the reference values accept.
    #[serde_as(as = "Vec<Hex>")]
    #[serde(default)]
    pub kernels: Vec<Vec<u8>>,
    /// What the kernel's command line must, must not and may have.
    #[serde(default)]
    pub command_line: CommandLineRules,
    /// What is accepted of measured programs beside what the reference values list.
    #[serde(default)]
    pub programs: ProgramRules,
    /// What shim must have said of itself, where it was started.
    #[serde(default, skip_serializing_if = "ShimRules::is_default")]
    pub shim: ShimRules,
    /// What Secure Boot must have revoked.
    #[serde(default)]
    pub dbx: DbxRules,
    /// What the firmware must be.
    #[serde(default)]
    pub firmware: FirmwareRules,
}

/// What Secure Boot must have revoked.
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(deny_unknown_fields)]
pub struct DbxRules {
    /// Entries that dbx must have at least: SHA-256 digests of images, or of certificates (DER).
    #[serde_as(as = "Vec<Hex>")]
    pub minimum: Vec<[u8; 32]>,
}

/// What the firmware must be. That it runs in debug mode is refused always.
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(deny_unknown_fields)]
pub struct FirmwareRules {
    /// Whether firmware is refused that says that devices could read and write memory during the boot.
    #[serde(default)]
    pub dma_protection: bool,
    /// Accepted versions of the firmware's root of trust (S-CRTM), as it measures them. Empty: all.
    #[serde(default)]
    pub versions: Vec<String>,
    /// Digests, of the policy's bank, of the only drivers that may be loaded from option ROMs. Absent: all.
    #[serde_as(as = "Option<Vec<Hex>>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub option_roms: Option<Vec<Vec<u8>>>,
}

/// Why a text is no policy.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// Longer than any policy.
    #[error("the policy has {0} bytes, {MAX_POLICY} are the most that is read")]
    TooLarge(usize),
    /// Not TOML of the schema.
    #[error("the policy is not TOML of schema {SCHEMA}: {0}")]
    Toml(#[from] toml::de::Error),
    /// Of another schema.
    #[error("the policy has schema {0:?}, this version reads {SCHEMA}")]
    Schema(String),
    /// A pattern that cannot be meant.
    #[error("hosts: {0:?} is neither a host's id nor one that ends in `*`")]
    Host(String),
    /// A lowest edition of reference values that the policy does not use: a mistyped name would set no limit at all.
    #[error("minimum_reference_versions: {0:?} is none of the policy's references")]
    MinimumVersion(String),
    /// A digest that nothing of the policy's bank can have.
    #[error("{0}: a digest has another length than those of bank {1}")]
    Digest(&'static str, Bank),
    /// A bank whose hash can be forged.
    #[error("bank {0} proves nothing: SHA-1 collisions can be made; use sha256 or stronger")]
    WeakBank(Bank),
}

impl Policy {
    /// Reads a policy. An empty text is the empty policy, which trusts nothing.
    ///
    /// # Errors
    /// Anything that the schema does not have.
    pub fn from_toml(text: &str) -> Result<Self, PolicyError> {
        if text.len() > MAX_POLICY {
            return Err(PolicyError::TooLarge(text.len()));
        }
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let policy: Self = toml::from_str(text)?;
        if policy.schema != SCHEMA {
            return Err(PolicyError::Schema(policy.schema.chars().take(64).collect()));
        }
        if policy.bank == Some(Bank::Sha1) {
            return Err(PolicyError::WeakBank(Bank::Sha1));
        }
        if let Some(wrong) = policy.hosts.iter().find(|host| !is_host_pattern(host)) {
            return Err(PolicyError::Host(wrong.chars().take(64).collect()));
        }
        let is_used = |name: &&String| policy.references.contains(name);
        if let Some(unused) = policy.minimum_reference_versions.keys().find(|name| !is_used(name)) {
            return Err(PolicyError::MinimumVersion(unused.chars().take(64).collect()));
        }
        let bank = policy.bank.unwrap_or(Bank::Sha256);
        let none = Vec::new();
        for (what, digests) in [
            ("kernels", &policy.kernels),
            ("option_roms", policy.firmware.option_roms.as_ref().unwrap_or(&none)),
            ("mok_lists", policy.shim.mok_lists.as_ref().unwrap_or(&none)),
        ] {
            if digests.iter().any(|digest| digest.len() != bank.digest_size()) {
                return Err(PolicyError::Digest(what, bank));
            }
        }
        Ok(policy)
    }

    /// SHA-256 of what it says, however its file is laid out.
    pub fn digest(&self) -> [u8; 32] {
        // Lists, texts and numbers: JSON holds all of it.
        Sha256::digest(serde_json::to_vec(self).unwrap_or_default()).into()
    }

    /// Whether it is for this host.
    pub fn is_for(&self, host: &str) -> bool {
        self.hosts.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => host.starts_with(beginning),
            None => host == pattern,
        })
    }

    /// Why reference values do not count at `now` (seconds since 1970), if they do not: unsigned, signed by others than the
    /// policy names, by a signature that has ended or should and does not, or of an edition before the lowest that it takes.
    pub fn distrust(&self, values: &ReferenceValues, now: u64) -> Option<Reason> {
        let about = |code| Reason::new(code).event(values.name());
        let signers = || self.reference_signers.iter().map(SignerKey::id).collect::<Vec<_>>().join(" | ");
        match values.signed_by() {
            None if !self.unsigned_references => {
                return Some(about(ReasonCode::ReferenceUnsigned).expected(signers()));
            }
            Some(id) if self.reference_signers.iter().all(|key| key.id() != id) => {
                return Some(about(ReasonCode::ReferenceSignerUnknown).expected(signers()).found(id));
            }
            _ => {}
        }
        match values.signature_expires() {
            Some(end) if now >= end => {
                let reason = about(ReasonCode::ReferenceSignatureExpired);
                return Some(reason.expected(format!("before {end} (seconds since 1970)")).found(now.to_string()));
            }
            None if self.signatures_must_expire && values.signed_by().is_some() => {
                return Some(about(ReasonCode::ReferenceSignatureEndless).expected("exp in its header").found("none"));
            }
            _ => {}
        }
        let minimum =
            self.minimum_reference_versions.get(values.name()).filter(|minimum| values.version() < **minimum)?;
        let reason = about(ReasonCode::ReferenceVersionTooOld).expected(format!("version {minimum} or later"));
        Some(reason.found(format!("version {}", values.version())))
    }

    /// The bank on which the judgement rests, unless the policy is empty: then it trusts nothing.
    pub(super) fn bank_if_any(&self) -> Option<Bank> {
        self.bank.filter(|bank| *bank != Bank::Sha1 && !self.references.is_empty())
    }
}

fn is_host_pattern(pattern: &str) -> bool {
    pattern == "*" || crate::binding::is_valid_id(pattern.strip_suffix('*').unwrap_or(pattern))
}
