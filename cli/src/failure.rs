//! Why a command did not do what it was asked, and its exit code.

use std::path::PathBuf;

use portcullis_verifier::client::{ClientError, IdentityError};
use portcullis_verifier::reason::Reason;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is larger than anything of its kind.
    #[error("{path} is larger than the {limit} bytes that are read")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// A file is not what it should be.
    #[error("{path}: {text}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        text: String,
    },
    /// Something is missing from arguments and configuration.
    #[error("{0}")]
    Usage(String),
    /// The client certificate or key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The verifier says no or does not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Evidence that does not hold.
    #[error("not trusted")]
    NotTrusted(Vec<Reason>),
    /// The answer cannot be printed.
    #[error("cannot write to standard output: {0}")]
    Output(std::io::Error),
}

impl Failure {
    /// 1 a clear no, 2 bad usage or unreadable input, 3 unavailable.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotTrusted(_) => 1,
            Self::Client(error) => error.exit_code(),
            Self::Output(_) => 3,
            Self::Read { .. }
            | Self::Write { .. }
            | Self::TooLarge { .. }
            | Self::Content { .. }
            | Self::Usage(_)
            | Self::Identity(_) => 2,
        }
    }
}
