//! `portcullis quote check`: whether a given key signed given PCR values for a nonce. Reads what `tpm2_quote` writes.
//!
//! That a quote holds is less than trust: it does not say whose TPM the key is in, nor whether the values are those of a
//! good boot. `portcullis verify` does.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use portcullis_attest::evidence::PcrValues;
use portcullis_attest::key::{PublicArea, QuotingKey};
use portcullis_attest::quote::{Caveat, CheckedQuote, PcrFile};
use portcullis_attest::reason::{Reason, ReasonCode};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::files::{self, LARGE, SMALL};
use crate::measurements::{event_log, ima_list};
use crate::output::Output;
use crate::verify::{content, denied};

/// `portcullis quote …`.
#[derive(Subcommand, Debug)]
pub enum QuoteCommand {
    /// Check one quote with a given key.
    #[command(
        after_help = "Example:\n  tpm2_quote -c ak.ctx -l sha256:0,1,7 -q 00ff… -m message -s signature -o pcrs\n  \
                      portcullis quote check --ak ak.pub --message message --signature signature --pcrs pcrs --nonce 00ff…"
    )]
    Check(QuoteCheck),
}

/// Arguments of `portcullis quote check`.
#[derive(Args, Debug)]
pub struct QuoteCheck {
    /// The key that should have signed: TPM2B_PUBLIC, TPMT_PUBLIC, or PEM, which does not say what the key may sign.
    #[arg(long, value_name = "FILE")]
    ak: PathBuf,
    /// The endorsement key that is the key's parent (TPM2B_PUBLIC or TPMT_PUBLIC): the quote must name it so.
    #[arg(long, value_name = "FILE")]
    ek: Option<PathBuf>,
    /// The quote: TPMS_ATTEST (`tpm2_quote -m`).
    #[arg(long, value_name = "FILE")]
    message: PathBuf,
    /// The signature: TPMT_SIGNATURE, or plain (`tpm2_quote -s`).
    #[arg(long, value_name = "FILE")]
    signature: PathBuf,
    /// The PCR values (`tpm2_quote -o`, in either of its forms).
    #[arg(long, value_name = "FILE")]
    pcrs: PathBuf,
    /// The nonce, the whole of the quote's extraData; "" for a quote that answers none.
    #[arg(long, value_name = "HEX")]
    nonce: String,
    /// Replay this firmware event log (binary_bios_measurements) against the quoted PCRs.
    #[arg(long, value_name = "FILE")]
    eventlog: Option<PathBuf>,
    /// Take a log that has events of PCRs which the quote does not cover: they are listed, and nothing proves them.
    #[arg(long, requires = "eventlog")]
    allow_unquoted: bool,
    /// Replay this IMA list (binary_runtime_measurements or ascii_runtime_measurements) against the quoted PCR 10.
    #[arg(long, value_name = "FILE")]
    ima: Option<PathBuf>,
}

/// What the quote and the logs beside it say.
struct Answer {
    quote: CheckedQuote,
    caveats: Vec<Caveat>,
    /// The log's events, and the PCRs of them that the quote does not cover.
    events: Option<(usize, Vec<u8>)>,
    /// The list's entries, and how many of them the quote covers.
    entries: Option<(usize, usize)>,
}

/// Runs `portcullis quote …`.
pub fn quote(command: QuoteCommand, out: Output) -> Result<(), Failure> {
    let QuoteCommand::Check(arguments) = command;
    let nonce = hex::decode(&arguments.nonce)
        .ok()
        .filter(|nonce| nonce.len() <= 64)
        .ok_or_else(|| Failure::Usage("--nonce needs at most 64 bytes in hex".to_owned()))?;
    let key = key(&arguments.ak, arguments.ek.as_deref())?;
    let values =
        PcrFile::parse(&files::read(&arguments.pcrs, SMALL)?).map_err(|error| content(&arguments.pcrs, &error))?;
    let message = files::read(&arguments.message, SMALL)?;
    let signature = files::read(&arguments.signature, SMALL)?;
    let quote = CheckedQuote::check(&key, &message, &signature, &values, &nonce).map_err(denied)?;
    let answer = with_logs(quote, &arguments)?;
    out.show(&as_json(&answer), || as_text(&answer))
}

