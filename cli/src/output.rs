//! What commands print: tables for people, JSON for programs. What comes from elsewhere cannot steer the terminal.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use portcullis_verifier::client::ClientError;
use portcullis_verifier::reason::Reason;
use serde::Serialize;
use serde_json::json;

use crate::failure::Failure;

/// Where and how a command prints.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// JSON instead of text.
    pub json: bool,
}

impl Output {
    /// Prints `value` as JSON, or `text`.
    pub fn show(self, value: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
        let text = if self.json {
            serde_json::to_string_pretty(value).map_err(|error| Failure::Usage(error.to_string()))?
        } else {
            text()
        };
        print(&text)
    }

    /// Reports a failure: as JSON on standard output if that was asked for, and always in words on standard error.
    pub fn fail(self, failure: &Failure) {
        let reasons = reasons(failure);
        if self.json {
            let value = match &reasons {
                Some(reasons) => json!({ "trusted": false, "reasons": reasons }),
                None => error_json(failure),
            };
            // The exit code says it too when standard output is gone.
            let _ = print(&value.to_string());
        }
        match (reasons, failure) {
            (Some(reasons), _) => {
                complain(if matches!(failure, Failure::NotTrusted(_)) { "not trusted:" } else { "denied:" });
                for reason in &reasons {
                    complain(&explain(reason, "  "));
                }
            }
            (None, Failure::Client(ClientError::NotPlaced { why_not })) if !why_not.is_empty() => {
                complain("no host can take the VM:");
                for host in why_not {
                    complain(&format!("  {}", plain(&host.host)));
                    host.reasons.iter().for_each(|reason| complain(&explain(reason, "    ")));
                }
            }
            (None, failure) => complain(&format!("error: {}", plain_lines(&failure.to_string()))),
        }
    }
}

fn reasons(failure: &Failure) -> Option<Vec<Reason>> {
    match failure {
        Failure::NotTrusted(reasons) => Some(reasons.clone()),
        Failure::Client(error) if !error.reasons().is_empty() => Some(error.reasons().to_vec()),
        _ => None,
    }
}

fn error_json(failure: &Failure) -> serde_json::Value {
    match failure {
        Failure::Client(ClientError::NotPlaced { why_not }) => json!({ "placed": false, "why_not": why_not }),
        Failure::Client(ClientError::Refused { code, text, .. }) => json!({ "error": { "code": code, "text": text } }),
        other => json!({ "error": { "text": other.to_string() } }),
    }
}

fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        // `| head` has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(Failure::Output),
    }
}

/// Writes lines to standard error. Not by `eprintln!`, which panics where it cannot: the exit code says it too.
fn complain(lines: &str) {
    let _ = writeln!(std::io::stderr(), "{lines}");
}

/// A warning on standard error, beside whatever the command answers.
pub fn warn(text: &str) {
    complain(&format!("warning: {}", plain(text)));
}

/// A reason in words, over several lines where it compares values.
pub fn explain(reason: &Reason, indent: &str) -> String {
    let mut lines = vec![format!("{indent}{}: {}", reason.code, plain(&reason.text))];
    let place = match (reason.pcr, &reason.event) {
        (Some(pcr), Some(event)) => Some(format!("PCR {pcr}, {}", plain(event))),
        (Some(pcr), None) => Some(format!("PCR {pcr}")),
        (None, Some(event)) => Some(plain(event)),
        (None, None) => None,
    };
    for (name, value) in [("where", place), ("expected", reason.expected.clone()), ("found", reason.found.clone())] {
        if let Some(value) = value {
            lines.push(format!("{indent}    {name:9} {}", plain(&value)));
        }
    }
    lines.join("\n")
}

/// `text` on one line and without anything that a terminal would obey.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || is_direction(c) { '\u{fffd}' } else { c }).collect()
}

/// Like [`plain`], for a text of several lines: all but the first are indented, so that none looks like an error of its own.
fn plain_lines(text: &str) -> String {
    text.trim_end().lines().map(plain).collect::<Vec<_>>().join("\n  ")
}

/// Characters that change the order in which text is shown.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A table with aligned columns; `none` when it has no rows.
pub fn table(head: &[&str], rows: &[Vec<String>], none: &str) -> String {
    if rows.is_empty() {
        return none.to_owned();
    }
    let head: Vec<String> = head.iter().map(|name| (*name).to_owned()).collect();
    let rows: Vec<Vec<String>> =
        std::iter::once(head).chain(rows.iter().map(|row| row.iter().map(|cell| plain(cell)).collect())).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// How long ago, or how soon, in words.
pub fn when(seconds_since_1970: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let words = |seconds: u64| match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    };
    if seconds_since_1970 > now {
        format!("in {}", words(seconds_since_1970 - now))
    } else {
        format!("{} ago", words(now.saturating_sub(seconds_since_1970)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_control_characters_do_not_come_through() {
        let rows = vec![vec!["honest".into(), "yes".into()], vec!["b\u{1b}[2J".into(), "\u{202e}no".into()]];
        assert_eq!(table(&["HOST", "TRUST"], &rows, "none"), "HOST    TRUST\nhonest  yes\nb\u{fffd}[2J   \u{fffd}no");
        assert_eq!(table(&["HOST"], &[], "none"), "none");
    }

    #[test]
    fn a_reason_shows_expected_above_found() {
        let reason: Reason = serde_json::from_value(json!({
            "code": "eventlog.command-line", "pcr": 8, "event": "kernel command line",
            "expected": "quiet", "found": "quiet init=/bin/sh", "text": "Another command line."
        }))
        .unwrap();
        assert_eq!(
            explain(&reason, ""),
            "eventlog.command-line: Another command line.\n    where     PCR 8, kernel command line\n    \
             expected  quiet\n    found     quiet init=/bin/sh"
        );
    }

    #[test]
    fn nothing_of_a_reason_steers_the_terminal() {
        let evil = "\u{1b}]0;x\u{7}\u{9b}2J\u{61c}\n";
        let reason: Reason = serde_json::from_value(json!({
            "code": "of.tomorrow", "pcr": null, "event": evil, "expected": evil, "found": evil, "text": evil
        }))
        .unwrap();
        let text = explain(&reason, "");
        assert_eq!(text.lines().count(), 4, "{text:?}");
        assert!(text.chars().all(|c| c == '\n' || !(c.is_control() || is_direction(c))), "{text:?}");
    }

    #[test]
    fn an_error_of_several_lines_stays_readable() {
        let text = "no TOML\n1 | x\u{1b}[2J\n  | ^\nerror: forged\n";
        assert_eq!(plain_lines(text), "no TOML\n  1 | x\u{fffd}[2J\n    | ^\n  error: forged");
    }

    #[test]
    fn times_are_words() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(when(now - 7200), "2 h ago");
        assert_eq!(when(now - 240), "4 min ago");
        assert!(when(now + 200).starts_with("in "));
    }
}
