//! Firmware event logs: what the firmware and the boot loader say they measured.
//!
//! Two forms are read: the crypto-agile one, whose first event is the Spec ID header (`Spec ID Event03`), and the
//! old one with SHA-1 digests only (TCG PC Client Platform Firmware Profile 1.06, section 10). Reading is strict:
//! every size, digest and algorithm must be as the header declares, and what cannot be read is an error that says
//! where. The log is borrowed, nothing in it is copied.
//!
//! A log proves nothing by itself. [`EventLog::replay`] says to which PCR values it leads; only where a quote has
//! the same values may its digests be believed, and its texts only where a digest covers them
//! ([`Event::describe`]). [`crate::appraise`] does all of that in the right order.

mod certificate_cache;
mod coverage;
mod cursor;
mod describe;
mod digests;
mod event_type;
mod grub_text;
mod parse;
mod replay;
mod signature_database;
mod signature_list;
mod subject;
mod tagged;
mod variable;

pub use certificate_cache::CertificateCache;
pub(crate) use certificate_cache::Form;
pub use coverage::Coverage;
pub(crate) use cursor::{Cursor, Short};
pub(crate) use describe::text_of;
pub use describe::{Description, EventKind};
pub use digests::Digests;
pub use event_type::EventType;
pub(crate) use grub_text::{is_command, kernel_arguments, load_options, loader_arguments, without_quoting};
pub(crate) use parse::NO_PCR;
pub use parse::{EventLogError, MAX_BYTES, MAX_EVENTS};
pub(crate) use replay::Pass;
pub use replay::initial_value;
pub(crate) use replay::is_initial_value;
pub use signature_database::{SignatureDatabase, SignerCertificate};
pub use signature_list::{Signature, SignatureListError, SignatureType, signature_lists};
pub use variable::{Guid, Variable, VariableError};

use crate::key::Bank;

/// PCRs of a PC Client TPM: 0 to 23.
pub const PCR_COUNT: u32 = 24;

/// A firmware event log, read and found well-formed. Nothing in it is believed yet.
#[derive(Clone, Debug)]
pub struct EventLog<'a> {
    format: Format<'a>,
    events: Vec<Event<'a>>,
    trailing: &'a [u8],
    startup_locality: Option<u8>,
    /// One bit for each PCR that an event extends.
    extended: u32,
    /// For each PCR, one bit for each bank of which all its events have digests, by the bank's place in [`Bank::ALL`].
    banks_of_pcr: [u8; PCR_COUNT as usize],
}

/// In which of the two forms a log is written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format<'a> {
    /// Crypto-agile: a digest for each algorithm that the header declares.
    Agile(SpecId<'a>),
    /// The old form: SHA-1 only.
    Sha1,
}

/// What the header event of a crypto-agile log declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecId<'a> {
    /// Class of the platform: 0 client, 1 server.
    pub platform_class: u32,
    /// Version of the specification: major, minor, errata.
    pub spec_version: (u8, u8, u8),
    /// Size of the firmware's native integer: 1 for 32 bits, 2 for 64.
    pub uintn_size: u8,
    /// TPM algorithm id and size of each digest that an event can carry. Events may carry them in another order, and
    /// only some of them. May name algorithms that no [`Bank`] stands for.
    pub algorithms: Vec<(u16, u16)>,
    /// Whatever the vendor adds.
    pub vendor_info: &'a [u8],
}

/// One event of a firmware log.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// Its place in the log, from 1; the Spec ID header does not count.
    pub number: usize,
    /// The PCR it extends. `0xffff_ffff` only in an event that extends none.
    pub pcr: u32,
    /// What it says it is.
    pub event_type: EventType,
    /// Its digests, at most one for each bank that the header declares.
    pub digests: Digests<'a>,
    /// What it says beside: what this means depends on the type, and whether a digest covers it on much else.
    pub data: &'a [u8],
}

impl<'a> EventLog<'a> {
    /// Reads a log as the kernel shows it in `/sys/kernel/security/tpm0/binary_bios_measurements`.
    ///
    /// # Errors
    /// Anything that the specification does not allow, with the place where it was found.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, EventLogError> {
        parse::log(bytes)
    }

    /// In which form the log is written.
    pub const fn format(&self) -> &Format<'a> {
        &self.format
    }

    /// The events after the Spec ID header, in the order of the log.
    pub fn events(&self) -> &[Event<'a>] {
        &self.events
    }

    /// What follows the last event: padding, or bytes that are no event. Nothing accounts for them.
    pub const fn trailing(&self) -> &'a [u8] {
        self.trailing
    }

    /// The locality that started the TPM, where the log says so: 0, 3 or 4. PCR 0 starts from it.
    pub const fn startup_locality(&self) -> Option<u8> {
        self.startup_locality
    }

    /// The PCRs that at least one event extends.
    pub fn extended_pcrs(&self) -> impl Iterator<Item = u8> {
        (0..crate::evidence::PCR_COUNT).filter(|pcr| self.extends_pcr(*pcr))
    }

    /// Whether at least one event extends this PCR.
    pub fn extends_pcr(&self, pcr: u8) -> bool {
        self.extended.checked_shr(pcr.into()).is_some_and(|from_it| from_it & 1 == 1)
    }

    /// The banks that replay: those for which every event that extends a PCR has a digest.
    pub fn banks(&self) -> Vec<Bank> {
        self.declared_banks().into_iter().filter(|bank| self.replays(*bank)).collect()
    }

    /// The banks that the header declares. Events may lack the digests of some: genuine logs do where a boot loader
    /// measured into fewer banks than the firmware (Windows' own events have no SHA-1 digests).
    pub fn declared_banks(&self) -> Vec<Bank> {
        Bank::ALL.into_iter().filter(|bank| self.declares(*bank)).collect()
    }

    /// The first event that extends a PCR and has no digest of this bank, if there is one.
    pub fn first_without_digest(&self, bank: Bank) -> Option<&Event<'a>> {
        self.events.iter().find(|event| event.extends() && event.digests.get(bank).is_none())
    }

    fn declares(&self, bank: Bank) -> bool {
        match &self.format {
            Format::Sha1 => bank == Bank::Sha1,
            Format::Agile(spec) => spec.algorithms.iter().any(|(id, _)| *id == bank.tpm_alg_id()),
        }
    }

    /// Whether every event that extends a PCR has a digest of this bank.
    pub(crate) fn replays(&self, bank: Bank) -> bool {
        self.declares(bank) && self.banks_of_pcr.iter().all(|banks| has(*banks, bank))
    }

    /// Whether every event that extends this PCR has a digest of this bank.
    pub(crate) fn replays_pcr(&self, bank: Bank, pcr: u8) -> bool {
        self.banks_of_pcr.get(usize::from(pcr)).is_some_and(|banks| has(*banks, bank))
    }
}

/// Whether a bank's bit is among these.
const fn has(banks: u8, bank: Bank) -> bool {
    banks & digests::bank_bit(bank) != 0
}

impl Event<'_> {
    /// Whether the TPM was extended with this event: all are but those of type `EV_NO_ACTION`.
    pub fn extends(&self) -> bool {
        self.event_type != EventType::NO_ACTION
    }
}

#[cfg(test)]
pub(crate) mod log_builder;
#[cfg(test)]
mod tests;
