//! What a quote must be bound to: who asked, who answers, over which connection, what for, and about what.
//!
//! A quote that says less than this can be relayed: a tampered host would hand its challenge to an honest host's TPM.
//! The binding is hashed into the quote's extraData (protocol rule 2), every part with its length before it, so that no
//! two bindings share their bytes.

use serde::{Deserialize, Serialize};
use serde_with::hex::Hex;
use serde_with::serde_as;
use sha2::{Digest, Sha256};

use crate::reason::{Reason, ReasonCode};

/// The protocol's name and version, hashed first.
const PROTOCOL: &[u8] = b"portcullis/1";

/// SHA-256 of an empty body.
pub const EMPTY_BODY: [u8; 32] = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27, 0xae, 0x41,
    0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];

/// What a quote or certification is for. One made for a purpose counts for no other.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Purpose {
    /// A host proves its state; the body is empty.
    Attest,
    /// A host asks for an order's key; the body is [`launch_body`].
    Launch,
    /// The attestation key certifies the storage parent of a launch; the body is that of the launch.
    Parent,
    /// A host reports what became of an order; the body is the receipt.
    Receipt,
    /// A host shows, while it enrols, which PCR banks its TPM has active and its firmware extends; the nonce is SHA-256 of
    /// the enrolment's secret, the body is empty.
    Enrol,
    /// Evidence written to a file, for a nonce that a person gave; the body is empty.
    Offline,
}

impl Purpose {
    /// The purpose as it is hashed and written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Attest => "attest",
            Self::Launch => "launch",
            Self::Parent => "parent",
            Self::Receipt => "receipt",
            Self::Enrol => "enrol",
            Self::Offline => "offline",
        }
    }
}

impl std::fmt::Display for Purpose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Everything that a quote is bound to.
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// What the quote is for.
    pub purpose: Purpose,
    /// The verifier's id, 1 to 64 characters of `[a-z0-9.-]`.
    pub verifier: String,
    /// The host's id, of the same form.
    pub host: String,
    /// The verifier's nonce, 32 random bytes (offline: whatever the person gave).
    #[serde_as(as = "Hex")]
    pub nonce: Vec<u8>,
    /// SHA-256 of the DER SubjectPublicKeyInfo of the key that the host's end of the connection proved.
    #[serde_as(as = "Hex")]
    pub tls_spki_sha256: [u8; 32],
    /// SHA-256 of the body that the quote speaks of; [`EMPTY_BODY`] if there is none.
    #[serde_as(as = "Hex")]
    pub body_sha256: [u8; 32],
}

impl Binding {
    /// The quote's extraData: SHA-256 over every part with its length before it.
    #[must_use]
    pub fn extra_data(&self) -> [u8; 32] {
        let parts: [&[u8]; 7] = [
            PROTOCOL,
            self.purpose.as_str().as_bytes(),
            self.verifier.as_bytes(),
            self.host.as_bytes(),
            &self.nonce,
            &self.tls_spki_sha256,
            &self.body_sha256,
        ];
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(length_of(part));
            hash.update(part);
        }
        hash.finalize().into()
    }

    /// Which parts of `claimed` are other than in `self`: why extraData that is right for `claimed` is wrong here.
    pub(crate) fn differences(&self, claimed: &Self) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let mut differ = |code, expected: &str, found: &str| {
            if expected != found {
                reasons.push(Reason::new(code).expected(expected).found(found));
            }
        };
        differ(ReasonCode::QuotePurposeMismatch, self.purpose.as_str(), claimed.purpose.as_str());
        differ(ReasonCode::QuoteVerifierMismatch, &self.verifier, &claimed.verifier);
        differ(ReasonCode::QuoteHostMismatch, &self.host, &claimed.host);
        differ(ReasonCode::QuoteNonceMismatch, &hex::encode(&self.nonce), &hex::encode(&claimed.nonce));
        differ(
            ReasonCode::QuoteTlsKeyMismatch,
            &hex::encode(self.tls_spki_sha256),
            &hex::encode(claimed.tls_spki_sha256),
        );
        differ(ReasonCode::QuoteBodyMismatch, &hex::encode(self.body_sha256), &hex::encode(claimed.body_sha256));
        reasons
    }
}

/// Whether `id` may name a host or a verifier: 1 to 64 characters of `[a-z0-9.-]`.
#[must_use]
pub fn is_valid_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'))
}

/// The body of a launch: the order as it was signed, and the storage parent (TPMT_PUBLIC) that its key is wrapped for.
#[must_use]
pub fn launch_body(order_jws: &[u8], parent_public: &[u8]) -> Vec<u8> {
    [&length_of(order_jws), order_jws, &length_of(parent_public), parent_public].concat()
}

/// The length prefix: 32 bits, big-endian. Nothing this crate hashes comes near 4 GiB (evidence is bounded far below);
/// should a caller ever pass more, the prefix saturates, and a binding so made equals only itself.
fn length_of(part: &[u8]) -> [u8; 4] {
    u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding() -> Binding {
        Binding {
            purpose: Purpose::Attest,
            verifier: "verifier".into(),
            host: "honest".into(),
            nonce: vec![7; 32],
            tls_spki_sha256: [1; 32],
            body_sha256: EMPTY_BODY,
        }
    }

    #[test]
    fn empty_body_is_the_hash_of_nothing() {
        assert_eq!(EMPTY_BODY, <[u8; 32]>::from(Sha256::digest(b"")));
    }

    #[test]
    fn extra_data_is_as_the_protocol_says() {
        // Built by hand: a change of the wire format must not pass unnoticed.
        let mut bytes = Vec::new();
        for part in [&b"portcullis/1"[..], b"attest", b"verifier", b"honest", &[7; 32], &[1; 32], &EMPTY_BODY] {
            bytes.extend(u32::try_from(part.len()).unwrap().to_be_bytes());
            bytes.extend(part);
        }
        assert_eq!(binding().extra_data(), <[u8; 32]>::from(Sha256::digest(&bytes)));
    }

    #[test]
    fn every_part_counts() {
        let good = binding();
        let mut others = vec![good.clone(); 7];
        others[0].purpose = Purpose::Offline;
        others[1].verifier.push('x');
        others[2].host.push('x');
        others[3].nonce.push(0);
        others[4].tls_spki_sha256[31] = 0;
        others[5].body_sha256[0] = 0;
        // Moving a byte across a boundary must show: that is what the lengths are for.
        others[6].verifier = "verifierh".into();
        others[6].host = "onest".into();
        for other in others {
            assert_ne!(other.extra_data(), good.extra_data(), "{other:?}");
            assert!(!good.differences(&other).is_empty());
        }
        assert!(good.differences(&good).is_empty());
    }

    #[test]
    fn a_launch_is_bound_to_the_order_and_the_parent() {
        // Built by hand, for host and verifier make it with the same function.
        assert_eq!(launch_body(b"order", b"parent"), b"\0\0\0\x05order\0\0\0\x06parent");
    }

    #[test]
    fn ids_are_plain() {
        for good in ["a", "host-1.example", &"x".repeat(64)] {
            assert!(is_valid_id(good), "{good}");
        }
        for bad in ["", "Host", "a b", "a/b", "ü", &"x".repeat(65)] {
            assert!(!is_valid_id(bad), "{bad}");
        }
    }
}
