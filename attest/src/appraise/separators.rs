//! The line in each PCR between what the firmware measured and what came after it.

use crate::eventlog::{Event, EventType};
use crate::key::{Bank, Constant};
use crate::reason::{Reason, ReasonCode};

/// What a separator says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// All is well: content 0 or 0xffffffff.
    Good,
    /// The firmware failed: content 1.
    Error,
}

/// PCRs into which every firmware measures a separator (PC Client Platform Firmware Profile, section 3.3.4).
const PCRS: core::ops::RangeInclusive<u32> = 0..=7;

static GOOD: [Constant; 2] = [Constant::new(&[0; 4]), Constant::new(&[0xff; 4])];
static ERROR: Constant = Constant::new(&1_u32.to_le_bytes());

/// What an event says as a separator; `None` if it is none. By its digest, for a type can be forged so that a separator
/// passes as something else.
///
/// There are machines whose first event in PCR 0, the contents of the root of trust, is four bytes of zeros.
pub(super) fn state(event: &Event<'_>, bank: Bank) -> Option<State> {
    if event.pcr == 0 && event.event_type == EventType::S_CRTM_CONTENTS {
        return None;
    }
    let digest = event.digests.get(bank).filter(|_| event.extends())?;
    if GOOD.iter().any(|content| content.has_digest(bank, digest)) {
        Some(State::Good)
    } else {
        ERROR.has_digest(bank, digest).then_some(State::Error)
    }
}

/// Exactly one in each PCR of the firmware, under its own name, and none that reports an error.
pub(super) fn check(events: &[Event<'_>], bank: Bank) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut seen = [0_u32; 8];
    for event in events.iter().filter(|event| PCRS.contains(&event.pcr)) {
        let about = |code| Reason::new(code).pcr(event.pcr).event("separator").found(format!("event {}", event.number));
        match state(event, bank) {
            Some(state) => {
                let mut repeated = false;
                if let Some(count) = usize::try_from(event.pcr).ok().and_then(|pcr| seen.get_mut(pcr)) {
                    *count = count.saturating_add(1);
                    repeated = *count == 2;
                }
                if event.event_type != EventType::SEPARATOR {
                    reasons.push(about(ReasonCode::EventlogSeparatorRepeated).text(format!(
                        "Event {} has a separator's digest, but says it is {}.",
                        event.number, event.event_type
                    )));
                } else if repeated {
                    reasons.push(about(ReasonCode::EventlogSeparatorRepeated));
                }
                if state == State::Error {
                    reasons.push(about(ReasonCode::EventlogSeparatorError));
                }
            }
            // With any other content the firmware reports an error too.
            None if event.event_type == EventType::SEPARATOR => reasons.push(about(ReasonCode::EventlogSeparatorError)),
            None => {}
        }
    }
    for (pcr, _) in PCRS.zip(seen).filter(|(_, count)| *count == 0) {
        reasons.push(Reason::new(ReasonCode::EventlogSeparatorMissing).pcr(pcr).event("separator"));
    }
    reasons
}
