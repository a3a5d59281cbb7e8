//! Which PCR banks a host's TPM has active, and into which of them its firmware measures.
//!
//! A bank that is active and that the firmware does not extend is blank paper: root writes into it whatever an honest
//! host's log says (CVE-2021-42299). A quote cannot tell the two apart afterwards, so a verifier pins at enrolment what is
//! true then ([`PinnedBanks::of`]) and holds every later quote against it ([`PinnedBanks::check`]).

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_with::{MapPreventDuplicates, serde_as};

use super::policy::QUOTED_PCRS;
use crate::eventlog::is_initial_value;
use crate::key::Bank;
use crate::quote::QuotedState;
use crate::reason::{Denial, Reason, ReasonCode};

/// PCRs that every firmware extends, if only with the separator (PC Client Platform Firmware Profile, section 3.3.4).
pub(super) const FIRMWARE_PCRS: [u8; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

/// Why nothing may rest on a bank though it was quoted.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BankCaveat {
    /// The firmware did not measure into it: the log has none of its digests, and its PCRs 0 to 7 have their initial
    /// values.
    Unextended,
    /// Events of PCRs above 7 have no digest of it: the values of these PCRs were not compared with the log.
    Incomplete,
    /// The kernel extended its PCR 10 with SHA-1 digests padded with zeros.
    PaddedSha1,
}

impl BankCaveat {
    /// The stable name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unextended => "unextended",
            Self::Incomplete => "incomplete",
            Self::PaddedSha1 => "padded-sha1",
        }
    }
}

impl fmt::Display for BankCaveat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether the firmware measures into a bank.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BankState {
    /// PCRs 0 to 7 were all extended.
    Extended,
    /// PCRs 0 to 7 all had their initial values.
    Unextended,
}

impl BankState {
    /// The stable name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Extended => "extended",
            Self::Unextended => "unextended",
        }
    }
}

/// The banks that were active when a host enrolled, and into which of them its firmware measured.
///
/// Made from a quote by [`PinnedBanks::of`], or read from where that was stored.
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(transparent)]
pub struct PinnedBanks(#[serde_as(as = "MapPreventDuplicates<_, _>")] BTreeMap<Bank, BankState>);

impl PinnedBanks {
    /// Reads the banks from a quote that was made at enrolment.
    ///
    /// # Errors
    /// If PCRs 0 to 15 of a bank were not all quoted, or only some of its PCRs 0 to 7 were extended: what the firmware does
    /// with such a bank cannot be said, so nothing can be pinned.
    pub fn of(quote: &QuotedState) -> Result<Self, Denial> {
        let mut reasons = Vec::new();
        let mut banks = BTreeMap::new();
        for bank in quote.banks() {
            let missing = not_quoted(quote, bank);
            if !missing.is_empty() {
                reasons.extend(missing);
                continue;
            }
            match state(quote, bank) {
                Ok(state) => drop(banks.insert(bank, state)),
                Err(reason) => reasons.push(reason),
            }
        }
        if reasons.is_empty() { Ok(Self(banks)) } else { Err(reasons.into()) }
    }

    /// Whether the firmware measures into this bank; `None` if it was not active.
    #[must_use]
    pub fn get(&self, bank: Bank) -> Option<BankState> {
        self.0.get(&bank).copied()
    }

    /// The banks, by algorithm id.
    pub fn iter(&self) -> impl Iterator<Item = (Bank, BankState)> + '_ {
        self.0.iter().map(|(bank, state)| (*bank, *state))
    }

    /// What a later quote shows otherwise. `judged` is the bank on which the judgement is to rest, if that is known.
    ///
    /// Every pinned bank must be quoted, PCRs 0 to 15 of it, and no other bank; a bank into which the firmware did not
    /// measure must still be untouched, and the judged bank must be one into which it did.
    #[must_use]
    pub fn check(&self, quote: &QuotedState, judged: Option<Bank>) -> Vec<Reason> {
        let mut reasons = Vec::new();
        if let Some(bank) = judged.filter(|bank| self.get(*bank) == Some(BankState::Unextended)) {
            let reason = Reason::new(ReasonCode::PolicyBankUnextended).event(format!("bank {bank}"));
            reasons.push(reason.expected("extended by the firmware at enrolment").found("not extended"));
        }
        let about = |code, bank: Bank| Reason::new(code).expected(self.to_string()).found(bank.name());
        for (bank, pinned) in self.iter() {
            if !quote.banks().any(|quoted| quoted == bank) {
                reasons.push(about(ReasonCode::QuoteBankMissing, bank));
                continue;
            }
            let missing = not_quoted(quote, bank);
            if !missing.is_empty() {
                reasons.extend(missing);
                continue;
            }
            let now = state(quote, bank);
            if now != Ok(pinned) {
                let found = now.map_or("extended in part", BankState::as_str);
                let reason = Reason::new(ReasonCode::QuoteBankChanged).event(format!("bank {bank}"));
                reasons.push(reason.expected(pinned.as_str()).found(found));
            }
        }
        let unknown = quote.banks().filter(|bank| self.get(*bank).is_none());
        reasons.extend(unknown.map(|bank| about(ReasonCode::QuoteBankUnknown, bank)));
        reasons
    }
}

