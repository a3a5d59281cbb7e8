//! `portcullis-lab`: the lab by hand.

mod console;
mod host;
mod record;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nix::sys::signal::{SigSet, Signal};
use portcullis_firmware_fixtures::tpm::Swtpm;

/// The lab by hand: measured hosts in QEMU, and software TPMs.
#[derive(Parser)]
#[command(after_help = "\
Examples:
  portcullis-lab host                                  a good host, with its console here
  portcullis-lab host --secure-boot off                the same, but its firmware has no keys
  portcullis-lab host --variant cmdline=mitigations=off
                                                       the same, but its kernel command line was edited
  portcullis-lab host --verifier-port 7000             10.0.2.100:7000 on the host is port 7000 here
  portcullis-lab tpm                                   a TPM on loopback ports

Ctrl-C ends each of them and puts everything away.
Exit codes: 0 done, 2 bad usage, 3 something that is needed is missing or failed.
")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build an image, boot a host from it, and leave its console on this terminal.
    Host(host::Arguments),
    /// Boot hosts and keep what they measured, for unit tests.
    Record(record::Arguments),
    /// Run a new TPM on loopback ports until Ctrl-C, and say how to reach it.
    Tpm,
}

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Blocked before any thread starts, so that Ctrl-C is taken where we wait for it and everything is put away.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGHUP);
    let done = signals.thread_block().map_err(Failure::from).and_then(|()| match arguments.command {
        Command::Tpm => tpm(&signals),
        Command::Record(arguments) => record::run(&arguments),
        Command::Host(arguments) => host::run(&arguments, &signals),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portcullis-lab: {error}");
            ExitCode::from(3)
        }
    }
}

fn tpm(signals: &SigSet) -> Result<(), Failure> {
    let tpm = Swtpm::new()?;
    println!("tcti         {}", tpm.tcti());
    println!("process      {}", tpm.pid().unwrap_or_default());
    println!("directory    {}", tpm.dir().display());
    println!("vendor root  {}", tpm.vendor().root_pem().display());
    println!("Try: tpm2_pcrread -T {}   (Ctrl-C ends it)", tpm.tcti());
    signals.wait()?;
    Ok(())
}
