//! How fast the crate judges: `scripts/bench attest`.
//!
//! Costs are processor time, not time on the clock; ratios are of turns in the same round. See BENCHMARKS.md.

mod allocations;
mod boots;
mod floor;
mod hostile;
mod ima;
mod peers;
mod quote;
mod report;
mod rounds;
#[path = "../../tests/software_tpm/mod.rs"]
mod software_tpm;
mod verdict;
mod worst;

use std::path::PathBuf;

use report::Report;

#[global_allocator]
static COUNTED: allocations::Counted = allocations::Counted;

const PARTS: [&str; 5] = ["quote", "ima", "hostile", "worst", "peers"];

fn main() {
    let mut json = None;
    let mut programs = peers::Programs::default();
    let mut rounds = 101;
    let mut parts: Vec<String> = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} takes a value"));
        match argument.as_str() {
            "--json" => json = Some(PathBuf::from(value())),
            "--portcullis" => programs.portcullis = Some(PathBuf::from(value())),
            "--keylime" => programs.keylime = Some(PathBuf::from(value())),
            "--rounds" => rounds = value().parse().expect("--rounds takes a number"),
            // Cargo says so to every benchmark.
            "--bench" => {}
            _ => parts.push(argument),
        }
    }
    if parts.is_empty() {
        parts = PARTS.map(str::to_owned).to_vec();
    }
    let mut report = Report::default();
    for part in parts {
        match part.as_str() {
            "quote" => quote::run(&mut report, rounds),
            "ima" => ima::run(&mut report, rounds),
            "hostile" => hostile::run(&mut report),
            "worst" => worst::run(&mut report, rounds.min(11)),
            "peers" => peers::run(&mut report, rounds, &programs),
            _ => panic!("no part is called {part}"),
        }
    }
    if let Some(file) = json {
        report.write(&file).expect("the file for the figures cannot be written");
    }
}
