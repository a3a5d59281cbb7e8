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
pub use replay::initial_value;
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
    /// TPM algorithm id and digest size of each digest that every event carries, in the order of the log. May name
    /// algorithms that no [`Bank`] stands for.
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
    /// One digest for each bank that the log has.
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

    /// The banks for which every event has a digest.
    pub fn banks(&self) -> Vec<Bank> {
        match &self.format {
            Format::Sha1 => vec![Bank::Sha1],
            Format::Agile(spec) => Bank::ALL
                .into_iter()
                .filter(|bank| spec.algorithms.iter().any(|(id, _)| *id == bank.tpm_alg_id()))
                .collect(),
        }
    }
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
