//! TPMT_SIGNATURE (TPM 2.0 Library, Part 2, 11.3.4) and the check of it.

use aws_lc_rs::rsa::RsaPssSaltLength;
use aws_lc_rs::signature::{self as aws, ParsedPublicKey, RsaParameters, VerificationAlgorithm};
use der::asn1::UintRef;
use der::{Decode as _, Encode as _, Sequence};
use thiserror::Error;

use super::bank::Bank;
use super::public::{Curve, KeyKind, PublicArea, SchemeKind};
use super::sm2::Sm2Key;
use crate::wire::{Reader, WireError};

/// Longest signature number read: that of RSA-4096.
const MAX_NUMBER: usize = 512;

/// Why a signature is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// Sizes do not add up, or bytes are left over.
    #[error("TPMT_SIGNATURE: {0}")]
    Wire(#[from] WireError),
    /// Not RSASSA, RSAPSS, ECDSA or SM2.
    #[error("TPMT_SIGNATURE: algorithm {0:#06x} is no signature scheme known here")]
    Algorithm(u16),
    /// TPM_ALG_NULL or an unknown hash.
    #[error("TPMT_SIGNATURE: hash {0:#06x} is not known here")]
    Hash(u16),
    /// An empty or oversized number.
    #[error("TPMT_SIGNATURE: a number of {0} bytes has no place in a signature")]
    Number(usize),
    /// The signature's scheme or hash is not the key's.
    #[error("the signature's scheme is {found}, the key is for {expected}")]
    Scheme {
        /// What the key is for.
        expected: String,
        /// What the signature says.
        found: String,
    },
    /// No check is known for this kind of key, scheme and hash.
    #[error("no check is known here for {0}")]
    Unsupported(String),
    /// The key's numbers are no key.
    #[error("the public key is not valid: {0}")]
    Key(String),
    /// Well-formed, but its numbers have not the length that this key's have: another key made it.
    #[error("the signature has a number of {found} bytes, this key's have {expected}: another key made it")]
    Size {
        /// Bytes of the numbers in this key's signatures.
        expected: usize,
        /// Bytes of the longest number of the signature.
        found: usize,
    },
    /// Neither a TPMT_SIGNATURE nor a signature as other programs write it.
    #[error(
        "neither a TPMT_SIGNATURE ({problem}) nor a plain signature ({plain}): {bytes} bytes that begin with {begin}"
    )]
    Unreadable {
        /// Why it is no TPMT_SIGNATURE.
        problem: String,
        /// What a plain signature of this key would be.
        plain: String,
        /// How many bytes there are.
        bytes: usize,
        /// The first of them, in hex.
        begin: String,
    },
    /// The check itself failed.
    #[error("the signature does not verify")]
    Invalid,
}

/// A signature as a TPM gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    kind: SchemeKind,
    hash: Bank,
    /// RSA: the one number; elliptic curves: r, then s.
    numbers: Vec<Vec<u8>>,
}

impl Signature {
    /// Reads a TPMT_SIGNATURE that fills `bytes` exactly.
    pub fn parse(bytes: &[u8]) -> Result<Self, SignatureError> {
        let mut reader = Reader::new(bytes);
        let algorithm = reader.u16("sigAlg")?;
        let kind = SchemeKind::from_tpm_alg_id(algorithm).ok_or(SignatureError::Algorithm(algorithm))?;
        let hash_id = reader.u16("hash")?;
        let hash = Bank::from_tpm_alg_id(hash_id).ok_or(SignatureError::Hash(hash_id))?;
        let fields: &[&'static str] = match kind {
            SchemeKind::RsaSsa | SchemeKind::RsaPss => &["sig"],
            SchemeKind::Ecdsa | SchemeKind::Sm2 => &["signatureR", "signatureS"],
        };
        let mut numbers = Vec::with_capacity(fields.len());
        for &field in fields {
            let number = reader.sized(field)?;
            if number.is_empty() || number.len() > MAX_NUMBER {
                return Err(SignatureError::Number(number.len()));
            }
            numbers.push(number.to_vec());
        }
        reader.finish()?;
        Ok(Self { kind, hash, numbers })
    }

    /// The scheme.
    #[must_use]
    pub fn kind(&self) -> SchemeKind {
        self.kind
    }

    /// The hash that was signed.
    #[must_use]
    pub fn hash(&self) -> Bank {
        self.hash
    }

    /// Checks the signature of `message` with `key`. Says only that the key made the signature: whether the key is one
    /// whose signatures mean anything is for [`EnrolledAk`](super::EnrolledAk) to say.
    pub fn verify(&self, key: &PublicArea, message: &[u8]) -> Result<(), SignatureError> {
        VerifyingKey::new(key.kind(), self.kind, self.hash, Sha1::Refused)?.verify(self, message)
    }
}

