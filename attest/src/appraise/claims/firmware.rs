//! The firmware: its versions and parts, and how it protects the boot.

use super::covered::Covered;
use super::placement::FIRMWARE;
use super::{Claim, Claims};
use crate::eventlog::{Coverage, EventType, Guid, Variable};
use crate::key::Constant;

/// What the firmware said its version is. A digest covers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareVersion {
    /// The text, the GUID that stands for it, or the digest where the firmware measured something else.
    pub text: String,
}

/// A part of the firmware or of its tables, of which the log has only the digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// What the firmware calls it. No digest covers that.
    pub label: Option<String>,
}

impl<'a> Claims<'a> {
    /// The version of the firmware's root of trust (S-CRTM), where the firmware measured one before the separator.
    pub fn firmware_version(&self) -> Option<Claim<'a, FirmwareVersion>> {
        self.log().of_pcr(0).find_map(|covered| {
            let is_version = covered.is(EventType::S_CRTM_VERSION)
                && covered.coverage == Coverage::Data
                && !self.is_behind_separator(&covered);
            let text = || covered.event.version().unwrap_or_else(|| hex::encode(covered.digest));
            is_version.then(|| covered.claim(FirmwareVersion { text: text() }))
        })
    }

    /// The parts of the firmware: volumes, microcode and whatever else it calls code of its own (PCR 0).
    pub fn firmware_code(&self) -> Vec<Claim<'a, Label>> {
        const NO_CODE: [EventType; 2] = [EventType::S_CRTM_VERSION, EventType::NONHOST_INFO];
        let label = |covered: Covered<'_, 'a>| {
            let event_type = covered.event.event_type;
            let is_code =
                FIRMWARE.contains(&event_type) && !NO_CODE.contains(&event_type) && !self.is_behind_separator(&covered);
            is_code.then(|| covered.claim(Label { label: covered.event.firmware_label() }))
        };
        self.log().of_pcr(0).filter_map(label).collect()
    }

    /// Whether the firmware kept devices from reading and writing memory during the boot. It measures only that it did
    /// not: `None` says nothing.
    pub fn dma_protection(&self) -> Option<Claim<'a, bool>> {
        static TEXTS: [Constant; 2] =
            [Constant::new(b"DMA Protection Disabled"), Constant::new(b"DMA Protection Disabled\0")];
        let is_it = |covered: &Covered<'_, '_>| TEXTS.iter().any(|text| text.has_digest(self.bank(), covered.digest));
        let disabled = self.log().of_pcr(7).find(is_it);
        disabled.map(|covered| covered.claim(false))
    }

    /// The order of boot options. The digest covers the order, and not that this is what it is.
    pub fn boot_order(&self) -> Option<Claim<'a, Vec<u16>>> {
        self.log().of_pcr(1).find_map(|covered| {
            let is_variable = matches!(
                covered.event.event_type,
                EventType::EFI_VARIABLE_BOOT | EventType::EFI_VARIABLE_BOOT2 | EventType::EFI_VARIABLE_DRIVER_CONFIG
            );
            if !is_variable || !matches!(covered.coverage, Coverage::Data | Coverage::Value) {
                return None;
            }
            let variable = Variable::parse(covered.event.data).ok()?;
            let (options, rest) = variable.data.as_chunks::<2>();
            let is_order = variable.is(Guid::GLOBAL, "BootOrder") && rest.is_empty();
            is_order.then(|| covered.claim(options.iter().copied().map(u16::from_le_bytes).collect()))
        })
    }
}
