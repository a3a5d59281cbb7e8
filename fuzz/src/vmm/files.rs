//! Files in memory, with a name.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::sys::memfd::{MFdFlags, memfd_create};

/// A file that goes when it is dropped.
pub struct MemoryFile(File);

impl MemoryFile {
    /// A file with this content.
    pub fn new(content: &[u8]) -> Self {
        let file = Self(memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).expect("memory for a file").into());
        file.write(0, content);
        file
    }

    /// The name under which it can be opened.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    /// Changes it.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.0.write_all_at(bytes, at).expect("a file in memory takes it");
    }

    /// Cuts it, or lengthens it by zeros.
    pub fn set_len(&self, len: u64) {
        self.0.set_len(len).expect("a file in memory takes it");
    }

    /// What it holds.
    pub fn content(&self) -> Vec<u8> {
        let len = self.0.metadata().expect("a file in memory has a length").len();
        let mut bytes = vec![0; usize::try_from(len).expect("a small file")];
        self.0.read_exact_at(&mut bytes, 0).expect("as long as it says");
        bytes
    }
}
