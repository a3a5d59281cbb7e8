//! The table of calls and the frame around all of them.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{delete, get, post, put};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;

use super::appraisal::Caller;
use super::http::{
    Answer, Refusal, SMALL_BODY, Waiting, blocking, holding, internal, json, peer, read_json, require_host_key,
};
use super::peer::{Peer, Role};
use super::{Service, appraisal, enrol, http, launch, people};
use crate::api;

type App = State<Arc<Service>>;

/// Every call.
pub fn router(service: &Arc<Service>) -> Router {
    let calls = Router::new()
        .route("/healthz", get(healthz))
        .route("/.well-known/jwks.json", get(jwks))
        .route("/v1/enrol", post(begin_enrolment))
        .route("/v1/enrol/{enrolment}/activate", post(activate))
        .route("/v1/challenges", post(challenge))
        .route("/v1/attest", post(attest))
        .route("/v1/hosts/{host}/orders", get(orders))
        .route("/v1/orders/{id}/release", post(release))
        .route("/v1/orders/{id}/receipt", post(receipt))
        .route("/v1/hosts", get(hosts))
        .route("/v1/hosts/{host}", get(host).delete(remove_host))
        .route("/v1/hosts/{host}/cordon", put(cordon))
        .route("/v1/hosts/{host}/banks", delete(accept_banks))
        .route("/v1/hosts/{host}/enrolment", get(enrolment))
        .route("/v1/orders/{id}/fence", post(fence))
        .route("/v1/admissions", get(admissions).post(admit))
        .route("/v1/admissions/{ek}", delete(withdraw))
        .route("/v1/volumes", get(volumes))
        .route("/v1/volumes/{name}", put(put_volume))
        .route("/v1/vms", get(vms).post(place))
        .fallback(async || Refusal::not_found("there is no such call"))
        .method_not_allowed_fallback(async || {
            Refusal::Call(StatusCode::METHOD_NOT_ALLOWED, "request.method", "this call takes another method".into())
        })
        .with_state(Arc::clone(service));
    framed(calls, service.config.request_timeout())
}

/// The frame: a panic is a denial and nothing more, and no request takes for ever.
fn framed(calls: Router, limit: Duration) -> Router {
    calls.layer(TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, limit)).layer(CatchPanicLayer::custom(
        |_: Box<dyn Any + Send>| {
            tracing::error!("a request panicked; it is denied");
            internal()
        },
    ))
}

async fn healthz(State(service): App) -> Answer<Response> {
    let health = blocking(&service, |service| {
        service.store.alive()?;
        Ok(api::Health { status: "ok".into(), verifier: service.id.clone(), version: env!("CARGO_PKG_VERSION").into() })
    })
    .await?;
    Ok(json(StatusCode::OK, &health))
}

async fn jwks(State(service): App) -> Response {
    let keys = vec![service.token_signer.jwk().clone(), service.order_signer.jwk().clone()];
    json(StatusCode::OK, &jsonwebtoken::jwk::JwkSet { keys })
}

/// Reads a body that may carry evidence: only from a host's key, and only so much of all of them at a time. Judging it
/// takes long, so it is stopped when the host hangs up or its time is over.
async fn with_evidence<B: serde::de::DeserializeOwned + Send + 'static, T: serde::Serialize + Send + 'static>(
    service: &Arc<Service>,
    request: Request,
    work: impl FnOnce(&Service, Caller<'_>, B) -> Answer<T> + Send + 'static,
) -> Answer<Response> {
    let key = require_host_key(&peer(&request))?;
    let (parts, body) = request.into_parts();
    let (body, held): (B, _) = read_json(&parts.headers, body, api::MAX_BODY, &service.memory).await?;
    let waiting = Waiting::default();
    let gone = waiting.gone();
    let answer = holding(service, held, move |service| work(service, Caller { key, gone: &gone }, body)).await?;
    drop(waiting);
    Ok(json(StatusCode::OK, &answer))
}

/// Reads a small body of a host's key.
async fn with_host_key<B: serde::de::DeserializeOwned + Send + 'static, T: serde::Serialize + Send + 'static>(
    service: &Arc<Service>,
    request: Request,
    work: impl FnOnce(&Service, [u8; 32], B) -> Answer<T> + Send + 'static,
) -> Answer<Response> {
    let key = require_host_key(&peer(&request))?;
    let (parts, body) = request.into_parts();
    let (body, held): (B, _) = read_json(&parts.headers, body, SMALL_BODY, &service.memory).await?;
    let answer = holding(service, held, move |service| work(service, key, body)).await?;
    Ok(json(StatusCode::OK, &answer))
}

/// Reads a small body of a person with `role`.
async fn with_person<B: serde::de::DeserializeOwned + Send + 'static, T: serde::Serialize + Send + 'static>(
    service: &Arc<Service>,
    request: Request,
    role: Role,
    work: impl FnOnce(&Service, &str, B) -> Answer<T> + Send + 'static,
) -> Answer<Response> {
    let person = http::require_person(&peer(&request), role, Service::now())?;
    let (parts, body) = request.into_parts();
    let (body, held): (B, _) = read_json(&parts.headers, body, SMALL_BODY, &service.memory).await?;
    let answer = holding(service, held, move |service| work(service, &person, body)).await?;
    Ok(json(StatusCode::OK, &answer))
}

/// A call of a person with `role` that has no body.
async fn bare<T: serde::Serialize + Send + 'static>(
    service: &Arc<Service>,
    caller: Peer,
    role: Role,
    work: impl FnOnce(&Service, &str) -> Answer<T> + Send + 'static,
) -> Answer<Response> {
    let person = http::require_person(&caller, role, Service::now())?;
    let answer = blocking(service, move |service| work(service, &person)).await?;
    Ok(json(StatusCode::OK, &answer))
}

