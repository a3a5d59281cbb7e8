//! Reference values: what a good boot looks like (TOML, schema `portcullis/reference/1`, see
//! `schemas/reference-1.json`).
//!
//! A file of reference values is made to be read: for each PCR it lists, in order, what is measured, in words, and
//! the texts or digests that are accepted. A text stands for its digest, so that nobody has to believe that the two
//! belong together. What nobody can list in advance is accepted by a rule on its content, with the reason for it. The
//! events of a PCR must match its slots one to one and in order; PCRs without slots must not be extended at all.
//! Programs that the kernel may measure are listed by path and digest.

mod align;
mod builder;
mod changes;
mod document;
mod expected;
mod keylime;
mod record;
mod rule;
pub mod signature;

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

pub(crate) use align::{Effort, Step, align, distance, straight};
pub use builder::ReferenceBuilder;
pub use changes::{Change, ChangeKind, changes};
use expected::Expected;
pub(crate) use expected::{Acceptance, Judge, Measured};
pub use keylime::{KeylimeError, KeylimePolicy, PolicySignature};
pub use record::NotTaken;
pub use rule::{Pattern, Rule};
use signature::{DetachedSignature, SignatureError, SignerKey};

use crate::eventlog::EventType;
use crate::key::Bank;

/// The schema that this version reads and writes.
pub const SCHEMA: &str = "portcullis/reference/1";

/// Longest file that is read, in bytes.
pub const MAX_BYTES: usize = 32 << 20;

/// Most slots of one PCR. Real boots have some hundreds of events in all.
pub const MAX_SLOTS: usize = 4096;

/// What a good boot looks like. Valid by construction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReferenceValues {
    name: String,
    description: String,
    slots: BTreeMap<u8, Vec<Expected>>,
    ima: BTreeMap<String, BTreeSet<Vec<u8>>>,
    version: u64,
    digest: [u8; 32],
    signed_by: Option<String>,
    signature_expires: Option<u64>,
}

/// What is expected at one place of one PCR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The PCR.
    pub pcr: u8,
    /// The type that the event must have.
    pub event_type: EventType,
    /// What it is, in words: "kernel command line", "initrd".
    pub what: String,
    /// Accepted texts. Each stands for its digest.
    pub texts: Vec<String>,
    /// Accepted digests, by bank.
    pub digests: BTreeMap<Bank, Vec<Vec<u8>>>,
    /// Accepted texts with holes.
    pub patterns: Vec<Pattern>,
    /// A rule by which other content is accepted, too.
    pub rule: Option<Rule>,
    /// Why there is a rule or a pattern: verdicts that rest on it repeat this.
    pub reason: String,
    /// Whether the event may be missing.
    pub optional: bool,
}

