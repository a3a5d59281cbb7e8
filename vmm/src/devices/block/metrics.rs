//! What a disk counts, by Firecracker's names.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::metrics::Counter;

/// Counters of one disk.
#[derive(Debug, Default, Serialize)]
pub(super) struct Metrics {
    /// Times that the queue was looked at and was empty.
    pub(super) no_avail_buffer: Counter,
    /// Requests that the host could not do.
    pub(super) execute_fails: Counter,
    /// Requests that are none, or ask for what is not offered.
    pub(super) invalid_reqs_count: Counter,
    /// Flushes.
    pub(super) flush_count: Counter,
    /// Times that the queue was looked at.
    pub(super) queue_event_count: Counter,
    /// Times that the limiter's timer went off.
    pub(super) rate_limiter_event_count: Counter,
    /// Times that the file or the limits were replaced.
    pub(super) update_count: Counter,
    /// Times that the file could not be replaced.
    pub(super) update_fails: Counter,
    /// Bytes that were read.
    pub(super) read_bytes: Counter,
    /// Bytes that were written.
    pub(super) write_bytes: Counter,
    /// Reads that succeeded.
    pub(super) read_count: Counter,
    /// Writes that succeeded.
    pub(super) write_count: Counter,
    /// How long reads took.
    pub(super) read_agg: Latency,
    /// How long writes took.
    pub(super) write_agg: Latency,
    /// Requests that had to wait for the limiter.
    pub(super) rate_limiter_throttled_events: Counter,
    /// Bytes that were discarded or overwritten with zeros. Firecracker has no such request.
    pub(super) discard_bytes: Counter,
}

/// Shortest and longest time since the start, and the sum since it was last written out, in microseconds.
#[derive(Debug, Default, Serialize)]
#[allow(clippy::struct_field_names)] // Firecracker's names
pub(super) struct Latency {
    min_us: Extreme,
    max_us: Extreme,
    sum_us: Counter,
}

/// A value that is written out as it is.
#[derive(Debug, Default)]
struct Extreme(AtomicU64);

impl Serialize for Extreme {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0.load(Ordering::Relaxed))
    }
}

impl Latency {
    /// Something took this long. Only the thread that serves the device calls it.
    pub(super) fn add(&self, time: Duration) {
        // Zero stands for "none yet".
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
        let min = self.min_us.0.load(Ordering::Relaxed);
        if min == 0 || us < min {
            self.min_us.0.store(us, Ordering::Relaxed);
        }
        self.max_us.0.fetch_max(us, Ordering::Relaxed);
        self.sum_us.add(us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_written_as_firecracker_does() {
        let latency = Latency::default();
        for us in [5, 2, 9] {
            latency.add(Duration::from_micros(us));
        }
        let written = || serde_json::to_string(&latency).unwrap();
        assert_eq!(written(), r#"{"min_us":2,"max_us":9,"sum_us":16}"#);
        assert_eq!(written(), r#"{"min_us":2,"max_us":9,"sum_us":0}"#);
    }
}
