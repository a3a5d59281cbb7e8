//! TPMT_PUBLIC: the public half of a TPM object (TPM 2.0 Library, Part 2, 12.2).

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::bank::Bank;
use crate::wire::{self, Reader, WireError};

const ALG_RSA: u16 = 0x0001;
const ALG_AES: u16 = 0x0006;
const ALG_KEYED_HASH: u16 = 0x0008;
const ALG_NULL: u16 = 0x0010;
const ALG_SM4: u16 = 0x0013;
const ALG_RSASSA: u16 = 0x0014;
const ALG_RSAES: u16 = 0x0015;
const ALG_RSAPSS: u16 = 0x0016;
const ALG_OAEP: u16 = 0x0017;
const ALG_ECDSA: u16 = 0x0018;
const ALG_ECDH: u16 = 0x0019;
const ALG_SM2: u16 = 0x001B;
const ALG_ECC: u16 = 0x0023;
const ALG_SYMCIPHER: u16 = 0x0025;
const ALG_CAMELLIA: u16 = 0x0026;
const ALG_CFB: u16 = 0x0043;

/// The exponent that a TPM means by 0.
const DEFAULT_EXPONENT: u32 = 65_537;
/// Longest public area read; a 4096-bit RSA key's has about 600 bytes.
const MAX_PUBLIC: usize = 1024;

/// Why bytes are not the public area of an asymmetric key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Sizes do not add up, or bytes are left over.
    #[error("TPMT_PUBLIC: {0}")]
    Wire(#[from] WireError),
    /// Longer than any public area.
    #[error("TPMT_PUBLIC: {0} bytes are more than any public area has")]
    TooLong(usize),
    /// Neither RSA nor ECC.
    #[error("TPMT_PUBLIC: type {0:#06x} is neither RSA (0x0001) nor ECC (0x0023)")]
    Kind(u16),
    /// TPM_ALG_NULL or an unknown hash: such an object has no name.
    #[error("TPMT_PUBLIC: name algorithm {0:#06x} is no hash known here, so the object has no name")]
    NameAlgorithm(u16),
    /// The policy digest has not the name algorithm's length.
    #[error("TPMT_PUBLIC: an authorisation policy of {0} bytes does not fit the name algorithm")]
    Policy(usize),
    /// A scheme that is unknown, or has no place in a key of this kind.
    #[error("TPMT_PUBLIC: {what} {id:#06x} is not known for this kind of key")]
    Scheme {
        /// Which scheme.
        what: &'static str,
        /// Its algorithm id.
        id: u16,
    },
    /// Modulus, exponent or coordinates that no key has.
    #[error("TPMT_PUBLIC: {0}")]
    Unique(&'static str),
    /// The key's parameters cannot be written as a SubjectPublicKeyInfo, or none can be read.
    #[error("SubjectPublicKeyInfo: {0}")]
    Spki(&'static str),
}

/// TPMA_OBJECT: what a TPM lets an object do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Attributes(pub u32);

impl Attributes {
    /// fixedTPM: cannot be duplicated.
    pub const FIXED_TPM: u32 = 1 << 1;
    /// stClear: dies at the next startup with state cleared.
    pub const ST_CLEAR: u32 = 1 << 2;
    /// fixedParent: cannot be moved under another parent.
    pub const FIXED_PARENT: u32 = 1 << 4;
    /// sensitiveDataOrigin: the TPM made the secret.
    pub const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
    /// userWithAuth: the authorisation value opens it for use.
    pub const USER_WITH_AUTH: u32 = 1 << 6;
    /// adminWithPolicy: administration needs the policy.
    pub const ADMIN_WITH_POLICY: u32 = 1 << 7;
    /// noDA: failures do not count towards a lockout.
    pub const NO_DA: u32 = 1 << 10;
    /// encryptedDuplication: duplication needs an inner wrapper.
    pub const ENCRYPTED_DUPLICATION: u32 = 1 << 11;
    /// restricted: works only on structures of the TPM's own making.
    pub const RESTRICTED: u32 = 1 << 16;
    /// decrypt: the private part may decrypt.
    pub const DECRYPT: u32 = 1 << 17;
    /// sign: the private part may sign.
    pub const SIGN: u32 = 1 << 18;
    /// x509sign: the private part signs certificates only.
    pub const X509_SIGN: u32 = 1 << 19;

    /// Whether all of `bits` are set.
    #[must_use]
    pub const fn has(self, bits: u32) -> bool {
        self.0 & bits == bits
    }
}

impl std::fmt::Debug for Attributes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

/// An elliptic curve of the TCG registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Curve {
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
    /// NIST P-521.
    P521,
    /// SM2's curve.
    Sm2P256,
    /// Any other curve, by its TPM_ECC_CURVE.
    Other(u16),
}

impl Curve {
    fn from_id(id: u16) -> Self {
        match id {
            0x0003 => Self::P256,
            0x0004 => Self::P384,
            0x0005 => Self::P521,
            0x0020 => Self::Sm2P256,
            other => Self::Other(other),
        }
    }

    /// Bytes of a coordinate, for curves known here.
    #[must_use]
    pub const fn field_size(self) -> Option<usize> {
        match self {
            Self::P256 | Self::Sm2P256 => Some(32),
            Self::P384 => Some(48),
            Self::P521 => Some(66),
            Self::Other(_) => None,
        }
    }
}

/// The kind of a signing scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SchemeKind {
    /// RSASSA-PKCS1-v1_5.
    RsaSsa,
    /// RSASSA-PSS.
    RsaPss,
    /// ECDSA.
    Ecdsa,
    /// SM2.
    Sm2,
}

