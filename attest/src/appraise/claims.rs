//! From replayed logs to claims: what may be said of the boot, because digests cover it.
//!
//! An event is believed only as far as its digest covers what it says; its type is never covered. So each claim rests
//! on a digest, and what a log says in a way that no honest firmware would is a denial.

use super::replayed::ReplayedLog;
use super::separators;
use super::{RUNTIME_PCR, policy::STATIC_PCRS, programs};
use crate::eventlog::{Coverage, Event, EventKind, EventType, Guid, Variable, signature_lists};
use crate::evidence::PCR_COUNT;
use crate::key::Bank;
use crate::reason::{Reason, ReasonCode};

/// What the logs prove of a boot.
///
/// Made only by [`Claims::read`].
#[derive(Clone, Debug)]
pub struct Claims<'a> {
    replayed: ReplayedLog<'a>,
    bank: Bank,
    secure_boot: Option<bool>,
    command_line: Option<String>,
}

impl<'a> Claims<'a> {
    /// Reads the claims, resting on the digests of one bank.
    ///
    /// # Errors
    /// Everything that contradicts how firmware measures, and PCRs of the bank that were not quoted.
    pub fn read(replayed: ReplayedLog<'a>, bank: Bank) -> Result<Self, Vec<Reason>> {
        let quoted: Vec<_> = replayed.quote().banks().map(Bank::name).collect();
        if bank == Bank::Sha1 || !quoted.contains(&bank.name()) {
            let expected = if bank == Bank::Sha1 { "sha256 or stronger" } else { bank.name() };
            return Err(vec![Reason::new(ReasonCode::PolicyBank).expected(expected).found(quoted.join(", "))]);
        }
        // Also what else the log tells of must be quoted in this bank: another bank proves other digests.
        let is_extended = |pcr: u8| {
            pcr != RUNTIME_PCR
                && replayed.log().events().iter().any(|event| event.extends() && event.pcr == u32::from(pcr))
        };
        let missing: Vec<_> = (0..PCR_COUNT)
            .filter(|pcr| STATIC_PCRS.contains(pcr) || is_extended(*pcr))
            .filter(|pcr| replayed.quote().pcr(bank, *pcr).is_none())
            .map(|pcr| Reason::new(ReasonCode::PolicyPcr).pcr(pcr.into()).expected(format!("a quoted {bank} value")))
            .collect();
        if !missing.is_empty() {
            return Err(missing);
        }
        let events = replayed.log().events();
        let mut reasons: Vec<Reason> = events.iter().filter_map(|event| check_event(event, bank)).collect();
        reasons.extend(separators::check(events, bank));
        let secure_boot = secure_boot(events, bank, &mut reasons);
        let command_line = command_line(events, bank);
        reasons.extend(programs::check(&replayed, bank));
        if reasons.is_empty() { Ok(Self { replayed, bank, secure_boot, command_line }) } else { Err(reasons) }
    }

    /// The replayed logs.
    pub const fn replayed(&self) -> &ReplayedLog<'a> {
        &self.replayed
    }

    /// The bank on whose digests the claims rest.
    pub const fn bank(&self) -> Bank {
        self.bank
    }

    /// Whether Secure Boot was on; `None` if the firmware did not measure that.
    pub const fn secure_boot(&self) -> Option<bool> {
        self.secure_boot
    }

    /// The command line that GRUB gave the kernel, beginning with the kernel's path.
    pub fn command_line(&self) -> Option<&str> {
        self.command_line.as_deref()
    }
}

