//! Signatures of measured files: the extended attribute `security.ima` that templates with the field `sig` list, and
//! what was appended to the file (field `modsig`).
//!
//! The attribute is one byte of type, then version, hash algorithm, key id (4 bytes) and size (2 bytes, big-endian), and
//! then the signature: PKCS #1 v1.5 for RSA, DER for ECDSA. In version 2 it is of the file's digest; in version 3 of the
//! digest of type, algorithm and file's digest, so that the digest of fs-verity's tree cannot be taken for a file's.

use thiserror::Error;

use super::Entry;
use super::appended;
use super::checks::Checks;
use super::keyring::{KeyName, Keyring};
use super::template::{Content, FileDigest};
use crate::key::{Bank, Digest};

/// Type of the attribute: signature of a file's digest.
const FILE: u8 = 3;
/// Type of the attribute: EVM's signature of a file's attributes.
const EVM: u8 = 5;
/// Type of the attribute: signature of the digest of fs-verity's tree.
const VERITY: u8 = 6;

/// Why a measured file counts as signed by no key of a keyring.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SignatureProblem {
    /// The entry lists no signature.
    #[error("it has no signature")]
    Missing,
    /// The signature cannot be read.
    #[error("its signature is malformed: {0}")]
    Malformed(&'static str),
    /// A kind of signature that proves nothing here.
    #[error("its signature is not judged here: {0}")]
    Unsupported(&'static str),
    /// The keyring has not the key that the signature names.
    #[error("the keyring has no key {0}")]
    UnknownKey(String),
    /// No key of that id made it, or it is of something else.
    #[error("key {0} did not sign this content")]
    Invalid(String),
    /// So many others had to be checked before that this one is not. Those that were good are known the next time.
    #[error("its signature was not checked: too many of this list had to be")]
    TooMany,
}

impl Entry<'_> {
    /// Whether a key of the keyring signed the file whose digest this entry lists.
    ///
    /// # Errors
    /// Why it does not count as signed.
    pub fn signed_by(&self, keyring: &Keyring) -> Result<(), SignatureProblem> {
        self.content().signed_by(keyring, &mut Checks::default())
    }
}

impl Content<'_> {
    /// As [`Entry::signed_by`], with the checks that were made before.
    pub(crate) fn signed_by(&self, keyring: &Keyring, checks: &mut Checks<'_>) -> Result<(), SignatureProblem> {
        let attribute = match self.signature {
            [] => Err(SignatureProblem::Missing),
            signature => attribute_signed(signature, &self.digest, keyring, checks),
        };
        match (attribute, self.appended_digest) {
            (Err(problem), Some(digest)) => {
                let appended = appended::signed(self.appended_signature, &digest, keyring, checks);
                // What was wrong with a signature says more than that there was no other.
                appended.map_err(|other| if problem == SignatureProblem::Missing { other } else { problem })
            }
            (attribute, _) => attribute,
        }
    }
}

/// The file's digest and its hash, if signatures of it are judged.
pub(super) fn signable<'a>(digest: &FileDigest<'a>) -> Result<(Bank, &'a [u8]), SignatureProblem> {
    match digest.bank() {
        Some(bank @ (Bank::Sha256 | Bank::Sha384 | Bank::Sha512)) => Ok((bank, digest.digest)),
        Some(Bank::Sha1) => Err(SignatureProblem::Unsupported("it is of a SHA-1 digest, which can be forged")),
        _ => Err(SignatureProblem::Unsupported("the hash is not SHA-256, SHA-384 or SHA-512")),
    }
}

fn attribute_signed(
    attribute: &[u8],
    digest: &FileDigest<'_>,
    keyring: &Keyring,
    checks: &mut Checks<'_>,
) -> Result<(), SignatureProblem> {
    let (bank, of_file) = signable(digest)?;
    let Some(([kind, version, algorithm, id @ .., high, low], signature)) = attribute.split_first_chunk::<9>() else {
        return Err(SignatureProblem::Malformed("it is shorter than its header"));
    };
    match (*kind, digest.verity) {
        (FILE, false) | (VERITY, true) => {}
        (FILE, true) | (VERITY, false) => {
            return Err(SignatureProblem::Unsupported(
                "file's digest and signature differ in whether they are fs-verity's",
            ));
        }
        (EVM, _) => return Err(SignatureProblem::Unsupported("EVM signs a file's attributes, not its content")),
        _ => return Err(SignatureProblem::Malformed("its type is unknown")),
    }
    if usize::from(u16::from_be_bytes([*high, *low])) != signature.len() {
        return Err(SignatureProblem::Malformed("its size is another than it says"));
    }
    if number_of(bank) != Some(*algorithm) {
        return Err(SignatureProblem::Malformed("it is of another hash than the one that was measured"));
    }
    let signed = match (*version, *kind) {
        (2, FILE) => Digest::new(bank, of_file).ok_or(SignatureProblem::Malformed("the digest's length"))?,
        (3, _) => Digest::hash(bank, &[&[*kind, *algorithm], of_file].concat()),
        _ => return Err(SignatureProblem::Unsupported("only versions 2 and 3 are")),
    };
    let name = KeyName::Id(*id);
    let mut named = keyring.named(&name).peekable();
    if named.peek().is_none() {
        return Err(SignatureProblem::UnknownKey(hex::encode(id)));
    }
    // Four bytes are no identity: any of the keys that they name may have made it.
    for key in named {
        if checks.verify(key, bank, signed.as_slice(), signature)? {
            return Ok(());
        }
    }
    Err(SignatureProblem::Invalid(hex::encode(id)))
}

/// The kernel's number of the hash (`enum hash_algo`).
const fn number_of(bank: Bank) -> Option<u8> {
    match bank {
        Bank::Sha256 => Some(4),
        Bank::Sha384 => Some(5),
        Bank::Sha512 => Some(6),
        Bank::Sha1 | Bank::Sm3_256 => None,
    }
}
