//! From a verified quote to logs that lead to exactly what it signed.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use super::RUNTIME_PCR;
use super::banks::{self, BankCaveat, FIRMWARE_PCRS};
use super::programs::{self, Covered};
use super::stop::Stop;
use crate::eventlog::{EventLog, EventLogError, Pass};
use crate::evidence::Evidence;
use crate::ima::{Entries, ImaList, ImaState};
use crate::key::Bank;
use crate::quote::{QuotedState, VerifiedQuote};
use crate::reason::{Denial, Reason, ReasonCode};

/// Logs of which every digest is one that the TPM was extended with, in that order, in every bank without a
/// [`BankCaveat`]. What the events say beside their
/// digests is not believed yet.
///
/// Made only by [`ReplayedLog::replay`].
#[derive(Clone, Debug)]
pub struct ReplayedLog<'a> {
    quote: VerifiedQuote,
    log: EventLog<'a>,
    ima: ImaList<'a>,
    ima_covered: Covered,
    caveats: Vec<(Bank, BankCaveat)>,
    ima_from: u64,
    continued: Option<ImaState>,
    stop: Stop<'a>,
}

impl<'a> ReplayedLog<'a> {
    /// Replays the logs for every bank and against every PCR that was quoted.
    ///
    /// A bank of which some events have no digest is accepted as long as the log accounts for its PCRs 0 to 7, and so is
    /// one that the firmware left untouched; but no judgement can rest on it. Of the PCRs above these that are left, no
    /// value is compared: what was measured there is judged in another bank, in which every event has its digest.
    ///
    /// `previous` is how far the IMA list was judged before in the same boot: a whole list must begin with that, and one
    /// that leaves entries out ([`Evidence::ima_from`]) goes on from there, so that it costs only what is new.
    ///
    /// # Errors
    /// Every PCR to which the logs do not lead, and everything that nothing accounts for.
    pub fn replay(quote: VerifiedQuote, evidence: &'a Evidence, previous: Option<&ImaState>) -> Result<Self, Denial> {
        Self::replay_until(quote, evidence, previous, Stop::never())
    }

    /// The same, until it is told to stop.
    pub(super) fn replay_until(
        quote: VerifiedQuote,
        evidence: &'a Evidence,
        previous: Option<&ImaState>,
        stop: Stop<'a>,
    ) -> Result<Self, Denial> {
        if stop.asked() {
            return Err(Stop::reason().into());
        }
        let (mut reasons, mut caveats) = (Vec::new(), Vec::new());
        let log = match EventLog::parse(&evidence.eventlog) {
            Ok(log) => Some(log),
            Err(error) => {
                reasons.push(unreadable(&error));
                None
            }
        };
        if let Some(log) = &log {
            reasons.extend(check_log(&quote, log, &mut caveats));
        }
        let ima = match ImaList::parse_binary(&evidence.ima) {
            Ok(list) => Some(list),
            Err(error) => {
                reasons.push(Reason::new(ReasonCode::ImaUnreadable).pcr(RUNTIME_PCR.into()).found(error.to_string()));
                None
            }
        };
        let ima = ima.map(|list| {
            let covered = programs::covered(&quote, &list, evidence.ima_from, previous, stop, &mut reasons);
            (list, covered)
        });
        let (Some(log), Some((ima, ima_covered)), true) = (log, ima, reasons.is_empty()) else {
            return Err(reasons.into());
        };
        caveats.extend(ima_covered.padded.iter().map(|bank| (*bank, BankCaveat::PaddedSha1)));
        caveats.sort_unstable();
        let (ima_from, continued) = (evidence.ima_from, previous.cloned());
        Ok(Self { quote, log, ima, ima_covered, caveats, ima_from, continued, stop })
    }

    /// What of quoted values a firmware event log does not lead to, whether or not it is all that a host must show.
    pub(crate) fn differences(quote: &QuotedState, log: &EventLog<'_>) -> Vec<Reason> {
        compare_banks(quote, log)
    }

    /// The PCRs of which a firmware event log has events and that were not quoted.
    pub(crate) fn not_quoted(quote: &QuotedState, log: &EventLog<'_>) -> Vec<Reason> {
        not_quoted(quote, log)
    }

