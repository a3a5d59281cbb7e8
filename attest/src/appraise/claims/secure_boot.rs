//! Secure Boot's state and its databases of keys.

use std::sync::Arc;

use super::Claim;
use super::covered::{Covered, CoveredLog};
use crate::appraise::MAX_REASONS;
use crate::appraise::separators::Separators;
use crate::eventlog::{CertificateCache, Coverage, EventType, Form, Guid, SignatureDatabase, Variable};
use crate::key::Constant;
use crate::reason::{Reason, ReasonCode};

/// The PCR of Secure Boot.
const PCR: u32 = 7;

/// The state, and then the databases.
const NAMES: [(Guid, &str); 5] = [
    (Guid::GLOBAL, "SecureBoot"),
    (Guid::GLOBAL, "PK"),
    (Guid::GLOBAL, "KEK"),
    (Guid::IMAGE_SECURITY, "db"),
    (Guid::IMAGE_SECURITY, "dbx"),
];

/// What firmware measures beside [`NAMES`] and verifies no image by (PC Client Platform Firmware Profile 1.06, section
/// 3.3.4.8).
const OTHER_NAMES: [(Guid, &str); 4] = [
    (Guid::GLOBAL, "AuditMode"),
    (Guid::GLOBAL, "DeployedMode"),
    (Guid::IMAGE_SECURITY, "dbt"),
    (Guid::IMAGE_SECURITY, "dbr"),
];

/// What PCR 7 says of Secure Boot, as far as its separator: what comes after it, an operating system could have extended.
#[derive(Clone, Debug, Default)]
pub(super) struct SecureBoot<'a> {
    state: Option<Claim<'a, bool>>,
    databases: [Option<Claim<'a, Arc<SignatureDatabase>>>; 4],
}

impl<'a> SecureBoot<'a> {
    /// Everything that would make the state ambiguous is a reason.
    pub fn read(
        log: CoveredLog<'_, 'a>,
        separators: &Separators,
        certificates: &CertificateCache,
        reasons: &mut Vec<Reason>,
    ) -> Self {
        let mut found = Self::default();
        let measured = variables(log, separators, reasons);
        for Measured { place, covered, variable } in &measured {
            let Some(slot) = place.checked_sub(1).and_then(|place| found.databases.get_mut(place)) else {
                found.state = state(covered, variable, reasons);
                continue;
            };
            match certificates.database(Form::Lists, log.bank, covered.digest, variable.data) {
                Ok(database) => *slot = Some(covered.claim(database)),
                Err(error) => {
                    let words = covered.event.words();
                    let reason = Reason::new(ReasonCode::SecureBootMalformed).pcr(PCR).event(words);
                    reasons.push(reason.found(error.to_string()));
                }
            }
        }
        if found.state.as_ref().is_some_and(|state| state.value) {
            found.check_keys(&measured, reasons);
            check_authority(log, reasons);
        }
        if let Some(debug) = log.of_pcr(PCR).find(is_debug_mode(log)) {
            let words = debug.event.words();
            reasons.push(Reason::new(ReasonCode::SecureBootDebugMode).pcr(PCR).event(words));
        }
        found
    }

    /// Secure Boot that is on has keys.
    fn check_keys(&self, measured: &[Measured<'_, '_>], reasons: &mut Vec<Reason>) {
        for (place, (_, name)) in NAMES.iter().enumerate().skip(1) {
            let missing = Reason::new(ReasonCode::SecureBootVariableMissing).pcr(PCR).event(*name);
            let database = place.checked_sub(1).and_then(|place| self.databases.get(place)).and_then(Option::as_ref);
            if measured.iter().all(|measured| measured.place != place) {
                reasons.push(missing);
            } else if *name != "dbx" && database.is_some_and(|claim| claim.value.is_empty()) {
                // Nothing need be revoked, but somebody must be trusted.
                reasons.push(missing.found("empty"));
            }
        }
    }

    pub fn state(&self) -> Option<Claim<'a, bool>> {
        self.state.clone()
    }

    pub fn platform_key(&self) -> Option<Claim<'a, Arc<SignatureDatabase>>> {
        self.databases[0].clone()
    }

    pub fn exchange_keys(&self) -> Option<Claim<'a, Arc<SignatureDatabase>>> {
        self.databases[1].clone()
    }

    pub fn db(&self) -> Option<Claim<'a, Arc<SignatureDatabase>>> {
        self.databases[2].clone()
    }

    pub fn dbx(&self) -> Option<Claim<'a, Arc<SignatureDatabase>>> {
        self.databases[3].clone()
    }
}