async fn begin_enrolment(State(service): App, request: Request) -> Answer<Response> {
    with_host_key(&service, request, |service, key, body| enrol::begin(service, key, &body)).await
}

async fn activate(State(service): App, Path(id): Path<String>, request: Request) -> Answer<Response> {
    with_host_key(&service, request, move |service, key, body| enrol::activate(service, key, &id, &body)).await
}

async fn challenge(State(service): App, request: Request) -> Answer<Response> {
    with_host_key(&service, request, |service, key, body| appraisal::challenge(service, key, &body)).await
}

async fn attest(State(service): App, request: Request) -> Answer<Response> {
    with_evidence(&service, request, |service, caller, body| appraisal::attest(service, caller, &body)).await
}

async fn orders(State(service): App, Path(host): Path<String>, request: Request) -> Answer<Response> {
    let key = require_host_key(&peer(&request))?;
    let answer = blocking(&service, move |service| launch::waiting(service, key, &host)).await?;
    Ok(json(StatusCode::OK, &answer))
}

async fn release(State(service): App, Path(id): Path<String>, request: Request) -> Answer<Response> {
    with_evidence(&service, request, move |service, caller, body| launch::release(service, caller, &id, &body)).await
}

async fn receipt(State(service): App, Path(id): Path<String>, request: Request) -> Answer<Response> {
    with_evidence(&service, request, move |service, caller, body| launch::receipt(service, caller, &id, &body)).await
}

async fn hosts(State(service): App, request: Request) -> Answer<Response> {
    bare(&service, peer(&request), Role::Operator, |service, _| people::hosts(service)).await
}

async fn host(State(service): App, Path(host): Path<String>, request: Request) -> Answer<Response> {
    bare(&service, peer(&request), Role::Operator, move |service, _| people::host(service, &host)).await
}

async fn enrolment(State(service): App, Path(host): Path<String>, request: Request) -> Answer<Response> {
    bare(&service, peer(&request), Role::Operator, move |service, who| people::enrolment(service, who, &host)).await
}

async fn remove_host(State(service): App, Path(host): Path<String>, request: Request) -> Answer<Response> {
    bare(&service, peer(&request), Role::Operator, move |service, who| people::remove_host(service, who, &host)).await
}

async fn accept_banks(State(service): App, Path(host): Path<String>, request: Request) -> Answer<Response> {
    bare(&service, peer(&request), Role::Operator, move |service, who| people::accept_banks(service, who, &host)).await
}

async fn cordon(State(service): App, Path(host): Path<String>, request: Request) -> Answer<Response> {
    with_person(&service, request, Role::Operator, move |service, who, body| people::cordon(service, who, &host, &body))
        .await
}

async fn fence(State(service): App, Path(id): Path<String>, request: Request) -> Answer<Response> {
    with_person(&service, request, Role::Operator, move |service, who, body| people::fence(service, who, &id, &body))
        .await
}

async fn admissions(State(service): App, request: Request) -> Answer<Response> {
    bare(&service, peer(&request), Role::Operator, |service, _| people::admissions(service)).await
}

async fn admit(State(service): App, request: Request) -> Answer<Response> {
    with_person(&service, request, Role::Operator, |service, who, body| people::admit(service, who, &body)).await
}

async fn withdraw(State(service): App, Path(ek): Path<String>, request: Request) -> Answer<Response> {
    bare(&service, peer(&request), Role::Operator, move |service, who| people::withdraw(service, who, &ek)).await
}

async fn volumes(State(service): App, request: Request) -> Answer<Response> {
    bare(&service, peer(&request), Role::Tenant, people::volumes).await
}

async fn put_volume(State(service): App, Path(name): Path<String>, request: Request) -> Answer<Response> {
    with_person(&service, request, Role::Tenant, move |service, tenant, body| {
        people::put_volume(service, tenant, &name, &body)
    })
    .await
}

async fn vms(State(service): App, request: Request) -> Answer<Response> {
    bare(&service, peer(&request), Role::Tenant, people::vms).await
}

async fn place(State(service): App, request: Request) -> Answer<Response> {
    with_person(&service, request, Role::Tenant, |service, tenant, body| launch::place(service, tenant, &body)).await
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn a_request_that_panics_or_hangs_is_denied_and_the_others_live() {
        let calls = Router::new()
            .route("/panics", get(async || -> Answer<Response> { panic!("a bug") }))
            .route("/panics-inside", get(async || http::offload(|| -> Answer<&str> { panic!("a bug") }).await))
            .route("/hangs", get(async || tokio::time::sleep(Duration::from_hours(1)).await))
            .route("/lives", get(async || "here"));
        let router = framed(calls, Duration::from_millis(200));
        let ask = |path: &str| {
            let request = Request::builder().uri(path).body(Body::empty()).unwrap();
            let router = router.clone();
            async move {
                let answer = router.oneshot(request).await.unwrap();
                let status = answer.status().as_u16();
                (status, axum::body::to_bytes(answer.into_body(), 1000).await.unwrap())
            }
        };
        for path in ["/panics", "/panics-inside"] {
            let (status, body) = ask(path).await;
            assert_eq!(status, 500);
            let error: api::ErrorBody = serde_json::from_slice(&body).unwrap();
            assert_eq!(error.error.code, "internal");
        }
        assert_eq!(ask("/hangs").await.0, 408);
        assert_eq!(ask("/lives").await, (200, "here".into()));
    }
}