/// What can be wrong with an event by itself.
fn check_event(event: &Event<'_>, bank: Bank) -> Option<Reason> {
    let about = |code| Reason::new(code).pcr(event.pcr).event(event.describe(bank).words);
    if !event.extends() {
        // Renaming an event to this type would take it out of the replay while its text still reads as before.
        let forged = event.digests.iter().any(|(_, digest)| digest.iter().any(|byte| *byte != 0));
        return forged.then(|| about(ReasonCode::EventlogForgedNoAction).found(format!("event {}", event.number)));
    }
    if event.event_type == EventType::UNUSED {
        return Some(about(ReasonCode::EventlogUnknownEvent).found(event.event_type.to_string()));
    }
    let coverage = event.coverage(bank);
    let must_be_covered = matches!(
        event.event_type,
        EventType::SEPARATOR
            | EventType::ACTION
            | EventType::EFI_ACTION
            | EventType::EFI_VARIABLE_DRIVER_CONFIG
            | EventType::EFI_VARIABLE_BOOT2
            | EventType::EFI_GPT_EVENT
            | EventType::S_CRTM_VERSION
    );
    if must_be_covered && coverage != Coverage::Data {
        return Some(about(ReasonCode::EventlogDigestMismatch).found(format!("event {}", event.number)));
    }
    // GRUB's text is only believed with the digest of exactly that text; beside another digest it would mislead.
    if event.grub_text().is_some() && !coverage.covers_text() {
        let found = event.grub_text().unwrap_or_default();
        return Some(about(ReasonCode::EventlogTextNotCovered).found(found));
    }
    None
}

