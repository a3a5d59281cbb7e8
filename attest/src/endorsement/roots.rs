//! The TPM vendors' certificates that an operator trusts.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use super::certificate::{CertificateError, ParsedCertificate};

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Why a file among the roots cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{file}: certificate {number}: {problem}; remove the file or replace it by a certificate in PEM or DER")]
pub struct RootsError {
    /// The file's name.
    pub file: String,
    /// Which certificate of the file, counted from 1.
    pub number: usize,
    /// What is wrong.
    pub problem: RootsProblem,
}

/// What is wrong with a file among the roots.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RootsProblem {
    /// A PEM block without an end, or whose content is not base64.
    #[error("the PEM block has no end or is not base64")]
    Pem,
    /// Not a certificate that we read.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// Trusted roots, and the intermediates that the operator put beside them. Roots are the certificates that name themselves as
/// issuer; an intermediate proves nothing without its root.
#[derive(Clone, Debug, Default)]
pub struct EkRoots {
    pub(super) roots: Vec<ParsedCertificate>,
    pub(super) intermediates: Vec<ParsedCertificate>,
}

impl EkRoots {
    /// Takes the files of a directory, by name and content: DER, or PEM with one or more certificates.
    pub fn from_dir_files<N: AsRef<str>, B: AsRef<[u8]>>(
        files: impl IntoIterator<Item = (N, B)>,
    ) -> Result<Self, RootsError> {
        let mut all = Self::default();
        for (name, content) in files {
            let fail = |number, problem| RootsError { file: name.as_ref().to_owned(), number, problem };
            let certificates = certificates(content.as_ref()).map_err(|number| fail(number, RootsProblem::Pem))?;
            for (index, der) in certificates.iter().enumerate() {
                let parsed = ParsedCertificate::parse(der)
                    .map_err(|error| fail(index.saturating_add(1), RootsProblem::Certificate(error)))?;
                if parsed.is_self_issued() { &mut all.roots } else { &mut all.intermediates }.push(parsed);
            }
        }
        Ok(all)
    }

    /// How many roots there are; with none, no certificate is trusted.
    #[must_use]
    pub fn root_count(&self) -> usize {
        self.roots.len()
    }
}

/// The DER of every certificate in a file; `Err` is the number of the PEM block that cannot be read.
fn certificates(content: &[u8]) -> Result<Vec<Vec<u8>>, usize> {
    let text = match std::str::from_utf8(content) {
        Ok(text) if text.contains(BEGIN) => text,
        _ => return Ok(vec![content.to_vec()]),
    };
    let mut found = Vec::new();
    for block in text.split(BEGIN).skip(1) {
        let number = found.len().saturating_add(1);
        let (body, _) = block.split_once(END).ok_or(number)?;
        let body: String = body.split_ascii_whitespace().collect();
        found.push(STANDARD.decode(body).map_err(|_| number)?);
    }
    Ok(found)
}
