//! Rules by which a slot accepts what nobody can list in advance. Each is about content that a digest covers; none
//! accepts by a name alone.

use core::fmt;
use core::str::FromStr;
use std::collections::BTreeSet;

use crate::eventlog::{Coverage, Event, EventType, Guid, Variable, kernel_arguments, text_of};
use crate::work;

/// Most entries of a boot order.
const MAX_BOOT_ORDER: usize = 128;

/// A rule on an event's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rule {
    /// The variable BootOrder: a list of option numbers, each once.
    BootOrder,
    /// A variable Boot####: a load option (UEFI Specification, 3.1.3) that gives its image no arguments.
    BootOption,
    /// A GUID partition table: its GUIDs differ on every machine.
    PartitionTable,
    /// A kernel's command line that the policy's rules accept. The policy must list what is allowed.
    CommandLine,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Self; 4] = [Self::BootOrder, Self::BootOption, Self::PartitionTable, Self::CommandLine];

    /// Its name in files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BootOrder => "boot-order",
            Self::BootOption => "boot-option",
            Self::PartitionTable => "partition-table",
            Self::CommandLine => "command-line",
        }
    }

    /// Whether it accepts an event: its digest covers its content, and the content is of the form that the rule says.
    pub(super) fn accepts(self, event: &Event<'_>, coverage: Coverage, command_line: &dyn Fn(&str) -> bool) -> bool {
        work::steps(event.data.len());
        match self {
            Self::BootOrder => variable(event, coverage).is_some_and(|variable| is_boot_order(&variable)),
            Self::BootOption => variable(event, coverage).is_some_and(|variable| is_boot_option(&variable)),
            Self::PartitionTable => coverage == Coverage::Data && is_partition_table(event.data),
            Self::CommandLine => arguments(event, coverage).is_some_and(|line| command_line(&line)),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Rule {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|rule| rule.as_str() == text).ok_or(())
    }
}

/// A variable of which a digest covers at least the content.
fn variable<'a>(event: &Event<'a>, coverage: Coverage) -> Option<Variable<'a>> {
    let covered = matches!(coverage, Coverage::Data | Coverage::Value);
    covered.then(|| Variable::parse(event.data).ok()).flatten()
}

fn is_boot_order(variable: &Variable<'_>) -> bool {
    let (options, rest) = variable.data.as_chunks::<2>();
    let mut seen = BTreeSet::new();
    variable.is(Guid::GLOBAL, "BootOrder")
        && rest.is_empty()
        && !options.is_empty()
        && options.len() <= MAX_BOOT_ORDER
        && options.iter().all(|option| seen.insert(option))
}

fn is_boot_option(variable: &Variable<'_>) -> bool {
    let name = variable.name();
    let is_name = variable.guid == Guid::GLOBAL
        && name
            .strip_prefix("Boot")
            .is_some_and(|digits| digits.len() == 4 && digits.bytes().all(|c| matches!(c, b'0'..=b'9' | b'A'..=b'F')));
    is_name && load_option_without_arguments(variable.data).is_some()
}

/// EFI_LOAD_OPTION: attributes, length of the device paths, description, device paths, and then what the image is given.
fn load_option_without_arguments(data: &[u8]) -> Option<()> {
    /// What EDK II puts there to mark options that it made itself; no image reads it.
    const MADE_BY_FIRMWARE: [u8; 16] =
        [0x4e, 0xac, 0x08, 0x81, 0x11, 0x9f, 0x59, 0x4d, 0x85, 0x0e, 0xe2, 0x1a, 0x52, 0x2c, 0x59, 0xb2];
    let (_attributes, rest) = data.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let (units, _) = rest.as_chunks::<2>();
    let description = units.iter().position(|unit| *unit == [0, 0])?.checked_add(1)?.checked_mul(2)?;
    let (paths, arguments) = rest.get(description..)?.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    (is_device_paths(paths) && (arguments.is_empty() || arguments == MADE_BY_FIRMWARE)).then_some(())
}

/// Nodes of at least four bytes each that say their length, from the first to the end of the last path.
fn is_device_paths(mut paths: &[u8]) -> bool {
    const END: [u8; 2] = [0x7f, 0xff];
    let mut ended = false;
    while let Some(([kind, sub_kind, low, high], _)) = paths.split_first_chunk::<4>() {
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        match paths.get(length..) {
            Some(rest) if length >= 4 => paths = rest,
            _ => return false,
        }
        ended = [*kind, *sub_kind] == END;
    }
    ended && paths.is_empty()
}

