//! The attestation key of an enrolled host, and what such a key must be.

use super::HIERARCHY_ENDORSEMENT;
use super::bank::Bank;
use super::public::{Attributes, Curve, KeyError, KeyKind, PublicArea, Scheme};
use super::signature::{Sha1, Signature, SignatureError, VerifyingKey, scheme_name};
use crate::reason::{Denial, Reason, ReasonCode};

/// An attestation key whose signatures mean that a TPM made what they sign, under a known endorsement key.
///
/// It can be made only of a key that is restricted to sign the TPM's own structures, cannot leave its TPM, and whose
/// secret the TPM made; and its qualified name is computed from the endorsement key, so that a quote by it says which
/// TPM it comes from and gives true counters (protocol rule 3).
#[derive(Clone, Debug)]
pub struct EnrolledAk {
    public: PublicArea,
    name: Vec<u8>,
    qualified_name: Option<Vec<u8>>,
    ek: Option<[u8; 32]>,
    ek_certified: bool,
    verifying: VerifyingKey,
}

impl EnrolledAk {
    /// Checks both public areas (TPMT_PUBLIC) and computes the names. Gives every reason against the pair.
    pub fn new(ak_public: &[u8], ek_public: &[u8]) -> Result<Self, Denial> {
        let mut reasons = Vec::new();
        let ek = PublicArea::parse(ek_public)
            .map_err(|error| reasons.push(Reason::new(ReasonCode::EkMalformed).found(error.to_string())))
            .ok();
        let ak = PublicArea::parse(ak_public).map_err(|error| reasons.push(unreadable(&error))).ok();
        let verifying = ak.as_ref().and_then(|ak| check_attestation_key(ak, Sha1::Refused, &mut reasons));
        let fingerprint = ek.as_ref().and_then(|ek| match ek.fingerprint() {
            Ok(fingerprint) => Some(fingerprint),
            Err(error) => {
                reasons.push(Reason::new(ReasonCode::EkWeakKey).found(error.to_string()));
                None
            }
        });
        match (ak, ek, verifying) {
            (Some(public), Some(ek), Some(verifying)) if reasons.is_empty() => {
                let name = public.name();
                let qualified_name = public.qualified_name(&ek.qualified_name_in_hierarchy(HIERARCHY_ENDORSEMENT));
                Ok(Self {
                    public,
                    name,
                    qualified_name: Some(qualified_name),
                    ek: fingerprint,
                    ek_certified: false,
                    verifying,
                })
            }
            _ => Err(reasons.into()),
        }
    }

    /// Checks a public area (TPMT_PUBLIC) whose parent nobody vouches for. Its quotes are those of some TPM and no other's;
    /// but a key outside the endorsement hierarchy gives obfuscated counters, so in which boot they were made is unproved.
    pub fn without_parent(ak_public: &[u8]) -> Result<Self, Denial> {
        let public = PublicArea::parse(ak_public).map_err(|error| unreadable(&error))?;
        let mut reasons = Vec::new();
        match check_attestation_key(&public, Sha1::Refused, &mut reasons) {
            Some(verifying) if reasons.is_empty() => {
                Ok(Self { name: public.name(), public, qualified_name: None, ek: None, ek_certified: false, verifying })
            }
            _ => Err(reasons.into()),
        }
    }

    /// Says whether its endorsement key has a certificate that leads to a configured vendor's root, as
    /// [`EndorsementKey::is_certified`](crate::endorsement::EndorsementKey::is_certified) found at enrolment. Without this,
    /// and without a known endorsement key, it has none. A policy can require one.
    #[must_use]
    pub fn with_certified_ek(self, certified: bool) -> Self {
        Self { ek_certified: certified && self.qualified_name.is_some(), ..self }
    }

    /// Whether its endorsement key has a certificate, see [`EnrolledAk::with_certified_ek`].
    #[must_use]
    pub const fn is_ek_certified(&self) -> bool {
        self.ek_certified
    }

    /// The key's name.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// The key's qualified name: what its quotes give as qualifiedSigner. `None` if its parent is unknown.
    #[must_use]
    pub fn qualified_name(&self) -> Option<&[u8]> {
        self.qualified_name.as_deref()
    }

    /// The fingerprint of the endorsement key: SHA-256 of its SubjectPublicKeyInfo (DER). `None` if the parent is unknown.
    #[must_use]
    pub const fn ek(&self) -> Option<[u8; 32]> {
        self.ek
    }

    /// The public area.
    #[must_use]
    pub fn public(&self) -> &PublicArea {
        &self.public
    }

    /// The hash of the key's scheme, which is also what a quote's pcrDigest is made with.
    #[must_use]
    pub fn scheme_hash(&self) -> Bank {
        self.verifying.hash()
    }

    /// Checks a signature (TPMT_SIGNATURE) of `message` by this key, in the key's own scheme and hash.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
        self.verifying.verify(&Signature::parse(signature)?, message)
    }
}

