//! Certificates as endorsement key chains have them: strict DER, but for the three forms that genuine vendors sign (see
//! `crate::key::received`). Signatures are checked over the bytes as received, and hashes are of these bytes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{self as aws, ParsedPublicKey, VerificationAlgorithm};
use const_oid::db::rfc5912::{ID_RSAES_OAEP, RSA_ENCRYPTION};
use const_oid::{AssociatedOid as _, ObjectIdentifier};
use der::asn1::Any;
use der::{Decode as _, Encode as _, Reader as _, SliceReader};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use x509_cert::Certificate;
use x509_cert::certificate::Version;
use x509_cert::ext::pkix::{BasicConstraints, CertificatePolicies, ExtendedKeyUsage, KeyUsage, SubjectAltName};
use x509_cert::name::RelativeDistinguishedName;

use super::distinguished_name;
use crate::key::{KeyKind, ReceivedCertificate, canonical, decode_spki};

/// Longest certificate read; NV indices of TPMs hold about 2 KiB.
const MAX_CERTIFICATE: usize = 8192;
/// What every certificate begins with.
const SEQUENCE: u8 = 0x30;

/// Why bytes are not a certificate that we read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// Longer than any certificate of a TPM or its vendor.
    #[error("{0} bytes are more than a certificate has")]
    TooLong(usize),
    /// Not even the beginning of one: a text, another format, nothing.
    #[error("not a certificate: {0}")]
    Foreign(&'static str),
    /// Bytes after the certificate that are not the padding of an NV index.
    #[error("{0} bytes that are no padding follow the certificate")]
    Trailing(usize),
    /// Not DER of an X.509 certificate.
    #[error("not an X.509 certificate in DER: {0}")]
    Der(String),
    /// DER has one form only for every content; this is another one, and none of those that vendors are known to sign.
    #[error("not in the one form that DER has for it")]
    NotCanonical,
    /// Older than version 3, so without the extensions that say what it is for.
    #[error("not a version 3 certificate")]
    Version,
    /// The same extension twice: one reader would believe the first, another the second.
    #[error("extension {0} appears twice")]
    Repeated(ObjectIdentifier),
    /// The inner and the outer signature algorithm differ.
    #[error("its two signature algorithms differ")]
    Algorithms,
}

/// Why a certificate's signature says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum LinkError {
    #[error("signature algorithm {0}")]
    Weak(ObjectIdentifier),
    #[error("the issuer's key cannot check this signature")]
    Key,
    #[error("the signature does not verify")]
    Invalid,
}

/// A certificate with its bytes as they were received.
#[derive(Clone, Debug)]
pub(super) struct ParsedCertificate {
    pub certificate: Certificate,
    received: Vec<u8>,
    /// What its issuer signed.
    signed: Vec<u8>,
    spki: Vec<u8>,
}

