//! What operators ask and are answered: hosts, admissions, fences.

use portcullis_attest::appraise::{BootInstance, PinnedBanks};
use serde::{Deserialize, Serialize};

use super::Admission;
use crate::reason::Reason;

/// `POST /v1/admissions`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct AdmissionRequest {
    /// The EK fingerprint, 64 lower-case hex digits. Nothing wider than one TPM can be admitted.
    pub ek_fingerprint: String,
    /// The name of the host that it is in. It may enrol under no other, so that no host chooses the policy that it is
    /// judged by.
    pub host: String,
    /// Why, for the record; at most 1024 bytes.
    pub note: String,
}

/// `PUT /v1/hosts/{host}/cordon`: closes a host for new work, or opens it again. What runs there goes on.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct CordonRequest {
    /// Why it is closed, at most 1024 bytes; nothing opens it again.
    pub reason: Option<String>,
}

/// `POST /v1/orders/{id}/fence`: an operator made sure, by means outside this service (power, switch, storage), that the
/// host of this order can no longer reach the volume. The order ends without a receipt, and the volume is free.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct FenceRequest {
    /// What was done, for the record; 1 to 1024 bytes.
    pub note: String,
}

/// One admission, in the answer to `GET /v1/admissions`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct AdmissionView {
    /// The EK fingerprint.
    pub ek_fingerprint: String,
    /// The host that it was admitted as. Nothing for an admission of an earlier version whose TPM never enrolled: it
    /// admits nothing until an operator names its host.
    pub host: Option<String>,
    /// The operator's note.
    pub note: String,
    /// The operator.
    pub by: String,
    /// When, seconds since 1970.
    pub at: u64,
}

/// Answer to `GET /v1/admissions`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct AdmissionsResponse {
    /// Every admitted TPM.
    pub admissions: Vec<AdmissionView>,
}

/// Whether a host may get work.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    /// Admitted, and its last evidence was good and is not too old.
    Trusted,
    /// Its last evidence was denied.
    Untrusted,
    /// Its last result was good but has expired.
    Expired,
    /// It has not attested, or no operator admitted its TPM.
    Unknown,
}

/// One host, as operators see it.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct HostView {
    /// Its name.
    pub host: String,
    /// SHA-256 of the EK's SubjectPublicKeyInfo, hex.
    pub ek_fingerprint: String,
    /// Whether the EK has a certificate that leads to a configured root: `verified` or `none`.
    pub certificate: String,
    /// Name of the AK, hex.
    pub ak_name: String,
    /// The PCR banks that were active when it enrolled, and whether its firmware measured into them; nothing when it has to
    /// enrol again.
    pub banks: Option<PinnedBanks>,
    /// Whether an operator admitted its TPM.
    pub state: Admission,
    /// Whether it may get work now.
    pub trust: Trust,
    /// Why it may not; empty when it may.
    pub reasons: Vec<Reason>,
    /// The boot that was judged last, if any was found good.
    pub boot: Option<BootInstance>,
    /// When it last attested, well or not, seconds since 1970.
    pub attested_at: Option<u64>,
    /// When its last good result expires, seconds since 1970.
    pub trusted_until: Option<u64>,
    /// VMs placed, released or running there.
    pub vms: u32,
}

/// Answer to `GET /v1/hosts`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct HostsResponse {
    /// Every enrolled host, by name.
    pub hosts: Vec<HostView>,
}

/// Answer to `GET /v1/hosts/{host}/enrolment`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct EnrolmentResponse {
    /// An [`EnrolmentStatement`](portcullis_attest::endorsement::EnrolmentStatement) as a JWS (ES256) by the key that
    /// signs results: with it whoever has `/.well-known/jwks.json` judges this host's evidence offline.
    pub enrolment: String,
}
