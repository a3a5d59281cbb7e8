//! The blocking client of a verifier: TLS to the verifier's own CA and no other, every call with a time limit, every
//! answer bounded, every failure one of a few kinds.

mod identity;

use std::sync::Arc;
use std::time::Duration;

use portcullis_attest::binding::Purpose;
use portcullis_attest::evidence::Evidence;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::{Request, StatusCode};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

pub use self::identity::{Identity, IdentityError};
use crate::api;
use crate::reason::Reason;

/// Largest answer that is read, in bytes.
const MAX_ANSWER: u64 = 16 * 1024 * 1024;

/// Why a call gave no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The verifier cannot be reached, does not answer in time or is not the one whose CA is pinned.
    #[error("the verifier at {url} is unavailable: {problem}")]
    Unavailable {
        /// Where it should be.
        url: String,
        /// What happened.
        problem: String,
    },
    /// The verifier says no, with reasons.
    #[error("denied: {}", list(reasons))]
    Denied {
        /// Every reason.
        reasons: Vec<Reason>,
    },
    /// No host may or can take the VM.
    #[error("no host can take the VM: {}", list_hosts(why_not))]
    NotPlaced {
        /// For every host, why not.
        why_not: Vec<api::WhyNot>,
    },
    /// The verifier refuses the call itself: wrong role, not there, malformed, too large.
    #[error("the verifier refuses the call ({status} {code}): {text}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Stable code.
        code: String,
        /// One sentence.
        text: String,
    },
    /// The answer is not one that this version understands.
    #[error("the verifier's answer cannot be understood: {0}")]
    Protocol(String),
    /// The client was set up wrongly.
    #[error("the verifier's client cannot be set up: {0}")]
    Setup(String),
}

fn list(reasons: &[Reason]) -> String {
    reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn list_hosts(why_not: &[api::WhyNot]) -> String {
    if why_not.is_empty() {
        return "no host is enrolled".to_owned();
    }
    why_not.iter().map(|host| format!("{}: {}", host.host, list(&host.reasons))).collect::<Vec<_>>().join(" | ")
}

impl ClientError {
    /// The exit code of a command that ends with this: 1 a clear no, 2 bad usage, 3 unavailable.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Denied { .. } | Self::NotPlaced { .. } => 1,
            Self::Refused { status, .. } => match status {
                400 | 405 | 413 | 415 | 422 => 2,
                500.. => 3,
                _ => 1,
            },
            Self::Setup(_) => 2,
            Self::Unavailable { .. } | Self::Protocol(_) => 3,
        }
    }

    /// Whether the same call may work later: nobody answered, or the service says that the fault is its own.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unavailable { .. } => true,
            Self::Refused { status, .. } => matches!(status, 408 | 429 | 500..),
            _ => false,
        }
    }

    /// The reasons, if this is a denial.
    pub fn reasons(&self) -> &[Reason] {
        match self {
            Self::Denied { reasons } => reasons,
            _ => &[],
        }
    }
}

/// How long a client waits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// For a whole call.
    pub call: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), call: Duration::from_mins(1) }
    }
}

