//! Files that requests name. They are opened here, on the API's thread, and handed over open: once a guest runs, the
//! main thread can open none.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::fault::Fault;
use crate::snapshot::{Files, SnapshotCreate, SnapshotLoad};

/// A regular file that was opened with `options`; anything else is refused, as reading or writing it might never end.
fn open_regular(options: &mut OpenOptions, what: &str, path: &Path) -> Result<File, Fault> {
    let file = options.custom_flags(libc::O_NONBLOCK).open(path).map_err(|error| failed(what, path, &error))?;
    let data = file.metadata().map_err(|error| failed("look at", path, &error))?;
    if data.is_file() { Ok(file) } else { Err(Fault::new(format!("{} is not a regular file", path.display()))) }
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Fault {
    Fault::new(format!("cannot {what} {}: {error}", path.display()))
}

/// The fault of a lock that was not given.
fn locked(error: TryLockError, path: &Path, why: &str) -> Fault {
    match error {
        TryLockError::WouldBlock => Fault::new(format!("{} is in use: {why}", path.display())),
        TryLockError::Error(error) => failed("lock", path, &error),
    }
}

/// The files of a new snapshot, emptied.
///
/// They are locked (`flock`) until they are closed: a file that is a disk of a VM, or that the memory of one is mapped
/// from, is another's, and losing it would be the end of that VM.
pub(super) fn create(request: &SnapshotCreate) -> Result<Files, Fault> {
    let open = |path: &Path| {
        let mut options = OpenOptions::new();
        open_regular(options.read(true).write(true).create(true).truncate(false).mode(0o600), "create", path)
    };
    let (state, memory) = (open(&request.snapshot_path)?, open(&request.mem_file_path)?);
    let id = |file: &File| file.metadata().map(|data| (data.dev(), data.ino())).ok();
    if id(&state) == id(&memory) {
        return Err(Fault::new("snapshot_path and mem_file_path are the same file"));
    }
    let both = [(&state, &request.snapshot_path), (&memory, &request.mem_file_path)];
    for (file, path) in both {
        let why = "it is the disk of a VM, or a VM's memory is mapped from it; give another name to the new snapshot";
        file.try_lock().map_err(|error| locked(error, path, why))?;
    }
    for (file, path) in both {
        file.set_len(0).map_err(|error| failed("empty", path, &error))?;
    }
    Ok(Files { state, memory })
}

/// The files of a snapshot that is there. The lock on the memory's lasts as long as the VM whose memory it is.
pub(super) fn open(request: &SnapshotLoad) -> Result<Files, Fault> {
    let open = |path: &Path| -> Result<File, Fault> {
        let file = open_regular(OpenOptions::new().read(true), "open", path)?;
        file.try_lock_shared().map_err(|error| locked(error, path, "somebody writes to it"))?;
        Ok(file)
    };
    let memory_path = request.memory_path().ok_or_else(|| Fault::new("a load needs a mem_backend"))?;
    Ok(Files { state: open(&request.snapshot_path)?, memory: open(memory_path)? })
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
        let files = create(&request(dir.path(), "s", "m")).unwrap();
        assert_eq!(files.memory.metadata().unwrap().len(), 0);
        assert_eq!(files.state.metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn files_that_a_vm_uses_are_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["s", "m", "disk"] {
            std::fs::write(dir.path().join(name), "kept").unwrap();
        }
        std::fs::hard_link(dir.path().join("m"), dir.path().join("other-name")).unwrap();
        let loaded = open(&load(dir.path(), "m")).unwrap();
        // Two VMs of one snapshot.
        let twice = open(&load(dir.path(), "m")).unwrap();
        let disk = File::open(dir.path().join("disk")).unwrap();
        disk.try_lock().unwrap();
        for (state, memory) in
            [("s2", "m"), ("s2", "other-name"), ("m", "m2"), ("s", "m2"), ("s2", "disk"), ("disk", "m2")]
        {
            let fault = create(&request(dir.path(), state, memory)).unwrap_err();
            assert!(fault.message.contains("is in use"), "{}", fault.message);
        }
        for name in ["s", "m", "disk"] {
            assert_eq!(std::fs::read_to_string(dir.path().join(name)).unwrap(), "kept");
        }
        let created = create(&request(dir.path(), "s2", "m2")).unwrap();
        let body = serde_json::json!({"snapshot_path": dir.path().join("s2"), "mem_file_path": dir.path().join("m2")});
        let half = open(&serde_json::from_value(body.clone()).unwrap()).unwrap_err();
        assert!(half.message.contains("somebody writes"), "{}", half.message);
        drop(created);
        open(&serde_json::from_value(body).unwrap()).unwrap();
        drop((loaded, twice));
        create(&request(dir.path(), "s", "m")).unwrap();
    }

    #[test]
    fn only_two_regular_files_are_a_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        assert!(create(&request(dir.path(), "same", "same")).unwrap_err().message.contains("same file"));
        let fault = create(&request(dir.path(), "s", "no/folder")).unwrap_err();
        assert!(fault.message.contains("no/folder"), "{}", fault.message);
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(create(&request(dir.path(), "s", "fifo")).unwrap_err().message.contains("regular"));
        assert!(open(&load(dir.path(), "fifo")).unwrap_err().message.contains("regular"));
        assert!(open(&load(dir.path(), "absent")).unwrap_err().message.contains("absent"));
    }
}
