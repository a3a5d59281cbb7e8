//! Why a request was not carried out.

use crate::config::ConfigError;
use crate::vm::ControlError;

use super::http::{Response, Status};

/// The answer to a request that was understood as HTTP and not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Status of the response.
    pub status: Status,
    /// What is wrong, for a person.
    pub message: String,
    /// Whether the body is not what the request takes.
    pub unreadable: bool,
}

impl Fault {
    /// `400` with these words.
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { status: Status::BadRequest, message: message.into(), unreadable: false }
    }

    /// `400` for a body that is not what the request takes.
    pub(super) fn unreadable(why: impl std::fmt::Display) -> Self {
        Self { unreadable: true, ..Self::new(format!("the request's body is not valid: {why}")) }
    }

    /// The operation has to come after the start.
    pub(super) fn too_early() -> Self {
        Self::new("The requested operation is not supported before starting the microVM.")
    }

    /// The operation has to come before the start.
    pub(super) fn too_late() -> Self {
        Self::new("The requested operation is not supported after starting the microVM.")
    }

    pub(super) fn response(&self) -> Response {
        Response::fault(self.status, &self.message)
    }
}

impl From<serde_json::Error> for Fault {
    fn from(error: serde_json::Error) -> Self {
        Self::unreadable(error)
    }
}

impl From<ConfigError> for Fault {
    fn from(error: ConfigError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<ControlError> for Fault {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::NotStarted => Self::too_early(),
            ControlError::AlreadyStarted => Self::too_late(),
            other => Self::new(other.to_string()),
        }
    }
}
