//! Says in words what an event means, and how far its digest covers what it says.
//!
//! Words are for people and for choosing what to compare. Only what [`Coverage`] says is covered may be believed,
//! and that only after the log was replayed against a quote.

use super::coverage::{Coverage, grub_text};
use super::signature_database::words_of;
use super::tagged;
use super::variable::utf16;
use super::{Cursor, Event, EventLog, EventType, Guid, SignatureDatabase, Variable};
use crate::key::Bank;
use crate::work;

/// Longest text that a description repeats, in bytes of the event.
const MAX_TEXT: usize = 16 << 10;

/// What an event means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// What kind of thing was measured.
    pub kind: EventKind,
    /// The same in words: "kernel command line", "Secure Boot off".
    pub words: String,
    /// The text of the event, where it has one: a command line, a file's name, a version.
    pub text: Option<String>,
    /// How far the event's digest covers what the event says.
    pub coverage: Coverage,
}

/// What kind of thing an event tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// The locality from which the TPM was started.
    StartupLocality,
    /// An event that extends nothing and whose meaning is the vendor's.
    Information,
    /// The version of the firmware.
    FirmwareVersion,
    /// A part of the firmware.
    FirmwareCode,
    /// Something that the firmware read: tables, microcode, its configuration.
    FirmwareData,
    /// Firmware of a device, its configuration or who vouches for it (SPDM).
    DeviceFirmware,
    /// A driver from the firmware or from a card.
    Driver,
    /// Whether Secure Boot is on.
    SecureBootState,
    /// The platform key, PK.
    PlatformKey,
    /// The keys that may change db and dbx: KEK.
    ExchangeKeys,
    /// Whom Secure Boot trusts: db.
    AllowedSignatures,
    /// Whom Secure Boot trusts no more: dbx.
    RevokedSignatures,
    /// Another variable of the firmware.
    Variable,
    /// By what an image was verified.
    Authority,
    /// The generation of boot loaders below which shim starts none.
    SbatLevel,
    /// Shim's own lists of keys (MOK).
    MachineOwnerKeys,
    /// The line between what the firmware did and what came after it.
    Separator,
    /// Something the firmware did.
    Action,
    /// The firmware said that it handed over to the operating system.
    ExitBootServices,
    /// The firmware said that it can be debugged.
    DebugMode,
    /// The order of boot options.
    BootOrder,
    /// One boot option.
    BootOption,
    /// An image that the firmware started or was asked to load.
    BootImage,
    /// The partition table.
    PartitionTable,
    /// A command that GRUB ran.
    GrubCommand,
    /// The command line that GRUB gave the kernel.
    KernelCommandLine,
    /// The command line that GRUB gave a module.
    ModuleCommandLine,
    /// A file that GRUB read.
    GrubFile,
    /// The initrd, measured by the kernel's EFI stub.
    StubInitrd,
    /// The load options (command line), measured by the kernel's EFI stub.
    StubCommandLine,
    /// A file that a boot loader measured.
    BootLoaderFile,
    /// A section of a unified kernel image, or its name.
    UkiSection,
    /// A text that a boot loader measured.
    BootLoaderText,
    /// Something of Windows' own boot log.
    Windows,
    /// A type that has no place in a measured boot.
    Unused,
    /// Anything else.
    Other,
}

impl EventLog<'_> {
    /// What an event of this log means, with its coverage by the strongest digest that the log has.
    pub fn describe(&self, event: &Event<'_>) -> Description {
        const BY_STRENGTH: [Bank; 5] = [Bank::Sha512, Bank::Sha384, Bank::Sha256, Bank::Sm3_256, Bank::Sha1];
        let bank = BY_STRENGTH.into_iter().find(|bank| event.digests.get(*bank).is_some());
        event.describe(bank.unwrap_or(Bank::Sha1))
    }
}

impl<'a> Event<'a> {
    /// What the event means, with its coverage by the digest of one bank.
    pub fn describe(&self, bank: Bank) -> Description {
        self.describe_covered(self.coverage(bank))
    }

    /// The same of an event whose coverage is known, so that its data is not hashed again.
    pub(crate) fn describe_covered(&self, coverage: Coverage) -> Description {
        let (kind, words, text) = self.meaning();
        Description { kind, words, text, coverage }
    }

