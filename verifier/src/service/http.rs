//! The frame around every handler: what a request may look like, and what answers look like.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Body as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zeroize::Zeroizing;

use super::Service;
use super::peer::{Peer, Role};
use super::store::StoreError;
use crate::api::{Denied, ErrorBody, ErrorText, NotPlaced, WhyNot};
use crate::reason::{Reason, ServiceCode};

/// Body limit of calls that carry no evidence, in bytes.
pub const SMALL_BODY: usize = 64 * 1024;

/// How much of a refused body is read and thrown away, in bytes.
const MAX_DRAIN: usize = 1024 * 1024;

/// Why a call is not answered with yes.
#[derive(Debug)]
pub enum Refusal {
    /// No, and every reason: 403.
    Denied(Vec<Reason>),
    /// No host: 409.
    NotPlaced(Vec<WhyNot>),
    /// The call itself is no good.
    Call(StatusCode, &'static str, String),
    /// Something of ours broke: 500, told to the log and not to the caller.
    Internal(String),
}

impl Refusal {
    /// A denial with one reason.
    pub fn code(code: ServiceCode) -> Self {
        Self::Denied(vec![code.into()])
    }

    /// Not understood: 400.
    pub fn malformed(text: impl Into<String>) -> Self {
        Self::Call(StatusCode::BAD_REQUEST, "request.malformed", text.into())
    }

    /// Not there: 404.
    pub fn not_found(text: &str) -> Self {
        Self::Call(StatusCode::NOT_FOUND, "request.not-found", text.to_owned())
    }

    /// Stands against what is there: 409.
    pub fn conflict(code: &'static str, text: &str) -> Self {
        Self::Call(StatusCode::CONFLICT, code, text.to_owned())
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<portcullis_attest::reason::Denial> for Refusal {
    fn from(denial: portcullis_attest::reason::Denial) -> Self {
        Self::Denied(denial.into_iter().map(Into::into).collect())
    }
}

/// JSON with a status.
pub fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => {
            let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
            (status, headers, bytes).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn error(status: StatusCode, code: &str, text: String) -> Response {
    json(status, &ErrorBody { error: ErrorText { code: code.to_owned(), text } })
}

/// The answer to a call that broke something: it is denied, and says nothing about the inside.
pub fn internal() -> Response {
    error(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the verifier could not decide, so the answer is no".into())
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Denied(reasons) => {
                let codes: Vec<&str> = reasons.iter().map(|reason| reason.code.as_str()).collect();
                tracing::info!(?codes, "denied");
                json(StatusCode::FORBIDDEN, &Denied { trusted: false, reasons })
            }
            Self::NotPlaced(why_not) => json(StatusCode::CONFLICT, &NotPlaced { why_not }),
            Self::Call(status, code, text) => {
                tracing::info!(status = status.as_u16(), code, "call refused");
                error(status, code, text)
            }
            Self::Internal(problem) => {
                tracing::error!(problem, "internal error");
                internal()
            }
        }
    }
}

/// A handler's outcome.
pub type Answer<T> = Result<T, Refusal>;

/// Reads a JSON body of at most `limit` bytes. Compressed bodies, other types, unknown and repeated fields are refused.
///
/// The memory that it takes is taken from `memory` while it arrives, and given back when what is returned is dropped:
/// so slow senders hold what they sent and no more, and all of them together cannot hold more than there is.
pub async fn read_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    mut body: Body,
    limit: usize,
    memory: &Arc<Semaphore>,
) -> Answer<(T, Option<OwnedSemaphorePermit>)> {
    let read = match check_head(headers, limit) {
        Ok(()) => read_body(&mut body, limit, memory).await,
        Err(refusal) => Err(refusal),
    };
    let (bytes, held) = match read {
        Ok(read) => read,
        Err(refusal) => {
            drain(body).await;
            return Err(refusal);
        }
    };
    let value = serde_json::from_slice(&bytes)
        .map_err(|e| Refusal::malformed(format!("the body is not what this call takes: {e}")))?;
    Ok((value, held))
}

fn check_head(headers: &HeaderMap, limit: usize) -> Answer<()> {
    if headers.contains_key(header::CONTENT_ENCODING) {
        let text = "compressed bodies are not accepted".to_owned();
        return Err(Refusal::Call(StatusCode::UNSUPPORTED_MEDIA_TYPE, "request.encoding", text));
    }
    if headers.get(header::CONTENT_TYPE).is_none_or(|value| value.as_bytes() != b"application/json") {
        let text = "the body must be application/json".to_owned();
        return Err(Refusal::Call(StatusCode::UNSUPPORTED_MEDIA_TYPE, "request.type", text));
    }
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large(limit));
    }
    Ok(())
}

