//! Requests to the API.

use serde_json::{Map, Value, json};

use super::{Counter, Latest};

/// Method, first part of the path, Firecracker's name.
const REQUESTS: [(&str, &str, &str); 30] = [
    ("GET", "", "instance_info"),
    ("GET", "balloon", "balloon"),
    ("GET", "hotplug", "hotplug_memory"),
    ("GET", "machine-config", "machine_cfg"),
    ("GET", "mmds", "mmds"),
    ("GET", "version", "vmm_version"),
    ("GET", "vm", "vm"),
    ("PUT", "actions", "actions"),
    ("PUT", "balloon", "balloon"),
    ("PUT", "boot-source", "boot_source"),
    ("PUT", "cpu-config", "cpu_cfg"),
    ("PUT", "drives", "drive"),
    ("PUT", "entropy", "entropy"),
    ("PUT", "hotplug", "hotplug_memory"),
    ("PUT", "logger", "logger"),
    ("PUT", "machine-config", "machine_cfg"),
    ("PUT", "metrics", "metrics"),
    ("PUT", "mmds", "mmds"),
    ("PUT", "network-interfaces", "network"),
    ("PUT", "pmem", "pmem"),
    ("PUT", "serial", "serial"),
    ("PUT", "snapshot", "snapshot"),
    ("PUT", "vsock", "vsock"),
    ("PATCH", "balloon", "balloon"),
    ("PATCH", "drives", "drive"),
    ("PATCH", "hotplug", "hotplug_memory"),
    ("PATCH", "machine-config", "machine_cfg"),
    ("PATCH", "mmds", "mmds"),
    ("PATCH", "network-interfaces", "network"),
    ("PATCH", "pmem", "pmem"),
];

/// What the API's thread counts.
#[derive(Debug, Default)]
pub struct Api {
    /// Microseconds from the process's begin, or from `--start-time-us`, to the moment when it could take requests.
    pub process_startup_time_us: Latest,
    /// Processor time of the whole process up to then, in microseconds; from `--start-time-cpu-us` on, if that was given.
    pub process_startup_time_cpu_us: Latest,
    /// For each of [`REQUESTS`]: all, and those that were refused.
    requests: [(Counter, Counter); REQUESTS.len()],
}

impl Api {
    /// A request was answered. One that is not in the list is not counted.
    pub fn answered(&self, method: &str, path: &str, refused: bool) {
        let path = path.split('?').next().unwrap_or_default();
        let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        let known = REQUESTS.iter().zip(&self.requests).find(|((of, part, _), _)| (*of, *part) == (method, first));
        if let Some((_, (all, fails))) = known {
            all.inc();
            if refused {
                fails.inc();
            }
        }
    }

    /// The groups of a line.
    pub(crate) fn groups(&self) -> Vec<(String, Value)> {
        let group = |method: &str| {
            let of = REQUESTS.iter().zip(&self.requests).filter(|((of, ..), _)| *of == method);
            let mut object = Map::new();
            for ((_, _, name), (all, fails)) in of {
                object.insert(format!("{name}_count"), super::group(all));
                object.insert(format!("{name}_fails"), super::group(fails));
            }
            (format!("{}_api_requests", method.to_lowercase()), Value::Object(object))
        };
        let server = json!({
            "process_startup_time_us": super::group(&self.process_startup_time_us),
            "process_startup_time_cpu_us": super::group(&self.process_startup_time_cpu_us),
        });
        vec![("api_server".to_owned(), server), group("GET"), group("PUT"), group("PATCH")]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_method_and_path() {
        let api = Api::default();
        api.answered("GET", "/", false);
        api.answered("PUT", "/drives/rootfs", true);
        api.answered("PUT", "/drives/data", false);
        api.answered("PUT", "/nonsense", true);
        let groups: Map<String, Value> = api.groups().into_iter().collect();
        assert_eq!(groups["get_api_requests"]["instance_info_count"], 1);
        assert_eq!(groups["put_api_requests"]["drive_count"], 2);
        assert_eq!(groups["put_api_requests"]["drive_fails"], 1);
        assert_eq!(groups["patch_api_requests"]["drive_count"], 0);
        let again: Map<String, Value> = api.groups().into_iter().collect();
        assert_eq!(again["put_api_requests"]["drive_count"], 0);
    }
}