impl SchemeKind {
    pub(super) fn from_tpm_alg_id(id: u16) -> Option<Self> {
        match id {
            ALG_RSASSA => Some(Self::RsaSsa),
            ALG_RSAPSS => Some(Self::RsaPss),
            ALG_ECDSA => Some(Self::Ecdsa),
            ALG_SM2 => Some(Self::Sm2),
            _ => None,
        }
    }
}

/// The scheme that a key is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scheme {
    /// TPM_ALG_NULL: the caller of the TPM chooses.
    Any,
    /// Signing, with this hash; `None` is a hash unknown here.
    Sign(SchemeKind, Option<Bank>),
    /// Decryption or key agreement.
    Other(u16),
}

/// The symmetric cipher that a storage key protects its children with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Symmetric {
    /// TPM_ALG_NULL: not a storage key.
    None,
    /// AES in CFB mode, with a key of this many bits.
    AesCfb(u16),
    /// Something else: algorithm, bits, mode.
    Other(u16, u16, u16),
}

/// What kind of key it is, with its public numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyKind {
    /// RSA.
    Rsa {
        /// Length of the modulus in bits.
        bits: u16,
        /// The public exponent (a TPM's 0 is given as 65537).
        exponent: u32,
        /// The modulus, big-endian, as long as `bits` says.
        modulus: Vec<u8>,
    },
    /// An elliptic curve point.
    Ecc {
        /// The curve.
        curve: Curve,
        /// The x coordinate, big-endian, as long as the field for known curves.
        x: Vec<u8>,
        /// The y coordinate, of the same form.
        y: Vec<u8>,
    },
}

/// The public area of an RSA or ECC object, exactly as the TPM gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicArea {
    bytes: Vec<u8>,
    name_alg: Bank,
    attributes: Attributes,
    policy: Vec<u8>,
    symmetric: Symmetric,
    scheme: Scheme,
    kind: KeyKind,
}

