//! Reads what firmware and kernel recorded: the event log and IMA's list.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use portcullis_attest::ima;

/// The largest event log or IMA list that is read. Evidence as a whole may have 16 MiB in the form in which it
/// travels, base64 adds a third. Of a longer IMA list only what is new can be sent.
pub const MAX_LOG_BYTES: u64 = 11 * 1024 * 1024;
const IMA_LIST: &str = "IMA list";

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
    #[error("the {what} {path} is larger than {limit} bytes and cannot be sent as evidence")]
    TooLarge {
        /// "firmware event log" or "IMA list".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The most that can be sent, or read.
        limit: u64,
    },
}

/// The firmware's event log. It does not change after the boot loader has ended.
pub fn eventlog(path: &Path) -> Result<Vec<u8>, MeasurementError> {
    let advice = "is securityfs mounted and was the kernel started with a TPM? set `eventlog` in the configuration";
    read("firmware event log", path, advice, MAX_LOG_BYTES)
}

/// IMA's list without its first `from` entries, and how many were left out: none when it cannot be read so far. It grows: read
/// it after the quote, so that it covers at least what the quote covers.
pub fn ima(path: &Path, from: u64) -> Result<(u64, Vec<u8>), MeasurementError> {
    let advice = "is securityfs mounted and IMA compiled in? set `ima` in the configuration";
    let list = read(IMA_LIST, path, advice, ima::MAX_BYTES as u64)?;
    let (left_out, list) = match ima::after(&list, from) {
        Ok(rest) => (from, rest.to_vec()),
        // Fewer entries, or none that can be read: what that means is for the verifier to say.
        Err(_) => (0, list),
    };
    if list.len() as u64 > MAX_LOG_BYTES {
        return Err(MeasurementError::TooLarge { what: IMA_LIST, path: path.to_owned(), limit: MAX_LOG_BYTES });
    }
    Ok((left_out, list))
}

fn read(what: &'static str, path: &Path, advice: &'static str, limit: u64) -> Result<Vec<u8>, MeasurementError> {
    let failed = |source| MeasurementError::Read { what, path: path.to_owned(), source, advice };
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(MeasurementError::TooLarge { what, path: path.to_owned(), limit });
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

    /// An entry of template ima-ng for a file of this name.
    fn entry(name: &str) -> Vec<u8> {
        let digest = [b"sha256:\0".as_slice(), &[7; 32]].concat();
        let field = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat();
        let data = [field(&digest), field(format!("{name}\0").as_bytes())].concat();
        [&10_u32.to_le_bytes()[..], &[3; 20], &field(b"ima-ng"), &field(&data)].concat()
    }

    #[test]
    fn what_was_judged_is_left_out_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ima");
        let entries: Vec<Vec<u8>> = (0..90).map(|n| entry(&format!("/usr/bin/{n}/{}", "x".repeat(n)))).collect();
        std::fs::write(&path, entries.concat()).unwrap();
        for from in [0, 1, 2, 57, 89, 90] {
            let (left_out, list) = ima(&path, from as u64).unwrap();
            assert_eq!(left_out, from as u64);
            assert!(list == entries[from..].concat(), "from {from}");
        }
        // A list that has not so many entries is sent whole.
        let (left_out, list) = ima(&path, 91).unwrap();
        assert!(left_out == 0 && list == entries.concat());
        std::fs::write(&path, [9; 100]).unwrap();
        assert_eq!(ima(&path, 1).unwrap(), (0, vec![9; 100]));
    }

    #[test]
    fn a_list_longer_than_evidence_can_be_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ima");
        let one = entry(&"x".repeat(200));
        let count = usize::try_from(MAX_LOG_BYTES).unwrap() / one.len() + 10;
        std::fs::write(&path, one.repeat(count)).unwrap();
        assert!(matches!(ima(&path, 0), Err(MeasurementError::TooLarge { .. })));
        let (left_out, list) = ima(&path, count as u64 - 1).unwrap();
        assert!(left_out == count as u64 - 1 && list == one);
    }

    #[test]
    fn an_endless_log_is_refused() {
        for error in [ima(Path::new("/dev/zero"), 0).unwrap_err(), eventlog(Path::new("/dev/zero")).unwrap_err()] {
            assert!(matches!(error, MeasurementError::TooLarge { .. }), "{error}");
        }
    }
}
