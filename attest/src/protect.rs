//! Encrypts to a TPM's storage key without a TPM: the seed exchange and the outer wrapper that TPM2_ActivateCredential
//! and TPM2_Import undo (TPM 2.0 Library, Part 1, 11.4.10, 23.3 and 24).

use aws_lc_rs::agreement::{self, EphemeralPrivateKey, UnparsedPublicKey};
use aws_lc_rs::cipher::{AES_128, AES_256, EncryptionContext, StreamingEncryptingKey, UnboundCipherKey};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OAEP_SHA384_MGF1SHA384, OAEP_SHA512_MGF1SHA512, OaepPublicEncryptingKey,
    PublicEncryptingKey,
};
use thiserror::Error;
use zeroize::{Zeroize as _, Zeroizing};

use crate::key::{Bank, Curve, KeyKind, PublicArea, Symmetric};
use crate::wire::sized;

/// Why nothing can be encrypted to a key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProtectError {
    /// The key has a name algorithm, cipher, size or curve with which no storage key that we trust is made.
    #[error("nothing can be encrypted to this key: {0}")]
    Unsupported(&'static str),
    /// The key's numbers are no key.
    #[error("nothing can be encrypted to this key: it is not valid")]
    Key,
    /// What is to be encrypted does not fit.
    #[error("{0} bytes are too many to encrypt to a TPM key")]
    TooLong(usize),
    /// The cryptographic library failed, which it does only when the machine is out of memory or randomness.
    #[error("the cryptographic library failed in {0}")]
    Crypto(&'static str),
}

/// What a seed is for; the label keeps one use from passing as another.
#[derive(Clone, Copy)]
pub(crate) enum Use {
    /// A credential for TPM2_ActivateCredential.
    Identity,
    /// An object for TPM2_Import.
    Duplicate,
}

impl Use {
    /// The label, with the zero that ends it (Part 1, 11.4.10.2: the terminator is hashed too).
    const fn label(self) -> &'static [u8] {
        match self {
            Self::Identity => b"IDENTITY\0",
            Self::Duplicate => b"DUPLICATE\0",
        }
    }
}

/// A seed that only the TPM of the storage key can recover, and from which that TPM derives the wrapper's keys.
pub(crate) struct Seed<'a> {
    key: &'a PublicArea,
    plain: Zeroizing<Vec<u8>>,
    encrypted: Vec<u8>,
}

impl<'a> Seed<'a> {
    /// Makes a seed for `key`.
    pub fn new(key: &'a PublicArea, purpose: Use) -> Result<Self, ProtectError> {
        let (plain, encrypted) = match key.kind() {
            KeyKind::Rsa { .. } => rsa_seed(key, purpose)?,
            KeyKind::Ecc { curve, x, y } => ecc_seed(key.name_alg(), *curve, x, y, purpose)?,
        };
        Ok(Self { key, plain, encrypted })
    }

    /// The seed as TPM2B_ENCRYPTED_SECRET.
    pub fn encrypted(&self) -> Result<Vec<u8>, ProtectError> {
        sized(&self.encrypted).ok_or(ProtectError::TooLong(self.encrypted.len()))
    }

    /// Encrypts `content` for the object called `name`, and authenticates both: the integrity value as TPM2B, then the
    /// ciphertext.
    pub fn wrap(&self, content: &[u8], name: &[u8]) -> Result<Vec<u8>, ProtectError> {
        let hash = self.key.name_alg();
        let Symmetric::AesCfb(bits) = self.key.symmetric() else {
            return Err(ProtectError::Unsupported("it does not protect its children with AES-CFB"));
        };
        let cipher_key = kdfa(hash, &self.plain, b"STORAGE\0", name, usize::from(bits / 8))?;
        let ciphertext = aes_cfb(&cipher_key, content)?;
        let hmac_key = kdfa(hash, &self.plain, b"INTEGRITY\0", &[], hash.digest_size())?;
        let mut integrity = hmac::Context::with_key(&hmac::Key::new(hmac_algorithm(hash)?, &hmac_key));
        integrity.update(&ciphertext);
        integrity.update(name);
        let mut out = sized(integrity.sign().as_ref()).ok_or(ProtectError::Crypto("HMAC"))?;
        out.extend(ciphertext);
        Ok(out)
    }
}

