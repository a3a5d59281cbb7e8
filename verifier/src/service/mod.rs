//! The verifier itself.
//!
//! A request's way: `listen` (TLS, limits, who is calling) → `routes` (the frame and the table of calls) → `enrol`,
//! `appraisal`, `launch` or `people` (what the call means) → `store` (what is remembered).

mod appraisal;
pub mod authority;
pub mod config;
mod enrol;
mod http;
mod launch;
mod listen;
pub mod peer;
mod people;
mod routes;
pub mod rules;
pub mod signer;
pub mod state;
pub mod store;
mod vault;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use portcullis_attest::eventlog::CertificateCache;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use self::config::Config;
use self::listen::{Tls, TlsError};
use self::rules::Rules;
use self::signer::Signer;
use self::state::State;
use self::store::{Store, StoreError};
use self::vault::{Vault, VaultError};

/// How much of all requests' bodies is in memory at a time, in KiB. Parsed they take about as much again.
const BODIES_KIB: usize = 256 * 1024;

/// The service's parts, shared by all requests.
pub struct Service {
    id: String,
    config: Config,
    rules: Rules,
    certificates: CertificateCache,
    store: Store,
    vault: Vault,
    token_signer: Signer,
    order_signer: Signer,
    /// One permit for each KiB of body that is held.
    memory: Arc<Semaphore>,
}

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another --listen address or stop what uses it")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The key-encryption key.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

impl StartError {
    /// The exit code of a command that ends with this.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Listen { .. } | Self::Store(StoreError::Sqlite(_)) => 3,
            _ => 2,
        }
    }
}

impl Service {
    fn now() -> u64 {
        store::seconds(SystemTime::now())
    }
}

/// A service that listens but does not serve yet.
pub struct Ready {
    listener: TcpListener,
    tls: Arc<Tls>,
    service: Arc<Service>,
    /// Holds the lock of the state directory as long as the service lives.
    _state: State,
}

impl Ready {
    /// Opens the database, sets up TLS and listens on `address` (port 0: any free port).
    pub async fn new(state: State, rules: Rules, config: Config, address: SocketAddr) -> Result<Self, StartError> {
        let listener = TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })?;
        let tls = Arc::new(Tls::new(&state)?);
        let store = Store::open(&state.database)?;
        store.check()?;
        let vault = Vault::new(&state.kek)?;
        let service = Service {
            id: state.id.clone(),
            config,
            rules,
            certificates: CertificateCache::new(),
            store,
            vault,
            token_signer: state.token_signer.clone(),
            order_signer: state.order_signer.clone(),
            memory: Arc::new(Semaphore::new(BODIES_KIB)),
        };
        Ok(Self { listener, tls, service: Arc::new(service), _state: state })
    }

    /// Where it listens.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` becomes true.
    pub async fn serve(self, stop: watch::Receiver<bool>) {
        let config = self.service.config.clone();
        let router = routes::router(&self.service);
        listen::serve(self.listener, self.tls, router, config, stop).await;
    }
}