    /// How many entries of a whole IMA list quoted values cover, if they cover it at all.
    pub(crate) fn ima_covered(quote: &QuotedState, list: &ImaList<'_>) -> Result<usize, Denial> {
        let mut reasons = Vec::new();
        let covered = programs::covered(quote, list, 0, None, Stop::never(), &mut reasons);
        if reasons.is_empty() { Ok(covered.entries) } else { Err(reasons.into()) }
    }

    /// The quote.
    pub const fn quote(&self) -> &VerifiedQuote {
        &self.quote
    }

    pub(super) fn into_quote(self) -> VerifiedQuote {
        self.quote
    }

    /// The firmware event log.
    pub const fn log(&self) -> &EventLog<'a> {
        &self.log
    }

    /// The entries of the IMA list that the quoted PCR 10 covers. What the host listed beyond them is not here.
    pub fn ima(&self) -> Entries<'_> {
        self.ima.first_entries(self.ima_covered.entries, self.ima_from)
    }

    /// Whether any entry of the list is a violation, also of those that the quote does not cover.
    pub(super) const fn has_violations(&self) -> bool {
        self.ima.violations() > 0
    }

    /// Whether somebody still waits for the judgement.
    pub(super) const fn stop(&self) -> Stop<'a> {
        self.stop
    }

    /// How many entries of this boot came before those of [`ReplayedLog::ima`] and were judged earlier.
    pub const fn ima_from(&self) -> u64 {
        self.ima_from
    }

    /// How far the IMA list is judged once the rest of it is found acceptable by these rules; `None` if no PCR 10 that
    /// proves anything was quoted.
    pub(super) fn ima_state(
        &self,
        rules: impl FnOnce() -> [u8; 32],
        mut by_rule: BTreeMap<String, u64>,
    ) -> Option<ImaState> {
        self.ima_bank()?;
        let entries = self.ima_from.saturating_add(u64::try_from(self.ima_covered.entries).unwrap_or(u64::MAX));
        let left_out = self.continued.iter().filter(|_| self.ima_from > 0);
        for (reason, before) in left_out.flat_map(|state| &state.by_rule) {
            let count = by_rule.entry(reason.clone()).or_default();
            *count = count.saturating_add(*before);
        }
        let pcr = |bank| Some((bank, self.quote.pcr(bank, RUNTIME_PCR)?.to_vec()));
        let pcrs = self.quote.banks().filter_map(pcr).collect();
        Some(ImaState { entries, pcrs, padded: self.ima_covered.padded.clone(), rules: rules(), by_rule })
    }

    /// The strongest bank whose quoted PCR 10 covers the list; not SHA-1, which proves nothing, nor one of padded SHA-1. It
    /// need not be the bank on which the rest is judged: kernels extend few banks with anything better than SHA-1.
    pub(super) fn ima_bank(&self) -> Option<Bank> {
        self.quote
            .banks()
            .filter(|bank| *bank != Bank::Sha1 && !self.ima_covered.padded.contains(bank))
            .filter(|bank| self.quote.pcr(*bank, RUNTIME_PCR).is_some())
            .max_by_key(|bank| bank.digest_size())
    }

    /// The quoted banks on which nothing may rest, and why not.
    pub fn bank_caveats(&self) -> &[(Bank, BankCaveat)] {
        &self.caveats
    }

    /// The earlier judgement that the IMA list was found to continue.
    pub(super) const fn continued(&self) -> Option<&ImaState> {
        self.continued.as_ref()
    }
}

fn unreadable(error: &EventLogError) -> Reason {
    let code = match error {
        EventLogError::Empty => ReasonCode::EventlogMissing,
        EventLogError::StartupLocality { .. } => ReasonCode::EventlogLocality,
        _ => ReasonCode::EventlogUnreadable,
    };
    Reason::new(code).found(error.to_string())
}

fn check_log(quote: &QuotedState, log: &EventLog<'_>, caveats: &mut Vec<(Bank, BankCaveat)>) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if !log.trailing().is_empty() {
        let found = format!("{} bytes after event {}", log.trailing().len(), log.events().len());
        reasons.push(Reason::new(ReasonCode::EventlogTrailing).found(found));
    }
    for bank in quote.banks() {
        if log.replays(bank) {
            reasons.extend(check_bank(quote, log, bank));
        } else if !log.declared_banks().contains(&bank) && banks::is_untouched(quote, bank) {
            caveats.push((bank, BankCaveat::Unextended));
        } else if FIRMWARE_PCRS.into_iter().all(|pcr| log.replays_pcr(bank, pcr)) {
            reasons.extend(check_bank(quote, log, bank));
            caveats.push((bank, BankCaveat::Incomplete));
        } else {
            // What the firmware measured into this bank nothing tells: it may be another boot than the log's.
            reasons.push(bank_missing(log, bank));
        }
    }
    reasons.extend(not_quoted(quote, log));
    reasons
}

