//! Files that requests name. They are opened here, on the API's thread, and handed over open: once a guest runs, the
//! main thread can open none.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags};

use super::fault::Fault;
use crate::jail::REACH_HINT;
use crate::snapshot::{Files, Loading, MemoryBackendType, MemorySource, SnapshotCreate, SnapshotLoad, SnapshotType};

/// Who may read what holds a guest's memory: its owner.
const PRIVATE: u32 = 0o600;

/// A regular file that was opened with `options`; anything else is refused, as reading or writing it might never end.
fn open_regular(options: &mut OpenOptions, what: &str, path: &Path) -> Result<File, Fault> {
    let file = options.custom_flags(libc::O_NONBLOCK).open(path).map_err(|error| failed(what, path, &error))?;
    let data = file.metadata().map_err(|error| failed("look at", path, &error))?;
    if data.is_file() { Ok(file) } else { Err(Fault::new(format!("{} is not a regular file", path.display()))) }
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Fault {
    let hint = if error.kind() == ErrorKind::PermissionDenied { REACH_HINT } else { "" };
    Fault::new(format!("cannot {what} {}: {error}{hint}", path.display()))
}

/// The fault of a lock that was not given.
fn locked(error: TryLockError, path: &Path, why: &str) -> Fault {
    match error {
        TryLockError::WouldBlock => Fault::new(format!("{} is in use: {why}", path.display())),
        TryLockError::Error(error) => failed("lock", path, &error),
    }
}

/// Where a file of a new snapshot comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// It was there before.
    Replaced,
    /// It has no name until the snapshot is whole: whatever happens before, nothing is left of it.
    Nameless,
    /// Made under its name, where there are no files without one. Removed again if the snapshot fails, as far as this
    /// thread may: in the folder of the API's socket. Elsewhere it stays, empty.
    Made,
}

/// The name of a file of a new snapshot.
#[derive(Debug)]
struct Name {
    path: PathBuf,
    origin: Origin,
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

impl Name {
    /// Opens the file of this name, or makes one.
    fn open(path: &Path) -> Result<(Self, File), Fault> {
        let name = |origin| Self { path: path.to_owned(), origin };
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(PRIVATE);
        match options.clone().custom_flags(libc::O_NONBLOCK).open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            _ => return Ok((name(Origin::Replaced), open_regular(&mut options, "create", path)?)),
        }
        if std::fs::symlink_metadata(path).is_ok() {
            return Err(Fault::new(format!("{} is a link to what is not there", path.display())));
        }
        match options.clone().custom_flags(libc::O_TMPFILE).open(folder(path)) {
            Ok(file) if link(&file).exists() => Ok((name(Origin::Nameless), file)),
            // Not every file system has them, nor every jail what is needed to name them.
            _ => {
                let file = open_regular(options.create_new(true), "create", path)?;
                Ok((name(Origin::Made), file))
            }
        }
    }

    /// Removes a file that was made.
    fn remove(&mut self) -> std::io::Result<()> {
        match std::mem::replace(&mut self.origin, Origin::Replaced) {
            Origin::Made => std::fs::remove_file(&self.path),
            _ => Ok(()),
        }
    }

    /// The same; if this thread may not, nothing is left in it.
    fn take_back(&mut self, file: &File) {
        if self.remove().is_err() {
            let _ = file.set_len(0);
        }
    }

    /// What tells two names that are not there yet apart.
    fn place(&self) -> Option<(u64, u64, &std::ffi::OsStr)> {
        let data = std::fs::metadata(folder(&self.path)).ok()?;
        (self.origin == Origin::Nameless).then_some((data.dev(), data.ino(), self.path.file_name()?))
    }

