//! Keys that may sign files, as an operator gives them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::Digest;
use aws_lc_rs::signature::{self as aws, ParsedPublicKey, VerificationAlgorithm};
use const_oid::ObjectIdentifier;
use const_oid::db::rfc5912::{ID_EC_PUBLIC_KEY, RSA_ENCRYPTION, SECP_256_R_1, SECP_384_R_1, SECP_521_R_1};
use der::asn1::UintRef;
use der::pem::PemLabel as _;
use der::{Decode as _, Sequence};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use spki::SubjectPublicKeyInfoRef;
use thiserror::Error;
use x509_cert::Certificate;
use x509_cert::ext::pkix::SubjectKeyIdentifier;

use crate::key::{Bank, ReceivedCertificate};
use crate::{pem, work};

/// Most keys of one keyring.
const MAX_KEYS: usize = 256;

/// Longest certificate or key, in bytes of PEM.
const MAX_PEM: usize = 32 << 10;

/// Keys whose signatures of files count. In files it is a list of certificates or public keys in PEM.
///
/// A certificate stands for its key alone, as in the kernel's keyrings: whom an operator puts here is trusted, whoever
/// issued the certificate and however long that is ago.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyring {
    keys: Vec<Key>,
    /// The places of the keys that have a name.
    named: BTreeMap<KeyName, Vec<usize>>,
}

/// How a signature names the key that made it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum KeyName {
    /// By the last four bytes of the certificate's subject key identifier, or of the SHA-1 of the key, which is what
    /// signers take where there is no certificate.
    Id([u8; 4]),
    /// In CMS, by the whole subject key identifier.
    SubjectKeyId(Vec<u8>),
    /// In CMS, by issuer and serial number as DER.
    IssuerAndSerial(Vec<u8>),
}

/// One key of a keyring.
#[derive(Clone)]
pub(super) struct Key {
    pem: String,
    /// SHA-256 of the SubjectPublicKeyInfo as it was received.
    fingerprint: Vec<u8>,
    names: BTreeSet<KeyName>,
    checks: Vec<(Bank, Arc<ParsedPublicKey>)>,
}

/// Why something is no key of a keyring.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KeyringError {
    /// More keys than a keyring holds.
    #[error("a keyring has at most {MAX_KEYS} keys")]
    TooMany,
    /// Longer than a certificate or key.
    #[error("key {0}: it has more than {MAX_PEM} bytes")]
    TooLong(usize),
    /// Not a certificate or public key in PEM.
    #[error("key {number}: not a certificate or public key in PEM: {problem}")]
    Pem {
        /// Its place, from 1.
        number: usize,
        /// What is wrong.
        problem: String,
    },
    /// A key with which no file's signature is checked here.
    #[error("key {number}: {problem}; RSA of 2048 to 8192 bits and ECDSA on P-256, P-384 and P-521 are known")]
    Key {
        /// Its place, from 1.
        number: usize,
        /// What is wrong.
        problem: String,
    },
}

impl Keyring {
    /// Reads the keys, each a certificate or a SubjectPublicKeyInfo in PEM.
    ///
    /// # Errors
    /// If one of them is neither, or of a kind that signs no files.
    pub fn from_pems<P: AsRef<str>>(pems: impl IntoIterator<Item = P>) -> Result<Self, KeyringError> {
        let mut keyring = Self::default();
        for (pem, number) in pems.into_iter().zip(1_usize..) {
            if number > MAX_KEYS {
                return Err(KeyringError::TooMany);
            }
            let key = Key::from_pem(pem.as_ref().trim(), number)?;
            for name in &key.names {
                keyring.named.entry(name.clone()).or_default().push(keyring.keys.len());
            }
            keyring.keys.push(key);
        }
        Ok(keyring)
    }

    /// The keys as they were given, in PEM.
    pub fn pems(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| key.pem.as_str())
    }

    /// How many keys it has; with none no signature counts.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether it has no keys.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether one of its keys is called by this id.
    pub(crate) fn has_id(&self, id: [u8; 4]) -> bool {
        self.named.contains_key(&KeyName::Id(id))
    }

    /// The fingerprint of the key that signed this message with SHA-256, if one did: SHA-256 of its SubjectPublicKeyInfo,
    /// lower-case hex.
    pub(crate) fn signer_of(&self, message: &[u8], signature: &[u8]) -> Option<String> {
        let digest = Bank::Sha256.hash(message);
        let signer = self.keys.iter().find(|key| key.verifies(Bank::Sha256, &digest, signature))?;
        Some(hex::encode(&signer.fingerprint))
    }

    /// All keys that a signature may mean by this name: several may have the same.
    pub(super) fn named(&self, name: &KeyName) -> impl Iterator<Item = &Key> {
        self.named.get(name).into_iter().flatten().filter_map(|place| self.keys.get(*place))
    }
}

