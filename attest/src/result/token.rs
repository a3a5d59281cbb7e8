//! Results as tokens: JWT signed with ES256 (RFC 7519, RFC 7518).

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use der::SecretDocument;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::{AttestationResult, ResultClaims};
use crate::endorsement::{JwsError, VerifierKeys};

/// `typ` of a result's JWS header.
pub const TYP: &str = "JWT";

/// Why a token is refused, or cannot be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Not a JWS that one of the keys signed, or not the claims of a result.
    #[error("the result does not hold: {0}")]
    Jws(#[from] JwsError),
    /// Not about exactly one host.
    #[error("the token is about {0} hosts, and not about one")]
    Hosts(usize),
    /// Not valid at this time.
    #[error("the result held from {issued_at} to {expires_at}, and it is {now} (seconds since 1970)")]
    Expired {
        /// From when it holds.
        issued_at: u64,
        /// Until when it holds.
        expires_at: u64,
        /// When it was asked.
        now: u64,
    },
    /// The key cannot sign tokens.
    #[error("not a private key that signs tokens (PKCS#8 PEM, ECDSA P-256): {0}")]
    Key(String),
    /// No random numbers, or nothing that JSON holds.
    #[error("the token could not be signed")]
    Sign,
}

impl ResultClaims {
    /// Reads a token that one of `keys` signed. Whether it still holds is asked with [`ResultClaims::holds_at`].
    ///
    /// # Errors
    /// If none of the keys signed it, or it is no result about one host.
    pub fn from_token(token: &str, keys: &VerifierKeys) -> Result<Self, TokenError> {
        let result: Self = keys.read(TYP, token)?;
        match result.submods.len() {
            1 => Ok(result),
            other => Err(TokenError::Hosts(other)),
        }
    }

    /// Whether it holds at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// If it has expired, or is from the future.
    pub const fn holds_at(&self, now: u64) -> Result<(), TokenError> {
        if self.iat <= now && now < self.exp {
            return Ok(());
        }
        Err(TokenError::Expired { issued_at: self.iat, expires_at: self.exp, now })
    }
}

/// A public key, as a member of a JWKS (RFC 7517).
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
pub struct Jwk {
    kty: &'static str,
    crv: &'static str,
    alg: &'static str,
    #[serde(rename = "use")]
    usage: &'static str,
    /// Its RFC 7638 thumbprint.
    pub kid: String,
    x: String,
    y: String,
}

/// Signs results: ECDSA P-256.
pub struct TokenSigner {
    key: EcdsaKeyPair,
    jwk: Jwk,
}

#[derive(Serialize)]
struct Header<'a> {
    alg: &'a str,
    typ: &'a str,
    kid: &'a str,
}

impl TokenSigner {
    /// A new key, whose private half nobody can ask for.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn generate() -> Result<Self, TokenError> {
        Self::new(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(|_| TokenError::Sign)?)
    }

    /// Reads a private key in PKCS#8 PEM.
    ///
    /// # Errors
    /// If it is none, or not of P-256.
    pub fn from_pem(pem: &str) -> Result<Self, TokenError> {
        let (label, document) = SecretDocument::from_pem(pem).map_err(|error| TokenError::Key(error.to_string()))?;
        if label != "PRIVATE KEY" {
            return Err(TokenError::Key(format!("it is a {label}")));
        }
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_bytes());
        Self::new(key.map_err(|error| TokenError::Key(error.to_string()))?)
    }

    fn new(key: EcdsaKeyPair) -> Result<Self, TokenError> {
        let point = key.public_key().as_ref();
        let (Some(x), Some(y)) = (point.get(1..33), point.get(33..65)) else {
            return Err(TokenError::Key("its public key is no point of P-256".to_owned()));
        };
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        // The members that RFC 7638 names, in its order.
        let members = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        let kid = URL_SAFE_NO_PAD.encode(Sha256::digest(members));
        Ok(Self { key, jwk: Jwk { kty: "EC", crv: "P-256", alg: "ES256", usage: "sig", kid, x, y } })
    }

    /// The public key.
    pub const fn jwk(&self) -> &Jwk {
        &self.jwk
    }

    /// The token of a result.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn sign(&self, result: &AttestationResult) -> Result<String, TokenError> {
        let header = Header { alg: "ES256", typ: TYP, kid: &self.jwk.kid };
        let input = format!("{}.{}", encoded(&header)?, encoded(result)?);
        let signature = self.key.sign(&SystemRandom::new(), input.as_bytes()).map_err(|_| TokenError::Sign)?;
        Ok(format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }
}

/// A part of a JWS.
fn encoded(part: &impl Serialize) -> Result<String, TokenError> {
    Ok(URL_SAFE_NO_PAD.encode(serde_json::to_vec(part).map_err(|_| TokenError::Sign)?))
}
