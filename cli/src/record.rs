//! `portcullis reference make`: from good boots to reference values.

use std::path::{Path, PathBuf};

use clap::Args;
use portcullis_attest::eventlog::EventLog;
use portcullis_attest::evidence::Evidence;
use portcullis_attest::ima::{ExtendRule, ImaList};
use portcullis_attest::key::Bank;
use portcullis_attest::reference::{NotTaken, ReferenceBuilder, ReferenceValues, changes};
use serde_json::json;

use crate::failure::Failure;
use crate::files::{self, LARGE};
use crate::keylime::Keylime;
use crate::measurements::{event_log, ima_list};
use crate::output::{Output, plain};
use crate::reference::read;
use crate::verify::{content, reason};

/// The PCR that changes while the system runs.
const RUNTIME_PCR: u8 = 10;

/// Examples below `portcullis reference make --help`.
pub const EXAMPLES: &str = "\
Record boots of machines that you know to be good: what is recorded becomes what is good. Read the result, then sign it.
Differences between boots become further accepted values of the same place; what only some boots show becomes optional.

Examples:
  portcullis reference make --name web --out web.toml evidence.json
  portcullis reference make --from web.toml --out web-2.toml --eventlog binary_bios_measurements \\
      --ima binary_runtime_measurements
  portcullis reference make --name web --keylime-policy runtime_policy.json --drop-unsupported
  portcullis reference make --name web --keylime-policy signed_policy.json --keylime-key signer.pem \\
      --out web.toml --policy-out keyring.toml";

/// Arguments of `portcullis reference make`.
#[derive(Args, Debug)]
pub struct MakeArguments {
    /// Evidence of good boots, as `portcullis-agent evidence` writes it
    evidence: Vec<PathBuf>,
    /// The name by which policies call the values [default: that of --from]
    #[arg(long, value_name = "NAME", required_unless_present = "from")]
    name: Option<String>,
    /// Values that are widened: the result is their next version
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// A firmware event log of a good boot; several are several boots
    #[arg(long, value_name = "FILE")]
    eventlog: Vec<PathBuf>,
    /// An IMA list of a good boot
    #[arg(long, value_name = "FILE")]
    ima: Vec<PathBuf>,
    /// A Keylime runtime policy (JSON), also one that is signed (DSSE)
    #[arg(long, value_name = "FILE")]
    pub keylime_policy: Vec<PathBuf>,
    /// A public key or certificate (PEM) that must have signed the Keylime policies; several are alternatives
    #[arg(long, value_name = "PEM", requires = "keylime_policy")]
    pub keylime_key: Vec<PathBuf>,
    /// Where to write what of the Keylime policies belongs into a policy: their verification-keys, as a keyring (TOML)
    #[arg(long, value_name = "FILE", requires = "keylime_policy")]
    policy_out: Option<PathBuf>,
    /// Leave out what of a Keylime policy cannot be said by content, and what of an IMA list cannot be listed
    #[arg(long)]
    drop_unsupported: bool,
    /// Where the values come from, in words
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// The banks whose digests are taken [default: all of the log but sha1]
    #[arg(long, value_name = "BANK")]
    bank: Vec<Bank>,
    /// Where to write them [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs `portcullis reference make`.
pub fn make(arguments: &MakeArguments, out: Output) -> Result<(), Failure> {
    let from = arguments.from.as_deref().map(read).transpose()?;
    let mut builder = match (&from, &arguments.name) {
        (Some(from), None) => ReferenceBuilder::from_values(from),
        (Some(from), Some(name)) if name == from.name() => ReferenceBuilder::from_values(from),
        (Some(_), Some(_)) => {
            return Err(Failure::Usage("--name and --from: the next version keeps the name".to_owned()));
        }
        (None, name) => {
            let mut builder = ReferenceBuilder::new(name.as_deref().unwrap_or_default(), "");
            builder.version(1);
            builder
        }
    };
    if let Some(description) = &arguments.description {
        builder.description(description);
    }
    let mut left_out = Vec::new();
    for path in &arguments.evidence {
        evidence(path, &mut builder, arguments, &mut left_out)?;
    }
    for path in &arguments.eventlog {
        let bytes = files::read(path, LARGE)?;
        let log = event_log(path, &bytes)?;
        boot(&mut builder, &log, &arguments.bank).map_err(|problem| content(path, &problem))?;
    }
    for path in &arguments.ima {
        let bytes = files::read(path, LARGE)?;
        let list = ima_list(path, &bytes)?;
        left_out.extend(builder.programs(list.entries()).iter().map(words));
    }
    let keylime = Keylime::read(arguments)?;
    for policy in &keylime.policies {
        policy.add_to(&mut builder);
    }
    left_out.extend(keylime.left_out(arguments.policy_out.is_some()));
    if !left_out.is_empty() && !arguments.drop_unsupported {
        let list = left_out.iter().map(|line| format!("  {}", plain(line))).collect::<Vec<_>>().join("\n");
        let what = "this cannot be said in reference values; with --drop-unsupported it is left out, and denied";
        return Err(Failure::Usage(format!("{what}:\n{list}")));
    }
    let values = builder.build().map_err(|error| Failure::Usage(error.to_string()))?;
    if let Some(path) = &arguments.policy_out {
        files::write(path, keylime.policy(values.name())?.as_bytes())?;
    }
    let made = Made { values: &values, from: from.as_ref(), left_out: &left_out, warnings: &keylime.warnings };
    write(&made, arguments.out.as_deref(), out)
}

/// What came of the arguments.
struct Made<'m> {
    values: &'m ReferenceValues,
    from: Option<&'m ReferenceValues>,
    left_out: &'m [String],
    warnings: &'m [String],
}