impl Key {
    fn from_pem(pem: &str, number: usize) -> Result<Self, KeyringError> {
        if pem.len() > MAX_PEM {
            return Err(KeyringError::TooLong(number));
        }
        let no_pem = |problem: String| KeyringError::Pem { number, problem };
        let no_der = |error: der::Error| no_pem(error.to_string());
        let (label, der) = pem::single(pem).map_err(|error| no_pem(error.to_string()))?;
        let mut key = if label == Certificate::PEM_LABEL {
            let certificate = Certificate::from_der(&der).map_err(no_der)?;
            let tbs = certificate.tbs_certificate();
            // Signatures name a certificate by its bytes, which need not be those of a re-encoded copy.
            let received = ReceivedCertificate::read(&der).map_err(no_der)?;
            let mut key = Self::from_spki(received.spki, number)?;
            if let Some((_, id)) = tbs.get_extension::<SubjectKeyIdentifier>().map_err(no_der)? {
                let id = id.0.as_bytes();
                key.names.extend(id.last_chunk().copied().map(KeyName::Id));
                key.names.insert(KeyName::SubjectKeyId(id.to_vec()));
            }
            key.names.insert(KeyName::IssuerAndSerial([received.issuer, received.serial].concat()));
            key
        } else if label == SubjectPublicKeyInfoRef::PEM_LABEL {
            Self::from_spki(&der, number)?
        } else {
            return Err(no_pem(format!("it is a {label}")));
        };
        pem.clone_into(&mut key.pem);
        Ok(key)
    }

    fn from_spki(der: &[u8], number: usize) -> Result<Self, KeyringError> {
        let wrong = |problem: String| KeyringError::Key { number, problem };
        let spki = SubjectPublicKeyInfoRef::from_der(der).map_err(|error| wrong(error.to_string()))?;
        let curve = spki.algorithm.parameters.and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        let algorithms = algorithms(spki.algorithm.oid, curve).ok_or_else(|| wrong("its kind is not known".into()))?;
        let bits = spki.subject_public_key.raw_bytes();
        if spki.algorithm.oid == RSA_ENCRYPTION && !is_strong_rsa(bits) {
            return Err(wrong("it is an RSA key of another size, or with an exponent that is no exponent".into()));
        }
        let mut checks = Vec::new();
        for (bank, algorithm) in algorithms {
            let key = ParsedPublicKey::new(algorithm, der).map_err(|error| wrong(error.to_string()))?;
            checks.push((bank, Arc::new(key)));
        }
        let names = Bank::Sha1.hash(bits).last_chunk().copied().map(KeyName::Id).into_iter().collect();
        let fingerprint = Bank::Sha256.hash(der);
        Ok(Self { pem: String::new(), fingerprint, names, checks })
    }

    /// SHA-256 of the SubjectPublicKeyInfo.
    pub fn fingerprint(&self) -> &[u8] {
        &self.fingerprint
    }

    /// Whether it signed this digest: RSA as PKCS #1 v1.5, ECDSA with the signature in DER.
    pub fn verifies(&self, bank: Bank, digest: &[u8], signature: &[u8]) -> bool {
        work::signature();
        let check = self.checks.iter().find(|(of, _)| *of == bank);
        let digest = bank.aws_lc().and_then(|algorithm| Digest::import_less_safe(digest, algorithm).ok());
        check.zip(digest).is_some_and(|((_, key), digest)| key.verify_digest_sig(&digest, signature).is_ok())
    }
}

/// RSAPublicKey (RFC 8017, A.1.1).
#[derive(Sequence)]
struct RsaPublicKey<'a> {
    modulus: UintRef<'a>,
    exponent: UintRef<'a>,
}

/// The library refuses others only when they check a signature: an operator should hear of it before.
fn is_strong_rsa(key: &[u8]) -> bool {
    RsaPublicKey::from_der(key).is_ok_and(|key| {
        let (modulus, exponent) = (key.modulus.as_bytes(), key.exponent.as_bytes());
        let leading = modulus.first().map_or(0, |first| first.leading_zeros() as usize);
        let bits = modulus.len().saturating_mul(8).saturating_sub(leading);
        (2048..=8192).contains(&bits) && exponent != [1] && exponent.last().is_some_and(|last| last & 1 == 1)
    })
}

type Check = (Bank, &'static dyn VerificationAlgorithm);

/// How signatures of a kind of key are checked, by the hash that was signed. SHA-1 is not among them.
fn algorithms(kind: ObjectIdentifier, curve: Option<ObjectIdentifier>) -> Option<[Check; 3]> {
    let [sha256, sha384, sha512]: [&'static dyn VerificationAlgorithm; 3] = match (kind, curve) {
        (RSA_ENCRYPTION, _) => {
            [&aws::RSA_PKCS1_2048_8192_SHA256, &aws::RSA_PKCS1_2048_8192_SHA384, &aws::RSA_PKCS1_2048_8192_SHA512]
        }
        (ID_EC_PUBLIC_KEY, Some(SECP_256_R_1)) => {
            [&aws::ECDSA_P256_SHA256_ASN1, &aws::ECDSA_P256_SHA384_ASN1, &aws::ECDSA_P256_SHA512_ASN1]
        }
        (ID_EC_PUBLIC_KEY, Some(SECP_384_R_1)) => {
            [&aws::ECDSA_P384_SHA256_ASN1, &aws::ECDSA_P384_SHA384_ASN1, &aws::ECDSA_P384_SHA512_ASN1]
        }
        (ID_EC_PUBLIC_KEY, Some(SECP_521_R_1)) => {
            [&aws::ECDSA_P521_SHA256_ASN1, &aws::ECDSA_P521_SHA384_ASN1, &aws::ECDSA_P521_SHA512_ASN1]
        }
        _ => return None,
    };
    Some([(Bank::Sha256, sha256), (Bank::Sha384, sha384), (Bank::Sha512, sha512)])
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.pem == other.pem
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", hex::encode(&self.fingerprint))
    }
}

impl Serialize for Keyring {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.keys.iter().map(|key| &key.pem))
    }
}

impl<'de> Deserialize<'de> for Keyring {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_pems(Vec::<String>::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