impl ParsedCertificate {
    /// Reads a certificate; padding (zeros or 0xFF to the end, as NV indices have) is trimmed first.
    pub fn parse(bytes: &[u8]) -> Result<Self, CertificateError> {
        if bytes.len() > MAX_CERTIFICATE {
            return Err(CertificateError::TooLong(bytes.len()));
        }
        match bytes.first() {
            None => return Err(CertificateError::Foreign("it is empty")),
            Some(first) if *first != SEQUENCE => {
                return Err(CertificateError::Foreign("it is neither DER nor PEM of a certificate"));
            }
            // A text that begins with the digit 0.
            Some(_) if bytes.is_ascii() => {
                return Err(CertificateError::Foreign("it is a text without a certificate in PEM"));
            }
            Some(_) => {}
        }
        let not_der = |error: der::Error| CertificateError::Der(error.to_string());
        let mut reader = SliceReader::new(bytes).map_err(not_der)?;
        let exact = reader.tlv_bytes().map_err(not_der)?;
        let padding = bytes.get(exact.len()..).unwrap_or_default();
        if padding.iter().any(|byte| *byte != 0) && padding.iter().any(|byte| *byte != 0xFF) {
            return Err(CertificateError::Trailing(padding.len()));
        }
        let certificate = Certificate::from_der(exact).map_err(not_der)?;
        if certificate.to_der().map_err(not_der)? != canonical(exact).map_err(not_der)? {
            return Err(CertificateError::NotCanonical);
        }
        let tbs = certificate.tbs_certificate();
        if tbs.version() != Version::V3 {
            return Err(CertificateError::Version);
        }
        if tbs.signature() != certificate.signature_algorithm() {
            return Err(CertificateError::Algorithms);
        }
        // Not the same as an empty name, which is told from others where it is used (RFC 5280, 4.1.2.4: SIZE (1..MAX)).
        if [tbs.issuer(), tbs.subject()].iter().any(|name| name.iter_rdn().any(RelativeDistinguishedName::is_empty)) {
            return Err(CertificateError::Der("a part of a name has no attribute".to_owned()));
        }
        let mut seen = Vec::new();
        for extension in tbs.extensions().map(Vec::as_slice).unwrap_or_default() {
            if seen.contains(&extension.extn_id) {
                return Err(CertificateError::Repeated(extension.extn_id));
            }
            seen.push(extension.extn_id);
        }
        let ReceivedCertificate { tbs, spki, .. } = ReceivedCertificate::read(exact).map_err(not_der)?;
        let (received, signed, spki) = (exact.to_vec(), tbs.to_vec(), spki.to_vec());
        Ok(Self { certificate, received, signed, spki })
    }

    /// The certificate as it was received, without padding.
    pub fn received(&self) -> &[u8] {
        &self.received
    }

    /// Its SubjectPublicKeyInfo as it was received.
    pub fn received_spki(&self) -> &[u8] {
        &self.spki
    }

    /// SHA-256 of the certificate, by which operators name it.
    pub fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(&self.received).into()
    }

    /// The key that it is for; `None` for kinds that no endorsement key is of.
    pub fn key(&self) -> Option<KeyKind> {
        let mut spki = self.certificate.tbs_certificate().subject_public_key_info().clone();
        // Some vendors write id-RSAES-OAEP, which is what the key is for, or no parameters; the key is the same.
        if [RSA_ENCRYPTION, ID_RSAES_OAEP].contains(&spki.algorithm.oid) {
            spki.algorithm = spki::AlgorithmIdentifier { oid: RSA_ENCRYPTION, parameters: Some(Any::null()) };
        }
        decode_spki(&spki.to_der().ok()?).ok()
    }

    /// The subject as people write it.
    pub fn subject(&self) -> String {
        self.certificate.tbs_certificate().subject().to_string()
    }

    /// The issuer as people write it.
    pub fn issuer(&self) -> String {
        self.certificate.tbs_certificate().issuer().to_string()
    }

    /// Whether `issuer` is named as this certificate's issuer.
    pub fn names_as_issuer(&self, issuer: &Self) -> bool {
        let tbs = self.certificate.tbs_certificate();
        distinguished_name::is_same(tbs.issuer(), issuer.certificate.tbs_certificate().subject())
    }

    /// Whether it names itself as its issuer, as a root does.
    pub fn is_self_issued(&self) -> bool {
        self.names_as_issuer(self)
    }

    /// Whether it is not valid yet (`Less`), valid (`Equal`), or expired (`Greater`) at `now`.
    pub fn validity(&self, now: SystemTime) -> std::cmp::Ordering {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let validity = self.certificate.tbs_certificate().validity();
        if now < validity.not_before.to_unix_duration() {
            std::cmp::Ordering::Less
        } else if now > validity.not_after.to_unix_duration() {
            std::cmp::Ordering::Greater
        } else {
            std::cmp::Ordering::Equal
        }
    }

    /// The first critical extension that is not understood here.
    pub fn unknown_critical(&self) -> Option<ObjectIdentifier> {
        // Policies may be critical: they restrict nothing for whoever does not ask for a policy (RFC 5280, 6.1).
        let known = [
            BasicConstraints::OID,
            KeyUsage::OID,
            ExtendedKeyUsage::OID,
            SubjectAltName::OID,
            CertificatePolicies::OID,
        ];
        let extensions = self.certificate.tbs_certificate().extensions().map(Vec::as_slice).unwrap_or_default();
        extensions.iter().find(|one| one.critical && !known.contains(&one.extn_id)).map(|one| one.extn_id)
    }

    /// Checks the signature with `issuer`'s key.
    pub fn verify_signed_by(&self, issuer: &Self) -> Result<(), LinkError> {
        let signature = self.certificate.signature().as_bytes().ok_or(LinkError::Invalid)?;
        issuer.verify_signature(self.certificate.signature_algorithm().oid, &self.signed, signature)
    }

    /// Checks a signature with this certificate's key.
    pub fn verify_signature(&self, oid: ObjectIdentifier, signed: &[u8], signature: &[u8]) -> Result<(), LinkError> {
        let spki = self.certificate.tbs_certificate().subject_public_key_info();
        let curve = spki.algorithm.parameters.as_ref().and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        let algorithm = signature_algorithm(oid, curve)?;
        let key = ParsedPublicKey::new(algorithm, &self.spki).map_err(|_| LinkError::Key)?;
        key.verify_sig(signed, signature).map_err(|_| LinkError::Invalid)
    }
}

