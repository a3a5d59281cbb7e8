//! Reads what firmware and kernel recorded: the event log and IMA's list.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The largest event log or IMA list that is read. Evidence as a whole may have 16 MiB in the form in which it
/// travels, base64 adds a third.
pub const MAX_LOG_BYTES: u64 = 11 * 1024 * 1024;

/// Why a log cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MeasurementError {
    /// The file cannot be read.
    #[error("cannot read the {what} {path}: {source}; {advice}")]
    Read {
        /// "firmware event log" or "IMA list".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
        /// What to do about it.
        advice: &'static str,
    },
    /// It is too large to be sent.
    #[error("the {what} {path} is larger than {MAX_LOG_BYTES} bytes and cannot be sent as evidence")]
    TooLarge {
        /// "firmware event log" or "IMA list".
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
}

/// The firmware's event log. It does not change after the boot loader has ended.
pub fn eventlog(path: &Path) -> Result<Vec<u8>, MeasurementError> {
    let advice = "is securityfs mounted and was the kernel started with a TPM? set `eventlog` in the configuration";
    read("firmware event log", path, advice)
}

/// IMA's list. It grows: read it after the quote, so that it covers at least what the quote covers.
pub fn ima(path: &Path) -> Result<Vec<u8>, MeasurementError> {
    let advice = "is securityfs mounted and IMA compiled in? set `ima` in the configuration";
    read("IMA list", path, advice)
}

fn read(what: &'static str, path: &Path, advice: &'static str) -> Result<Vec<u8>, MeasurementError> {
    let failed = |source| MeasurementError::Read { what, path: path.to_owned(), source, advice };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(MAX_LOG_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_LOG_BYTES {
        return Err(MeasurementError::TooLarge { what, path: path.to_owned() });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_log_says_what_to_do() {
        let error = eventlog(Path::new("/nonexistent/log")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/log") && error.contains("securityfs"), "{error}");
    }

    #[test]
    fn an_endless_log_is_refused() {
        let error = ima(Path::new("/dev/zero")).unwrap_err();
        assert!(matches!(error, MeasurementError::TooLarge { .. }), "{error}");
    }
}
