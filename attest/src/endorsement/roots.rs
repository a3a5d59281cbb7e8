//! The TPM vendors' certificates that an operator trusts.

use thiserror::Error;

use super::certificate::{CertificateError, ParsedCertificate};
use super::pem;
use super::revocation::{Crl, CrlError, Revocations};

/// Why a file among the roots cannot be used.
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

/// Trusted roots, the intermediates that the operator put beside them, and what was revoked. Roots are the certificates that
/// name themselves as issuer; an intermediate proves nothing without its root.
#[derive(Clone, Debug, Default)]
pub struct EkRoots {
    pub(super) roots: Vec<ParsedCertificate>,
    pub(super) intermediates: Vec<ParsedCertificate>,
    pub(super) revocations: Revocations,
}

impl EkRoots {
    /// Takes the files of a directory, by name and content: certificates and revocation lists, in DER, or in PEM with one or
    /// more in a file.
    pub fn from_dir_files<N: AsRef<str>, B: AsRef<[u8]>>(
        files: impl IntoIterator<Item = (N, B)>,
    ) -> Result<Self, RootsError> {
        let mut all = Self::default();
        for (name, content) in files {
            all.add(content.as_ref()).map_err(|(number, problem)| {
                let file = name.as_ref().to_owned();
                RootsError { file, number, problem }
            })?;
        }
        Ok(all)
    }

    fn add(&mut self, content: &[u8]) -> Result<(), (usize, RootsProblem)> {
        let blocks = |label| pem::blocks(content, label).map_err(|bad| (bad.0, RootsProblem::Pem));
        let (certificates, lists) = (blocks("CERTIFICATE")?, blocks("X509 CRL")?);
        for (index, der) in lists.iter().enumerate() {
            let list = Crl::parse(der).map_err(|error| (index.saturating_add(1), error.into()))?;
            self.revocations.push(list);
        }
        for (index, der) in certificates.iter().enumerate() {
            let parsed = ParsedCertificate::parse(der).map_err(|error| (index.saturating_add(1), error.into()))?;
            self.add_certificate(parsed);
        }
        if certificates.is_empty() && lists.is_empty() {
            match (ParsedCertificate::parse(content), Crl::parse(content)) {
                (Ok(parsed), _) => self.add_certificate(parsed),
                (Err(_), Ok(list)) => self.revocations.push(list),
                (Err(error), Err(_)) => return Err((1, error.into())),
            }
        }
        Ok(())
    }

    fn add_certificate(&mut self, parsed: ParsedCertificate) {
        if parsed.is_self_issued() { &mut self.roots } else { &mut self.intermediates }.push(parsed);
    }

    /// All authorities: roots and intermediates.
    pub(super) fn authorities(&self) -> impl Iterator<Item = &ParsedCertificate> + Clone {
        self.roots.iter().chain(&self.intermediates)
    }

    /// The same roots, of which `revocations` took back some, or some of what they vouch for.
    #[must_use]
    pub fn with_revocations(mut self, revocations: Revocations) -> Self {
        self.revocations.merge(revocations);
        self
    }

    /// What was revoked, in lists beside the roots or by [`EkRoots::with_revocations`].
    #[must_use]
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// How many roots there are; with none, no certificate is trusted.
    #[must_use]
    pub fn root_count(&self) -> usize {
        self.roots.len()
    }
}

/// The DER of every certificate in a file: PEM with one or more, or else the file itself. Not yet read as certificates.
pub fn pem_certificates(content: &[u8]) -> Result<Vec<Vec<u8>>, RootsProblem> {
    let blocks = pem::blocks(content, "CERTIFICATE").map_err(|_| RootsProblem::Pem)?;
    Ok(if blocks.is_empty() { vec![content.to_vec()] } else { blocks })
}
