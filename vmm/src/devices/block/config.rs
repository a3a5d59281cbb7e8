//! `drives`, as Firecracker writes them, and four fields of our own: `num_queues`, `offset`, `key_fd` and
//! `tenant`.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

use super::{MAX_QUEUES, SECTOR};
use crate::config::{ConfigError, Unsupported, objects_only};
use crate::rate_limiter::RateLimiterConfig;

/// Longest name of a drive or a tenant, in characters.
const MAX_NAME: usize = 64;

/// What a guest's flush is worth.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheType {
    /// The guest has no flush: when data reaches the host's disk is the host's choice.
    #[default]
    Unsafe,
    /// What was flushed is on the host's disk.
    Writeback,
}

/// How requests are done on the host.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoEngine {
    /// One after the other.
    #[default]
    Sync,
    /// Through io_uring: not supported.
    Async,
}

/// One disk.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct DriveConfig {
    /// Its name: 1 to 64 letters, digits and underscores. The first 20 are the serial number that the guest sees.
    pub drive_id: String,
    /// A regular file or a block device, of raw sectors: no format is ever looked for.
    #[serde(default, deserialize_with = "null_is_default")]
    pub path_on_host: PathBuf,
    /// The guest finds it first, and the kernel's command line names it as `root=`.
    pub is_root_device: bool,
    /// The partition of the root device that is the root file system, by its UUID. Of other drives it means nothing.
    #[serde(default)]
    pub partuuid: Option<String>,
    /// The guest cannot write, and neither can this process: the file is opened for reading.
    #[serde(default, deserialize_with = "null_is_default")]
    pub is_read_only: bool,
    /// What a flush is worth.
    #[serde(default, deserialize_with = "null_is_default")]
    pub cache_type: CacheType,
    /// How requests are done: only `Sync`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub io_engine: IoEngine,
    /// How much the guest may ask of it.
    #[serde(default)]
    pub rate_limiter: Option<RateLimiterConfig>,
    /// A vhost-user socket: not supported.
    #[serde(default)]
    pub socket: Unsupported,
    /// Ours: how many queues it has, 1 to 16, each with a thread of its own. The guest's kernel divides them among its
    /// vCPUs.
    #[serde(default = "one_queue", skip_serializing_if = "is_one")]
    pub num_queues: u16,
    /// Ours: where the guest's first sector lies in the file, in bytes, a multiple of 512. What is before is not the
    /// guest's: a volume's header.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub offset: u64,
    /// Ours: the descriptor from which the key of an encrypted volume is read. Not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_fd: Option<u32>,
    /// Ours: whose disk it is. A VM has one tenant: disks of different ones are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

objects_only!(DriveConfig);

/// What a PATCH of a drive may change.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct DriveUpdate {
    /// The drive.
    pub drive_id: String,
    /// Another file for it, or the same one, whose size has changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// Other limits. Buckets that are not named stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiterConfig>,
}

objects_only!(DriveUpdate);

fn null_is_default<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

fn one_queue() -> u16 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as below
fn is_one(value: &u16) -> bool {
    *value == 1
}

// serde's `skip_serializing_if` hands over a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl Default for DriveConfig {
    /// A drive without a name or a file yet, with one queue.
    fn default() -> Self {
        Self {
            drive_id: String::new(),
            path_on_host: PathBuf::new(),
            is_root_device: false,
            partuuid: None,
            is_read_only: false,
            cache_type: CacheType::default(),
            io_engine: IoEngine::default(),
            rate_limiter: None,
            socket: Unsupported::default(),
            num_queues: 1,
            offset: 0,
            key_fd: None,
            tenant: None,
        }
    }
}

impl DriveConfig {
    /// A writable disk of the whole file `path`.
    pub fn new(id: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self { drive_id: id.into(), path_on_host: path.into(), ..Self::default() }
    }

