//! Wraps a key so that one TPM, in one boot, with one set of PCR values, can open it (protocol rule 4).
//!
//! No TPM is needed for that: the wrapped key is an import blob for a storage parent in the host TPM's NULL hierarchy, and
//! that hierarchy's seed is made anew at every reset. Under the endorsement key the same blob would open again after a
//! reboot, without anyone asking the verifier.

mod parent;

use serde::{Deserialize, Serialize};
use serde_with::base64::Base64;
use serde_with::serde_as;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

pub use crate::protect::ProtectError;
pub use parent::CertifiedParent;

use crate::appraise::{Appraisal, BankCaveat};
use crate::key::{Attributes, Bank};
use crate::protect::{Seed, Use, random};
use crate::quote::QuotedState;
use crate::wire::sized;

/// The PCRs (of the SHA-256 bank) whose values a wrapped key is bound to: firmware, boot loader, kernel, initrd, command
/// line, unified images with their additions, and shim's keys. Not PCR 10, which changes with every program that starts,
/// and not PCR 15, which the running system extends (systemd): both are judged with every quote instead (protocol rule 5).
pub const RELEASE_PCRS: [u8; 14] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14];

/// Longest key that a TPM holds as sealed data (MAX_SYM_DATA), in bytes.
pub const MAX_KEY: usize = 128;

const ALG_KEYEDHASH: u16 = 0x0008;
const ALG_NULL: u16 = 0x0010;
/// Length of the digests in the sealed object, all of SHA-256.
const DIGEST_SIZE: u16 = 32;
const CC_POLICY_PCR: u32 = 0x0000_017F;

/// Why a key is not wrapped.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// Empty, or longer than sealed data may be.
    #[error("a key of {0} bytes cannot be sealed: 1 to {MAX_KEY} bytes can")]
    KeyLength(usize),
    /// A PCR that the policy needs was not quoted.
    #[error("PCR {0} of bank sha256 was not quoted, so no key can be bound to it")]
    PcrMissing(u8),
    /// The SHA-256 bank is not what the judgement rests on, and proves nothing by itself.
    #[error(
        "the firmware or the boot loader does not measure into bank sha256 ({0}), so a key bound to it is bound to nothing"
    )]
    Bank(BankCaveat),
    /// The parent was certified by another attestation key than the one that quoted.
    #[error("the storage parent was certified by another attestation key than the one that quoted")]
    OtherTpm,
    /// The parent was certified in another boot than the quoted one.
    #[error("the storage parent was certified in another boot than the one that was quoted")]
    OtherBoot,
    /// Nothing can be encrypted to the parent.
    #[error(transparent)]
    Protect(#[from] ProtectError),
}

/// A key that one TPM can open in one boot and state: what TPM2_Import takes.
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct WrappedKey {
    /// TPM2B_PUBLIC of the sealed object.
    #[serde_as(as = "Base64")]
    pub public: Vec<u8>,
    /// TPM2B_PRIVATE: the key, encrypted and authenticated for the storage parent.
    #[serde_as(as = "Base64")]
    pub duplicate: Vec<u8>,
    /// TPM2B_ENCRYPTED_SECRET: the seed of that encryption, for the storage parent.
    #[serde_as(as = "Base64")]
    pub seed: Vec<u8>,
}

/// Wraps `key` for `parent`, to be opened only while PCRs [`RELEASE_PCRS`] have the values that were appraised.
///
/// Takes the appraisal and not a quote, so that no key is wrapped for a state that nobody judged; and its own quote, never a
/// stored one: firmware and systemd vary PCRs 1 and 9 from boot to boot (SMBIOS tables, boot counters, seeds) within what
/// reference values accept, and a key that was wrapped to an earlier boot's values would be lost.
///
/// # Errors
/// If the parent was certified by another key than the one that quoted, or in another boot; or if the SHA-256 bank proves
/// nothing of the boot, which was judged in another bank then.
pub fn wrap_key(key: &[u8], parent: &CertifiedParent, appraisal: &Appraisal) -> Result<WrappedKey, ReleaseError> {
    let quote = appraisal.quote();
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(ReleaseError::KeyLength(key.len()));
    }
    if parent.ak_name() != quote.ak_name() {
        return Err(ReleaseError::OtherTpm);
    }
    let boot = |clock: crate::quote::ClockInfo| (clock.reset_count, clock.restart_count);
    if boot(parent.clock()) != boot(quote.clock()) {
        return Err(ReleaseError::OtherBoot);
    }
    // PCR 10 is not among those that a key is bound to.
    let proves_nothing =
        |(bank, caveat): &&(Bank, BankCaveat)| *bank == Bank::Sha256 && *caveat != BankCaveat::PaddedSha1;
    if let Some((_, caveat)) = appraisal.bank_caveats().iter().find(proves_nothing) {
        return Err(ReleaseError::Bank(*caveat));
    }
    let policy = release_policy(quote)?;
    // The seed value hides the key in the object's public digest, which travels in the clear.
    let seed_value = random(Bank::Sha256.digest_size())?;
    let unique: [u8; 32] = Sha256::new().chain_update(&*seed_value).chain_update(key).finalize().into();
    let public = sealed_public(&policy, &unique);
    let name = [&Bank::Sha256.tpm_alg_id().to_be_bytes()[..], &Sha256::digest(&public)].concat();

    let sensitive =
        sized(&sensitive(key, &seed_value)).map(Zeroizing::new).ok_or(ReleaseError::KeyLength(key.len()))?;
    let seed = Seed::new(parent.public(), Use::Duplicate)?;
    let duplicate = seed.wrap(&sensitive, &name)?;
    let too_long = |bytes: &[u8]| ReleaseError::Protect(ProtectError::TooLong(bytes.len()));
    Ok(WrappedKey {
        public: sized(&public).ok_or_else(|| too_long(&public))?,
        duplicate: sized(&duplicate).ok_or_else(|| too_long(&duplicate))?,
        seed: seed.encrypted()?,
    })
}

