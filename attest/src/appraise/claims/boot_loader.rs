//! What boot loaders measured: commands, files and command lines.

use super::covered::Covered;
use super::{Claim, Claims};
use crate::appraise::separators;
use crate::eventlog::{
    Coverage, EventKind, EventType, is_command, kernel_arguments, load_options, loader_arguments, text_of,
    without_quoting,
};
use crate::key::{Bank, Constant};
use crate::work;

/// The PCR of GRUB's commands.
const COMMANDS: u32 = 8;

/// The PCR of files that GRUB read, and of what the kernel's EFI stub was given.
const FILES: u32 = 9;

/// The PCR of a unified kernel image's sections.
const UKI: u32 = 11;

/// The PCR of what was given to a unified kernel image beside itself: its command line, and archives with credentials.
const UKI_PARAMETERS: u32 = 12;

/// The PCR of extensions that were given to a unified kernel image.
const EXTENSIONS: u32 = 13;

/// The sections that systemd-stub measures (UAPI specification of unified kernel images), with the bytes that it measures of
/// their names.
static SECTIONS: [(&str, Constant); 14] = [
    (".linux", Constant::new(b".linux\0")),
    (".osrel", Constant::new(b".osrel\0")),
    (".cmdline", Constant::new(b".cmdline\0")),
    (".initrd", Constant::new(b".initrd\0")),
    (".ucode", Constant::new(b".ucode\0")),
    (".splash", Constant::new(b".splash\0")),
    (".dtb", Constant::new(b".dtb\0")),
    (".dtbauto", Constant::new(b".dtbauto\0")),
    (".hwids", Constant::new(b".hwids\0")),
    (".efifw", Constant::new(b".efifw\0")),
    (".uname", Constant::new(b".uname\0")),
    (".sbat", Constant::new(b".sbat\0")),
    (".pcrpkey", Constant::new(b".pcrpkey\0")),
    (".profile", Constant::new(b".profile\0")),
];

/// What Windows' boot log ends with in each of its PCRs, under the type of a separator.
const WINDOWS_END: &[u8] = b"WBCL";

/// Who measured something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Measurer {
    /// GRUB, into PCRs 8 and 9.
    Grub,
    /// The Linux kernel's EFI stub, into PCR 9.
    KernelStub,
    /// systemd-boot or systemd-stub, into PCR 12 (old versions: 8).
    Systemd,
    /// The firmware or a boot loader that had it load an image, into PCR 4. Of a command line: load options that GRUB gave
    /// such an image, in PCR 8.
    Firmware,
}

/// A command line given to a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    /// Who measured it.
    pub measurer: Measurer,
    /// The text, where a digest covers it. GRUB's begins with the kernel's path, in which there is no blank or quote. The kernel's stub logs no text.
    pub text: Option<String>,
}

/// A text that a digest covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeasuredText<'a>(pub &'a str);

/// A file, of which the log has only the digest: [`Ground::digest`](super::Ground::digest).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeasuredFile {
    /// Who measured it.
    pub measurer: Measurer,
    /// The path that it has in the log. A label: no digest covers it.
    pub label: Option<String>,
}

/// A section of a unified kernel image. The claim rests on the digest of its content; that the event before it has the
/// digest of its name proves which section it is. No label does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UkiSection {
    /// Its name: `.linux`, `.initrd`, `.cmdline`.
    pub name: String,
}

impl CommandLine {
    /// Whether this claim's digest is that of the text, as the kernel's stub and systemd measure it: UTF-16 with its
    /// terminator.
    pub fn is_digest_of(text: &str, digest: &[u8], bank: Bank) -> bool {
        Self::digest(text, bank) == digest
    }

    /// The digest of a text, as the kernel's stub and systemd measure it.
    pub(in crate::appraise) fn digest(text: &str, bank: Bank) -> Vec<u8> {
        let utf16: Vec<u8> = text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
        bank.hash(&utf16)
    }
}

impl<'a> Claims<'a> {
    /// The commands that GRUB ran, in their order.
    pub fn grub_commands(&self) -> Vec<Claim<'a, MeasuredText<'a>>> {
        let command = |covered: Covered<'_, 'a>| {
            let (_, text) = covered.grub_text.filter(|(kind, _)| *kind == EventKind::GrubCommand)?;
            Some(covered.claim(MeasuredText(text)))
        };
        // Nearly all of them are: room for all at once.
        let all = self.log().of_pcr(COMMANDS);
        let mut commands = Vec::with_capacity(all.size_hint().1.unwrap_or_default());
        commands.extend(all.filter_map(command));
        commands
    }

