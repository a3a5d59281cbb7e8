//! Every case of the library's appraisal, asked of the program as well: `portcullis verify` says what the library says, with
//! the same codes in the same order. N08, N15, N44 to N51, N54 to N72, N75, N87, N88, N91 to N94, N101 and N102, with
//! their twins.
//!
//! The cases are the library's own (`attest/src/appraise/tests`), and so are their builders. In place of the library's
//! `crate::appraise::judge`, they call one here that runs the program too.
#![allow(missing_docs)]

mod program;

#[path = "../../attest/src/appraise"]
mod appraise {
    pub use portcullis_attest::appraise::*;

    mod tests;

    use std::path::Path;

    use portcullis_attest::binding::Binding;
    use portcullis_attest::evidence::Evidence;
    use portcullis_attest::key::EnrolledAk;
    use portcullis_attest::quote::VerifiedQuote;

    use crate::program::{codes, json};

    /// What the library says of the evidence, after the program said the same.
    pub fn judge(
        evidence: &Evidence,
        ak: &EnrolledAk,
        binding: &Binding,
        context: &Context<'_>,
    ) -> Result<Appraisal, Denial> {
        let verdict = VerifiedQuote::verify(evidence, ak, binding).and_then(|quote| appraise(quote, evidence, context));
        if program_can_be_asked(ak, context) {
            let expected = verdict.as_ref().err().map(|denial| &denial.reasons[..]).unwrap_or_default();
            let dir = tempfile::tempdir().unwrap();
            let answer = verify(dir.path(), evidence, (ak, binding), context, i32::from(verdict.is_err()));
            assert_eq!(answer["trusted"], verdict.is_ok());
            assert_eq!(codes(&answer), expected.iter().map(|reason| reason.code.as_str()).collect::<Vec<_>>());
            if let Ok(good) = &verdict {
                let by_rule: std::collections::BTreeMap<_, _> = good.programs_by_rule().collect();
                assert_eq!(answer["programs_by_rule"], serde_json::json!(by_rule));
                assert_eq!(answer["programs_known"], good.programs_known());
            }
            for (shown, reason) in answer["reasons"].as_array().unwrap().iter().zip(expected) {
                assert_eq!((&shown["pcr"], &shown["text"]), (&reason.pcr.into(), &reason.text.as_str().into()));
            }
        }
        verdict
    }

    /// The program remembers nothing of a host, takes from a key alone that its endorsement key is not certified, and reads a
    /// signature only beside the very bytes that were signed: that one counts, `reference.rs` asks.
    fn program_can_be_asked(ak: &EnrolledAk, context: &Context<'_>) -> bool {
        !ak.is_ek_certified()
            && context.previous.is_none()
            && context.references.iter().all(|values| values.signed_by().is_none())
    }

    fn verify(
        dir: &Path,
        evidence: &Evidence,
        (ak, binding): (&EnrolledAk, &Binding),
        context: &Context<'_>,
        code: i32,
    ) -> serde_json::Value {
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.join(name), bytes).unwrap();
        write("evidence", &evidence.to_json().unwrap());
        write("ak", ak.public().bytes());
        // An empty policy has not even a schema: it is an empty file.
        let policy = (*context.policy != Policy::default()).then(|| toml::to_string(context.policy).unwrap());
        write("policy", policy.unwrap_or_default().as_bytes());
        let nonce = hex::encode(&binding.nonce);
        let (host, verifier) = (binding.host.as_str(), binding.verifier.as_str());
        let mut arguments =
            vec!["verify", "--evidence", "evidence", "--nonce", &nonce, "--ak", "ak", "--policy", "policy"];
        arguments.extend(["--host", host, "--verifier", verifier]);
        let names: Vec<String> = (0..context.references.len()).map(|number| format!("reference-{number}")).collect();
        for (name, values) in names.iter().zip(context.references) {
            write(name, values.to_toml().unwrap().as_bytes());
            arguments.extend(["--reference", name]);
        }
        json(dir, &arguments, code)
    }
}

// The names by which the cases reach the library.
use portcullis_attest::{binding, evidence, key, quote, reason, reference, release, result};

#[path = "../../attest/src/eventlog"]
mod eventlog {
    pub use portcullis_attest::eventlog::*;

    pub mod log_builder;
}

#[path = "../../attest/src/ima"]
mod ima {
    pub use portcullis_attest::ima::*;

    pub mod list_builder;
}
