//! What the device counts, by Firecracker's names.

use serde::Serialize;

use crate::metrics::Counter;

/// Counters of one card.
#[derive(Debug, Default, Serialize)]
pub(super) struct Metrics {
    /// Times that the driver was ready, but the tap did not take what was agreed on.
    pub(super) activate_fails: Counter,
    /// Accesses to the configuration space that do not lie in it.
    pub(super) cfg_fails: Counter,
    /// Times that a frame had to wait because the driver had given no buffer.
    pub(super) no_rx_avail_buffer: Counter,
    /// Times that the sending queue was found empty at once.
    pub(super) no_tx_avail_buffer: Counter,
    /// Events that could not be served.
    pub(super) event_fails: Counter,
    /// Notifications for the receiving queue.
    pub(super) rx_queue_event_count: Counter,
    /// Times that the receiving limiter let go on.
    pub(super) rx_event_rate_limiter_count: Counter,
    /// Times that the receiving limiter held a frame back.
    pub(super) rx_rate_limiter_throttled: Counter,
    /// Times that the tap had something.
    pub(super) rx_tap_event_count: Counter,
    /// Bytes that the guest received, without the header.
    pub(super) rx_bytes_count: Counter,
    /// Frames that the guest received.
    pub(super) rx_packets_count: Counter,
    /// Frames that the guest's buffers did not hold, or that are larger than a frame may be.
    pub(super) rx_fails: Counter,
    /// Frames that were read.
    pub(super) rx_count: Counter,
    /// Errors of the tap when it was read.
    pub(super) tap_read_fails: Counter,
    /// Errors of the tap when it was written.
    pub(super) tap_write_fails: Counter,
    /// Bytes that the guest sent, without the header.
    pub(super) tx_bytes_count: Counter,
    /// Frames that are too short or too large, or ask for what was not agreed on.
    pub(super) tx_malformed_frames: Counter,
    /// Frames that did not reach the tap.
    pub(super) tx_fails: Counter,
    /// Frames that were taken by the tap.
    pub(super) tx_count: Counter,
    /// Frames that the guest sent, to the tap or to the metadata service.
    pub(super) tx_packets_count: Counter,
    /// Notifications for the sending queue.
    pub(super) tx_queue_event_count: Counter,
    /// Times that the sending limiter let go on.
    pub(super) tx_rate_limiter_event_count: Counter,
    /// Times that the sending limiter held a frame back.
    pub(super) tx_rate_limiter_throttled: Counter,
    /// Frames from another address than the card's. They were dropped.
    pub(super) tx_spoofed_mac_count: Counter,
}