    /// Every command line that was measured, whoever did so. A boot loader that loads several kernels starts the last
    /// one; a rule on arguments should hold for all. What GRUB writes before a text is a label, behind which a command line
    /// could be hidden as a command, and a command be shown as a command line: so every text of GRUB's counts that is not
    /// certainly a command, and what does not begin with a kernel's path has no text here. The load options that GRUB's
    /// `chainloader` gives an image count, too.
    ///
    /// In PCRs 8 and 12, any event whose text no digest covers counts: a label could hide a command line. So does a
    /// unified kernel image's `.cmdline`, of which the log has the digest alone.
    pub fn command_lines(&self) -> Vec<Claim<'a, CommandLine>> {
        let mut lines: Vec<_> = self.grub_lines().collect();
        lines.extend(self.log().of_pcr(FILES).filter_map(|covered| stub_line(&covered)));
        let sections = self.uki().into_iter().filter(|claim| claim.value.name == ".cmdline");
        lines.extend(sections.map(|claim| Claim {
            value: CommandLine { measurer: Measurer::Systemd, text: None },
            ground: claim.ground,
        }));
        lines.extend(self.log().of_pcr(UKI_PARAMETERS).filter_map(|covered| self.other_line(&covered)));
        lines.sort_by_key(|claim| claim.ground.event);
        lines
    }

    /// The command lines among what was measured into PCR 8.
    fn grub_lines(&self) -> impl DoubleEndedIterator<Item = Claim<'a, CommandLine>> {
        (0..self.log().count_of_pcr(COMMANDS)).filter_map(|place| self.grub_line(place))
    }

    /// What was measured into PCR 8 at this place, if it is a command line or may be one.
    fn grub_line(&self, place: usize) -> Option<Claim<'a, CommandLine>> {
        let at = |place| self.log().at_of_pcr(COMMANDS, place);
        let covered = &at(place)?;
        let text_of = |covered: &Covered<'_, 'a>| covered.grub_text.filter(|_| covered.coverage == Coverage::Text);
        let Some((kind, text)) = text_of(covered) else { return self.other_line(covered) };
        // What the loader's command just before was given.
        let given = || text_of(&at(place.checked_sub(1)?)?).and_then(|(_, text)| loader_arguments(text));
        let repeats = || given().is_some_and(|given| without_quoting(given).eq(without_quoting(text)));
        if kind == EventKind::KernelCommandLine || !is_command(text) || repeats() {
            let text = kernel_arguments(text).is_some().then(|| text.to_owned());
            return Some(covered.claim(CommandLine { measurer: Measurer::Grub, text }));
        }
        let text = load_options(text)?.to_owned();
        Some(covered.claim(CommandLine { measurer: Measurer::Firmware, text: Some(text) }))
    }

    /// What is not certainly something else than a command line: a separator, or Windows' own events, which a digest covers.
    fn other_line(&self, covered: &Covered<'_, 'a>) -> Option<Claim<'a, CommandLine>> {
        let event = covered.event;
        let is_known =
            !covered.is(EventType::IPL) && (separators::state(event, self.bank()).is_some() || is_of_windows(covered));
        let text = || text_of(event.covered_data(covered.coverage));
        (!is_known).then(|| covered.claim(CommandLine { measurer: Measurer::Systemd, text: text() }))
    }

    /// The command line of the kernel that was started: the last whose text a digest covers; without any, the last.
    pub fn command_line(&self) -> Option<Claim<'a, CommandLine>> {
        // Only what GRUB and systemd measured has a text; of each the last is looked for from the end.
        let of_systemd = || self.log().of_pcr(UKI_PARAMETERS).filter_map(|covered| self.other_line(&covered));
        let has_text = |claim: &Claim<'_, CommandLine>| claim.value.text.is_some();
        let last = [self.grub_lines().rfind(has_text), of_systemd().rfind(has_text)];
        let last = last.into_iter().flatten().max_by_key(|claim| claim.ground.event);
        last.or_else(|| self.command_lines().pop())
    }

    /// What may be the kernel: files that GRUB read under a kernel's name, the last image that was loaded, and a unified
    /// kernel image's `.linux`. A rule on kernels should hold for all.
    ///
    /// **What is left:** the running system can extend PCR 4 with one more image, which is the last one then. Nothing in
    /// PCR 4 marks the end of the boot: the firmware measures `Exit Boot Services Invocation` into PCR 5, and where that
    /// stands among PCR 4's events the attester says. Nor does a digest tell a boot loader, which may come before the
    /// kernel, from a kernel. Only reference values without an optional slot at the end of PCR 4 exclude it.
    pub fn kernel(&self) -> Vec<Claim<'a, MeasuredFile>> {
        let file = |measurer, label| MeasuredFile { measurer, label };
        let mut kernels = self.grub_files("kernel file");
        let image = self.images().pop();
        kernels.extend(
            image.map(|claim| Claim { value: file(Measurer::Firmware, claim.value.label), ground: claim.ground }),
        );
        let sections = self.uki().into_iter().filter(|claim| claim.value.name == ".linux");
        kernels.extend(
            sections
                .map(|claim| Claim { value: file(Measurer::Systemd, Some(claim.value.name)), ground: claim.ground }),
        );
        kernels
    }

    /// What may be the initrd: files that GRUB read under an initrd's name, what the kernel's stub was given, a unified
    /// kernel image's `.initrd`, and the archives with extensions that were put behind it. A rule on initrds should hold
    /// for all.
    pub fn initrd(&self) -> Vec<Claim<'a, MeasuredFile>> {
        let mut initrds = self.grub_files("initrd");
        let stub = |covered: Covered<'_, 'a>| {
            let (kind, label) = covered.event.tagged()?;
            let value = MeasuredFile { measurer: Measurer::KernelStub, label };
            (kind == EventKind::StubInitrd).then(|| covered.claim(value))
        };
        initrds.extend(self.log().of_pcr(FILES).filter_map(stub));
        let sections = self.uki().into_iter().filter(|claim| claim.value.name == ".initrd");
        let section = |claim: Claim<'a, UkiSection>| Claim {
            value: MeasuredFile { measurer: Measurer::Systemd, label: Some(claim.value.name) },
            ground: claim.ground,
        };
        initrds.extend(sections.map(section));
        let extension = |covered: Covered<'_, 'a>| {
            let value = MeasuredFile { measurer: Measurer::Systemd, label: covered.event.label() };
            covered.is(EventType::IPL).then(|| covered.claim(value))
        };
        initrds.extend(self.log().of_pcr(EXTENSIONS).filter_map(extension));
        initrds
    }

    /// The sections of a unified kernel image, in the order in which its stub measured them: the name with its terminator,
    /// then the content. By digests alone: whatever follows the digest of a name is that section's content, whatever type
    /// and label it has. A section whose name is not one of the specification's is told by its label as well.
    pub fn uki(&self) -> Vec<Claim<'a, UkiSection>> {
        let mut sections = Vec::new();
        let mut name: Option<String> = None;
        for covered in self.log().of_pcr(UKI) {
            work::steps(1);
            // A content that has the digest of a name is both: then no label and no shift by one hides a section.
            let next = self.section_name(&covered);
            let before = std::mem::replace(&mut name, next);
            sections.extend(before.map(|name| covered.claim(UkiSection { name })));
        }
        sections
    }

    /// The name of a section, if an event's digest is that of one.
    fn section_name(&self, covered: &Covered<'_, 'a>) -> Option<String> {
        let known = SECTIONS.iter().find(|(_, constant)| constant.has_digest(self.bank(), covered.digest));
        if let Some((name, _)) = known {
            return Some((*name).to_owned());
        }
        let label = covered.event.label().filter(|label| label.starts_with('.'))?;
        (self.bank().hash_parts(&[label.as_bytes(), b"\0"]) == covered.digest).then_some(label)
    }

    fn grub_files(&self, words: &str) -> Vec<Claim<'a, MeasuredFile>> {
        let file = |covered: Covered<'_, 'a>| {
            let label = covered.event.grub_file(words)?;
            Some(covered.claim(MeasuredFile { measurer: Measurer::Grub, label: Some(label) }))
        };
        self.log().of_pcr(FILES).filter_map(file).collect()
    }
}

/// Whether an event is of Windows' own boot log: tagged events, and the mark at its end. By what a digest covers.
pub(super) fn is_of_windows(covered: &Covered<'_, '_>) -> bool {
    let data = covered.event.data;
    covered.coverage == Coverage::Data && (data == WINDOWS_END || covered.event.is_whole_tagged())
}

/// What the kernel's stub was given.
fn stub_line<'a>(covered: &Covered<'_, 'a>) -> Option<Claim<'a, CommandLine>> {
    let (kind, _) = covered.event.tagged()?;
    let line = CommandLine { measurer: Measurer::KernelStub, text: None };
    (kind == EventKind::StubCommandLine).then(|| covered.claim(line))
}
