//! An end of work that nobody waits for: a host can hang up as often as it likes, and send evidence again.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::reason::{Reason, ReasonCode};

/// How many entries are judged before it is asked again whether somebody waits.
const EVERY: u64 = 1024;

/// Whether somebody still waits for the judgement. Work that was stopped has its own reason, so that it is never a yes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stop<'a>(Option<&'a AtomicBool>);

impl<'a> Stop<'a> {
    /// Stops once this is true.
    pub const fn when(abandoned: Option<&'a AtomicBool>) -> Self {
        Self(abandoned)
    }

    pub const fn never() -> Self {
        Self(None)
    }

    pub fn asked(self) -> bool {
        self.0.is_some_and(|abandoned| abandoned.load(Ordering::Relaxed))
    }

    /// Looks only now and then, by the number of an entry.
    pub fn asked_at(self, number: u64) -> bool {
        number.is_multiple_of(EVERY) && self.asked()
    }

    /// Why a judgement that was stopped is no yes.
    pub fn reason() -> Reason {
        Reason::new(ReasonCode::EvidenceAbandoned)
    }
}
