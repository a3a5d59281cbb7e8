//! `rate_limiter`, as Firecracker writes it.

use serde::{Deserialize, Serialize};

use super::TokenBucket;
use crate::config::{ConfigError, objects_only};

/// Longest refill time, in milliseconds: what 64 bits of nanoseconds hold (584 years).
const MAX_REFILL_MS: u64 = u64::MAX / 1_000_000;

/// One bucket. A `size` or a `refill_time` of zero limits nothing.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct TokenBucketConfig {
    /// Tokens (bytes, or operations) that the bucket holds.
    pub size: u64,
    /// Tokens beside, which pass once and do not come back.
    #[serde(default)]
    pub one_time_burst: Option<u64>,
    /// Milliseconds from empty to full.
    pub refill_time: u64,
}

objects_only!(TokenBucketConfig);

impl TokenBucketConfig {
    /// The bucket, full; `None` for one that limits nothing.
    pub(crate) fn bucket(self) -> Option<TokenBucket> {
        TokenBucket::new(self.size, self.one_time_burst.unwrap_or(0), self.refill_time)
    }
}

/// What a device may do, in bytes and in operations. Without a bucket there is no limit.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct RateLimiterConfig {
    /// Bytes of data.
    #[serde(default)]
    pub bandwidth: Option<TokenBucketConfig>,
    /// Operations: requests of a disk, frames of a network card.
    #[serde(default)]
    pub ops: Option<TokenBucketConfig>,
}

objects_only!(RateLimiterConfig);

impl RateLimiterConfig {
    /// Checks the values.
    pub fn check(&self) -> Result<(), ConfigError> {
        let fields =
            [("rate_limiter.bandwidth.refill_time", self.bandwidth), ("rate_limiter.ops.refill_time", self.ops)];
        for (field, bucket) in fields {
            if let Some(time) = bucket.map(|bucket| bucket.refill_time).filter(|time| *time > MAX_REFILL_MS) {
                let allowed = format!("at most {MAX_REFILL_MS} milliseconds");
                return Err(ConfigError::OutOfRange { field, found: time.to_string(), allowed });
            }
        }
        Ok(())
    }
}
