//! `portcullis verify`: judges evidence offline.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use portcullis_attest::appraise::{Appraisal, BankCaveat, Context, Policy, appraise};
use portcullis_attest::binding::{Binding, EMPTY_BODY, Purpose, is_valid_id};
use portcullis_attest::eventlog::CertificateCache;
use portcullis_attest::evidence::Evidence;
use portcullis_attest::quote::VerifiedQuote;
use portcullis_attest::reason::Denial;
use portcullis_attest::reference::signature::SignatureError;
use portcullis_attest::reference::{ReferenceError, ReferenceValues};
use portcullis_attest::result::{AttestationResult, Jwk, ResultContext, TokenSigner};
use portcullis_verifier::reason::{Code, Reason};
use serde_json::{Value, json};

use crate::anchor::{Anchor, AnchorArguments};
use crate::failure::Failure;
use crate::files::{self, LARGE, SMALL};
use crate::output::Output;
use crate::time;

/// How long a token holds, in seconds.
const TOKEN_TTL: u64 = 300;

/// Examples below `portcullis verify --help`.
pub const EXAMPLES: &str = "\
The anchor is the attestation key or an enrolment statement: take it from the enrolment, not from whoever sends the
evidence. A statement holds for a time (--at judges old evidence as of then) and names the host; a key does not, so that without --host the verdict names the host as the evidence
does, and says so. Reference values lie beside their signature, FILE.sig; the policy says whose signatures count, and whether
unsigned ones do.

Examples:
  portcullis verify --evidence e.json --nonce 00ff… --ak ak.pub --reference good.toml --policy policy.toml
  portcullis verify --evidence e.json --nonce 00ff… --enrolment host-1.jws --verifier-keys jwks.json \\
      --reference good.toml --policy policy.toml --token-out result.jwt --json";

/// Arguments of `portcullis verify`.
#[derive(Args, Debug)]
pub struct VerifyArguments {
    /// The evidence, as `portcullis-agent evidence` writes it
    #[arg(long, value_name = "FILE")]
    evidence: PathBuf,
    /// The nonce that you gave for it
    #[arg(long, value_name = "HEX")]
    nonce: String,
    #[command(flatten)]
    anchor: AnchorArguments,
    /// Reference values (TOML); several are alternatives
    #[arg(long, value_name = "FILE", required = true)]
    reference: Vec<PathBuf>,
    /// The policy (TOML)
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// The host that it must be [default: the enrolment's; with --ak whatever name the evidence gives itself]
    #[arg(long, value_name = "ID", value_parser = id)]
    host: Option<String>,
    /// The verifier that it must have been made for [default: the enrolment's, or whatever the evidence says]
    #[arg(long, value_name = "ID", value_parser = id)]
    verifier: Option<String>,
    /// Judge as of this time, not now: for old evidence, where something else proves when it was made (seconds since 1970, or
    /// YYYY-MM-DDTHH:MM:SSZ)
    #[arg(long, value_name = "TIME", value_parser = time::parse, conflicts_with = "token_out")]
    at: Option<u64>,
    /// Write the verdict as a token (EAR in a JWT, ES256), if it is good
    #[arg(long, value_name = "FILE")]
    token_out: Option<PathBuf>,
    /// The key that signs the token (PKCS#8 PEM, P-256) [default: one made for this run]
    #[arg(long, value_name = "PEM", requires = "token_out")]
    token_key: Option<PathBuf>,
    /// Who says so in the token
    #[arg(long, value_name = "ID", value_parser = id, default_value = "portcullis-offline", requires = "token_out")]
    issuer: String,
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
    let references = references(&arguments.reference, &policy)?;
    let signer = arguments.token_out.as_ref().map(|_| token_signer(arguments.token_key.as_deref())).transpose()?;
    let now = arguments.at.unwrap_or_else(time::now);
    let anchor = arguments.anchor.read(now)?;
    about_whom_was_asked(arguments, &anchor)?;
    let binding = binding(arguments, &anchor, &evidence, nonce);
    let context = Context {
        references: &references,
        policy: &policy,
        certificates: &CertificateCache::new(),
        previous: None,
        now,
        abandoned: None,
    };
    let named = arguments.host.is_some() || anchor.enrolled.is_some();
    let quote = VerifiedQuote::verify(&evidence, &anchor.ak, &binding).map_err(denied)?;
    let good = appraise(quote, &evidence, &context).map_err(denied)?;
    let key = match (&arguments.token_out, &signer) {
        (Some(path), Some(signer)) => Some(write_token(path, signer, &good, &arguments.issuer)?),
        _ => None,
    };
    let mut caveats = caveats(&good, named);
    if arguments.at.is_some() {
        caveats.push("it was judged as of the time that --at gives: what was withdrawn since does not show".to_owned());
    }
    out.show(&as_json(&good, &caveats, key), || as_text(&good, &caveats, key))
}

