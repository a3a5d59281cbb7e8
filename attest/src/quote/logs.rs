//! Logs beside one quote by itself: whether they lead to what the TPM signed. Whether that is a good boot is for
//! [`crate::appraise`] to say.

use super::checked::{Caveat, CheckedQuote};
use crate::appraise::ReplayedLog;
use crate::eventlog::{EventLog, initial_value};
use crate::ima::{self, ImaList};
use crate::reason::{Denial, Reason, ReasonCode};

impl CheckedQuote {
    /// Replays a firmware event log for every quoted bank: every quoted PCR must be what the log leads to, and one that the
    /// log does not mention must never have been extended. Only PCR 10 may have been: that is for the IMA list. And every PCR
    /// of which the log has events must have been quoted.
    ///
    /// # Errors
    /// Every PCR to which the log does not lead, and every PCR that has events and was not quoted.
    pub fn replay_eventlog(&self, log: &EventLog<'_>) -> Result<Vec<Caveat>, Denial> {
        let unproved = ReplayedLog::not_quoted(self, log);
        match self.replay_quoted_part(log) {
            Ok(caveats) if unproved.is_empty() => Ok(caveats),
            Ok(_) => Err(unproved.into()),
            Err(denial) => Err([denial.reasons, unproved].concat().into()),
        }
    }

    /// The PCRs of which the log has events and that this quote does not cover in any bank: whatever the log says of them,
    /// no TPM vouches for it.
    #[must_use]
    pub fn unquoted_pcrs(&self, log: &EventLog<'_>) -> Vec<u8> {
        let quoted = |pcr: u8| self.banks().any(|bank| self.pcr(bank, pcr).is_some());
        log.extended_pcrs().filter(|pcr| !quoted(*pcr)).collect()
    }

    /// Like [`CheckedQuote::replay_eventlog`], but for a quote that covers only some of the log's PCRs: what the log says of
    /// the others ([`CheckedQuote::unquoted_pcrs`]) is a caveat ([`Caveat::UnquotedPcrs`]), and proves nothing.
    ///
    /// # Errors
    /// Every quoted PCR to which the log does not lead.
    pub fn replay_quoted_part(&self, log: &EventLog<'_>) -> Result<Vec<Caveat>, Denial> {
        let mut reasons = ReplayedLog::differences(self, log);
        // Old firmware measures no separator into PCRs that it has no use for.
        reasons.retain(|reason| reason.code != ReasonCode::EventlogBankUnextended);
        if !reasons.is_empty() {
            return Err(reasons.into());
        }
        let extended = |bank| self.pcr(bank, ima::PCR).is_some_and(|pcr| pcr != initial_value(bank, ima::PCR, 0));
        let runtime = !log.extends_pcr(ima::PCR) && self.banks().any(extended);
        let caveats = [
            (!log.trailing().is_empty(), Caveat::TrailingBytes),
            (!self.unquoted_pcrs(log).is_empty(), Caveat::UnquotedPcrs),
            (runtime, Caveat::RuntimeUnchecked),
        ];
        Ok(caveats.into_iter().filter_map(|(holds, caveat)| holds.then_some(caveat)).collect())
    }

    /// Replays an IMA list against PCR 10 of every bank of which it was quoted. Gives how many entries the quote covers; what
    /// follows them is only what somebody says.
    ///
    /// # Errors
    /// If PCR 10 was not quoted, or the list does not lead to it.
    pub fn replay_ima(&self, list: &ImaList<'_>) -> Result<usize, Denial> {
        if !self.banks().any(|bank| self.pcr(bank, ima::PCR).is_some()) {
            return Err(Reason::new(ReasonCode::ImaPcrNotQuoted).pcr(ima::PCR.into()).into());
        }
        ReplayedLog::ima_covered(self, list)
    }
}