/// Every quoted PCR of every quoted bank must be what the log leads to.
fn compare_banks(quote: &QuotedState, log: &EventLog<'_>) -> Vec<Reason> {
    let compare = |bank| {
        if log.replays(bank) { check_bank(quote, log, bank) } else { vec![bank_missing(log, bank)] }
    };
    quote.banks().flat_map(compare).collect()
}

/// The log does not account for this bank.
pub(super) fn bank_missing(log: &EventLog<'_>, bank: Bank) -> Reason {
    let reason = Reason::new(ReasonCode::EventlogBankMissing).expected(format!("a {bank} digest in every event"));
    let declared = log.declared_banks();
    match log.first_without_digest(bank).filter(|_| declared.contains(&bank)) {
        Some(event) => reason.pcr(event.pcr).found(format!("event {} has none", event.number)),
        None => reason.found(declared.iter().map(|bank| bank.name()).collect::<Vec<_>>().join(", ")),
    }
}

/// Compares the quoted values of a bank with those to which the log leads, but for PCRs of which an event has no digest.
fn check_bank(quote: &QuotedState, log: &EventLog<'_>, bank: Bank) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let (values, passes) = (log.values(bank), OnceCell::new());
    for (pcr, value) in (0..).zip(&values) {
        let Some(quoted) = quote.pcr(bank, pcr).filter(|_| log.replays_pcr(bank, pcr)) else { continue };
        let found = || format!("{bank} {}", hex::encode(quoted));
        match (log.extends_pcr(pcr), value.is(quoted)) {
            (true, false) => {
                let all = || log.passes(bank, &std::array::from_fn(|pcr| quote.pcr(bank, u8::try_from(pcr).ok()?)));
                let pass = passes.get_or_init(all).get(usize::from(pcr)).copied().flatten();
                reasons.push(mismatch(bank, pcr, quoted, value.as_slice(), pass));
            }
            (false, true) if FIRMWARE_PCRS.contains(&pcr) => {
                reasons.push(Reason::new(ReasonCode::EventlogBankUnextended).pcr(pcr.into()).found(found()));
            }
            // The IMA list says what is in that one.
            (false, false) if pcr != RUNTIME_PCR => {
                let reason = Reason::new(ReasonCode::EventlogPcrWithoutEvents).pcr(pcr.into());
                reasons.push(reason.expected(hex::encode(value.as_slice())).found(found()));
            }
            _ => {}
        }
    }
    reasons
}

/// The most useful thing to know of a mismatch: whether the log was cut, goes on too long, or is another one.
fn mismatch(bank: Bank, pcr: u8, quoted: &[u8], replayed: &[u8], pass: Option<Pass<'_>>) -> Reason {
    let reason = Reason::new(ReasonCode::EventlogPcrMismatch)
        .pcr(pcr.into())
        .expected(format!("{bank} {}, as the TPM signed", hex::encode(quoted)))
        .found(format!("{bank} {}, from the event log", hex::encode(replayed)));
    match pass.and_then(|pass| pass.next) {
        Some(event) => reason.event(event.words()).text(format!(
            "The firmware event log has events for PCR {pcr} that the TPM was never extended with, from event {} on.",
            event.number
        )),
        None => reason,
    }
}

/// Events of PCRs that were not quoted are only what the host says. None are expected, so none are overlooked.
fn not_quoted(quote: &QuotedState, log: &EventLog<'_>) -> Vec<Reason> {
    let quoted = |pcr: u8| quote.banks().any(|bank| quote.pcr(bank, pcr).is_some());
    let pcrs = log.extended_pcrs().filter(|pcr| !quoted(*pcr));
    pcrs.map(|pcr| Reason::new(ReasonCode::EventlogPcrNotQuoted).pcr(pcr.into())).collect()
}