/// Whether an event is a variable by which no image was verified, as its digest shows.
///
/// The entry of db by which an image was verified has db's name, too, so there the type must tell: a second db of that type
/// is a denial, and so is one that is no list. Devices' firmware is verified by a database of its own name, whose content and
/// entries are both measured.
pub(super) fn is_configuration(covered: &Covered<'_, '_>) -> bool {
    let Some(variable) = covered.variable() else { return false };
    let is_named = |names: &[(Guid, &str)]| names.iter().any(|(guid, name)| variable.is(*guid, name));
    let is_config = covered.is(EventType::EFI_VARIABLE_DRIVER_CONFIG);
    let is_of_devices =
        matches!(covered.event.event_type, EventType::EFI_SPDM_DEVICE_POLICY | EventType::EFI_SPDM_DEVICE_AUTHORITY);
    is_config && (is_named(&NAMES) || is_named(&OTHER_NAMES))
        || is_of_devices && variable.is(Guid::DEVICE_SIGNATURE, "devdb")
}

/// Secure Boot that is on verified something: the firmware verifies shim by db. Only what a digest covers says so.
fn check_authority(log: CoveredLog<'_, '_>, reasons: &mut Vec<Reason>) {
    let verified = log.of_pcr(PCR).any(|covered| {
        covered.is(EventType::EFI_VARIABLE_AUTHORITY)
            && covered.coverage == Coverage::Data
            && Variable::parse(covered.event.data).is_ok_and(|variable| variable.is(Guid::IMAGE_SECURITY, "db"))
    });
    if !verified {
        reasons.push(Reason::new(ReasonCode::SecureBootNoAuthority).pcr(PCR).event("Secure Boot on"));
    }
}

/// A variable of [`NAMES`], by its place there.
struct Measured<'l, 'a> {
    place: usize,
    covered: Covered<'l, 'a>,
    variable: Variable<'a>,
}

/// The variables that were measured before the separator.
fn variables<'l, 'a>(
    log: CoveredLog<'l, 'a>,
    separators: &Separators,
    reasons: &mut Vec<Reason>,
) -> Vec<Measured<'l, 'a>> {
    let mut seen: Vec<Measured<'l, 'a>> = Vec::with_capacity(NAMES.len());
    let is_config = |covered: &Covered<'_, '_>| covered.is(EventType::EFI_VARIABLE_DRIVER_CONFIG);
    for covered in log.of_pcr(PCR).filter(is_config).filter(|covered| covered.coverage == Coverage::Data) {
        if reasons.len() >= MAX_REASONS {
            break;
        }
        let event = covered.event;
        let about = |code| Reason::new(code).pcr(PCR).event(event.words());
        if separators.is_behind(event) {
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
        let Some(place) = NAMES.iter().position(|(guid, name)| variable.is(*guid, name)) else { continue };
        if seen.iter().any(|known| known.place == place) {
            reasons.push(about(ReasonCode::SecureBootRepeated));
        } else {
            seen.push(Measured { place, covered, variable });
        }
    }
    seen
}

fn state<'a>(covered: &Covered<'_, 'a>, variable: &Variable<'_>, reasons: &mut Vec<Reason>) -> Option<Claim<'a, bool>> {
    match variable.data {
        [1] => Some(covered.claim(true)),
        // The firmware measures a variable that it does not have with no content: it has no Secure Boot.
        [0] | [] => Some(covered.claim(false)),
        other => {
            let found = format!("{} bytes: {}", other.len(), hex::encode(other.get(..16).unwrap_or(other)));
            reasons.push(Reason::new(ReasonCode::SecureBootMalformed).pcr(PCR).event("Secure Boot state").found(found));
            None
        }
    }
}

/// By its digest, under whatever type it stands.
fn is_debug_mode<'a>(log: CoveredLog<'_, '_>) -> impl FnMut(&Covered<'_, 'a>) -> bool {
    static TEXTS: [Constant; 2] = [Constant::new(b"UEFI Debug Mode"), Constant::new(b"UEFI Debug Mode\0")];
    move |covered| TEXTS.iter().any(|text| text.has_digest(log.bank, covered.digest))
}
