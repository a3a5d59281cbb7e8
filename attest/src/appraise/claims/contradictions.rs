//! What no honest firmware or boot loader logs, event by event.

use super::covered::CoveredLog;
use super::placement;
use crate::appraise::MAX_REASONS;
use crate::appraise::separators::Separators;
use crate::eventlog::{Coverage, Event, EventType, NO_PCR};
use crate::reason::{Reason, ReasonCode};

/// Types whose digest is that of the event's data (PC Client Platform Firmware Profile, section 10.4.1).
const DIGEST_OF_DATA: [EventType; 7] = [
    EventType::SEPARATOR,
    EventType::ACTION,
    EventType::EFI_ACTION,
    EventType::EFI_VARIABLE_DRIVER_CONFIG,
    EventType::EFI_VARIABLE_BOOT2,
    EventType::EFI_GPT_EVENT,
    EventType::S_CRTM_VERSION,
];

/// Events that contradict themselves, or that are where no firmware and no boot loader puts them: all, or as many as are
/// told.
pub(super) fn check(log: CoveredLog<'_, '_>, separators: &Separators) -> Vec<Reason> {
    let about = |code, event: &Event<'_>| Reason::new(code).pcr(event.pcr).event(event.words());
    let number = |event: &Event<'_>| format!("event {}", event.number);
    let mut reasons = Vec::new();
    // Renaming an event to this type would take it out of the replay while its text still reads as before. Windows ends
    // its log with one that carries a digest and belongs to no PCR; that hides nothing.
    for event in log.all().iter().filter(|event| !event.extends() && event.pcr != NO_PCR) {
        if event.digests.iter().any(|(_, digest)| digest.iter().any(|byte| *byte != 0)) {
            reasons.push(about(ReasonCode::EventlogForgedNoAction, event).found(number(event)));
        }
        if reasons.len() >= MAX_REASONS {
            return reasons;
        }
    }
    let mut version: Option<&[u8]> = None;
    for covered in log.iter() {
        let event = covered.event;
        if covered.is(EventType::UNUSED) {
            reasons.push(about(ReasonCode::EventlogUnknownEvent, event).found(event.event_type.to_string()));
        } else if !placement::belongs(&covered) {
            let found = format!("event {}, {}", event.number, event.event_type);
            reasons.push(about(ReasonCode::EventlogUnexpectedType, event).found(found));
        } else if covered.coverage != Coverage::Data && DIGEST_OF_DATA.contains(&event.event_type) {
            reasons.push(about(ReasonCode::EventlogDigestMismatch, event).found(number(event)));
        } else if !covered.coverage.covers_text()
            && let Some(text) = event.grub_text()
        {
            // Only believed with the digest of exactly that text; beside another digest it would mislead.
            reasons.push(about(ReasonCode::EventlogTextNotCovered, event).found(text));
        }
        if event.pcr == 0 && placement::FIRMWARE.contains(&event.event_type) {
            if separators.is_behind(event) {
                reasons.push(about(ReasonCode::EventlogAfterSeparator, event).found(number(event)));
            } else if covered.is(EventType::S_CRTM_VERSION)
                && version.replace(event.data).is_some_and(|v| v != event.data)
            {
                reasons.push(about(ReasonCode::EventlogRepeated, event).found(number(event)));
            }
        }
        if reasons.len() >= MAX_REASONS {
            return reasons;
        }
    }
    reasons
}
