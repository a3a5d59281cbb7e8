//! Whom this host obeys: the verifier's CA, its id and the keys that sign launch orders (protocol rule 6).
//!
//! They lie in a directory that the measured initrd fills, so that who changes them changes the host's measurements.

use std::path::{Path, PathBuf};

use portcullis_attest::binding::is_valid_id;
use portcullis_verifier::order::{OrderError, OrderKeys};

use crate::store::{self, StoreError};

/// Why the trust directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file is not there.
    #[error("{path} is missing: the measured initrd has to lay the verifier's trust files there (see trust_dir)")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] StoreError),
    /// The verifier's id is no id.
    #[error("{path} does not hold a verifier's id (1 to 64 characters of a-z, 0-9, '.' and '-')")]
    VerifierId {
        /// The file.
        path: PathBuf,
    },
    /// The order keys are no JWKS of ours.
    #[error("{path}: {source}")]
    OrderKeys {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: OrderError,
    },
}

/// The trust directory's content.
#[derive(Debug)]
pub struct Trust {
    /// The verifier's id: the host quotes for this verifier and no other.
    pub verifier: String,
    /// The CA that signed the verifier's TLS certificate, PEM.
    pub ca_pem: Vec<u8>,
    /// The keys that sign launch orders.
    pub order_keys: OrderKeys,
}

impl Trust {
    /// Reads `ca.pem`, `order-keys.json` and `verifier-id`.
    pub fn load(dir: &Path) -> Result<Self, TrustError> {
        let path = dir.join("verifier-id");
        let verifier = String::from_utf8(required(&path)?).unwrap_or_default().trim().to_owned();
        if !is_valid_id(&verifier) {
            return Err(TrustError::VerifierId { path });
        }
        let path = dir.join("order-keys.json");
        let order_keys = OrderKeys::from_jwks(&required(&path)?)
            .map_err(|source| TrustError::OrderKeys { path: path.clone(), source })?;
        Ok(Self { verifier, ca_pem: required(&dir.join("ca.pem"))?, order_keys })
    }
}

fn required(path: &Path) -> Result<Vec<u8>, TrustError> {
    store::read(path)?.ok_or_else(|| TrustError::Missing { path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_or_bad_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let load = || Trust::load(dir.path()).unwrap_err().to_string();
        assert!(load().contains("verifier-id is missing"), "{}", load());
        std::fs::write(dir.path().join("verifier-id"), "Not An Id").unwrap();
        assert!(load().contains("does not hold a verifier's id"), "{}", load());
        std::fs::write(dir.path().join("verifier-id"), "verifier-1\n").unwrap();
        assert!(load().contains("order-keys.json is missing"), "{}", load());
        std::fs::write(dir.path().join("order-keys.json"), "{}").unwrap();
        assert!(load().contains("order-keys.json:"), "{}", load());
    }
}