impl PublicArea {
    /// Reads a TPMT_PUBLIC that fills `tpmt_public` exactly.
    pub fn parse(tpmt_public: &[u8]) -> Result<Self, KeyError> {
        if tpmt_public.len() > MAX_PUBLIC {
            return Err(KeyError::TooLong(tpmt_public.len()));
        }
        let mut reader = Reader::new(tpmt_public);
        let kind_id = reader.u16("type")?;
        if kind_id != ALG_RSA && kind_id != ALG_ECC {
            return Err(KeyError::Kind(kind_id));
        }
        let name_id = reader.u16("nameAlg")?;
        let name_alg = Bank::from_tpm_alg_id(name_id).ok_or(KeyError::NameAlgorithm(name_id))?;
        let attributes = Attributes(reader.u32("objectAttributes")?);
        let policy = reader.sized("authPolicy")?.to_vec();
        if !policy.is_empty() && policy.len() != name_alg.digest_size() {
            return Err(KeyError::Policy(policy.len()));
        }
        let symmetric = read_symmetric(&mut reader)?;
        let (scheme, kind) = if kind_id == ALG_RSA { read_rsa(&mut reader) } else { read_ecc(&mut reader) }?;
        reader.finish()?;
        Ok(Self { bytes: tpmt_public.to_vec(), name_alg, attributes, policy, symmetric, scheme, kind })
    }

    /// Reads a TPM2B_PUBLIC: a length, and a TPMT_PUBLIC of that length.
    pub fn parse_tpm2b(tpm2b_public: &[u8]) -> Result<Self, KeyError> {
        let mut reader = Reader::new(tpm2b_public);
        let area = reader.sized("TPM2B_PUBLIC")?;
        reader.finish()?;
        Self::parse(area)
    }

    /// Reads a TPMT_PUBLIC or a TPM2B_PUBLIC. The first begins with the type of an object; as the length of the second these
    /// numbers would be too small.
    pub fn parse_either(bytes: &[u8]) -> Result<Self, KeyError> {
        match Reader::new(bytes).u16("type or length")? {
            ALG_RSA | ALG_KEYED_HASH | ALG_ECC | ALG_SYMCIPHER => Self::parse(bytes),
            _ => Self::parse_tpm2b(bytes),
        }
    }

    /// The TPMT_PUBLIC, as read.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The TPM2B_PUBLIC.
    #[must_use]
    pub fn to_tpm2b(&self) -> Vec<u8> {
        // `parse` bounds the length far below what a TPM2B can hold.
        wire::sized(&self.bytes).unwrap_or_default()
    }

    /// The hash that names the object.
    #[must_use]
    pub fn name_alg(&self) -> Bank {
        self.name_alg
    }

    /// What the TPM lets the object do.
    #[must_use]
    pub fn attributes(&self) -> Attributes {
        self.attributes
    }

    /// The policy that authorises its use; empty if there is none.
    #[must_use]
    pub fn policy(&self) -> &[u8] {
        &self.policy
    }

    /// The cipher that protects its children.
    #[must_use]
    pub fn symmetric(&self) -> Symmetric {
        self.symmetric
    }

    /// The scheme that it is bound to.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The kind of key, with its public numbers.
    #[must_use]
    pub fn kind(&self) -> &KeyKind {
        &self.kind
    }

    /// The object's name: the name algorithm's id and its hash of the public area (Part 1, 16).
    #[must_use]
    pub fn name(&self) -> Vec<u8> {
        named(self.name_alg, &[&self.bytes])
    }

    /// The qualified name under a parent with the qualified name `parent`.
    #[must_use]
    pub fn qualified_name(&self, parent: &[u8]) -> Vec<u8> {
        named(self.name_alg, &[parent, &self.name()])
    }

    /// The qualified name as a primary object of the hierarchy with this handle (TPM_RH_…).
    #[must_use]
    pub fn qualified_name_in_hierarchy(&self, hierarchy: u32) -> Vec<u8> {
        self.qualified_name(&hierarchy.to_be_bytes())
    }

    /// The key as DER SubjectPublicKeyInfo.
    pub fn spki_der(&self) -> Result<Vec<u8>, KeyError> {
        super::spki::encode(&self.kind)
    }

    /// The key's fingerprint: SHA-256 of its DER SubjectPublicKeyInfo. Operators admit endorsement keys by it.
    ///
    /// # Errors
    /// If the key is of a kind that has no SubjectPublicKeyInfo here.
    pub fn fingerprint(&self) -> Result<[u8; 32], KeyError> {
        Ok(Sha256::digest(self.spki_der()?).into())
    }
}

