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

mod host;
mod operator;
mod pins;
mod tenant;

pub use host::{
    ActivateRequest, ActivateResponse, Admission, AttestRequest, AttestResponse, ChallengeRequest, ChallengeResponse,
    EnrolRequest, EnrolResponse, OrdersResponse, ReceiptRequest, ReleaseRequest, ReleaseResponse,
};
pub use operator::{
    AdmissionRequest, AdmissionView, AdmissionsResponse, CordonRequest, EnrolmentResponse, FenceRequest, HostView,
    HostsResponse, Trust,
};
pub use pins::{JudgedHost, MAX_PINS, Pins};
use serde::{Deserialize, Serialize};
pub use tenant::{
    LaunchRequest, LaunchResponse, NotPlaced, OrderState, VmView, VmsResponse, VolumeRequest, VolumeView,
    VolumesResponse, WhyNot,
};

use crate::reason::Reason;

/// Largest request body, in bytes.
pub const MAX_BODY: usize = 16 * 1024 * 1024;

/// A refusal, HTTP 403.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Denied {
    /// Always false.
    pub trusted: bool,
    /// Every reason that was found, never empty.
    pub reasons: Vec<Reason>,
}

/// An answer that says nothing but yes.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields)]
pub struct Done {}

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
