//! Where the log goes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

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

/// What can be changed about the log while the process runs.
struct Control {
    target: Target,
    level: reload::Handle<LevelFilter, Registry>,
}

static CONTROL: OnceLock<Control> = OnceLock::new();

/// Lines that were lost.
static MISSED: AtomicU64 = AtomicU64::new(0);

/// Lines of the log that could not be written, since the start of the process.
pub fn missed() -> u64 {
    MISSED.load(Ordering::Relaxed)
}

/// The descriptor that lines are written to.
pub fn descriptor() -> RawFd {
    let file = CONTROL.get().and_then(|control| {
        let target = control.target.0.lock().unwrap_or_else(PoisonError::into_inner);
        target.as_ref().map(AsRawFd::as_raw_fd)
    });
    file.unwrap_or(libc::STDERR_FILENO)
}

/// Where lines go: a file, or standard error.
#[derive(Clone)]
struct Target(Arc<Mutex<Option<File>>>);

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A panic has aborted the process: the lock is never poisoned.
        let written = match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(file) => file.write(bytes),
            None => write_to_stderr(bytes, PollTimeout::ZERO).ok_or(io::ErrorKind::WouldBlock.into()),
        };
        // Whoever writes a line gives it up at any other error.
        if written.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::Interrupted) {
            MISSED.fetch_add(1, Ordering::Relaxed);
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes to standard error what goes within `patience`, and gives how much that was, nothing where the rest is lost:
/// a reader that has stalled must not hold up the VM, nor its end.
fn write_to_stderr(bytes: &[u8], patience: PollTimeout) -> Option<usize> {
    let stderr = io::stderr();
    let mut set = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    // Where it cannot be waited for, writing says why.
    let stalled = poll(&mut set, patience) == Ok(0);
    let part = bytes.get(..libc::PIPE_BUF).unwrap_or(bytes);
    if stalled { None } else { stderr.lock().write(part).ok() }
}

/// Says something to the user on standard error, as far as it is taken within a second.
pub fn tell(message: &str) {
    let mut rest = message.as_bytes();
    while !rest.is_empty() {
        let Some(written) = write_to_stderr(rest, PollTimeout::from(1000u16)) else { return };
        rest = rest.get(written.max(1)..).unwrap_or_default();
    }
}

fn open(path: &Path) -> Result<File, LogError> {
    // Non-blocking: a FIFO that nobody reads must not hang the VM.
    let file = OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(libc::O_NONBLOCK).open(path);
    file.map_err(|source| LogError::Open { path: path.to_owned(), source })
}

/// Directs this process's log to `path` (appended to; a FIFO needs a reader), or to standard error.
///
/// Call it once, before anything is logged. What cannot be written (a full disk, a reader that went away or has stalled)
/// is lost: the VM goes on.
pub fn install(path: Option<&Path>, level: LogLevel) -> Result<(), LogError> {
    let target = Target(Arc::new(Mutex::new(path.map(open).transpose()?)));
    let (filter, handle) = reload::Layer::new(level.0);
    let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_target(false);
    let writer = target.clone();
    // Otherwise a line that cannot be written is reported by `eprintln!`, which panics where it cannot either.
    let lines = lines.with_current_span(false).with_span_list(false).log_internal_errors(false);
    tracing_subscriber::registry().with(filter).with(lines.with_writer(move || writer.clone())).init();
    let _ = CONTROL.set(Control { target, level: handle });
    Ok(())
}

/// Directs the log elsewhere from now on, or changes how much there is of it. What is `None` stays as it is.
pub fn redirect(path: Option<&Path>, level: Option<LogLevel>) -> Result<(), LogError> {
    let file = path.map(open).transpose()?;
    let Some(control) = CONTROL.get() else {
        return Ok(());
    };
    if let Some(file) = file {
        *control.target.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
    }
    if let Some(level) = level {
        // Fails only where the subscriber is gone, and with it the log.
        let _ = control.level.reload(level.0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_cannot_be_written_is_counted() {
        let target = |path: &str| Target(Arc::new(Mutex::new(Some(open(Path::new(path)).unwrap()))));
        let before = missed();
        target("/dev/null").write_all(b"line\n").unwrap();
        assert_eq!(missed(), before);
        target("/dev/full").write_all(b"line\n").unwrap_err();
        assert_eq!(missed(), before + 1);
    }
}
