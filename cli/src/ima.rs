//! `portcullis ima`: what a kernel says it ran and loaded, and to which PCR 10 that leads.
//!
//! A list alone proves nothing, and these commands do not say that it does: `portcullis verify` judges one with a quote.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use portcullis_attest::ima::{ExtendRule, ImaList, TemplateHash};
use portcullis_attest::key::Bank;
use serde_json::{Map, json};

use crate::failure::Failure;
use crate::files::{self, LARGE};
use crate::measurements::ima_list;
use crate::output::Output;

/// `portcullis ima …`.
#[derive(Subcommand, Debug)]
pub enum ImaCommand {
    /// Print the PCR 10 to which the list leads, or find a PCR 10 in it.
    #[command(
        long_about = "Print the PCR 10 to which the list leads, or find a PCR 10 in it.\n\nLinux extends a bank with its own \
                      hash of each entry, or, if it had not that hash when IMA started (and always before Linux 5.8), with \
                      the SHA-1 hash padded with zeros. A list of SHA-1 template digests does not say which: both values are \
                      printed, and --pcr10 finds the one that a TPM has. Violations were padded, too, before 5.8. A list that newer \
                      kernels show for one bank says it.",
        after_help = "Examples:\n  portcullis ima replay /sys/kernel/security/ima/binary_runtime_measurements\n  \
                      portcullis ima replay ascii_runtime_measurements --pcr10 8f2c…"
    )]
    Replay(ImaReplay),
}

/// Arguments of `portcullis ima replay`.
#[derive(Args, Debug)]
pub struct ImaReplay {
    /// The list: binary_runtime_measurements or ascii_runtime_measurements.
    file: PathBuf,
    /// Only this bank [default: every bank; with --pcr10 those with digests of its length]
    #[arg(long)]
    bank: Option<Bank>,
    /// A value of PCR 10 in hex: after how many entries is it reached, and by which rule? Exit 1 if never.
    #[arg(long, value_name = "HEX")]
    pcr10: Option<String>,
}

/// Runs `portcullis ima …`.
pub fn run(command: ImaCommand, out: Output) -> Result<(), Failure> {
    let ImaCommand::Replay(arguments) = command;
    let bytes = files::read(&arguments.file, LARGE)?;
    let list = ima_list(&arguments.file, &bytes)?;
    match &arguments.pcr10 {
        Some(wanted) => find(&list, arguments.bank, wanted, out),
        None => replay(&list, arguments.bank, out),
    }
}

fn replay(list: &ImaList<'_>, bank: Option<Bank>, out: Output) -> Result<(), Failure> {
    let mut banks = Map::new();
    for bank in Bank::ALL.into_iter().filter(|one| bank.is_none_or(|bank| bank == *one)) {
        banks.insert(bank.to_string(), hex::encode(list.replay(bank, ExtendRule::Digest)).into());
        if bank != Bank::Sha1 {
            let padded = hex::encode(list.replay(bank, ExtendRule::PaddedSha1));
            banks.insert(format!("{bank}_padded_sha1"), padded.into());
            if list.violations() > 0 {
                let padded = hex::encode(list.replay(bank, ExtendRule::PaddedThroughout));
                banks.insert(format!("{bank}_padded_throughout"), padded.into());
            }
        }
    }
    let TemplateHash { bank, .. } = list.template_hash();
    let rule = said_by(list.template_hash());
    let mismatches = list.entries().filter(|entry| !entry.template_digest_holds()).count();
    let value = json!({
        "entries": list.len(),
        "violations": list.violations(),
        "template_mismatches": mismatches,
        "template_digests": bank.to_string(),
        "rule": rule,
        "banks": banks,
    });
    out.show(&value, || {
        let mut lines = vec![format!("{} entries, {} violations", list.len(), list.violations())];
        if mismatches > 0 {
            lines.push(format!("{mismatches} entries have a template digest that is not of what they say"));
        }
        lines.push(
            "PCR 10 by bank; padded_sha1 is what a bank holds for which the kernel had no hash at hand:".to_owned(),
        );
        if list.violations() > 0 {
            lines.push("(padded_throughout: the same of kernels before 5.8, which pad violations, too)".to_owned());
        }
        lines.extend(banks.iter().map(|(bank, value)| format!("  {bank}: {}", value.as_str().unwrap_or_default())));
        if let Some(rule) = rule {
            lines.push(format!("The list's own digests say that bank {bank} was extended by the rule {rule}."));
        }
        lines.join("\n")
    })
}

/// What template digests say of how their bank was extended: SHA-1 digests are the same by both rules.
fn said_by(hash: TemplateHash) -> Option<&'static str> {
    (hash.bank != Bank::Sha1).then(|| hash.rule.as_str())
}

fn find(list: &ImaList<'_>, bank: Option<Bank>, wanted: &str, out: Output) -> Result<(), Failure> {
    let wanted = hex::decode(wanted).map_err(|error| Failure::Usage(format!("--pcr10 is not hex: {error}")))?;
    let banks: Vec<Bank> = Bank::ALL
        .into_iter()
        .filter(|one| bank.is_none_or(|bank| bank == *one) && one.digest_size() == wanted.len())
        .collect();
    if banks.is_empty() {
        let of = bank.map_or_else(|| "no bank".to_owned(), |bank| format!("not bank {bank}"));
        return Err(Failure::Usage(format!("--pcr10 has {} bytes, as {of} has", wanted.len())));
    }
    let rules = [ExtendRule::Digest, ExtendRule::PaddedSha1, ExtendRule::PaddedThroughout];
    let found = banks
        .iter()
        .flat_map(|bank| rules.map(|rule| (*bank, rule)))
        .find_map(|(bank, rule)| Some((bank, rule, list.position_of(bank, rule, &wanted)?)));
    let Some((bank, rule, position)) = found else {
        let names: Vec<_> = banks.iter().map(|bank| bank.name()).collect();
        let text = format!("None of the list's {} entries leads to this PCR 10 in {}.", list.len(), names.join(" or "));
        return Err(Failure::NotTrusted(vec![crate::verify::reason("ima.pcr-mismatch", text)]));
    };
    let (rule, count) = (rule.as_str(), list.len());
    let value = json!({
        "entries": count,
        "violations": list.violations(),
        "bank": bank.to_string(),
        "rule": rule,
        "reached_after": position,
    });
    out.show(&value, || {
        format!("reached after {position} of {count} entries in bank {bank} ({rule}), {} violations", list.violations())
    })
}