/// Throws away what is left of a refused body, up to a bound: a connection that is closed on a sender that still sends
/// is reset, and the sender never reads why.
async fn drain(mut body: Body) {
    let mut thrown_away = 0;
    while let Some(Ok(frame)) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        thrown_away += frame.data_ref().map_or(0, axum::body::Bytes::len);
        if thrown_away > MAX_DRAIN {
            return;
        }
    }
}

fn too_large(limit: usize) -> Refusal {
    let text = format!("the body must not be longer than {limit} bytes");
    Refusal::Call(StatusCode::PAYLOAD_TOO_LARGE, "request.too-large", text)
}

/// Bodies may hold keys: the copy that is ours is wiped.
async fn read_body(
    body: &mut Body,
    limit: usize,
    memory: &Arc<Semaphore>,
) -> Answer<(Zeroizing<Vec<u8>>, Option<OwnedSemaphorePermit>)> {
    let mut bytes = Zeroizing::new(Vec::new());
    let mut held: Option<OwnedSemaphorePermit> = None;
    loop {
        let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await;
        let data = match frame {
            None => return Ok((bytes, held)),
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            Some(Err(e)) => return Err(Refusal::malformed(format!("the body broke off: {e}"))),
        };
        let length = bytes.len().saturating_add(data.len());
        if length > limit {
            return Err(too_large(limit));
        }
        let have = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(length.div_ceil(1024).saturating_sub(have)).unwrap_or(u32::MAX);
        let taken = Arc::clone(memory).try_acquire_many_owned(more).map_err(|_| {
            let text = "too much is being sent at once; try again".to_owned();
            Refusal::Call(StatusCode::SERVICE_UNAVAILABLE, "request.busy", text)
        })?;
        match &mut held {
            Some(held) => held.merge(taken),
            None => held = Some(taken),
        }
        extend_wiped(&mut bytes, &data);
    }
}

/// A vector that grows by itself leaves its old buffer behind as it was.
fn extend_wiped(bytes: &mut Zeroizing<Vec<u8>>, data: &[u8]) {
    if bytes.capacity().saturating_sub(bytes.len()) < data.len() {
        let capacity = bytes.len().saturating_add(data.len()).max(bytes.capacity().saturating_mul(2));
        let mut larger = Zeroizing::new(Vec::with_capacity(capacity));
        larger.extend_from_slice(bytes);
        *bytes = larger;
    }
    bytes.extend_from_slice(data);
}

/// Who calls; put there by the connection, never by the request.
pub fn peer(request: &Request) -> Peer {
    request.extensions().get::<Peer>().cloned().unwrap_or(Peer::Anonymous)
}

fn wrong_role(text: &str) -> Refusal {
    Refusal::Call(StatusCode::FORBIDDEN, "peer.role", text.to_owned())
}

/// The caller's name, if it is a person of this role whose certificate is still valid.
pub fn require_person(peer: &Peer, role: Role, now: u64) -> Answer<String> {
    match peer {
        Peer::Person { role: found, name, until } if *found == role => {
            if *until <= now {
                return Err(wrong_role("the client certificate has expired"));
            }
            Ok(name.clone())
        }
        _ => Err(wrong_role(match role {
            Role::Operator => "this call needs an operator's client certificate",
            Role::Tenant => "this call needs a tenant's client certificate",
        })),
    }
}

