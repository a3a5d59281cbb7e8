//! The project's own recorded boots.

use portcullis_firmware_fixtures::recorded::{self, RecordedBoot};

use super::recordings::Recordings;

/// The recorded boots of the project's own lab.
pub const BOOTS: [RecordedBoot; 5] =
    [recorded::SECURE_BOOT, recorded::TAMPERED, recorded::SECURE_BOOT_OFF, recorded::DIRECT, recorded::SEABIOS];

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
}
