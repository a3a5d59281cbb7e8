//! `balloon`, as Firecracker writes it.

use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, objects_only};

/// A memory balloon.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct BalloonConfig {
    /// How much memory the guest should give back, in MiB; no more than it has.
    pub amount_mib: u32,
    /// Whether the guest may take memory back before it kills programs.
    pub deflate_on_oom: bool,
    /// Seconds between statistics of the guest; 0: none, and none later either.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
    /// Whether the guest says by itself which pages it has no use for.
    #[serde(default)]
    pub free_page_reporting: bool,
    /// Firecracker's other way of saying it: only `false`.
    #[serde(default)]
    pub free_page_hinting: bool,
}

objects_only!(BalloonConfig);

impl BalloonConfig {
    /// Checks the values, for a guest with `mem_size_mib` of memory.
    pub(crate) fn check(&self, mem_size_mib: u64) -> Result<(), ConfigError> {
        if self.free_page_hinting {
            return Err(ConfigError::NotSupported("balloon.free_page_hinting"));
        }
        if u64::from(self.amount_mib) > mem_size_mib {
            return Err(ConfigError::OutOfRange {
                field: "balloon.amount_mib",
                found: self.amount_mib.to_string(),
                allowed: format!("0 to the guest's memory, {mem_size_mib}"),
            });
        }
        Ok(())
    }
}
