//! Requests for snapshots, as Firecracker writes them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, objects_only};

/// Most network cards that a load may connect otherwise.
const MAX_OVERRIDES: usize = 16;

/// What is to be in a snapshot.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapshotType {
    /// All of the guest's memory.
    #[default]
    Full,
    /// What is another than in the last one, or than at the start. A file of the memory that is there, and as long, is
    /// brought up to date; else the others of its pages are holes.
    Diff,
}

/// `PUT /snapshot/create`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct SnapshotCreate {
    /// The file for the state of vCPUs and devices.
    pub snapshot_path: PathBuf,
    /// The file for the guest's memory.
    pub mem_file_path: PathBuf,
    /// All of the memory, or a difference.
    #[serde(default)]
    pub snapshot_type: SnapshotType,
    /// Whether the files are on disk, not only in the host's memory, when the answer comes.
    #[serde(default = "yes")]
    pub sync_snapshot_files: bool,
}

objects_only!(SnapshotCreate);

fn yes() -> bool {
    true
}

/// Where the memory of a loaded VM comes from.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryBackendType {
    /// The file is mapped; pages are read when the guest touches them.
    File,
    /// Another process hands out pages, which listens on a socket.
    Uffd,
}

/// Where the memory of a loaded VM comes from.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct MemoryBackend {
    /// What it is.
    pub backend_type: MemoryBackendType,
    /// The file, or the socket.
    pub backend_path: PathBuf,
}

objects_only!(MemoryBackend);

/// Another tap for a network card of the snapshot.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct NetworkOverride {
    /// The card.
    pub iface_id: String,
    /// The tap that it is connected to from now on.
    pub host_dev_name: String,
}

objects_only!(NetworkOverride);

/// Another socket for the vsock device of the snapshot.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct VsockOverride {
    /// The socket's path.
    pub uds_path: PathBuf,
}

objects_only!(VsockOverride);

/// `PUT /snapshot/load`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct SnapshotLoad {
    /// The file with the state of vCPUs and devices.
    pub snapshot_path: PathBuf,
    /// The file with the memory, in the words of older clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_file_path: Option<PathBuf>,
    /// The file with the memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_backend: Option<MemoryBackend>,
    /// Only `false`.
    #[serde(default)]
    pub enable_diff_snapshots: bool,
    /// Only `false`.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// Whether the VM goes on at once.
    #[serde(default)]
    pub resume_vm: bool,
    /// Taps other than those of the snapshot.
    #[serde(default)]
    pub network_overrides: Vec<NetworkOverride>,
    /// A vsock socket other than the snapshot's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_override: Option<VsockOverride>,
    /// Whether the guest's clocks jump over the time since the snapshot; else they go on from where they stood.
    #[serde(default)]
    pub clock_realtime: bool,
    /// Only `None`, or `Snapshot`, which means the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<String>,
}

objects_only!(SnapshotLoad);

impl SnapshotLoad {
    /// Refuses by name what is not supported.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refused = |field| Err(ConfigError::NotSupported(field));
        match (&self.mem_backend, &self.mem_file_path) {
            (Some(_), Some(_)) => return refused("mem_file_path beside mem_backend"),
            (None, None) => return refused("a load without mem_backend"),
            _ => {}
        }
        if !self.huge_pages.as_deref().is_none_or(|pages| ["None", "Snapshot"].contains(&pages)) {
            return refused("huge_pages");
        }
        if self.network_overrides.len() > MAX_OVERRIDES {
            return Err(ConfigError::OutOfRange {
                field: "network_overrides",
                found: self.network_overrides.len().to_string(),
                allowed: format!("at most {MAX_OVERRIDES}"),
            });
        }
        Ok(())
    }

    /// Where the memory comes from; [`SnapshotLoad::check`] has found exactly one place.
    pub fn memory(&self) -> Option<(MemoryBackendType, &Path)> {
        let backend = self.mem_backend.as_ref().map(|backend| (backend.backend_type, backend.backend_path.as_path()));
        backend.or(self.mem_file_path.as_deref().map(|path| (MemoryBackendType::File, path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(more: &str) -> Result<SnapshotLoad, String> {
        let text = format!(r#"{{"snapshot_path": "/s"{more}}}"#);
        let load: SnapshotLoad = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        load.check().map_err(|e| e.to_string()).map(|()| load)
    }

    #[test]
    fn both_ways_to_name_the_memory_are_understood() {
        let new =
            load(r#", "mem_backend": {"backend_type": "File", "backend_path": "/m"}, "resume_vm": true"#).unwrap();
        let old = load(r#", "mem_file_path": "/m", "enable_diff_snapshots": false"#).unwrap();
        let file = Some((MemoryBackendType::File, Path::new("/m")));
        assert_eq!((new.memory(), old.memory()), (file, file));
        let handed = load(r#", "mem_backend": {"backend_type": "Uffd", "backend_path": "/m"}"#).unwrap();
        assert_eq!(handed.memory(), Some((MemoryBackendType::Uffd, Path::new("/m"))));
        assert!(new.resume_vm && !old.resume_vm);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let memory = r#", "mem_file_path": "/m""#;
        for (more, name) in [
            (String::new(), "mem_backend"),
            (format!(r#"{memory}, "mem_backend": {{"backend_type": "File", "backend_path": "/m"}}"#), "mem_file_path"),
            (format!(r#"{memory}, "huge_pages": "2M""#), "huge_pages"),
            (format!(r#"{memory}, "resume": true"#), "resume"),
        ] {
            let error = load(&more).unwrap_err();
            assert!(error.contains(name), "{more}: {error}");
        }
    }
}
