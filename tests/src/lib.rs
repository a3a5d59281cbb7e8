//! End-to-end: the whole of Portcullis on a measured host, from the firmware to a tenant's VM.

pub mod volume;

/// What went wrong in a step of an end-to-end run.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// A step did not do what it should; the words say which and how.
    #[error("{0}")]
    Step(String),
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
