//! `portcullis verify`: judges evidence offline.
//!
//! The anchor comes from outside (protocol rule 10): the attestation key and the endorsement key under which it was
//! enrolled. Evidence that brings its own key proves nothing, so without an anchor the answer is no.

use std::path::{Path, PathBuf};

use clap::Args;
use portcullis_attest::appraise::{Context, Policy, appraise};
use portcullis_attest::binding::{Binding, EMPTY_BODY, Purpose, is_valid_id};
use portcullis_attest::eventlog::CertificateCache;
use portcullis_attest::evidence::Evidence;
use portcullis_attest::key::{EnrolledAk, PublicArea};
use portcullis_attest::reference::ReferenceValues;
use portcullis_verifier::reason::{Code, Reason};
use serde_json::json;

use crate::failure::Failure;
use crate::files::{self, LARGE, SMALL};
use crate::output::Output;

/// Arguments of `portcullis verify`.
#[derive(Args, Debug)]
pub struct VerifyArguments {
    /// The evidence, as `portcullis-agent evidence` writes it.
    #[arg(long, value_name = "FILE")]
    evidence: PathBuf,
    /// The nonce that you gave for it.
    #[arg(long, value_name = "HEX")]
    nonce: String,
    /// The host's enrolled attestation key (TPMT_PUBLIC or TPM2B_PUBLIC): the anchor, not from the evidence's sender.
    #[arg(long, value_name = "FILE", requires = "ek")]
    ak: Option<PathBuf>,
    /// The host's endorsement key (TPMT_PUBLIC or TPM2B_PUBLIC), under which the attestation key was enrolled.
    #[arg(long, value_name = "FILE", requires = "ak")]
    ek: Option<PathBuf>,
    /// Reference values (TOML); several are alternatives.
    #[arg(long, value_name = "FILE", required = true)]
    reference: Vec<PathBuf>,
    /// The policy (TOML).
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// The host that it must be [default: whatever the evidence says]
    #[arg(long, value_name = "ID", value_parser = id)]
    host: Option<String>,
    /// The verifier that it must have been made for [default: whatever the evidence says]
    #[arg(long, value_name = "ID", value_parser = id)]
    verifier: Option<String>,
}

fn id(text: &str) -> Result<String, String> {
    if is_valid_id(text) { Ok(text.to_owned()) } else { Err("1 to 64 characters of a-z, 0-9, '.' and '-'".to_owned()) }
}

/// Runs `portcullis verify`.
pub fn verify(arguments: &VerifyArguments, out: Output) -> Result<(), Failure> {
    let nonce = hex::decode(&arguments.nonce)
        .ok()
        .filter(|nonce| (16..=64).contains(&nonce.len()))
        .ok_or_else(|| Failure::Usage("--nonce needs 16 to 64 bytes in hex".to_owned()))?;
    let evidence = Evidence::from_json(&files::read(&arguments.evidence, LARGE)?)
        .map_err(|error| content(&arguments.evidence, &error))?;
    let policy = Policy::from_toml(&files::read_text(&arguments.policy, SMALL)?)
        .map_err(|error| content(&arguments.policy, &error))?;
    let mut references = Vec::new();
    for path in &arguments.reference {
        let text = files::read_text(path, LARGE)?;
        references.push(ReferenceValues::from_toml(&text).map_err(|error| content(path, &error))?);
    }
    let (Some(ak), Some(ek)) = (&arguments.ak, &arguments.ek) else {
        return Err(Failure::NotTrusted(vec![reason(
            "ak.unanchored",
            "No attestation key was given with --ak and --ek: evidence that brings its own key proves nothing."
                .to_owned(),
        )]));
    };
    let ek_public = public_area(ek)?;
    let ek_fingerprint = fingerprint(ek, &ek_public)?;
    let ak = EnrolledAk::new(&public_area(ak)?, &ek_public).map_err(denied)?;
    let binding = Binding {
        purpose: Purpose::Offline,
        verifier: arguments.verifier.clone().unwrap_or_else(|| evidence.binding.verifier.clone()),
        host: arguments.host.clone().unwrap_or_else(|| evidence.binding.host.clone()),
        nonce,
        // Nobody is connected: that the quote names some TLS key is all there is.
        tls_spki_sha256: evidence.binding.tls_spki_sha256,
        body_sha256: EMPTY_BODY,
    };
    let context = Context {
        ak: &ak,
        binding: &binding,
        ek: ek_fingerprint,
        references: &references,
        policy: &policy,
        certificates: &CertificateCache::new(),
        previous: None,
    };
    let good = appraise(&evidence, &context).map_err(|denial| denied(denial.reasons))?;
    let boot = good.boot();
    let value = json!({
        "trusted": true, "reasons": [], "host": binding.host, "boot": boot,
        "reference": good.reference_name(), "ima_entries": good.ima_entries(),
    });
    out.show(&value, || {
        format!(
            "trusted: {} (resetCount {}, restartCount {}) is as in the reference values {:?}; {} measured files",
            binding.host,
            boot.reset_count,
            boot.restart_count,
            good.reference_name(),
            good.ima_entries()
        )
    })
}

/// A file that is not what it should be.
pub fn content(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::Content { path: path.to_owned(), text: error.to_string() }
}

/// What was found against evidence.
pub fn denied(reasons: Vec<portcullis_attest::reason::Reason>) -> Failure {
    Failure::NotTrusted(reasons.into_iter().map(Into::into).collect())
}

/// A reason of this program's own.
pub fn reason(code: &str, text: String) -> Reason {
    Reason { code: Code::Other(code.to_owned()), pcr: None, event: None, expected: None, found: None, text }
}

/// A public area, with or without the length that TPM2B_PUBLIC puts before it.
fn public_area(path: &Path) -> Result<Vec<u8>, Failure> {
    let bytes = files::read(path, SMALL)?;
    let area = match bytes.split_first_chunk::<2>() {
        Some((length, rest)) if usize::from(u16::from_be_bytes(*length)) == rest.len() => rest.to_vec(),
        _ => bytes,
    };
    PublicArea::parse(&area).map_err(|error| content(path, &format!("no TPMT_PUBLIC or TPM2B_PUBLIC: {error}")))?;
    Ok(area)
}

fn fingerprint(path: &Path, ek_public: &[u8]) -> Result<[u8; 32], Failure> {
    let area = PublicArea::parse(ek_public).map_err(|error| content(path, &error))?;
    let spki = area.spki_der().map_err(|error| content(path, &error))?;
    let digest = portcullis_attest::key::Bank::Sha256.hash(&spki);
    digest.try_into().map_err(|_| content(path, &"its fingerprint cannot be computed"))
}
