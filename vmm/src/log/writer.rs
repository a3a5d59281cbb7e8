//! Where the log goes.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Mutex;

use tracing::level_filters::LevelFilter;

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file of `--log-path` could not be opened.
    #[error("cannot open the log {path} for writing: {source}; give another --log-path")]
    Open {
        /// The file that was asked for.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// How much is logged. Firecracker's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLevel(LevelFilter);

impl Default for LogLevel {
    fn default() -> Self {
        Self(LevelFilter::INFO)
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name.to_ascii_lowercase().as_str() {
            "off" => Ok(Self(LevelFilter::OFF)),
            "error" => Ok(Self(LevelFilter::ERROR)),
            "warn" | "warning" => Ok(Self(LevelFilter::WARN)),
            "info" => Ok(Self(LevelFilter::INFO)),
            "debug" => Ok(Self(LevelFilter::DEBUG)),
            "trace" => Ok(Self(LevelFilter::TRACE)),
            _ => Err("expected Off, Error, Warning, Info, Debug or Trace".to_owned()),
        }
    }
}

/// Directs this process's log to `path` (appended to; a FIFO needs a reader), or to standard error.
///
/// Call it once, before anything is logged. What cannot be written (a full disk, a reader that went away) is lost:
/// the VM goes on.
pub fn install(path: Option<&Path>, level: LogLevel) -> Result<(), LogError> {
    let builder = tracing_subscriber::fmt().json().flatten_event(true).with_target(false).with_max_level(level.0);
    // Otherwise a line that cannot be written is reported by `eprintln!`, which panics where it cannot either.
    let builder = builder.log_internal_errors(false);
    match path {
        None => builder.with_writer(std::io::stderr).init(),
        Some(path) => {
            // Non-blocking: a FIFO that nobody reads must not hang the VM.
            let file = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .custom_flags(libc::O_NONBLOCK)
                .open(path)
                .map_err(|source| LogError::Open { path: path.to_owned(), source })?;
            builder.with_writer(Mutex::new(file)).init();
        }
    }
    Ok(())
}