    /// What the event is, in words alone.
    pub(crate) fn words(&self) -> String {
        self.meaning().1
    }

    /// For text measured by GRUB: the text that its digest is made of, without prefix and terminator.
    pub fn grub_text(&self) -> Option<&'a str> {
        self.grub_text_of_kind().map(|(_, text)| text)
    }

    /// The same with what kind of text it is.
    pub(crate) fn grub_text_of_kind(&self) -> Option<(EventKind, &'a str)> {
        let (kind, text) = grub_text(self.data).filter(|_| self.event_type == EventType::IPL)?;
        core::str::from_utf8(text).ok().map(|text| (kind, text))
    }

    /// The text of the event's data, in either encoding.
    pub(crate) fn label(&self) -> Option<String> {
        text_of(self.data)
    }

    /// The name of a file that GRUB read, if it is one that is called so in words: kernel and initrd are looked for.
    pub(crate) fn grub_file(&self, words: &str) -> Option<String> {
        let is_utf16 = matches!(self.data, [_, 0, ..]);
        // Most files are neither, which the end of a name tells without reading all of it.
        if self.event_type != EventType::IPL || (!is_utf16 && file_words(self.data) != words) {
            return None;
        }
        let label = self.grub_text().is_none().then(|| self.label())?;
        label.filter(|label| file_words(label.as_bytes()) == words)
    }

    /// The file that an image's device path names.
    pub(crate) fn image_path(&self) -> Option<String> {
        image_path(self.data)
    }

    /// The version that an event of type `EV_S_CRTM_VERSION` tells.
    pub(crate) fn version(&self) -> Option<String> {
        version(self.data)
    }

    /// What the firmware calls a part of itself.
    pub(crate) fn firmware_label(&self) -> Option<String> {
        match self.event_type {
            EventType::EFI_PLATFORM_FIRMWARE_BLOB => None,
            EventType::EFI_PLATFORM_FIRMWARE_BLOB2 => blob2_name(self.data),
            EventType::S_CRTM_CONTENTS | EventType::POST_CODE | EventType::POST_CODE2 => {
                ascii(self.data).or_else(|| blob2_name(self.data))
            }
            _ => text_of(self.data),
        }
    }

    /// Whether the data are those of a tagged event from their first byte to their last, whatever the type says.
    pub(crate) fn is_whole_tagged(&self) -> bool {
        tagged::is_whole(self.data)
    }

    /// Whether the data tell of an option ROM that a conventional BIOS ran, whatever the type says.
    pub(crate) fn is_bios_option_rom(&self) -> bool {
        tagged::is_bios_option_rom(self.data)
    }

    /// What a tagged event names, and its text.
    pub(crate) fn tagged(&self) -> Option<(EventKind, Option<String>)> {
        let tagged = || tagged::meaning(self.pcr, self.data);
        (self.event_type == EventType::EVENT_TAG).then(tagged).map(|(kind, _, text)| (kind, text))
    }

    fn meaning(&self) -> (EventKind, String, Option<String>) {
        use EventKind as K;
        work::steps(cut(self.data).len());
        let (kind, words, text) = match self.event_type {
            EventType::NO_ACTION => return no_action(self.data),
            EventType::SEPARATOR => match self.data {
                [0, 0, 0, 0] | [0xff, 0xff, 0xff, 0xff] => (K::Separator, "separator", None),
                b"WBCL" => (K::Windows, "Windows: end of the boot log", None),
                _ => (K::Separator, "separator that reports an error", Some(hex::encode(cut(self.data)))),
            },
            EventType::S_CRTM_VERSION => (K::FirmwareVersion, "firmware version", version(self.data)),
            EventType::S_CRTM_CONTENTS | EventType::POST_CODE | EventType::POST_CODE2 => {
                (K::FirmwareCode, "firmware code", self.firmware_label())
            }
            EventType::EFI_PLATFORM_FIRMWARE_BLOB | EventType::EFI_PLATFORM_FIRMWARE_BLOB2 => {
                (K::FirmwareCode, "firmware volume", self.firmware_label())
            }
            EventType::EFI_HCRTM_EVENT => {
                (K::FirmwareCode, "hardware root of trust for measurement", text_of(self.data))
            }
            EventType::NONHOST_CODE => (K::FirmwareCode, "code of another processor", text_of(self.data)),
            EventType::CPU_MICROCODE => (K::FirmwareData, "processor microcode", text_of(self.data)),
            EventType::PLATFORM_CONFIG_FLAGS => (K::FirmwareData, "firmware configuration", text_of(self.data)),
            EventType::NONHOST_CONFIG => (K::FirmwareData, "configuration of another processor", text_of(self.data)),
            EventType::NONHOST_INFO => (K::FirmwareData, "information on another processor", text_of(self.data)),
            EventType::TABLE_OF_DEVICES => (K::FirmwareData, "table of devices", text_of(self.data)),
            EventType::OMIT_BOOT_DEVICE_EVENTS => (K::FirmwareData, "boot attempts left out", text_of(self.data)),
            EventType::PREBOOT_CERT => (K::FirmwareData, "certificate used before boot", None),
            EventType::COMPACT_HASH if self.pcr == 11 => (K::Windows, "Windows: BitLocker access", None),
            EventType::COMPACT_HASH => (K::FirmwareData, "state of the platform", text_of(self.data)),
            EventType::EFI_SPDM_FIRMWARE_BLOB => (K::DeviceFirmware, "firmware of a device (SPDM)", None),
            EventType::EFI_SPDM_FIRMWARE_CONFIG => (K::DeviceFirmware, "configuration of a device (SPDM)", None),
            EventType::EFI_SPDM_DEVICE_POLICY => (K::DeviceFirmware, "policy on devices (SPDM)", None),
            EventType::EFI_SPDM_DEVICE_AUTHORITY => (K::DeviceFirmware, "authority of a device (SPDM)", None),
            EventType::EFI_HANDOFF_TABLES | EventType::EFI_HANDOFF_TABLES2 => {
                (K::FirmwareData, "firmware tables", blob2_name(self.data))
            }
            EventType::EFI_BOOT_SERVICES_DRIVER | EventType::EFI_RUNTIME_SERVICES_DRIVER => {
                (K::Driver, "driver or option ROM", image_path(self.data))
            }
            EventType::EFI_BOOT_SERVICES_APPLICATION => {
                (K::BootImage, "boot loader or kernel image", image_path(self.data))
            }
            EventType::EFI_GPT_EVENT | EventType::EFI_GPT_EVENT2 | EventType::IPL_PARTITION_DATA => {
                (K::PartitionTable, "partition table", None)
            }
            EventType::EFI_ACTION | EventType::ACTION => return action(self.data),
            EventType::EFI_VARIABLE_DRIVER_CONFIG
            | EventType::EFI_VARIABLE_BOOT
            | EventType::EFI_VARIABLE_BOOT2
            | EventType::EFI_VARIABLE_AUTHORITY => return self.variable(),
            EventType::EVENT_TAG => return tagged::meaning(self.pcr, self.data),
            EventType::IPL => return self.boot_loader(),
            EventType::UNUSED => (K::Unused, "event of an unused type", None),
            other => return (K::Other, other.to_string(), text_of(self.data)),
        };
        (kind, words.to_owned(), text)
    }

    fn variable(&self) -> (EventKind, String, Option<String>) {
        use EventKind as K;
        let Ok((variable, _)) = Variable::parse_prefix(self.data) else {
            return (K::Other, format!("unreadable variable ({})", self.event_type), None);
        };
        if self.event_type == EventType::EFI_VARIABLE_AUTHORITY {
            return authority(&variable);
        }
        let name = variable.name();
        let keys = |kind, words: &str| (kind, words.to_owned(), Some(database_words(variable.data)));
        match (variable.guid, name.as_str()) {
            (Guid::GLOBAL, "SecureBoot") => {
                let words = match variable.data {
                    [1] => "Secure Boot on",
                    [0] | [] => "Secure Boot off",
                    _ => "Secure Boot in an unknown state",
                };
                (K::SecureBootState, words.to_owned(), None)
            }
            (Guid::GLOBAL, "PK") => keys(K::PlatformKey, "Secure Boot platform key (PK)"),
            (Guid::GLOBAL, "KEK") => keys(K::ExchangeKeys, "Secure Boot key exchange keys (KEK)"),
            (Guid::IMAGE_SECURITY, "db") => keys(K::AllowedSignatures, "Secure Boot allowed signers (db)"),
            (Guid::IMAGE_SECURITY, "dbx") => keys(K::RevokedSignatures, "Secure Boot revocations (dbx)"),
            (Guid::GLOBAL, "BootOrder") => (K::BootOrder, "boot order".to_owned(), Some(boot_order(variable.data))),
            (Guid::GLOBAL, name) if name.len() == 8 && name.starts_with("Boot") => {
                (K::BootOption, format!("boot option {name}"), load_option(variable.data))
            }
            (_, name) => (K::Variable, format!("firmware variable {name}"), None),
        }
    }

    fn boot_loader(&self) -> (EventKind, String, Option<String>) {
        use EventKind as K;
        if let Some((kind, text)) = grub_text(self.data) {
            let words = match kind {
                K::KernelCommandLine => "kernel command line",
                K::ModuleCommandLine => "module command line",
                _ => "GRUB command",
            };
            return (kind, words.to_owned(), Some(String::from_utf8_lossy(cut(text)).into_owned()));
        }
        // systemd-boot logs one byte more than its text.
        let text = text_of(self.data).or_else(|| self.data.split_last().and_then(|(_, text)| text_of(text)));
        match (self.pcr, text.as_deref()) {
            (14, Some(name)) => (K::MachineOwnerKeys, format!("shim's key list {name}"), text),
            (9, Some(path)) => (K::GrubFile, file_words(path.as_bytes()).to_owned(), text),
            (11, Some(name)) if name.starts_with('.') => {
                (K::UkiSection, format!("section {name} of a unified kernel image, or that name"), text)
            }
            (12 | 13, Some(label)) if label.ends_with("initrd") => {
                (K::BootLoaderFile, "initrd beside a unified kernel image".to_owned(), text)
            }
            (8 | 12, Some(_)) => (K::StubCommandLine, "kernel command line".to_owned(), text),
            _ => (K::BootLoaderText, "measured by the boot loader".to_owned(), text),
        }
    }
}

