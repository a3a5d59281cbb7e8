//! A verifier's public keys (JWKS, RFC 7517) and the check of what they sign (compact JWS, RFC 7515, ES256 only).

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Longest key set and longest JWS read, in bytes.
const MAX_BYTES: usize = 64 * 1024;
/// Most keys in a set.
const MAX_KEYS: usize = 16;

/// Why a key set or a JWS is refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JwsError {
    /// The key set cannot be used.
    #[error("the verifier's keys (JWKS): {0}")]
    Keys(String),
    /// Not a compact JWS of ours.
    #[error("it is no JWS (ES256) of type {expected}: {problem}")]
    Malformed {
        /// The `typ` that it should have.
        expected: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// Signed by a key that is not in the set.
    #[error("the key {0:?} that it says signed it is not among the verifier's keys")]
    UnknownKey(String),
    /// The signature is not that key's.
    #[error("the signature does not verify")]
    Invalid,
    /// Signed, but not the JSON that this type has.
    #[error("what was signed is no content of type {expected}: {problem}")]
    Content {
        /// The `typ` that it has.
        expected: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// The public keys that a verifier signs with: P-256, each with its id.
#[derive(Clone)]
pub struct VerifierKeys {
    keys: Vec<(String, ParsedPublicKey)>,
}

impl std::fmt::Debug for VerifierKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|(kid, _)| kid)).finish()
    }
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Jwk>,
}

/// Other members are allowed and say nothing here (RFC 7517, section 4).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    crv: String,
    x: String,
    y: String,
    kid: String,
}

/// No other member has a meaning here, and one that is critical must not be skipped.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    typ: String,
    kid: String,
}

impl VerifierKeys {
    /// Reads a JWKS. Every key must be a P-256 key with a `kid` of its own.
    pub fn from_jwks(json: &[u8]) -> Result<Self, JwsError> {
        let bad = |problem: &str| JwsError::Keys(problem.to_owned());
        if json.len() > MAX_BYTES {
            return Err(bad("longer than 64 KiB"));
        }
        let set: KeySet = serde_json::from_slice(json).map_err(|error| JwsError::Keys(error.to_string()))?;
        if set.keys.is_empty() || set.keys.len() > MAX_KEYS {
            return Err(JwsError::Keys(format!("{} keys, 1 to {MAX_KEYS} are read", set.keys.len())));
        }
        let mut keys: Vec<(String, ParsedPublicKey)> = Vec::new();
        for jwk in set.keys {
            if keys.iter().any(|(kid, _)| *kid == jwk.kid) {
                return Err(bad("two keys have the same kid"));
            }
            let key = jwk.key().ok_or_else(|| bad("only P-256 keys (kty EC, crv P-256) can be used"))?;
            keys.push((jwk.kid, key));
        }
        Ok(Self { keys })
    }

    /// Reads the JSON in a compact JWS of this `typ`, with white space around it as files have, if one of the keys signed
    /// it: nothing is read of a payload whose signature is wrong.
    pub(crate) fn read<T: DeserializeOwned>(&self, typ: &'static str, jws: &str) -> Result<T, JwsError> {
        let payload = self.verify(typ, jws.trim_ascii())?;
        serde_json::from_slice(&payload)
            .map_err(|error| JwsError::Content { expected: typ, problem: error.to_string() })
    }

    /// The payload of a compact JWS of this `typ`, if one of the keys signed it.
    fn verify(&self, typ: &'static str, jws: &str) -> Result<Vec<u8>, JwsError> {
        let malformed = |problem: String| JwsError::Malformed { expected: typ, problem };
        if jws.len() > MAX_BYTES {
            return Err(malformed("longer than 64 KiB".to_owned()));
        }
        let mut parts = jws.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed("it has not three parts".to_owned()));
        };
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|error| malformed(error.to_string()));
        let parsed: Header =
            serde_json::from_slice(&decode(header)?).map_err(|error| malformed(format!("header: {error}")))?;
        if parsed.alg != "ES256" || parsed.typ != typ {
            return Err(malformed("alg or typ is another one".to_owned()));
        }
        let key = self.keys.iter().find(|(kid, _)| *kid == parsed.kid).map(|(_, key)| key);
        let key = key.ok_or_else(|| JwsError::UnknownKey(parsed.kid.chars().take(64).collect()))?;
        let signed = [header, ".", payload].concat();
        key.verify_sig(signed.as_bytes(), &decode(signature)?).map_err(|_| JwsError::Invalid)?;
        decode(payload)
    }
}

impl Jwk {
    fn key(&self) -> Option<ParsedPublicKey> {
        let coordinate = |text: &str| URL_SAFE_NO_PAD.decode(text).ok().filter(|bytes| bytes.len() == 32);
        if self.kty != "EC" || self.crv != "P-256" {
            return None;
        }
        let point = [&[0x04][..], &coordinate(&self.x)?, &coordinate(&self.y)?].concat();
        ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &point).ok()
    }
}
