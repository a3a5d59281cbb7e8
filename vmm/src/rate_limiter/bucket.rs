//! A token bucket, in exact arithmetic: no token is lost or made up by rounding.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Longest time that [`TokenBucket::wait`] gives. Whoever waits asks again afterwards.
const MAX_WAIT: Duration = Duration::from_hours(24);
const NANOS_PER_MS: u64 = 1_000_000;

/// Lets a number of tokens through at once, and a rate in the long run.
///
/// It holds up to `size` tokens and fills from empty to full in its refill time. A burst that it may have beside is
/// used up first and does not come back. What costs more than the bucket ever holds is let through by a full bucket,
/// and leaves a debt that is filled before anything else passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    level: Level,
    filled: Instant,
}

/// A bucket without its clock: what a snapshot keeps of it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// Tokens that it holds, at least one.
    size: u64,
    /// Nanoseconds from empty to full, at least one.
    refill_ns: u64,
    /// Tokens of the burst that are left.
    burst: u64,
    /// Tokens that are there; negative: a debt.
    balance: i128,
    /// What was refilled beyond whole tokens, in 1/`refill_ns` of a token.
    fraction: u64,
}

impl Level {
    /// Whether it could be a bucket's: a snapshot is not trusted to be one.
    fn is_sound(&self) -> bool {
        self.size > 0
            && self.fraction < self.refill_ns
            && (-i128::from(u64::MAX)..=i128::from(self.size)).contains(&self.balance)
    }

    /// Adds what `elapsed` nanoseconds bring.
    fn fill(&mut self, elapsed: u128) {
        let (size, refill) = (u128::from(self.size), u128::from(self.refill_ns));
        // Whole refill times apart, so that nothing overflows: the product below is of two 64-bit numbers.
        let whole = (elapsed / refill).saturating_mul(size);
        let part = (elapsed % refill) * size + u128::from(self.fraction);
        let new = whole.saturating_add(part / refill);
        match i128::try_from(new).ok().and_then(|new| self.balance.checked_add(new)) {
            Some(balance) if balance < i128::from(self.size) => {
                self.balance = balance;
                self.fraction = u64::try_from(part % refill).unwrap_or(0);
            }
            _ => (self.balance, self.fraction) = (i128::from(self.size), 0),
        }
    }

    /// Tokens that are there now, the burst's too.
    fn tokens(&self) -> i128 {
        self.balance.saturating_add(i128::from(self.burst))
    }
}

impl TokenBucket {
    /// A full bucket of `size` tokens that fills in `refill_ms` milliseconds, and a burst beside. `None` if size or time
    /// is zero, which limits nothing, or if the time is beyond what a clock counts (584 years).
    pub fn new(size: u64, burst: u64, refill_ms: u64) -> Option<Self> {
        let nanos = refill_ms.checked_mul(NANOS_PER_MS).filter(|nanos| *nanos > 0)?;
        let level = Level { size, refill_ns: nanos, burst, balance: i128::from(size), fraction: 0 };
        (size > 0).then(|| Self { level, filled: Instant::now() })
    }

    /// Tokens that may pass at once.
    pub fn available(&mut self, now: Instant) -> u64 {
        self.fill(now);
        u64::try_from(self.level.tokens().max(0)).unwrap_or(u64::MAX)
    }

    /// How long to wait until something that costs `cost` tokens may pass; zero when it may now.
    pub fn wait(&mut self, cost: u64, now: Instant) -> Duration {
        self.fill(now);
        let needed = i128::from(cost.min(self.level.size));
        let Ok(missing @ 1..) = u128::try_from(needed.saturating_sub(self.level.tokens())) else {
            return Duration::ZERO;
        };
        let owed = missing.saturating_mul(u128::from(self.level.refill_ns)) - u128::from(self.level.fraction);
        let nanos = owed.div_ceil(u128::from(self.level.size));
        u64::try_from(nanos).map_or(MAX_WAIT, Duration::from_nanos).min(MAX_WAIT)
    }

    /// Takes `cost` tokens, whether they are there or not: the burst's first, then the bucket's, then a debt.
    pub fn take(&mut self, cost: u64) {
        let from_burst = cost.min(self.level.burst);
        self.level.burst -= from_burst;
        let balance = self.level.balance.saturating_sub(i128::from(cost - from_burst));
        self.level.balance = balance.max(-i128::from(u64::MAX));
    }

    fn fill(&mut self, now: Instant) {
        self.level.fill(now.saturating_duration_since(self.filled).as_nanos());
        self.filled = self.filled.max(now);
    }

    /// What a snapshot keeps of it.
    pub fn save(&mut self) -> Level {
        self.fill(Instant::now());
        self.level.clone()
    }

    /// A bucket as a snapshot has kept it, filling from now on. `None` if no bucket can be like that.
    pub fn restore(level: Level) -> Option<Self> {
        level.is_sound().then(|| Self { level, filled: Instant::now() })
    }
}

#[cfg(test)]
mod tests;
