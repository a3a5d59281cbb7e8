//! Waiting between tries: doubling, with an upper end, and jitter so that a fleet does not come back all at once.

use std::time::Duration;

/// The waits between tries of something that fails.
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits that begin at `first` and double up to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest: longest.max(first), failures: 0 }
    }

    /// The wait after one more failure: between half of the doubled time and the whole of it.
    pub fn failed(&mut self) -> Duration {
        let full = self.first.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(self.longest);
        self.failures = self.failures.saturating_add(1).min(31);
        jitter(full)
    }

    /// It worked: the next failure waits the shortest time again.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }
}

/// A time between half of `full` and `full`.
fn jitter(full: Duration) -> Duration {
    let mut byte = [0_u8; 1];
    // Without randomness the waits are still right, they only lose their spread.
    let share = if aws_lc_rs::rand::fill(&mut byte).is_ok() { u32::from(byte[0]) } else { 128 };
    full / 2 + (full / 2).saturating_mul(share) / 255
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_its_end_and_begins_anew() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        for full in [1_u64, 2, 4, 8, 10, 10] {
            let wait = backoff.failed();
            let full = Duration::from_secs(full);
            assert!(wait >= full / 2 && wait <= full, "{wait:?} is not within half of {full:?}");
        }
        for _ in 0..100 {
            assert!(backoff.failed() <= Duration::from_secs(10));
        }
        backoff.succeeded();
        assert!(backoff.failed() <= Duration::from_secs(1));
    }
}