impl fmt::Display for PinnedBanks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (bank, state)) in self.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{bank} ({})", state.as_str())?;
        }
        Ok(())
    }
}

/// The PCRs of [`QUOTED_PCRS`] that are missing in a quote of this bank.
fn not_quoted(quote: &QuotedState, bank: Bank) -> Vec<Reason> {
    let missing = QUOTED_PCRS.filter(|pcr| quote.pcr(bank, *pcr).is_none());
    let reason =
        |pcr: u8| Reason::new(ReasonCode::PolicyPcr).pcr(pcr.into()).expected(format!("a quoted {bank} value"));
    missing.map(reason).collect()
}

fn state(quote: &QuotedState, bank: Bank) -> Result<BankState, Reason> {
    let untouched = |pcr: &u8| quote.pcr(bank, *pcr).is_some_and(|value| is_initial_value(*pcr, value));
    let initial: Vec<u8> = FIRMWARE_PCRS.into_iter().filter(untouched).collect();
    match initial.first() {
        None => Ok(BankState::Extended),
        Some(_) if initial.len() == FIRMWARE_PCRS.len() => Ok(BankState::Unextended),
        Some(pcr) => {
            let reason = Reason::new(ReasonCode::EventlogBankUnextended).pcr(u32::from(*pcr));
            Err(reason.event(format!("bank {bank}")).found("the initial value, beside PCRs that were extended"))
        }
    }
}

