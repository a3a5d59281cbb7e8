//! Who the client is on the wire: a person's certificate, or a host's key of this boot.

use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};
use ureq::tls::{Certificate, ClientCert, PrivateKey};
use x509_cert::Certificate as X509;
use x509_cert::der::{Decode, Encode};
use zeroize::Zeroizing;

use crate::name;

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The certificate is no good.
    #[error("the client certificate cannot be used: {0}")]
    Certificate(String),
    /// The private key is no good. Its content is never part of the message.
    #[error("the client key cannot be used: it must be an unencrypted PEM private key")]
    Key,
    /// The key is not the certificate's.
    #[error("the client key does not belong to the client certificate")]
    Mismatch,
    /// A new key could not be made.
    #[error("no TLS key could be made: {0}")]
    Make(String),
    /// The host's name is no name.
    #[error(transparent)]
    Name(#[from] name::NameError),
}

/// A certificate and its private key, for the client's side of TLS.
#[derive(Clone)]
pub struct Identity {
    pub(super) cert: ClientCert,
    spki_sha256: [u8; 32],
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("spki_sha256", &hex::encode(self.spki_sha256)).finish_non_exhaustive()
    }
}

impl Identity {
    /// A person's identity from the PEM files that `portcullis-verifier certificate` writes.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, IdentityError> {
        let cert = Certificate::from_pem(certificate).map_err(|e| IdentityError::Certificate(e.to_string()))?;
        check_pair(cert.der(), key)?;
        let key = PrivateKey::from_pem(key).map_err(|_| IdentityError::Key)?;
        let parsed = X509::from_der(cert.der()).map_err(|e| IdentityError::Certificate(e.to_string()))?;
        let spki = parsed
            .tbs_certificate()
            .subject_public_key_info()
            .to_der()
            .map_err(|e| IdentityError::Certificate(e.to_string()))?;
        Ok(Self { cert: ClientCert::new_with_certs(&[cert], key), spki_sha256: Sha256::digest(spki).into() })
    }

    /// A host's identity: a new P-256 key that lives in memory only, with a self-signed certificate that names the
    /// host. The verifier trusts nothing in the certificate; what counts is that the host quotes over the key.
    pub fn new_for_host(host: &str) -> Result<Self, IdentityError> {
        name::check("host", host)?;
        let make = |e: rcgen::Error| IdentityError::Make(e.to_string());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let mut params = CertificateParams::new(Vec::new()).map_err(make)?;
        params.distinguished_name.push(DnType::CommonName, host);
        let cert = params.self_signed(&key).map_err(make)?;
        let private =
            PrivateKey::from_pem(Zeroizing::new(key.serialize_pem()).as_bytes()).map_err(|_| IdentityError::Key)?;
        let cert = Certificate::from_der(cert.der()).to_owned();
        Ok(Self {
            cert: ClientCert::new_with_certs(&[cert], private),
            spki_sha256: Sha256::digest(key.subject_public_key_info()).into(),
        })
    }

    /// SHA-256 of the DER SubjectPublicKeyInfo of the TLS key: what every quote over this connection must bind.
    pub fn spki_sha256(&self) -> [u8; 32] {
        self.spki_sha256
    }
}

/// The HTTP client would panic over a key that is not the certificate's.
fn check_pair(certificate: &[u8], key_pem: &[u8]) -> Result<(), IdentityError> {
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| IdentityError::Key)?;
    let key = any_supported_type(&key).map_err(|_| IdentityError::Key)?;
    let certificate = CertificateDer::from(certificate.to_vec());
    CertifiedKey::new(vec![certificate], key).keys_match().map_err(|e| match e {
        rustls::Error::InconsistentKeys(_) => IdentityError::Mismatch,
        other => IdentityError::Certificate(other.to_string()),
    })
}
