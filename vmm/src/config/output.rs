//! `logger`, `metrics` and `serial`: where what the VM says goes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{ConfigError, Unsupported, is_false, objects_only};
use crate::log::LogLevel;
use crate::rate_limiter::TokenBucketConfig;

/// Where the log goes and how much there is of it. What is absent stays as it was.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct LoggerConfig {
    /// A file, which is appended to, or a FIFO that is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_path: Option<PathBuf>,
    /// `Off`, `Error`, `Warning`, `Info`, `Debug` or `Trace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Accepted and without effect: each line of the log has its level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    /// Accepted and without effect: lines of the log do not name file and line of the source that made them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
    /// Accepted and without effect: the log is not divided by Firecracker's modules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

objects_only!(LoggerConfig);

impl LoggerConfig {
    /// The level; `None` where none is asked for.
    pub fn level(&self) -> Result<Option<LogLevel>, ConfigError> {
        let Some(name) = &self.level else {
            return Ok(None);
        };
        let level = LogLevel::from_str(name);
        level.map(Some).map_err(|_| ConfigError::OutOfRange {
            field: "logger.level",
            found: format!("{:?}", name.chars().take(32).collect::<String>()),
            allowed: "Off, Error, Warning, Info, Debug or Trace".to_owned(),
        })
    }

    /// Checks the values.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.level().map(drop)
    }
}

/// Where metrics go.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct MetricsConfig {
    /// A file, which is appended to, or a FIFO.
    pub metrics_path: PathBuf,
    /// The VM's name in each line: only `false`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub emit_id: bool,
    /// Further words in each line: never.
    #[serde(default, skip_serializing_if = "Unsupported::is_absent")]
    pub properties: Unsupported,
}

objects_only!(MetricsConfig);

impl MetricsConfig {
    /// Metrics to this file or FIFO.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { metrics_path: path.into(), emit_id: false, properties: Unsupported::default() }
    }

    /// Opens the file for writing.
    pub fn open(&self) -> std::io::Result<File> {
        open(&self.metrics_path)
    }

    /// Refuses by name what is not supported.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        match () {
            () if self.emit_id => Err(ConfigError::NotSupported("metrics.emit_id")),
            () if !self.properties.is_absent() => Err(ConfigError::NotSupported("metrics.properties")),
            () => Ok(()),
        }
    }
}

/// Where the guest's serial line goes, and how fast.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct SerialConfig {
    /// A file, which is appended to, or a FIFO; standard output if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_out_path: Option<PathBuf>,
    /// How much the guest may write, in bytes. What the VMM allows without it is the limit of it, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<TokenBucketConfig>,
}

objects_only!(SerialConfig);

impl SerialConfig {
    /// Opens the file for writing, if there is to be one.
    pub fn open(&self) -> std::io::Result<Option<File>> {
        self.serial_out_path.as_deref().map(open).transpose()
    }
}

/// Opens a file to append to, or a FIFO whether anybody reads it or not. Writing to it never waits.
fn open(path: &Path) -> std::io::Result<File> {
    // With the right to read, a FIFO is its own reader until another comes.
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).custom_flags(libc::O_NONBLOCK).open(path)
}
