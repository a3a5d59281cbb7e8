//! The envelope in which Keylime signs a runtime policy: DSSE (secure-systems-lab/dsse, protocol.md), with ECDSA and
//! SHA-256 over the payload and its type (Keylime, keylime/dsse).

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::KeylimeError;
use crate::ima::Keyring;

/// What Keylime calls its policies.
const PAYLOAD_TYPE: &str = "application/vnd.keylime+json";

/// Most signatures of one policy.
const MAX_SIGNATURES: usize = 16;

/// By whom a runtime policy is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicySignature {
    /// It is not in an envelope.
    None,
    /// It is in an envelope, and no keys were given to check its signatures with: they prove nothing.
    Unchecked,
    /// By this key: SHA-256 of its SubjectPublicKeyInfo, lower-case hex.
    Good(String),
}

#[derive(Deserialize)]
struct Envelope {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<Signature>,
}

/// `keyid` is a hint that nobody signed, so every key is tried.
#[derive(Deserialize)]
struct Signature {
    sig: String,
}

/// What tells an envelope from a policy.
#[derive(Deserialize)]
struct Shape {
    #[serde(default, rename = "payloadType")]
    payload_type: Option<IgnoredAny>,
}

/// The policy in `json`, taken out of its envelope if it is in one, and by whom it is signed. If there are any `signers`,
/// one of them must have signed it.
pub(super) fn open(json: &str, signers: &Keyring) -> Result<(Option<String>, PolicySignature), KeylimeError> {
    if serde_json::from_str::<Shape>(json)?.payload_type.is_none() {
        return if signers.is_empty() { Ok((None, PolicySignature::None)) } else { Err(KeylimeError::Unsigned) };
    }
    let envelope: Envelope = serde_json::from_str(json).map_err(|error| KeylimeError::Envelope(error.to_string()))?;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(KeylimeError::PayloadType(envelope.payload_type.chars().take(100).collect()));
    }
    if envelope.signatures.is_empty() || envelope.signatures.len() > MAX_SIGNATURES {
        let count = envelope.signatures.len();
        return Err(KeylimeError::Envelope(format!("it has {count} signatures, 1 to {MAX_SIGNATURES} are read")));
    }
    let wrong = |what: &str| KeylimeError::Envelope(format!("{what} is not base64"));
    let payload = decode(&envelope.payload).ok_or_else(|| wrong("its payload"))?;
    let mut signatures = Vec::with_capacity(envelope.signatures.len());
    for signature in &envelope.signatures {
        signatures.push(decode(&signature.sig).ok_or_else(|| wrong("a signature"))?);
    }
    let signed =
        [format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len()).as_bytes(), &payload].concat();
    let signature = if signers.is_empty() {
        PolicySignature::Unchecked
    } else {
        let good = signatures.iter().find_map(|signature| signers.signer_of(&signed, signature));
        PolicySignature::Good(good.ok_or(KeylimeError::Signature)?)
    };
    let policy =
        String::from_utf8(payload).map_err(|_| KeylimeError::Envelope("its payload is not UTF-8".to_owned()))?;
    Ok((Some(policy), signature))
}

/// DSSE allows both alphabets.
fn decode(text: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new();
    [alphabet::STANDARD, alphabet::URL_SAFE].iter().find_map(|a| GeneralPurpose::new(a, config).decode(text).ok())
}
