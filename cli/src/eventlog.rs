//! `portcullis eventlog`: what a firmware says it measured, and to which PCR values that leads.
//!
//! A log alone proves nothing, and these commands do not say that it does: `portcullis verify` judges one with a quote.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Subcommand;
use portcullis_attest::eventlog::{Coverage, Event, EventLog};
use portcullis_attest::key::Bank;
use serde::Serialize;
use serde_json::json;

use crate::failure::Failure;
use crate::files::{self, LARGE};
use crate::output::{Output, plain, table};

/// `portcullis eventlog …`.
#[derive(Subcommand, Debug)]
pub enum EventLogCommand {
    /// Show every event in words.
    #[command(after_help = "Example:\n  portcullis eventlog show /sys/kernel/security/tpm0/binary_bios_measurements")]
    Show {
        /// The log, as the kernel shows it in binary_bios_measurements.
        file: PathBuf,
        /// The bank whose digests are shown.
        #[arg(long, default_value = "sha256")]
        bank: Bank,
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
pub fn run(command: EventLogCommand, out: Output) -> Result<(), Failure> {
    let (EventLogCommand::Show { file, .. } | EventLogCommand::Replay { file, .. }) = &command;
    let bytes = files::read(file, LARGE)?;
    let log =
        EventLog::parse(&bytes).map_err(|error| Failure::Content { path: file.clone(), text: error.to_string() })?;
    match command {
        EventLogCommand::Show { bank, .. } => show(&log, bank, out),
        EventLogCommand::Replay { bank, file } => replay(&log, bank, &file, out),
    }
}

fn show(log: &EventLog<'_>, bank: Bank, out: Output) -> Result<(), Failure> {
    let events: Vec<ShownEvent> = log.events().iter().map(|event| ShownEvent::new(event, bank)).collect();
    let value = json!({ "events": events, "trailing_bytes": log.trailing().len() });
    out.show(&value, || {
        let rows: Vec<Vec<String>> = events.iter().map(ShownEvent::row).collect();
        let mut text = table(&["NR", "PCR", "EVENT", "COVERED", "DIGEST", "TEXT"], &rows, "The log has no events.");
        if !log.trailing().is_empty() {
            text += "\n";
            text += &log.trailing().len().to_string();
            text += " bytes follow the last event";
        }
        text
    })
}

fn replay(log: &EventLog<'_>, bank: Option<Bank>, file: &std::path::Path, out: Output) -> Result<(), Failure> {
    let there = log.banks();
    if let Some(bank) = bank.filter(|bank| !there.contains(bank)) {
        return Err(Failure::Content { path: file.to_owned(), text: format!("the log has no digests of bank {bank}") });
    }
    let wanted: Vec<Bank> = bank.map_or(there, |bank| vec![bank]);
    let values: BTreeMap<String, BTreeMap<String, String>> = wanted
        .into_iter()
        .map(|bank| {
            let pcrs = log.replay(bank).into_iter().map(|(pcr, value)| (pcr.to_string(), hex::encode(value)));
            (bank.to_string(), pcrs.collect())
        })
        .collect();
    out.show(&json!({ "pcrs": values }), || {
        let mut lines = Vec::new();
        for (bank, pcrs) in &values {
            lines.push(format!("{bank}:"));
            let mut numbered: Vec<_> =
                pcrs.iter().filter_map(|(pcr, value)| Some((pcr.parse::<u8>().ok()?, value))).collect();
            numbered.sort();
            lines.extend(numbered.into_iter().map(|(pcr, value)| format!("  {pcr:2}: {value}")));
        }
        lines.join("\n")
    })
}

/// One event for people and programs.
#[derive(Serialize)]
struct ShownEvent {
    number: usize,
    pcr: Option<u32>,
    #[serde(rename = "type")]
    event_type: String,
    what: String,
    text: Option<String>,
    covered: &'static str,
    digests: BTreeMap<String, String>,
    #[serde(skip)]
    digest: String,
}

impl ShownEvent {
    fn new(event: &Event<'_>, bank: Bank) -> Self {
        let description = event.describe(bank);
        let covered = match description.coverage {
            Coverage::Data => "data",
            Coverage::DataButLastByte => "data but its last byte",
            Coverage::Text => "text",
            Coverage::Value => "value",
            Coverage::Nothing => "nothing",
        };
        Self {
            number: event.number,
            pcr: event.extends().then_some(event.pcr),
            event_type: event.event_type.to_string(),
            what: description.words,
            text: description.text,
            covered,
            digests: event.digests.iter().map(|(bank, digest)| (bank.to_string(), hex::encode(digest))).collect(),
            digest: event.digests.get(bank).map(hex::encode).unwrap_or_default(),
        }
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.number.to_string(),
            self.pcr.map_or_else(|| "-".to_owned(), |pcr| pcr.to_string()),
            self.what.clone(),
            self.covered.to_owned(),
            self.digest.chars().take(16).collect(),
            self.text.as_deref().map(plain).unwrap_or_default().chars().take(120).collect(),
        ]
    }
}
