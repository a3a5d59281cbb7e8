//! The line in each PCR between what the firmware measured and what came after it.

use crate::eventlog::{Event, EventType};
use crate::key::Bank;
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

/// The digests of separators in one bank.
pub(super) struct Separators {
    bank: Bank,
    digests: [(Vec<u8>, State); 3],
}

impl Separators {
    pub fn new(bank: Bank) -> Self {
        let digest = |content: [u8; 4]| bank.hash(&content);
        let digests = [
            (digest([0; 4]), State::Good),
            (digest([0xff; 4]), State::Good),
            (digest(1_u32.to_le_bytes()), State::Error),
        ];
        Self { bank, digests }
    }

    /// Whether an event is a separator. By its digest, for a type can be forged so that a separator passes as
    /// something else.
    ///
    /// There are machines whose first event in PCR 0, the contents of the root of trust, is four bytes of zeros.
    pub fn state(&self, event: &Event<'_>) -> Option<State> {
        if event.pcr == 0 && event.event_type == EventType::S_CRTM_CONTENTS {
            return None;
        }
        let digest = event.digests.get(self.bank).filter(|_| event.extends())?;
        self.digests.iter().find(|(known, _)| known == digest).map(|(_, state)| *state)
    }
}

/// Exactly one in each PCR of the firmware, under its own name, and none that reports an error.
pub(super) fn check(events: &[Event<'_>], separators: &Separators) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut seen = [0_u32; 8];
    for event in events.iter().filter(|event| PCRS.contains(&event.pcr)) {
        let about = |code| Reason::new(code).pcr(event.pcr).event("separator").found(format!("event {}", event.number));
        match separators.state(event) {
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
