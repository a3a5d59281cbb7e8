//! What was measured, for people on standard output and as JSON in a file.

use std::path::Path;

use serde_json::{Value, json};

use crate::rounds::{Contender, Summary};

/// Everything that was measured in one run.
#[derive(Default)]
pub struct Report {
    section: &'static str,
    rows: Vec<Value>,
    attentions: Vec<String>,
}

/// One figure.
pub struct Row {
    about: String,
    name: String,
    figure: Summary,
    unit: &'static str,
    ratio: Option<(String, Summary)>,
}

impl Row {
    /// What one repetition of a contender cost.
    pub fn of(about: &str, contender: &Contender<'_>) -> Self {
        Self::figure(about, contender.name, contender.micros(), "µs")
    }

    pub fn figure(about: &str, name: &str, figure: Summary, unit: &'static str) -> Self {
        Self { about: about.to_owned(), name: name.to_owned(), figure, unit, ratio: None }
    }

    /// And how many times as much as another one it cost.
    pub fn against(self, contender: &Contender<'_>, other: &Contender<'_>) -> Self {
        self.times(other.name, contender.ratio(other))
    }

    /// The same, of a ratio that somebody else took.
    pub fn times(self, other: &str, ratio: Summary) -> Self {
        Self { ratio: Some((other.to_owned(), ratio)), ..self }
    }
}

impl Report {
    pub fn section(&mut self, title: &'static str) {
        self.section = title;
        println!("\n{title}");
    }

    pub fn row(&mut self, row: Row) {
        let Row { about, name, figure, unit, ratio } = row;
        let words = ratio.as_ref().map_or_else(String::new, |(other, ratio)| {
            format!("{:6.2} × {other} ({:.2} to {:.2})", ratio.median, ratio.low, ratio.high)
        });
        println!("  {about:38} {name:28} {:>12} {unit}  {words}", number(figure.median));
        self.rows.push(json!({
            "section": self.section, "about": about, "name": name, "unit": unit, "value": spread(figure),
            "against": ratio.map(|(other, ratio)| json!({ "name": other, "ratio": spread(ratio) })),
        }));
    }

    /// Something that was not measured, and why.
    pub fn attention(&mut self, what: &str) {
        println!("  ATTENTION: {what}");
        self.attentions.push(what.to_owned());
    }

    pub fn write(&self, file: &Path) -> std::io::Result<()> {
        let value = json!({ "schema": "portcullis/bench/1", "rows": self.rows, "not_measured": self.attentions });
        std::fs::write(file, format!("{value:#}\n"))
    }
}

fn spread(summary: Summary) -> Value {
    json!({ "median": summary.median, "p10": summary.low, "p90": summary.high })
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
