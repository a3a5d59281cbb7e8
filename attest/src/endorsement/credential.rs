//! TPM2_MakeCredential in software: a secret that only the TPM with this endorsement key and this attestation key can
//! give back (TPM 2.0 Library, Part 1, 24).

use serde::{Deserialize, Serialize};
use serde_with::base64::Base64;
use serde_with::serde_as;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::key::{KeyError, PublicArea};
use crate::protect::{ProtectError, Seed, Use};
use crate::wire::sized;

/// Why no credential is made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// The endorsement key cannot be read.
    #[error("endorsement key: {0}")]
    Key(#[from] KeyError),
    /// The secret does not fit: a TPM gives back at most as many bytes as the endorsement key's name algorithm has.
    #[error("a secret of {length} bytes does not fit: 1 to {most} bytes do")]
    Secret {
        /// The secret's length.
        length: usize,
        /// The most that fits.
        most: usize,
    },
    /// The name is not the attestation key's.
    #[error("an object name of {0} bytes is no name")]
    Name(usize),
    /// Nothing can be encrypted to the endorsement key.
    #[error(transparent)]
    Protect(#[from] ProtectError),
}

/// A challenge for TPM2_ActivateCredential.
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// TPM2B_ID_OBJECT: the secret, encrypted and bound to the attestation key's name.
    #[serde_as(as = "Base64")]
    pub blob: Vec<u8>,
    /// TPM2B_ENCRYPTED_SECRET: the seed of that encryption, for the endorsement key.
    #[serde_as(as = "Base64")]
    pub secret: Vec<u8>,
}

/// Encrypts `secret` so that only the TPM that holds both the endorsement key (TPMT_PUBLIC) and an object called
/// `ak_name` can decrypt it.
pub fn make_credential(ek_public: &[u8], ak_name: &[u8], secret: &[u8]) -> Result<Credential, CredentialError> {
    let ek = PublicArea::parse(ek_public)?;
    let most = ek.name_alg().digest_size();
    if secret.is_empty() || secret.len() > most {
        return Err(CredentialError::Secret { length: secret.len(), most });
    }
    // A name is a hash's id and its digest; shorter, it would be a handle, which binds nothing.
    if !(22..=66).contains(&ak_name.len()) {
        return Err(CredentialError::Name(ak_name.len()));
    }
    let content = sized(secret).map(Zeroizing::new).ok_or(ProtectError::TooLong(secret.len()))?;
    let seed = Seed::new(&ek, Use::Identity)?;
    let wrapped = seed.wrap(&content, ak_name)?;
    let blob = sized(&wrapped).ok_or(ProtectError::TooLong(wrapped.len()))?;
    Ok(Credential { blob, secret: seed.encrypted()? })
}
