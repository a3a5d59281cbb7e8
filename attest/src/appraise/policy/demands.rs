//! What a policy demands of the claims, whatever the reference values accept.

use std::cell::LazyCell;
use std::collections::HashSet;

use super::super::claims::{Claim, Claims, CommandLine, Ground, Measurer};
use super::super::{MAX_REASONS, RUNTIME_PCR};
use super::{Policy, PreparedRules};
use crate::eventlog::{Coverage, Event, EventType, SignatureDatabase, kernel_arguments};
use crate::reason::{Reason, ReasonCode};
use crate::work;

/// The PCR of Secure Boot.
const SECURE_BOOT: u32 = 7;

/// The PCR of GRUB's commands, and of the command lines that it gives kernels.
const COMMANDS: u32 = 8;

/// The PCR of files that GRUB read.
const FILES: u32 = 9;

/// Most command lines that are judged. A boot loader that starts one kernel measures some few.
const MAX_LINES: usize = 64;

/// Longest command line, with its path, of which it is asked whether the kernel's stub measured it too. The kernel reads
/// 2047 bytes of arguments.
const MAX_LINE: usize = 8192;

/// Whether Secure Boot is not on although the policy demands it.
pub(in super::super) fn secure_boot_denied(claims: &Claims<'_>, policy: &Policy) -> bool {
    policy.secure_boot && claims.secure_boot().is_none_or(|claim| !claim.value)
}

/// What the policy demands, as far as it can be judged without reference values.
#[derive(Default)]
pub(in super::super) struct Judgement<'a> {
    /// Everything that the policy demands and the claims do not show.
    pub reasons: Vec<Reason>,
    /// Command lines that the policy's rules cannot be applied to.
    pub unclear: Vec<UnclearLine<'a>>,
}

/// A command line whose arguments cannot be told for certain: its text is not in the log, or programs split it differently.
/// It can be accepted only by the value that the reference values list.
pub(in super::super) struct UnclearLine<'a> {
    /// The event that it rests on.
    pub ground: Ground<'a>,
    /// Who measured it.
    pub measurer: Measurer,
    /// Why the rules cannot be applied, as the reason that stands if the reference values do not list it.
    pub reason: Reason,
}

/// Everything that the policy demands and the claims do not show.
pub(in super::super) fn check<'a>(claims: &Claims<'a>, policy: &Policy, rules: &PreparedRules<'_>) -> Judgement<'a> {
    let mut unclear = Vec::new();
    let mut reasons = Vec::new();
    let host = &claims.replayed().quote().binding().host;
    if !policy.is_for(host) {
        reasons.push(Reason::new(ReasonCode::PolicyHost).expected(policy.hosts.join(" | ")).found(host));
    }
    if policy.certified_ek && !claims.replayed().quote().is_ek_certified() {
        reasons.push(Reason::new(ReasonCode::EkNotCertified));
    }
    if secure_boot_denied(claims, policy) {
        let (code, event, found) = match claims.secure_boot() {
            Some(_) => (ReasonCode::SecureBootDisabled, "Secure Boot off", "off"),
            None => (ReasonCode::SecureBootUnknown, "Secure Boot state", "not measured"),
        };
        reasons.push(Reason::new(code).pcr(SECURE_BOOT).event(event).expected("on").found(found));
    }
    reasons.extend(ima(claims, policy));
    if !policy.boot_signers.is_empty() {
        reasons.extend(boot_signers(claims, policy));
    }
    if !policy.kernels.is_empty() {
        reasons.extend(kernels(claims, policy));
    }
    if !policy.command_line.is_empty() {
        reasons.extend(command_lines(claims, rules, &mut unclear));
    }
    reasons.extend(dbx(claims, policy));
    reasons.extend(super::shim::check(claims, policy));
    reasons.extend(firmware(claims, policy));
    Judgement { reasons, unclear }
}

