//! How far an event's digest covers what the event says: computed from the digest, never taken from the type.

use super::{Event, EventKind, EventType, Variable};
use crate::key::Bank;

/// How far an event's digest covers what the event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Coverage {
    /// The digest is that of all the event's data.
    Data,
    /// The digest is that of so many bytes of the event's data, with or without a terminator: some boot loaders log a
    /// byte more or less than they measure.
    Beginning(usize),
    /// The digest is that of the text behind the prefix that GRUB puts before it.
    Text,
    /// The digest is that of the variable's content, not of its name.
    Value,
    /// The digest is of something that is not in the log, such as a file: what the event says is a label.
    Nothing,
}

impl Coverage {
    /// A word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Beginning(_) => "beginning",
            Self::Text => "text",
            Self::Value => "value",
            Self::Nothing => "no",
        }
    }

    /// Whether the digest covers the event's text.
    pub const fn covers_text(self) -> bool {
        matches!(self, Self::Data | Self::Beginning(_) | Self::Text)
    }
}

impl<'a> Event<'a> {
    /// How far the digest of one bank covers what the event says.
    ///
    /// Hashes the data once, or a few times where the type allows more than one rule. The data of an image that was loaded
    /// only say where it came from, so they are not hashed at all.
    pub fn coverage(&self, bank: Bank) -> Coverage {
        self.coverage_beside(bank, self.text_of_grub().map(|(_, text)| text))
    }

    /// The text that GRUB logs in this event and its kind, if it is one of GRUB's. The digest covers it where
    /// [`Event::coverage_beside`] says [`Coverage::Text`].
    pub(crate) fn text_of_grub(&self) -> Option<(EventKind, &'a [u8])> {
        if self.event_type == EventType::IPL { grub_text(self.data) } else { None }
    }

    /// How far the digest of one bank covers an event of which is known what [`Event::text_of_grub`] is.
    pub(crate) fn coverage_beside(&self, bank: Bank, text: Option<&[u8]>) -> Coverage {
        let Some(digest) = self.digests.get(bank).filter(|_| self.extends()) else { return Coverage::Nothing };
        let Some(text) = text else { return self.coverage_of_data(bank, digest) };
        // Red Hat's GRUB hashes the terminator too.
        if bank.tail_of(text, &[b"", b"\0"], digest).is_some() {
            Coverage::Text
        } else if bank.is_digest_of(self.data, digest) {
            Coverage::Data
        } else {
            Coverage::Nothing
        }
    }

    /// The coverage of what is no text of GRUB's.
    fn coverage_of_data(&self, bank: Bank, digest: &[u8]) -> Coverage {
        let is = |data: &[u8]| bank.is_digest_of(data, digest);
        let is_all = || if is(self.data) { Coverage::Data } else { Coverage::Nothing };
        match self.event_type {
            // systemd-boot's texts are UTF-16; what others log here are names of files.
            EventType::IPL => match self.data {
                [_, 0, ..] => self.coverage_of_utf16(bank, digest),
                _ => is_all(),
            },
            EventType::EFI_VARIABLE_BOOT => match Variable::parse_prefix(self.data) {
                Ok((variable, _)) if is(variable.data) => Coverage::Value,
                _ => is_all(),
            },
            EventType::EFI_VARIABLE_DRIVER_CONFIG | EventType::EFI_VARIABLE_BOOT2 => {
                match Variable::parse_prefix(self.data) {
                    _ if is(self.data) => Coverage::Data,
                    Ok((variable, _)) if is(variable.data) => Coverage::Value,
                    _ => Coverage::Nothing,
                }
            }
            EventType::EFI_VARIABLE_AUTHORITY => match (Variable::parse_prefix(self.data), self.data) {
                // Old versions of shim log some bytes behind the variable, and measure all of them but the last.
                (Ok((_, [_, ..])), [front @ .., last]) => match bank.tail_of(front, &[&[*last], b""], digest) {
                    Some(0) => Coverage::Data,
                    Some(_) => Coverage::Beginning(front.len()),
                    None => Coverage::Nothing,
                },
                _ => is_all(),
            },
            EventType::EFI_BOOT_SERVICES_APPLICATION
            | EventType::EFI_BOOT_SERVICES_DRIVER
            | EventType::EFI_RUNTIME_SERVICES_DRIVER => Coverage::Nothing,
            _ => is_all(),
        }
    }

    /// Text that systemd-boot logs with a byte more or less of its terminator than it measures.
    fn coverage_of_utf16(&self, bank: Bank, digest: &[u8]) -> Coverage {
        let all = self.data.len();
        let (front, tails): (_, &[(&[u8], usize)]) = match self.data {
            [front @ .., 0, 0] => (front, &[(&[0, 0], 0), (&[0], 1), (&[], 2), (&[0, 0, 0], 1)]),
            [front @ .., 0] => (front, &[(&[0], 0), (&[], 1), (&[0, 0], 1)]),
            front => (front, &[(&[], 0)]),
        };
        let texts: Vec<&[u8]> = tails.iter().map(|(tail, _)| *tail).collect();
        let found = bank.tail_of(front, &texts, digest).and_then(|found| tails.get(found));
        match found {
            Some((_, 0)) => Coverage::Data,
            Some((_, cut)) => Coverage::Beginning(all.saturating_sub(*cut)),
            None => Coverage::Nothing,
        }
    }

    /// The part of the data that the digest covers, of an event with this coverage; empty if it covers none of it as it
    /// stands.
    pub(crate) fn covered_data(&self, coverage: Coverage) -> &'a [u8] {
        match coverage {
            Coverage::Data => self.data,
            Coverage::Beginning(size) => self.data.get(..size).unwrap_or_default(),
            Coverage::Text | Coverage::Value | Coverage::Nothing => &[],
        }
    }
}

/// Kind and text of an event in which GRUB logs text. The digest is that of the text without prefix and terminator;
/// what follows the terminator, as some old versions log it, no digest covers.
pub(super) fn grub_text(data: &[u8]) -> Option<(EventKind, &[u8])> {
    const LONGEST: usize = b"grub_kernel_cmdline".len();
    // Nearly all events have another first letter.
    if !matches!(data.first(), Some(b'g' | b'k' | b'm')) {
        return None;
    }
    let blank = data.iter().take(LONGEST.saturating_add(1)).position(|byte| *byte == b' ')?;
    let (prefix, text) = data.split_at_checked(blank)?;
    // Older versions wrote no colon.
    let kind = match prefix {
        b"grub_cmd:" | b"grub_cmd" => EventKind::GrubCommand,
        b"kernel_cmdline:" | b"kernel_cmdline" | b"grub_kernel_cmdline" => EventKind::KernelCommandLine,
        b"module_cmdline:" | b"module_cmdline" => EventKind::ModuleCommandLine,
        _ => return None,
    };
    let (_, text) = text.split_first()?;
    match text.split_last() {
        Some((0, text)) if !text.contains(&0) => Some((kind, text)),
        _ => text.split(|byte| *byte == 0).next().map(|text| (kind, text)),
    }
}
