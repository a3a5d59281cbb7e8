//! Endorsement keys: what a TPM's identity must look like, whether its vendor vouches for it, and the challenge that proves
//! an attestation key to be in the same TPM.
//!
//! A chain to a vendor proves a TPM, not a host: whether this TPM is one of ours is the operator's word (protocol rule 1).

mod certificate;
mod chain;
mod credential;
mod enrolment;
mod roots;
mod verifier_keys;

use std::cmp::Ordering;
use std::time::SystemTime;

use const_oid::ObjectIdentifier;
use const_oid::db::rfc5912::{ID_RSAES_OAEP, RSA_ENCRYPTION};
use sha2::{Digest as _, Sha256};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAltName};

use self::certificate::ParsedCertificate;
use crate::key::{Attributes, Bank, KeyKind, PublicArea, Symmetric, curve_weakness, rsa_weakness};
use crate::reason::{Reason, ReasonCode};

pub use certificate::CertificateError;
pub use credential::{Credential, CredentialError, make_credential};
pub use enrolment::{ENROLMENT_SCHEMA, ENROLMENT_TYP, EnrolmentError, EnrolmentStatement};
pub use roots::{EkRoots, RootsError, RootsProblem};
pub use verifier_keys::{JwsError, VerifierKeys};

/// tcg-kp-EKCertificate: the extended key usage of endorsement keys.
const EK_CERTIFICATE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.8.1");
/// Most intermediates that a host may send along.
const MAX_SENT: usize = 8;

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
    ) -> Result<Self, Vec<Reason>> {
        let public = PublicArea::parse(ek_public)
            .map_err(|error| vec![Reason::new(ReasonCode::EkMalformed).found(error.to_string())])?;
        let mut reasons = check_key(&public);
        let root = certificate.and_then(|der| match check_certificate(&public, der, intermediates, roots, now) {
            Ok(root) => Some(root),
            Err(bad) => {
                reasons.extend(bad);
                None
            }
        });
        match fingerprint(&public) {
            Ok(fingerprint) if reasons.is_empty() => Ok(Self { public, fingerprint, root }),
            Ok(_) => Err(reasons),
            Err(reason) => {
                reasons.push(reason);
                Err(reasons)
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
    let spki = public.spki_der().map_err(|error| Reason::new(ReasonCode::EkWeakKey).found(error.to_string()))?;
    Ok(Sha256::digest(&spki).into())
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
    let weakness = match public.kind() {
        KeyKind::Rsa { bits, exponent, .. } => rsa_weakness(*bits, *exponent),
        KeyKind::Ecc { curve, .. } => curve_weakness(*curve),
    };
    let name_alg = public.name_alg();
    let weak = [
        weakness,
        // Its name goes into the attestation key's qualified name, and its hash into the protection of credentials.
        matches!(name_alg, Bank::Sha1 | Bank::Sm3_256).then(|| format!("name algorithm {name_alg}")),
        (!matches!(public.symmetric(), Symmetric::AesCfb(128 | 256))).then(|| format!("{:?}", public.symmetric())),
    ];
    for found in weak.into_iter().flatten() {
        reasons.push(Reason::new(ReasonCode::EkWeakKey).found(found));
    }
    reasons
}

/// Checks the certificate itself and its chain; gives the root's name.
fn check_certificate(
    public: &PublicArea,
    der: &[u8],
    intermediates: &[&[u8]],
    roots: &EkRoots,
    now: SystemTime,
) -> Result<String, Vec<Reason>> {
    let malformed =
        |error: CertificateError| vec![Reason::new(ReasonCode::EkCertificateMalformed).found(error.to_string())];
    let leaf = ParsedCertificate::parse(der).map_err(malformed)?;
    if intermediates.len() > MAX_SENT {
        let found = format!("{} intermediates, {MAX_SENT} are read", intermediates.len());
        return Err(vec![Reason::new(ReasonCode::EkChainInvalid).found(found)]);
    }
    let sent: Vec<_> =
        intermediates.iter().map(|der| ParsedCertificate::parse(der)).collect::<Result<_, _>>().map_err(malformed)?;
    let mut reasons = check_leaf(&leaf, now);
    check_leaf_key(&leaf, public, &mut reasons);
    match chain::find_root(&leaf, &sent, roots, now) {
        Ok(root) if reasons.is_empty() => Ok(root),
        Ok(_) => Err(reasons),
        Err(bad) => {
            reasons.extend(bad);
            Err(reasons)
        }
    }
}

/// What the TCG EK Credential Profile (3.2) asks of the certificate, apart from its key.
fn check_leaf(leaf: &ParsedCertificate, now: SystemTime) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut refuse = |code, found: String| reasons.push(Reason::new(code).event("EK certificate").found(found));
    let tbs = leaf.certificate.tbs_certificate();
    match leaf.validity(now) {
        Ordering::Less => {
            refuse(ReasonCode::EkCertificateNotYetValid, format!("valid from {}", tbs.validity().not_before));
        }
        Ordering::Greater => {
            refuse(ReasonCode::EkCertificateExpired, format!("valid until {}", tbs.validity().not_after));
        }
        Ordering::Equal => {}
    }
    if let Some(oid) = leaf.unknown_critical() {
        refuse(ReasonCode::EkCertificateExtension, oid.to_string());
    }
    match tbs.get_extension::<BasicConstraints>() {
        Ok(None) => {}
        Ok(Some((_, constraints))) if !constraints.ca => {}
        Ok(Some(_)) => refuse(ReasonCode::EkCertificateCa, "CA:TRUE".to_owned()),
        Err(error) => refuse(ReasonCode::EkCertificateMalformed, format!("basic constraints: {error}")),
    }
    match tbs.get_extension::<ExtendedKeyUsage>() {
        Ok(Some((_, usage))) if usage.0.contains(&EK_CERTIFICATE) => {}
        Ok(Some((_, usage))) => {
            refuse(ReasonCode::EkCertificateExtendedKeyUsage, format!("{} other usages", usage.0.len()));
        }
        Ok(None) => refuse(ReasonCode::EkCertificateExtendedKeyUsage, "no extended key usage".to_owned()),
        Err(error) => refuse(ReasonCode::EkCertificateMalformed, format!("extended key usage: {error}")),
    }
    match tbs.get_extension::<SubjectAltName>() {
        // Without a subject the alternative name is all that names the TPM, and a reader may skip what is not critical.
        Ok(Some((critical, names))) => {
            let is_bound = critical && names.0.iter().any(|name| matches!(name, GeneralName::DirectoryName(_)));
            if tbs.subject().is_empty() && !is_bound {
                refuse(
                    ReasonCode::EkCertificateSubject,
                    "alternative name not critical, or no directory name".to_owned(),
                );
            }
        }
        Ok(None) if tbs.subject().is_empty() => {
            refuse(ReasonCode::EkCertificateSubject, "no alternative name".to_owned());
        }
        Ok(None) => {}
        Err(error) => refuse(ReasonCode::EkCertificateMalformed, format!("alternative name: {error}")),
    }
    reasons
}

/// The certificate is for this very key, and allows its use.
fn check_leaf_key(leaf: &ParsedCertificate, public: &PublicArea, reasons: &mut Vec<Reason>) {
    let tbs = leaf.certificate.tbs_certificate();
    let is_rsa = matches!(public.kind(), KeyKind::Rsa { .. });
    let needed = if is_rsa { "keyEncipherment" } else { "keyAgreement" };
    let allowed = tbs.get_extension::<KeyUsage>().map(|usage| {
        usage.is_some_and(|(_, usage)| if is_rsa { usage.key_encipherment() } else { usage.key_agreement() })
    });
    if !matches!(allowed, Ok(true)) {
        let reason = Reason::new(ReasonCode::EkCertificateKeyUsage).event("EK certificate").expected(needed);
        reasons.push(reason.found(if allowed.is_ok() { "not allowed" } else { "unreadable key usage" }));
    }
    if !is_same_key(leaf, public) {
        reasons.push(Reason::new(ReasonCode::EkCertificateKeyMismatch).event("EK certificate"));
    }
}

/// Whether a certificate (DER, padding allowed) is for this key; says nothing of who signed it.
#[cfg(feature = "tpm")]
pub(crate) fn is_certificate_for(der: &[u8], public: &PublicArea) -> Result<bool, CertificateError> {
    Ok(is_same_key(&ParsedCertificate::parse(der)?, public))
}

fn is_same_key(leaf: &ParsedCertificate, public: &PublicArea) -> bool {
    use der::Decode as _;
    let certified = leaf.certificate.tbs_certificate().subject_public_key_info();
    let Ok(ours) = public.spki_der() else { return false };
    let Ok(ours) = spki::SubjectPublicKeyInfoOwned::from_der(&ours) else { return false };
    // Some vendors write id-RSAES-OAEP for the algorithm, which is what the key is for; the key is the same.
    let both_rsa =
        ours.algorithm.oid == RSA_ENCRYPTION && [RSA_ENCRYPTION, ID_RSAES_OAEP].contains(&certified.algorithm.oid);
    ours.subject_public_key == certified.subject_public_key && (both_rsa || ours.algorithm == certified.algorithm)
}
