//! `machine-config`: vCPUs and memory.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::{ConfigError, Unsupported, objects_only};

/// Most vCPUs of one VM.
pub const MAX_VCPUS: u8 = 32;
/// Least memory of one VM, in MiB: the boot structures live in the first one, the kernel above.
pub const MIN_MEM_MIB: u64 = 2;
/// Most memory of one VM, in MiB (1 TiB).
pub const MAX_MEM_MIB: u64 = 1 << 20;

/// The host's pages behind a guest's memory.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Whatever the host gives when the guest first touches them; huge ones where it makes them by itself.
    #[default]
    None,
    /// Of 2 MiB, from the host's pool (hugetlbfs): the VM gets all of them at its start, or does not start. The memory of
    /// a VM that is restored is the snapshot's file, whatever stands here.
    #[serde(rename = "2M")]
    TwoMib,
}

/// Firecracker's static CPU templates: only [`CpuTemplate::None`] is supported. A template of one's own is
/// [`super::CpuConfig`].
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // Firecracker's names of its templates for x86
pub enum CpuTemplate {
    #[default]
    None,
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
}

/// How big the VM is.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct MachineConfig {
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpu_count: u8,
    /// Memory in MiB, [`MIN_MEM_MIB`] to [`MAX_MEM_MIB`].
    pub mem_size_mib: u64,
    /// Two threads a core, as far as the guest sees; then the number of vCPUs is 1 or even. Where the host runs them is
    /// up to its scheduler.
    #[serde(default)]
    pub smt: bool,
    /// Whether the VM keeps in mind what the pages of a snapshot were (2 bytes for each KiB of memory), so that a difference to
    /// it can be written. It costs nothing before the first snapshot.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Huge pages behind guest memory.
    #[serde(default, deserialize_with = "or_none")]
    pub huge_pages: HugePages,
    /// Only `None`.
    #[serde(default, skip_serializing)]
    pub cpu_template: Option<CpuTemplate>,
    /// A debugger's socket: never.
    #[serde(default, skip_serializing_if = "Unsupported::is_absent")]
    pub gdb_socket_path: Unsupported,
}

objects_only!(MachineConfig);

/// Firecracker's clients also write `null` for what they do not ask for, and later versions know one more kind.
fn or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HugePages, D::Error> {
    /// What the host does for a guest's memory is the host's setting, for all of its processes.
    const ADVICE: &str = "huge_pages `Transparent` is not supported: say `None` on a host where \
                          /sys/kernel/mm/transparent_hugepage/enabled is `always`, or `2M`";
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Wanted {
        Known(HugePages),
        Other(String),
    }
    match Option::deserialize(deserializer)? {
        None => Ok(HugePages::default()),
        Some(Wanted::Known(pages)) => Ok(pages),
        Some(Wanted::Other(name)) if name == "Transparent" => Err(D::Error::custom(ADVICE)),
        Some(Wanted::Other(name)) => Err(D::Error::unknown_variant(&name, &["None", "2M"])),
    }
}

impl Default for MachineConfig {
    /// One vCPU and 128 MiB, as Firecracker does.
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
            cpu_template: None,
            gdb_socket_path: Unsupported::default(),
        }
    }
}

impl MachineConfig {
    /// Checks the values.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !(1..=MAX_VCPUS).contains(&self.vcpu_count) {
            return Err(ConfigError::OutOfRange {
                field: "machine-config.vcpu_count",
                found: self.vcpu_count.to_string(),
                allowed: format!("1 to {MAX_VCPUS}"),
            });
        }
        if self.smt && self.vcpu_count > 1 && !self.vcpu_count.is_multiple_of(2) {
            return Err(ConfigError::OutOfRange {
                field: "machine-config.vcpu_count",
                found: self.vcpu_count.to_string(),
                allowed: "1 or an even number, with smt".to_owned(),
            });
        }
        if !(MIN_MEM_MIB..=MAX_MEM_MIB).contains(&self.mem_size_mib) {
            return Err(ConfigError::OutOfRange {
                field: "machine-config.mem_size_mib",
                found: self.mem_size_mib.to_string(),
                allowed: format!("{MIN_MEM_MIB} to {MAX_MEM_MIB}"),
            });
        }
        if self.huge_pages == HugePages::TwoMib && !self.mem_size_mib.is_multiple_of(2) {
            return Err(ConfigError::OutOfRange {
                field: "machine-config.mem_size_mib",
                found: self.mem_size_mib.to_string(),
                allowed: "a multiple of 2, with huge_pages 2M".to_owned(),
            });
        }
        match () {
            () if self.cpu_template.unwrap_or_default() != CpuTemplate::None => {
                Err(ConfigError::NotSupported("machine-config.cpu_template"))
            }
            () if !self.gdb_socket_path.is_absent() => Err(ConfigError::NotSupported("machine-config.gdb_socket_path")),
            () => Ok(()),
        }
    }
}
