//! The attestation result that relying parties read: an EAR (draft-ietf-rats-ear), as the claims of a JWT.
//!
//! Schema in `schemas/result-1.json`. A result speaks of one boot of one host for some minutes; two results of a host say
//! what lies between them ([`Continuity`]).

mod continuity;
mod token;

use std::collections::BTreeMap;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

pub use continuity::Continuity;
pub use token::{Jwk, TYP, TokenError, TokenSigner};

use crate::appraise::{Appraisal, BankCaveat, BootInstance, static_digest};
use crate::key::Bank;

/// The profile that results follow: the one that EAR libraries know (draft-ietf-rats-ear).
pub const PROFILE: &str = "tag:github.com,2023:veraison/ear";

/// Who made the verifier.
pub const DEVELOPER: &str = "Portcullis";

/// A result that an appraisal led to. Made only by [`AttestationResult::new`], and only this is ever signed.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
#[serde(transparent)]
pub struct AttestationResult(ResultClaims);

/// The claims of a result token, as relying parties read them.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ResultClaims {
    /// Always [`PROFILE`].
    #[serde(deserialize_with = "known_profile")]
    pub eat_profile: String,
    /// The verifier's id.
    pub iss: String,
    /// When it was issued, in seconds since 1970.
    pub iat: u64,
    /// Until when it holds, in seconds since 1970.
    pub exp: u64,
    /// Which program made it.
    #[serde(rename = "ear.verifier-id")]
    pub verifier_id: VerifierId,
    /// One appraisal, under the host's id.
    pub submods: BTreeMap<String, Submodule>,
}

/// Which program made a result.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct VerifierId {
    /// Who made it.
    pub developer: String,
    /// Its name and version.
    pub build: String,
}

/// The overall verdict.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Status {
    /// Nothing was found out.
    None,
    /// Everything that was looked at is as it should be.
    Affirming,
    /// Something should be looked at.
    Warning,
    /// The host must not be trusted.
    Contraindicated,
}

/// What was found of one host.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Submodule {
    /// The overall verdict.
    #[serde(rename = "ear.status")]
    pub status: Status,
    /// The verdict in its parts.
    #[serde(rename = "ear.trustworthiness-vector")]
    pub trustworthiness_vector: TrustworthinessVector,
    /// The policy that was applied.
    #[serde(rename = "ear.appraisal-policy-id")]
    pub appraisal_policy_id: String,
    /// SHA-256 of what that policy says ([`Policy::digest`](crate::appraise::Policy::digest)), lower-case hex.
    #[serde(rename = "portcullis.policy-sha256")]
    pub policy_sha256: String,
    /// The boot that it is about.
    #[serde(rename = "portcullis.boot")]
    pub boot: BootInstance,
    /// The name of the attestation key, lower-case hex.
    #[serde(rename = "portcullis.ak")]
    pub ak: String,
    /// SHA-256 of the SubjectPublicKeyInfo of the TLS key that the quote is bound to, lower-case hex: only whoever holds
    /// that key is the host.
    #[serde(rename = "portcullis.tls-spki-sha256")]
    pub tls_spki_sha256: String,
    /// Digest of the static PCRs, see [`static_digest`], lower-case hex.
    #[serde(rename = "portcullis.static-pcrs")]
    pub static_pcrs: String,
    /// The reference values that the boot matches.
    #[serde(rename = "portcullis.reference")]
    pub reference: String,
    /// Which edition of them.
    #[serde(rename = "portcullis.reference-version")]
    pub reference_version: u64,
    /// SHA-256 of what they say ([`ReferenceValues::digest`](crate::reference::ReferenceValues::digest)), lower-case hex.
    #[serde(rename = "portcullis.reference-sha256")]
    pub reference_sha256: String,
    /// The key that signed them, if one did.
    #[serde(rename = "portcullis.reference-signer", default, skip_serializing_if = "Option::is_none")]
    pub reference_signer: Option<String>,
    /// What was accepted by a rule and not by its digest, and why. With the rule `listed`, a command line that the policy's
    /// rules could not be applied to, accepted because the reference values list exactly this one.
    #[serde(rename = "portcullis.by-rule", default, skip_serializing_if = "Vec::is_empty")]
    pub by_rule: Vec<ByRule>,
    /// How many programs were accepted by a rule of the policy and not by the reference values, by the rule's reason.
    #[serde(rename = "portcullis.programs-by-rule", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub programs_by_rule: BTreeMap<String, u64>,
    /// The quoted PCR banks on which nothing rests, and why not.
    #[serde(rename = "portcullis.bank-caveats", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bank_caveats: BTreeMap<Bank, Vec<BankCaveat>>,
    /// How many measured programs the quote covers.
    #[serde(rename = "portcullis.ima-entries")]
    pub ima_entries: u64,
    /// Version of the TPM's own firmware.
    #[serde(rename = "portcullis.tpm-firmware")]
    pub tpm_firmware: u64,
}

