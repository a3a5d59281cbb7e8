//! What hosts ask and are answered: enrolment, attestation, orders.

use portcullis_attest::binding::Purpose;
use portcullis_attest::evidence::Evidence;
use portcullis_attest::release::WrappedKey;
use serde::{Deserialize, Serialize};
use serde_with::base64::Base64;
use serde_with::serde_as;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::reason::Reason;

/// `POST /v1/enrol`.
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct EnrolRequest {
    /// The host's name.
    pub host: String,
    /// The EK certificate as the TPM holds it (DER), or nothing when the TPM has none.
    #[serde_as(as = "Option<Base64>")]
    pub ek_certificate: Option<Vec<u8>>,
    /// The EK's TPMT_PUBLIC.
    #[serde_as(as = "Base64")]
    pub ek_public: Vec<u8>,
    /// The AK's TPMT_PUBLIC.
    #[serde_as(as = "Base64")]
    pub ak_public: Vec<u8>,
}

/// Answer to [`EnrolRequest`]: a challenge that only the TPM with that EK and that AK can solve.
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct EnrolResponse {
    /// Names the enrolment in the activation's path.
    pub enrolment: String,
    /// TPM2B_ID_OBJECT.
    #[serde_as(as = "Base64")]
    pub credential_blob: Vec<u8>,
    /// TPM2B_ENCRYPTED_SECRET.
    #[serde_as(as = "Base64")]
    pub secret: Vec<u8>,
}

/// `POST /v1/enrol/{enrolment}/activate`: what TPM2_ActivateCredential gave, and which PCR banks the TPM has.
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub struct ActivateRequest {
    /// The challenge's secret.
    #[serde_as(as = "Base64")]
    pub secret: Vec<u8>,
    /// Quotes of purpose `enrol` over PCRs 0 to 15 of every active bank, by the AK that enrols. The nonce is SHA-256 of the
    /// secret, the body empty; the logs are not read and may be left empty.
    #[zeroize(skip)]
    pub evidence: Evidence,
}

/// Whether an operator let the host's TPM in.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Admission {
    /// Enrolled, but no operator admitted its EK fingerprint.
    Pending,
    /// Admitted.
    Admitted,
}

/// Answer to [`ActivateRequest`].
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct ActivateResponse {
    /// The host's name.
    pub host: String,
    /// Whether its TPM is admitted.
    pub state: Admission,
    /// SHA-256 of the EK's SubjectPublicKeyInfo, hex: what an operator admits.
    pub ek_fingerprint: String,
}

/// `POST /v1/challenges`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct ChallengeRequest {
    /// The host that will answer.
    pub host: String,
    /// `attest`, `launch` or `receipt`.
    pub purpose: Purpose,
}

/// Answer to [`ChallengeRequest`].
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct ChallengeResponse {
    /// 32 random bytes, hex. For one use, by this TLS key.
    pub nonce: String,
    /// The verifier's id, which the quote must bind.
    pub verifier: String,
    /// From which entry on the evidence may list what IMA measured, counted from 0: entries before were judged earlier in
    /// the same boot, by the rules that are in force now. 0, the whole list, also to a TLS key that was not quoted yet.
    /// A host that was reset since sends the whole list.
    pub ima_from: u64,
    /// Seconds until it expires.
    pub expires_in_s: u64,
}

/// `POST /v1/attest`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct AttestRequest {
    /// The host that the evidence is about.
    pub host: String,
    /// The evidence, of purpose `attest`.
    pub evidence: Evidence,
}

/// Answer to [`AttestRequest`] when the host is trusted.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct AttestResponse {
    /// Always true: a denial is a [`Denied`].
    pub trusted: bool,
    /// The attestation result: an EAR in a JWT (ES256) by a key of `/.well-known/jwks.json`.
    pub token: String,
    /// Seconds until it expires.
    pub expires_in_s: u64,
    /// Always empty.
    pub reasons: Vec<Reason>,
}

/// Answer to `GET /v1/hosts/{host}/orders`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct OrdersResponse {
    /// Orders placed on this boot of the host and not used yet, each a JWS.
    pub orders: Vec<String>,
}

/// `POST /v1/orders/{id}/release`.
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRequest {
    /// The host that asks.
    pub host: String,
    /// The order's JWS.
    pub order: String,
    /// Evidence of purpose `launch`, its body the order and the parent.
    pub evidence: Evidence,
    /// TPMT_PUBLIC of the storage parent.
    #[serde_as(as = "Base64")]
    pub parent_public: Vec<u8>,
    /// TPMS_ATTEST of TPM2_Certify over the parent, purpose `parent`, same nonce and body.
    #[serde_as(as = "Base64")]
    pub certify_attest: Vec<u8>,
    /// TPMT_SIGNATURE over it by the AK.
    #[serde_as(as = "Base64")]
    pub certify_signature: Vec<u8>,
}

/// Answer to [`ReleaseRequest`].
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct ReleaseResponse {
    /// The volume key, for TPM2_Import under that parent.
    pub wrapped: WrappedKey,
}

/// `POST /v1/orders/{id}/receipt`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct ReceiptRequest {
    /// The host that sends it.
    pub host: String,
    /// The receipt's JSON, byte for byte as it was quoted.
    pub receipt: String,
    /// Evidence of purpose `receipt` whose body is the receipt.
    pub evidence: Evidence,
}