/// Why something is not a file of reference values.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// Larger than any that is read.
    #[error("the reference values have {0} bytes, {MAX_BYTES} are the most that is read")]
    TooLarge(usize),
    /// Not TOML of the schema.
    #[error("the reference values are not TOML of schema {SCHEMA}: {0}")]
    Toml(#[from] toml::de::Error),
    /// Of another schema.
    #[error("the reference values have schema {0:?}, this version reads {SCHEMA}")]
    Schema(String),
    /// The name is missing or no plain word.
    #[error("the name {0:?} is not 1 to 64 characters of [a-z0-9.-]")]
    Name(String),
    /// A slot that no event can match, or that would be matched by anything.
    #[error("slot {number} ({what}): {problem}")]
    Slot {
        /// Its place in the file, from 1.
        number: usize,
        /// Its words.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// An IMA entry that cannot be used.
    #[error("IMA entry for {path:?}: {problem}")]
    Ima {
        /// Its path.
        path: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// The signature beside the file does not hold.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The values cannot be written.
    #[error("the reference values cannot be written: {0}")]
    Write(#[from] toml::ser::Error),
}

impl Slot {
    /// A slot that accepts nothing yet.
    pub fn new(pcr: u8, event_type: EventType, what: &str) -> Self {
        Self {
            pcr,
            event_type,
            what: what.to_owned(),
            texts: Vec::new(),
            digests: BTreeMap::new(),
            patterns: Vec::new(),
            rule: None,
            reason: String::new(),
            optional: false,
        }
    }

    /// A slot for an event that is told by its digest: a file, an image, a part of the firmware.
    pub fn digest(pcr: u8, event_type: EventType, what: &str, bank: Bank, digest: &[u8]) -> Self {
        let digests = BTreeMap::from([(bank, vec![digest.to_vec()])]);
        Self { digests, ..Self::new(pcr, event_type, what) }
    }

    /// A slot for an event whose digest is that of a text.
    pub fn text(pcr: u8, event_type: EventType, what: &str, text: &str) -> Self {
        Self { texts: vec![text.to_owned()], ..Self::new(pcr, event_type, what) }
    }

    /// A command that GRUB runs, as it logs it without `grub_cmd: `.
    pub fn grub_command(command: &str) -> Self {
        Self::text(8, EventType::IPL, "GRUB command", command)
    }

    /// The command line that GRUB gives the kernel, as it logs it without `kernel_cmdline: `: it begins with the path.
    pub fn kernel_command_line(command_line: &str) -> Self {
        Self::text(8, EventType::IPL, "kernel command line", command_line)
    }

    /// A file that GRUB reads, by the SHA-256 digest of its content: say "kernel", "initrd" or "GRUB configuration file".
    pub fn grub_file(what: &str, sha256: &[u8; 32]) -> Self {
        Self::digest(9, EventType::IPL, what, Bank::Sha256, sha256)
    }

    /// An image that the firmware starts, by its Authenticode digest (SHA-256).
    pub fn boot_image(what: &str, authenticode_sha256: &[u8; 32]) -> Self {
        Self::digest(4, EventType::EFI_BOOT_SERVICES_APPLICATION, what, Bank::Sha256, authenticode_sha256)
    }

    /// The same slot for an event that may be missing.
    #[must_use]
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// What it accepts, for people: the texts if there are any.
    pub(crate) fn expected(&self, bank: Bank) -> String {
        let listed = self.digests.get(&bank).map_or(&[][..], Vec::as_slice);
        let digests = listed.iter().map(hex::encode);
        let patterns = self.patterns.iter().map(|pattern| pattern.as_str().to_owned());
        let rule = self.rule.iter().map(|rule| format!("what the rule {rule} accepts"));
        let mut all: Vec<String> =
            self.texts.iter().cloned().chain(patterns).chain(rule).chain(digests).take(3).collect();
        let parts = [self.texts.len(), self.patterns.len(), usize::from(self.rule.is_some()), listed.len()];
        let more = parts.iter().fold(0_usize, |sum, part| sum.saturating_add(*part)).saturating_sub(3);
        if more > 0 {
            all.push(format!("and {more} more"));
        }
        all.join(" | ")
    }
}

impl ReferenceValues {
    /// Reads reference values.
    ///
    /// # Errors
    /// Anything that the schema does not have, and slots that could not be meant.
    pub fn from_toml(text: &str) -> Result<Self, ReferenceError> {
        document::read(text)
    }

    /// Reads reference values with the signature that lies beside them, by one of `keys`: `jws` is the content of the
    /// file with `.sig` added to its name.
    ///
    /// # Errors
    /// If none of the keys signed exactly this text; not if the signature has ended since, which is asked when they are used
    /// ([`Policy::distrust`](crate::appraise::Policy::distrust)). And as [`ReferenceValues::from_toml`].
    pub fn from_signed(text: &str, jws: &str, keys: &[SignerKey]) -> Result<Self, ReferenceError> {
        let signature = DetachedSignature::parse(jws)?;
        let (signed_by, signature_expires) =
            (Some(signature.verify(text.as_bytes(), keys)?.id().to_owned()), signature.expires_at());
        Ok(Self { signed_by, signature_expires, ..Self::from_toml(text)? })
    }

    /// From when on their signature no longer counts, in seconds since 1970, if it says so.
    pub const fn signature_expires(&self) -> Option<u64> {
        self.signature_expires
    }

    /// The id of the key that signed them, if their signature was checked: SHA-256 of its SubjectPublicKeyInfo, in hex.
    pub fn signed_by(&self) -> Option<&str> {
        self.signed_by.as_deref()
    }

    /// Which edition of these values it is; 0 where none was given. A later one has a higher number.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// SHA-256 of what they say, however the file is laid out and whoever signed it.
    pub const fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Writes them, readable by [`ReferenceValues::from_toml`].
    ///
    /// # Errors
    /// If TOML cannot hold a text of theirs.
    pub fn to_toml(&self) -> Result<String, ReferenceError> {
        document::write(self)
    }

    /// The name by which a policy calls them.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where they come from, in words.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The slots of a PCR, in the order in which they are expected; none for a PCR that must not be extended.
    pub fn slots(&self, pcr: u8) -> impl ExactSizeIterator<Item = &Slot> {
        self.expected(pcr).iter().map(Expected::slot)
    }

    /// The PCRs that have slots.
    pub fn pcrs(&self) -> impl Iterator<Item = u8> + '_ {
        self.slots.keys().copied()
    }

    pub(crate) fn expected(&self, pcr: u8) -> &[Expected] {
        self.slots.get(&pcr).map_or(&[], Vec::as_slice)
    }

    /// All digests that the slots of a PCR list, each with the text that it is of where the slot lists a text.
    pub(crate) fn listed(&self, pcr: u8, bank: Bank) -> BTreeMap<&[u8], Option<&str>> {
        self.expected(pcr).iter().flat_map(|expected| expected.listed(bank)).collect()
    }

    /// The programs, each with its accepted digests.
    pub fn programs(&self) -> impl Iterator<Item = (&str, &BTreeSet<Vec<u8>>)> {
        self.ima.iter().map(|(path, digests)| (path.as_str(), digests))
    }

    /// The accepted digests of a program, if it is listed.
    pub fn ima(&self, path: &[u8]) -> Option<&BTreeSet<Vec<u8>>> {
        self.ima.get(core::str::from_utf8(path).ok()?)
    }

    /// The accepted digests of all programs.
    pub(crate) fn ima_digests(&self) -> impl Iterator<Item = &[u8]> {
        self.ima.values().flatten().map(Vec::as_slice)
    }

    /// How many programs are listed.
    pub fn ima_len(&self) -> usize {
        self.ima.len()
    }
}

#[cfg(test)]
mod tests;
