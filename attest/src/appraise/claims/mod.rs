//! From replayed logs to claims: what may be said of the boot, because digests cover it.
//!
//! An event is believed only as far as its digest covers what it says; its type is never covered, and neither is the
//! order in which events of different PCRs stand in the log. So each claim says on which event and digest it rests
//! ([`Ground`]), labels that no digest covers are called labels, and what a log says in a way that no honest firmware
//! would is a denial.
//!
//! | room | what it claims |
//! |---|---|
//! | `secure_boot` | state, PK, KEK, db, dbx |
//! | `images` | what firmware and boot loaders started, and what verified it; option ROMs |
//! | `boot_loader` | commands of GRUB, kernel, initrd, command line, sections of a unified kernel image |
//! | `shim` | shim's own lists, settings and generations |
//! | `firmware` | versions and parts of the firmware, DMA protection, boot order |
//!
//! A type that does not belong into its PCR is a denial (`placement`), and where a type decides what is looked at, whatever
//! could be hidden by another type is looked at too.
//!
//! A claim is computed when it is asked for: reading checks only what would contradict it.

mod boot_loader;
mod contradictions;
mod covered;
mod firmware;
mod images;
mod placement;
mod secure_boot;
mod shim;

use std::sync::Arc;

pub use boot_loader::{CommandLine, MeasuredFile, MeasuredText, Measurer, UkiSection};
pub use firmware::{FirmwareVersion, Label};
pub use images::{Authority, Image, ImageKind, VerifiedBy};
pub use shim::{SbatLevel, ShimList};

use covered::{Coverages, Covered, CoveredLog};
use secure_boot::SecureBoot;
use shim::Settings;

use super::policy::JUDGED_PCRS;
use super::replayed::{ReplayedLog, bank_missing};
use super::separators::Separators;
use super::stop::Stop;
use super::{RUNTIME_PCR, programs};
use crate::eventlog::{CertificateCache, Coverage, SignatureDatabase};
use crate::evidence::PCR_COUNT;
use crate::key::Bank;
use crate::quote::VerifiedQuote;
use crate::reason::{Denial, Reason, ReasonCode};
use crate::reference::Measured;

/// Something that a digest proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim<'a, T> {
    /// What is claimed.
    pub value: T,
    /// On what it rests.
    pub ground: Ground<'a>,
}

/// The event and digest on which a claim rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ground<'a> {
    /// The event's number in the log, from 1.
    pub event: usize,
    /// The PCR that it extended.
    pub pcr: u32,
    /// Its digest in the judged bank. It is part of the quoted PCR.
    pub digest: &'a [u8],
    /// What of the event the digest covers.
    pub coverage: Coverage,
}

/// What the logs prove of a boot.
///
/// Made only by [`Claims::read`].
#[derive(Clone, Debug)]
pub struct Claims<'a> {
    replayed: ReplayedLog<'a>,
    bank: Bank,
    coverages: Coverages<'a>,
    separators: Separators,
    certificates: &'a CertificateCache,
    shim: Settings<'a>,
    secure_boot: SecureBoot<'a>,
}

impl<'a> Claims<'a> {
    /// Reads the claims, resting on the digests of one bank. Databases of keys that were seen before are taken from the
    /// cache.
    ///
    /// # Errors
    /// Everything that contradicts how firmware measures, and PCRs of the bank that were not quoted.
    pub fn read(replayed: ReplayedLog<'a>, bank: Bank, certificates: &'a CertificateCache) -> Result<Self, Denial> {
        let missing = not_quoted(&replayed, bank);
        if !missing.is_empty() {
            return Err(missing.into());
        }
        let events = replayed.log().events();
        let stop = replayed.stop();
        let Some(coverages) = Coverages::of(events, bank, stop) else { return Err(Stop::reason().into()) };
        let log = CoveredLog::new(events, &coverages, bank);
        let mut reasons = Vec::new();
        let separators = Separators::read(replayed.log(), bank, &mut reasons);
        reasons.extend(contradictions::check(log, &separators));
        let shim = Settings::read(log, &separators, &mut reasons);
        let secure_boot = SecureBoot::read(log, &separators, certificates, &mut reasons);
        reasons.extend(programs::check(&replayed, bank));
        if reasons.is_empty() {
            Ok(Self { replayed, bank, coverages, separators, certificates, shim, secure_boot })
        } else {
            Err(reasons.into())
        }
    }

