//! `portcullis-vmm`: one tenant VM in one confined process. The work is in the library; here is the command line.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use portcullis_vmm::config::VmConfig;
use portcullis_vmm::jail;
use portcullis_vmm::log::{self, LogLevel};
use portcullis_vmm::vm::{self, Clock, Options, Supervisor, VmError};

const EXAMPLES: &str = "\
Examples:
  portcullis-vmm --config-file vm.json
  portcullis-vmm --id web-1 --no-api --config-file vm.json --log-path vm.log --boot-timer

A configuration (Firecracker's format):
  {
    \"boot-source\": {\"kernel_image_path\": \"vmlinuz\", \"initrd_path\": \"initrd.img\",
                    \"boot_args\": \"console=ttyS0 panic=-1\"},
    \"machine-config\": {\"vcpu_count\": 2, \"mem_size_mib\": 512}
  }

The guest's serial line is standard input and output. SIGTERM ends the VM.

Exit codes:
  0  the guest reset or powered off, or a signal ended it
  1  the guest could not go on (triple fault, KVM error): see the last lines of the log
  2  bad usage, configuration, kernel or initrd
  3  the host lacks something: /dev/kvm, memory, a way to confine the process";

/// Runs one virtual machine in one confined process.
#[derive(Parser, Debug)]
#[command(name = "portcullis-vmm", version, after_help = EXAMPLES)]
struct Args {
    /// Configuration of the VM, in Firecracker's JSON format.
    #[arg(long, value_name = "FILE")]
    config_file: PathBuf,
    /// Name of the VM: 1 to 64 letters, digits and hyphens.
    #[arg(long, value_name = "NAME", default_value = "anonymous-instance", value_parser = instance_id)]
    id: String,
    /// Run without API socket (there is none yet; accepted because Firecracker's tools give it).
    #[arg(long)]
    no_api: bool,
    /// Append the log (JSON lines) to this file, instead of standard error.
    #[arg(long, value_name = "FILE")]
    log_path: Option<PathBuf>,
    /// How much to log: Off, Error, Warning, Info, Debug or Trace.
    #[arg(long, value_name = "LEVEL", default_value = "Info")]
    level: LogLevel,
    /// Give the guest a boot timer (port 0x80 and Firecracker's register) and log its marks.
    #[arg(long)]
    boot_timer: bool,
}

fn instance_id(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if (1..=64).contains(&text.len()) && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("1 to 64 letters, digits and hyphens".to_owned())
    }
}

fn main() -> ExitCode {
    let clock = Clock::start();
    vm::abort_on_panic();
    let args = Args::parse();
    match run(&args, clock) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            // Not `eprintln!`, which panics: the exit code says it even where nobody hears the words.
            let _ = writeln!(std::io::stderr(), "portcullis-vmm: {message}");
            ExitCode::from(code)
        }
    }
}

fn run(args: &Args, clock: Clock) -> Result<(), (u8, String)> {
    jail::close_inherited().map_err(|e| (3, e.to_string()))?;
    let unusable = |error: &dyn std::error::Error| (2, error.to_string());
    log::install(args.log_path.as_deref(), args.level).map_err(|e| unusable(&e))?;
    let config = VmConfig::from_file(&args.config_file).map_err(|e| unusable(&e))?;
    let options = Options { id: args.id.clone(), boot_timer: args.boot_timer };
    Supervisor::new(options, clock).and_then(|(supervisor, _)| supervisor.run(Some(&config))).map(drop).map_err(
        |error| {
            let registers = match &error {
                VmError::Guest(fault) => format!("\n  {}", fault.registers),
                _ => String::new(),
            };
            (error.exit_code(), format!("{error}{registers}"))
        },
    )
}