    /// Checks all drives of a VM, also against each other.
    pub fn check_all(drives: &[Self]) -> Result<(), ConfigError> {
        for (number, drive) in drives.iter().enumerate() {
            drive.check()?;
            let mut before = drives.iter().take(number);
            let refuse = |field, found: &str, allowed: &str| Err(out_of_range(field, found, allowed));
            if before.clone().any(|other| other.drive_id == drive.drive_id) {
                return refuse("drives.drive_id", &drive.drive_id, "a name that no other drive has");
            }
            if drive.is_root_device && before.clone().any(|other| other.is_root_device) {
                return refuse("drives.is_root_device", "true more than once", "true for one drive");
            }
            if let Some(tenant) = &drive.tenant
                && before.any(|other| other.tenant.as_ref().is_some_and(|other| other != tenant))
            {
                return refuse("drives.tenant", tenant, "one tenant for all drives of a VM");
            }
        }
        Ok(())
    }

    /// Checks the values.
    pub fn check(&self) -> Result<(), ConfigError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        check_name("drives.drive_id", &self.drive_id, plain, "1 to 64 letters, digits and underscores")?;
        if !self.socket.is_absent() {
            return Err(ConfigError::NotSupported("drives.socket"));
        }
        if self.io_engine == IoEngine::Async {
            return Err(ConfigError::NotSupported("drives.io_engine: Async"));
        }
        if self.key_fd.is_some() {
            return Err(ConfigError::NotSupported("drives.key_fd"));
        }
        if self.path_on_host.as_os_str().is_empty() {
            return Err(out_of_range("drives.path_on_host", "missing", "the path of a file or a block device"));
        }
        if !self.offset.is_multiple_of(SECTOR) {
            return Err(out_of_range("drives.offset", &self.offset.to_string(), "a multiple of 512"));
        }
        if !(1..=MAX_QUEUES).contains(&self.num_queues) {
            return Err(out_of_range("drives.num_queues", &self.num_queues.to_string(), "1 to 16"));
        }
        if let Some(tenant) = &self.tenant {
            let label = |c: char| plain(c) || c == '-' || c == '.';
            check_name("drives.tenant", tenant, label, "1 to 64 letters, digits, underscores, hyphens and dots")?;
        }
        if let Some(uuid) = &self.partuuid {
            // It becomes a word of the kernel's command line.
            let allowed = |c: char| c.is_ascii_graphic();
            check_name("drives.partuuid", uuid, allowed, "1 to 64 printable characters without spaces")?;
        }
        self.rate_limiter.as_ref().map_or(Ok(()), RateLimiterConfig::check)
    }

    /// What the kernel's command line says of the root device.
    pub fn root_argument(&self) -> String {
        let mode = if self.is_read_only { "ro" } else { "rw" };
        match &self.partuuid {
            Some(uuid) => format!("root=PARTUUID={uuid} {mode}"),
            // The root device is the first: see `in_order`.
            None => format!("root=/dev/vda {mode}"),
        }
    }

    /// Drives in the order in which the guest finds them: the root device first, then as configured.
    pub fn in_order(drives: &[Self]) -> impl Iterator<Item = &Self> {
        let [root, others] = [true, false].map(|root| drives.iter().filter(move |drive| drive.is_root_device == root));
        root.chain(others)
    }
}

fn out_of_range(field: &'static str, found: &str, allowed: &str) -> ConfigError {
    ConfigError::OutOfRange { field, found: found.to_owned(), allowed: allowed.to_owned() }
}