/// What an attestation key must be, whoever its parent is.
pub(super) fn check_attestation_key(ak: &PublicArea, sha1: Sha1, reasons: &mut Vec<Reason>) -> Option<VerifyingKey> {
    check_attributes(ak, reasons);
    check_name_algorithm(ak, reasons);
    reasons.extend(attestation_key_weakness(ak.kind()));
    check_scheme(ak, sha1, reasons)
}

pub(super) fn unreadable(error: &KeyError) -> Reason {
    let code = match error {
        KeyError::NameAlgorithm(_) => ReasonCode::AkNameAlgorithm,
        KeyError::Kind(_) => ReasonCode::AkWeakKey,
        _ => ReasonCode::AkMalformed,
    };
    Reason::new(code).found(error.to_string())
}

fn check_attributes(ak: &PublicArea, reasons: &mut Vec<Reason>) {
    let attributes = ak.attributes();
    let mut refuse = |code| {
        reasons.push(Reason::new(code).event("attestation key attributes").found(format!("{attributes:?}")));
    };
    // Unrestricted keys sign whatever they are given, also forged quotes.
    if !attributes.has(Attributes::RESTRICTED) {
        refuse(ReasonCode::AkNotRestricted);
    }
    if !attributes.has(Attributes::SIGN) || attributes.has(Attributes::X509_SIGN) {
        refuse(ReasonCode::AkNotSigning);
    }
    if attributes.has(Attributes::DECRYPT) {
        refuse(ReasonCode::AkDecrypts);
    }
    if !attributes.has(Attributes::FIXED_TPM) {
        refuse(ReasonCode::AkNotFixedTpm);
    }
    if !attributes.has(Attributes::FIXED_PARENT) {
        refuse(ReasonCode::AkNotFixedParent);
    }
    // A secret from outside exists outside.
    if !attributes.has(Attributes::SENSITIVE_DATA_ORIGIN) {
        refuse(ReasonCode::AkForeignSecret);
    }
}

fn check_name_algorithm(ak: &PublicArea, reasons: &mut Vec<Reason>) {
    if ak.name_alg() == Bank::Sha1 {
        reasons.push(Reason::new(ReasonCode::AkNameAlgorithm).found("sha1"));
    }
}

/// Attestation keys may also be of SM2's curve; that such a key signs with SM2, and no other key does, is for its scheme.
pub(super) fn attestation_key_weakness(key: &KeyKind) -> Option<Reason> {
    let weak = match key {
        KeyKind::Rsa { bits, exponent, .. } => rsa_weakness(*bits, *exponent),
        KeyKind::Ecc { curve: Curve::Sm2P256, .. } => None,
        KeyKind::Ecc { curve, .. } => curve_weakness(*curve),
    };
    weak.map(|found| Reason::new(ReasonCode::AkWeakKey).found(found))
}

/// Why an RSA key of this size and exponent is refused.
pub(crate) fn rsa_weakness(bits: u16, exponent: u32) -> Option<String> {
    if !matches!(bits, 2048 | 3072 | 4096) {
        return Some(format!("RSA of {bits} bits; 2048, 3072 and 4096 are accepted"));
    }
    // TPMs accept only odd primes above 2^16; a smaller or even exponent was chosen to be forged with.
    if exponent <= 65_536 || exponent.is_multiple_of(2) {
        return Some(format!("RSA exponent {exponent}; 65537 is usual, odd ones above 65536 are accepted"));
    }
    None
}

/// Why a key on this curve is refused.
pub(crate) fn curve_weakness(curve: Curve) -> Option<String> {
    match curve {
        Curve::P256 | Curve::P384 | Curve::P521 => None,
        other => Some(format!("curve {other:?}; P-256, P-384 and P-521 are accepted")),
    }
}

/// The key must be bound to one signing scheme: a restricted key always is, and the scheme's hash must be sound.
fn check_scheme(ak: &PublicArea, sha1: Sha1, reasons: &mut Vec<Reason>) -> Option<VerifyingKey> {
    let mut refuse = |found: String| {
        reasons.push(Reason::new(ReasonCode::AkScheme).found(found));
        None
    };
    match ak.scheme() {
        Scheme::Sign(kind, Some(hash)) if hash == Bank::Sha1 && sha1 == Sha1::Refused => {
            refuse(scheme_name(kind, hash))
        }
        Scheme::Sign(kind, Some(hash)) => match VerifyingKey::new(ak.kind(), kind, hash, sha1) {
            Ok(key) => Some(key),
            Err(SignatureError::Key(error)) => {
                reasons.push(Reason::new(ReasonCode::AkWeakKey).found(error));
                None
            }
            Err(error) => refuse(error.to_string()),
        },
        Scheme::Sign(kind, None) => refuse(format!("{kind:?} with an unknown hash")),
        Scheme::Any => refuse("no scheme".to_owned()),
        Scheme::Other(id) => refuse(format!("{id:#06x}, which does not sign")),
    }
}
