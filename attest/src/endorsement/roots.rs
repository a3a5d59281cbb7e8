//! The TPM vendors' certificates that an operator trusts.

use std::collections::BTreeSet;

use thiserror::Error;

use super::certificate::{CertificateError, ParsedCertificate};
use super::revocation::{Crl, CrlError, Revocations};
use crate::pem;

/// The directory, among the roots, whose certificates are trusted whoever issued them.
pub const ANCHORS: &str = "anchors";

/// A file's name and its content, or why it could not be read.
pub type RootFile = (String, Result<Vec<u8>, String>);

/// What among the roots cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{file}: number {number} in it: {problem}; remove the file or replace it by certificates or revocation lists in PEM or DER"
)]
pub struct RootsError {
    /// The file's name.
    pub file: String,
    /// Which of the certificates or lists in the file, counted from 1.
    pub number: usize,
    /// What is wrong.
    pub problem: RootsProblem,
}

/// What is wrong with a file among the roots.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RootsProblem {
    /// The file could not be read.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// A PEM block without an end, or whose content is not base64.
    #[error("the PEM block has no end or is not base64")]
    Pem,
    /// Not a certificate that we read.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Not a revocation list that we read.
    #[error(transparent)]
    Crl(#[from] CrlError),
}

/// Trusted roots, the intermediates that the operator put with them, and what was revoked. Roots are the certificates that
/// name themselves as issuer; an intermediate proves nothing without its root, unless the operator made it an anchor.
#[derive(Clone, Debug, Default)]
pub struct EkRoots {
    roots: Vec<ParsedCertificate>,
    anchors: Vec<ParsedCertificate>,
    pub(super) intermediates: Vec<ParsedCertificate>,
    pub(super) revocations: Revocations,
    without_usage: BTreeSet<[u8; 32]>,
    skipped: Vec<RootsError>,
}

impl EkRoots {
    /// Takes the files of a directory, by name and content: certificates and revocation lists, in DER, or in PEM with one or
    /// more in a file. See [`EkRoots::from_files`], which this is without anchors.
    pub fn from_dir_files<N: AsRef<str>, B: AsRef<[u8]>>(
        files: impl IntoIterator<Item = (N, B)>,
    ) -> Result<Self, RootsError> {
        let files = files.into_iter().map(|(name, content)| (name.as_ref().to_owned(), Ok(content.as_ref().to_vec())));
        Self::from_files(files, [])
    }

    /// Takes the files of a directory, and those of its subdirectory [`ANCHORS`]: of the latter every certificate ends a
    /// chain, whether it is a root or not, so that an operator can trust one authority of a vendor and not the others.
    ///
    /// What is no certificate is skipped and told by [`EkRoots::warnings`]: one bad file does not take away the roots of the
    /// other vendors.
    ///
    /// # Errors
    /// If something was skipped and no root is left. If what cannot be read may be a revocation list: what it revokes would
    /// be accepted.
    pub fn from_files(
        files: impl IntoIterator<Item = RootFile>,
        anchors: impl IntoIterator<Item = RootFile>,
    ) -> Result<Self, RootsError> {
        let mut all = Self::default();
        for (name, content) in files {
            for parsed in all.read(&name, content)? {
                if parsed.is_self_issued() { &mut all.roots } else { &mut all.intermediates }.push(parsed);
            }
        }
        for (name, content) in anchors {
            let parsed = all.read(&name, content)?;
            all.anchors.extend(parsed);
        }
        match all.skipped.first() {
            Some(skipped) if all.root_count() == 0 => Err(skipped.clone()),
            _ => Ok(all),
        }
    }

    /// Takes the revocation lists of a file. Returns its certificates.
    fn read(&mut self, name: &str, content: Result<Vec<u8>, String>) -> Result<Vec<ParsedCertificate>, RootsError> {
        let told = |(index, problem): (usize, RootsProblem)| RootsError {
            file: name.to_owned(),
            number: index.saturating_add(1),
            problem,
        };
        let content = match content {
            Ok(content) => content,
            Err(problem) => {
                let problem = told((0, RootsProblem::Unreadable(problem)));
                if is_named_as_list(name) {
                    return Err(problem);
                }
                self.skipped.push(problem);
                return Ok(Vec::new());
            }
        };
        let (certificates, lists) = (pem::blocks(&content, "CERTIFICATE"), pem::blocks(&content, "X509 CRL"));
        for (index, block) in lists.iter().enumerate() {
            let der = block.as_ref().map_err(|_| told((index, RootsProblem::Pem)))?;
            let list = Crl::parse(der, name).map_err(|error| told((index, error.into())))?;
            self.revocations.push(list);
        }
        let certificates = match (certificates.is_empty() && lists.is_empty(), Crl::parse(&content, name)) {
            (false, _) => certificates,
            (true, Ok(list)) => {
                self.revocations.push(list);
                return Ok(Vec::new());
            }
            (true, Err(error)) if is_named_as_list(name) || begins_as_list(&content) => {
                return Err(told((0, error.into())));
            }
            (true, Err(_)) => vec![Ok(content)],
        };
        let mut found = Vec::new();
        for (index, block) in certificates.into_iter().enumerate() {
            let parsed = block.map_err(|_| RootsProblem::Pem);
            match parsed.and_then(|der| ParsedCertificate::parse(&der).map_err(RootsProblem::from)) {
                Ok(parsed) => found.push(parsed),
                Err(problem) => self.skipped.push(told((index, problem))),
            }
        }
        Ok(found)
    }

