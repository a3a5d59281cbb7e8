//! IMA lists: what the kernel measured after boot, entry by entry, into PCR 10.
//!
//! Linux shows the list in two forms, `binary_runtime_measurements` and `ascii_runtime_measurements`. Both are read
//! here, strictly: what cannot be read is an error that says where. A list proves nothing by itself: entries may be
//! believed only as far as [`ImaList::position_of`] finds the quoted PCR 10, for that is where the TPM's word ends.
//! Nothing is copied for an entry: a list is walked over as often as it is asked.
//!
//! Each entry's template data hashes to its template digest. Since Linux 5.8 every bank is extended with its own hash of
//! the template data ([`ExtendRule::Digest`]), but only if the kernel had that hash at hand when IMA started. Banks
//! for which it had not, and all banks of older kernels, get the SHA-1 digest padded with zeros
//! ([`ExtendRule::PaddedSha1`], [`ExtendRule::PaddedThroughout`]), which is worth no more than SHA-1.

mod appended;
mod ascii;
mod binary;
mod checks;
mod keyring;
mod replay;
mod signature;
mod template;

use std::borrow::Cow;

use thiserror::Error;

use binary::Reader;
pub(crate) use checks::{Checks, GoodSignatures};
pub use keyring::{Keyring, KeyringError};
pub(crate) use replay::Lane;
pub use replay::{ExtendRule, ImaState, TemplateHash};
pub use signature::SignatureProblem;
pub use template::{Content, Field, FileDigest, Template};

use crate::key::Bank;

/// The PCR that IMA extends.
pub const PCR: u8 = 10;

/// Longest list that is read, in bytes.
pub const MAX_BYTES: usize = 256 << 20;

/// The name of the first entry, which ties the list to the boot: its digest is that of the PCRs 0 to 9 (or 0 to 7).
pub const BOOT_AGGREGATE: &[u8] = b"boot_aggregate";

/// A list of measurements, read and found well-formed. Nothing in it is believed yet.
#[derive(Clone, Debug)]
pub struct ImaList<'a> {
    /// The binary form.
    bytes: Cow<'a, [u8]>,
    hash: TemplateHash,
    count: usize,
    violations: usize,
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Its place in the list, from 1.
    pub number: u64,
    /// The PCR it says it extends.
    pub pcr: u32,
    /// What the entry says its template data hashes to; zeros for a violation.
    pub template_digest: &'a [u8],
    /// How the template data is laid out.
    pub template: Template<'a>,
    /// The template data as it is listed.
    data: &'a [u8],
    hash: TemplateHash,
}

/// The entries of a list, in the order in which they were measured.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    reader: Reader<'a>,
    left: usize,
}