fn command_line(events: &[Event<'_>], bank: Bank) -> Option<String> {
    let mut lines = events.iter().filter(|event| {
        event.pcr == 8
            && event.coverage(bank) == Coverage::Text
            && event.describe(bank).kind == EventKind::KernelCommandLine
    });
    // Of several kernels that GRUB loaded, the last one was started.
    lines.next_back().and_then(Event::grub_text).map(str::to_owned)
}

/// The state of Secure Boot, from PCR 7 as far as the separator: what comes after it, an operating system could have
/// extended. Everything that would make the state ambiguous is a reason.
fn secure_boot(events: &[Event<'_>], bank: Bank, reasons: &mut Vec<Reason>) -> Option<bool> {
    const NAMES: [(Guid, &str); 5] = [
        (Guid::GLOBAL, "SecureBoot"),
        (Guid::GLOBAL, "PK"),
        (Guid::GLOBAL, "KEK"),
        (Guid::IMAGE_SECURITY, "db"),
        (Guid::IMAGE_SECURITY, "dbx"),
    ];
    let pcr7 = || events.iter().filter(|event| event.pcr == 7 && event.extends());
    let separators = separators::Separators::new(bank);
    let separator = pcr7().find(|event| separators.state(event).is_some()).map_or(0, |event| event.number);
    let mut seen: [Option<Variable<'_>>; 5] = Default::default();
    for event in pcr7().filter(|event| event.event_type == EventType::EFI_VARIABLE_DRIVER_CONFIG) {
        let about = |code| Reason::new(code).pcr(7).event(event.describe(bank).words);
        if event.coverage(bank) != Coverage::Data {
            continue; // Reported by `check_event`.
        }
        if event.number > separator {
            reasons.push(about(ReasonCode::EventlogAfterSeparator).found(format!("event {}", event.number)));
            continue;
        }
        let variable = match Variable::parse(event.data) {
            Ok(variable) => variable,
            Err(error) => {
                reasons.push(about(ReasonCode::SecureBootMalformed).found(error.to_string()));
                continue;
            }
        };
        let Some(place) = NAMES.iter().zip(&mut seen).find(|((guid, name), _)| variable.is(*guid, name)) else {
            continue;
        };
        let ((_, name), place) = place;
        if place.is_some() {
            reasons.push(about(ReasonCode::SecureBootRepeated));
        } else if *name != "SecureBoot"
            && let Err(error) = signature_lists(variable.data)
        {
            reasons.push(about(ReasonCode::SecureBootMalformed).found(error.to_string()));
        }
        *place = Some(variable);
    }
    let [state, keys @ ..] = &seen;
    let on = match state.as_ref()?.data {
        [1] => true,
        // The firmware measures a variable that it does not have with no content: it has no Secure Boot.
        [0] | [] => false,
        other => {
            let found = format!("{} bytes: {}", other.len(), hex::encode(other.get(..16).unwrap_or(other)));
            reasons.push(Reason::new(ReasonCode::SecureBootMalformed).pcr(7).event("Secure Boot state").found(found));
            return None;
        }
    };
    if on {
        for ((_, name), _) in NAMES.iter().skip(1).zip(keys).filter(|(_, key)| key.is_none()) {
            reasons.push(Reason::new(ReasonCode::SecureBootVariableMissing).pcr(7).event(*name));
        }
        for ((_, name), _) in NAMES
            .iter()
            .skip(1)
            .zip(keys)
            .filter(|((_, name), key)| *name != "dbx" && key.as_ref().is_some_and(|key| key.data.is_empty()))
        {
            reasons.push(Reason::new(ReasonCode::SecureBootVariableMissing).pcr(7).event(*name).found("empty"));
        }
        // The firmware verifies shim by db; only what a digest covers says so.
        let verified = pcr7().any(|event| {
            event.event_type == EventType::EFI_VARIABLE_AUTHORITY
                && event.coverage(bank) == Coverage::Data
                && Variable::parse(event.data).is_ok_and(|variable| variable.is(Guid::IMAGE_SECURITY, "db"))
        });
        if !verified {
            reasons.push(Reason::new(ReasonCode::SecureBootNoAuthority).pcr(7).event("Secure Boot on"));
        }
    }
    if let Some(event) = pcr7().find(|event| is_debug_mode(event, bank)) {
        reasons.push(Reason::new(ReasonCode::SecureBootDebugMode).pcr(7).event(event.describe(bank).words));
    }
    Some(on)
}

/// By its digest, under whatever type it stands.
fn is_debug_mode(event: &Event<'_>, bank: Bank) -> bool {
    [&b"UEFI Debug Mode"[..], b"UEFI Debug Mode\0"]
        .iter()
        .any(|text| event.digests.get(bank).is_some_and(|digest| digest == bank.hash(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eventlog::EventLog;

    /// What firmware and boot loaders really log must not look like an attack. Logs that are cut, that have SHA-1 only, or
    /// whose boot loader puts its text where firmware measures are left out.
    #[test]
    fn real_logs_contradict_nothing() {
        const NOT_WHOLE: [&str; 4] =
            ["misc-sb_cert.bin", "misc-short_no_action.bin", "hygon-sm3.bin", "misc-option_rom.bin"];
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus/eventlogs");
        if !corpus.is_dir() {
            eprintln!(
                "ATTENTION: no corpus of real logs at {}: claims of real logs were NOT checked",
                corpus.display()
            );
            return;
        }
        let mut states = Vec::new();
        for file in std::fs::read_dir(corpus).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if NOT_WHOLE.contains(&name.as_str()) {
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            let log = EventLog::parse(&bytes).unwrap();
            let bank = if log.banks().contains(&Bank::Sha256) { Bank::Sha256 } else { Bank::Sha1 };
            let mut reasons: Vec<_> = log.events().iter().filter_map(|event| check_event(event, bank)).collect();
            reasons.extend(separators::check(log.events(), bank));
            states.push((name.clone(), secure_boot(log.events(), bank, &mut reasons)));
            assert_eq!(reasons, [], "{name}");
        }
        let on: Vec<_> = states.iter().filter(|(_, on)| *on == Some(true)).map(|(name, _)| name.as_str()).collect();
        assert!(states.iter().all(|(_, state)| state.is_some()), "{states:?}");
        for name in ["gcp-rhel8-uefi.bin", "gcp-cos-101-amd-sev.bin", "tools-event-moklisttrusted.bin"] {
            assert!(on.contains(&name), "{name}");
        }
        assert!(!on.contains(&"gcp-ubuntu-2104-no-secure-boot.bin"));
    }
}
