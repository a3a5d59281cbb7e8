//! Genuine inputs to begin with: the project's recorded boots, and a folder of other machines' logs where there is one.

use std::fs;
use std::io;
use std::path::Path;

use portcullis_firmware_fixtures::recorded::{self, RecordedBoot};

/// The recorded boots of the project's own lab.
pub const BOOTS: [RecordedBoot; 5] =
    [recorded::SECURE_BOOT, recorded::TAMPERED, recorded::SECURE_BOOT_OFF, recorded::DIRECT, recorded::SEABIOS];

/// What machines really gave.
pub struct Recordings {
    /// Firmware event logs.
    pub event_logs: Vec<Vec<u8>>,
    /// IMA lists in binary form.
    pub ima_binary: Vec<Vec<u8>>,
    /// IMA lists in ASCII form.
    pub ima_ascii: Vec<Vec<u8>>,
}

impl Recordings {
    /// The recorded boots of the project's own lab.
    pub fn of_the_lab() -> Self {
        Self {
            event_logs: BOOTS
                .iter()
                .map(|boot| boot.event_log)
                .chain([recorded::UKI_EVENT_LOG])
                .map(<[_]>::to_vec)
                .collect(),
            ima_binary: BOOTS.iter().map(|boot| boot.ima.to_vec()).collect(),
            ima_ascii: Vec::new(),
        }
    }

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
