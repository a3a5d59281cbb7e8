//! What fuzzers throw bytes at: every parser of [`portcullis_attest`] and the whole appraisal, each as a [`Target`].
//!
//! A target's body asserts what must hold for any bytes at all; that nothing panics and that memory stays in proportion
//! to the input ([`memory`]) is asserted of every one of them. `fuzz_targets/` gives each body to libFuzzer, and the tests
//! of `portcullis-attest` include this very folder and run each body over its seeds and simple changes of them.

pub mod appraisal;
pub mod documents;
pub mod endorsement;
pub mod eventlog;
pub mod ima;
pub mod keys;
mod log_edit;
pub mod memory;
pub mod recordings;
pub mod release;
#[path = "../../attest/tests/software_ca/mod.rs"]
mod software_ca;
#[path = "../../attest/tests/software_tpm/mod.rs"]
mod software_tpm;
pub mod statements;

use recordings::Recordings;

/// Something that takes bytes from outside.
pub struct Target {
    /// Its name: also that of its file in `fuzz_targets/`.
    pub name: &'static str,
    /// Takes the bytes, asserts what must hold, and says whether they were accepted.
    pub body: fn(&[u8]) -> bool,
    /// Longest input worth trying, in bytes: shorter ones are tried more often in the same time.
    pub max_len: usize,
    /// Genuine inputs.
    pub seeds: fn(&Recordings) -> Vec<Vec<u8>>,
}

impl Target {
    /// Runs the body. Panics if something does not hold, or if it took more memory than the input is worth.
    pub fn run(&self, bytes: &[u8]) -> bool {
        memory::in_proportion(bytes.len(), || (self.body)(bytes))
    }

    /// The genuine inputs that are short enough.
    pub fn short_seeds(&self, recordings: &Recordings) -> Vec<Vec<u8>> {
        let mut seeds = (self.seeds)(recordings);
        seeds.retain(|seed| seed.len() <= self.max_len);
        seeds.sort();
        seeds.dedup();
        seeds
    }
}

/// All targets, in the order of the checks.
pub const TARGETS: &[Target] = &[
    documents::EVIDENCE,
    keys::PUBLIC_AREA,
    keys::SIGNATURE,
    keys::QUOTE,
    keys::PCR_FILE,
    keys::PEM_KEYS,
    endorsement::EK_CERTIFICATE,
    endorsement::EK_CHAIN,
    endorsement::EK_ROOTS,
    endorsement::REVOCATIONS,
    endorsement::REVOCATION_LIST,
    eventlog::EVENT_LOG,
    eventlog::VARIABLE,
    eventlog::SIGNATURE_LISTS,
    ima::IMA_BINARY,
    ima::IMA_ASCII,
    documents::POLICY,
    documents::COMMAND_LINE,
    documents::NAME_PATTERN,
    documents::REFERENCE,
    statements::REFERENCE_SIGNATURE,
    statements::ENROLMENT,
    statements::VERIFIER_KEYS,
    documents::KEYLIME,
    statements::RESULT_TOKEN,
    documents::STORED,
    release::CERTIFIED_PARENT,
    appraisal::APPRAISE_EVENT_LOG,
    appraisal::APPRAISE_IMA,
    appraisal::APPRAISE_EDITED,
];