/// A connection to one verifier. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    base: String,
    spki_sha256: Option<[u8; 32]>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the verifier at `url` (`https://name:port`) that trusts only the CA certificates in `ca_pem`.
    pub fn new(url: &str, ca_pem: &[u8], identity: Option<&Identity>, limits: Limits) -> Result<Self, ClientError> {
        let base = url.trim_end_matches('/');
        if !base.starts_with("https://") {
            return Err(ClientError::Setup(format!("the verifier's URL must begin with https://, not {url:?}")));
        }
        let roots = ca_certificates(ca_pem)?;
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::new_with_certs(&roots))
            .client_cert(identity.map(|identity| identity.cert.clone()))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .build();
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .http_status_as_error(false)
            .max_redirects(0)
            // What is pinned here must not be reached through whatever proxy the environment names.
            .proxy(None)
            .timeout_connect(Some(limits.connect))
            .timeout_global(Some(limits.call))
            .max_idle_age(Duration::from_secs(10))
            .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self { agent, base: base.to_owned(), spki_sha256: identity.map(Identity::spki_sha256) })
    }

    /// SHA-256 of this client's TLS public key (SubjectPublicKeyInfo), if it has an identity.
    pub fn spki_sha256(&self) -> Option<[u8; 32]> {
        self.spki_sha256
    }

    /// Whether the verifier is there.
    pub fn health(&self) -> Result<api::Health, ClientError> {
        self.call("GET", "/healthz", None::<&()>)
    }

    /// The keys that sign results and orders, a JWKS.
    pub fn jwks(&self) -> Result<Value, ClientError> {
        self.call("GET", "/.well-known/jwks.json", None::<&()>)
    }

    /// Begins an enrolment.
    pub fn enrol(&self, request: &api::EnrolRequest) -> Result<api::EnrolResponse, ClientError> {
        self.call("POST", "/v1/enrol", Some(request))
    }

    /// Completes an enrolment with the challenge's secret and evidence of purpose `enrol`.
    pub fn activate(
        &self,
        enrolment: &str,
        secret: &[u8],
        evidence: Evidence,
    ) -> Result<api::ActivateResponse, ClientError> {
        let request = api::ActivateRequest { secret: secret.to_vec(), evidence };
        self.call("POST", &format!("/v1/enrol/{}/activate", segment(enrolment)?), Some(&request))
    }

    /// Asks for a nonce.
    pub fn challenge(&self, host: &str, purpose: Purpose) -> Result<api::ChallengeResponse, ClientError> {
        let request = api::ChallengeRequest { host: host.to_owned(), purpose };
        self.call("POST", "/v1/challenges", Some(&request))
    }

    /// Has evidence appraised. A denial is [`ClientError::Denied`] with every reason.
    pub fn attest(&self, host: &str, evidence: Evidence) -> Result<api::AttestResponse, ClientError> {
        self.call("POST", "/v1/attest", Some(&api::AttestRequest { host: host.to_owned(), evidence }))
    }

    /// Orders placed on this host.
    pub fn orders(&self, host: &str) -> Result<api::OrdersResponse, ClientError> {
        self.call("GET", &format!("/v1/hosts/{}/orders", segment(host)?), None::<&()>)
    }

    /// Asks for the volume key of an order.
    pub fn release(&self, order: &str, request: &api::ReleaseRequest) -> Result<api::ReleaseResponse, ClientError> {
        self.call("POST", &format!("/v1/orders/{}/release", segment(order)?), Some(request))
    }

    /// Reports what became of an order.
    pub fn receipt(&self, order: &str, request: &api::ReceiptRequest) -> Result<api::Done, ClientError> {
        self.call("POST", &format!("/v1/orders/{}/receipt", segment(order)?), Some(request))
    }

    /// Every host (operators).
    pub fn hosts(&self) -> Result<api::HostsResponse, ClientError> {
        self.call("GET", "/v1/hosts", None::<&()>)
    }

    /// One host (operators).
    pub fn host(&self, host: &str) -> Result<api::HostView, ClientError> {
        self.call("GET", &format!("/v1/hosts/{}", segment(host)?), None::<&()>)
    }

    /// The verifier's signed word that a host's attestation key is in the TPM that was admitted (operators).
    pub fn enrolment(&self, host: &str) -> Result<api::EnrolmentResponse, ClientError> {
        self.call("GET", &format!("/v1/hosts/{}/enrolment", segment(host)?), None::<&()>)
    }

    /// Forgets a host, so that it can enrol anew (operators). Refused while it holds a volume.
    pub fn remove_host(&self, host: &str) -> Result<api::Done, ClientError> {
        self.call("DELETE", &format!("/v1/hosts/{}", segment(host)?), None::<&()>)
    }

    /// Takes the PCR banks that a host enrols with next for its own (operators). Until then it is not trusted.
    pub fn accept_banks(&self, host: &str) -> Result<api::Done, ClientError> {
        self.call("DELETE", &format!("/v1/hosts/{}/banks", segment(host)?), None::<&()>)
    }

    /// Closes a host for new work with a reason, or opens it again with none (operators).
    pub fn cordon(&self, host: &str, reason: Option<&str>) -> Result<api::Done, ClientError> {
        let request = api::CordonRequest { reason: reason.map(str::to_owned) };
        self.call("PUT", &format!("/v1/hosts/{}/cordon", segment(host)?), Some(&request))
    }

    /// Ends an order whose host was fenced by other means (operators), see [`api::FenceRequest`].
    pub fn fence(&self, order: &str, note: &str) -> Result<api::Done, ClientError> {
        let request = api::FenceRequest { note: note.to_owned() };
        self.call("POST", &format!("/v1/orders/{}/fence", segment(order)?), Some(&request))
    }

    /// Every admitted TPM (operators).
    pub fn admissions(&self) -> Result<api::AdmissionsResponse, ClientError> {
        self.call("GET", "/v1/admissions", None::<&()>)
    }

    /// Admits one TPM by its EK fingerprint, as this host (operators).
    pub fn admit(&self, ek_fingerprint: &str, host: &str, note: &str) -> Result<api::Done, ClientError> {
        let (ek_fingerprint, host, note) = (ek_fingerprint.to_owned(), host.to_owned(), note.to_owned());
        let request = api::AdmissionRequest { ek_fingerprint, host, note };
        self.call("POST", "/v1/admissions", Some(&request))
    }

    /// Takes an admission back (operators): the host gets no more work from now on.
    pub fn withdraw(&self, ek_fingerprint: &str) -> Result<api::Done, ClientError> {
        self.call("DELETE", &format!("/v1/admissions/{}", segment(ek_fingerprint)?), None::<&()>)
    }

    /// Deposits a volume's key (tenants). The same key again is fine, another key for the same name is refused.
    pub fn put_volume(&self, name: &str, key: &[u8]) -> Result<api::Done, ClientError> {
        self.put_pinned_volume(name, key, None)
    }

    /// Deposits a volume's key with pins (tenants). With the key of a volume that is there, replaces its pins.
    pub fn put_pinned_volume(&self, name: &str, key: &[u8], pins: Option<api::Pins>) -> Result<api::Done, ClientError> {
        let request = api::VolumeRequest { key: key.to_vec(), pins };
        self.call("PUT", &format!("/v1/volumes/{}", segment(name)?), Some(&request))
    }

    /// The tenant's volumes.
    pub fn volumes(&self) -> Result<api::VolumesResponse, ClientError> {
        self.call("GET", "/v1/volumes", None::<&()>)
    }

    /// Asks for a VM (tenants). When no host can take it: [`ClientError::NotPlaced`].
    pub fn launch(&self, request: &api::LaunchRequest) -> Result<api::LaunchResponse, ClientError> {
        self.call("POST", "/v1/vms", Some(request))
    }

    /// The tenant's VMs.
    pub fn vms(&self) -> Result<api::VmsResponse, ClientError> {
        self.call("GET", "/v1/vms", None::<&()>)
    }

    fn call<A: DeserializeOwned>(
        &self,
        method: &'static str,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<A, ClientError> {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        let setup = |e: &dyn std::fmt::Display| ClientError::Setup(e.to_string());
        let sent = match body {
            Some(body) => {
                // Bodies may hold keys, so the copy that is sent is wiped.
                let json = zeroize::Zeroizing::new(serde_json::to_vec(body).map_err(|e| setup(&e))?);
                let request = request.header("content-type", "application/json").body(json.as_slice());
                self.agent.run(request.map_err(|e| setup(&e))?)
            }
            None => self.agent.run(request.body(()).map_err(|e| setup(&e))?),
        };
        let mut answer = sent.map_err(|e| self.unavailable(&e))?;
        let status = answer.status();
        let bytes = answer.body_mut().with_config().limit(MAX_ANSWER).read_to_vec().map_err(|e| match e {
            ureq::Error::BodyExceedsLimit(_) => ClientError::Protocol(format!("longer than {MAX_ANSWER} bytes")),
            other => self.unavailable(&other),
        })?;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|e| ClientError::Protocol(e.to_string()));
        }
        Err(refusal(status, &bytes))
    }

    fn unavailable(&self, error: &ureq::Error) -> ClientError {
        ClientError::Unavailable { url: self.base.clone(), problem: error.to_string() }
    }
}