/// UEFI_GPT_DATA: the header, how many partitions there are, and their entries.
fn is_partition_table(data: &[u8]) -> bool {
    const HEADER: usize = 92;
    const ENTRY: u64 = 128;
    let Some((header, rest)) = data.split_at_checked(HEADER) else { return false };
    let Some((count, entries)) = rest.split_first_chunk::<8>() else { return false };
    let size = u64::from_le_bytes(*count).checked_mul(ENTRY);
    header.starts_with(b"EFI PART") && size == u64::try_from(entries.len()).ok()
}

/// The arguments of a kernel, where a digest covers them: GRUB puts the kernel's path before them.
fn arguments(event: &Event<'_>, coverage: Coverage) -> Option<String> {
    use crate::eventlog::EventKind;
    if event.event_type != EventType::IPL || !coverage.covers_text() {
        return None;
    }
    match event.grub_text_of_kind() {
        Some((EventKind::KernelCommandLine, line)) => kernel_arguments(line).map(str::to_owned),
        Some(_) => None,
        None => text_of(event.covered_data(coverage)),
    }
}

/// A text with holes: `{uuid}` (8-4-4-4-12 or 4-4 hexadecimal digits), `{hex}` (1 to 128 hexadecimal digits) and
/// `{number}` (1 to 20 digits). A hole takes as much as fits it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

/// One part of a pattern.
#[derive(Clone, Copy)]
enum Part<'p> {
    Literal(&'p str),
    Uuid,
    Hex,
    Number,
}

