//! Files that requests name. They are opened here, on the API's thread, and handed over open: once a guest runs, the
//! main thread can open none.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::fault::Fault;
use crate::snapshot::{Files, SnapshotCreate, SnapshotLoad};

/// Which file it is, whatever its name: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId(u64, u64);

impl FileId {
    /// Of a regular file; anything else is refused, as reading or writing it might never end.
    fn of(file: &File, path: &Path) -> Result<Self, Fault> {
        let data = file.metadata().map_err(|error| failed("look at", path, &error))?;
        if !data.is_file() {
            return Err(Fault::new(format!("{} is not a regular file", path.display())));
        }
        Ok(Self(data.dev(), data.ino()))
    }
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Fault {
    Fault::new(format!("cannot {what} {}: {error}", path.display()))
}

/// The files of a new snapshot, emptied. `mapped` is the file that the VM's memory is mapped from, which must not be
/// touched while it lives.
pub(super) fn create(request: &SnapshotCreate, mapped: Option<&FileId>) -> Result<Files, Fault> {
    let open = |path: &Path| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NONBLOCK);
        let file = options.open(path).map_err(|error| failed("create", path, &error))?;
        FileId::of(&file, path).map(|id| (file, id))
    };
    let (state, state_id) = open(&request.snapshot_path)?;
    let (memory, memory_id) = open(&request.mem_file_path)?;
    if state_id == memory_id {
        return Err(Fault::new("snapshot_path and mem_file_path are the same file"));
    }
    if mapped.is_some_and(|mapped| [state_id, memory_id].contains(mapped)) {
        return Err(Fault::new("the VM's memory is mapped from this file: give another name to the new snapshot"));
    }
    for (file, path) in [(&state, &request.snapshot_path), (&memory, &request.mem_file_path)] {
        file.set_len(0).map_err(|error| failed("empty", path, &error))?;
    }
    Ok(Files { state, memory })
}

/// The files of a snapshot that is there, and which its memory is.
pub(super) fn open(request: &SnapshotLoad) -> Result<(Files, FileId), Fault> {
    let open = |path: &Path| {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = file.map_err(|error| failed("open", path, &error))?;
        FileId::of(&file, path).map(|id| (file, id))
    };
    let memory_path = request.memory_path().ok_or_else(|| Fault::new("a load needs a mem_backend"))?;
    let (state, _) = open(&request.snapshot_path)?;
    let (memory, id) = open(memory_path)?;
    Ok((Files { state, memory }, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(dir: &Path, state: &str, memory: &str) -> SnapshotCreate {
        let body = serde_json::json!({"snapshot_path": dir.join(state), "mem_file_path": dir.join(memory)});
        serde_json::from_value(body).unwrap()
    }

    fn load(dir: &Path, memory: &str) -> SnapshotLoad {
        let body = serde_json::json!({"snapshot_path": dir.join("s"), "mem_file_path": dir.join(memory)});
        serde_json::from_value(body).unwrap()
    }

    #[test]
    fn a_new_snapshot_is_empty_and_the_owners() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("m"), "old").unwrap();
        let files = create(&request(dir.path(), "s", "m"), None).unwrap();
        assert_eq!(files.memory.metadata().unwrap().len(), 0);
        assert_eq!(files.state.metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_memory_of_a_loaded_vm_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["s", "m"] {
            std::fs::write(dir.path().join(name), "kept").unwrap();
        }
        std::fs::hard_link(dir.path().join("m"), dir.path().join("other-name")).unwrap();
        let (_, mapped) = open(&load(dir.path(), "m")).unwrap();
        for memory in ["m", "other-name"] {
            let fault = create(&request(dir.path(), "s2", memory), Some(&mapped)).unwrap_err();
            assert!(fault.message.contains("mapped"), "{}", fault.message);
        }
        assert!(create(&request(dir.path(), "m", "m2"), Some(&mapped)).is_err());
        assert_eq!(std::fs::read_to_string(dir.path().join("m")).unwrap(), "kept");
        assert!(create(&request(dir.path(), "s2", "m2"), Some(&mapped)).is_ok());
    }

    #[test]
    fn only_two_regular_files_are_a_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        assert!(create(&request(dir.path(), "same", "same"), None).unwrap_err().message.contains("same file"));
        let fault = create(&request(dir.path(), "s", "no/folder"), None).unwrap_err();
        assert!(fault.message.contains("no/folder"), "{}", fault.message);
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(create(&request(dir.path(), "s", "fifo"), None).unwrap_err().message.contains("regular"));
        assert!(open(&load(dir.path(), "fifo")).unwrap_err().message.contains("regular"));
        assert!(open(&load(dir.path(), "absent")).unwrap_err().message.contains("absent"));
    }
}
