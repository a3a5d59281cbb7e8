//! The host that the attacker owns: its TPM, its attestation key, a TLS key of the attacker's own.

use std::path::Path;
use std::time::Duration;

use portcullis_agent::config::Config;
use portcullis_agent::trust::Trust;
use portcullis_attest::binding::{Binding, Purpose, launch_body};
use portcullis_attest::evidence::Evidence;
use portcullis_attest::tpm::{AkBlob, ParentHandle, Tpm, TpmError};
use portcullis_verifier::api::ReleaseRequest;
use portcullis_verifier::client::{Client, ClientError, Identity, IdentityError, Limits};
use sha2::{Digest, Sha256};

/// Why an attack was not even tried.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// In words.
    #[error("{0}")]
    Words(String),
    /// A file.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The verifier.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The TLS key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// The attacker's host.
pub struct Host {
    pub config: Config,
    pub client: Client,
    pub tpm: Tpm,
    verifier: String,
    tls_spki_sha256: [u8; 32],
}

impl Host {
    pub fn open(config: &Path) -> Result<Self, Trouble> {
        let words = |e: &dyn std::fmt::Display| Trouble::Words(e.to_string());
        let config = Config::load(config).map_err(|e| words(&e))?;
        let trust = Trust::load(&config.trust_dir).map_err(|e| words(&e))?;
        let identity = Identity::new_for_host(&config.host)?;
        let limits = Limits { connect: Duration::from_secs(10), call: Duration::from_mins(1) };
        let client = Client::new(&config.verifier_url, &trust.ca_pem, Some(&identity), limits)?;
        let mut tpm = Tpm::open(&config.tcti)?;
        let stored = std::fs::read(config.state_dir.join("ak.json"))?;
        let stored: serde_json::Value = serde_json::from_slice(&stored).map_err(|e| words(&e))?;
        let blob: AkBlob = serde_json::from_value(stored["blob"].clone()).map_err(|e| words(&e))?;
        tpm.load_ak(&blob)?;
        Ok(Self { client, tpm, verifier: trust.verifier, tls_spki_sha256: identity.spki_sha256(), config })
    }

    /// A fresh challenge for whomever the attacker claims to be.
    pub fn challenge(&self, host: &str, purpose: Purpose, body_sha256: [u8; 32]) -> Result<Binding, Trouble> {
        let challenge = self.client.challenge(host, purpose)?;
        let nonce = hex::decode(&challenge.nonce).map_err(|e| Trouble::Words(e.to_string()))?;
        Ok(Binding {
            purpose,
            verifier: self.verifier.clone(),
            host: host.to_owned(),
            nonce,
            tls_spki_sha256: self.tls_spki_sha256,
            body_sha256,
        })
    }

    /// Genuine evidence about this host.
    pub fn evidence(&mut self, binding: &Binding) -> Result<Evidence, Trouble> {
        // What an honest agent quotes, so that nothing but the attack itself is amiss.
        let quotes = vec![self.tpm.quote_active(binding)?];
        let eventlog = std::fs::read(&self.config.eventlog)?;
        let ima = std::fs::read(&self.config.ima)?;
        Ok(Evidence::new(binding.clone(), quotes, eventlog, ima))
    }

    /// A release request for any order at all.
    pub fn release_request(&mut self, order: &str) -> Result<(ReleaseRequest, ParentHandle), Trouble> {
        let host = self.config.host.clone();
        let parent = self.tpm.null_parent()?;
        let body = launch_body(order.as_bytes(), parent.public());
        let launch = self.challenge(&host, Purpose::Launch, Sha256::digest(body).into())?;
        let certify = self.tpm.certify_parent(&parent, &Binding { purpose: Purpose::Parent, ..launch.clone() })?;
        let request = ReleaseRequest {
            host,
            order: order.to_owned(),
            evidence: self.evidence(&launch)?,
            parent_public: parent.public().to_vec(),
            certify_attest: certify.message,
            certify_signature: certify.signature,
        };
        Ok((request, parent))
    }
}