/// TPM2_PolicyPCR's digest over [`RELEASE_PCRS`] with the quoted values (Part 3, 23.7).
fn release_policy(quote: &QuotedState) -> Result<[u8; 32], ReleaseError> {
    let mut values = Sha256::new();
    for pcr in RELEASE_PCRS {
        values.update(quote.pcr(Bank::Sha256, pcr).ok_or(ReleaseError::PcrMissing(pcr))?);
    }
    let mut policy = Sha256::new();
    policy.update([0; 32]);
    policy.update(CC_POLICY_PCR.to_be_bytes());
    policy.update(release_selection());
    policy.update(values.finalize());
    Ok(policy.finalize().into())
}

/// TPML_PCR_SELECTION of [`RELEASE_PCRS`] in the SHA-256 bank.
fn release_selection() -> Vec<u8> {
    let bits = RELEASE_PCRS.iter().fold(0_u32, |bits, pcr| bits | 1 << pcr);
    let [first, second, third, _] = bits.to_le_bytes();
    [&1_u32.to_be_bytes()[..], &Bank::Sha256.tpm_alg_id().to_be_bytes(), &[3, first, second, third]].concat()
}

/// TPMT_PUBLIC of the sealed object. Of its attributes only noDA is set: userWithAuth is clear, so that nothing but the
/// policy opens it; fixedTPM and fixedParent are clear, as they must be for an object that was not made in the TPM; and a
/// wrong PCR value is no guess that a lockout should punish.
fn sealed_public(policy: &[u8; 32], unique: &[u8; 32]) -> Vec<u8> {
    [
        &ALG_KEYEDHASH.to_be_bytes()[..],
        &Bank::Sha256.tpm_alg_id().to_be_bytes(),
        &Attributes::NO_DA.to_be_bytes(),
        &DIGEST_SIZE.to_be_bytes(),
        policy,
        &ALG_NULL.to_be_bytes(),
        &DIGEST_SIZE.to_be_bytes(),
        unique,
    ]
    .concat()
}

/// TPMT_SENSITIVE of the sealed object: no authorisation value, the seed value, the key.
fn sensitive(key: &[u8], seed_value: &[u8]) -> Zeroizing<Vec<u8>> {
    // Room for all of it at once: a vector that grew would leave copies of the key behind.
    let mut out = Zeroizing::new(Vec::with_capacity(256));
    out.extend(ALG_KEYEDHASH.to_be_bytes());
    out.extend(0_u16.to_be_bytes());
    for part in [seed_value, key] {
        // Both are far shorter than a TPM2B can be: 32 bytes, and at most MAX_KEY.
        out.extend(u16::try_from(part.len()).unwrap_or_default().to_be_bytes());
        out.extend(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selection_is_as_tpms_marshal_it() {
        // One selection, sha256, three bytes: PCRs 0-7, then 8, 9 and 11 to 14.
        assert_eq!(hex::encode(release_selection()), "00000001000b03ff7b00");
    }

    /// With userWithAuth anyone could open it with its empty authorisation value, and no PCR would be asked for.
    #[test]
    fn n82_a_sealed_object_is_opened_by_its_policy_alone() {
        let public = sealed_public(&[7; 32], &[8; 32]);
        let header = [0, 0x08, 0, 0x0B];
        let no_da_only = (1_u32 << 10).to_be_bytes();
        let expected = [&header[..], &no_da_only, &[0, 32], &[7; 32], &[0, 0x10], &[0, 32], &[8; 32]].concat();
        assert_eq!(public, expected);
    }
}
