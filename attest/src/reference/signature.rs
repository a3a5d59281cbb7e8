//! Detached signatures of reference values: whoever may change a file need not be whoever says what a good boot is.
//!
//! A signature is a JWS in compact form whose payload is left out (RFC 7515, appendix F): `header..signature`. It is of
//! the file's bytes as they are, so that nobody has to agree on how to write the values anew. The header names the
//! algorithm (`ES256`, or `EdDSA` with Ed25519), the type [`TYP`], the key: SHA-256 of its SubjectPublicKeyInfo, and, if the
//! signature ends, when (`exp`, as RFC 7519, 4.1.4, has it in claims). Whether it has ended is asked when evidence is judged
//! ([`Policy::distrust`](crate::appraise::Policy::distrust)), for a service reads its files once and runs for months.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    self as aws, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, ParsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use const_oid::ObjectIdentifier;
use der::{Decode as _, Document, SecretDocument, pem::PemLabel as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::key::Bank;
use crate::pem;

/// `typ` of a signature of reference values.
pub const TYP: &str = "portcullis-reference+jws";

/// Longest signature that is read, in bytes.
pub const MAX_SIGNATURE: usize = 1024;

const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");

/// Why a signature of reference values does not hold, or cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// Not a public key in PEM, or of a kind that does not sign reference values.
    #[error("not a public key that signs reference values (PEM, ECDSA P-256 or Ed25519): {0}")]
    PublicKey(String),
    /// Not a private key in PEM, or of a kind that does not sign reference values.
    #[error("not a private key that signs reference values (PKCS#8 PEM, ECDSA P-256 or Ed25519): {0}")]
    PrivateKey(String),
    /// Not a detached JWS with the header that is expected.
    #[error("not a detached signature of reference values: {0}")]
    Malformed(&'static str),
    /// Made by a key that is not among those that count here.
    #[error("signed by the key {0}, which is none of those that may sign reference values here")]
    UnknownSigner(String),
    /// The signature is of something else, or by another key than it says.
    #[error("the signature is not of this content")]
    Invalid,
    /// No random numbers.
    #[error("the signature could not be made")]
    Sign,
}

/// How a key signs.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Algorithm {
    /// ECDSA with P-256 and SHA-256 (RFC 7518, 3.4).
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519 (RFC 8037, 3.1).
    #[serde(rename = "EdDSA")]
    EdDsa,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: Algorithm,
    typ: String,
    kid: String,
    /// Seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exp: Option<u64>,
}

/// A public key whose signatures of reference values count. In files it is PEM (`-----BEGIN PUBLIC KEY-----`).
#[derive(Clone)]
pub struct SignerKey {
    algorithm: Algorithm,
    id: String,
    pem: String,
    key: std::sync::Arc<ParsedPublicKey>,
}

impl SignerKey {
    /// Reads a SubjectPublicKeyInfo in PEM.
    ///
    /// # Errors
    /// If it is none, or neither of ECDSA P-256 nor of Ed25519.
    pub fn from_pem(pem: &str) -> Result<Self, SignatureError> {
        let wrong = |error: &dyn std::fmt::Display| SignatureError::PublicKey(error.to_string());
        let (label, document) = pem::single(pem).map_err(|error| wrong(&error))?;
        if label != spki::SubjectPublicKeyInfoRef::PEM_LABEL {
            return Err(wrong(&format!("it is a {label}")));
        }
        let spki = spki::SubjectPublicKeyInfoRef::from_der(&document).map_err(|error| wrong(&error))?;
        let (algorithm, verification): (_, &'static dyn aws::VerificationAlgorithm) = match spki.algorithm.oid {
            ED25519 => (Algorithm::EdDsa, &aws::ED25519),
            EC_PUBLIC_KEY => (Algorithm::Es256, &aws::ECDSA_P256_SHA256_FIXED),
            other => return Err(wrong(&format!("algorithm {other}"))),
        };
        let key = ParsedPublicKey::new(verification, &document).map_err(|error| wrong(&error))?;
        let id = hex::encode(Bank::Sha256.hash(&document));
        Ok(Self { algorithm, id, pem: pem.trim().to_owned(), key: std::sync::Arc::new(key) })
    }

    /// SHA-256 of its SubjectPublicKeyInfo, lower-case hex: how signatures and results name it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How it signs.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl PartialEq for SignerKey {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for SignerKey {}

impl std::fmt::Debug for SignerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SignerKey({:?} {})", self.algorithm, self.id)
    }
}

impl Serialize for SignerKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.pem)
    }
}

impl<'de> Deserialize<'de> for SignerKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_pem(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// A signature that was read but not checked: what it says of itself.
pub struct DetachedSignature<'a> {
    header: Header,
    protected: &'a str,
    signature: Vec<u8>,
}

impl<'a> DetachedSignature<'a> {
    /// Reads `header..signature`; whitespace around it, such as the line's end in a file, is not of it.
    ///
    /// # Errors
    /// If it is anything else, or its header says anything that is not known here.
    pub fn parse(jws: &'a str) -> Result<Self, SignatureError> {
        let jws = jws.trim_ascii();
        if jws.len() > MAX_SIGNATURE {
            return Err(SignatureError::Malformed("it is too long"));
        }
        let (protected, signature) = jws.split_once("..").ok_or(SignatureError::Malformed("no `header..signature`"))?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        let header = decode(protected).and_then(|json| serde_json::from_slice::<Header>(&json).ok());
        let header = header.ok_or(SignatureError::Malformed("its header is not alg, typ, kid and perhaps exp"))?;
        if header.typ != TYP {
            return Err(SignatureError::Malformed("its typ is another"));
        }
        let signature = decode(signature).ok_or(SignatureError::Malformed("its signature is not base64url"))?;
        Ok(Self { header, protected, signature })
    }

