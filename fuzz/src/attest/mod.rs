//! Every parser of [`portcullis_attest`] and the whole appraisal. The tests of `portcullis-attest` include this folder.

pub mod appraisal;
mod boots;
pub mod documents;
pub mod endorsement;
pub mod eventlog;
pub mod ima;
pub mod keys;
mod log_edit;
pub mod release;
#[path = "../../../attest/tests/software_ca/mod.rs"]
mod software_ca;
#[path = "../../../attest/tests/software_tpm/mod.rs"]
mod software_tpm;
pub mod statements;

use super::recordings;
use super::target::Target;

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