/// Information that extends no PCR: known by how it begins.
fn no_action(data: &[u8]) -> (EventKind, String, Option<String>) {
    const KNOWN: [(&[u8], &str); 5] = [
        (b"SP800-155 Event", "where reference values of the firmware are"),
        (b"HCRTM", "hardware root of trust for measurement"),
        (b"H-CRTM CompMeas", "part of the hardware root of trust for measurement"),
        (b"NvIndexInstance", "NV index that holds measurements"),
        (b"NvIndexDynamic", "NV index that holds measurements"),
    ];
    if data.starts_with(b"StartupLocality") {
        return (EventKind::StartupLocality, "startup locality".to_owned(), data.get(16).map(u8::to_string));
    }
    let known = KNOWN.iter().find(|(beginning, _)| data.starts_with(beginning)).map(|(_, words)| *words);
    (EventKind::Information, known.unwrap_or("information that extends no PCR").to_owned(), ascii(data))
}

/// A version is UTF-16, ASCII, or the GUID that stands for it.
fn version(data: &[u8]) -> Option<String> {
    match data.try_into() {
        Ok(guid) if text_of(data).is_none() => Some(Guid(guid).to_string()),
        _ => text_of(data),
    }
}

/// GRUB logs a file's name only; what it is can be guessed from that, for words.
fn file_words(path: &[u8]) -> &'static str {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    if name.starts_with(b"vmlinuz") || name.starts_with(b"bzImage") || name.starts_with(b"linux") {
        "kernel file"
    } else if name.starts_with(b"initrd") || name.starts_with(b"initramfs") {
        "initrd"
    } else if matches!(name, b"grub.cfg" | b"custom.cfg" | b"grubenv") {
        "GRUB configuration file"
    } else {
        "file that GRUB read"
    }
}

