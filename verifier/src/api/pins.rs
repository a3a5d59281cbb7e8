//! What a tenant pins of a volume.

use serde::{Deserialize, Serialize};

use crate::reason::{Reason, ServiceCode};

/// Most digests of policies, ids of signers, and TPMs, each, that are pinned for one volume.
pub const MAX_PINS: usize = 16;

/// What a tenant pins of a volume: its key is released only to a host that was judged so. No operator can change it.
///
/// Pinned policies and signers keep out an operator with a policy or reference values of their own. They do not keep out one
/// who admits a TPM of their own and extends it from an honest host's log: only pinned TPMs do.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Pins {
    /// SHA-256 of the policies by which the host may have been judged, 64 lower-case hex digits each: what
    /// `portcullis verify` and result tokens call `policy_sha256`. Empty: any policy.
    #[serde(default)]
    pub policies: Vec<String>,
    /// The ids of the keys that may have signed the reference values (SHA-256 of the SubjectPublicKeyInfo), 64 lower-case
    /// hex digits each. Empty: any, and nobody's.
    #[serde(default)]
    pub signers: Vec<String>,
    /// The fingerprints of the endorsement keys (SHA-256 of the SubjectPublicKeyInfo) of the hosts that may get the key, 64
    /// lower-case hex digits each: what `portcullis-agent ek` prints. Empty: any host.
    #[serde(default)]
    pub tpms: Vec<String>,
}

/// A host, as pins look at it.
#[derive(Clone, Copy, Debug)]
pub struct JudgedHost<'a> {
    /// The fingerprint of its endorsement key, hex.
    pub ek: &'a str,
    /// SHA-256 of the policy by which it was judged, hex.
    pub policy_sha256: &'a str,
    /// The id of the key that signed the reference values that it matches, if one did.
    pub reference_signer: Option<&'a str>,
}

impl Pins {
    /// Whether the pins can be meant: at most [`MAX_PINS`] of each kind, all of them SHA-256 in hex.
    pub fn is_valid(&self) -> bool {
        let valid = |pins: &[String]| pins.len() <= MAX_PINS && pins.iter().all(|pin| crate::order::is_hex(pin, 64));
        valid(&self.policies) && valid(&self.signers) && valid(&self.tpms)
    }

    /// Whether nothing is pinned.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty() && self.signers.is_empty() && self.tpms.is_empty()
    }

    /// Why no key goes to this host.
    pub fn refuse(&self, host: &JudgedHost<'_>) -> Vec<ServiceCode> {
        let mut codes = Vec::new();
        if !self.policies.is_empty() && self.policies.iter().all(|pin| pin != host.policy_sha256) {
            codes.push(ServiceCode::PinnedPolicy);
        }
        if !self.signers.is_empty() && self.signers.iter().all(|pin| Some(pin.as_str()) != host.reference_signer) {
            codes.push(ServiceCode::PinnedSigner);
        }
        if !self.tpms.is_empty() && self.tpms.iter().all(|pin| pin != host.ek) {
            codes.push(ServiceCode::PinnedTpm);
        }
        codes
    }

    /// The same as reasons, with what was pinned and what was found.
    pub fn reasons(&self, host: &JudgedHost<'_>) -> Vec<Reason> {
        let explain = |code| match code {
            ServiceCode::PinnedPolicy => Reason::new(code).values(self.policies.join(" | "), host.policy_sha256),
            ServiceCode::PinnedTpm => Reason::new(code).values(self.tpms.join(" | "), host.ek),
            _ => {
                let found = host.reference_signer.unwrap_or("nobody's signature");
                Reason::new(code).values(self.signers.join(" | "), found)
            }
        };
        self.refuse(host).into_iter().map(explain).collect()
    }
}
