//! Says in words what an event means, and how far its digest covers what it says.
//!
//! Words are for people and for choosing what to compare. Only what [`Coverage`] says is covered may be believed,
//! and that only after the log was replayed against a quote.

use super::coverage::{Coverage, grub_text};
use super::variable::utf16;
use super::{Cursor, Event, EventLog, EventType, Guid, SignatureDatabase, Variable};
use crate::key::Bank;

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
    /// A text or file that a boot loader measured.
    BootLoaderText,
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
        let (kind, words, text) = self.meaning();
        Description { kind, words, text, coverage: self.coverage(bank) }
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

    /// The file that an image's device path names.
    pub(crate) fn image_path(&self) -> Option<String> {
        image_path(self.data)
    }

    /// What a tagged event names, and its text.
    pub(crate) fn tagged(&self) -> Option<(EventKind, Option<String>)> {
        let (kind, _, text) = tagged(self.data);
        (self.event_type == EventType::EVENT_TAG).then_some((kind, text))
    }

    fn meaning(&self) -> (EventKind, String, Option<String>) {
        use EventKind as K;
        let (kind, words, text) = match self.event_type {
            EventType::NO_ACTION if self.data.starts_with(b"StartupLocality") => {
                (K::StartupLocality, "startup locality", None)
            }
            EventType::NO_ACTION => (K::Information, "information that extends no PCR", ascii(self.data)),
            EventType::SEPARATOR => match self.data {
                [0, 0, 0, 0] | [0xff, 0xff, 0xff, 0xff] => (K::Separator, "separator", None),
                _ => (K::Separator, "separator that reports an error", Some(hex::encode(cut(self.data)))),
            },
            EventType::S_CRTM_VERSION => (K::FirmwareVersion, "firmware version", text_of(self.data)),
            EventType::S_CRTM_CONTENTS | EventType::POST_CODE | EventType::POST_CODE2 => {
                (K::FirmwareCode, "firmware code", ascii(self.data))
            }
            EventType::EFI_PLATFORM_FIRMWARE_BLOB => (K::FirmwareCode, "firmware volume", None),
            EventType::EFI_PLATFORM_FIRMWARE_BLOB2 | EventType::EFI_SPDM_FIRMWARE_BLOB => {
                (K::FirmwareCode, "firmware volume", blob2_name(self.data))
            }
            EventType::EFI_HCRTM_EVENT => (K::FirmwareCode, "hardware root of trust for measurement", None),
            EventType::CPU_MICROCODE => (K::FirmwareData, "processor microcode", ascii(self.data)),
            EventType::PLATFORM_CONFIG_FLAGS | EventType::NONHOST_CONFIG => {
                (K::FirmwareData, "firmware configuration", text_of(self.data))
            }
            EventType::EFI_HANDOFF_TABLES | EventType::EFI_HANDOFF_TABLES2 | EventType::TABLE_OF_DEVICES => {
                (K::FirmwareData, "firmware tables", blob2_name(self.data))
            }
            EventType::EFI_BOOT_SERVICES_DRIVER | EventType::EFI_RUNTIME_SERVICES_DRIVER => {
                (K::Driver, "driver or option ROM", image_path(self.data))
            }
            EventType::EFI_BOOT_SERVICES_APPLICATION => {
                (K::BootImage, "boot loader or kernel image", image_path(self.data))
            }
            EventType::EFI_GPT_EVENT | EventType::EFI_GPT_EVENT2 => (K::PartitionTable, "partition table", None),
            EventType::EFI_ACTION | EventType::ACTION => return action(self.data),
            EventType::EFI_VARIABLE_DRIVER_CONFIG
            | EventType::EFI_VARIABLE_BOOT
            | EventType::EFI_VARIABLE_BOOT2
            | EventType::EFI_VARIABLE_AUTHORITY => return self.variable(),
            EventType::EVENT_TAG => return tagged(self.data),
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
        let text = text_of(self.data);
        match (self.pcr, text.as_deref()) {
            (14, Some(name)) => (K::MachineOwnerKeys, format!("shim's key list {name}"), text),
            (9, Some(path)) => (K::GrubFile, file_words(path).to_owned(), text),
            _ => (K::BootLoaderText, "measured by the boot loader".to_owned(), text),
        }
    }
}

/// GRUB logs a file's name only; what it is can be guessed from that, for words.
fn file_words(path: &str) -> &'static str {
    let name = path.rsplit('/').next().unwrap_or(path);
    if name.starts_with("vmlinuz") || name.starts_with("bzImage") || name.starts_with("linux") {
        "kernel file"
    } else if name.starts_with("initrd") || name.starts_with("initramfs") {
        "initrd"
    } else if matches!(name, "grub.cfg" | "custom.cfg" | "grubenv") {
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

/// Tagged events (`TCG_PCClientTaggedEvent`): the kernel's EFI stub names in them what it measured.
fn tagged(data: &[u8]) -> (EventKind, String, Option<String>) {
    const INITRD: u32 = 0x8f3b_22ec;
    const LOAD_OPTIONS: u32 = 0x8f3b_22ed;
    let mut cursor = Cursor::new(data);
    let id = cursor.u32().unwrap_or_default();
    let text = cursor.u32().ok().and_then(|size| cursor.take(u64::from(size)).ok()).and_then(text_of);
    match id {
        INITRD => (EventKind::StubInitrd, "initrd".to_owned(), text),
        LOAD_OPTIONS => (EventKind::StubCommandLine, "kernel command line".to_owned(), text),
        _ => (EventKind::BootLoaderText, format!("tagged event {id:#010x}"), text),
    }
}

/// What is in a database of keys.
fn database_words(content: &[u8]) -> String {
    SignatureDatabase::from_lists(content).map_or_else(|_| "unreadable".to_owned(), |database| database.to_string())
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

/// Text in whichever of the two encodings firmware and boot loaders use.
pub(crate) fn text_of(data: &[u8]) -> Option<String> {
    ascii(data).or_else(|| utf16_until_nul(data).filter(|text| text.chars().all(|c| !c.is_control())))
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
    let text = core::str::from_utf8(cut(data.get(..=end)?)).ok()?;
    text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\t')).then(|| text.to_owned())
}

/// The beginning of outside bytes, as far as a description repeats them.
fn cut(bytes: &[u8]) -> &[u8] {
    bytes.get(..MAX_TEXT).unwrap_or(bytes)
}