/// Whether SHA-1 will do: collisions of it are practical, but old attestation keys are bound to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sha1 {
    Refused,
    /// RSASSA only, and only where whoever reads the answer is told.
    Legacy,
}

/// A public key that is ready to check signatures of one scheme and hash: parsed once, used for every quote.
#[derive(Clone)]
pub(crate) struct VerifyingKey {
    kind: SchemeKind,
    hash: Bank,
    /// Exact length of a signature's numbers (RSA), or the most they may have (elliptic curves).
    size: usize,
    keys: Keys,
}

/// Parsed keys.
#[derive(Clone)]
enum Keys {
    /// One for each form that the signature may have (RSAPSS: two salt lengths).
    AwsLc(std::sync::Arc<[ParsedPublicKey]>),
    Sm2(Box<Sm2Key>),
}

impl VerifyingKey {
    pub(crate) fn new(key: &KeyKind, kind: SchemeKind, hash: Bank, sha1: Sha1) -> Result<Self, SignatureError> {
        let unsupported = |what: &str| SignatureError::Unsupported(format!("{} with {what}", scheme_name(kind, hash)));
        let (size, algorithms): (usize, Vec<&'static dyn VerificationAlgorithm>) = match (key, kind) {
            (KeyKind::Ecc { curve: Curve::Sm2P256, x, y }, SchemeKind::Sm2) if hash == Bank::Sm3_256 => {
                let keys = Keys::Sm2(Box::new(Sm2Key::new(x, y)?));
                return Ok(Self { kind, hash, size: 32, keys });
            }
            (KeyKind::Rsa { modulus, .. }, SchemeKind::RsaSsa | SchemeKind::RsaPss) => {
                (modulus.len(), rsa_algorithms(kind, hash, sha1).ok_or_else(|| unsupported("an RSA key"))?)
            }
            (KeyKind::Ecc { curve, .. }, SchemeKind::Ecdsa) => {
                let size = curve.field_size().ok_or_else(|| unsupported("this curve"))?;
                (size, vec![ecdsa_algorithm(*curve, hash).ok_or_else(|| unsupported("this curve"))?])
            }
            (KeyKind::Rsa { .. }, _) => return Err(unsupported("an RSA key")),
            (KeyKind::Ecc { .. }, _) => return Err(unsupported("an elliptic-curve key")),
        };
        let spki = super::spki::encode(key).map_err(|error| SignatureError::Key(error.to_string()))?;
        let keys = algorithms
            .into_iter()
            .map(|algorithm| ParsedPublicKey::new(algorithm, &spki))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| SignatureError::Key(error.to_string()))?;
        Ok(Self { kind, hash, size, keys: Keys::AwsLc(keys.into()) })
    }

    pub(crate) fn kind(&self) -> SchemeKind {
        self.kind
    }

    pub(crate) fn hash(&self) -> Bank {
        self.hash
    }

    pub(crate) fn verify(&self, signature: &Signature, message: &[u8]) -> Result<(), SignatureError> {
        if (signature.kind, signature.hash) != (self.kind, self.hash) {
            return Err(SignatureError::Scheme {
                expected: scheme_name(self.kind, self.hash),
                found: scheme_name(signature.kind, signature.hash),
            });
        }
        match (&self.keys, signature.numbers.as_slice()) {
            (Keys::AwsLc(keys), [number]) if number.len() == self.size => check(keys, message, number),
            (Keys::AwsLc(keys), [r, s]) if r.len() <= self.size && s.len() <= self.size => {
                check(keys, message, &ecdsa_der(r, s)?)
            }
            (Keys::Sm2(key), [r, s]) if r.len() <= self.size && s.len() <= self.size => key.verify(r, s, message),
            (_, numbers) => Err(SignatureError::Size {
                expected: self.size,
                found: numbers.iter().map(Vec::len).max().unwrap_or(0),
            }),
        }
    }

    /// What a signature by this key is that [`VerifyingKey::verify_plain`] checks.
    pub(crate) fn plain_form(&self) -> String {
        match self.kind {
            SchemeKind::RsaSsa | SchemeKind::RsaPss => format!("{} bytes of RSA", self.size),
            SchemeKind::Ecdsa | SchemeKind::Sm2 => "two numbers in DER".to_owned(),
        }
    }

    /// Whether a signature has the form that [`VerifyingKey::verify_plain`] checks, whoever made it.
    pub(crate) fn is_plain(&self, signature: &[u8]) -> bool {
        match self.kind {
            SchemeKind::RsaSsa | SchemeKind::RsaPss => signature.len() == self.size,
            SchemeKind::Ecdsa | SchemeKind::Sm2 => EcdsaSignature::from_der(signature).is_ok(),
        }
    }

    /// A signature as other programs write it: RSA's number, or the DER of an elliptic curve's two.
    pub(crate) fn verify_plain(&self, signature: &[u8], message: &[u8]) -> Result<(), SignatureError> {
        match &self.keys {
            Keys::AwsLc(keys) => check(keys, message, signature),
            Keys::Sm2(key) => {
                let EcdsaSignature { r, s } =
                    EcdsaSignature::from_der(signature).map_err(|_| SignatureError::Invalid)?;
                key.verify(r.as_bytes(), s.as_bytes(), message)
            }
        }
    }
}

