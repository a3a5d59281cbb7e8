//! The buckets of one device, without a timer.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::bucket::{Level, TokenBucket};
use super::config::RateLimiterConfig;

/// How much may pass. Without buckets, everything.
#[derive(Debug, Default)]
pub struct Limits {
    bandwidth: Option<TokenBucket>,
    ops: Option<TokenBucket>,
}

/// What a snapshot keeps of a limiter.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct RateLimiterState {
    pub(super) bandwidth: Option<Level>,
    pub(super) ops: Option<Level>,
}

impl Limits {
    /// Limits as configured, their buckets full.
    pub fn new(config: Option<&RateLimiterConfig>) -> Self {
        let mut limits = Self::default();
        limits.update(config.unwrap_or(&RateLimiterConfig::default()));
        limits
    }

    /// Takes over the buckets that `config` names, full. Those that it does not name stay as they are.
    pub fn update(&mut self, config: &RateLimiterConfig) {
        if let Some(bandwidth) = config.bandwidth {
            self.bandwidth = bandwidth.bucket();
        }
        if let Some(ops) = config.ops {
            self.ops = ops.bucket();
        }
    }

    /// How long one operation of `bytes` bytes has to wait. If not at all, it is counted.
    pub fn admit(&mut self, bytes: u64) -> Duration {
        if self.bandwidth.is_none() && self.ops.is_none() {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let mut costs = [(self.bandwidth.as_mut(), bytes), (self.ops.as_mut(), 1)];
        let waits = costs.iter_mut().filter_map(|(bucket, cost)| bucket.as_mut().map(|bucket| bucket.wait(*cost, now)));
        let wait = waits.max().unwrap_or_default();
        if wait.is_zero() {
            costs.into_iter().filter_map(|(bucket, cost)| Some((bucket?, cost))).for_each(|(b, cost)| b.take(cost));
        }
        wait
    }

    /// What a snapshot keeps.
    pub fn save(&mut self) -> RateLimiterState {
        RateLimiterState {
            bandwidth: self.bandwidth.as_mut().map(TokenBucket::save),
            ops: self.ops.as_mut().map(TokenBucket::save),
        }
    }

    /// Puts back what a snapshot has kept; the text says what is wrong with it.
    pub fn restore(&mut self, state: RateLimiterState) -> Result<(), String> {
        let bucket = |level: Option<Level>| {
            level.map(|level| TokenBucket::restore(level).ok_or("a token bucket that cannot be".to_owned())).transpose()
        };
        (self.bandwidth, self.ops) = (bucket(state.bandwidth)?, bucket(state.ops)?);
        Ok(())
    }
}