fn action(data: &[u8]) -> (EventKind, String, Option<String>) {
    let text = ascii(data);
    let kind = match text.as_deref() {
        Some("UEFI Debug Mode") => EventKind::DebugMode,
        Some(text) if text.starts_with("Exit Boot Services") => EventKind::ExitBootServices,
        _ => EventKind::Action,
    };
    (kind, "firmware action".to_owned(), text)
}

/// By what an image was verified: one entry of the firmware's db, or of shim's own lists.
fn authority(variable: &Variable<'_>) -> (EventKind, String, Option<String>) {
    let name = variable.name();
    let words = match name.as_str() {
        "SbatLevel" => {
            let words = "shim's minimum boot loader generation (SBAT)";
            return (EventKind::SbatLevel, words.to_owned(), ascii(variable.data));
        }
        "MokListTrusted" | "MokListRT" | "MokList" | "Shim" => "image verified by shim",
        _ => "image verified by Secure Boot",
    };
    let signer = SignatureDatabase::from_entry(variable.data);
    (EventKind::Authority, words.to_owned(), Some(format!("{name}: {signer}")))
}

/// What is in a database of keys.
fn database_words(content: &[u8]) -> String {
    words_of(content).unwrap_or_else(|_| "unreadable".to_owned())
}

fn boot_order(data: &[u8]) -> String {
    let (options, _) = data.as_chunks::<2>();
    options.iter().take(64).map(|option| format!("{:04X}", u16::from_le_bytes(*option))).collect::<Vec<_>>().join(",")
}

