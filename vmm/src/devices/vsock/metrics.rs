//! What the device counts, by Firecracker's names. "rx" is towards the guest, "tx" from it.

use serde::Serialize;

use crate::metrics::Counter;

/// Counters of the device.
#[derive(Debug, Default, Serialize)]
pub(super) struct Metrics {
    /// Starts of the driver at which nothing could be listened to.
    pub(super) activate_fails: Counter,
    /// Times that the guest's queue for packets was looked at.
    pub(super) rx_queue_event_count: Counter,
    /// Times that the guest's packets were looked at.
    pub(super) tx_queue_event_count: Counter,
    /// Rules that the driver broke with the queue for packets to it.
    pub(super) rx_queue_event_fails: Counter,
    /// Rules that the driver broke with its packets, and packets that are none of this device's.
    pub(super) tx_queue_event_fails: Counter,
    /// Rules that the driver broke with the queue for events.
    pub(super) ev_queue_event_fails: Counter,
    /// Connections of the host that could not be taken.
    pub(super) muxer_event_fails: Counter,
    /// Connections of the host that did not say where to.
    pub(super) conn_event_fails: Counter,
    /// Bytes to the guest.
    pub(super) rx_bytes_count: Counter,
    /// Bytes from the guest.
    pub(super) tx_bytes_count: Counter,
    /// Packets to the guest.
    pub(super) rx_packets_count: Counter,
    /// Packets from the guest.
    pub(super) tx_packets_count: Counter,
    /// Connections that were begun.
    pub(super) conns_added: Counter,
    /// Connections that one side left hanging and a timer ended.
    pub(super) conns_killed: Counter,
    /// Connections that are over.
    pub(super) conns_removed: Counter,
    /// Failures to write to the host what the guest had sent before.
    pub(super) tx_flush_fails: Counter,
    /// Failures to write to the host what the guest sends.
    pub(super) tx_write_fails: Counter,
    /// Failures to read from the host.
    pub(super) rx_read_fails: Counter,
}