fn ima(claims: &Claims<'_>, policy: &Policy) -> Option<Reason> {
    let about = |code| Some(Reason::new(code).pcr(RUNTIME_PCR.into()));
    let replayed = claims.replayed();
    if policy.ima && replayed.ima_bank().is_none() {
        about(ReasonCode::PolicyPcr)
    } else if policy.ima && replayed.ima().is_empty() && replayed.ima_from() == 0 {
        about(ReasonCode::ImaMissing)
    } else {
        None
    }
}

/// Whatever verified anything must be one of the policy's signers. Which of several it was that verified an image no
/// digest says; so the rule is for all.
fn boot_signers(claims: &Claims<'_>, policy: &Policy) -> Vec<Reason> {
    let expected = || policy.boot_signers.iter().map(hex::encode).collect::<Vec<_>>().join(" | ");
    let reason = |found: String| Reason::new(ReasonCode::PolicyBootSigner).pcr(SECURE_BOOT).found(found);
    if claims.secure_boot().is_none_or(|claim| !claim.value) {
        return vec![reason("Secure Boot is not on: nothing was verified".to_owned()).expected(expected())];
    }
    let (authorities, unread) = claims.authorities_and_unread();
    if authorities.is_empty() {
        return vec![reason("nothing that a digest covers".to_owned()).expected(expected())];
    }
    let signers: HashSet<_> = policy.boot_signers.iter().collect();
    let unknown = authorities.iter().filter(|claim| !is_known(&claim.value.entry, &signers));
    let unknown = unknown.map(|claim| shown(&claim.value.entry));
    // What verified something in a way that cannot be read must not be overlooked.
    let unread = unread.into_iter().map(|number| {
        format!("event {number}, which is neither a certificate nor the digest of an image that a digest covers")
    });
    let found = unknown.chain(unread).inspect(|_| work::steps(1)).take(MAX_REASONS);
    let expected = LazyCell::new(expected);
    found.map(|found| reason(found).expected(&*expected)).collect()
}

fn shown(entry: &SignatureDatabase) -> String {
    let certificates = entry.certificates().iter().map(|certificate| {
        let subject = certificate.subject.as_deref().unwrap_or("no subject");
        format!("{} ({subject})", hex::encode(certificate.fingerprint))
    });
    certificates.chain(entry.sha256().iter().map(hex::encode)).collect::<Vec<_>>().join(", ")
}

fn is_known(entry: &SignatureDatabase, signers: &HashSet<&[u8; 32]>) -> bool {
    let certificates = entry.certificates().iter().map(|certificate| &certificate.fingerprint);
    !entry.is_empty()
        && entry.others() == 0
        && certificates.chain(entry.sha256()).all(|digest| signers.contains(digest))
}

/// All that may be the kernel must be one of the policy's.
fn kernels(claims: &Claims<'_>, policy: &Policy) -> Vec<Reason> {
    let kernels = claims.kernel();
    let expected = LazyCell::new(|| policy.kernels.iter().map(hex::encode).collect::<Vec<_>>().join(" | "));
    let reason = || Reason::new(ReasonCode::PolicyKernel).event("kernel").expected(&*expected);
    if kernels.is_empty() {
        return vec![reason().found("no kernel was measured")];
    }
    // What GRUB read is told apart by names alone, which no digest covers. It reads its kernel as it reads all else; so
    // where it read anything, something must be called the kernel, and is one of the policy's.
    let is_file = |event: &Event<'_>| event.pcr == FILES && event.event_type == EventType::IPL;
    let read_any = claims.replayed().log().events().iter().any(is_file);
    let by = |measurer| kernels.iter().any(|claim| claim.value.measurer == measurer);
    // Unless it had the firmware start an image, which is a kernel then, such as a unified one.
    let an_image = || grub_only_chain_loads(claims) && by(Measurer::Firmware);
    if read_any && !by(Measurer::Grub) && !an_image() {
        return vec![reason().pcr(FILES).found("files that GRUB read, none of which is called a kernel")];
    }
    // Each kernel that GRUB loads gets a command line, which digests show. One whose file has another name has one too.
    let of_grub = kernels.iter().filter(|claim| claim.value.measurer == Measurer::Grub).count();
    let lines = claims.command_lines().iter().filter(|claim| claim.value.measurer == Measurer::Grub).count();
    if lines > of_grub && !an_image() {
        let found =
            format!("{lines} command lines of GRUB's, and {of_grub} of the files that it read are called a kernel");
        return vec![reason().pcr(FILES).found(found)];
    }
    let known: HashSet<_> = policy.kernels.iter().map(Vec::as_slice).collect();
    let others = kernels.iter().filter(|claim| !known.contains(claim.ground.digest));
    others
        .take(MAX_REASONS)
        .map(|claim| {
            let label = claim.value.label.as_deref().unwrap_or("no label");
            let found = format!("{} (labelled {label})", hex::encode(claim.ground.digest));
            reason().pcr(claim.ground.pcr).found(found)
        })
        .collect()
}

