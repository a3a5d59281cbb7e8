//! The metadata service: what the guest reads.

use std::sync::{MutexGuard, PoisonError};

use serde_json::{Map, Value};

use super::{Answer, Session};
use crate::api::fault::Fault;
use crate::api::http::{Response, Status};
use crate::mmds::{Mmds, MmdsConfig, MmdsError};

impl Session {
    fn metadata(&self) -> MutexGuard<'_, Mmds> {
        // A panic has aborted the process: the lock is never poisoned.
        self.metadata.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A VM that runs without a service has no metadata: its guest could not read any. Before the start there may still
    /// come one.
    fn check_metadata_service(&self) -> Result<(), Fault> {
        if self.started() && self.config.mmds_config.is_none() {
            return Err(Fault::new("the VM was started without a metadata service (PUT /mmds/config)"));
        }
        Ok(())
    }

    /// The document; an empty one before there is any.
    pub(super) fn get_metadata(&self) -> Answer {
        self.check_metadata_service()?;
        let document = self.metadata().get();
        Ok(Response::json(&if document.is_null() { Value::Object(Map::new()) } else { document }))
    }

    pub(super) fn put_metadata(&mut self, body: &[u8]) -> Answer {
        let document: Value = serde_json::from_slice(body)?;
        self.check_metadata_service()?;
        self.metadata().put(document).map_err(fault)?;
        Ok(Response::done())
    }

    pub(super) fn patch_metadata(&mut self, body: &[u8]) -> Answer {
        let patch: Value = serde_json::from_slice(body)?;
        self.check_metadata_service()?;
        self.metadata().patch(patch).map_err(fault)?;
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
    Fault { status, ..Fault::new(error.to_string()) }
}
