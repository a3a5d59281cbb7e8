//! `portcullis eventlog`: what a firmware says it measured, and to which PCR values that leads.
//!
//! A log alone proves nothing, and these commands do not say that it does: `portcullis verify` judges one with a quote.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Subcommand;
use portcullis_attest::eventlog::{Event, EventLog};
use portcullis_attest::key::Bank;
use serde::Serialize;
use serde_json::json;

use crate::failure::Failure;
use crate::files::{self, LARGE};
use crate::measurements::event_log;
use crate::output::{Output, plain, table};
use crate::verify::content;

/// `portcullis eventlog …`.
#[derive(Subcommand, Debug)]
pub enum EventLogCommand {
    /// Show every event in words.
    #[command(after_help = "COVERED says what of the event its digest is made of: all its data, their beginning, the \
                            text behind a prefix, or a variable's value. Where it says no, the words are a label that \
                            anyone could have written.\n\nExample:\n  portcullis eventlog show \
                            /sys/kernel/security/tpm0/binary_bios_measurements")]
    Show {
        /// The log, as the kernel shows it in binary_bios_measurements.
        file: PathBuf,
        /// The bank whose digests are shown [default: sha256, or the strongest that the log has]
        #[arg(long)]
        bank: Option<Bank>,
    },
    /// Print the PCR values to which the log leads.
    #[command(after_help = "Example:\n  portcullis eventlog replay binary_bios_measurements --json")]
    Replay {
        /// The log, as the kernel shows it in binary_bios_measurements.
        file: PathBuf,
        /// Only this bank [default: every bank of the log]
        #[arg(long)]
        bank: Option<Bank>,
    },
}

/// Runs `portcullis eventlog …`.
pub fn run(command: &EventLogCommand, out: Output) -> Result<(), Failure> {
    let (EventLogCommand::Show { file, bank } | EventLogCommand::Replay { file, bank }) = command;
    let bytes = files::read(file, LARGE)?;
    let log = event_log(file, &bytes)?;
    let there = log.banks();
    // Single digests can be shown of a bank that leads nowhere as a whole.
    let possible = match command {
        EventLogCommand::Show { .. } => log.declared_banks(),
        EventLogCommand::Replay { .. } => there.clone(),
    };
    if let Some(bank) = bank.filter(|bank| !possible.contains(bank)) {
        return Err(content(file, &not_replayed(&log, bank)));
    }
    match command {
        EventLogCommand::Show { bank, .. } => show(&log, bank.unwrap_or_else(|| shown_bank(&there)), out),
        EventLogCommand::Replay { bank, .. } => replay(&log, &bank.map_or(there, |bank| vec![bank]), out),
    }
}

/// SHA-256 where it is there, for that is what others show; else the longest.
fn shown_bank(there: &[Bank]) -> Bank {
    let longest = || there.iter().copied().max_by_key(|bank| bank.digest_size());
    there.iter().copied().find(|bank| *bank == Bank::Sha256).or_else(longest).unwrap_or(Bank::Sha256)
}

fn show(log: &EventLog<'_>, bank: Bank, out: Output) -> Result<(), Failure> {
    let events: Vec<ShownEvent> = log.events().iter().map(|event| ShownEvent::new(event, bank)).collect();
    let value = json!({ "events": events, "bank": bank_name(bank), "trailing_bytes": log.trailing().len() });
    out.show(&value, || {
        let rows: Vec<Vec<String>> = events.iter().map(ShownEvent::row).collect();
        let header = ["NR", "PCR", "TYPE", "MEANING", "COVERED", "DIGEST", "TEXT"];
        let text = table(&header, &rows, "The log has no events.");
        [Some(text), trailing(log)].into_iter().flatten().collect::<Vec<_>>().join("\n")
    })
}

fn replay(log: &EventLog<'_>, banks: &[Bank], out: Output) -> Result<(), Failure> {
    let replayed: Vec<(&str, BTreeMap<u8, String>)> = banks
        .iter()
        .map(|bank| {
            let pcrs = log.replay(*bank).into_iter().map(|(pcr, value)| (pcr, hex::encode(value)));
            (bank_name(*bank), pcrs.collect())
        })
        .collect();
    let by_name: BTreeMap<_, _> = replayed.iter().cloned().collect();
    let incomplete: Vec<Bank> = log.declared_banks().into_iter().filter(|bank| !log.banks().contains(bank)).collect();
    let value = json!({
        "banks": by_name,
        "incomplete_banks": incomplete.iter().map(|bank| bank_name(*bank)).collect::<Vec<_>>(),
        "events": log.events().len(),
        "trailing_bytes": log.trailing().len(),
    });
    out.show(&value, || {
        let mut lines = Vec::new();
        for (bank, pcrs) in &replayed {
            lines.push(format!("{bank}:"));
            lines.extend(pcrs.iter().map(|(pcr, value)| format!("  {pcr:2}: {value}")));
        }
        lines.extend(incomplete.iter().map(|bank| not_replayed(log, *bank)));
        lines.push(format!("{} events", log.events().len()));
        lines.extend(trailing(log));
        lines.join("\n")
    })
}

/// Why a log leads to no value in a bank.
fn not_replayed(log: &EventLog<'_>, bank: Bank) -> String {
    let name = bank_name(bank);
    match log.first_without_digest(bank).filter(|_| log.declared_banks().contains(&bank)) {
        Some(event) => format!(
            "{name}: event {} (PCR {}) has no digest of this bank, so it cannot be replayed",
            event.number, event.pcr
        ),
        None => format!("the log has no digests of bank {bank}"),
    }
}

/// What is said of bytes that belong to no event.
fn trailing(log: &EventLog<'_>) -> Option<String> {
    let bytes = log.trailing();
    let what = match bytes {
        [] => return None,
        _ if bytes.iter().all(|byte| *byte == 0) => "bytes of zeros",
        _ if bytes.iter().all(|byte| *byte == 0xff) => "bytes of erased flash (0xff)",
        _ => "bytes that are no event",
    };
    Some(format!("{} {what} follow the last event: nothing accounts for them, `portcullis verify` denies", bytes.len()))
}

/// A bank as Linux names it.
fn bank_name(bank: Bank) -> &'static str {
    if bank == Bank::Sm3_256 { "sm3" } else { bank.name() }
}

/// One event for people and programs.
#[derive(Serialize)]
struct ShownEvent {
    number: usize,
    pcr: Option<u32>,
    #[serde(rename = "type")]
    event_type: String,
    meaning: String,
    text: Option<String>,
    covered: &'static str,
    digests: BTreeMap<&'static str, String>,
    #[serde(skip)]
    digest: String,
}

impl ShownEvent {
    fn new(event: &Event<'_>, bank: Bank) -> Self {
        let description = event.describe(bank);
        let covered = description.coverage.as_str();
        Self {
            number: event.number,
            pcr: event.extends().then_some(event.pcr),
            event_type: event.event_type.to_string(),
            meaning: description.words,
            text: description.text,
            covered,
            digests: event.digests.iter().map(|(bank, digest)| (bank_name(bank), hex::encode(digest))).collect(),
            digest: event.digests.get(bank).map(hex::encode).unwrap_or_default(),
        }
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.number.to_string(),
            self.pcr.map_or_else(|| "-".to_owned(), |pcr| pcr.to_string()),
            self.event_type.clone(),
            self.meaning.clone(),
            self.covered.to_owned(),
            self.digest.chars().take(16).collect(),
            self.text.as_deref().map(plain).unwrap_or_default().chars().take(120).collect(),
        ]
    }
}
