//! Volume keys at rest: AES-256-GCM under the key-encryption key, bound to tenant and volume.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

/// What a volume key cannot be, or could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The library refused the key or has no random bytes.
    #[error("a volume key could not be encrypted")]
    Seal,
    /// The ciphertext is not this volume's, or the key-encryption key is another one.
    #[error(
        "the key of volume {volume:?} of tenant {tenant:?} does not decrypt: the database and volume.kek do not belong together, or the row was changed"
    )]
    Open {
        /// The tenant.
        tenant: String,
        /// The volume.
        volume: String,
    },
}

/// Encrypts and decrypts volume keys.
pub struct Vault {
    key: LessSafeKey,
}

/// Names are at most 64 bytes and hold no NUL, so this is one string for one pair.
fn aad(tenant: &str, volume: &str) -> Aad<Vec<u8>> {
    Aad::from([b"portcullis/volume-key/1", tenant.as_bytes(), volume.as_bytes()].join(&0))
}

impl Vault {
    /// A vault with the key-encryption key `kek`.
    pub fn new(kek: &[u8; 32]) -> Result<Self, VaultError> {
        let key = UnboundKey::new(&AES_256_GCM, kek).map_err(|_| VaultError::Seal)?;
        Ok(Self { key: LessSafeKey::new(key) })
    }

    /// Encrypts `key` for the volume: nonce, ciphertext, tag.
    pub fn seal(&self, tenant: &str, volume: &str, key: &[u8]) -> Result<Vec<u8>, VaultError> {
        let mut nonce = [0u8; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| VaultError::Seal)?;
        // Encrypted in place: the buffer that held the key holds the ciphertext afterwards.
        let mut sealed = Vec::with_capacity(key.len().saturating_add(64));
        sealed.extend_from_slice(key);
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad(tenant, volume), &mut sealed)
            .map_err(|_| VaultError::Seal)?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// Decrypts what [`Vault::seal`] made for the same tenant and volume.
    pub fn open(&self, tenant: &str, volume: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let broken = || VaultError::Open { tenant: tenant.to_owned(), volume: volume.to_owned() };
        let (nonce, ciphertext) = sealed.split_first_chunk::<NONCE_LEN>().ok_or_else(broken)?;
        let mut buffer = Zeroizing::new(ciphertext.to_vec());
        let length = self
            .key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), aad(tenant, volume), &mut buffer)
            .map_err(|_| broken())?
            .len();
        buffer.truncate(length);
        Ok(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_opens_only_for_its_tenant_and_volume_and_only_whole() {
        let vault = Vault::new(&[7; 32]).unwrap();
        let sealed = vault.seal("a", "bc", b"the key of a volume").unwrap();
        assert_eq!(vault.open("a", "bc", &sealed).unwrap().as_slice(), b"the key of a volume");
        assert!(!sealed.windows(7).any(|w| w == b"the key"));
        assert!(vault.open("ab", "c", &sealed).is_err());
        assert!(vault.open("a", "b", &sealed).is_err());
        assert!(Vault::new(&[8; 32]).unwrap().open("a", "bc", &sealed).is_err());
        for cut in 0..sealed.len() {
            assert!(vault.open("a", "bc", &sealed[..cut]).is_err());
        }
        assert_ne!(sealed, vault.seal("a", "bc", b"the key of a volume").unwrap());
    }
}