/// Fills `count` bytes from the system's random source.
pub(crate) fn random(count: usize) -> Result<Zeroizing<Vec<u8>>, ProtectError> {
    let mut bytes = Zeroizing::new(vec![0; count]);
    SystemRandom::new().fill(&mut bytes).map_err(|_| ProtectError::Crypto("the random generator"))?;
    Ok(bytes)
}

type SeedAndSecret = (Zeroizing<Vec<u8>>, Vec<u8>);

/// RSA: the seed is random, encrypted with OAEP of the key's name algorithm (Part 1, B.10.3).
fn rsa_seed(key: &PublicArea, purpose: Use) -> Result<SeedAndSecret, ProtectError> {
    let algorithm = match key.name_alg() {
        Bank::Sha256 => &OAEP_SHA256_MGF1SHA256,
        Bank::Sha384 => &OAEP_SHA384_MGF1SHA384,
        Bank::Sha512 => &OAEP_SHA512_MGF1SHA512,
        Bank::Sha1 | Bank::Sm3_256 => return Err(ProtectError::Unsupported("its name algorithm is not of SHA-2")),
    };
    let spki = key.spki_der().map_err(|_| ProtectError::Key)?;
    let public = PublicEncryptingKey::from_der(&spki).map_err(|_| ProtectError::Key)?;
    let public = OaepPublicEncryptingKey::new(public).map_err(|_| ProtectError::Key)?;
    let seed = random(key.name_alg().digest_size())?;
    let mut encrypted = vec![0; public.ciphertext_size()];
    public
        .encrypt(algorithm, &seed, &mut encrypted, Some(purpose.label()))
        .map_err(|_| ProtectError::Crypto("OAEP"))?;
    Ok((seed, encrypted))
}

/// Elliptic curves: the seed is derived from a one-pass Diffie-Hellman with a fresh key (Part 1, C.6.1).
fn ecc_seed(hash: Bank, curve: Curve, x: &[u8], y: &[u8], purpose: Use) -> Result<SeedAndSecret, ProtectError> {
    let algorithm = match curve {
        Curve::P256 => &agreement::ECDH_P256,
        Curve::P384 => &agreement::ECDH_P384,
        Curve::P521 => &agreement::ECDH_P521,
        Curve::Sm2P256 | Curve::Other(_) => return Err(ProtectError::Unsupported("its curve is not a NIST curve")),
    };
    let rng = SystemRandom::new();
    let ours = EphemeralPrivateKey::generate(algorithm, &rng).map_err(|_| ProtectError::Crypto("key generation"))?;
    let public = ours.compute_public_key().map_err(|_| ProtectError::Crypto("key generation"))?;
    let point = public.as_ref().strip_prefix(&[4]).ok_or(ProtectError::Crypto("key generation"))?;
    let (our_x, our_y) = point.split_at_checked(point.len() / 2).ok_or(ProtectError::Crypto("key generation"))?;
    let theirs = UnparsedPublicKey::new(algorithm, [&[4], x, y].concat());
    let seed = agreement::agree_ephemeral(ours, theirs, ProtectError::Key, |shared| {
        kdfe(hash, shared, purpose.label(), our_x, x)
    })?;
    let coordinate = |number| sized(number).ok_or(ProtectError::Crypto("key generation"));
    Ok((seed, [coordinate(our_x)?, coordinate(our_y)?].concat()))
}