const HOLES: [(&str, Part<'static>); 3] = [("{uuid}", Part::Uuid), ("{hex}", Part::Hex), ("{number}", Part::Number)];

impl Pattern {
    /// A pattern. `None` without a hole or without anything else: that is a text, or says nothing.
    pub fn new(text: &str) -> Option<Self> {
        let pattern = Self(text.to_owned());
        let is_literal = |part: &Part<'_>| matches!(part, Part::Literal(text) if text.chars().any(|c| c != ' '));
        let literal = pattern.parts().any(|part| is_literal(&part));
        let hole = pattern.parts().any(|part| !matches!(part, Part::Literal(_)));
        (literal && hole).then_some(pattern)
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a text is of this pattern.
    pub fn matches(&self, text: &str) -> bool {
        work::steps(self.0.len());
        let rest = self.parts().try_fold(text, |rest, part| rest.get(length(part, rest)?..));
        rest == Some("")
    }

    fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let mut rest = self.0.as_str();
        core::iter::from_fn(move || {
            let first =
                HOLES.iter().filter_map(|(hole, part)| Some((rest.find(hole)?, hole, *part))).min_by_key(|f| f.0);
            match first {
                Some((0, hole, part)) => {
                    rest = rest.get(hole.len()..)?;
                    Some(part)
                }
                Some((at, ..)) => {
                    let (literal, behind) = rest.split_at_checked(at)?;
                    rest = behind;
                    Some(Part::Literal(literal))
                }
                None => (!rest.is_empty()).then(|| Part::Literal(core::mem::take(&mut rest))),
            }
        })
    }
}

/// How much of a text a part takes, in bytes.
fn length(part: Part<'_>, text: &str) -> Option<usize> {
    /// Most digits of a hole.
    const MOST: usize = 128;
    // Of a text that is longer one more is counted, not all.
    let digits =
        |text: &str, is_digit: fn(u8) -> bool| text.bytes().take(MOST + 1).take_while(|c| is_digit(*c)).count();
    let hex = |c: u8| c.is_ascii_hexdigit();
    match part {
        Part::Literal(literal) => text.starts_with(literal).then_some(literal.len()),
        Part::Hex => Some(digits(text, hex)).filter(|count| (1..=MOST).contains(count)),
        Part::Number => Some(digits(text, |c| c.is_ascii_digit())).filter(|count| (1..=20).contains(count)),
        Part::Uuid => [&[8, 4, 4, 4, 12][..], &[4, 4]].into_iter().find_map(|groups| {
            let mut at = 0_usize;
            for (index, group) in groups.iter().enumerate() {
                if index > 0 {
                    text.get(at..)?.starts_with('-').then_some(())?;
                    at = at.checked_add(1)?;
                }
                let found = digits(text.get(at..)?, hex);
                (found == *group).then_some(())?;
                at = at.checked_add(found)?;
            }
            Some(at)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eventlog::EventLog;
    use crate::eventlog::log_builder::{self, LogBuilder};
    use crate::key::Bank;

    #[test]
    fn patterns_take_what_fits_their_holes_and_nothing_else() {
        let matches = |pattern: &str, text: &str| Pattern::new(pattern).unwrap().matches(text);
        let search = "search --fs-uuid --set=root {uuid}";
        assert!(matches(search, "search --fs-uuid --set=root 0a1b2c3d-0000-1111-2222-333344445555"));
        assert!(matches(search, "search --fs-uuid --set=root 1A2B-3C4D"));
        for text in [
            "search --fs-uuid --set=root ",
            "search --fs-uuid --set=root 0a1b2c3d-0000-1111-2222-33334444555",
            "search --fs-uuid --set=root 0a1b2c3d-0000-1111-2222-3333444455556",
            "search --fs-uuid --set=root 1A2B-3C4D init=/bin/sh",
            "search --fs-uuid --set=root x",
            "earch --fs-uuid --set=root 1A2B-3C4D",
        ] {
            assert!(!matches(search, text), "{text}");
        }
        assert!(matches("a={number} b={hex}.", "a=017 b=0aF."));
        assert!(!matches("a={number} b={hex}.", "a=0x1 b=0aF."));
        assert!(matches("{number}{", "12{"));
        for text in ["", "plain", "{uuid}", "{uuid} {hex}", "{other}"] {
            assert_eq!(Pattern::new(text), None, "{text}");
        }
    }

    #[test]
    fn a_load_option_with_arguments_is_not_accepted() {
        let paths = [0x04, 0x04, 6, 0, 65, 0, 0x7f, 0xff, 4, 0];
        let option = |paths: &[u8], more: &[u8]| {
            let length = u16::try_from(paths.len()).unwrap().to_le_bytes();
            [&[1, 0, 0, 0][..], &length, b"d\0e\0\0\0", paths, more].concat()
        };
        assert!(load_option_without_arguments(&option(&paths, &[])).is_some());
        assert!(load_option_without_arguments(&option(&paths, b"\\\0e\0v\0i\0l\0")).is_none());
        assert!(load_option_without_arguments(&option(&paths[..6], &[])).is_none(), "a path without end");
        assert!(load_option_without_arguments(&option(&[0x04, 0x04, 0, 0], &[])).is_none(), "a node of no length");
        assert!(load_option_without_arguments(&option(&[], &[])).is_none());
        let whole = option(&paths, &[]);
        for end in 0..whole.len() {
            assert!(load_option_without_arguments(&whole[..end]).is_none(), "cut at {end}");
        }
    }

    /// Whether a rule accepts the only event of a log.
    fn accepts(rule: Rule, event_type: EventType, data: &[u8], measured: &[u8]) -> bool {
        let mut log = LogBuilder::new(&[Bank::Sha256]);
        let bytes = log.measure(8, event_type, data, measured).bytes();
        let log = EventLog::parse(&bytes).unwrap();
        let event = log.events().last().unwrap();
        rule.accepts(event, event.coverage(Bank::Sha256), &|line| line == "quiet")
    }

    #[test]
    fn a_boot_option_is_told_by_its_name_and_owner() {
        let option = [&[1, 0, 0, 0, 10, 0][..], b"d\0e\0\0\0", &[0x04, 0x04, 6, 0, 65, 0, 0x7f, 0xff, 4, 0]].concat();
        let accepted = |owner, name: &str| {
            let data = log_builder::variable(owner, name, &option);
            accepts(Rule::BootOption, EventType::EFI_VARIABLE_BOOT2, &data, &data)
        };
        assert!(accepted(Guid::GLOBAL, "Boot0001") && accepted(Guid::GLOBAL, "BootFFFF"));
        for name in ["Boot001", "Boot00001", "Boot000a", "BootNext", "Driver0001", ""] {
            assert!(!accepted(Guid::GLOBAL, name), "{name}");
        }
        assert!(!accepted(Guid::IMAGE_SECURITY, "Boot0001"));
    }

    #[test]
    fn a_command_line_by_rule_is_covered_and_of_a_boot_loader() {
        let (line, text) = (b"kernel_cmdline: /vmlinuz quiet\0", b"/vmlinuz quiet");
        assert!(accepts(Rule::CommandLine, EventType::IPL, line, text));
        assert!(!accepts(Rule::CommandLine, EventType::IPL, b"kernel_cmdline: /vmlinuz loud\0", b"/vmlinuz loud"));
        assert!(!accepts(Rule::CommandLine, EventType::IPL, line, b"/vmlinuz init=/bin/sh"), "covered by no digest");
        assert!(!accepts(Rule::CommandLine, EventType::ACTION, b"quiet", b"quiet"), "no text of a boot loader");
    }

    #[test]
    fn a_partition_table_has_the_entries_that_it_counts() {
        let table = |count: u64, entries: usize| {
            [&b"EFI PART"[..], &[0; 84], &count.to_le_bytes(), &vec![0; entries * 128]].concat()
        };
        assert!(is_partition_table(&table(2, 2)) && is_partition_table(&table(0, 0)));
        assert!(!is_partition_table(&table(3, 2)) && !is_partition_table(&table(u64::MAX, 0)));
        assert!(!is_partition_table(b"EFI PART"));
        assert!(!is_partition_table(&[0; 100]));
    }
}
