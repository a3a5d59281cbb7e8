//! The whole appraisal, with a policy and reference values that were made from one boot.

use portcullis_attest::appraise::{Appraisal, Context, Denial, Policy, STATIC_PCRS, appraise};
use portcullis_attest::eventlog::{CertificateCache, EventLog};
use portcullis_attest::evidence::Evidence;
use portcullis_attest::key::{Bank, EnrolledAk};
use portcullis_attest::quote::VerifiedQuote;
use portcullis_attest::reference::{ReferenceBuilder, ReferenceValues};

use crate::software_tpm::binding;

const POLICY: &str = "schema = \"portcullis/policy/1\"\nname = \"bench\"\nbank = \"sha256\"\nhosts = [\"*\"]\n\
                      secure_boot = false\nreferences = [\"bench\"]\nunsigned_references = true\n";

/// What a boot must be like.
pub struct Rules {
    policy: Policy,
    references: [ReferenceValues; 1],
}

impl Rules {
    /// Everything must be as in this log.
    pub fn of(log: &[u8]) -> Self {
        let log = EventLog::parse(log).expect("a log that was read before");
        let mut builder = ReferenceBuilder::new("bench", "recorded");
        builder.recorded(&log, &[Bank::Sha256], &STATIC_PCRS);
        let references = [builder.build().expect("values of a log")];
        Self { policy: Policy::from_toml(POLICY).expect("a policy"), references }
    }

    /// The same with more in the policy.
    pub fn with(self, more: &str) -> Self {
        Self { policy: Policy::from_toml(&format!("{POLICY}{more}")).expect("a policy"), ..self }
    }

    pub fn appraise(
        &self,
        evidence: &Evidence,
        ak: &EnrolledAk,
        certificates: &CertificateCache,
    ) -> Result<Appraisal, Denial> {
        let (policy, references) = (&self.policy, &self.references);
        let context = Context { references, policy, certificates, previous: None, now: 0, abandoned: None };
        appraise(VerifiedQuote::verify(evidence, ak, &binding())?, evidence, &context)
    }
}