    /// All certificates that end a chain: roots and anchors.
    pub(super) fn anchors(&self) -> impl Iterator<Item = &ParsedCertificate> + Clone {
        self.roots.iter().chain(&self.anchors)
    }

    /// All authorities: roots, anchors and intermediates.
    pub(super) fn authorities(&self) -> impl Iterator<Item = &ParsedCertificate> + Clone {
        self.anchors().chain(&self.intermediates)
    }

    /// The same roots, of which `revocations` took back some, or some of what they vouch for.
    #[must_use]
    pub fn with_revocations(mut self, revocations: Revocations) -> Self {
        self.revocations.merge(revocations);
        self
    }

    /// The same roots, of which these (by the SHA-256 of the certificate) may vouch for endorsement keys whose certificates
    /// have no extended key usage. Returns the fingerprints that are of none of the roots and anchors as an error: whoever
    /// mistyped one should know before a host is denied.
    pub fn allow_missing_usage(mut self, fingerprints: &[[u8; 32]]) -> Result<Self, Vec<[u8; 32]>> {
        let unknown = |one: &&[u8; 32]| self.anchors().all(|root| root.fingerprint() != **one);
        let unknown: Vec<_> = fingerprints.iter().filter(unknown).copied().collect();
        if !unknown.is_empty() {
            return Err(unknown);
        }
        self.without_usage.extend(fingerprints);
        Ok(self)
    }

    /// Whether the operator lets this root vouch for certificates without an extended key usage.
    pub(super) fn takes_without_usage(&self, root: &ParsedCertificate) -> bool {
        self.without_usage.contains(&root.fingerprint())
    }

    /// What was revoked, in lists among the roots or by [`EkRoots::with_revocations`].
    #[must_use]
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// How many certificates end a chain; with none, no certificate is trusted.
    #[must_use]
    pub fn root_count(&self) -> usize {
        self.anchors().count()
    }

    /// What was skipped because it is no certificate.
    #[must_use]
    pub fn skipped(&self) -> &[RootsError] {
        &self.skipped
    }

    /// What an operator should know, in words: files that were skipped, revocation lists of no configured authority, and lists
    /// that do not count beside others of their authority.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let skipped = self.skipped.iter().map(|error| format!("skipped {error}"));
        let unmatched = self.unmatched_lists().into_iter();
        let unmatched = unmatched
            .map(|issuer| format!("the revocation list of {issuer:?} was not issued by a configured authority"));
        skipped.chain(unmatched).chain(self.idle_lists()).collect()
    }
}

/// Whether a name says that the file may be a revocation list: `vendor.crl`, `vendor-crl.pem`.
fn is_named_as_list(name: &str) -> bool {
    name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase().contains("crl")
}

/// Whether these bytes begin as a revocation list in DER does: a sequence that begins with a sequence that begins with a
/// version number or, where there is none, with an algorithm. A certificate's begins with its tagged version.
fn begins_as_list(content: &[u8]) -> bool {
    const INTEGER: u8 = 0x02;
    const SEQUENCE: u8 = 0x30;
    inside(content).and_then(inside).is_some_and(|first| matches!(first.first(), Some(&(INTEGER | SEQUENCE))))
}

/// What follows the tag and the length of a sequence, however long that is said to be.
fn inside(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.strip_prefix(&[0x30])?.split_first()?;
    rest.get(usize::from(length.checked_sub(0x80).unwrap_or(0))..)
}

/// The DER of every certificate in a file: PEM with one or more, or else the file itself. Not yet read as certificates.
pub fn pem_certificates(content: &[u8]) -> Result<Vec<Vec<u8>>, RootsProblem> {
    let blocks = pem::blocks(content, "CERTIFICATE");
    if blocks.is_empty() {
        return Ok(vec![content.to_vec()]);
    }
    blocks.into_iter().map(|block| block.map_err(|_| RootsProblem::Pem)).collect()
}