fn check_name(
    field: &'static str,
    name: &str,
    is_allowed: impl Fn(char) -> bool,
    rule: &str,
) -> Result<(), ConfigError> {
    let good = (1..=MAX_NAME).contains(&name.len()) && name.chars().all(is_allowed);
    if good { Ok(()) } else { Err(out_of_range(field, &format!("{name:?}"), rule)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &str) -> Result<DriveConfig, String> {
        let text = format!(r#"{{"drive_id": "rootfs", "path_on_host": "/d", "is_root_device": false{fields}}}"#);
        let drive: DriveConfig = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        drive.check().map_err(|e| e.to_string()).map(|()| drive)
    }

    #[test]
    fn firecrackers_json_is_read_with_its_defaults() {
        assert_eq!(read("").unwrap(), DriveConfig::new("rootfs", "/d"));
        let drive = read(
            r#", "partuuid": null, "is_read_only": true, "cache_type": "Writeback", "io_engine": "Sync",
               "socket": null, "rate_limiter": {"ops": {"size": 1, "refill_time": 2}}"#,
        )
        .unwrap();
        assert!(drive.is_read_only && drive.cache_type == CacheType::Writeback && drive.rate_limiter.is_some());
        assert_eq!(read(r#", "is_read_only": null, "io_engine": null"#).unwrap(), DriveConfig::new("rootfs", "/d"));
        let ours = read(r#", "num_queues": 16, "offset": 4096, "tenant": "a-1.b""#).unwrap();
        assert_eq!((ours.offset, ours.tenant.as_deref()), (4096, Some("a-1.b")));
        assert_eq!(serde_json::from_str::<DriveConfig>(&serde_json::to_string(&ours).unwrap()).unwrap(), ours);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (fields, name) in [
            (r#", "socket": "/s""#, "drives.socket"),
            (r#", "io_engine": "Async""#, "drives.io_engine: Async"),
            (r#", "key_fd": 3"#, "drives.key_fd"),
            (r#", "format": "qcow2""#, "format"),
            (r#", "cache_type": "None""#, "None"),
        ] {
            let error = read(fields).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
        // vhost-user drives have no file: it is the socket that is named.
        let drive: DriveConfig =
            serde_json::from_str(r#"{"drive_id": "d", "is_root_device": false, "socket": "/s"}"#).unwrap();
        assert!(matches!(drive.check(), Err(ConfigError::NotSupported("drives.socket"))));
    }

    #[test]
    fn values_are_checked() {
        for (fields, name) in [
            (r#", "offset": 511"#, "drives.offset"),
            (r#", "num_queues": 0"#, "drives.num_queues"),
            (r#", "num_queues": 17"#, "drives.num_queues"),
            (r#", "tenant": """#, "drives.tenant"),
            (r#", "tenant": "a b""#, "drives.tenant"),
            (r#", "partuuid": "a b""#, "drives.partuuid"),
            (r#", "rate_limiter": {"ops": {"size": 1, "refill_time": 18446744073709551615}}"#, "ops.refill_time"),
        ] {
            let error = read(fields).unwrap_err();
            assert!(error.contains(name), "{error}");
        }
        for bad in ["", "a/b", "a-b", "ä", &"x".repeat(65)] {
            assert!(DriveConfig::new(bad, "/d").check().unwrap_err().to_string().contains("drive_id"), "{bad}");
        }
        assert!(DriveConfig::new("d", "").check().unwrap_err().to_string().contains("path_on_host"));
        let spaced =
            DriveConfig { is_root_device: true, partuuid: Some("a init=/x".into()), ..DriveConfig::new("d", "/d") };
        assert!(spaced.check().is_err());
    }

    #[test]
    fn drives_of_one_vm_go_together() {
        let drive = |id: &str, root, tenant: Option<&str>| DriveConfig {
            is_root_device: root,
            tenant: tenant.map(str::to_owned),
            ..DriveConfig::new(id, "/d")
        };
        let (a, b) = (drive("a", false, Some("x")), drive("b", true, None));
        assert!(DriveConfig::check_all(&[a.clone(), b.clone(), drive("c", false, Some("x"))]).is_ok());
        for (other, name) in [
            (drive("a", false, None), "drive_id"),
            (drive("c", true, None), "is_root_device"),
            (drive("c", false, Some("y")), "tenant"),
        ] {
            let error = DriveConfig::check_all(&[a.clone(), b.clone(), other]).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        let drives = [a, b];
        assert_eq!(DriveConfig::in_order(&drives).map(|drive| drive.drive_id.as_str()).collect::<String>(), "ba");
    }

    #[test]
    fn the_root_device_is_named_as_firecracker_does() {
        let mut drive = DriveConfig { is_root_device: true, ..DriveConfig::new("d", "/d") };
        assert_eq!(drive.root_argument(), "root=/dev/vda rw");
        (drive.is_read_only, drive.partuuid) = (true, Some("0eaa91a0-01".to_owned()));
        assert_eq!(drive.root_argument(), "root=PARTUUID=0eaa91a0-01 ro");
    }
}
