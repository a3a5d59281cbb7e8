//! The verifier's own CA: one key that signs the service's certificate and people's, nothing else.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::peer::Role;

const DAY: Duration = Duration::from_hours(24);
const CA_DAYS: u32 = 3_650;
const SERVER_DAYS: u32 = 825;
/// Clocks of hosts that have just booted run behind.
const BACKDATE: Duration = DAY;

/// Why a certificate cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The certificate library refused.
    #[error("cannot make a certificate: {0}")]
    Rcgen(#[from] rcgen::Error),
    /// No name was given, or one that is neither a DNS name nor an IP address.
    #[error("a verifier needs at least one --san, each a DNS name or an IP address; {0:?} is none")]
    San(String),
    /// Out of bounds.
    #[error("a certificate is valid for 1 to 3650 days, not {0}")]
    Days(u32),
}

/// A certificate and its key, PEM.
pub struct Issued {
    /// The certificate.
    pub cert_pem: String,
    /// The key, PKCS#8.
    pub key_pem: Zeroizing<String>,
    /// SHA-256 of the certificate's DER, hex.
    pub sha256: String,
}

/// A new P-256 key, PKCS#8 PEM.
pub fn make_key() -> Result<Zeroizing<String>, AuthorityError> {
    Ok(Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?.serialize_pem()))
}

fn params(common_name: &str, days: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String(common_name.to_owned()));
    let now = SystemTime::now();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + DAY * days).into();
    params
}

fn issued(cert: &rcgen::Certificate, key: &KeyPair) -> Issued {
    Issued {
        cert_pem: cert.pem(),
        key_pem: Zeroizing::new(key.serialize_pem()),
        sha256: hex::encode(Sha256::digest(cert.der())),
    }
}

/// A new CA for the verifier `id`.
pub fn make_ca(id: &str) -> Result<Issued, AuthorityError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = params(&format!("Portcullis CA of {id}"), CA_DAYS);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(issued(&params.self_signed(&key)?, &key))
}

/// The service's certificate.
pub fn make_server(ca: &Issued, san: &[String]) -> Result<Issued, AuthorityError> {
    let first = san.first().ok_or_else(|| AuthorityError::San(String::new()))?;
    for name in san {
        let dns = |b: u8| b.is_ascii_alphanumeric() || b == b'.' || b == b'-';
        if name.parse::<IpAddr>().is_err() && (name.is_empty() || name.len() > 253 || !name.bytes().all(dns)) {
            return Err(AuthorityError::San(name.clone()));
        }
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = params(first, SERVER_DAYS);
    params.subject_alt_names = CertificateParams::new(san.to_vec())?.subject_alt_names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    sign(&ca.cert_pem, &ca.key_pem, params, &key)
}

/// A person's certificate: role in the OU, name in the CN.
pub fn make_person(
    ca_pem: &str,
    ca_key_pem: &str,
    role: Role,
    name: &str,
    days: u32,
) -> Result<Issued, AuthorityError> {
    if !(1..=3_650).contains(&days) {
        return Err(AuthorityError::Days(days));
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = params(name, days);
    params.distinguished_name.push(DnType::OrganizationalUnitName, DnValue::Utf8String(role.as_str().to_owned()));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    sign(ca_pem, ca_key_pem, params, &key)
}

fn sign(
    ca_pem: &str,
    ca_key_pem: &str,
    mut params: CertificateParams,
    key: &KeyPair,
) -> Result<Issued, AuthorityError> {
    let issuer = Issuer::from_ca_cert_pem(ca_pem, KeyPair::from_pem(ca_key_pem)?)?;
    params.use_authority_key_identifier_extension = true;
    Ok(issued(&params.signed_by(key, &issuer)?, key))
}
