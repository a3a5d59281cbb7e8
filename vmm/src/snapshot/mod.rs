//! Snapshots: the state of a paused VM in two files, and the way back.
//!
//! The state's file ([`format`](self::parse)) is written last and read as a whole: a snapshot that was not finished has
//! none that can be loaded. Through the API files that were not there before get their names when both are whole; ones
//! that were there are written in place, and a snapshot that fails leaves them empty (but for a memory file that a
//! difference is merged into). The memory's file is mapped, so that a restore takes as long with much memory as with little.
//!
//! A differential snapshot has the pages of the memory that are another than in the one before: see `base`.

mod base;
mod clock;
mod config;
mod format;
mod list;
mod memory;
mod state;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::devices::ioapic::WrongPins;
use crate::memory::GuestRam;

pub use base::Base;
pub use clock::KvmClock;
pub use config::{
    MemoryBackend, MemoryBackendType, NetworkOverride, SnapshotCreate, SnapshotLoad, SnapshotType, VsockOverride,
};
pub use format::{FormatError, MAX_FILE, VERSION, encode, parse};
pub(crate) use list::at_most;
pub use state::State;

/// The two files of a snapshot, open.
#[derive(Debug)]
pub struct Files {
    /// The state of vCPUs and devices.
    pub state: File,
    /// The guest's memory.
    pub memory: File,
}

/// What a VM is loaded from.
#[derive(Debug)]
pub struct Loading {
    /// The state of vCPUs and devices.
    pub state: File,
    /// The guest's memory.
    pub memory: MemorySource,
}

/// Where the memory of a loaded VM comes from.
#[derive(Debug)]
pub enum MemorySource {
    /// This file, which is mapped.
    File(File),
    /// The page-fault handler that listens at this path.
    Handler(PathBuf),
}

impl MemorySource {
    /// The file, if it is one.
    pub fn file(self) -> Option<File> {
        match self {
            Self::File(file) => Some(file),
            Self::Handler(_) => None,
        }
    }
}

/// What a snapshot is made of.
pub struct Saved {
    /// The state of vCPUs and devices.
    pub state: State,
    /// The guest's memory. It does not change while the VM is paused.
    pub ram: GuestRam,
}

/// Why a snapshot was not made or loaded. Exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The state's file could not be read.
    #[error("cannot read the snapshot's state: {0}")]
    Read(io::Error),
    /// A file could not be written.
    #[error("cannot write the snapshot's {what}: {source}; the VM stays paused, the snapshot cannot be loaded")]
    Write {
        /// `state` or `memory`.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Not a state's file that this VMM can load.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The configuration in it is not one.
    #[error("the snapshot's configuration is not valid: {0}")]
    Config(String),
    /// Configuration and state do not go together.
    #[error("the snapshot holds {found} vCPUs, its configuration says {expected}")]
    Vcpus {
        /// In the state.
        found: usize,
        /// In the configuration.
        expected: usize,
    },
    /// Made on another make of processor.
    #[error("the snapshot was made on a processor of {made}, this one is of {here}")]
    Vendor {
        /// Vendor of the snapshot's.
        made: String,
        /// Vendor of this host's.
        here: String,
    },
    /// Made on a processor that can do more.
    #[error(
        "the snapshot's guest uses features that this host's processor or KVM lacks: CPUID leaf {leaf:#x}, bits {bits:#x}"
    )]
    Features {
        /// The leaf.
        leaf: u32,
        /// What is lacking.
        bits: u32,
    },
    /// Configuration and state do not go together.
    #[error("the snapshot holds {found} virtio devices, its configuration makes {expected}")]
    Devices {
        /// In the state.
        found: usize,
        /// From the configuration.
        expected: usize,
    },
    /// Configuration and state do not go together either.
    #[error(transparent)]
    Pins(#[from] WrongPins),
    /// A device does not take its state.
    #[error("a device does not take the snapshot's state: {0}")]
    Device(String),
    /// An override for what is not there.
    #[error("the snapshot has no {0} to be overridden")]
    Override(String),
}

/// What is written of a VM.
pub struct Written<'a> {
    /// vCPUs and devices.
    pub state: State,
    /// The memory.
    pub ram: &'a GuestRam,
    /// All of the memory, or what is another than in `base`.
    pub kind: SnapshotType,
    /// What the last snapshot was.
    pub base: &'a Base,
    /// Whether what is written now is kept in mind.
    pub track: bool,
}

/// Writes a snapshot: the memory, then the state. Returns the base of the next one. On an error the state's file is left
/// empty, and so is the memory's, unless it is one that a difference is merged into.
pub fn write(files: &Files, written: &Written<'_>, sync: bool) -> Result<Base, SnapshotError> {
    let next = try_write(files, written, sync);
    if next.is_err() {
        // A file that cannot even be cut is no state that would be accepted.
        let _ = files.state.set_len(0);
        if written.kind == SnapshotType::Full {
            let _ = files.memory.set_len(0);
        }
    }
    next
}

fn try_write(files: &Files, written: &Written<'_>, sync: bool) -> Result<Base, SnapshotError> {
    let step = |what| move |source| SnapshotError::Write { what, source };
    let bytes = encode(&written.state)?;
    // What an earlier snapshot has left must not meet the new memory.
    files.state.set_len(0).map_err(step("state"))?;
    if written.kind == SnapshotType::Full {
        files.memory.set_len(0).map_err(step("memory"))?;
    }
    let next = written.base.write(written.ram, &files.memory, written.kind, written.track).map_err(step("memory"))?;
    if sync {
        files.memory.sync_all().map_err(step("memory"))?;
    }
    files.state.write_all_at(&bytes, 0).map_err(step("state"))?;
    if sync {
        files.state.sync_all().map_err(step("state"))?;
    }
    Ok(next)
}

/// Reads and checks the file of a state.
pub fn read(file: &File) -> Result<State, SnapshotError> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(SnapshotError::Read)?;
    Ok(parse(&bytes)?)
}

/// The version of the format of a snapshot's file, also of one that this VMM cannot load.
pub fn describe(path: &Path) -> Result<u32, SnapshotError> {
    let mut head = Vec::new();
    // Non-blocking: a FIFO without a writer is an empty file.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    file.and_then(|file| file.take(4096).read_to_end(&mut head)).map_err(SnapshotError::Read)?;
    Ok(format::describe(&head)?)
}

#[cfg(test)]
pub(crate) mod tests;