/// An enrolment anchors the host that it is about, and no other: whoever has any enrolled TPM could make evidence in
/// another host's name.
fn about_whom_was_asked(arguments: &VerifyArguments, anchor: &Anchor) -> Result<(), Failure> {
    let Some((host, verifier)) = &anchor.enrolled else { return Ok(()) };
    for (asked, enrolled) in [(&arguments.host, host), (&arguments.verifier, verifier)] {
        if let Some(asked) = asked.as_ref().filter(|asked| *asked != enrolled) {
            let text = format!("The enrolment statement is about {enrolled} and anchors nothing of {asked}.");
            return Err(Failure::NotTrusted(vec![reason("ak.unanchored", text)]));
        }
    }
    Ok(())
}

/// What the evidence must be bound to. What nobody gave from outside is taken from the evidence, whose quote covers it.
fn binding(arguments: &VerifyArguments, anchor: &Anchor, evidence: &Evidence, nonce: Vec<u8>) -> Binding {
    let enrolled = anchor.enrolled.as_ref();
    let host = arguments.host.as_ref().or(enrolled.map(|(host, _)| host));
    let verifier = arguments.verifier.as_ref().or(enrolled.map(|(_, verifier)| verifier));
    Binding {
        purpose: Purpose::Offline,
        verifier: verifier.unwrap_or(&evidence.binding.verifier).clone(),
        host: host.unwrap_or(&evidence.binding.host).clone(),
        nonce,
        // Nobody is connected: that the quote names some TLS key is all there is.
        tls_spki_sha256: evidence.binding.tls_spki_sha256,
        body_sha256: EMPTY_BODY,
    }
}

/// Reads reference values, each with the signature that lies beside it, if one does.
fn references(paths: &[PathBuf], policy: &Policy) -> Result<Vec<ReferenceValues>, Failure> {
    let read = |path: &PathBuf| {
        let text = files::read_text(path, LARGE)?;
        let values = match files::read_if_there(&signature_path(path), SMALL)? {
            Some(jws) => {
                let jws = String::from_utf8(jws).unwrap_or_default();
                ReferenceValues::from_signed(&text, &jws, &policy.reference_signers)
            }
            None => ReferenceValues::from_toml(&text),
        };
        values.map_err(|error| match error {
            ReferenceError::Signature(error) => Failure::NotTrusted(vec![signature_reason(path, &error)]),
            other => content(path, &other),
        })
    };
    paths.iter().map(read).collect()
}

/// Where the signature of a file of reference values lies: beside it, with `.sig` added to its name.
pub fn signature_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".sig");
    PathBuf::from(name)
}

/// Why a signature does not count, as a reason against whatever rests on it.
pub fn signature_reason(path: &Path, error: &SignatureError) -> Reason {
    let code = match error {
        SignatureError::UnknownSigner(_) => "reference.signer-unknown",
        _ => "reference.signature-invalid",
    };
    reason(code, format!("{}: {error}.", signature_path(path).display()))
}

fn token_signer(key: Option<&Path>) -> Result<TokenSigner, Failure> {
    let Some(path) = key else { return TokenSigner::generate().map_err(|error| Failure::Usage(error.to_string())) };
    let pem = files::read_secret(path, 16 * 1024)?;
    let pem = std::str::from_utf8(&pem).map_err(|_| content(path, &"it is not a PEM"))?;
    TokenSigner::from_pem(pem).map_err(|error| content(path, &error))
}

fn write_token<'s>(path: &Path, signer: &'s TokenSigner, good: &Appraisal, issuer: &str) -> Result<&'s Jwk, Failure> {
    let now = time::now();
    let host = &good.quote().binding().host;
    let context = ResultContext { verifier: issuer, host, issued_at: now, expires_at: now.saturating_add(TOKEN_TTL) };
    let token = signer
        .sign(&AttestationResult::new(good, &context))
        .map_err(|error| Failure::Content { path: path.to_owned(), text: error.to_string() })?;
    files::write(path, format!("{token}\n").as_bytes())?;
    Ok(signer.jwk())
}

