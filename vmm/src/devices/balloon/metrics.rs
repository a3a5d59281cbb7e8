//! What the device counts, by Firecracker's names.

use serde::Serialize;

use crate::metrics::Counter;

/// Counters of the device.
#[derive(Debug, Default, Serialize)]
pub(super) struct Metrics {
    /// Writes of the driver to configuration space that mean nothing.
    pub(super) cfg_fails: Counter,
    /// Times that pages were given to the host.
    pub(super) inflate_count: Counter,
    /// Times that pages were taken back.
    pub(super) deflate_count: Counter,
    /// Statistics that came.
    pub(super) stats_updates_count: Counter,
    /// Statistics that were not there when they were asked for, or are none.
    pub(super) stats_update_fails: Counter,
    /// Rules that the driver broke, and memory that the host's kernel did not take back.
    pub(super) event_fails: Counter,
    /// Times that pages without use were reported.
    pub(super) free_page_report_count: Counter,
    /// Bytes of them that the host took.
    pub(super) free_page_report_freed: Counter,
    /// Failures to take them.
    pub(super) free_page_report_fails: Counter,
}
