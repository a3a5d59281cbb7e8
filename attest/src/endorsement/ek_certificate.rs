//! The certificate of an endorsement key: what the TCG EK Credential Profile asks of it, and its chain.

use std::cmp::Ordering;
use std::time::SystemTime;

use const_oid::ObjectIdentifier;
use der::asn1::{PrintableStringRef, Utf8StringRef};
use x509_cert::attr::AttributeValue;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAltName};

use super::certificate::{CertificateError, ParsedCertificate};
use super::roots::EkRoots;
use super::{chain, fingerprint_of, key_weakness};
use crate::key::{KeyKind, PublicArea};
use crate::reason::{Denial, Reason, ReasonCode};

/// tcg-kp-EKCertificate: the extended key usage of endorsement keys.
pub(super) const EK_CERTIFICATE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.8.1");
/// tcg-at-tpmManufacturer, tcg-at-tpmModel, tcg-at-tpmVersion.
const TPM_NAMES: [ObjectIdentifier; 3] = [
    ObjectIdentifier::new_unwrap("2.23.133.2.1"),
    ObjectIdentifier::new_unwrap("2.23.133.2.2"),
    ObjectIdentifier::new_unwrap("2.23.133.2.3"),
];
/// Most intermediates that a host may send along.
const MAX_SENT: usize = 8;

/// A certificate of an endorsement key that leads to a trusted root; made only by [`EkCertificate::check`].
#[derive(Clone, Debug)]
pub struct EkCertificate {
    fingerprint: [u8; 32],
    issuer: String,
    root: String,
    tpm: [Option<String>; 3],
}

/// A certificate that was read, and what stands against it.
struct Examined {
    leaf: ParsedCertificate,
    key: Option<KeyKind>,
    root: Option<String>,
    reasons: Vec<Reason>,
}

impl EkCertificate {
    /// Checks a certificate (DER, padding of an NV index allowed) by itself at the time `now`, with further intermediates
    /// (DER). Gives every reason against it; where a root is missing, which.
    pub fn check(der: &[u8], intermediates: &[&[u8]], roots: &EkRoots, now: SystemTime) -> Result<Self, Denial> {
        let Examined { leaf, key, root, mut reasons } = examine(der, intermediates, roots, now)?;
        let weak = |found: String| Reason::new(ReasonCode::EkWeakKey).event("EK certificate").found(found);
        match &key {
            Some(key) => reasons.extend(key_weakness(key).map(weak)),
            None => reasons.push(weak("a key of an unknown kind".to_owned())),
        }
        let fingerprint = key.and_then(|key| fingerprint_of(&key).ok());
        if reasons.iter().all(|reason| reason.code != ReasonCode::EkRevoked)
            && fingerprint.is_some_and(|fingerprint| roots.revocations().names_key(&fingerprint))
        {
            reasons.push(Reason::new(ReasonCode::EkRevoked).event("endorsement key").found("by the operator"));
        }
        match (fingerprint, root) {
            (Some(fingerprint), Some(root)) if reasons.is_empty() => {
                Ok(Self { fingerprint, issuer: leaf.issuer(), root, tpm: TPM_NAMES.map(|oid| tpm_name(&leaf, oid)) })
            }
            _ => Err(reasons.into()),
        }
    }

    /// SHA-256 of the key's DER SubjectPublicKeyInfo: what an operator admits the host by.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// The name of whoever issued it.
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The name of the root that it leads to.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The TPM's manufacturer, model and version, as its alternative name gives them.
    #[must_use]
    pub fn tpm(&self) -> [Option<&str>; 3] {
        self.tpm.each_ref().map(Option::as_deref)
    }
}

/// Checks the certificate of a key that is at hand; gives the root's name.
pub(super) fn check_for(
    public: &PublicArea,
    der: &[u8],
    intermediates: &[&[u8]],
    roots: &EkRoots,
    now: SystemTime,
) -> Result<String, Vec<Reason>> {
    let Examined { key, root, mut reasons, .. } = examine(der, intermediates, roots, now)?;
    if key.as_ref() != Some(public.kind()) {
        reasons.push(Reason::new(ReasonCode::EkCertificateKeyMismatch).event("EK certificate"));
    }
    match root {
        Some(root) if reasons.is_empty() => Ok(root),
        _ => Err(reasons),
    }
}

