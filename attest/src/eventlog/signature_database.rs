//! Secure Boot's databases as rules ask about them: certificates by fingerprint and subject, hashes to search in.

use core::fmt;
use std::borrow::Cow;

use super::signature_list::{OWNER_SIZE, signature_lists};
use super::subject;
use super::{Guid, Signature, SignatureListError, SignatureType};
use crate::key::{Bank, Digest};
use crate::work;

/// Most certificates that are named one by one, for people.
const MAX_NAMED: usize = 4;

/// What a certificate is called of which no subject can be read.
const UNREADABLE: &str = "unreadable certificate";

/// The entries of PK, KEK, db or dbx, or the one entry by which an image was verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SignatureDatabase {
    certificates: Vec<SignerCertificate>,
    sha256: Vec<[u8; 32]>,
    others: usize,
}

/// A certificate in one of Secure Boot's databases. Nothing has verified it: that it is in the database is what makes
/// it trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignerCertificate {
    /// SHA-256 of the certificate's DER.
    pub fingerprint: [u8; 32],
    /// Its subject's common name, or all of the subject if that has none; `None` if it cannot be read.
    pub subject: Option<String>,
    /// Who put it there; `None` where only the certificate was measured.
    pub owner: Option<Guid>,
}

impl SignatureDatabase {
    /// Reads a variable's content: lists of signatures.
    ///
    /// # Errors
    /// If the lists' sizes contradict each other.
    pub fn from_lists(content: &[u8]) -> Result<Self, SignatureListError> {
        let mut database = Self::default();
        for signature in signature_lists(content)? {
            database.add(&signature);
        }
        database.sha256.sort_unstable();
        Ok(database)
    }

    /// Reads the entry by which an image was verified: firmware measures it with its owner, shim measures a certificate
    /// alone.
    pub fn from_entry(content: &[u8]) -> Self {
        let mut database = Self::default();
        let (owner, entry) = match content.split_first_chunk::<OWNER_SIZE>() {
            // A certificate is a DER sequence of some length; no owner begins like one of a length that would fit.
            Some((owner, entry)) if !is_der_of_its_length(content) => (Some(Guid(*owner)), entry),
            _ => (None, content),
        };
        match <[u8; 32]>::try_from(entry) {
            Ok(digest) => database.sha256.push(digest),
            Err(_) if is_der_of_its_length(entry) => database.certificates.push(SignerCertificate::new(entry, owner)),
            Err(_) => database.others = 1,
        }
        database
    }

    fn add(&mut self, signature: &Signature<'_>) {
        match signature.kind {
            SignatureType::X509 => {
                self.certificates.push(SignerCertificate::new(signature.data, Some(signature.owner)));
            }
            SignatureType::Sha256 => match signature.data.try_into() {
                Ok(digest) => self.sha256.push(digest),
                Err(_) => self.others = self.others.saturating_add(1),
            },
            SignatureType::Other(_) => self.others = self.others.saturating_add(1),
        }
    }

    /// The certificates, in the order of the database.
    pub fn certificates(&self) -> &[SignerCertificate] {
        &self.certificates
    }

    /// Whether the SHA-256 digest of an image is listed.
    pub fn has_sha256(&self, digest: &[u8]) -> bool {
        <[u8; 32]>::try_from(digest).is_ok_and(|digest| self.sha256.binary_search(&digest).is_ok())
    }

    /// The listed SHA-256 digests of images, sorted.
    pub fn sha256(&self) -> &[[u8; 32]] {
        &self.sha256
    }

    /// How many entries are neither a certificate nor the SHA-256 digest of an image.
    pub const fn others(&self) -> usize {
        self.others
    }

    /// Whether there is no entry at all.
    pub fn is_empty(&self) -> bool {
        self.certificates.is_empty() && self.sha256.is_empty() && self.others == 0
    }
}

/// Lists of signatures in words, as [`SignatureDatabase`] shows itself; of the certificates only those are read that are
/// named.
pub(super) fn words_of(content: &[u8]) -> Result<String, SignatureListError> {
    let signatures = signature_lists(content)?;
    work::steps(signatures.len());
    let certificates = signatures.iter().filter(|signature| signature.kind == SignatureType::X509);
    let named = certificates.clone().take(MAX_NAMED).map(|signature| name_of(signature.data).into_owned()).collect();
    let count = certificates.count();
    Ok(words(named, count, signatures.len().saturating_sub(count)))
}

/// Certificates and other entries in words; the first certificates are named.
fn words(mut parts: Vec<String>, certificates: usize, others: usize) -> String {
    if certificates == 0 && others == 0 {
        return "empty".to_owned();
    }
    let more = certificates.saturating_sub(parts.len());
    if more > 0 {
        parts.push(format!("{more} more certificates"));
    }
    if others > 0 {
        parts.push(format!("{others} hashes"));
    }
    parts.join("; ")
}

fn name_of(certificate: &[u8]) -> Cow<'static, str> {
    subject::of_certificate(certificate).map_or(Cow::Borrowed(UNREADABLE), Cow::Owned)
}

impl SignerCertificate {
    fn new(der: &[u8], owner: Option<Guid>) -> Self {
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(Digest::hash(Bank::Sha256, der).as_slice().first_chunk::<32>().unwrap_or(&[0; 32]));
        Self { fingerprint, subject: subject::of_certificate(der), owner }
    }
}

/// Whether the bytes are one DER sequence from their first to their last.
fn is_der_of_its_length(bytes: &[u8]) -> bool {
    let (header, length) = match bytes {
        [0x30, 0x82, high, low, ..] => (4, usize::from(u16::from_be_bytes([*high, *low]))),
        [0x30, 0x81, length, ..] => (3, usize::from(*length)),
        [0x30, length @ 0..=0x7f, ..] => (2, usize::from(*length)),
        _ => return false,
    };
    bytes.len().checked_sub(header) == Some(length)
}

impl fmt::Display for SignerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.subject.as_deref().unwrap_or(UNREADABLE))
    }
}

/// For people: the certificates by their subjects, the other entries counted.
impl fmt::Display for SignatureDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.certificates.iter().take(MAX_NAMED).map(ToString::to_string).collect();
        f.write_str(&words(named, self.certificates.len(), self.sha256.len().saturating_add(self.others)))
    }
}
