//! What one start of the agent has: its configuration, whom it trusts, its TLS key of this start, its TPM.

use std::time::Duration;

use portcullis_attest::appraise::BootInstance;
use portcullis_attest::binding::{EMPTY_BODY, Purpose};
use portcullis_attest::evidence::Evidence;
use portcullis_attest::tpm::{Tpm, TpmError};
use portcullis_verifier::api::{ActivateResponse, AttestResponse};
use portcullis_verifier::client::{Client, ClientError, Identity, IdentityError, Limits};
use portcullis_verifier::order::OrderKeys;

use crate::config::{Config, ConfigError};
use crate::prover::{Party, Prover, ProverError, offline_binding};
use crate::store::{Store, StoreError, StoreLock};
use crate::trust::{Trust, TrustError};

/// How long a call to the verifier may take. Short, because SIGTERM is heard between two calls.
const LIMITS: Limits = Limits { connect: Duration::from_secs(5), call: Duration::from_secs(30) };

/// Why the agent does not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The trust directory.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The TLS key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// TPM, logs or verifier.
    #[error(transparent)]
    Prover(#[from] ProverError),
    /// Signals cannot be caught.
    #[error("cannot catch signals: {0}")]
    Signals(std::io::Error),
    /// A command's argument.
    #[error("{0}")]
    Usage(String),
    /// A file that a command should write.
    #[error("cannot write {path}: {source}")]
    Output {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl From<ClientError> for AgentError {
    fn from(error: ClientError) -> Self {
        Self::Prover(error.into())
    }
}

impl AgentError {
    /// The exit code of a command that ends with this: 1 a clear no, 2 bad usage or input, 3 unavailable.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::Trust(_)
            | Self::Identity(_)
            | Self::Usage(_)
            | Self::Output { .. }
            | Self::Store(StoreError::TooLarge { .. }) => 2,
            Self::Store(_) | Self::Signals(_) => 3,
            Self::Prover(error) => match error {
                ProverError::Client(error) => error.exit_code(),
                ProverError::OtherVerifier { .. }
                | ProverError::Tpm(TpmError::PolicyFailed | TpmError::WrongParent | TpmError::WrongCredential) => 1,
                ProverError::Measurement(_) | ProverError::Tpm(TpmError::Tcti(_)) => 2,
                _ => 3,
            },
        }
    }
}

/// A started agent.
#[derive(Debug)]
pub struct Session {
    /// The configuration.
    pub config: Config,
    /// The state directory.
    pub store: Store,
    /// The keys that sign orders.
    pub order_keys: OrderKeys,
    /// The verifier, over this start's TLS key.
    pub client: Client,
    /// Who quotes for whom.
    pub party: Party,
    /// The TPM.
    pub prover: Prover,
    _lock: Option<StoreLock>,
}

/// Whether a command needs the state directory for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exclusive {
    /// It speaks to the verifier: two agents at once would quote on two TLS keys in turn.
    Yes,
    /// It only quotes; only when there is no attestation key yet is the state directory needed for a moment.
    No,
}

impl Session {
    /// Makes the TLS key of this start and opens the TPM.
    pub fn start(config: Config, exclusive: Exclusive) -> Result<Self, AgentError> {
        let trust = Trust::load(&config.trust_dir)?;
        let identity = Identity::new_for_host(&config.host)?;
        let client = Client::new(&config.verifier_url, &trust.ca_pem, Some(&identity), LIMITS)?;
        let party =
            Party { host: config.host.clone(), verifier: trust.verifier, tls_spki_sha256: identity.spki_sha256() };
        let store = Store::open(&config.state_dir)?;
        let lock = match exclusive {
            Exclusive::No if store.ak_path().exists() => None,
            Exclusive::No | Exclusive::Yes => Some(store.lock()?),
        };
        if exclusive == Exclusive::Yes {
            Tpm::forget_leftovers(&config.tcti).map_err(ProverError::from)?;
        }
        let prover = Prover::open(&config, &store)?;
        let lock = lock.filter(|_| exclusive == Exclusive::Yes);
        Ok(Self { config, store, order_keys: trust.order_keys, client, party, prover, _lock: lock })
    }

    /// Enrols this host's TPM with the verifier.
    pub fn enrol(&mut self) -> Result<ActivateResponse, AgentError> {
        Ok(self.prover.enrol(&self.client, &self.party)?)
    }

    /// Proves this host's state to the verifier once.
    pub fn attest(&mut self) -> Result<(AttestResponse, BootInstance), AgentError> {
        let (evidence, boot) = self.prover.answer(&self.client, &self.party, Purpose::Attest, EMPTY_BODY)?;
        if self.config.keep_artifacts
            && let Ok(json) = evidence.to_json()
        {
            self.store.keep_artifact("attest.json", &json);
        }
        Ok((self.client.attest(&self.party.host, evidence)?, boot))
    }

    /// Evidence for a nonce that a person gave.
    pub fn offline_evidence(&mut self, nonce: Vec<u8>) -> Result<Evidence, AgentError> {
        let binding = offline_binding(&self.party, nonce);
        Ok(self.prover.evidence(&binding, 0)?.0)
    }

    /// Opens the TPM again after it failed.
    pub fn reopen_tpm(&mut self) -> Result<(), AgentError> {
        Ok(self.prover.reopen(&self.config, &self.store)?)
    }
}
