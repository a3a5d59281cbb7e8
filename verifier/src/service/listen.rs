//! Connections: TLS 1.3, one HTTP/1.1 connection each, every step with a time limit and their number bounded.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::UnixTime;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::config::Config;
use super::peer::PeerVerifier;
use super::state::State;

/// How long connections may finish what they began after the service was told to stop.
const GRACE: Duration = Duration::from_secs(10);
/// Largest request head, in bytes.
const MAX_HEAD: usize = 16 * 1024;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("TLS cannot be set up from the state directory: {0}")]
pub struct TlsError(String);

/// What accepts TLS connections and says who is at the other end.
pub struct Tls {
    acceptor: TlsAcceptor,
    peers: Arc<PeerVerifier>,
}

impl Tls {
    /// TLS with the service's certificate and its CA for people.
    pub fn new(state: &State) -> Result<Self, TlsError> {
        let text = |e: &dyn std::fmt::Display| TlsError(e.to_string());
        let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(state.ca_pem.as_bytes()).map_err(|e| text(&e))?;
        roots.add(ca).map_err(|e| text(&e))?;
        let peers = Arc::new(PeerVerifier::new(roots, &provider).map_err(TlsError)?);
        let cert = CertificateDer::from_pem_slice(state.server_pem.as_bytes()).map_err(|e| text(&e))?;
        let key = PrivateKeyDer::from_pem_slice(state.server_key_pem.as_bytes()).map_err(|e| text(&e))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| text(&e))?
            .with_client_cert_verifier(Arc::clone(&peers) as _)
            .with_single_cert(vec![cert], key)
            .map_err(|e| text(&e))?;
        // Every connection proves its key anew.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), peers })
    }
}

/// Serves until `stop` becomes true, then lets connections finish.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<Tls>,
    router: Router,
    config: Config,
    mut stop: watch::Receiver<bool>,
) {
    let slots = Arc::new(Semaphore::new(config.max_connections));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: wait until some connection ends.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            tracing::warn!(limit = config.max_connections, "too many connections, one was closed");
            continue;
        };
        let (tls, router, config, stop) = (Arc::clone(&tls), router.clone(), config.clone(), stop.clone());
        connections.spawn(async move {
            connection(stream, &tls, router, &config, stop).await;
            drop(slot);
        });
    }
    drop(listener);
    let finished = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, finished).await.is_err() {
        tracing::warn!("connections that did not finish were cut");
    }
}

async fn connection(stream: TcpStream, tls: &Tls, router: Router, config: &Config, mut stop: watch::Receiver<bool>) {
    let handshake = tls.acceptor.accept(stream);
    let handshake = tokio::time::timeout(Duration::from_secs(config.handshake_timeout_s), handshake);
    let shaken = tokio::select! {
        shaken = handshake => shaken,
        _ = stop.wait_for(|stop| *stop) => return,
    };
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return tracing::debug!("TLS handshake took too long"),
    };
    let peer = tls.peers.classify(stream.get_ref().1.peer_certificates(), UnixTime::now());
    let service = service_fn(move |request: Request<Incoming>| {
        let router = router.clone();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        async move { router.oneshot(request).await }
    });
    let http = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(config.request_timeout())
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(http);
    let lifetime = tokio::time::sleep(Duration::from_secs(config.connection_lifetime_s));
    tokio::select! {
        result = http.as_mut() => {
            if let Err(error) = result {
                tracing::debug!(%error, "connection ended");
            }
            return;
        }
        () = lifetime => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
    // What was begun may be finished, nothing new is taken.
    http.as_mut().graceful_shutdown();
    if tokio::time::timeout(GRACE, http).await.is_err() {
        tracing::debug!("connection was cut");
    }
}
