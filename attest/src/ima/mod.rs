//! IMA lists: what the kernel measured after boot, entry by entry, into PCR 10.
//!
//! Linux shows the list in two forms, `binary_runtime_measurements` and `ascii_runtime_measurements`. Both are read
//! here, strictly: what cannot be read is an error that says where. A list proves nothing by itself: entries may be
//! believed only as far as [`ImaList::position_of`] finds the quoted PCR 10, for that is where the TPM's word ends.
//!
//! Each entry's template data hashes to its template digest. Since Linux 5.8 every bank is extended with its own hash of
//! the template data ([`ExtendRule::Digest`]), but only if the kernel had that hash at hand when IMA started. Banks
//! for which it had not, and all banks of older kernels, get the SHA-1 digest padded with zeros
//! ([`ExtendRule::PaddedSha1`]), which is worth no more than SHA-1.

mod ascii;
mod binary;
mod keyring;
mod replay;
mod template;

use std::borrow::Cow;

use thiserror::Error;

pub use keyring::{Keyring, KeyringError};
pub(crate) use replay::Start;
pub use replay::{ExtendRule, ImaState};
pub use template::{FileDigest, Template};

/// The PCR that IMA extends.
pub const PCR: u8 = 10;

/// Longest list that is read, in bytes.
pub const MAX_BYTES: usize = 256 << 20;

/// Size of the template digests that the kernel lists: SHA-1.
pub const TEMPLATE_DIGEST_SIZE: usize = 20;

/// The name of the first entry, which ties the list to the boot: its digest is that of the PCRs 0 to 9 (or 0 to 7).
pub const BOOT_AGGREGATE: &[u8] = b"boot_aggregate";

/// A list of measurements, read and found well-formed. Nothing in it is believed yet.
#[derive(Clone, Debug)]
pub struct ImaList<'a> {
    entries: Vec<Entry<'a>>,
}

/// One measurement.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// Its place in the list, from 1.
    pub number: u64,
    /// The PCR it says it extends.
    pub pcr: u32,
    /// What the entry says its template data hashes to; zeros for a violation.
    pub template_digest: [u8; TEMPLATE_DIGEST_SIZE],
    /// How the template data is laid out.
    pub template: Template,
    /// The template data, as it is hashed.
    data: Cow<'a, [u8]>,
}

/// Why bytes are not an IMA list.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ImaError {
    /// The list is larger than any that is read.
    #[error("the list has {0} bytes, {MAX_BYTES} are the most that is read")]
    TooLarge(usize),
    /// A field says it is longer than the bytes that are there.
    #[error("entry {entry}: {field} needs {needed} bytes, {left} are left: the list was cut short")]
    Truncated {
        /// Number of the entry.
        entry: u64,
        /// The field.
        field: &'static str,
        /// Bytes it needs.
        needed: u64,
        /// Bytes that are left.
        left: usize,
    },
    /// The entry has a template that this version does not know.
    #[error("entry {entry} has the template {name:?}, which is not known here")]
    Template {
        /// Number of the entry.
        entry: u64,
        /// The name it gives.
        name: String,
    },
    /// A field of the entry cannot be what it is.
    #[error("entry {entry}: {what}")]
    Field {
        /// Number of the entry.
        entry: u64,
        /// What is wrong.
        what: &'static str,
    },
}

impl<'a> ImaList<'a> {
    /// Reads a list in either form: the ASCII form begins with a digit, the binary one with a PCR index.
    ///
    /// # Errors
    /// Anything that Linux would not write.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ImaError> {
        // A PCR index of the binary form is below 32, so its first byte is no digit.
        if bytes.first().is_some_and(u8::is_ascii_digit) { Self::parse_ascii(bytes) } else { Self::parse_binary(bytes) }
    }

    /// Reads `binary_runtime_measurements`.
    ///
    /// # Errors
    /// Anything that Linux would not write.
    pub fn parse_binary(bytes: &'a [u8]) -> Result<Self, ImaError> {
        Self::read(bytes, binary::entries)
    }

    /// Reads `ascii_runtime_measurements`.
    ///
    /// # Errors
    /// Anything that Linux would not write.
    pub fn parse_ascii(bytes: &'a [u8]) -> Result<Self, ImaError> {
        Self::read(bytes, ascii::entries)
    }

    fn read(
        bytes: &'a [u8],
        entries: impl FnOnce(&'a [u8]) -> Result<Vec<Entry<'a>>, ImaError>,
    ) -> Result<Self, ImaError> {
        if bytes.len() > MAX_BYTES {
            return Err(ImaError::TooLarge(bytes.len()));
        }
        Ok(Self { entries: entries(bytes)? })
    }

    /// The entries in the order in which they were measured.
    pub fn entries(&self) -> &[Entry<'a>] {
        &self.entries
    }

    /// How many entries are violations: files that were written while they were measured.
    pub fn violations(&self) -> usize {
        self.entries.iter().filter(|entry| entry.is_violation()).count()
    }
}

impl Entry<'_> {
    /// Whether the kernel could not measure the file, because somebody was writing to it.
    pub fn is_violation(&self) -> bool {
        self.template_digest == [0; TEMPLATE_DIGEST_SIZE]
    }

    /// The template data: what each bank's digest of this entry is the hash of.
    pub fn template_data(&self) -> &[u8] {
        &self.data
    }

    /// What was measured: mostly a path, without terminator. Bytes, for Linux allows any in a path.
    pub fn name(&self) -> &[u8] {
        template::split(self.template, &self.data).map_or(&[], |fields| fields.name)
    }

    /// The name for people.
    pub fn name_lossy(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.name())
    }

    /// The digest of what was measured.
    pub fn digest(&self) -> FileDigest<'_> {
        template::split(self.template, &self.data).map_or(FileDigest::default(), |fields| fields.digest)
    }
}

#[cfg(test)]
pub(crate) mod list_builder;
#[cfg(test)]
mod tests;
