//! A key that signed a quote, where nobody enrolled it: as far as it is known, it must be what an attestation key is.

use der::pem::PemLabel as _;
use spki::SubjectPublicKeyInfoRef;

use super::HIERARCHY_ENDORSEMENT;
use super::bank::Bank;
use super::enrolled::{attestation_key_weakness, check_attestation_key, unreadable};
use super::public::{KeyKind, PublicArea, SchemeKind};
use super::signature::{Sha1, Signature, SignatureError, VerifyingKey, scheme_name};
use crate::pem;
use crate::reason::{Denial, Reason, ReasonCode};

/// A key that quotes can be checked with: a public area, with or without its parent, or a bare public key.
///
/// Unlike an [`EnrolledAk`](super::EnrolledAk) it says nothing of whose TPM it is in; and keys bound to RSASSA with SHA-1,
/// as older machines have, are taken and named ([`QuotingKey::is_sha1`]).
#[derive(Clone, Debug)]
pub struct QuotingKey {
    known: Known,
}

#[derive(Clone, Debug)]
enum Known {
    /// All of it; with the qualified name, if the parent is known too.
    Area { public: Box<PublicArea>, verifying: VerifyingKey, qualified_name: Option<Vec<u8>> },
    /// The numbers only. What a TPM lets the key do is unknown, and so is the scheme that it is bound to.
    Bare(KeyKind),
}

impl QuotingKey {
    /// Reads a key as tools write it: TPM2B_PUBLIC, TPMT_PUBLIC, or SubjectPublicKeyInfo in PEM.
    pub fn parse(bytes: &[u8]) -> Result<Self, Denial> {
        match std::str::from_utf8(bytes) {
            Ok(text) if text.contains("-----BEGIN ") => Self::from_pem(text),
            _ => Self::from_public(PublicArea::parse_either(bytes).map_err(|error| unreadable(&error))?),
        }
    }

    /// Checks a public area. Gives every reason against it.
    pub fn from_public(public: PublicArea) -> Result<Self, Denial> {
        let mut reasons = Vec::new();
        match check_attestation_key(&public, Sha1::Legacy, &mut reasons) {
            Some(verifying) if reasons.is_empty() => {
                Ok(Self { known: Known::Area { public: Box::new(public), verifying, qualified_name: None } })
            }
            _ => Err(reasons.into()),
        }
    }

    /// Reads a SubjectPublicKeyInfo in PEM.
    pub fn from_pem(pem: &str) -> Result<Self, Denial> {
        let malformed = |found: String| Denial::from(Reason::new(ReasonCode::AkMalformed).found(found));
        let (label, spki) = pem::single(pem).map_err(|error| malformed(format!("PEM: {error}")))?;
        if label != SubjectPublicKeyInfoRef::PEM_LABEL {
            return Err(malformed(format!("a PEM of type {label:?}, not {:?}", SubjectPublicKeyInfoRef::PEM_LABEL)));
        }
        let kind = super::spki::decode(&spki).map_err(|error| malformed(error.to_string()))?;
        match attestation_key_weakness(&kind) {
            None => Ok(Self { known: Known::Bare(kind) }),
            Some(reason) => Err(reason.into()),
        }
    }

    /// The same key as a child of the endorsement key `ek` (a primary key of the endorsement hierarchy): its quotes must
    /// name it so. `None` for a bare key, which has no name.
    #[must_use]
    pub fn under(self, ek: &PublicArea) -> Option<Self> {
        let Known::Area { public, verifying, .. } = self.known else { return None };
        let qualified_name = Some(public.qualified_name(&ek.qualified_name_in_hierarchy(HIERARCHY_ENDORSEMENT)));
        Some(Self { known: Known::Area { public, verifying, qualified_name } })
    }

    /// The public area; `None` for a bare key: then nobody knows what its TPM lets it sign.
    #[must_use]
    pub fn public(&self) -> Option<&PublicArea> {
        match &self.known {
            Known::Area { public, .. } => Some(public),
            Known::Bare(_) => None,
        }
    }

    /// What its quotes give as qualifiedSigner, if the parent is known.
    #[must_use]
    pub fn qualified_name(&self) -> Option<&[u8]> {
        match &self.known {
            Known::Area { qualified_name, .. } => qualified_name.as_deref(),
            Known::Bare(_) => None,
        }
    }

    /// Whether it is bound to SHA-1. Collisions of SHA-1 are practical: its signatures prove little.
    #[must_use]
    pub fn is_sha1(&self) -> bool {
        matches!(&self.known, Known::Area { verifying, .. } if verifying.hash() == Bank::Sha1)
    }

    /// Checks a signature of `message`: a TPMT_SIGNATURE, or what `tpm2_quote -f plain` writes (RSA: the number; ECDSA: its
    /// DER). It must be in the key's own scheme and hash; by a bare key, in any that is sound. Gives the hash.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<Bank, SignatureError> {
        let parsed = match Signature::parse(signature) {
            Ok(parsed) => parsed,
            Err(malformed) => return self.verify_plain(message, signature, &malformed),
        };
        match &self.known {
            Known::Area { verifying, .. } => verifying.verify(&parsed, message)?,
            Known::Bare(key) => {
                VerifyingKey::new(key, parsed.kind(), parsed.hash(), Sha1::Refused)?.verify(&parsed, message)?;
            }
        }
        Ok(parsed.hash())
    }

    /// `malformed` says why it is no TPMT_SIGNATURE.
    fn verify_plain(
        &self,
        message: &[u8],
        signature: &[u8],
        malformed: &SignatureError,
    ) -> Result<Bank, SignatureError> {
        let possible = match &self.known {
            Known::Area { verifying, .. } => vec![verifying.clone()],
            Known::Bare(key) => [SchemeKind::RsaSsa, SchemeKind::RsaPss, SchemeKind::Ecdsa, SchemeKind::Sm2]
                .into_iter()
                .flat_map(|kind| Bank::ALL.map(|hash| (kind, hash)))
                .filter_map(|(kind, hash)| VerifyingKey::new(key, kind, hash, Sha1::Refused).ok())
                .collect(),
        };
        if let Some(verifying) = possible.iter().find(|key| key.verify_plain(signature, message).is_ok()) {
            return Ok(verifying.hash());
        }
        // What has the form of a signature and does not verify is no malformed one.
        if possible.iter().any(|key| key.is_plain(signature)) {
            return Err(SignatureError::Invalid);
        }
        // It says that it is a TPMT_SIGNATURE, of a hash that is not known.
        if matches!(malformed, SignatureError::Hash(_)) {
            return Err(malformed.clone());
        }
        Err(SignatureError::Unreadable {
            problem: malformed.to_string(),
            plain: possible.first().map(VerifyingKey::plain_form).unwrap_or_default(),
            bytes: signature.len(),
            begin: hex::encode(signature.get(..8).unwrap_or(signature)),
        })
    }

    /// The scheme that it is bound to, if that is known.
    #[must_use]
    pub fn scheme(&self) -> Option<String> {
        match &self.known {
            Known::Area { verifying, .. } => Some(scheme_name(verifying.kind(), verifying.hash())),
            Known::Bare(_) => None,
        }
    }
}
