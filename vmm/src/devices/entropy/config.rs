//! `entropy`, as Firecracker writes it.

use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, Unsupported};

/// A source of entropy.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct EntropyConfig {
    /// Limits what the guest takes: not supported. What it takes costs this VM's own main thread its time.
    #[serde(default, skip_serializing_if = "Unsupported::is_absent")]
    rate_limiter: Unsupported,
}

impl EntropyConfig {
    /// Refuses by name what is not supported.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.rate_limiter.is_absent() { Ok(()) } else { Err(ConfigError::NotSupported("entropy.rate_limiter")) }
    }
}
