//! `portcullis ima`: what a kernel says it ran and loaded, and to which PCR 10 that leads.
//!
//! A list alone proves nothing, and these commands do not say that it does: `portcullis verify` judges one with a quote.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use portcullis_attest::ima::{ExtendRule, ImaList};
use portcullis_attest::key::Bank;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::files::{self, LARGE};
use crate::output::Output;

/// `portcullis ima …`.
#[derive(Subcommand, Debug)]
pub enum ImaCommand {
    /// Print the PCR 10 to which the list leads, or find a PCR 10 in it.
    #[command(
        after_help = "Examples:\n  portcullis ima replay /sys/kernel/security/ima/binary_runtime_measurements\n  \
                      portcullis ima replay ascii_runtime_measurements --bank sha256 --pcr10 8f2c…"
    )]
    Replay(ImaReplay),
}

/// Arguments of `portcullis ima replay`.
#[derive(Args, Debug)]
pub struct ImaReplay {
    /// The list: binary_runtime_measurements or ascii_runtime_measurements.
    file: PathBuf,
    /// The bank.
    #[arg(long, default_value = "sha256")]
    bank: Bank,
    /// A value of PCR 10 in hex: after how many entries is it reached? Exit 1 if never.
    #[arg(long, value_name = "HEX")]
    pcr10: Option<String>,
}

/// Runs `portcullis ima …`.
pub fn run(command: ImaCommand, out: Output) -> Result<(), Failure> {
    let ImaCommand::Replay(arguments) = command;
    let bytes = files::read(&arguments.file, LARGE)?;
    let list = ImaList::parse(&bytes)
        .map_err(|error| Failure::Content { path: arguments.file.clone(), text: error.to_string() })?;
    let bank = arguments.bank;
    let (count, violations) = (list.entries().len(), list.violations());
    let Some(wanted) = &arguments.pcr10 else {
        let digest = hex::encode(list.replay(bank, ExtendRule::Digest));
        let padded = hex::encode(list.replay(bank, ExtendRule::PaddedSha1));
        let value = json!({
            "entries": count, "violations": violations, "bank": bank.to_string(),
            "pcr10": digest, "pcr10_padded_sha1": padded,
        });
        return out.show(&value, || {
            format!("{count} entries, {violations} violations\nPCR 10, {bank}: {digest}\nif padded SHA-1: {padded}")
        });
    };
    let wanted = hex::decode(wanted)
        .ok()
        .filter(|value| value.len() == bank.digest_size())
        .ok_or_else(|| Failure::Usage(format!("--pcr10 needs {} hex digits for {bank}", bank.digest_size() * 2)))?;
    let found = [(ExtendRule::Digest, "digest"), (ExtendRule::PaddedSha1, "padded-sha1")]
        .into_iter()
        .find_map(|(rule, name)| Some((list.position_of(bank, rule, &wanted)?, name)));
    match found {
        Some((position, rule)) => {
            let value: Value =
                json!({ "entries": count, "violations": violations, "reached_after": position, "rule": rule });
            out.show(&value, || {
                format!("reached after {position} of {count} entries ({rule}), {violations} violations")
            })
        }
        None => Err(Failure::NotTrusted(vec![crate::verify::reason(
            "ima.pcr-mismatch",
            format!("None of the list's {count} entries leads to this PCR 10 in bank {bank}."),
        )])),
    }
}
