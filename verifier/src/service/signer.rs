//! What signs: ES256 keys, each with the RFC 7638 thumbprint as its id.

use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

/// Why a key cannot be used or something cannot be signed.
#[derive(Debug, thiserror::Error)]
#[error("signing (ES256): {0}")]
pub struct SignerError(#[from] jsonwebtoken::errors::Error);

/// A signing key.
#[derive(Clone)]
pub struct Signer {
    key: EncodingKey,
    jwk: Jwk,
    kid: String,
}

impl Signer {
    /// A signer from a P-256 key in PKCS#8 PEM.
    pub fn from_pem(pem: &str) -> Result<Self, SignerError> {
        let key = EncodingKey::from_ec_pem(pem.as_bytes())?;
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256)?;
        let kid = jwk.thumbprint(ThumbprintHash::SHA256)?;
        jwk.common.key_id = Some(kid.clone());
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(Self { key, jwk, kid })
    }

    /// The public key.
    pub fn jwk(&self) -> &Jwk {
        &self.jwk
    }

    /// A key set with this key alone, as JSON.
    pub fn jwks_json(&self) -> Result<String, SignerError> {
        let set = JwkSet { keys: vec![self.jwk.clone()] };
        Ok(serde_json::to_string_pretty(&set).map_err(jsonwebtoken::errors::Error::from)?)
    }

    /// Signs `claims` as a JWS whose header says what it is (`typ`) and which key signed it.
    pub fn sign(&self, typ: &str, claims: &impl Serialize) -> Result<String, SignerError> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = Some(typ.to_owned());
        header.kid = Some(self.kid.clone());
        Ok(jsonwebtoken::encode(&header, claims, &self.key)?)
    }
}