    /// The id of the key that it says made it; see [`SignerKey::id`].
    pub fn key_id(&self) -> &str {
        &self.header.kid
    }

    /// From when on it no longer counts, in seconds since 1970; `None` if it does not end.
    pub const fn expires_at(&self) -> Option<u64> {
        self.header.exp
    }

    /// Checks it over `payload`, with whichever of `keys` it names; gives the key that made it.
    ///
    /// # Errors
    /// If none of the keys made it, or it is of something else.
    pub fn verify<'k>(&self, payload: &[u8], keys: &'k [SignerKey]) -> Result<&'k SignerKey, SignatureError> {
        let key = keys
            .iter()
            .find(|key| key.id == self.header.kid && key.algorithm == self.header.alg)
            .ok_or_else(|| SignatureError::UnknownSigner(self.header.kid.chars().take(64).collect()))?;
        let input = signing_input(self.protected, payload);
        key.key.verify_sig(&input, &self.signature).map_err(|_| SignatureError::Invalid)?;
        Ok(key)
    }
}

/// What is signed (RFC 7515, 5.1): the header and the payload, each in base64url.
fn signing_input(protected: &str, payload: &[u8]) -> Vec<u8> {
    format!("{protected}.{}", URL_SAFE_NO_PAD.encode(payload)).into_bytes()
}

enum PrivateKey {
    Es256(EcdsaKeyPair),
    EdDsa(Ed25519KeyPair),
}

/// A private key that signs reference values.
pub struct ReferenceSigner {
    key: PrivateKey,
    id: String,
}

impl ReferenceSigner {
    /// Reads a private key in PKCS#8 PEM (`openssl genpkey -algorithm ed25519`).
    ///
    /// # Errors
    /// If it is none, or neither of ECDSA P-256 nor of Ed25519.
    pub fn from_pem(pem: &str) -> Result<Self, SignatureError> {
        let wrong = |error: &dyn std::fmt::Display| SignatureError::PrivateKey(error.to_string());
        let (label, document) = SecretDocument::from_pem(pem).map_err(|error| wrong(&error))?;
        if label != "PRIVATE KEY" {
            return Err(wrong(&format!("it is a {label}")));
        }
        let pkcs8 = document.as_bytes();
        let key = match EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8) {
            Ok(key) => PrivateKey::Es256(key),
            Err(_) => PrivateKey::EdDsa(Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|error| wrong(&error))?),
        };
        let id = hex::encode(Bank::Sha256.hash(&public_der(&key).map_err(|()| wrong(&"its public key"))?));
        Ok(Self { key, id })
    }

    /// The id of its public key; see [`SignerKey::id`].
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The public key, as [`SignerKey::from_pem`] reads it.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn public_pem(&self) -> Result<String, SignatureError> {
        let wrong = || SignatureError::PrivateKey("its public key".to_owned());
        let der = public_der(&self.key).map_err(|()| wrong())?;
        let document = Document::try_from(der).map_err(|_| wrong())?;
        document.to_pem(spki::SubjectPublicKeyInfoRef::PEM_LABEL, der::pem::LineEnding::LF).map_err(|_| wrong())
    }

    /// Signs the bytes of a file of reference values, without an end.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn sign(&self, payload: &[u8]) -> Result<String, SignatureError> {
        self.sign_with(payload, None)
    }

    /// Signs the bytes of a file of reference values; from `expires_at` on, in seconds since 1970, that no longer counts.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn sign_until(&self, payload: &[u8], expires_at: u64) -> Result<String, SignatureError> {
        self.sign_with(payload, Some(expires_at))
    }

    fn sign_with(&self, payload: &[u8], exp: Option<u64>) -> Result<String, SignatureError> {
        let alg = match self.key {
            PrivateKey::Es256(_) => Algorithm::Es256,
            PrivateKey::EdDsa(_) => Algorithm::EdDsa,
        };
        let header = Header { alg, typ: TYP.to_owned(), kid: self.id.clone(), exp };
        let header = serde_json::to_vec(&header).map_err(|_| SignatureError::Sign)?;
        let protected = URL_SAFE_NO_PAD.encode(header);
        let input = signing_input(&protected, payload);
        let signature = match &self.key {
            PrivateKey::Es256(key) => key.sign(&SystemRandom::new(), &input).map_err(|_| SignatureError::Sign)?,
            PrivateKey::EdDsa(key) => key.try_sign(&input).map_err(|_| SignatureError::Sign)?,
        };
        Ok(format!("{protected}..{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }
}

fn public_der(key: &PrivateKey) -> Result<Vec<u8>, ()> {
    use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
    let der: PublicKeyX509Der<'_> = match key {
        PrivateKey::Es256(key) => key.public_key().as_der(),
        PrivateKey::EdDsa(key) => key.public_key().as_der(),
    }
    .map_err(|_| ())?;
    Ok(der.as_ref().to_vec())
}
