//! What the device counts, by Firecracker's names.

use serde::Serialize;

use crate::metrics::Counter;

/// Counters of the device.
#[derive(Debug, Default, Serialize)]
#[allow(clippy::struct_field_names)] // Firecracker's names
pub(super) struct Metrics {
    /// Times that the queue was looked at.
    pub(super) entropy_event_count: Counter,
    /// Requests that got nothing.
    pub(super) entropy_event_fails: Counter,
    /// Bytes that were given.
    pub(super) entropy_bytes: Counter,
    /// Requests that had to wait for the limiter.
    pub(super) entropy_rate_limiter_throttled: Counter,
    /// Times that the limiter's timer went off.
    pub(super) rate_limiter_event_count: Counter,
}