/// Whether all the firmware's PCRs of this bank were quoted and none was ever extended.
pub(super) fn is_untouched(quote: &QuotedState, bank: Bank) -> bool {
    state(quote, bank) == Ok(BankState::Unextended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::appraise::tests::host::{Host, codes};
    use crate::quote::VerifiedQuote;

    /// The quote of a host after a change of its PCR values.
    fn quote(host: &Host, change: impl FnOnce(&mut crate::evidence::PcrValues)) -> VerifiedQuote {
        let mut pcrs = host.pcrs();
        change(&mut pcrs);
        VerifiedQuote::verify(&host.evidence_of(pcrs), &host.ak, &Host::binding()).unwrap()
    }

    fn blank(pcrs: &mut crate::evidence::PcrValues, bank: Bank) {
        for value in pcrs.get_mut(&bank).unwrap().values_mut() {
            value.fill(0);
        }
    }

    #[test]
    fn n90_every_bank_that_was_active_at_enrolment_must_be_quoted_and_no_other() {
        let host = Host::good();
        let good = quote(&host, |_| {});
        let pinned = PinnedBanks::of(&good).unwrap();
        assert_eq!(pinned.to_string(), "sha1 (extended), sha256 (extended), sha384 (extended)");
        assert_eq!(pinned.check(&good, Some(Bank::Sha256)), []);
        for bank in [Bank::Sha1, Bank::Sha256, Bank::Sha384] {
            let fewer = quote(&host, |pcrs| drop(pcrs.remove(&bank)));
            assert_eq!(codes(&pinned.check(&fewer, Some(Bank::Sha256))), [ReasonCode::QuoteBankMissing], "{bank}");
            let of_fewer = PinnedBanks::of(&fewer).unwrap();
            assert_eq!(codes(&of_fewer.check(&good, None)), [ReasonCode::QuoteBankUnknown], "{bank}");
            // Nor is one PCR of it left out.
            for pcr in QUOTED_PCRS {
                let fewer = quote(&host, |pcrs| drop(pcrs.get_mut(&bank).unwrap().remove(&pcr)));
                let reasons = pinned.check(&fewer, Some(Bank::Sha256));
                assert_eq!((codes(&reasons), reasons[0].pcr), (vec![ReasonCode::PolicyPcr], Some(pcr.into())));
                assert_eq!(codes(&PinnedBanks::of(&fewer).unwrap_err()), [ReasonCode::PolicyPcr]);
            }
        }
    }

    #[test]
    fn n90_a_bank_that_the_firmware_does_not_extend_stays_blank_and_is_never_judged() {
        let host = Host::good();
        let filled = quote(&host, |_| {});
        let blank = quote(&host, |pcrs| blank(pcrs, Bank::Sha256));
        let pinned = PinnedBanks::of(&blank).unwrap();
        assert_eq!(pinned.get(Bank::Sha256), Some(BankState::Unextended));
        assert_eq!(pinned.check(&blank, Some(Bank::Sha384)), []);
        // Filled with a whole honest log, judged or not.
        assert_eq!(codes(&pinned.check(&filled, Some(Bank::Sha384))), [ReasonCode::QuoteBankChanged]);
        assert_eq!(
            codes(&pinned.check(&filled, Some(Bank::Sha256))),
            [ReasonCode::PolicyBankUnextended, ReasonCode::QuoteBankChanged]
        );
        assert_eq!(codes(&pinned.check(&blank, Some(Bank::Sha256))), [ReasonCode::PolicyBankUnextended]);
        // One that the firmware extended when the host enrolled and does no longer.
        let was_extended = PinnedBanks::of(&filled).unwrap();
        assert_eq!(codes(&was_extended.check(&blank, Some(Bank::Sha384))), [ReasonCode::QuoteBankChanged]);
    }

    #[test]
    fn n56_nothing_is_pinned_of_a_bank_that_is_extended_in_part() {
        let host = Host::good();
        for pcr in FIRMWARE_PCRS {
            let part = quote(&host, |pcrs| pcrs.get_mut(&Bank::Sha384).unwrap().get_mut(&pcr).unwrap().fill(0));
            let reasons = PinnedBanks::of(&part).unwrap_err();
            assert_eq!(codes(&reasons), [ReasonCode::EventlogBankUnextended]);
            assert_eq!(reasons[0].pcr, Some(pcr.into()));
            let pinned = PinnedBanks::of(&quote(&host, |_| {})).unwrap();
            assert_eq!(codes(&pinned.check(&part, Some(Bank::Sha256))), [ReasonCode::QuoteBankChanged]);
        }
        // PCR 0 of a bank that nobody extends tells from which locality the TPM was started.
        let started = quote(&host, |pcrs| {
            blank(pcrs, Bank::Sha384);
            pcrs.get_mut(&Bank::Sha384).unwrap().get_mut(&0).unwrap()[47] = 3;
        });
        assert_eq!(PinnedBanks::of(&started).unwrap().get(Bank::Sha384), Some(BankState::Unextended));
    }

    #[test]
    fn pinned_banks_come_back_from_json() {
        let pinned = PinnedBanks::of(&quote(&Host::good(), |pcrs| blank(pcrs, Bank::Sha1))).unwrap();
        let json = serde_json::to_string(&pinned).unwrap();
        assert_eq!(json, r#"{"sha1":"unextended","sha256":"extended","sha384":"extended"}"#);
        assert_eq!(serde_json::from_str::<PinnedBanks>(&json).unwrap(), pinned);
        assert!(serde_json::from_str::<PinnedBanks>(r#"{"sha1":"extended","sha1":"unextended"}"#).is_err());
    }
}
