//! Logs beside one quote by itself: whether they lead to what the TPM signed. Whether that is a good boot is for
//! [`crate::appraise`] to say.

use super::checked::{Caveat, CheckedQuote};
use crate::appraise::ReplayedLog;
use crate::eventlog::{EventLog, initial_value};
use crate::ima::{self, ImaList};
use crate::reason::{Denial, Reason, ReasonCode};

impl CheckedQuote {
    /// Replays a firmware event log for every quoted bank: every quoted PCR must be what the log leads to, and one that the
    /// log does not mention must never have been extended. Only PCR 10 may have been: that is for the IMA list.
    pub fn replay_eventlog(&self, log: &EventLog<'_>) -> Result<Vec<Caveat>, Denial> {
        let mut reasons = ReplayedLog::differences(self, log);
        // Old firmware measures no separator into PCRs that it has no use for.
        reasons.retain(|reason| reason.code != ReasonCode::EventlogBankUnextended);
        if !reasons.is_empty() {
            return Err(reasons.into());
        }
        let extended = |bank| self.pcr(bank, ima::PCR).is_some_and(|pcr| pcr != initial_value(bank, ima::PCR, 0));
        let runtime = !log.extends_pcr(ima::PCR) && self.banks().any(extended);
        let caveats = [(!log.trailing().is_empty(), Caveat::TrailingBytes), (runtime, Caveat::RuntimeUnchecked)];
        Ok(caveats.into_iter().filter_map(|(holds, caveat)| holds.then_some(caveat)).collect())
    }

    /// Replays an IMA list against PCR 10 of every bank of which it was quoted. Gives how many entries the quote covers; what
    /// follows them is only what somebody says.
    pub fn replay_ima(&self, list: &ImaList<'_>) -> Result<usize, Denial> {
        if !self.banks().any(|bank| self.pcr(bank, ima::PCR).is_some()) {
            return Err(Reason::new(ReasonCode::QuotePcrMissing).pcr(ima::PCR.into()).into());
        }
        ReplayedLog::ima_covered(self, list)
    }
}
