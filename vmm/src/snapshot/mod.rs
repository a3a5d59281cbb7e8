//! Snapshots: the state of a paused VM in two files, and the way back.

mod config;

use std::fs::File;

pub use config::{
    MemoryBackend, MemoryBackendType, NetworkOverride, SnapshotCreate, SnapshotLoad, SnapshotType, VsockOverride,
};

/// The two files of a snapshot, open.
#[derive(Debug)]
pub struct Files {
    /// The state of vCPUs and devices.
    pub state: File,
    /// The guest's memory.
    pub memory: File,
}
