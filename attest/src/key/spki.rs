//! SubjectPublicKeyInfo (RFC 5280, 4.1.2.7) of a TPM key, so that it can be compared with certificates.

use const_oid::ObjectIdentifier;
use der::asn1::{AnyRef, BitStringRef, Null, UintRef};
use der::{Decode as _, Encode as _, Sequence};

use super::public::{Curve, KeyError, KeyKind};

const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");

/// RSAPublicKey (RFC 8017, A.1.1).
#[derive(Sequence)]
struct RsaPublicKey<'a> {
    modulus: UintRef<'a>,
    exponent: UintRef<'a>,
}

const fn curve_oid(curve: Curve) -> Option<ObjectIdentifier> {
    match curve {
        Curve::P256 => Some(ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7")),
        Curve::P384 => Some(ObjectIdentifier::new_unwrap("1.3.132.0.34")),
        Curve::P521 => Some(ObjectIdentifier::new_unwrap("1.3.132.0.35")),
        Curve::Sm2P256 => Some(ObjectIdentifier::new_unwrap("1.2.156.10197.1.301")),
        Curve::Other(_) => None,
    }
}

pub(crate) fn encode(kind: &KeyKind) -> Result<Vec<u8>, KeyError> {
    match kind {
        KeyKind::Rsa { exponent, modulus, .. } => {
            let exponent = exponent.to_be_bytes();
            let key = UintRef::new(modulus)
                .and_then(|modulus| RsaPublicKey { modulus, exponent: UintRef::new(&exponent)? }.to_der())
                .map_err(|_| KeyError::Spki("RSA numbers"))?;
            spki(RSA_ENCRYPTION, Null.into(), &key)
        }
        KeyKind::Ecc { curve, x, y } => {
            let oid = curve_oid(*curve).ok_or(KeyError::Spki("the curve has no name known here"))?;
            let parameters = oid.to_der().map_err(|_| KeyError::Spki("curve name"))?;
            let parameters = AnyRef::from_der(&parameters).map_err(|_| KeyError::Spki("curve name"))?;
            spki(EC_PUBLIC_KEY, parameters, &[&[0x04], x.as_slice(), y.as_slice()].concat())
        }
    }
}

/// Reads a SubjectPublicKeyInfo, in the one form that [`encode`] writes.
pub(crate) fn decode(der: &[u8]) -> Result<KeyKind, KeyError> {
    let info =
        spki::SubjectPublicKeyInfoRef::from_der(der).map_err(|_| KeyError::Spki("not a SubjectPublicKeyInfo"))?;
    let key = info.subject_public_key.as_bytes().ok_or(KeyError::Spki("key bits"))?;
    let kind = if info.algorithm.oid == RSA_ENCRYPTION {
        let numbers = RsaPublicKey::from_der(key).map_err(|_| KeyError::Spki("RSA numbers"))?;
        let modulus = numbers.modulus.as_bytes().to_vec();
        let bits = modulus.len().checked_mul(8).and_then(|bits| u16::try_from(bits).ok());
        let exponent = numbers
            .exponent
            .as_bytes()
            .iter()
            .try_fold(0_u32, |sum, byte| Some(sum.checked_mul(256)? | u32::from(*byte)));
        let (Some(bits), Some(exponent)) = (bits, exponent) else { return Err(KeyError::Spki("RSA numbers")) };
        KeyKind::Rsa { bits, exponent, modulus }
    } else {
        let oid = info.algorithm.parameters.and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        let curve = [Curve::P256, Curve::P384, Curve::P521, Curve::Sm2P256]
            .into_iter()
            .find(|curve| info.algorithm.oid == EC_PUBLIC_KEY && curve_oid(*curve) == oid)
            .ok_or(KeyError::Spki("neither RSA nor a curve known here"))?;
        let point = key.strip_prefix(&[0x04]).ok_or(KeyError::Spki("the point is not in uncompressed form"))?;
        let (x, y) = point.split_at_checked(curve.field_size().unwrap_or(0)).ok_or(KeyError::Spki("the point"))?;
        KeyKind::Ecc { curve, x: x.to_vec(), y: y.to_vec() }
    };
    // Whatever else was in the bytes would be read by some and skipped by others.
    if encode(&kind)? == der { Ok(kind) } else { Err(KeyError::Spki("not in the one form that DER has for it")) }
}

fn spki(oid: ObjectIdentifier, parameters: AnyRef<'_>, key: &[u8]) -> Result<Vec<u8>, KeyError> {
    let subject_public_key = BitStringRef::from_bytes(key).map_err(|_| KeyError::Spki("key bits"))?;
    let algorithm = spki::AlgorithmIdentifier { oid, parameters: Some(parameters) };
    spki::SubjectPublicKeyInfo { algorithm, subject_public_key }
        .to_der()
        .map_err(|_| KeyError::Spki("SubjectPublicKeyInfo"))
}