fn refusal(status: StatusCode, bytes: &[u8]) -> ClientError {
    if status == StatusCode::FORBIDDEN
        && let Ok(denied) = serde_json::from_slice::<api::Denied>(bytes)
    {
        return ClientError::Denied { reasons: denied.reasons };
    }
    if status == StatusCode::CONFLICT
        && let Ok(not_placed) = serde_json::from_slice::<api::NotPlaced>(bytes)
    {
        return ClientError::NotPlaced { why_not: not_placed.why_not };
    }
    match serde_json::from_slice::<api::ErrorBody>(bytes) {
        Ok(body) => ClientError::Refused { status: status.as_u16(), code: body.error.code, text: body.error.text },
        Err(_) if status.is_server_error() => ClientError::Refused {
            status: status.as_u16(),
            code: "http.error".to_owned(),
            text: "something between here and the verifier fails".to_owned(),
        },
        Err(_) => ClientError::Protocol(format!("HTTP {status} with a body that is no error of a verifier")),
    }
}

/// Path segments come from names, ids and fingerprints; anything else would name another path.
fn segment(text: &str) -> Result<&str, ClientError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if text.is_empty() || text.len() > 128 || text == "." || text == ".." || !text.bytes().all(plain) {
        return Err(ClientError::Setup(format!("{text:?} is no name, id or fingerprint")));
    }
    Ok(text)
}

fn ca_certificates(pem: &[u8]) -> Result<Vec<Certificate<'static>>, ClientError> {
    let mut roots = Vec::new();
    for item in parse_pem(pem) {
        match item {
            Ok(PemItem::Certificate(cert)) => roots.push(cert),
            Ok(_) => {}
            Err(e) => return Err(ClientError::Setup(format!("the CA file is no PEM: {e}"))),
        }
    }
    if roots.is_empty() {
        return Err(ClientError::Setup("the CA file holds no certificate".into()));
    }
    Ok(roots)
}