/// The check for a signature algorithm; MD5, SHA-1 and whatever is unknown are refused.
fn signature_algorithm(
    oid: ObjectIdentifier,
    curve: Option<ObjectIdentifier>,
) -> Result<&'static dyn VerificationAlgorithm, LinkError> {
    use const_oid::db::rfc5912::{
        ECDSA_WITH_SHA_256, ECDSA_WITH_SHA_384, ECDSA_WITH_SHA_512, SECP_256_R_1, SECP_384_R_1, SECP_521_R_1,
        SHA_256_WITH_RSA_ENCRYPTION, SHA_384_WITH_RSA_ENCRYPTION, SHA_512_WITH_RSA_ENCRYPTION,
    };
    let algorithm: &'static dyn VerificationAlgorithm = match (oid, curve) {
        (SHA_256_WITH_RSA_ENCRYPTION, _) => &aws::RSA_PKCS1_2048_8192_SHA256,
        (SHA_384_WITH_RSA_ENCRYPTION, _) => &aws::RSA_PKCS1_2048_8192_SHA384,
        (SHA_512_WITH_RSA_ENCRYPTION, _) => &aws::RSA_PKCS1_2048_8192_SHA512,
        (ECDSA_WITH_SHA_256, Some(SECP_256_R_1)) => &aws::ECDSA_P256_SHA256_ASN1,
        (ECDSA_WITH_SHA_384, Some(SECP_256_R_1)) => &aws::ECDSA_P256_SHA384_ASN1,
        (ECDSA_WITH_SHA_512, Some(SECP_256_R_1)) => &aws::ECDSA_P256_SHA512_ASN1,
        (ECDSA_WITH_SHA_256, Some(SECP_384_R_1)) => &aws::ECDSA_P384_SHA256_ASN1,
        (ECDSA_WITH_SHA_384, Some(SECP_384_R_1)) => &aws::ECDSA_P384_SHA384_ASN1,
        (ECDSA_WITH_SHA_512, Some(SECP_384_R_1)) => &aws::ECDSA_P384_SHA512_ASN1,
        (ECDSA_WITH_SHA_256, Some(SECP_521_R_1)) => &aws::ECDSA_P521_SHA256_ASN1,
        (ECDSA_WITH_SHA_384, Some(SECP_521_R_1)) => &aws::ECDSA_P521_SHA384_ASN1,
        (ECDSA_WITH_SHA_512, Some(SECP_521_R_1)) => &aws::ECDSA_P521_SHA512_ASN1,
        (ECDSA_WITH_SHA_256 | ECDSA_WITH_SHA_384 | ECDSA_WITH_SHA_512, _) => return Err(LinkError::Key),
        (other, _) => return Err(LinkError::Weak(other)),
    };
    Ok(algorithm)
}
