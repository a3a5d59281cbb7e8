//! `portcullis-lab`: the lab by hand.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nix::sys::signal::{SigSet, Signal};
use portcullis_firmware_fixtures::tpm::Swtpm;

/// The lab by hand: software TPMs, and measured hosts in QEMU.
#[derive(Parser)]
#[command(after_help = "\
Examples:
  portcullis-lab tpm        a TPM on loopback ports, until Ctrl-C
")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a new TPM on loopback ports until Ctrl-C, and say how to reach it.
    Tpm,
}

fn main() -> ExitCode {
    // Blocked before any thread starts, so that Ctrl-C is taken where we wait for it and everything is put away.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    if let Err(error) = signals.thread_block() {
        eprintln!("portcullis-lab: cannot block signals: {error}");
        return ExitCode::from(3);
    }
    let done = match Arguments::parse().command {
        Command::Tpm => tpm(&signals),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portcullis-lab: {error}");
            ExitCode::from(3)
        }
    }
}

fn tpm(signals: &SigSet) -> Result<(), Box<dyn std::error::Error>> {
    let tpm = Swtpm::new()?;
    println!("tcti         {}", tpm.tcti());
    println!("process      {}", tpm.pid().unwrap_or_default());
    println!("directory    {}", tpm.dir().display());
    println!("vendor root  {}", tpm.vendor().root_pem().display());
    println!("Try: tpm2_pcrread -T {}   (Ctrl-C ends it)", tpm.tcti());
    signals.wait()?;
    Ok(())
}
