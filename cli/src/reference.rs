//! `portcullis reference …`: makes, shows, signs and checks reference values.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use portcullis_attest::reference::signature::{DetachedSignature, ReferenceSigner, SignerKey};
use portcullis_attest::reference::{Change, ReferenceError, ReferenceValues, Slot, changes};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::files::{self, LARGE, SMALL};
use crate::output::{Output, plain, when};
use crate::record::{self, MakeArguments};
use crate::time;
use crate::verify::{content, reason, signature_path, signature_reason};

/// `portcullis reference …`.
#[derive(Subcommand, Debug)]
pub enum ReferenceCommand {
    /// Make reference values from recorded good boots, or from a Keylime runtime policy
    #[command(after_help = record::EXAMPLES)]
    Make(MakeArguments),
    /// Show what they accept
    #[command(after_help = "Example:\n  portcullis reference show good.toml")]
    Show {
        /// The reference values (TOML)
        file: PathBuf,
    },
    /// Sign them, after you have read them: writes FILE.sig
    #[command(
        after_help = "Examples:\n  openssl genpkey -algorithm ed25519 -out signer.pem && chmod 600 signer.pem\n  \
                            openssl pkey -in signer.pem -pubout      (for the policy's reference_signers)\n  \
                            portcullis reference sign good.toml --key signer.pem --valid-for 90"
    )]
    Sign {
        /// The reference values (TOML)
        file: PathBuf,
        /// The private key: ECDSA P-256 or Ed25519, PKCS#8 PEM; `-` for standard input
        #[arg(long, value_name = "PEM")]
        key: PathBuf,
        /// How long the signature counts, in days; without this it does not end, which a policy can refuse
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=3660))]
        valid_for: Option<u64>,
    },
    /// Check them: well-formed, signed by whom, and what changed
    #[command(after_help = "Examples:\n  portcullis reference check good.toml --key signer.pub\n  \
                            portcullis reference check good.toml --against deployed.toml")]
    Check(CheckArguments),
}

/// Arguments of `portcullis reference check`.
#[derive(Args, Debug)]
pub struct CheckArguments {
    /// The reference values (TOML); their signature is FILE.sig
    file: PathBuf,
    /// A public key (PEM) that must have signed them; several are alternatives
    #[arg(long, value_name = "PEM")]
    key: Vec<PathBuf>,
    /// The edition that they replace: shows what changed, and that the version is higher
    #[arg(long, value_name = "OLD")]
    against: Option<PathBuf>,
}

/// Runs `portcullis reference …`.
pub fn run(command: ReferenceCommand, out: Output) -> Result<(), Failure> {
    match command {
        ReferenceCommand::Make(arguments) => record::make(&arguments, out),
        ReferenceCommand::Show { file } => show(&file, out),
        ReferenceCommand::Sign { file, key, valid_for } => sign(&file, &key, valid_for, out),
        ReferenceCommand::Check(arguments) => check(&arguments, out),
    }
}

/// Reads reference values without asking who signed them.
pub fn read(path: &Path) -> Result<ReferenceValues, Failure> {
    ReferenceValues::from_toml(&files::read_text(path, LARGE)?).map_err(|error| content(path, &error))
}

fn show(path: &Path, out: Output) -> Result<(), Failure> {
    let values = read(path)?;
    out.show(&as_json(&values), || as_text(&values))
}

