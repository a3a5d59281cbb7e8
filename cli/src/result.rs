//! `portcullis result …`: what attestation results say.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use portcullis_attest::endorsement::VerifierKeys;
use portcullis_attest::result::{Continuity, ResultClaims, Submodule, TokenError};
use serde_json::json;

use crate::failure::Failure;
use crate::files::{self, SMALL};
use crate::output::Output;
use crate::verify::{content, reason};

/// `portcullis result …`.
#[derive(Subcommand, Debug)]
pub enum ResultCommand {
    /// Check a result: signed by one of the keys, and not expired
    #[command(after_help = "Example:\n  portcullis result check result.jwt --verifier-keys jwks.json")]
    Check {
        /// The result (JWT)
        file: PathBuf,
        /// The keys (JWKS) of the verifier
        #[arg(long, value_name = "JWKS")]
        verifier_keys: PathBuf,
        /// The host that it must be about
        #[arg(long, value_name = "ID")]
        host: Option<String>,
    },
    /// Say what lies between two results of a host: the same boot, or a reset. Results that contradict each other are 1
    #[command(after_help = "Example:\n  portcullis result compare earlier.jwt later.jwt --verifier-keys jwks.json")]
    Compare {
        /// The earlier result (JWT)
        earlier: PathBuf,
        /// The later result (JWT)
        later: PathBuf,
        /// The keys (JWKS) of the verifier
        #[arg(long, value_name = "JWKS")]
        verifier_keys: PathBuf,
    },
}

/// Runs `portcullis result …`.
pub fn run(command: &ResultCommand, out: Output) -> Result<(), Failure> {
    match command {
        ResultCommand::Check { file, verifier_keys, host } => check(file, &keys(verifier_keys)?, host.as_deref(), out),
        ResultCommand::Compare { earlier, later, verifier_keys } => compare(earlier, later, &keys(verifier_keys)?, out),
    }
}

fn keys(path: &Path) -> Result<VerifierKeys, Failure> {
    VerifierKeys::from_jwks(&files::read(path, SMALL)?).map_err(|error| content(path, &error))
}

/// A result that one of the keys signed: the host, and what is said of it.
fn signed(path: &Path, keys: &VerifierKeys) -> Result<(ResultClaims, String, Submodule), Failure> {
    let token = files::read_text(path, SMALL)?;
    let result = ResultClaims::from_token(&token, keys).map_err(|error| untrusted(path, &error))?;
    let of_host = result.submods.iter().next().map(|(host, submodule)| (host.clone(), submodule.clone()));
    let (host, submodule) = of_host.ok_or_else(|| content(path, &"it is about no host"))?;
    Ok((result, host, submodule))
}

fn untrusted(path: &Path, error: &TokenError) -> Failure {
    let code = match error {
        TokenError::Expired { .. } => "result.expired",
        _ => "result.signature-invalid",
    };
    Failure::NotTrusted(vec![reason(code, format!("{}: {error}.", path.display()))])
}

fn check(path: &Path, keys: &VerifierKeys, expected: Option<&str>, out: Output) -> Result<(), Failure> {
    let (result, host, submodule) = signed(path, keys)?;
    let now = crate::time::now();
    result.holds_at(now).map_err(|error| untrusted(path, &error))?;
    if let Some(expected) = expected.filter(|expected| *expected != host) {
        let text = format!("The result is about {host:?}, not about {expected:?}.");
        return Err(Failure::NotTrusted(vec![reason("result.other-host", text)]));
    }
    let value = json!({ "trusted": true, "reasons": [], "host": host, "result": result });
    out.show(&value, || {
        let left = result.exp.saturating_sub(now);
        let (policy, reference) = (&submodule.appraisal_policy_id, &submodule.reference);
        format!("trusted: {host}, {}, policy {policy}, reference values {reference}; for {left} s", submodule.boot)
    })
}

fn compare(earlier: &Path, later: &Path, keys: &VerifierKeys, out: Output) -> Result<(), Failure> {
    let (_, host, then) = signed(earlier, keys)?;
    let (_, other, now) = signed(later, keys)?;
    if host != other {
        let text = format!("The results are about two hosts, {host:?} and {other:?}.");
        return Err(Failure::NotTrusted(vec![reason("result.other-host", text)]));
    }
    let continuity = Continuity::between(&then, &now);
    let contradiction = match continuity {
        Continuity::SameBoot | Continuity::Reset { .. } | Continuity::Restarted { .. } => None,
        Continuity::OtherState => Some("boot.static-pcrs"),
        Continuity::Backwards => Some("boot.reset-count"),
        Continuity::OtherTpm => Some("boot.other-tpm"),
        // Whatever this version does not know proves nothing.
        _ => Some("boot.unproved"),
    };
    if let Some(code) = contradiction {
        return Err(Failure::NotTrusted(vec![reason(code, format!("{host}: {continuity}."))]));
    }
    let value = json!({
        "host": host, "same_boot": continuity.is_same_boot(), "continuity": continuity, "text": continuity.to_string(),
        "earlier": then.boot, "later": now.boot,
    });
    out.show(&value, || format!("{host}: {continuity}"))
}