fn named(algorithm: Bank, parts: &[&[u8]]) -> Vec<u8> {
    let mut name = algorithm.tpm_alg_id().to_be_bytes().to_vec();
    name.extend(algorithm.hash_parts(parts));
    name
}

fn read_symmetric(reader: &mut Reader<'_>) -> Result<Symmetric, KeyError> {
    let algorithm = reader.u16("symmetric")?;
    match algorithm {
        ALG_NULL => Ok(Symmetric::None),
        ALG_AES | ALG_SM4 | ALG_CAMELLIA => {
            let bits = reader.u16("symmetric key bits")?;
            let mode = reader.u16("symmetric mode")?;
            Ok(if algorithm == ALG_AES && mode == ALG_CFB {
                Symmetric::AesCfb(bits)
            } else {
                Symmetric::Other(algorithm, bits, mode)
            })
        }
        id => Err(KeyError::Scheme { what: "symmetric algorithm", id }),
    }
}

fn read_scheme(reader: &mut Reader<'_>, allowed: &[u16]) -> Result<Scheme, KeyError> {
    let id = reader.u16("scheme")?;
    if id == ALG_NULL {
        return Ok(Scheme::Any);
    }
    if !allowed.contains(&id) {
        return Err(KeyError::Scheme { what: "scheme", id });
    }
    if id == ALG_RSAES {
        return Ok(Scheme::Other(id));
    }
    let hash = Bank::from_tpm_alg_id(reader.u16("scheme hash")?);
    Ok(match SchemeKind::from_tpm_alg_id(id) {
        Some(kind) => Scheme::Sign(kind, hash),
        None => Scheme::Other(id),
    })
}

fn read_rsa(reader: &mut Reader<'_>) -> Result<(Scheme, KeyKind), KeyError> {
    let scheme = read_scheme(reader, &[ALG_RSASSA, ALG_RSAPSS, ALG_RSAES, ALG_OAEP])?;
    let bits = reader.u16("keyBits")?;
    let exponent = match reader.u32("exponent")? {
        0 => DEFAULT_EXPONENT,
        other => other,
    };
    let modulus = reader.sized("modulus")?.to_vec();
    if bits == 0 || modulus.len().saturating_mul(8) != usize::from(bits) {
        return Err(KeyError::Unique("the modulus has another length than keyBits says"));
    }
    if modulus.first().is_none_or(|byte| byte & 0x80 == 0) || modulus.last().is_none_or(|byte| byte & 1 == 0) {
        return Err(KeyError::Unique("the modulus is even, or shorter than keyBits says"));
    }
    Ok((scheme, KeyKind::Rsa { bits, exponent, modulus }))
}

fn read_ecc(reader: &mut Reader<'_>) -> Result<(Scheme, KeyKind), KeyError> {
    let scheme = read_scheme(reader, &[ALG_ECDSA, ALG_SM2, ALG_ECDH])?;
    let curve = Curve::from_id(reader.u16("curveID")?);
    let kdf = reader.u16("kdf")?;
    if kdf != ALG_NULL {
        // TPMs ignore it and require TPM_ALG_NULL; a value here would be a key that no TPM made.
        return Err(KeyError::Scheme { what: "kdf", id: kdf });
    }
    let x = coordinate(reader.sized("x")?, curve)?;
    let y = coordinate(reader.sized("y")?, curve)?;
    Ok((scheme, KeyKind::Ecc { curve, x, y }))
}

/// A coordinate of the field's length. Some TPMs leave out leading zeros; names are made of the bytes as received, so
/// putting the zeros back here changes nothing that is signed.
fn coordinate(bytes: &[u8], curve: Curve) -> Result<Vec<u8>, KeyError> {
    let Some(size) = curve.field_size() else { return Ok(bytes.to_vec()) };
    let missing = size.checked_sub(bytes.len()).filter(|_| !bytes.is_empty());
    let Some(missing) = missing else {
        return Err(KeyError::Unique("a coordinate is empty or longer than the curve's field"));
    };
    Ok([vec![0; missing], bytes.to_vec()].concat())
}