/// The values as JSON, as far as other programs want to look into them.
pub fn as_json(values: &ReferenceValues) -> Value {
    let slot = |slot: &Slot| {
        let digests: BTreeMap<String, Vec<String>> = slot
            .digests
            .iter()
            .map(|(bank, digests)| (bank.to_string(), digests.iter().map(hex::encode).collect()))
            .collect();
        let patterns: Vec<_> = slot.patterns.iter().map(|pattern| pattern.as_str().to_owned()).collect();
        json!({
            "pcr": slot.pcr, "type": slot.event_type.to_string(), "what": slot.what, "optional": slot.optional,
            "texts": slot.texts, "patterns": patterns, "rule": slot.rule.map(|rule| rule.to_string()),
            "reason": slot.reason, "digests": digests,
        })
    };
    let slots: Vec<_> = values.pcrs().flat_map(|pcr| values.slots(pcr).map(slot)).collect();
    let programs: BTreeMap<_, Vec<_>> =
        values.programs().map(|(path, digests)| (path, digests.iter().map(hex::encode).collect())).collect();
    json!({
        "name": values.name(), "version": values.version(), "description": values.description(),
        "sha256": hex::encode(values.digest()), "slots": slots, "programs": programs,
    })
}

fn as_text(values: &ReferenceValues) -> String {
    let mut lines = vec![format!("{}, version {}: {}", values.name(), values.version(), plain(values.description()))];
    for pcr in values.pcrs() {
        lines.push(format!("PCR {pcr}:"));
        for slot in values.slots(pcr) {
            let optional = if slot.optional { " (may be missing)" } else { "" };
            lines.push(format!("  {}{optional}", plain(&slot.what)));
            lines.extend(accepted(slot).into_iter().map(|value| format!("    {}", plain(&value))));
        }
    }
    lines.push(format!("programs: {}", values.ima_len()));
    for (path, digests) in values.programs() {
        let digests: Vec<_> = digests.iter().map(hex::encode).collect();
        lines.push(format!("  {} {}", digests.join(" | "), plain(path)));
    }
    lines.join("\n")
}

fn accepted(slot: &Slot) -> Vec<String> {
    let reason = || format!(" ({})", slot.reason);
    let mut values: Vec<String> = slot.texts.iter().map(|text| format!("{text:?}")).collect();
    values.extend(slot.patterns.iter().map(|pattern| format!("pattern {:?}{}", pattern.as_str(), reason())));
    values.extend(slot.rule.map(|rule| format!("rule {rule}{}", reason())));
    for (bank, digests) in &slot.digests {
        values.extend(digests.iter().map(|digest| format!("{bank} {}", hex::encode(digest))));
    }
    values
}

fn sign(path: &Path, key: &Path, days: Option<u64>, out: Output) -> Result<(), Failure> {
    // Only what can be used is worth a signature.
    let text = files::read_text(path, LARGE)?;
    let values = ReferenceValues::from_toml(&text).map_err(|error| content(path, &error))?;
    let pem = files::read_secret(key, 16 * 1024)?;
    let pem = std::str::from_utf8(&pem).map_err(|_| content(key, &"it is not a PEM"))?;
    let signer = ReferenceSigner::from_pem(pem).map_err(|error| content(key, &error))?;
    let end = days.map(|days| time::now().saturating_add(days.saturating_mul(86_400)));
    let jws = match end {
        Some(end) => signer.sign_until(text.as_bytes(), end),
        None => signer.sign(text.as_bytes()),
    };
    let jws = jws.map_err(|error| content(key, &error))?;
    let public = signer.public_pem().map_err(|error| content(key, &error))?;
    let file = signature_path(path);
    files::write(&file, format!("{jws}\n").as_bytes())?;
    let hint = loose_permissions(key);
    let value = json!({
        "signature": file, "signer": signer.id(), "public_key": public, "name": values.name(),
        "version": values.version(), "expires_at": end, "warnings": hint,
    });
    out.show(&value, || {
        let until = end.map(|end| format!(", ends {}", when(end))).unwrap_or_default();
        let first = format!("{} version {} signed: {}{until}", values.name(), values.version(), file.display());
        let key = format!("key {}, for the policy's reference_signers:\n{}", signer.id(), public.trim());
        [vec![first, key], hint.iter().map(|hint| format!("warning: {hint}")).collect()].concat().join("\n")
    })
}