/// Whether GRUB started an image (`chainloader`) and no kernel of its own. A kernel that it starts itself gets a command
/// line, which it measures; so digests must cover all its texts, and none is a command line.
fn grub_only_chain_loads(claims: &Claims<'_>) -> bool {
    let mut events = claims.replayed().log().events().iter().filter(|event| event.pcr == COMMANDS);
    let is_text =
        |event: &Event<'_>| event.event_type != EventType::IPL || claims.coverage(event.number) == Coverage::Text;
    let commands = claims.grub_commands();
    let is_chain_loader = |command: &str| command.split(' ').next() == Some("chainloader");
    events.all(is_text)
        && commands.iter().any(|claim| is_chain_loader(claim.value.0))
        && claims.command_lines().iter().all(|claim| claim.value.measurer != Measurer::Grub)
}

/// The rules hold for every command line that was measured: of several kernels only one was started.
fn command_lines<'a>(
    claims: &Claims<'a>,
    rules: &PreparedRules<'_>,
    unclear: &mut Vec<UnclearLine<'a>>,
) -> Vec<Reason> {
    let lines = claims.command_lines();
    let reason = |found: &str| Reason::new(ReasonCode::PolicyCommandLine).event("kernel command line").found(found);
    if lines.is_empty() {
        return vec![reason("no command line was measured")];
    }
    if lines.len() > MAX_LINES {
        return vec![reason(&format!("{} command lines, at most {MAX_LINES} are judged", lines.len()))];
    }
    let mut reasons = Vec::new();
    let digests = LazyCell::new(|| digests_of(claims, &lines));
    for claim in &lines {
        let reason = match arguments_of(&claim.value) {
            Some(line) => match rules.judge(line) {
                Ok(found) => {
                    reasons.extend(found.into_iter().map(|reason| reason.pcr(claim.ground.pcr)));
                    // It is denied, and nobody reads more.
                    if reasons.len() >= MAX_REASONS {
                        break;
                    }
                    continue;
                }
                Err(reason) => reason,
            },
            None if digests.contains(claim.ground.digest) => continue,
            None => reason("a command line that is not a text that a digest covers, behind a plain path"),
        };
        let reason = reason.pcr(claim.ground.pcr);
        unclear.push(UnclearLine { ground: claim.ground, measurer: claim.value.measurer, reason });
    }
    reasons
}

impl UnclearLine<'_> {
    /// What is wrong with it where the reference values list its digest, with or without the text that it is of. With the
    /// text the rules can be applied; where they cannot, that it is listed is enough.
    pub fn if_listed(&self, text: Option<&str>, rules: &PreparedRules<'_>) -> Vec<Reason> {
        let text = text.and_then(|text| match self.measurer {
            Measurer::Grub => kernel_arguments(text),
            Measurer::KernelStub | Measurer::Systemd | Measurer::Firmware => Some(text),
        });
        let found = text.and_then(|text| rules.judge(text).ok()).unwrap_or_default();
        found.into_iter().map(|reason| reason.pcr(self.ground.pcr)).collect()
    }
}

