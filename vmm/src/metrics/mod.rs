//! Counters that the VMM keeps of itself and its devices, by Firecracker's names.
//!
//! They are written as lines of JSON, one object each, to the file or FIFO of the configuration: when `FlushMetrics` asks,
//! every minute, and at the end of the VM. Each line holds what was counted since the line before.
//!
//! | group | what |
//! |---|---|
//! | `api_server`, `get_api_requests`, `put_api_requests`, `patch_api_requests` | [`Api`]: requests, and those that were refused |
//! | `deprecated_api` | [`Deprecated`]: requests that Firecracker has for older clients only |
//! | `vcpu` | [`Vcpu`]: exits that reached the VMM, of all vCPUs together; `kvmclock_ctrl_fails` |
//! | `uart`, `i8042` | accesses of the guest |
//! | `latencies_us` | [`Latencies`]: how long the last one took, in microseconds |
//! | `logger` | [`Logger`]: lines of metrics and of the log that were lost |
//! | `mmds` | the metadata service |
//! | `unconfined` | [layers](crate::jail::Layer) of the confinement: 1 where it was left out, not counted anew in each line |
//! | `block`, `net` | sums over all disks, all network cards |
//! | `block_ID`, `net_ID`, `vsock`, `balloon`, `entropy` | each device's own |
//!
//! Every line has all groups and fields of Firecracker 1.16, as clients' structures need them. What nothing can count here is
//! always zero:
//!
//! | group | fields | why |
//! |---|---|---|
//! | `seccomp`, `signals`, `vmm` | all | what they count is the end of the process, whose exit status says it |
//! | `interrupts` | all | devices call the guest by a system call, from any thread |
//! | `pmem`, `memory_hotplug` | all | there is no such device |
//! | `vcpu` | `…_agg` | two looks at the clock take longer than most exits |
//! | `logger` | `rate_limited_log_count` | what is said of one device's guest has a bound in number, not in time |
//! | `mmds` | `rx_accepted_unusual`, `rx_bad_eth`, `tx_errors` | such frames are the network card's; sending cannot fail |
//! | `uart`, `i8042` | `error_count`, `missed_read_count`, `rate_limiter_dropped_bytes`, `missed_write_count` of `i8042` | every access succeeds; bytes above the rate are in `uart.missed_write_count` |
//! | `block` | `activate_fails`, `cfg_fails`, `event_fails`, `remaining_reqs_count`, `io_engine_throttled_events` | these cannot fail; requests are done when they are taken |
//! | `net` | `mac_address_updates`, `tap_write_agg`, `tx_remaining_reqs_count` | the guest cannot change its address; as of `vcpu`; frames are sent when they are taken |
//! | `vsock` | `cfg_fails`, `killq_resync` | reading the address cannot fail; no such queue |
//! | `balloon` | `activate_fails`, `free_page_hint_…` | it cannot fail; not supported |
//! | `entropy` | `activate_fails`, `host_rng_fails` | they are `entropy_event_fails` |
//!
//! Beside Firecracker's there are `cfg_fails` of `balloon`, `discard_bytes` of `block`, `balloon`, `entropy` and `vm` among the
//! requests, and `…_fails` of GET requests.

mod api;
mod firecracker;
mod line;
mod output;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;

pub use api::Api;
pub use line::line;
pub use output::Output;

/// A counter. Written out, it gives what was added since it was written out the last time.
#[derive(Debug, Default)]
pub struct Counter {
    total: AtomicU64,
    written: AtomicU64,
}

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// `count` more.
    pub fn add(&self, count: u64) {
        self.total.fetch_add(count, Ordering::Relaxed);
    }

    /// All since the start, where that is counted elsewhere.
    pub fn raise_to(&self, total: u64) {
        self.total.fetch_max(total, Ordering::Relaxed);
    }

    /// What was added since the last time.
    fn take(&self) -> u64 {
        let total = self.total();
        total.wrapping_sub(self.written.swap(total, Ordering::Relaxed))
    }

    /// All since the start.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

impl Serialize for Counter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.take())
    }
}

/// The last of some values, such as how long something took. Written out again and again, as long as there is no new one.
#[derive(Debug, Default)]
pub struct Latest(AtomicU64);

impl Latest {
    /// A new value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The microseconds since `begin`.
    pub fn set_since(&self, begin: Instant) {
        self.set(u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
}

impl Serialize for Latest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0.load(Ordering::Relaxed))
    }
}

