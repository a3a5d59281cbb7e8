//! Firecracker's JSON configuration of one VM.
//!
//! Field names are Firecracker's, so that its tools write files which this VMM reads. What is not supported is refused
//! by name, never ignored: a disk that silently was not attached would be worse than a VM that does not start.
//!
//! Programs write a configuration with [`VmConfig::new`] and its `with_` methods, and [`VmConfig::to_json`].

mod machine;
mod object;
mod output;
mod source;
mod template;
mod unsupported;

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use crate::devices::balloon::BalloonConfig;
pub use crate::devices::block::{CacheType, DriveConfig, DriveUpdate, IoEngine};
pub use crate::devices::entropy::EntropyConfig;
pub use crate::devices::net::{MacAddress, NetworkInterface, NetworkInterfaceUpdate};
pub use crate::devices::vsock::VsockConfig;
use crate::memory::layout;
pub use crate::mmds::MmdsConfig;
pub use crate::rate_limiter::{RateLimiterConfig, TokenBucketConfig};
pub use crate::vcpu::CpuConfig;
pub use machine::{CpuTemplate, HugePages, MAX_MEM_MIB, MAX_VCPUS, MIN_MEM_MIB, MachineConfig};
pub(crate) use object::objects_only;
pub use output::{LoggerConfig, MetricsConfig, SerialConfig};
pub use source::{BootSource, DEFAULT_CMDLINE, MAX_CMDLINE};
pub use template::CpuConfigOrPath;
pub use unsupported::Unsupported;

/// Most virtio devices of one VM: disks, network cards, and those of which there is one.
pub const MAX_DEVICES: usize = layout::VIRTIO_GSIS.len();
/// Largest configuration file that is read, in bytes. Real ones have a few hundred.
pub const MAX_CONFIG_FILE: u64 = 1 << 20;

/// Why a configuration was not accepted. Exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be opened or read.
    #[error("cannot read the configuration {path}: {source}; give a readable file with --config-file or as cpu-config")]
    Read {
        /// The file that was asked for.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is longer than [`MAX_CONFIG_FILE`].
    #[error("the configuration {path} is longer than {MAX_CONFIG_FILE} bytes")]
    TooLong {
        /// The file that was asked for.
        path: PathBuf,
    },
    /// Not JSON, a field of the wrong kind, or a field that nobody knows.
    #[error("the configuration {path} is not valid: {source}")]
    Json {
        /// The file that was asked for.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// A part of Firecracker's configuration that this VMM does not have.
    #[error("the configuration asks for '{0}', which this version does not support; {advice}", advice = advice(.0))]
    NotSupported(&'static str),
    /// A value outside what is allowed.
    #[error("the configuration's '{field}' is {found}; allowed is {allowed}")]
    OutOfRange {
        /// The field, as `object.field`.
        field: &'static str,
        /// What the file says.
        found: String,
        /// What would be accepted.
        allowed: String,
    },
}

/// What to do about something that is not supported.
fn advice(what: &str) -> &'static str {
    match what {
        "drives.io_engine: Async" => "leave it out, or say Sync",
        "drives.socket" => "give the disk's file or block device as path_on_host: vhost-user is not supported",
        "balloon.free_page_hinting" => "use free_page_reporting",
        "machine-config.cpu_template" => {
            "give the template itself as cpu-config: Firecracker has it in tests/data/custom_cpu_templates"
        }
        "pmem" => "use a read-only drive",
        "memory-hotplug" => "give the VM the most memory that it may need, and a balloon",
        _ => "remove it",
    }
}

/// Reads a file of JSON.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    // Non-blocking: a FIFO without a writer must not hang the start.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(read)?;
    let mut text = Vec::new();
    file.take(MAX_CONFIG_FILE + 1).read_to_end(&mut text).map_err(read)?;
    if u64::try_from(text.len()).is_ok_and(|len| len > MAX_CONFIG_FILE) {
        return Err(ConfigError::TooLong { path: path.to_owned() });
    }
    serde_json::from_slice(&text).map_err(|source| ConfigError::Json { path: path.to_owned(), source })
}

// serde's `skip_serializing_if` hands over a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !value
}

/// The configuration of one VM, as in `--config-file`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(remote = "Self", rename_all = "kebab-case", deny_unknown_fields)]
pub struct VmConfig {
    /// Kernel, initramfs and command line.
    pub boot_source: BootSource,
    /// vCPUs and memory.
    #[serde(default)]
    pub machine_config: MachineConfig,
    /// A CPU template, or the file with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_config: Option<CpuConfigOrPath>,
    /// Disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drives: Vec<DriveConfig>,
    /// Network cards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub network_interfaces: Vec<NetworkInterface>,
    /// Sockets between guest and host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// A source of entropy for the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<EntropyConfig>,
    /// A memory balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonConfig>,
    // What Firecracker knows beside these may stand in a file as `null` or `[]`, see `asked_for_in_vain`.
    #[serde(default, skip_serializing_if = "Unsupported::is_absent")]
    pmem: Unsupported,
    #[serde(default, skip_serializing_if = "Unsupported::is_absent")]
    memory_hotplug: Unsupported,
    /// Which network cards reach the metadata service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mmds_config: Option<MmdsConfig>,
    /// Where the log goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logger: Option<LoggerConfig>,
    /// Where metrics go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricsConfig>,
    /// Where the guest's serial line goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<SerialConfig>,
}