/// Why bytes are not an IMA list.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
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
    /// The list has fewer entries than were asked for.
    #[error("the list has {there} entries, not {wanted}")]
    TooFew {
        /// How many it has.
        there: u64,
        /// How many there should be.
        wanted: u64,
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

/// The list without its first `entries`: what a host sends that was judged so far.
///
/// # Errors
/// If it has fewer, or cannot be read so far.
pub fn after(binary: &[u8], entries: u64) -> Result<&[u8], ImaError> {
    if binary.len() > MAX_BYTES {
        return Err(ImaError::TooLarge(binary.len()));
    }
    let mut reader = Reader::new(binary, binary::first_guess(binary), 0);
    for there in 0..entries {
        reader.entry().ok_or(ImaError::TooFew { there, wanted: entries })??;
    }
    Ok(reader.rest())
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
        if bytes.len() > MAX_BYTES {
            return Err(ImaError::TooLarge(bytes.len()));
        }
        Self::read(Cow::Borrowed(bytes))
    }

    /// Reads `ascii_runtime_measurements`.
    ///
    /// # Errors
    /// Anything that Linux would not write.
    pub fn parse_ascii(bytes: &'a [u8]) -> Result<Self, ImaError> {
        if bytes.len() > MAX_BYTES {
            return Err(ImaError::TooLarge(bytes.len()));
        }
        Self::read(Cow::Owned(ascii::to_binary(bytes)?))
    }

    fn read(bytes: Cow<'a, [u8]>) -> Result<Self, ImaError> {
        let mut hash = binary::first_guess(&bytes);
        let mut reader = Reader::new(&bytes, hash, 0);
        let (mut count, mut violations, mut known) = (0_usize, 0_usize, false);
        while let Some(entry) = reader.entry() {
            let entry = entry?;
            let is_violation = entry.is_violation();
            template::split(&entry.template, entry.data, is_violation)
                .map_err(|what| ImaError::Field { entry: entry.number, what })?;
            if !is_violation && !known {
                (hash, known) = (entry.guess(), true);
            }
            count = count.saturating_add(1);
            violations = violations.saturating_add(usize::from(is_violation));
        }
        Ok(Self { bytes, hash, count, violations })
    }

    /// The entries in the order in which they were measured.
    pub fn entries(&self) -> Entries<'_> {
        self.first_entries(self.count, 0)
    }

    /// The first so many entries, numbered as those behind `before` others.
    pub(crate) fn first_entries(&self, count: usize, before: u64) -> Entries<'_> {
        Entries { reader: Reader::new(&self.bytes, self.hash, before), left: count.min(self.count) }
    }

    /// How many entries there are.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether nothing was measured.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many entries are violations: files that were written while they were measured.
    pub const fn violations(&self) -> usize {
        self.violations
    }

    /// What the list's template digests are, as far as its first entry that is no violation shows that.
    pub const fn template_hash(&self) -> TemplateHash {
        self.hash
    }
}

impl Entries<'_> {
    /// Whether none is left.
    pub const fn is_empty(&self) -> bool {
        self.left == 0
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        self.left = self.left.checked_sub(1)?;
        // Every entry was read before.
        self.reader.entry()?.ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Entries<'_> {}

impl<'a> Entry<'a> {
    /// Whether the kernel could not measure the file, because somebody was writing to it.
    pub fn is_violation(&self) -> bool {
        self.template_digest.iter().all(|byte| *byte == 0)
    }

    /// The template data: what each bank's digest of this entry is the hash of.
    pub fn template_data(&self) -> Cow<'a, [u8]> {
        let mut padded = [0; template::OLD_NAME_SIZE + 20];
        match self.padded(&mut padded) {
            Some(()) => Cow::Owned(padded.to_vec()),
            None => Cow::Borrowed(self.data),
        }
    }

    /// What was measured, see [`Content::name`].
    pub fn name(&self) -> &'a [u8] {
        self.content().name
    }

    /// The name for people.
    pub fn name_lossy(&self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.name())
    }

    /// The digest of what was measured.
    pub fn digest(&self) -> FileDigest<'a> {
        self.content().digest
    }

    /// What its fields say, split anew at each call.
    pub fn content(&self) -> Content<'a> {
        // It was split before, when the list was read.
        template::split(&self.template, self.data, self.is_violation()).unwrap_or_default()
    }

    /// The template data of the oldest template as it is hashed: without the size of the name, which is padded instead.
    fn padded(&self, out: &mut [u8; template::OLD_NAME_SIZE + 20]) -> Option<()> {
        if !self.template.is_old() {
            return None;
        }
        let (digest, name) = self.data.split_at_checked(Bank::Sha1.digest_size())?;
        let name = name.get(4..)?;
        out.get_mut(..digest.len())?.copy_from_slice(digest);
        out.get_mut(digest.len()..digest.len().checked_add(name.len())?)?.copy_from_slice(name);
        Some(())
    }

    /// What the template digest is; if nothing, what its length says.
    fn guess(mut self) -> TemplateHash {
        let unknown = self.hash;
        let size = self.template_digest.len();
        for bank in Bank::ALL.into_iter().filter(|bank| bank.digest_size() == size) {
            for rule in [ExtendRule::Digest, ExtendRule::PaddedSha1] {
                self.hash = TemplateHash { bank, rule };
                if self.template_digest_holds() {
                    return self.hash;
                }
            }
        }
        unknown
    }
}

#[cfg(test)]
pub(crate) mod list_builder;
#[cfg(test)]
mod tests;