fn as_json(good: &Appraisal, caveats: &[String], key: Option<&Jwk>) -> Value {
    let reference = good.reference();
    let mut value = json!({
        "trusted": true, "reasons": [], "host": good.quote().binding().host, "boot": good.boot(),
        "policy": good.policy_name(), "policy_sha256": hex::encode(good.policy_digest()),
        "reference": reference.name, "reference_version": reference.version,
        "reference_sha256": hex::encode(reference.digest), "reference_signer": reference.signed_by,
        "by_rule": good.by_rule(), "secure_boot": good.secure_boot(), "shim_validation": good.shim_validation(),
        "sbat_date": good.sbat_date(), "command_line": good.command_line(), "ima_judged": good.ima_judged(),
        "ima_entries": good.ima_entries(), "programs_known": good.programs_known(),
        "programs_by_rule": good.programs_by_rule().collect::<BTreeMap<_, _>>(), "caveats": caveats,
    });
    if let (Some(key), Some(value)) = (key, value.as_object_mut()) {
        value.insert("token_key".to_owned(), json!(key));
    }
    value
}

/// What the verdict does not say, though one might think so. `named`: whether the host's name came from outside.
fn caveats(good: &Appraisal, named: bool) -> Vec<String> {
    let mut caveats = Vec::new();
    if !named {
        caveats.push(
            "the host's name is what the evidence calls itself: only the attestation key tells which host it is, and \
             --host which one it must be",
        );
    }
    if good.boot().ek.is_none() {
        caveats.push("the attestation key's parent is unknown: nothing proves in which boot the evidence was made");
    }
    if good.reference().signed_by.is_none() {
        caveats.push("the reference values are not signed");
    }
    if good.shim_validation() == Some(false) {
        caveats.push("shim's own validation is disabled (MokSBState): what it started was verified by nothing");
    }
    if !good.ima_judged() {
        caveats.push("the policy does not ask which programs ran");
    } else if !good.programs_known() {
        caveats.push(
            "a rule of the policy accepted measured files whose content is unknown, or that were written meanwhile",
        );
    }
    let of_banks = good.bank_caveats().iter().map(|(bank, caveat)| match caveat {
        BankCaveat::Unextended => format!("the firmware does not measure into bank {bank}, which is active"),
        BankCaveat::Incomplete => format!("the event log does not account for PCRs above 7 of bank {bank}"),
        BankCaveat::PaddedSha1 => {
            format!("PCR 10 of bank {bank} holds padded SHA-1: programs are judged in another bank")
        }
        other => format!("bank {bank} proves nothing: {other}"),
    });
    caveats.into_iter().map(str::to_owned).chain(of_banks).collect()
}

fn as_text(good: &Appraisal, caveats: &[String], key: Option<&Jwk>) -> String {
    let (boot, reference) = (good.boot(), good.reference());
    let mut lines = vec![format!(
        "trusted: {} (resetCount {}, restartCount {}) is as in the reference values {:?} (version {}); {} measured files",
        good.quote().binding().host,
        boot.reset_count,
        boot.restart_count,
        reference.name,
        reference.version,
        good.ima_entries()
    )];
    for rule in good.by_rule() {
        lines.push(format!("by rule: {} ({}): {}", rule.what, rule.rule, rule.reason));
    }
    for (reason, count) in good.programs_by_rule() {
        let files = if count == 1 { "1 measured file" } else { &format!("{count} measured files") };
        lines.push(format!("by rule: {files}: {reason}"));
    }
    lines.extend(caveats.iter().map(|caveat| format!("but: {caveat}")));
    if let Some(key) = key {
        lines.push(format!("the token's key: {}", json!(key)));
    }
    lines.join("\n")
}

/// A file that is not what it should be.
pub fn content(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::Content { path: path.to_owned(), text: error.to_string() }
}

/// Evidence that does not hold.
pub fn denied(denial: impl Into<Denial>) -> Failure {
    Failure::NotTrusted(denial.into().into_iter().map(Into::into).collect())
}

/// A reason of this program's own.
pub fn reason(code: &str, text: String) -> Reason {
    Reason { code: Code::Other(code.to_owned()), pcr: None, event: None, expected: None, found: None, text }
}