/// What the kernel reads of a measured line: GRUB puts the kernel's path before it.
fn arguments_of(line: &CommandLine) -> Option<&str> {
    let text = line.text.as_deref()?;
    match line.measurer {
        Measurer::Grub => kernel_arguments(text),
        Measurer::KernelStub | Measurer::Systemd | Measurer::Firmware => Some(text),
    }
}

/// The digests that the kernel's stub may show of the lines that have a text: it logs none, but measures what the boot
/// loader measured, too.
fn digests_of(claims: &Claims<'_>, lines: &[Claim<'_, CommandLine>]) -> HashSet<Vec<u8>> {
    let texts = lines.iter().filter_map(|line| line.value.text.as_deref().zip(arguments_of(&line.value)));
    // A longer one is refused by its text.
    let texts = texts.filter(|(whole, _)| whole.len() <= MAX_LINE).flat_map(|(whole, arguments)| [whole, arguments]);
    let digests = texts.flat_map(|text| {
        let with_image = text.split_once(' ').map(|(path, arguments)| format!("BOOT_IMAGE={path} {arguments}"));
        let digest = |text: &str| CommandLine::digest(text, claims.bank());
        [Some(digest(text)), with_image.map(|text| digest(&text))]
    });
    digests.flatten().collect()
}

fn dbx(claims: &Claims<'_>, policy: &Policy) -> Vec<Reason> {
    if policy.dbx.minimum.is_empty() {
        return Vec::new();
    }
    let reason = |found: &str| Reason::new(ReasonCode::PolicyDbx).pcr(SECURE_BOOT).event("dbx").found(found);
    let Some(dbx) = claims.dbx() else { return vec![reason("not measured")] };
    let certificates: HashSet<_> = dbx.value.certificates().iter().map(|known| &known.fingerprint).collect();
    let is_revoked = |digest: &&[u8; 32]| dbx.value.has_sha256(&digest[..]) || certificates.contains(*digest);
    let missing: Vec<_> = policy.dbx.minimum.iter().filter(|digest| !is_revoked(digest)).collect();
    let Some(first) = missing.first() else { return Vec::new() };
    let found = format!("{} of {} are not revoked", missing.len(), policy.dbx.minimum.len());
    vec![reason(&found).expected(format!("{}, among others", hex::encode(first)))]
}

fn firmware(claims: &Claims<'_>, policy: &Policy) -> Vec<Reason> {
    let rules = &policy.firmware;
    let mut reasons = Vec::new();
    // Firmware measures only that it did not protect memory.
    if let Some(claim) = claims.dma_protection().filter(|claim| rules.dma_protection && !claim.value) {
        let reason = Reason::new(ReasonCode::PolicyDmaProtection).pcr(claim.ground.pcr);
        reasons.push(reason.event("DMA protection").found(format!("disabled, event {}", claim.ground.event)));
    }
    if !rules.versions.is_empty() {
        let version = claims.firmware_version().map(|claim| claim.value.text);
        if !version.as_ref().is_some_and(|version| rules.versions.contains(version)) {
            let reason = Reason::new(ReasonCode::PolicyFirmwareVersion).pcr(0).event("firmware version");
            let found = version.unwrap_or_else(|| "not measured".to_owned());
            reasons.push(reason.expected(rules.versions.join(" | ")).found(found));
        }
    }
    if let Some(accepted) = &rules.option_roms {
        let roms = claims.option_roms();
        let known: HashSet<_> = accepted.iter().map(Vec::as_slice).collect();
        let others = roms.iter().filter(|claim| !known.contains(claim.ground.digest));
        reasons.extend(others.take(MAX_REASONS).map(|claim| {
            let label = claim.value.label.as_deref().unwrap_or("no label");
            let reason = Reason::new(ReasonCode::PolicyOptionRom).pcr(claim.ground.pcr).event("option ROM");
            reason.found(format!("{} (labelled {label})", hex::encode(claim.ground.digest)))
        }));
    }
    reasons
}