fn check(keys: &[ParsedPublicKey], message: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
    if keys.iter().any(|key| key.verify_sig(message, signature).is_ok()) {
        Ok(())
    } else {
        Err(SignatureError::Invalid)
    }
}

impl std::fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&scheme_name(self.kind, self.hash))
    }
}

pub(super) fn scheme_name(kind: SchemeKind, hash: Bank) -> String {
    let kind = match kind {
        SchemeKind::RsaSsa => "RSASSA",
        SchemeKind::RsaPss => "RSAPSS",
        SchemeKind::Ecdsa => "ECDSA",
        SchemeKind::Sm2 => "SM2",
    };
    format!("{kind}-{hash}")
}

/// RSAPSS: the specification lets a TPM salt with as much as fits; FIPS has it salt with a digest's length.
static PSS_MAX_SHA256: RsaParameters = aws::RSA_PSS_2048_8192_SHA256.with_pss_salt_length(RsaPssSaltLength::Max);
static PSS_MAX_SHA384: RsaParameters = aws::RSA_PSS_2048_8192_SHA384.with_pss_salt_length(RsaPssSaltLength::Max);
static PSS_MAX_SHA512: RsaParameters = aws::RSA_PSS_2048_8192_SHA512.with_pss_salt_length(RsaPssSaltLength::Max);

fn rsa_algorithms(kind: SchemeKind, hash: Bank, sha1: Sha1) -> Option<Vec<&'static dyn VerificationAlgorithm>> {
    Some(match (kind, hash) {
        (SchemeKind::RsaSsa, Bank::Sha1) if sha1 == Sha1::Legacy => {
            vec![&aws::RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY]
        }
        (SchemeKind::RsaSsa, Bank::Sha256) => vec![&aws::RSA_PKCS1_2048_8192_SHA256],
        (SchemeKind::RsaSsa, Bank::Sha384) => vec![&aws::RSA_PKCS1_2048_8192_SHA384],
        (SchemeKind::RsaSsa, Bank::Sha512) => vec![&aws::RSA_PKCS1_2048_8192_SHA512],
        (SchemeKind::RsaPss, Bank::Sha256) => vec![&aws::RSA_PSS_2048_8192_SHA256, &PSS_MAX_SHA256],
        (SchemeKind::RsaPss, Bank::Sha384) => vec![&aws::RSA_PSS_2048_8192_SHA384, &PSS_MAX_SHA384],
        (SchemeKind::RsaPss, Bank::Sha512) => vec![&aws::RSA_PSS_2048_8192_SHA512, &PSS_MAX_SHA512],
        _ => return None,
    })
}

fn ecdsa_algorithm(curve: Curve, hash: Bank) -> Option<&'static dyn VerificationAlgorithm> {
    Some(match (curve, hash) {
        (Curve::P256, Bank::Sha256) => &aws::ECDSA_P256_SHA256_ASN1,
        (Curve::P256, Bank::Sha384) => &aws::ECDSA_P256_SHA384_ASN1,
        (Curve::P256, Bank::Sha512) => &aws::ECDSA_P256_SHA512_ASN1,
        (Curve::P384, Bank::Sha256) => &aws::ECDSA_P384_SHA256_ASN1,
        (Curve::P384, Bank::Sha384) => &aws::ECDSA_P384_SHA384_ASN1,
        (Curve::P384, Bank::Sha512) => &aws::ECDSA_P384_SHA512_ASN1,
        (Curve::P521, Bank::Sha256) => &aws::ECDSA_P521_SHA256_ASN1,
        (Curve::P521, Bank::Sha384) => &aws::ECDSA_P521_SHA384_ASN1,
        (Curve::P521, Bank::Sha512) => &aws::ECDSA_P521_SHA512_ASN1,
        _ => return None,
    })
}

/// Ecdsa-Sig-Value (RFC 3279, 2.2.3).
#[derive(Sequence)]
struct EcdsaSignature<'a> {
    r: UintRef<'a>,
    s: UintRef<'a>,
}

fn ecdsa_der(r: &[u8], s: &[u8]) -> Result<Vec<u8>, SignatureError> {
    UintRef::new(r)
        .and_then(|r| EcdsaSignature { r, s: UintRef::new(s)? }.to_der())
        .map_err(|_| SignatureError::Invalid)
}
