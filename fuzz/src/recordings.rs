//! Genuine inputs to begin with, from outside: the project's own boots, and a folder of other machines' logs where there
//! is one. The rooms have further ones.

use std::fs;
use std::io;
use std::path::Path;

/// What machines really gave.
#[derive(Debug, Default)]
pub struct Recordings {
    /// Firmware event logs.
    pub event_logs: Vec<Vec<u8>>,
    /// IMA lists in binary form.
    pub ima_binary: Vec<Vec<u8>>,
    /// IMA lists in ASCII form.
    pub ima_ascii: Vec<Vec<u8>>,
}

impl Recordings {
    /// Adds what a folder has: `eventlogs/*` and `ima/*.ascii`.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn add_folder(&mut self, folder: &Path) -> io::Result<()> {
        for (name, into) in [("eventlogs", &mut self.event_logs), ("ima", &mut self.ima_ascii)] {
            for file in fs::read_dir(folder.join(name))? {
                into.push(fs::read(file?.path())?);
            }
        }
        Ok(())
    }
}