objects_only!(VmConfig);

impl VmConfig {
    /// A VM with one vCPU and 128 MiB that boots `kernel` with [`DEFAULT_CMDLINE`].
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self {
            boot_source: BootSource { kernel_image_path: kernel.into(), initrd_path: None, boot_args: None },
            machine_config: MachineConfig::default(),
            cpu_config: None,
            drives: Vec::new(),
            network_interfaces: Vec::new(),
            vsock: None,
            entropy: None,
            balloon: None,
            pmem: Unsupported::default(),
            memory_hotplug: Unsupported::default(),
            mmds_config: None,
            logger: None,
            metrics: None,
            serial: None,
        }
    }

    /// Adds an initramfs.
    #[must_use]
    pub fn with_initrd(mut self, initrd: impl Into<PathBuf>) -> Self {
        self.boot_source.initrd_path = Some(initrd.into());
        self
    }

    /// Sets the kernel's command line.
    #[must_use]
    pub fn with_boot_args(mut self, args: impl Into<String>) -> Self {
        self.boot_source.boot_args = Some(args.into());
        self
    }

    /// Sets the number of vCPUs.
    #[must_use]
    pub fn with_vcpus(mut self, count: u8) -> Self {
        self.machine_config.vcpu_count = count;
        self
    }

    /// Sets the size of memory, in MiB.
    #[must_use]
    pub fn with_mem_mib(mut self, mib: u64) -> Self {
        self.machine_config.mem_size_mib = mib;
        self
    }

    /// Adds a disk.
    #[must_use]
    pub fn with_drive(mut self, drive: DriveConfig) -> Self {
        self.drives.push(drive);
        self
    }

    /// Reads and checks a configuration file, and the file of its CPU template.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = read_json(path)?;
        config.cpu_config = config.cpu_config.map(CpuConfigOrPath::load).transpose()?;
        config.check()?;
        Ok(config)
    }

    /// The CPU template. A file that [`VmConfig::from_file`] has not read is none: [`VmConfig::check`] refuses it.
    pub fn cpu_config(&self) -> Option<&CpuConfig> {
        self.cpu_config.as_ref().and_then(CpuConfigOrPath::template)
    }

    /// Checks every value against what this VMM supports. [`VmConfig::from_file`] has done it.
    pub fn check(&self) -> Result<(), ConfigError> {
        if let Some(part) = self.asked_for_in_vain() {
            return Err(ConfigError::NotSupported(part));
        }
        self.machine_config.check()?;
        self.cpu_config.as_ref().map_or(Ok(()), CpuConfigOrPath::check)?;
        if self.balloon.is_some() && self.machine_config.huge_pages != HugePages::None {
            // The guest gives up pages of 4 KiB, and the host takes back none that is a part of a huge one.
            return Err(ConfigError::NotSupported("balloon beside machine-config.huge_pages"));
        }
        NetworkInterface::check_all(&self.network_interfaces)?;
        self.mmds_config.as_ref().map_or(Ok(()), |mmds| mmds.check(&self.network_interfaces))?;
        self.balloon.as_ref().map_or(Ok(()), |balloon| balloon.check(self.machine_config.mem_size_mib))?;
        self.vsock.as_ref().map_or(Ok(()), VsockConfig::check)?;
        self.entropy.as_ref().map_or(Ok(()), EntropyConfig::check)?;
        self.logger.as_ref().map_or(Ok(()), LoggerConfig::check)?;
        self.metrics.as_ref().map_or(Ok(()), MetricsConfig::check)?;
        DriveConfig::check_all(&self.drives)?;
        self.check_places()?;
        self.boot_source.check()?;
        source::check_len(&self.cmdline())
    }

    /// The kernel's command line: as configured, and what names the root device.
    pub fn cmdline(&self) -> String {
        let args = self.boot_source.cmdline();
        let Some(root) = self.drives.iter().find(|drive| drive.is_root_device).map(DriveConfig::root_argument) else {
            return args.to_owned();
        };
        // What follows a double hyphen is for init, not for the kernel.
        let (kernel, init) = args.find(" -- ").map_or((args, ""), |at| args.split_at(at));
        let space = if kernel.is_empty() { "" } else { " " };
        format!("{kernel}{space}{root}{init}")
    }

    /// Checks that there is a place for every device.
    fn check_places(&self) -> Result<(), ConfigError> {
        let single = [self.balloon.is_some(), self.vsock.is_some(), self.entropy.is_some()];
        let singles = single.into_iter().filter(|there| *there).count();
        let devices = singles.saturating_add(self.drives.len()).saturating_add(self.network_interfaces.len());
        if devices <= MAX_DEVICES {
            return Ok(());
        }
        Err(ConfigError::OutOfRange {
            field: "drives and network-interfaces",
            found: format!("too long: {devices} virtio devices with those beside"),
            allowed: format!("at most {MAX_DEVICES}"),
        })
    }

    /// The first part of the configuration that asks for what this VMM does not have.
    fn asked_for_in_vain(&self) -> Option<&'static str> {
        let parts = [("pmem", &self.pmem), ("memory-hotplug", &self.memory_hotplug)];
        parts.into_iter().find(|(_, part)| !part.is_absent()).map(|(name, _)| name)
    }

    /// The configuration as the text of a `--config-file`.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }
}

#[cfg(test)]
mod tests;