/// The caller's TLS key, if it is a host's.
pub fn require_host_key(peer: &Peer) -> Answer<[u8; 32]> {
    match peer {
        Peer::HostKey { spki_sha256 } => Ok(*spki_sha256),
        _ => Err(wrong_role("this call needs a host's own TLS key, in a certificate that it signed itself")),
    }
}

/// Runs what takes time or waits for the disk outside the threads that serve connections. A panic in there is a denial.
pub async fn blocking<T: Send + 'static>(
    service: &Arc<Service>,
    work: impl FnOnce(&Service) -> Answer<T> + Send + 'static,
) -> Answer<T> {
    let service = Arc::clone(service);
    offload(move || work(&service)).await
}

/// [`blocking`] for work on a body: the memory that was taken for it is given back when the work is done, not when the
/// sender stops waiting. Else bodies of senders that went away would pile up uncounted before the threads.
pub async fn holding<T: Send + 'static>(
    service: &Arc<Service>,
    held: Option<OwnedSemaphorePermit>,
    work: impl FnOnce(&Service) -> Answer<T> + Send + 'static,
) -> Answer<T> {
    let service = Arc::clone(service);
    offload_holding(held, move || work(&service)).await
}

/// Somebody waits for an answer: until this is dropped, with the future that serves the request.
#[derive(Debug, Default)]
pub struct Waiting(Arc<AtomicBool>);

impl Waiting {
    /// Becomes true when nobody waits any more: work that only the caller wanted stops then.
    pub fn gone(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// [`holding`] for what needs no service.
async fn offload_holding<T: Send + 'static>(
    held: Option<OwnedSemaphorePermit>,
    work: impl FnOnce() -> Answer<T> + Send + 'static,
) -> Answer<T> {
    offload(move || {
        let done = work();
        drop(held);
        done
    })
    .await
}

/// [`blocking`] for what needs no service.
pub async fn offload<T: Send + 'static>(work: impl FnOnce() -> Answer<T> + Send + 'static) -> Answer<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(e) => Err(Refusal::Internal(format!("a request panicked or was cancelled: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_person_is_of_one_role_and_as_long_as_the_certificate() {
        let person = Peer::Person { role: Role::Tenant, name: "alice".into(), until: 10 };
        assert_eq!(require_person(&person, Role::Tenant, 9).unwrap(), "alice");
        let refused = |peer: &Peer, role, now| match require_person(peer, role, now).unwrap_err() {
            Refusal::Call(_, code, _) => code,
            other => panic!("{other:?}"),
        };
        for now in [10, 11] {
            assert_eq!(refused(&person, Role::Tenant, now), "peer.role");
        }
        assert_eq!(refused(&person, Role::Operator, 9), "peer.role");
        let host = Peer::HostKey { spki_sha256: [1; 32] };
        for peer in [&host, &Peer::Anonymous] {
            assert_eq!(refused(peer, Role::Tenant, 9), "peer.role");
        }
        assert_eq!(require_host_key(&host).unwrap(), [1; 32]);
        for peer in [&person, &Peer::Anonymous] {
            assert!(require_host_key(peer).is_err());
        }
    }

    #[tokio::test]
    async fn memory_of_a_body_is_held_until_the_work_on_it_is_done_also_when_its_sender_went_away() {
        let memory = Arc::new(Semaphore::new(1));
        let held = Arc::clone(&memory).try_acquire_owned().unwrap();
        let (go, wait) = channel::<()>();
        let work = offload_holding(Some(held), move || Ok(wait.recv().is_ok()));
        // The sender goes away: whoever waited for the work is dropped, the work is not.
        assert!(tokio::time::timeout(Duration::from_millis(50), work).await.is_err());
        assert_eq!(memory.available_permits(), 0);
        go.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(10), memory.acquire()).await.unwrap().unwrap().forget();
    }
}
