//! `entropy`, as Firecracker writes it.

use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, objects_only};
use crate::rate_limiter::RateLimiterConfig;

/// A source of entropy.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct EntropyConfig {
    /// Limits what the guest takes, in bytes and in requests.
    #[serde(default)]
    pub rate_limiter: Option<RateLimiterConfig>,
}

objects_only!(EntropyConfig);

impl EntropyConfig {
    /// Checks the values.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        self.rate_limiter.as_ref().map_or(Ok(()), RateLimiterConfig::check)
    }
}
