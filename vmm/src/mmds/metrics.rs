//! What the service counts, by Firecracker's names.

use serde::Serialize;

use crate::metrics::Counter;

/// Counters of the service, over all cards.
#[derive(Debug, Default, Serialize)]
pub(super) struct Metrics {
    /// Frames of the guest that were for the service.
    pub(super) rx_accepted: Counter,
    /// Frames for the service that there was no room for.
    pub(super) rx_accepted_err: Counter,
    /// Requests of sessions that there are not.
    pub(super) rx_invalid_token: Counter,
    /// Requests without a session.
    pub(super) rx_no_token: Counter,
    /// Requests that were answered.
    pub(super) rx_count: Counter,
    /// Bytes of frames for the guest.
    pub(super) tx_bytes: Counter,
    /// Frames for the guest.
    pub(super) tx_frames: Counter,
    /// Answers that were sent whole.
    pub(super) tx_count: Counter,
    /// Connections that the guest opened.
    pub(super) connections_created: Counter,
    /// Connections that have ended.
    pub(super) connections_destroyed: Counter,
}