/// What the process counts beside its devices and vCPUs.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Requests to the API.
    pub api: Api,
    /// Those of them that Firecracker has for older clients only.
    pub deprecated: Deprecated,
    /// How long commands took.
    pub latencies: Latencies,
    /// What was lost.
    pub logger: Logger,
    /// vCPUs whose guest could not be told of a pause: it does not use KVM's clock.
    pub kvmclock_ctrl_fails: Counter,
}

/// Requests that Firecracker has for older clients only.
#[derive(Debug, Default, Serialize)]
pub struct Deprecated {
    /// Requests with such a field.
    pub deprecated_http_api_calls: Counter,
}

/// Lines that were lost.
#[derive(Debug, Default, Serialize)]
pub struct Logger {
    /// Lines of metrics that were not made, as the one before still waited for its reader.
    pub missed_metrics_count: Counter,
    /// Lines of metrics that could not be written.
    pub metrics_fails: Counter,
    /// Lines of the log that could not be written.
    pub missed_log_count: Counter,
}

/// How long the last command of each kind took, in microseconds. Written out, each also stands under a name that begins with
/// `vmm_`: Firecracker's for its part without the API's, which is all but some microseconds.
#[derive(Debug, Default)]
pub struct Latencies {
    /// Writing a snapshot of all memory.
    pub full_create_snapshot: Latest,
    /// Writing one of what has changed.
    pub diff_create_snapshot: Latest,
    /// Loading one.
    pub load_snapshot: Latest,
    /// Bringing the vCPUs to a halt.
    pub pause_vm: Latest,
    /// Letting them go on.
    pub resume_vm: Latest,
}

impl Serialize for Latencies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(10))?;
        for (name, both, latest) in [
            ("full_create_snapshot", "vmm_full_create_snapshot", &self.full_create_snapshot),
            ("diff_create_snapshot", "vmm_diff_create_snapshot", &self.diff_create_snapshot),
            ("load_snapshot", "vmm_load_snapshot", &self.load_snapshot),
            ("pause_vm", "vmm_pause_vm", &self.pause_vm),
            ("resume_vm", "vmm_resume_vm", &self.resume_vm),
        ] {
            map.serialize_entry(name, latest)?;
            map.serialize_entry(both, latest)?;
        }
        map.end()
    }
}

/// Exits of a vCPU. Each vCPU has its own, so that their threads do not wait for each other's caches.
#[derive(Debug, Default)]
pub struct Vcpu {
    /// Reads from a port.
    pub exit_io_in: Counter,
    /// Writes to a port.
    pub exit_io_out: Counter,
    /// Reads from a device in memory.
    pub exit_mmio_read: Counter,
    /// Writes to a device in memory.
    pub exit_mmio_write: Counter,
    /// Exits that ended the VM with an error.
    pub failures: Counter,
}

impl Vcpu {
    /// All vCPUs' counters together.
    pub fn sum(all: &[Arc<Self>]) -> Value {
        let sum = |field: fn(&Self) -> &Counter| all.iter().fold(0, |sum, vcpu| field(vcpu).take().wrapping_add(sum));
        serde_json::json!({
            "exit_io_in": sum(|vcpu| &vcpu.exit_io_in),
            "exit_io_out": sum(|vcpu| &vcpu.exit_io_out),
            "exit_mmio_read": sum(|vcpu| &vcpu.exit_mmio_read),
            "exit_mmio_write": sum(|vcpu| &vcpu.exit_mmio_write),
            "failures": sum(|vcpu| &vcpu.failures),
        })
    }
}

/// A group of counters as it stands in a line.
pub fn group(counters: &impl Serialize) -> Value {
    // Numbers in structs cannot fail.
    serde_json::to_value(counters).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_gives_what_was_added_since_and_a_latest_value_stays() {
        let (counter, latest) = (Counter::default(), Latest::default());
        counter.add(3);
        latest.set(7);
        assert_eq!((group(&counter), group(&latest)), (3.into(), 7.into()));
        counter.inc();
        assert_eq!((group(&counter), group(&latest)), (1.into(), 7.into()));
        assert_eq!((group(&counter), counter.total()), (0.into(), 4));
    }

    #[test]
    fn vcpus_count_together() {
        let vcpus = [(); 2].map(|()| Arc::new(Vcpu::default()));
        vcpus[0].exit_io_in.add(2);
        vcpus[1].exit_io_in.add(3);
        vcpus[1].failures.inc();
        let sum = Vcpu::sum(&vcpus);
        assert_eq!((&sum["exit_io_in"], &sum["exit_io_out"], &sum["failures"]), (&5.into(), &0.into(), &1.into()));
        assert_eq!(Vcpu::sum(&vcpus)["exit_io_in"], 0);
    }
}
