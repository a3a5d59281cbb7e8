//! The metadata service: what the guest reads.

use std::sync::{MutexGuard, PoisonError};

use serde_json::{Map, Value};

use super::{Answer, Session, object};
use crate::api::fault::Fault;
use crate::api::http::{Response, Status};
use crate::mmds::{Mmds, MmdsConfig, MmdsError};

impl Session {
    fn metadata(&self) -> MutexGuard<'_, Mmds> {
        // A panic has aborted the process: the lock is never poisoned.
        self.metadata.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The document; an empty one before there is any.
    pub(super) fn get_metadata(&self) -> Response {
        let document = self.metadata().get();
        Response::json(&if document.is_null() { Value::Object(Map::new()) } else { document })
    }

    pub(super) fn put_metadata(&mut self, body: &[u8]) -> Answer {
        let document: Map<String, Value> = object(body)?;
        self.metadata().put(Value::Object(document)).map_err(fault)?;
        Ok(Response::done())
    }

    pub(super) fn patch_metadata(&mut self, body: &[u8]) -> Answer {
        let patch: Map<String, Value> = object(body)?;
        self.metadata().patch(Value::Object(patch)).map_err(fault)?;
        Ok(Response::done())
    }

    pub(super) fn put_metadata_service(&mut self, body: &[u8]) -> Answer {
        self.configure(body, |config, new: MmdsConfig| config.mmds_config = Some(new))
    }
}

fn fault(error: MmdsError) -> Fault {
    let status = match error {
        MmdsError::TooLarge { .. } => Status::PayloadTooLarge,
        MmdsError::Empty | MmdsError::NotFound | MmdsError::NotText => Status::BadRequest,
    };
    Fault { status, message: error.to_string() }
}
