//! SM2 signatures as TPMs make them (GB/T 32918.2-2016; TPM 2.0 Library, Part 1, C.5): of the plain SM3 digest of what is
//! signed. What the standard hashes first, the digest ZA of the signer's name and key, a TPM leaves to its caller.

use sm2::dsa::signature::hazmat::PrehashVerifier as _;
use sm2::dsa::{Signature, VerifyingKey};

use super::bank::Bank;
use super::signature::SignatureError;

/// Bytes of a number of the curve.
const SIZE: usize = 32;

/// A public key of SM2's curve.
#[derive(Clone)]
pub(super) struct Sm2Key(VerifyingKey);

impl Sm2Key {
    /// Refuses coordinates that are no point of the curve.
    pub fn new(x: &[u8], y: &[u8]) -> Result<Self, SignatureError> {
        let point = [&[0x04], x, y].concat();
        // The name goes into ZA alone, which is not used here.
        VerifyingKey::from_sec1_bytes("", &point)
            .map(Self)
            .map_err(|_| SignatureError::Key("not a point of SM2's curve".to_owned()))
    }

    /// Checks the signature (r, s), numbers of at most 32 bytes.
    pub fn verify(&self, r: &[u8], s: &[u8], message: &[u8]) -> Result<(), SignatureError> {
        let numbers = [padded(r)?, padded(s)?].concat();
        Signature::from_slice(&numbers)
            .and_then(|signature| self.0.verify_prehash(&Bank::Sm3_256.hash(message), &signature))
            .map_err(|_| SignatureError::Invalid)
    }
}

fn padded(number: &[u8]) -> Result<[u8; SIZE], SignatureError> {
    let mut out = [0; SIZE];
    let missing = SIZE.checked_sub(number.len()).ok_or(SignatureError::Size { expected: SIZE, found: number.len() })?;
    out.get_mut(missing..).ok_or(SignatureError::Invalid)?.copy_from_slice(number);
    Ok(out)
}
