//! What crosses the wire: JSON over HTTPS, TLS 1.3, prefix `/v1`. Unknown and repeated fields are refused on both sides.
//!
//! | caller | call |
//! |---|---|
//! | anyone | `GET /healthz`, `GET /.well-known/jwks.json` |
//! | a host's key | `POST /v1/enrol`, `POST /v1/enrol/{enrolment}/activate`, `POST /v1/challenges`, `POST /v1/attest`, `GET /v1/hosts/{host}/orders`, `POST /v1/orders/{id}/release`, `POST /v1/orders/{id}/receipt` |
//! | an operator | `GET /v1/hosts`, `GET /v1/hosts/{host}`, `GET /v1/hosts/{host}/enrolment`, `DELETE /v1/hosts/{host}`, `PUT /v1/hosts/{host}/cordon`, `DELETE /v1/hosts/{host}/banks`, `POST /v1/orders/{id}/fence`, `GET /v1/admissions`, `POST /v1/admissions`, `DELETE /v1/admissions/{ek_fingerprint}` |
//! | a tenant | `PUT /v1/volumes/{name}`, `GET /v1/volumes`, `POST /v1/vms`, `GET /v1/vms` |
//!
//! Refusals are HTTP 403 with [`Denied`]; a placement that finds no host is 409 with [`NotPlaced`]; everything else
//! that goes wrong is [`ErrorBody`].

use portcullis_attest::appraise::{BootInstance, PinnedBanks};
use portcullis_attest::binding::Purpose;
use portcullis_attest::evidence::Evidence;
use portcullis_attest::release::WrappedKey;
use serde::{Deserialize, Serialize};
use serde_with::base64::Base64;
use serde_with::serde_as;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::order::{VmSpec, VolumeFile};
use crate::reason::{Reason, ServiceCode};

/// Largest request body, in bytes.
pub const MAX_BODY: usize = 16 * 1024 * 1024;

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

/// A refusal, HTTP 403.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Denied {
    /// Always false.
    pub trusted: bool,
    /// Every reason that was found, never empty.
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

/// An answer that says nothing but yes.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct Done {}

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

/// `PUT /v1/volumes/{name}`: the key that opens the tenant's volume.
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
pub struct VolumeRequest {
    /// The key, 16 to 128 bytes (what fits a TPM object).
    #[serde_as(as = "Base64")]
    pub key: Vec<u8>,
    /// What the tenant pins. Absent: nothing of a new volume; of one that is there, what was pinned stays. Whoever changes
    /// pins has to know the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[zeroize(skip)]
    pub pins: Option<Pins>,
}

/// One volume, in the answer to `GET /v1/volumes`. Never its key.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct VolumeView {
    /// Its name.
    pub name: String,
    /// The order that holds it, if one does.
    pub held_by: Option<String>,
    /// What the tenant pinned.
    pub pins: Pins,
}

/// Answer to `GET /v1/volumes`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct VolumesResponse {
    /// The tenant's volumes, by name.
    pub volumes: Vec<VolumeView>,
}

/// `POST /v1/vms`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct LaunchRequest {
    /// The tenant's name for the VM.
    pub name: String,
    /// Number of virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub mem_mib: u64,
    /// Kernel command line.
    pub cmdline: String,
    /// The kernel, inside the volume.
    pub kernel: VolumeFile,
    /// The initial RAM file system, inside the volume.
    #[serde(default)]
    pub initrd: Option<VolumeFile>,
    /// The tenant's volume.
    pub volume: String,
    /// Only this host will do.
    #[serde(default)]
    pub host: Option<String>,
}

impl LaunchRequest {
    /// The VM that is asked for.
    pub fn vm(&self) -> VmSpec {
        VmSpec {
            name: self.name.clone(),
            vcpus: self.vcpus,
            mem_mib: self.mem_mib,
            cmdline: self.cmdline.clone(),
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
        }
    }
}

/// Answer to [`LaunchRequest`].
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct LaunchResponse {
    /// The order's id.
    pub order_id: String,
    /// The host that was chosen.
    pub host: String,
    /// The order's JWS.
    pub order: String,
}

/// Why one host was not chosen.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct WhyNot {
    /// The host.
    pub host: String,
    /// Why not.
    pub reasons: Vec<Reason>,
}

/// No host could be found, HTTP 409.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct NotPlaced {
    /// For every host, why not. Empty when no host is enrolled.
    pub why_not: Vec<WhyNot>,
}

/// What became of an order.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum OrderState {
    /// Signed, not used yet.
    Placed,
    /// The volume key went to the host.
    Released,
    /// The host says that the VM runs.
    Running,
    /// The host says that the VM is gone.
    Ended,
    /// Never used, and too late now.
    Expired,
}

/// One VM, as its tenant sees it.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct VmView {
    /// The order's id.
    pub order_id: String,
    /// The VM's name.
    pub name: String,
    /// Whose it is.
    pub tenant: String,
    /// Where it is.
    pub host: String,
    /// Its volume.
    pub volume: String,
    /// What became of it.
    pub state: OrderState,
    /// When it was placed, seconds since 1970.
    pub placed_at: u64,
    /// The last receipt's words.
    pub detail: String,
}

/// Answer to `GET /v1/vms`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct VmsResponse {
    /// The tenant's VMs, newest first.
    pub vms: Vec<VmView>,
}

/// Answer to `GET /healthz`.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// The verifier's id.
    pub verifier: String,
    /// The program's version.
    pub version: String,
}

/// What went wrong when it is no denial: bad request, wrong role, not there, too large, broken.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorText,
}

/// A stable code and a sentence.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct ErrorText {
    /// Stable code: `request.malformed`, `peer.role`, …
    pub code: String,
    /// One sentence.
    pub text: String,
}
