//! Names of Firecracker that a line has whether anything counts them here or not: structures that clients read lines into
//! need them.

use serde_json::{Map, Value, json};

/// Groups and fields of Firecracker 1.16, less those that every VM of this VMM counts. A field whose name ends in
/// [`AGGREGATE`] has three of its own.
const FIELDS: &[(&str, &[&str])] = &[
    (
        "balloon",
        &[
            "activate_fails",
            "deflate_count",
            "event_fails",
            "free_page_hint_count",
            "free_page_hint_fails",
            "free_page_hint_freed",
            "free_page_report_count",
            "free_page_report_fails",
            "free_page_report_freed",
            "inflate_count",
            "stats_update_fails",
            "stats_updates_count",
        ],
    ),
    (
        "block",
        &[
            "activate_fails",
            "cfg_fails",
            "event_fails",
            "execute_fails",
            "flush_count",
            "invalid_reqs_count",
            "io_engine_throttled_events",
            "no_avail_buffer",
            "queue_event_count",
            "rate_limiter_event_count",
            "rate_limiter_throttled_events",
            "read_agg",
            "read_bytes",
            "read_count",
            "remaining_reqs_count",
            "update_count",
            "update_fails",
            "write_agg",
            "write_bytes",
            "write_count",
        ],
    ),
    (
        "entropy",
        &[
            "activate_fails",
            "entropy_bytes",
            "entropy_event_count",
            "entropy_event_fails",
            "entropy_rate_limiter_throttled",
            "host_rng_fails",
            "rate_limiter_event_count",
        ],
    ),
    ("i8042", &["error_count", "missed_read_count", "missed_write_count"]),
    ("interrupts", &["config_updates", "triggers"]),
    ("logger", &["rate_limited_log_count"]),
    (
        "memory_hotplug",
        &[
            "activate_fails",
            "plug_agg",
            "plug_bytes",
            "plug_count",
            "plug_fails",
            "queue_event_count",
            "queue_event_fails",
            "state_agg",
            "state_count",
            "state_fails",
            "unplug_agg",
            "unplug_all_agg",
            "unplug_all_count",
            "unplug_all_fails",
            "unplug_bytes",
            "unplug_count",
            "unplug_discard_fails",
            "unplug_fails",
        ],
    ),
    ("mmds", &["rx_accepted_unusual", "rx_bad_eth", "tx_errors"]),
    (
        "net",
        &[
            "activate_fails",
            "cfg_fails",
            "event_fails",
            "mac_address_updates",
            "no_rx_avail_buffer",
            "no_tx_avail_buffer",
            "rx_bytes_count",
            "rx_count",
            "rx_event_rate_limiter_count",
            "rx_fails",
            "rx_packets_count",
            "rx_queue_event_count",
            "rx_rate_limiter_throttled",
            "rx_tap_event_count",
            "tap_read_fails",
            "tap_write_agg",
            "tap_write_fails",
            "tx_bytes_count",
            "tx_count",
            "tx_fails",
            "tx_malformed_frames",
            "tx_packets_count",
            "tx_queue_event_count",
            "tx_rate_limiter_event_count",
            "tx_rate_limiter_throttled",
            "tx_remaining_reqs_count",
            "tx_spoofed_mac_count",
        ],
    ),
    (
        "pmem",
        &[
            "activate_fails",
            "cfg_fails",
            "event_fails",
            "queue_event_count",
            "rate_limiter_event_count",
            "rate_limiter_throttled_events",
        ],
    ),
    ("seccomp", &["num_faults"]),
    ("signals", &["sigbus", "sighup", "sigill", "sigpipe", "sigsegv", "sigxcpu", "sigxfsz"]),
    ("uart", &["error_count", "missed_read_count", "rate_limiter_dropped_bytes"]),
    ("vcpu", &["exit_io_in_agg", "exit_io_out_agg", "exit_mmio_read_agg", "exit_mmio_write_agg"]),
    ("vmm", &["panic_count"]),
    (
        "vsock",
        &[
            "activate_fails",
            "cfg_fails",
            "conn_event_fails",
            "conns_added",
            "conns_killed",
            "conns_removed",
            "ev_queue_event_fails",
            "killq_resync",
            "muxer_event_fails",
            "rx_bytes_count",
            "rx_packets_count",
            "rx_queue_event_count",
            "rx_queue_event_fails",
            "rx_read_fails",
            "tx_bytes_count",
            "tx_flush_fails",
            "tx_packets_count",
            "tx_queue_event_count",
            "tx_queue_event_fails",
            "tx_write_fails",
        ],
    ),
];
/// How the name of a field ends that has times in it, by the shortest, the longest, and their sum.
const AGGREGATE: &str = "_agg";
/// Groups of devices of which there may be several. Each has a group of its own, with its name behind an underscore.
const SEVERAL: [&str; 2] = ["block", "net"];

/// Adds what is not there, as zero.
pub(super) fn fill(line: &mut Map<String, Value>) {
    for (name, fields) in FIELDS {
        fill_group(line.entry(*name).or_insert_with(|| json!({})), fields);
        let own = SEVERAL.contains(name).then(|| format!("{name}_"));
        let of_devices = line.iter_mut().filter(|(group, _)| own.as_ref().is_some_and(|own| group.starts_with(own)));
        for (_, group) in of_devices {
            fill_group(group, fields);
        }
    }
}

fn fill_group(group: &mut Value, fields: &[&str]) {
    let Some(group) = group.as_object_mut() else {
        return;
    };
    for field in fields {
        group.entry(*field).or_insert_with(|| {
            if field.ends_with(AGGREGATE) { json!({"min_us": 0, "max_us": 0, "sum_us": 0}) } else { json!(0) }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_stays_and_what_is_not_is_zero() {
        let line = json!({"vcpu": {"failures": 1}, "block_a": {"read_bytes": 5, "read_agg": {"sum_us": 7}}});
        let mut line = line.as_object().cloned().unwrap();
        fill(&mut line);
        assert_eq!((&line["vcpu"]["failures"], &line["block_a"]["read_bytes"]), (&json!(1), &json!(5)));
        assert_eq!(line["block_a"]["read_agg"], json!({"sum_us": 7}));
        assert_eq!(line["block_a"]["write_agg"], json!({"min_us": 0, "max_us": 0, "sum_us": 0}));
        assert_eq!((&line["block"]["read_bytes"], &line["seccomp"]["num_faults"]), (&json!(0), &json!(0)));
        assert!(line.get("net_").is_none() && line.get("vcpu_").is_none());
    }
}