/// Whether a certificate (DER, padding allowed) is for this key; says nothing of who signed it.
#[cfg(feature = "tpm")]
pub(crate) fn is_certificate_for(der: &[u8], public: &PublicArea) -> Result<bool, CertificateError> {
    Ok(ParsedCertificate::parse(der)?.key().as_ref() == Some(public.kind()))
}

fn examine(der: &[u8], intermediates: &[&[u8]], roots: &EkRoots, now: SystemTime) -> Result<Examined, Vec<Reason>> {
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
    let key = leaf.key();
    reasons.extend(check_usage(&leaf, key.as_ref()));
    if roots.revocations().names(&leaf) {
        reasons.push(Reason::new(ReasonCode::EkRevoked).event("EK certificate").found("by the operator"));
    }
    let root = chain::find_root(&leaf, &sent, roots, now).map_err(|bad| reasons.extend(bad)).ok();
    reasons.extend(check_extended_usage(&leaf, root, roots));
    let root = root.map(ParsedCertificate::subject);
    Ok(Examined { leaf, key, root, reasons })
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

/// The certificate says that it is an endorsement key's. Whoever trusts a root of which this is not so names the root:
/// there are vendors (GCP's virtual TPMs) whose certificates have no extended key usage. Other usages are refused always.
fn check_extended_usage(leaf: &ParsedCertificate, root: Option<&ParsedCertificate>, roots: &EkRoots) -> Option<Reason> {
    let reason = Reason::new(ReasonCode::EkCertificateExtendedKeyUsage).event("EK certificate");
    let found = match leaf.certificate.tbs_certificate().get_extension::<ExtendedKeyUsage>() {
        Ok(Some((_, usage))) if usage.0.contains(&EK_CERTIFICATE) => return None,
        Ok(Some((_, usage))) => format!("{} other usages", usage.0.len()),
        Ok(None) => match root {
            Some(root) if roots.takes_without_usage(root) => return None,
            Some(root) => format!(
                "missing; the operator may allow that for the root {} (SHA-256 {})",
                root.subject(),
                hex::encode(root.fingerprint())
            ),
            None => "missing".to_owned(),
        },
        Err(error) => {
            let found = format!("extended key usage: {error}");
            return Some(Reason::new(ReasonCode::EkCertificateMalformed).event("EK certificate").found(found));
        }
    };
    Some(reason.expected(EK_CERTIFICATE.to_string()).found(found))
}

/// The certificate allows what its kind of endorsement key does: RSA decrypts the seed of a credential, ECC agrees on one.
/// Of ECC keys some vendors (Intel) say that they encipher, too.
fn check_usage(leaf: &ParsedCertificate, key: Option<&KeyKind>) -> Option<Reason> {
    let is_rsa = matches!(key, Some(KeyKind::Rsa { .. }));
    let needed = if is_rsa { "keyEncipherment" } else { "keyAgreement or keyEncipherment" };
    let found = match leaf.certificate.tbs_certificate().get_extension::<KeyUsage>() {
        Ok(Some((_, usage))) if usage.key_encipherment() || !is_rsa && usage.key_agreement() => return None,
        Ok(Some(_)) => "other usages",
        Ok(None) => "missing",
        Err(_) => "unreadable",
    };
    Some(Reason::new(ReasonCode::EkCertificateKeyUsage).event("EK certificate").expected(needed).found(found))
}

/// An attribute of the directory name that a vendor gives its TPM.
fn tpm_name(leaf: &ParsedCertificate, oid: ObjectIdentifier) -> Option<String> {
    let (_, names) = leaf.certificate.tbs_certificate().get_extension::<SubjectAltName>().ok().flatten()?;
    names.0.iter().find_map(|name| match name {
        GeneralName::DirectoryName(name) => name.iter().find(|one| one.oid == oid).and_then(|one| text(&one.value)),
        _ => None,
    })
}

fn text(value: &AttributeValue) -> Option<String> {
    let utf8 = value.decode_as::<Utf8StringRef<'_>>().map(|text| text.as_str().to_owned());
    utf8.or_else(|_| value.decode_as::<PrintableStringRef<'_>>().map(|text| text.as_str().to_owned())).ok()
}
