//! The lines of the VMM's log.
//!
//! Each line is one JSON object with `timestamp` (RFC 3339, UTC), `level` (`INFO`, `WARN`, `ERROR`), `event` and the
//! fields of that event. The names are part of the interface: the agent reads them with [`LogLine::parse`].
//!
//! | event | when | fields |
//! |---|---|---|
//! | `start` | configuration read | `id`, `version`, `pid`, `vcpus`, `mem_mib` |
//! | `confined` | the process gave up its rights, no guest instruction has run | `seccomp`, `landlock`, `no_new_privs`, `capabilities`, `user` |
//! | `running` | vCPUs were let loose | `setup_us` |
//! | `guest-boot` | the guest's first boot mark, see [`crate::devices::boot_timer`] | `source`, `value`, `boot_us`, `cpu_us` |
//! | `guest-mark` | another mark, each value once | the same |
//! | `registers` | before an `end` with an error that a vCPU met | `vcpu`, and each register as `0x…` |
//! | `end` | last line | `reason`, `error`, `text`, `run_us`, `serial_out`, `serial_lost` |
//!
//! `boot_us`, `setup_us` and `run_us` are microseconds since the process began (the first line of `main`), `cpu_us`
//! the processor time that the whole process had used by then.

mod event;
mod writer;

use serde::Deserialize;

pub use event::{EndReason, Event, Mark, MarkSource, Registers};
pub use writer::{LogError, LogLevel, descriptor, install, missed, redirect, tell};

/// One line of the log, read back.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When it was written, RFC 3339 in UTC.
    pub timestamp: String,
    /// `INFO`, `WARN` or `ERROR`.
    pub level: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// Longest line that [`LogLine::parse`] looks at, in bytes. The VMM writes none that comes near.
pub const MAX_LINE: usize = 16 * 1024;

impl LogLine {
    /// Reads one line; `None` for what is no event line of the VMM (free text, another program's output).
    ///
    /// The VMM is the part that a tenant may have taken over, so its log is outside input for whoever reads it.
    pub fn parse(line: &str) -> Option<Self> {
        if line.len() > MAX_LINE {
            return None;
        }
        serde_json::from_str(line).ok()
    }
}

#[cfg(test)]
mod tests;
