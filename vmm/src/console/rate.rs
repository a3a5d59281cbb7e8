//! A token bucket.

use std::time::Instant;

/// Lets a number of bytes through at once, and a rate in the long run.
#[derive(Debug)]
pub struct Bucket {
    rate: u64,
    burst: u64,
    tokens: u64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket: `burst` bytes at once, `rate` bytes a second (at least one).
    pub fn new(rate: u64, burst: u64) -> Self {
        Self { rate: rate.max(1), burst, tokens: burst, filled: Instant::now() }
    }

    /// Bytes that may pass now.
    pub fn available(&mut self) -> u64 {
        self.fill(Instant::now());
        self.tokens
    }

    /// Notes that `count` bytes passed.
    pub fn take(&mut self, count: u64) {
        self.tokens = self.tokens.saturating_sub(count);
    }

    /// Milliseconds until something may pass; 0 when it may now.
    pub fn wait_ms(&mut self) -> u16 {
        if self.available() > 0 { 0 } else { 10 }
    }

    /// Adds what came in since the last time, in whole tokens; a fraction is lost, which only makes it stricter.
    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled).as_micros();
        let new = elapsed.saturating_mul(u128::from(self.rate)) / 1_000_000;
        if new > 0 {
            let new = u64::try_from(new).unwrap_or(u64::MAX);
            self.tokens = self.tokens.saturating_add(new).min(self.burst);
            self.filled = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_more_passes_than_burst_and_rate_allow(steps in proptest::collection::vec((0u64..50_000, 0u64..5000), 1..200)) {
            let mut bucket = Bucket::new(10_000, 3000);
            let start = bucket.filled;
            let (mut now, mut passed) = (start, 0);
            for (micros, wanted) in steps {
                now += Duration::from_micros(micros);
                bucket.fill(now);
                let taken = wanted.min(bucket.tokens);
                bucket.take(taken);
                passed += taken;
                let allowed = 3000 + u64::try_from((now - start).as_micros()).unwrap() * 10_000 / 1_000_000;
                prop_assert!(passed <= allowed, "{passed} of {allowed}");
            }
        }
    }

    #[test]
    fn an_empty_bucket_fills_again() {
        let mut bucket = Bucket::new(1000, 10);
        bucket.take(10);
        let later = bucket.filled + Duration::from_millis(5);
        bucket.fill(later);
        assert_eq!(bucket.tokens, 5);
        bucket.fill(later + Duration::from_hours(1));
        assert_eq!(bucket.tokens, 10);
    }
}
