//! Endorsement keys: what a TPM's identity must look like, whether its vendor vouches for it, and the challenge that proves
//! an attestation key to be in the same TPM.
//!
//! A chain to a vendor proves a TPM, not a host: whether this TPM is one of ours is the operator's word (protocol rule 1).

mod certificate;
mod chain;
mod credential;
mod distinguished_name;
mod ek_certificate;
mod enrolment;
mod fingerprint;
mod revocation;
mod roots;
mod verifier_keys;

use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

use crate::key::{
    Attributes, Bank, KeyError, KeyKind, PublicArea, Symmetric, curve_weakness, encode_spki, rsa_weakness,
};
use crate::reason::{Denial, Reason, ReasonCode};

pub use certificate::CertificateError;
pub use credential::{Credential, CredentialError, make_credential};
pub use ek_certificate::EkCertificate;
#[cfg(feature = "tpm")]
pub(crate) use ek_certificate::is_certificate_for;
pub use enrolment::{ENROLMENT_SCHEMA, ENROLMENT_TYP, EnrolmentError, EnrolmentStatement};
pub use fingerprint::{CertificateFingerprint, FingerprintError};
pub use revocation::{CrlError, Revocations, RevocationsError};
pub use roots::{ANCHORS, EkRoots, RootFile, RootsError, RootsProblem, pem_certificates};
pub use verifier_keys::{JwsError, VerifierKeys};

/// An endorsement key that was checked; made only by [`EndorsementKey::check`].
#[derive(Clone, Debug)]
pub struct EndorsementKey {
    public: PublicArea,
    fingerprint: [u8; 32],
    root: Option<String>,
}

impl EndorsementKey {
    /// Checks an endorsement key (TPMT_PUBLIC) and, if there is one, its certificate (DER, padding of an NV index allowed)
    /// at the time `now`, with intermediates (DER) that the host sent. Gives every reason against it.
    ///
    /// A TPM without a certificate passes, and [`EndorsementKey::is_certified`] says no: whether that is enough is for
    /// the operator, who admits every TPM by its fingerprint anyway.
    pub fn check(
        ek_public: &[u8],
        certificate: Option<&[u8]>,
        intermediates: &[&[u8]],
        roots: &EkRoots,
        now: SystemTime,
    ) -> Result<Self, Denial> {
        let public = PublicArea::parse(ek_public)
            .map_err(|error| Reason::new(ReasonCode::EkMalformed).found(error.to_string()))?;
        let mut reasons = check_key(&public);
        let root =
            certificate.and_then(|der| match ek_certificate::check_for(&public, der, intermediates, roots, now) {
                Ok(root) => Some(root),
                Err(bad) => {
                    reasons.extend(bad);
                    None
                }
            });
        let fingerprint = fingerprint(&public);
        let is_named = reasons.iter().any(|reason| reason.code == ReasonCode::EkRevoked);
        if !is_named && fingerprint.as_ref().is_ok_and(|fingerprint| roots.revocations().names_key(fingerprint)) {
            reasons.push(Reason::new(ReasonCode::EkRevoked).event("endorsement key").found("by the operator"));
        }
        match fingerprint {
            Ok(fingerprint) if reasons.is_empty() => Ok(Self { public, fingerprint, root }),
            Ok(_) => Err(reasons.into()),
            Err(reason) => {
                reasons.push(reason);
                Err(reasons.into())
            }
        }
    }

    /// SHA-256 of the key's DER SubjectPublicKeyInfo: what an operator admits a host by.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// The key's public area.
    #[must_use]
    pub fn public(&self) -> &PublicArea {
        &self.public
    }

    /// Whether a certificate led to a configured root.
    #[must_use]
    pub fn is_certified(&self) -> bool {
        self.root.is_some()
    }

    /// The name of the root that the certificate led to.
    #[must_use]
    pub fn root(&self) -> Option<&str> {
        self.root.as_deref()
    }
}

/// The fingerprint of an endorsement key: SHA-256 of its DER SubjectPublicKeyInfo.
fn fingerprint(public: &PublicArea) -> Result<[u8; 32], Reason> {
    public.fingerprint().map_err(|error| Reason::new(ReasonCode::EkWeakKey).found(error.to_string()))
}

fn fingerprint_of(key: &KeyKind) -> Result<[u8; 32], KeyError> {
    Ok(Sha256::digest(encode_spki(key)?).into())
}

/// Why an endorsement key of this kind is refused.
fn key_weakness(key: &KeyKind) -> Option<String> {
    match key {
        KeyKind::Rsa { bits, exponent, .. } => rsa_weakness(*bits, *exponent),
        KeyKind::Ecc { curve, .. } => curve_weakness(*curve),
    }
}

fn check_key(public: &PublicArea) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let attributes = public.attributes();
    let needed = Attributes::FIXED_TPM
        | Attributes::FIXED_PARENT
        | Attributes::SENSITIVE_DATA_ORIGIN
        | Attributes::RESTRICTED
        | Attributes::DECRYPT;
    if !attributes.has(needed) || attributes.has(Attributes::SIGN) {
        reasons.push(
            Reason::new(ReasonCode::EkAttributes)
                .expected("fixedTPM, fixedParent, sensitiveDataOrigin, restricted, decrypt, not sign")
                .found(format!("{attributes:?}")),
        );
    }
    let name_alg = public.name_alg();
    let weak = [
        key_weakness(public.kind()),
        // Its name goes into the attestation key's qualified name, and its hash into the protection of credentials.
        matches!(name_alg, Bank::Sha1 | Bank::Sm3_256).then(|| format!("name algorithm {name_alg}")),
        (!matches!(public.symmetric(), Symmetric::AesCfb(128 | 256))).then(|| format!("{:?}", public.symmetric())),
    ];
    for found in weak.into_iter().flatten() {
        reasons.push(Reason::new(ReasonCode::EkWeakKey).found(found));
    }
    reasons
}