/// The verdict in its parts (draft-ietf-rats-ar4si): 2 to 31 affirm. Parts that were not judged are left out.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TrustworthinessVector {
    /// 2: a known and admitted TPM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_identity: Option<i8>,
    /// 2: booted with the configuration of the reference values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configuration: Option<i8>,
    /// 2: only known programs ran, at boot and since; 3: only known ones ran at boot, and of what ran since nothing was
    /// judged or some was accepted whatever its content is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executables: Option<i8>,
    /// 2: a genuine TPM and known firmware.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware: Option<i8>,
}

/// Something that was accepted by a stated rule.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(deny_unknown_fields)]
pub struct ByRule {
    /// What it is, in words.
    pub what: String,
    /// The rule.
    pub rule: String,
    /// Why there is such a rule.
    pub reason: String,
}

/// What a result says beside the verdict.
#[derive(Clone, Copy, Debug)]
pub struct ResultContext<'a> {
    /// The verifier's id.
    pub verifier: &'a str,
    /// The host's id.
    pub host: &'a str,
    /// When it is issued, in seconds since 1970.
    pub issued_at: u64,
    /// Until when it holds, in seconds since 1970.
    pub expires_at: u64,
}

impl AttestationResult {
    /// The result for a host that was found good.
    pub fn new(appraisal: &Appraisal, context: &ResultContext<'_>) -> Self {
        let quote = appraisal.quote();
        let mut bank_caveats = BTreeMap::<Bank, Vec<BankCaveat>>::new();
        for (bank, caveat) in appraisal.bank_caveats() {
            bank_caveats.entry(*bank).or_default().push(*caveat);
        }
        let submodule = Submodule {
            status: Status::Affirming,
            trustworthiness_vector: TrustworthinessVector {
                // Of an attestation key alone nobody said whose it is, or in what it lives.
                instance_identity: appraisal.boot().ek.is_some().then_some(2),
                configuration: Some(2),
                executables: Some(if appraisal.programs_known() { 2 } else { 3 }),
                hardware: appraisal.boot().ek.is_some().then_some(2),
            },
            appraisal_policy_id: appraisal.policy_name().to_owned(),
            policy_sha256: hex::encode(appraisal.policy_digest()),
            boot: appraisal.boot(),
            ak: hex::encode(quote.ak_name()),
            tls_spki_sha256: hex::encode(quote.binding().tls_spki_sha256),
            static_pcrs: hex::encode(static_digest(appraisal.bank(), &appraisal.static_pcrs())),
            reference: appraisal.reference().name.clone(),
            reference_version: appraisal.reference().version,
            reference_sha256: hex::encode(appraisal.reference().digest),
            reference_signer: appraisal.reference().signed_by.clone(),
            by_rule: appraisal.by_rule().to_vec(),
            programs_by_rule: appraisal.programs_by_rule().map(|(reason, count)| (reason.to_owned(), count)).collect(),
            bank_caveats,
            ima_entries: appraisal.ima_entries(),
            tpm_firmware: quote.firmware_version(),
        };
        Self(ResultClaims {
            eat_profile: PROFILE.to_owned(),
            iss: context.verifier.to_owned(),
            iat: context.issued_at,
            exp: context.expires_at,
            verifier_id: VerifierId {
                developer: DEVELOPER.to_owned(),
                build: format!("portcullis-attest {}", env!("CARGO_PKG_VERSION")),
            },
            submods: BTreeMap::from([(context.host.to_owned(), submodule)]),
        })
    }
}

impl Deref for AttestationResult {
    type Target = ResultClaims;

    fn deref(&self) -> &ResultClaims {
        &self.0
    }
}

/// A token of another profile says other things with the same words.
fn known_profile<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let profile = String::deserialize(deserializer)?;
    if profile == PROFILE { Ok(profile) } else { Err(serde::de::Error::custom("eat_profile is not EAR's")) }
}
