//! The separator in each PCR: the border between what the firmware measured and what came after it.

use super::MAX_REASONS;
use crate::eventlog::{Event, EventLog, EventType};
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

/// Number of PCRs into which every firmware measures a separator: 0 to 7 (PC Client Platform Firmware Profile, section
/// 3.3.4).
const PCRS: usize = 8;

static GOOD: [Constant; 2] = [Constant::new(&[0; 4]), Constant::new(&[0xff; 4])];
static ERROR: Constant = Constant::new(&1_u32.to_le_bytes());

/// What an event says as a separator; `None` if it is none. Decided by the digest: the type is not covered, so a log could
/// show a separator as something else.
pub(super) fn state(event: &Event<'_>, bank: Bank) -> Option<State> {
    let digest = event.digests.get(bank).filter(|_| event.extends())?;
    if GOOD.iter().any(|content| content.has_digest(bank, digest)) {
        Some(State::Good)
    } else {
        ERROR.has_digest(bank, digest).then_some(State::Error)
    }
}

/// Where the separators of a log are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Separators {
    /// Number of the first separator event, by PCR.
    first: [Option<usize>; PCRS],
}

impl Separators {
    /// Finds the separators. Every PCR of the firmware must have exactly one, with the type of a separator, that reports
    /// no error; anything else is a reason.
    pub fn read(log: &EventLog<'_>, bank: Bank, reasons: &mut Vec<Reason>) -> Self {
        let mut first = [None; PCRS];
        let mut extended = [0_usize; PCRS];
        for event in log.events().iter().filter(|event| event.extends()) {
            let Some(pcr) = usize::try_from(event.pcr).ok().filter(|pcr| *pcr < PCRS) else { continue };
            let place = extended.get(pcr).copied().unwrap_or_default();
            if let Some(count) = extended.get_mut(pcr) {
                *count = count.saturating_add(1);
            }
            if is_root_of_trust(event, place, log.startup_locality()) {
                continue;
            }
            let about =
                |code| Reason::new(code).pcr(event.pcr).event("separator").found(format!("event {}", event.number));
            if reasons.len() >= MAX_REASONS {
                continue;
            }
            let Some(state) = state(event, bank) else {
                // With any other content the firmware reports an error too.
                if event.event_type == EventType::SEPARATOR {
                    reasons.push(about(ReasonCode::EventlogSeparatorError));
                }
                continue;
            };
            let known = first.get_mut(pcr);
            let is_repeated = known.as_ref().is_some_and(|known| known.is_some());
            if event.event_type != EventType::SEPARATOR {
                reasons.push(about(ReasonCode::EventlogSeparatorRepeated).text(format!(
                    "Event {} has the digest of a separator, but the log calls it {}.",
                    event.number, event.event_type
                )));
            } else if is_repeated {
                reasons.push(about(ReasonCode::EventlogSeparatorRepeated));
            }
            if state == State::Error {
                reasons.push(about(ReasonCode::EventlogSeparatorError));
            }
            if let Some(known) = known {
                known.get_or_insert(event.number);
            }
        }
        for (pcr, _) in (0..).zip(first).filter(|(_, first)| first.is_none()) {
            reasons.push(Reason::new(ReasonCode::EventlogSeparatorMissing).pcr(pcr).event("separator"));
        }
        Self { first }
    }

    /// Whether an event comes after the separator of its PCR. An operating system could have extended it.
    pub fn is_behind(&self, event: &Event<'_>) -> bool {
        let first = usize::try_from(event.pcr).ok().and_then(|pcr| self.first.get(pcr).copied().flatten());
        first.is_some_and(|first| event.number > first)
    }
}

/// Whether an event of PCR 0 is a part of the root of trust whose content happens to be that of a separator.
///
/// There are machines on which one of the first events is `EV_S_CRTM_CONTENTS` over four bytes of zeros (an unused entry of
/// the firmware interface table). The type proves nothing, so the place must: the first event of PCR 0, or one of the
/// first three where the TPM was started by the hardware's root of trust (locality 3 or 4, which PCR 0 shows). The firmware
/// of such a machine measures at least the root of trust, its version and one volume before its separator, so the
/// separator itself is never this early.
fn is_root_of_trust(event: &Event<'_>, place: usize, startup_locality: Option<u8>) -> bool {
    let started_by_hardware = matches!(startup_locality, Some(3 | 4));
    event.pcr == 0
        && event.event_type == EventType::S_CRTM_CONTENTS
        && (place == 0 || (started_by_hardware && place < 3))
}
