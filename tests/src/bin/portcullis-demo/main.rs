//! The demonstration behind `scripts/demo`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use portcullis_firmware_fixtures::workdir;
use portcullis_tests::narrator::{Narrator, Tone};
use portcullis_tests::scenario;

/// Shows the main job: three hosts boot at the same time with real firmware, TPM and KVM; one is trusted and gets a
/// tenant's VM and key; the others, and six attacks, are refused.
#[derive(Parser)]
#[command(
    name = "portcullis-demo",
    version,
    after_help = "Examples:\n  scripts/demo\n  scripts/demo --json out.json\n\n\
                  Exit codes: 0 all came out as it should, 1 something did not, 3 the demonstration could not be run."
)]
struct Arguments {
    /// Write what happened as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Found out now rather than after minutes.
    if let Some(path) = &arguments.json
        && let Err(error) = std::fs::OpenOptions::new().create(true).append(true).open(path)
    {
        eprintln!("cannot write {}: {error}", path.display());
        return ExitCode::from(2);
    }
    if let Err(error) = put_away_on_signals() {
        eprintln!("cannot wait for signals: {error}");
        return ExitCode::from(3);
    }
    let narrator = Narrator::new();
    let report = scenario::run(&narrator);
    narrator.finish();
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            narrator.line("", Tone::Bad, &format!("the demonstration could not be carried out: {error}"));
            return ExitCode::from(3);
        }
    };
    println!("\n{}", report.table());
    if let Some(path) = &arguments.json {
        let json = serde_json::to_string_pretty(&report).unwrap_or_default();
        if let Err(error) = std::fs::write(path, json + "\n") {
            eprintln!("cannot write {}: {error}", path.display());
            return ExitCode::from(3);
        }
    }
    let faults = report.faults();
    for fault in &faults {
        eprintln!("NOT AS IT SHOULD BE: {fault}");
    }
    println!("{:.0} s", report.seconds);
    if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

/// Ctrl-C in the middle leaves nothing: the kernel kills what was started together with this process, and what it had on
/// disk is removed here. Called before any other thread starts, so that all of them have the signals blocked.
fn put_away_on_signals() -> nix::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    std::thread::spawn(move || {
        let signal = signals.wait();
        let mine = format!("{}-", std::process::id());
        let entries = workdir::scratch_base().and_then(std::fs::read_dir);
        for entry in entries.into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&mine) {
                // What cannot be removed now is removed by the next run.
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        eprintln!("\nended by {}; everything is put away", signal.map_or("a signal", Signal::as_str));
        std::process::exit(130);
    });
    Ok(())
}