/// The description in an `EFI_LOAD_OPTION`.
fn load_option(data: &[u8]) -> Option<String> {
    let mut cursor = Cursor::new(data);
    cursor.take(6).ok()?;
    utf16_until_nul(cursor.rest())
}

/// The file that an `UEFI_IMAGE_LOAD_EVENT`'s device path names, where it names one.
fn image_path(data: &[u8]) -> Option<String> {
    const MEDIA: u8 = 4;
    const FILE_PATH: u8 = 4;
    let mut cursor = Cursor::new(data);
    cursor.take(24).ok()?;
    let size = cursor.u64().ok()?;
    let mut path = Cursor::new(cursor.take(size).ok()?);
    while !path.is_empty() {
        let [kind, sub_kind] = path.array().ok()?;
        let size = u64::from(path.u16().ok()?).checked_sub(4)?;
        let body = path.take(size).ok()?;
        if kind == MEDIA && sub_kind == FILE_PATH {
            return utf16_until_nul(body);
        }
    }
    None
}

/// The name in front of a `UEFI_PLATFORM_FIRMWARE_BLOB2` or a `UEFI_HANDOFF_TABLE_POINTERS2`.
fn blob2_name(data: &[u8]) -> Option<String> {
    let mut cursor = Cursor::new(data);
    let size = cursor.u8().ok()?;
    ascii(cursor.take(u64::from(size)).ok()?)
}

/// Text in whichever of the two encodings firmware and boot loaders use: all of the data but terminators, or nothing.
pub(crate) fn text_of(data: &[u8]) -> Option<String> {
    // Text in UTF-16 has zeros in it where its letters are Latin; anything else of an even size could be taken for it.
    match data.as_chunks::<2>() {
        _ if data.len() > MAX_TEXT => None,
        ([[_, 0], ..], []) => utf16(data)
            .map(|text| text.trim_end_matches('\0').to_owned())
            .filter(|text| !text.is_empty() && text.chars().all(|c| !c.is_control())),
        _ => ascii(data),
    }
}

fn utf16_until_nul(bytes: &[u8]) -> Option<String> {
    let (units, _) = cut(bytes).as_chunks::<2>();
    let end = units.iter().position(|unit| *unit == [0, 0]).unwrap_or(units.len());
    let text = utf16(units.get(..end)?.as_flattened())?;
    (!text.is_empty()).then_some(text)
}

/// Printable UTF-8 with at most terminators behind it; `None` if it is not text or empty.
fn ascii(data: &[u8]) -> Option<String> {
    let end = data.iter().rposition(|byte| *byte != 0)?;
    let bytes = cut(data.get(..=end)?);
    let text = core::str::from_utf8(bytes).ok()?;
    let is_plain = bytes.iter().fold(true, |plain, byte| plain & matches!(byte, 0x20..0x7f));
    let is_text = || text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\t'));
    (is_plain || is_text()).then(|| text.to_owned())
}

/// The beginning of outside bytes, as far as a description repeats them.
fn cut(bytes: &[u8]) -> &[u8] {
    bytes.get(..MAX_TEXT).unwrap_or(bytes)
}