    /// Gives the finished file its name.
    fn publish(&mut self, file: &File) -> Result<(), Fault> {
        if self.origin == Origin::Nameless {
            let linked = nix::unistd::linkat(AT_FDCWD, &link(file), AT_FDCWD, &self.path, AtFlags::AT_SYMLINK_FOLLOW);
            linked.map_err(|errno| failed("name", &self.path, &errno.into()))?;
            self.origin = Origin::Made;
        }
        Ok(())
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The way to an open file that may have no name.
fn link(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// The files of a new snapshot, and their names. Dropped, what was made is gone again, or empty where this thread may not
/// remove it.
#[derive(Debug)]
pub(super) struct Unpublished {
    pub(super) files: Files,
    state: Name,
    memory: Name,
}

impl Unpublished {
    /// The snapshot is whole: its files get their names, and keep them. If `sync`, the names are on disk too.
    pub(super) fn publish(mut self, sync: bool) -> Result<(), Fault> {
        self.memory.publish(&self.files.memory)?;
        self.state.publish(&self.files.state)?;
        for (name, file) in [(&self.memory, &self.files.memory), (&self.state, &self.files.state)] {
            if sync && name.origin == Origin::Made {
                // A folder that may not be read: most file systems put the name on disk with the file.
                let synced = File::open(folder(&name.path)).and_then(|folder| folder.sync_all());
                let synced = synced.or_else(|_| file.sync_all());
                synced.map_err(|error| failed("put on disk", &name.path, &error))?;
            }
        }
        (self.memory.origin, self.state.origin) = (Origin::Replaced, Origin::Replaced);
        Ok(())
    }
}

impl Drop for Unpublished {
    fn drop(&mut self) {
        for (name, file) in [(&mut self.memory, &self.files.memory), (&mut self.state, &self.files.state)] {
            name.take_back(file);
        }
    }
}

/// The files of a new snapshot, emptied, without their names before [`Unpublished::publish`]. A memory
/// file of `memory_size` bytes is not emptied for a differential snapshot, which is merged into it.
///
/// They are locked (`flock`) until they are closed: a file that is a disk of a VM, or that the memory of one is mapped
/// from, is another's, and losing it would be the end of that VM. A file that is replaced is its owner's alone from now on;
/// who has it open already goes on reading it.
pub(super) fn create(request: &SnapshotCreate, memory_size: u64) -> Result<Unpublished, Fault> {
    let (state_name, state) = Name::open(&request.snapshot_path)?;
    let (memory_name, memory) = Name::open(&request.mem_file_path)?;
    let id = |file: &File| file.metadata().map(|data| (data.dev(), data.ino())).ok();
    if id(&state) == id(&memory) || state_name.place().is_some_and(|place| Some(place) == memory_name.place()) {
        return Err(Fault::new("snapshot_path and mem_file_path are the same file"));
    }
    let both = [(&state, &request.snapshot_path), (&memory, &request.mem_file_path)];
    for (file, path) in both {
        let why = "it is the disk of a VM, or a VM's memory is mapped from it; give another name to the new snapshot";
        file.try_lock().map_err(|error| locked(error, path, why))?;
    }
    for (file, path) in both {
        let mode = file.metadata().map_err(|error| failed("look at", path, &error))?.mode();
        if mode & 0o7777 & !PRIVATE != 0 {
            let made_private = file.set_permissions(Permissions::from_mode(PRIVATE));
            made_private.map_err(|error| failed("keep others from reading", path, &error))?;
        }
    }
    let empty = |file: &File, path: &Path| file.set_len(0).map_err(|error| failed("empty", path, &error));
    empty(&state, &request.snapshot_path)?;
    let is_memory = memory.metadata().is_ok_and(|data| data.len() == memory_size);
    if request.snapshot_type == SnapshotType::Full || !is_memory {
        empty(&memory, &request.mem_file_path)?;
    }
    Ok(Unpublished { files: Files { state, memory }, state: state_name, memory: memory_name })
}

/// The files of a snapshot that is there. The lock on the memory's lasts as long as the VM whose memory it is.
pub(super) fn open(request: &SnapshotLoad) -> Result<Loading, Fault> {
    let open = |path: &Path| -> Result<File, Fault> {
        let file = open_regular(OpenOptions::new().read(true), "open", path)?;
        file.try_lock_shared().map_err(|error| locked(error, path, "somebody writes to it"))?;
        Ok(file)
    };
    let state = open(&request.snapshot_path)?;
    let memory = match request.memory() {
        Some((MemoryBackendType::File, path)) => MemorySource::File(open(path)?),
        // The main thread connects to it.
        Some((MemoryBackendType::Uffd, path)) => MemorySource::Handler(path.to_owned()),
        None => return Err(Fault::new("a load needs a mem_backend")),
    };
    Ok(Loading { state, memory })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn request(dir: &Path, state: &str, memory: &str) -> SnapshotCreate {
        let body = serde_json::json!({"snapshot_path": dir.join(state), "mem_file_path": dir.join(memory)});
        serde_json::from_value(body).unwrap()
    }

    fn load(dir: &Path, memory: &str) -> SnapshotLoad {
        let body = serde_json::json!({"snapshot_path": dir.join("s"), "mem_file_path": dir.join(memory)});
        serde_json::from_value(body).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o777
    }

    /// What lies in the folder.
    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names.into_iter().map(|name| name.into_string().unwrap()).collect()
    }

    #[test]
    fn a_new_snapshot_is_empty_and_the_owners() {
        let dir = tempfile::tempdir().unwrap();
        let memory = dir.path().join("m");
        std::fs::write(&memory, "old").unwrap();
        std::fs::set_permissions(&memory, Permissions::from_mode(0o644)).unwrap();
        let new = create(&request(dir.path(), "s", "m"), 0).unwrap();
        assert_eq!((new.files.memory.metadata().unwrap().len(), mode(&memory)), (0, 0o600));
        new.publish(true).unwrap();
        assert_eq!((names(dir.path()), mode(&dir.path().join("s"))), (vec!["m".to_owned(), "s".to_owned()], 0o600));
    }

    #[test]
    fn only_a_difference_keeps_a_memory_of_the_right_length() {
        let dir = tempfile::tempdir().unwrap();
        for (kind, size, kept) in [(SnapshotType::Diff, 3, 3), (SnapshotType::Diff, 4, 0), (SnapshotType::Full, 3, 0)] {
            for name in ["s", "m"] {
                std::fs::write(dir.path().join(name), "old").unwrap();
            }
            let request = SnapshotCreate { snapshot_type: kind, ..request(dir.path(), "s", "m") };
            let new = create(&request, size).unwrap();
            let len = |file: &File| file.metadata().unwrap().len();
            assert_eq!((len(&new.files.state), len(&new.files.memory)), (0, kept), "{kind:?} {size}");
        }
    }

    #[test]
    fn a_snapshot_that_fails_leaves_no_file_that_was_not_there() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        std::fs::write(dir.path().join("old"), "old").unwrap();
        std::os::unix::fs::symlink("absent", dir.path().join("link")).unwrap();
        let before = names(dir.path());
        for (state, memory) in [("s", "no/folder"), ("s", "folder"), ("no/folder", "m"), ("link", "m"), ("s", "link")] {
            create(&request(dir.path(), state, memory), 0).unwrap_err();
            assert_eq!(names(dir.path()), before, "{state} {memory}");
        }
        // Refused for the other file's sake, nothing happens to one that was there.
        create(&request(dir.path(), "old", "no/folder"), 0).unwrap_err();
        assert_eq!(std::fs::read_to_string(dir.path().join("old")).unwrap(), "old");
        // It fails while it is written.
        drop(create(&request(dir.path(), "s", "m"), 0).unwrap());
        assert_eq!(names(dir.path()), before);
        // The name of the state is taken before it is whole: the memory, named before, goes again.
        let new = create(&request(dir.path(), "s", "m"), 0).unwrap();
        std::fs::write(dir.path().join("s"), "another's").unwrap();
        assert!(new.publish(false).unwrap_err().message.contains("exists"));
        assert_eq!(names(dir.path()), [before, vec!["s".to_owned()]].concat());
        assert_eq!(std::fs::read_to_string(dir.path().join("s")).unwrap(), "another's");
    }

    #[test]
    fn where_every_file_has_a_name_those_of_a_failed_snapshot_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let made = |name: &str| {
            let path = dir.path().join(name);
            (Name { path: path.clone(), origin: Origin::Made }, File::create_new(path).unwrap())
        };
        let ((state, state_file), (memory, memory_file)) = (made("s"), made("m"));
        Unpublished { files: Files { state: state_file, memory: memory_file }, state, memory }.publish(true).unwrap();
        assert_eq!(names(dir.path()), ["m", "s"]);
        drop((made("s2"), made("m2")));
        assert_eq!(names(dir.path()), ["m", "s"]);
        // One that cannot be removed: another thing has its name.
        let ((state, state_file), (memory, mut memory_file)) = (made("s3"), made("m3"));
        memory_file.write_all(b"a guest's memory").unwrap();
        let other_name = dir.path().join("m4");
        std::fs::rename(dir.path().join("m3"), &other_name).unwrap();
        std::fs::create_dir(dir.path().join("m3")).unwrap();
        drop(Unpublished { files: Files { state: state_file, memory: memory_file }, state, memory });
        assert_eq!(names(dir.path()), ["m", "m3", "m4", "s"]);
        assert_eq!(other_name.metadata().unwrap().len(), 0);
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
            let fault = create(&request(dir.path(), state, memory), 0).unwrap_err();
            assert!(fault.message.contains("is in use"), "{}", fault.message);
        }
        for name in ["s", "m", "disk"] {
            assert_eq!(std::fs::read_to_string(dir.path().join(name)).unwrap(), "kept");
        }
        std::fs::write(dir.path().join("s2"), "").unwrap();
        std::fs::write(dir.path().join("m2"), "").unwrap();
        let created = create(&request(dir.path(), "s2", "m2"), 0).unwrap();
        let body = serde_json::json!({"snapshot_path": dir.path().join("s2"), "mem_file_path": dir.path().join("m2")});
        let half = open(&serde_json::from_value(body.clone()).unwrap()).unwrap_err();
        assert!(half.message.contains("somebody writes"), "{}", half.message);
        drop(created);
        open(&serde_json::from_value(body).unwrap()).unwrap();
        drop((loaded, twice));
        create(&request(dir.path(), "s", "m"), 0).unwrap();
    }

    #[test]
    fn only_two_regular_files_are_a_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("there"), "").unwrap();
        for (one, other) in [("same", "same"), ("same", "./same"), ("there", "there")] {
            assert!(create(&request(dir.path(), one, other), 0).unwrap_err().message.contains("same file"));
        }
        let fault = create(&request(dir.path(), "s", "no/folder"), 0).unwrap_err();
        assert!(fault.message.contains("no/folder"), "{}", fault.message);
        nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(create(&request(dir.path(), "s", "fifo"), 0).unwrap_err().message.contains("regular"));
        std::fs::write(dir.path().join("s"), "").unwrap();
        assert!(open(&load(dir.path(), "fifo")).unwrap_err().message.contains("regular"));
        assert!(open(&load(dir.path(), "absent")).unwrap_err().message.contains("absent"));
    }
}