    /// What was found before of keys and signatures.
    pub(super) const fn certificates(&self) -> &'a CertificateCache {
        self.certificates
    }

    fn log(&self) -> CoveredLog<'_, 'a> {
        CoveredLog::new(self.replayed.log().events(), &self.coverages, self.bank)
    }

    /// Whether an event comes after the separator of its PCR: after that the firmware does not measure itself, and an
    /// operating system could have extended the PCR.
    fn is_behind_separator(&self, covered: &Covered<'_, '_>) -> bool {
        self.separators.is_behind(covered.event)
    }

    /// The replayed logs.
    pub const fn replayed(&self) -> &ReplayedLog<'a> {
        &self.replayed
    }

    pub(super) fn into_quote(self) -> VerifiedQuote {
        self.replayed.into_quote()
    }

    /// The bank on whose digests the claims rest.
    pub const fn bank(&self) -> Bank {
        self.bank
    }

    /// How far the digest of an event, given by its number, covers what it says.
    pub fn coverage(&self, event: usize) -> Coverage {
        event.checked_sub(1).map_or(Coverage::Nothing, |place| self.coverages.get(place))
    }

    /// The events that extend a PCR, in their order, to be laid beside reference values.
    pub(super) fn measured(&self, pcr: u8) -> impl Iterator<Item = Measured<'_>> {
        self.log().of_pcr(pcr.into()).map(|covered| Measured::new(covered.event, covered.coverage))
    }

    /// Whether Secure Boot was on; `None` if the firmware did not measure that.
    pub fn secure_boot(&self) -> Option<Claim<'a, bool>> {
        self.secure_boot.state()
    }

    /// Secure Boot's platform key (PK), where the firmware measured it.
    pub fn platform_key(&self) -> Option<Claim<'a, Arc<SignatureDatabase>>> {
        self.secure_boot.platform_key()
    }

    /// Secure Boot's key exchange keys (KEK): who may change db and dbx.
    pub fn exchange_keys(&self) -> Option<Claim<'a, Arc<SignatureDatabase>>> {
        self.secure_boot.exchange_keys()
    }

    /// Whom Secure Boot trusts (db).
    pub fn db(&self) -> Option<Claim<'a, Arc<SignatureDatabase>>> {
        self.secure_boot.db()
    }

    /// Whom Secure Boot trusts no more (dbx).
    pub fn dbx(&self) -> Option<Claim<'a, Arc<SignatureDatabase>>> {
        self.secure_boot.dbx()
    }
}

/// What keeps a judgement from resting on this bank: that it was not quoted, that events have no digest of it, and PCRs
/// that must be quoted in it. These are the judged ones, and all that the log tells of, for another bank proves other
/// digests.
fn not_quoted(replayed: &ReplayedLog<'_>, bank: Bank) -> Vec<Reason> {
    if bank == Bank::Sha1 || !replayed.quote().banks().any(|quoted| quoted == bank) {
        let quoted: Vec<_> = replayed.quote().banks().map(Bank::name).collect();
        let expected = if bank == Bank::Sha1 { "sha256 or stronger" } else { bank.name() };
        return vec![Reason::new(ReasonCode::PolicyBank).expected(expected).found(quoted.join(", "))];
    }
    if !replayed.log().replays(bank) {
        return vec![bank_missing(replayed.log(), bank)];
    }
    let is_extended = |pcr: u8| pcr != RUNTIME_PCR && replayed.log().extends_pcr(pcr);
    (0..PCR_COUNT)
        .filter(|pcr| replayed.quote().pcr(bank, *pcr).is_none())
        .filter(|pcr| JUDGED_PCRS.contains(pcr) || is_extended(*pcr))
        .map(|pcr| Reason::new(ReasonCode::PolicyPcr).pcr(pcr.into()).expected(format!("a quoted {bank} value")))
        .collect()
}

#[cfg(test)]
mod tests;