/// KDFe (Part 1, 11.4.10.3) for as many bits as the hash has, so one round.
fn kdfe(hash: Bank, shared: &[u8], label: &[u8], u: &[u8], v: &[u8]) -> Result<Zeroizing<Vec<u8>>, ProtectError> {
    if hash == Bank::Sha1 {
        return Err(ProtectError::Unsupported("its name algorithm is not of SHA-2"));
    }
    Ok(Zeroizing::new(hash.hash_parts(&[&1_u32.to_be_bytes(), shared, label, u, v])))
}

/// KDFa (Part 1, 11.4.10.2): HMAC in counter mode. `context` is contextU; contextV is empty wherever we derive.
fn kdfa(
    hash: Bank,
    key: &[u8],
    label: &[u8],
    context: &[u8],
    bytes: usize,
) -> Result<Zeroizing<Vec<u8>>, ProtectError> {
    // Callers ask for a cipher's key or a digest: one round always gives enough.
    let bits = u32::try_from(bytes.saturating_mul(8)).map_err(|_| ProtectError::TooLong(bytes))?;
    let mut round = hmac::Context::with_key(&hmac::Key::new(hmac_algorithm(hash)?, key));
    for part in [&1_u32.to_be_bytes(), label, context, &bits.to_be_bytes()] {
        round.update(part);
    }
    let mut derived = Zeroizing::new(round.sign().as_ref().to_vec());
    if derived.len() < bytes {
        return Err(ProtectError::Unsupported("its cipher needs a longer key than its name algorithm gives"));
    }
    derived.truncate(bytes);
    Ok(derived)
}

fn hmac_algorithm(hash: Bank) -> Result<hmac::Algorithm, ProtectError> {
    match hash {
        Bank::Sha256 => Ok(hmac::HMAC_SHA256),
        Bank::Sha384 => Ok(hmac::HMAC_SHA384),
        Bank::Sha512 => Ok(hmac::HMAC_SHA512),
        Bank::Sha1 | Bank::Sm3_256 => Err(ProtectError::Unsupported("its name algorithm is not of SHA-2")),
    }
}

/// AES-CFB with an IV of zeros: every key is used for one message, so the IV need not vary (Part 1, 24.4).
fn aes_cfb(key: &[u8], content: &[u8]) -> Result<Vec<u8>, ProtectError> {
    let algorithm = match key.len() {
        16 => &AES_128,
        32 => &AES_256,
        _ => return Err(ProtectError::Unsupported("its cipher is neither AES-128 nor AES-256")),
    };
    let failed = |_| ProtectError::Crypto("AES");
    let key = UnboundCipherKey::new(algorithm, key).map_err(failed)?;
    let iv = EncryptionContext::Iv128(FixedLength::from([0; 16]));
    let mut cipher = StreamingEncryptingKey::less_safe_cfb128(key, iv).map_err(failed)?;
    // The library wants room for one more block than it writes.
    let mut out = vec![0; content.len().saturating_add(16)];
    let written = cipher.update(content, &mut out).map_err(failed)?.written().len();
    let (_, rest) = cipher.finish(out.get_mut(written..).unwrap_or_default()).map_err(failed)?;
    let total = written.saturating_add(rest.written().len());
    if total != content.len() {
        out.zeroize();
        return Err(ProtectError::Crypto("AES"));
    }
    out.truncate(total);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cfb_is_that_of_the_standard() {
        // NIST SP 800-38A F.3.13 has another IV; with an IV of zeros the first block is E(0) xor P, and the second
        // E(C1) xor P. FIPS 197's known answer for AES-128(K=0, 0) gives the first.
        let out = aes_cfb(&[0; 16], &[0; 20]).unwrap();
        assert_eq!(hex::encode(&out[..16]), "66e94bd4ef8a2c3b884cfa59ca342b2e");
        // AES-128(K=0, 66e94bd4ef8a2c3b884cfa59ca342b2e), first bytes.
        assert_eq!(hex::encode(&out[16..]), "f795bd4a");
    }
}