fn words(entry: &NotTaken) -> String {
    format!("{}: {}", entry.name, entry.problem)
}

/// Evidence of a good boot: its logs must lead to the values that its TPM signed, or they are no record of that boot.
fn evidence(
    path: &Path,
    builder: &mut ReferenceBuilder,
    arguments: &MakeArguments,
    left_out: &mut Vec<String>,
) -> Result<(), Failure> {
    let evidence = Evidence::from_json(&files::read(path, LARGE)?).map_err(|error| content(path, &error))?;
    let log = EventLog::parse(&evidence.eventlog).map_err(|error| content(path, &error))?;
    let quoted = || evidence.quotes.iter().flat_map(|quote| &quote.pcrs);
    for (bank, pcrs) in quoted() {
        let replayed = log.replay(*bank);
        let other = pcrs
            .iter()
            .find(|(pcr, value)| **pcr != RUNTIME_PCR && replayed.get(pcr).is_some_and(|replayed| replayed != *value));
        if let Some((pcr, _)) = other {
            let text = format!("{}: the event log does not lead to the quoted PCR {pcr} ({bank}).", path.display());
            return Err(Failure::NotTrusted(vec![reason("eventlog.pcr-mismatch", text)]));
        }
    }
    // What was not quoted is no record of a boot: whoever sent the evidence could have written it.
    let unquoted = log.extended_pcrs().find(|pcr| !quoted().any(|(_, pcrs)| pcrs.contains_key(pcr)));
    if let Some(pcr) = unquoted {
        let text = format!(
            "{}: the event log has events of PCR {pcr}, which the evidence does not quote: nothing proves them. Make \
             evidence that quotes every PCR of the log.",
            path.display()
        );
        return Err(Failure::NotTrusted(vec![reason("eventlog.pcr-not-quoted", text)]));
    }
    boot(builder, &log, &arguments.bank).map_err(|problem| content(path, &problem))?;
    let list = ImaList::parse_binary(&evidence.ima).map_err(|error| content(path, &error))?;
    // Of the banks that kernels extend with padded SHA-1 digests none leads there.
    let runtime: Vec<_> = quoted()
        .filter(|(bank, _)| **bank != Bank::Sha1)
        .filter_map(|(bank, pcrs)| Some((*bank, pcrs.get(&RUNTIME_PCR)?)))
        .collect();
    let mut positions = runtime.iter().map(|(bank, value)| list.position_of(*bank, ExtendRule::Digest, value));
    let covered = if runtime.is_empty() { Some(0) } else { positions.find_map(|position| position) };
    let Some(covered) = covered else {
        let text = format!("{}: the IMA list does not lead to the quoted PCR 10.", path.display());
        return Err(Failure::NotTrusted(vec![reason("ima.pcr-mismatch", text)]));
    };
    left_out.extend(builder.programs(list.entries().take(covered)).iter().map(words));
    Ok(())
}

fn boot(builder: &mut ReferenceBuilder, log: &EventLog<'_>, banks: &[Bank]) -> Result<(), &'static str> {
    if !log.trailing().is_empty() {
        return Err("the event log goes on after its last event with bytes that nothing accounts for");
    }
    let of_log: Vec<Bank> = log.banks().into_iter().filter(|bank| *bank != Bank::Sha1).collect();
    let banks = if banks.is_empty() { of_log } else { banks.to_vec() };
    if banks.is_empty() || banks.contains(&Bank::Sha1) {
        return Err("reference values need digests of sha256 or a stronger bank");
    }
    // The kernel's own PCR is told by the IMA list; all others are compared in full.
    let pcrs: Vec<u8> = (0..24).filter(|pcr| *pcr != RUNTIME_PCR).collect();
    builder.boot(log, &banks, &pcrs);
    Ok(())
}

fn write(made: &Made<'_>, path: Option<&Path>, out: Output) -> Result<(), Failure> {
    let Made { values, from, left_out, warnings } = *made;
    let toml = values.to_toml().map_err(|error| Failure::Usage(error.to_string()))?;
    let changed = from.map(|from| changes(from, values));
    let Some(path) = path else {
        let value = json!({ "reference": toml, "left_out": left_out, "changes": changed, "warnings": warnings });
        return out.show(&value, || {
            // What is printed is a file: a warning in it is a comment.
            let warnings = warnings.iter().map(|warning| format!("# warning: {}\n", plain(warning)));
            warnings.chain([toml.trim_end().to_owned()]).collect()
        });
    };
    files::write(path, toml.as_bytes())?;
    let slots: usize = values.pcrs().map(|pcr| values.slots(pcr).len()).sum();
    let value = json!({
        "file": path, "name": values.name(), "version": values.version(), "slots": slots,
        "programs": values.ima_len(), "left_out": left_out, "changes": changed, "warnings": warnings,
    });
    out.show(&value, || {
        let first = format!(
            "{} version {}: {slots} measurements, {} programs; read {}, then sign it",
            values.name(),
            values.version(),
            values.ima_len(),
            path.display()
        );
        let changed = changed.iter().flatten().map(|change| plain(&change.to_string()));
        let left_out = left_out.iter().map(|line| format!("left out: {}", plain(line)));
        let warnings = warnings.iter().map(|warning| format!("warning: {}", plain(warning)));
        std::iter::once(first).chain(warnings).chain(changed).chain(left_out).collect::<Vec<_>>().join("\n")
    })
}