/// Whoever can read the key can say what a good boot is.
fn loose_permissions(key: &Path) -> Vec<String> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(key).ok().filter(std::fs::Metadata::is_file).map(|data| data.permissions().mode());
    mode.filter(|mode| mode & 0o077 != 0)
        .map(|mode| format!("{} can be read by others (mode {:o}): chmod 600", key.display(), mode & 0o777))
        .into_iter()
        .collect()
}

fn check(arguments: &CheckArguments, out: Output) -> Result<(), Failure> {
    let path = &arguments.file;
    let text = files::read_text(path, LARGE)?;
    let signature = files::read_if_there(&signature_path(path), SMALL)?;
    let jws = signature.map(|jws| String::from_utf8_lossy(&jws).into_owned());
    let mut keys = Vec::new();
    for key in &arguments.key {
        keys.push(SignerKey::from_pem(&files::read_text(key, SMALL)?).map_err(|error| content(key, &error))?);
    }
    let values = checked(path, &text, jws.as_deref(), &keys)?;
    if let Some(end) = values.signature_expires().filter(|end| time::now() >= *end) {
        let text =
            format!("{}: the signature ended {}; sign the values anew.", signature_path(path).display(), when(end));
        return Err(Failure::NotTrusted(vec![reason("reference.signature-expired", text)]));
    }
    let signature = match (&jws, values.signed_by()) {
        (_, Some(_)) => "good",
        (Some(_), None) => "not checked: give the signer's public key with --key",
        (None, None) => "none",
    };
    let claimed = jws.as_deref().and_then(|jws| Some(DetachedSignature::parse(jws).ok()?.key_id().to_owned()));
    let changed = match &arguments.against {
        Some(old) => Some(changes_since(&read(old)?, &values)?),
        None => None,
    };
    let value = json!({
        "name": values.name(), "version": values.version(), "sha256": hex::encode(values.digest()),
        "signature": signature, "signed_by": values.signed_by(), "expires_at": values.signature_expires(),
        "signer_claimed": claimed, "changes": changed,
    });
    out.show(&value, || {
        let by = values.signed_by().or(claimed.as_deref()).map(|id| format!(", key {id}")).unwrap_or_default();
        let first =
            format!("{} version {} is well-formed; signature: {signature}{by}", values.name(), values.version());
        let lines = changed.iter().flatten().map(|change| plain(&change.to_string()));
        let none = changed.as_ref().filter(|changed| changed.is_empty()).map(|_| "nothing changed".to_owned());
        std::iter::once(first).chain(lines).chain(none).collect::<Vec<_>>().join("\n")
    })
}

/// The values, with their signature checked if keys were given.
fn checked(path: &Path, text: &str, jws: Option<&str>, keys: &[SignerKey]) -> Result<ReferenceValues, Failure> {
    let values = match jws {
        Some(jws) if !keys.is_empty() => ReferenceValues::from_signed(text, jws, keys),
        None if !keys.is_empty() => {
            let text = format!("{} is not there.", signature_path(path).display());
            return Err(Failure::NotTrusted(vec![reason("reference.unsigned", text)]));
        }
        _ => ReferenceValues::from_toml(text),
    };
    values.map_err(|error| match error {
        ReferenceError::Signature(error) => Failure::NotTrusted(vec![signature_reason(path, &error)]),
        other => content(path, &other),
    })
}

/// What changed; a clear no if the new values cannot replace the old ones.
fn changes_since(old: &ReferenceValues, new: &ReferenceValues) -> Result<Vec<Change>, Failure> {
    let no = |text: String| Err(Failure::NotTrusted(vec![reason("reference.not-newer", text)]));
    if old.name() != new.name() {
        return no(format!("The old values are called {:?}, the new ones {:?}.", old.name(), new.name()));
    }
    let changed = changes(old, new);
    if !changed.is_empty() && new.version() <= old.version() {
        let (then, now) = (old.version(), new.version());
        return no(format!("The values changed, and their version went from {then} to {now}: it must rise."));
    }
    Ok(changed)
}
