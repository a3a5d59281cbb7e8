//! End-to-end: the whole of Portcullis on measured hosts, from the firmware to a tenant's VM.
//!
//! [`scenario::run`] is the main job, shown by `portcullis-demo` and checked by the lab tests.

pub mod attacks;
pub mod audit;
pub mod narrator;
pub mod programs;
pub mod report;
pub mod scenario;
pub mod service;
pub mod stage;
pub mod volume;

use portcullis_firmware_fixtures::lab::LabError;
use portcullis_firmware_fixtures::tpm::SwtpmError;

/// What went wrong in an end-to-end run.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// A step did not do what it should; the words say which and how.
    #[error("{0}")]
    Step(String),
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A measured host.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A TPM.
    #[error(transparent)]
    Tpm(#[from] SwtpmError),
}
