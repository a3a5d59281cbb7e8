//! The document that stands in a file: `--metadata`.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::store::{Mmds, MmdsError};

/// Longest file that is read, in bytes: with spaces and lines it may be longer than the document.
const MAX_FILE: u64 = 16 << 20;

/// Why a file was not taken for the document. Exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It could not be opened or read.
    #[error("cannot read the metadata {path}: {source}; give a readable file with --metadata")]
    Read {
        /// The file that was asked for.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no JSON, or far too long.
    #[error("the metadata {path} is not valid: {source}")]
    Json {
        /// The file that was asked for.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// The document was refused.
    #[error("the metadata {path} cannot be taken: {source}")]
    Refused {
        /// The file that was asked for.
        path: PathBuf,
        /// Why.
        source: MmdsError,
    },
}

impl Mmds {
    /// Replaces the document by what a file holds.
    pub fn put_file(&mut self, path: &Path) -> Result<(), FileError> {
        let path = || path.to_owned();
        let read = |source| FileError::Read { path: path(), source };
        // Non-blocking: a FIFO without a writer must not hang the start.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path()).map_err(read)?;
        let mut text = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut text).map_err(read)?;
        let document = serde_json::from_slice(&text).map_err(|source| FileError::Json { path: path(), source })?;
        self.put(document).map_err(|source| FileError::Refused { path: path(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_or_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metadata.json");
        let mut mmds = Mmds::new(20);
        assert!(matches!(mmds.put_file(&path), Err(FileError::Read { .. })));
        std::fs::write(&path, "{\n  \"a\": \"b\"\n}\n\n\n\n\n").unwrap();
        mmds.put_file(&path).unwrap();
        assert_eq!(mmds.get(), serde_json::json!({"a": "b"}));
        for (text, part) in [("{", "not valid"), (r#"{"a": "12345678901234567890"}"#, "the limit is 20")] {
            std::fs::write(&path, text).unwrap();
            let error = mmds.put_file(&path).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("metadata.json"), "{error}");
        }
        assert_eq!(mmds.get(), serde_json::json!({"a": "b"}));
    }
}
