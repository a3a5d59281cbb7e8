//! `portcullis`: the command line of operators, tenants and auditors.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod anchor;
mod connection;
mod ek;
mod eventlog;
mod failure;
mod files;
mod fleet;
mod ima;
mod keylime;
mod measurements;
mod output;
mod quote;
mod record;
mod reference;
mod result;
mod time;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::connection::Asking;
use crate::failure::Failure;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  portcullis host ls                                     which hosts may get work, and why not
  portcullis host admit 3f5a… --name prod-7              let a TPM in (`portcullis-agent ek` prints it)
  portcullis volume put data --key-file data.key         deposit a volume's key
  portcullis vm launch --name web --volume data --kernel boot/vmlinuz --kernel-sha256 9f86…
  portcullis verify --evidence e.json --nonce 00ff… --ak ak.tpmt --reference good.toml --policy p.toml
  portcullis eventlog show binary_bios_measurements

Exit codes: 0 yes or done, 1 a clear no, 2 bad usage or unreadable input, 3 the verifier is unavailable.";

/// For operators, tenants and auditors of Portcullis.
#[derive(Parser, Debug)]
#[command(name = "portcullis", version, after_help = EXAMPLES)]
struct Arguments {
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Hosts (operators)
    Host(Asking<fleet::HostCommand>),
    /// Volumes (tenants)
    Volume(Asking<fleet::VolumeCommand>),
    /// VMs (tenants)
    Vm(Asking<fleet::VmCommand>),
    /// Judge evidence offline
    #[command(after_help = verify::EXAMPLES)]
    Verify(verify::VerifyArguments),
    /// Make, read, sign and check reference values
    #[command(subcommand)]
    Reference(reference::ReferenceCommand),
    /// Read attestation results
    #[command(subcommand)]
    Result(result::ResultCommand),
    /// Check single quotes, as `tpm2_quote` makes them
    #[command(subcommand)]
    Quote(quote::QuoteCommand),
    /// Check certificates of endorsement keys
    #[command(subcommand)]
    Ek(ek::EkCommand),
    /// Read a firmware event log
    #[command(subcommand)]
    Eventlog(eventlog::EventLogCommand),
    /// Read an IMA list
    #[command(subcommand)]
    Ima(ima::ImaCommand),
}

fn main() -> ExitCode {
    let Arguments { json, command } = Arguments::parse();
    let out = Output { json };
    match execute(command, out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            out.fail(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}

fn execute(command: Command, out: Output) -> Result<(), Failure> {
    match command {
        Command::Host(Asking { connection, command }) => fleet::host(command, &connection.connect()?, out),
        Command::Volume(Asking { connection, command }) => fleet::volume(command, &connection.connect()?, out),
        Command::Vm(Asking { connection, command }) => fleet::vm(command, &connection.connect()?, out),
        Command::Verify(arguments) => verify::verify(&arguments, out),
        Command::Reference(command) => reference::run(command, out),
        Command::Result(command) => result::run(&command, out),
        Command::Quote(command) => quote::quote(command, out),
        Command::Ek(command) => ek::ek(command, out),
        Command::Eventlog(command) => eventlog::run(&command, out),
        Command::Ima(command) => ima::run(command, out),
    }
}
