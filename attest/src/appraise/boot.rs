//! One boot of one TPM, and what a verifier remembers of it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_with::{hex::Hex, serde_as};

use crate::ima::ImaState;
use crate::key::Bank;
use crate::quote::VerifiedQuote;
use crate::reason::{Reason, ReasonCode};

/// One boot of one TPM. Equal instances are the same boot where the EK is known: the AK was then its child.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(deny_unknown_fields)]
pub struct BootInstance {
    /// SHA-256 of the EK's SubjectPublicKeyInfo, lower-case hex. `None` if nobody vouched for the AK's parent: then the
    /// counters may be obfuscated, and nothing says that two equal instances are the same boot.
    pub ek: Option<String>,
    /// How often the TPM was reset: once each boot.
    pub reset_count: u32,
    /// How often it was restarted or resumed since.
    pub restart_count: u32,
}

impl BootInstance {
    /// The boot instance that a quote was made in. The endorsement key is the one under which the quote's AK is enrolled.
    pub fn of(quote: &VerifiedQuote) -> Self {
        let clock = quote.clock();
        Self { ek: quote.ek().map(hex::encode), reset_count: clock.reset_count, restart_count: clock.restart_count }
    }

    /// Whether this is certainly the same boot of the same TPM.
    pub fn is_same_boot(&self, other: &Self) -> bool {
        self.ek.is_some() && self == other
    }
}

impl fmt::Display for BootInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ek = self.ek.as_deref().unwrap_or("unknown");
        write!(f, "EK {ek}, reset {}, restart {}", self.reset_count, self.restart_count)
    }
}

/// What was judged, to be stored by the verifier and given back as [`Context::previous`](super::Context::previous).
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Judged {
    /// The boot.
    pub boot: BootInstance,
    /// The TPM's clock, in milliseconds.
    pub clock_ms: u64,
    /// Whether the TPM said that its clock was never set back.
    pub clock_safe: bool,
    /// Version of the TPM's own firmware.
    pub firmware_version: u64,
    /// The bank that was judged.
    pub bank: Bank,
    /// Digest of the static PCRs of that bank, see [`static_digest`].
    #[serde_as(as = "Hex")]
    pub static_pcrs: [u8; 32],
    /// The PCRs that this digest is of. What version 0.1 stored does not say so, and is of fewer.
    #[serde(default = "first_static_pcrs")]
    pub static_of: Vec<u8>,
    /// How far the IMA list was judged, in every bank of which PCR 10 was quoted.
    pub ima: Option<ImaState>,
}

/// The static PCRs of stored judgements without a list of PCRs.
fn first_static_pcrs() -> Vec<u8> {
    (0..=9).chain([14]).collect()
}

/// Digest of PCRs of a bank: SHA-256 over the bank's algorithm id and then each PCR's number and value. Of a host that is
/// judged these are [`STATIC_PCRS`](super::STATIC_PCRS).
pub fn static_digest(bank: Bank, pcrs: &BTreeMap<u8, Vec<u8>>) -> [u8; 32] {
    let mut bytes = bank.tpm_alg_id().to_be_bytes().to_vec();
    for (pcr, value) in pcrs {
        bytes.push(*pcr);
        bytes.extend(value);
    }
    let mut digest = [0; 32];
    // SHA-256 digests are 32 bytes.
    digest.copy_from_slice(Bank::Sha256.hash(&bytes).get(..32).unwrap_or(&[0; 32]));
    digest
}

/// Whether a quote can come after what was judged before: the TPM's counters and clock only go up.
///
/// A reset in between is allowed here: that is a new boot, which the rest of the appraisal judges afresh. Where the
/// boot must be the same, [`Appraisal::continues`](super::Appraisal::continues) says so.
pub(super) fn freshness(quote: &VerifiedQuote, boot: &BootInstance, previous: &Judged) -> Vec<Reason> {
    if previous.boot.ek != boot.ek || boot.ek.is_none() {
        let shown = |boot: &BootInstance| boot.ek.clone().unwrap_or_else(|| "unknown".to_owned());
        return vec![Reason::new(ReasonCode::BootOtherTpm).expected(shown(&previous.boot)).found(shown(boot))];
    }
    let mut reasons = Vec::new();
    let clock = quote.clock();
    let (then, now) = (&previous.boot, boot);
    if now.reset_count < then.reset_count {
        reasons.push(counted(ReasonCode::BootResetCount, then.reset_count, now.reset_count));
    } else if now.reset_count == then.reset_count {
        if now.restart_count < then.restart_count {
            reasons.push(counted(ReasonCode::BootRestartCount, then.restart_count, now.restart_count));
        }
        // After a crash the TPM may have lost up to some seconds of its clock and says so; the counters still hold.
        if clock.safe && previous.clock_safe && clock.clock_ms < previous.clock_ms {
            reasons.push(
                Reason::new(ReasonCode::BootClock)
                    .expected(format!("{} ms or later", previous.clock_ms))
                    .found(format!("{} ms", clock.clock_ms)),
            );
        }
    }
    if quote.firmware_version() != previous.firmware_version {
        reasons.push(
            Reason::new(ReasonCode::BootFirmwareVersion)
                .expected(format!("{:#x}", previous.firmware_version))
                .found(format!("{:#x}", quote.firmware_version())),
        );
    }
    reasons
}

fn counted(code: ReasonCode, then: u32, now: u32) -> Reason {
    Reason::new(code).expected(format!("{then} or more")).found(now.to_string())
}
