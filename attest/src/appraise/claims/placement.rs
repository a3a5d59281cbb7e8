//! Which types of events belong into which PCR.
//!
//! No digest covers an event's type. A log that calls a boot loader a firmware volume leads to the same PCR values, so
//! whatever looks for boot loaders by their type overlooks it. Hence a list of what may be where: PC Client Platform
//! Firmware Profile 1.06, sections 3.3.4 and 10.4.1, and what shim, GRUB, systemd, the Linux kernel's EFI stub, SeaBIOS
//! and Windows measure beside it.

use crate::eventlog::{Coverage, EventType as T};

use super::covered::Covered;

/// What the firmware measures into any of its own PCRs, 0 to 7. The digest of each must be that of its data.
const ANYWHERE: [T; 3] = [T::SEPARATOR, T::ACTION, T::EFI_ACTION];

const IMAGES: [T; 3] = [T::EFI_BOOT_SERVICES_APPLICATION, T::EFI_BOOT_SERVICES_DRIVER, T::EFI_RUNTIME_SERVICES_DRIVER];

/// Code and version of the firmware.
pub(super) const FIRMWARE: [T; 10] = [
    T::S_CRTM_VERSION,
    T::S_CRTM_CONTENTS,
    T::POST_CODE,
    T::POST_CODE2,
    T::EFI_PLATFORM_FIRMWARE_BLOB,
    T::EFI_PLATFORM_FIRMWARE_BLOB2,
    T::EFI_HCRTM_EVENT,
    T::NONHOST_CODE,
    T::NONHOST_INFO,
    T::CPU_MICROCODE,
];

const FIRMWARE_DATA: [T; 13] = [
    T::EFI_HANDOFF_TABLES,
    T::EFI_HANDOFF_TABLES2,
    T::EFI_VARIABLE_BOOT,
    T::EFI_VARIABLE_BOOT2,
    T::EFI_VARIABLE_DRIVER_CONFIG,
    T::CPU_MICROCODE,
    T::PLATFORM_CONFIG_FLAGS,
    T::TABLE_OF_DEVICES,
    T::NONHOST_CONFIG,
    T::NONHOST_INFO,
    T::EFI_PLATFORM_FIRMWARE_BLOB,
    T::EFI_PLATFORM_FIRMWARE_BLOB2,
    T::EVENT_TAG,
];

const OPTION_ROMS: [T; 10] = [
    T::EFI_BOOT_SERVICES_DRIVER,
    T::EFI_RUNTIME_SERVICES_DRIVER,
    T::EFI_BOOT_SERVICES_APPLICATION,
    T::EFI_PLATFORM_FIRMWARE_BLOB,
    T::EFI_PLATFORM_FIRMWARE_BLOB2,
    T::EFI_SPDM_FIRMWARE_BLOB,
    T::EFI_SPDM_FIRMWARE_CONFIG,
    T::NONHOST_CODE,
    T::TABLE_OF_DEVICES,
    T::EVENT_TAG,
];

const OPTION_ROM_DATA: [T; 7] = [
    T::EFI_VARIABLE_DRIVER_CONFIG,
    T::EFI_VARIABLE_BOOT,
    T::EFI_VARIABLE_BOOT2,
    T::EFI_SPDM_FIRMWARE_CONFIG,
    T::NONHOST_CONFIG,
    T::TABLE_OF_DEVICES,
    T::EVENT_TAG,
];

const BOOT: [T; 4] = [T::IPL, T::COMPACT_HASH, T::OMIT_BOOT_DEVICE_EVENTS, T::EVENT_TAG];

const BOOT_DATA: [T; 9] = [
    T::EFI_GPT_EVENT,
    T::EFI_GPT_EVENT2,
    T::IPL,
    T::IPL_PARTITION_DATA,
    T::EFI_VARIABLE_BOOT,
    T::EFI_VARIABLE_BOOT2,
    T::EFI_VARIABLE_DRIVER_CONFIG,
    T::COMPACT_HASH,
    T::EVENT_TAG,
];

const SECURE_BOOT: [T; 4] =
    [T::EFI_VARIABLE_DRIVER_CONFIG, T::EFI_VARIABLE_AUTHORITY, T::EFI_SPDM_DEVICE_POLICY, T::EFI_SPDM_DEVICE_AUTHORITY];

/// GRUB's commands and files, and the files of the Linux kernel's stub.
const BOOT_LOADER: [T; 2] = [T::IPL, T::EVENT_TAG];

/// systemd-stub's and shim's, and Windows' own boot log, which ends with a separator in each PCR.
const OPERATING_SYSTEM: [T; 4] = [T::IPL, T::EVENT_TAG, T::COMPACT_HASH, T::SEPARATOR];

/// Whether an event's type belongs into the PCR that it extends.
pub(super) fn belongs(covered: &Covered<'_, '_>) -> bool {
    let (pcr, event_type) = (covered.event.pcr, covered.event.event_type);
    if pcr < 8 && event_type.name().is_none() {
        // A vendor's own type says itself what it is, or could hide anything.
        return covered.coverage == Coverage::Data && !is_image(covered);
    }
    if matches!(event_type, T::ACTION | T::EFI_ACTION) && !is_printable(covered.event.data) {
        return false;
    }
    if pcr < 8 && ANYWHERE.contains(&event_type) {
        return true;
    }
    match pcr {
        0 => FIRMWARE.contains(&event_type) || IMAGES.contains(&event_type),
        1 => FIRMWARE_DATA.contains(&event_type),
        2 => OPTION_ROMS.contains(&event_type),
        3 => OPTION_ROM_DATA.contains(&event_type),
        4 => IMAGES.contains(&event_type) || BOOT.contains(&event_type),
        5 => BOOT_DATA.contains(&event_type),
        7 => SECURE_BOOT.contains(&event_type),
        8 => event_type == T::IPL,
        9 => BOOT_LOADER.contains(&event_type),
        11..=15 => OPERATING_SYSTEM.contains(&event_type),
        // What is in PCR 6 only the vendor knows, and no claim rests on it; IMA's PCR and those that programs can reset
        // have no part in the firmware's log.
        _ => true,
    }
}

/// Whether an event may be a program that was loaded, whatever its type says.
///
/// A digest of an image is in no relation to the event's data. Where a digest covers the data, it is that of an image only
/// if the data begin as an image does: Authenticode hashes a file from its beginning.
pub(super) fn is_image(covered: &Covered<'_, '_>) -> bool {
    match covered.coverage {
        Coverage::Data | Coverage::Beginning(_) => {
            let data = covered.event.covered_data(covered.coverage);
            data.starts_with(b"MZ") || data.starts_with(b"PE\0\0") || data.starts_with(b"VZ")
        }
        Coverage::Text | Coverage::Value | Coverage::Nothing => true,
    }
}

/// Whether data are a text of printable ASCII, with at most a terminator.
pub(super) fn is_printable(data: &[u8]) -> bool {
    let text = data.strip_suffix(b"\0").unwrap_or(data);
    !text.is_empty() && text.iter().all(|byte| matches!(byte, b' '..=b'~'))
}