/// Replays the logs that were given.
fn with_logs(quote: CheckedQuote, arguments: &QuoteCheck) -> Result<Answer, Failure> {
    let mut reasons = Vec::new();
    let mut caveats = quote.caveats().to_vec();
    let (mut events, mut entries) = (None, None);
    if let Some(path) = &arguments.eventlog {
        let bytes = files::read(path, LARGE)?;
        let log = event_log(path, &bytes)?;
        events = Some((log.events().len(), quote.unquoted_pcrs(&log)));
        let replayed =
            if arguments.allow_unquoted { quote.replay_quoted_part(&log) } else { quote.replay_eventlog(&log) };
        match replayed {
            Ok(more) => caveats.extend(more),
            Err(bad) => reasons.extend(bad.into_iter().map(with_the_way_out)),
        }
    }
    if let Some(path) = &arguments.ima {
        let bytes = files::read(path, LARGE)?;
        let list = ima_list(path, &bytes)?;
        match quote.replay_ima(&list) {
            Ok(covered) => entries = Some((list.entries().count(), covered)),
            Err(bad) => reasons.extend(bad),
        }
        caveats.retain(|caveat| *caveat != Caveat::RuntimeUnchecked);
    }
    if reasons.is_empty() { Ok(Answer { quote, caveats, events, entries }) } else { Err(denied(reasons)) }
}

/// A quote of some PCRs is a common thing, so this no says what to do.
fn with_the_way_out(reason: Reason) -> Reason {
    if reason.code != ReasonCode::EventlogPcrNotQuoted {
        return reason;
    }
    reason.text(
        "The event log has events of this PCR, which the quote does not cover: nothing proves them. Quote the PCR, too, or \
         ask for the quoted PCRs alone with --allow-unquoted.",
    )
}

fn key(ak: &Path, ek: Option<&Path>) -> Result<QuotingKey, Failure> {
    let key = QuotingKey::parse(&files::read(ak, SMALL)?).map_err(|denial| match &*denial {
        [Reason { code: ReasonCode::AkMalformed, found, .. }] => content(
            ak,
            &format!("not a TPM2B_PUBLIC, TPMT_PUBLIC or public key in PEM: {}", found.as_deref().unwrap_or("no key")),
        ),
        _ => denied(denial),
    })?;
    let Some(path) = ek else { return Ok(key) };
    let ek = PublicArea::parse_either(&files::read(path, SMALL)?).map_err(|error| content(path, &error))?;
    key.under(&ek).ok_or_else(|| Failure::Usage("--ek needs an --ak with its attributes, not a PEM".to_owned()))
}

fn as_json(answer: &Answer) -> Value {
    let quote = &answer.quote;
    let clock = quote.clock();
    let caveats: Vec<Value> =
        answer.caveats.iter().map(|caveat| json!({ "code": caveat.as_str(), "text": caveat.sentence() })).collect();
    json!({
        "holds": true, "reasons": [], "caveats": caveats, "hash": quote.hash().to_string(), "pcrs": pcrs(&quote.values()),
        "clock_ms": clock.clock_ms, "reset_count": clock.reset_count, "restart_count": clock.restart_count,
        "safe": clock.safe, "firmware_version": format!("{:016x}", quote.firmware_version()),
        "eventlog": answer.events.as_ref().map(|(events, pcrs)| json!({ "events": events, "unquoted_pcrs": pcrs })),
        "ima": answer.entries.map(|(entries, covered)| json!({ "entries": entries, "covered": covered })),
    })
}

fn pcrs(values: &PcrValues) -> Value {
    let bank = |pcrs: &std::collections::BTreeMap<u8, Vec<u8>>| -> Value {
        pcrs.iter().map(|(pcr, value)| (pcr.to_string(), Value::from(hex::encode(value)))).collect()
    };
    values.iter().map(|(name, pcrs)| (name.to_string(), bank(pcrs))).collect()
}

fn as_text(answer: &Answer) -> String {
    let quote = &answer.quote;
    let clock = quote.clock();
    let mut lines = vec![format!(
        "the quote holds (resetCount {}, restartCount {}, clock {} ms{}, TPM firmware {:016x})",
        clock.reset_count,
        clock.restart_count,
        clock.clock_ms,
        if clock.safe { "" } else { ", which is not safe" },
        quote.firmware_version(),
    )];
    lines.extend(answer.events.iter().map(|(events, unquoted)| match unquoted.as_slice() {
        [] => format!("the event log's {events} events lead to the quoted PCRs"),
        pcrs => {
            let pcrs: Vec<_> = pcrs.iter().map(u8::to_string).collect();
            format!(
                "the event log leads to the quoted PCRs; its events of PCRs {} are not covered by the quote",
                pcrs.join(", ")
            )
        }
    }));
    lines.extend(
        answer.entries.map(|(entries, covered)| {
            format!("the quoted PCR 10 covers {covered} of the IMA list's {entries} entries")
        }),
    );
    lines.extend(answer.caveats.iter().map(|caveat| format!("WARNING: {}", caveat.sentence())));
    for (bank, pcrs) in quote.values() {
        lines.push(format!("{bank}:"));
        lines.extend(pcrs.iter().map(|(pcr, value)| format!("  {pcr:2}: {}", hex::encode(value))));
    }
    lines.join("\n")
}
