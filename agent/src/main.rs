//! `portcullis-agent`: the command line of the host's side.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use portcullis_agent::agent::Agent;
use portcullis_agent::config::{self, Config};
use portcullis_agent::hardening;
use portcullis_agent::machine::Wake;
use portcullis_agent::prover::{ProverError, endorsement};
use portcullis_agent::session::{AgentError, Exclusive, Session};
use portcullis_verifier::api::Admission;
use portcullis_verifier::client::ClientError;
use serde_json::{Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tracing_subscriber::EnvFilter;

const EXAMPLES: &str = "\
Examples:
  portcullis-agent ek                          what an operator admits
  portcullis-agent enrol                       prove the TPM to the verifier, once
  portcullis-agent attest --json               prove this boot, once; exit 1 with reasons when denied
  portcullis-agent evidence --nonce 00ff… -o evidence.json
  portcullis-agent run                         the service: prove, take orders, run VMs

Exit codes: 0 done, 1 denied, 2 bad usage or unreadable input, 3 TPM, verifier or state unavailable.";

/// The host's side of Portcullis: proves what the host booted, then runs tenants' VMs.
#[derive(Parser)]
#[command(name = "portcullis-agent", version, after_help = EXAMPLES)]
struct Arguments {
    /// The configuration.
    #[arg(long, global = true, value_name = "FILE", env = "PORTCULLIS_AGENT_CONFIG", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// Print JSON (and, with `run`, log JSON).
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prove this host, take launch orders and run VMs, until SIGTERM.
    Run,
    /// Prove to the verifier that this host's keys are in its TPM.
    Enrol,
    /// Prove this boot to the verifier, once.
    Attest,
    /// Print the endorsement key's fingerprint: what an operator admits.
    #[command(after_help = "Example:\n  portcullis-agent ek --tcti device:/dev/tpmrm0")]
    Ek {
        /// The TPM; no configuration is read then.
        #[arg(long, value_name = "TCTI")]
        tcti: Option<String>,
    },
    /// Write evidence about this boot for a nonce that somebody gave, for `portcullis verify`.
    #[command(after_help = "Example:\n  portcullis-agent evidence --nonce $(openssl rand -hex 32) --out evidence.json")]
    Evidence {
        /// The nonce: 16 to 64 bytes in hex.
        #[arg(long, value_name = "HEX", value_parser = nonce)]
        nonce: Nonce,
        /// Where to write it; standard output without it.
        #[arg(long, short, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Where to write the TPM's public keys, so that a person can carry them to whoever verifies.
        #[arg(long, value_name = "DIR")]
        keys: Option<PathBuf>,
    },
}

#[derive(Clone)]
struct Nonce(Vec<u8>);

fn nonce(text: &str) -> Result<Nonce, String> {
    let bytes = hex::decode(text).map_err(|error| format!("not hex: {error}"))?;
    if !(16..=64).contains(&bytes.len()) {
        return Err(format!("{} bytes, 16 to 64 are needed", bytes.len()));
    }
    Ok(Nonce(bytes))
}

fn main() -> ExitCode {
    hardening::abort_on_panic();
    hardening::silence_libtss2();
    let arguments = Arguments::parse();
    let refused = hardening::protect_memory();
    init_log(matches!(arguments.command, Command::Run), arguments.json);
    for what in refused {
        tracing::warn!("{what}");
    }
    match execute(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error, arguments.json);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Logs go to standard error: a service says what it does, a command only what is wrong.
fn init_log(service: bool, json: bool) {
    let level = if service { "info" } else { "warn" };
    let filter = EnvFilter::try_from_env("PORTCULLIS_LOG").unwrap_or_else(|_| {
        // What the TPM's library has to say is in our errors.
        EnvFilter::new(format!("{level},tss_esapi=off"))
    });
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // Otherwise a line that cannot be written (a full disk, a journal that went away) is reported by `eprintln!`, which
    // panics where it cannot either, and all VMs would end with the agent.
    let log = log.log_internal_errors(false);
    if service && json {
        log.json().flatten_event(true).init();
    } else {
        log.with_ansi(std::io::stderr().is_terminal()).init();
    }
}

fn report(error: &AgentError, json: bool) {
    let reasons = match error {
        AgentError::Prover(ProverError::Client(ClientError::Denied { reasons })) => Some(reasons),
        _ => None,
    };
    if json {
        let value = match reasons {
            Some(reasons) => json!({ "trusted": false, "reasons": reasons }),
            None => json!({ "error": { "text": error.to_string() } }),
        };
        // Nothing can be done about an unwritable stdout that the exit code would not say too.
        let _ = print(&value.to_string());
    }
    match reasons {
        Some(reasons) => {
            complain("denied:");
            for reason in reasons {
                complain(&format!("  {reason}"));
            }
        }
        None => complain(&format!("error: {error}")),
    }
}

/// Writes a line to standard error, without anything that a terminal would obey. Not `eprintln!`, which panics where it
/// cannot write: the exit code says it too.
fn complain(line: &str) {
    let line: String = line.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect();
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn execute(arguments: &Arguments) -> Result<(), AgentError> {
    let json = arguments.json;
    match &arguments.command {
        Command::Run => run(Config::load(&arguments.config)?),
        Command::Enrol => enrol(Config::load(&arguments.config)?, json),
        Command::Attest => attest(Config::load(&arguments.config)?, json),
        Command::Ek { tcti } => {
            let tcti = match tcti {
                Some(tcti) => tcti.clone(),
                None => Config::load(&arguments.config)?.tcti,
            };
            let (fingerprint, certificate) = endorsement(&tcti)?;
            let fingerprint = hex::encode(fingerprint);
            show(json, &json!({ "ek_fingerprint": fingerprint, "certificate": certificate }), &fingerprint)
        }
        Command::Evidence { nonce, out, keys } => {
            evidence(Config::load(&arguments.config)?, nonce.0.clone(), out.as_deref(), keys.as_deref())
        }
    }
}

fn run(config: Config) -> Result<(), AgentError> {
    // Only here are keys of volumes in memory.
    if let Err(reason) = hardening::lock_memory() {
        tracing::warn!("{reason}");
    }
    // Before any thread is started: a mount namespace belongs to those made after it.
    if let Err(error) = hardening::private_mounts() {
        tracing::warn!(%error, "no private mounts: volumes would stay mounted after a crash until the next start");
    }
    let session = Session::start(config, Exclusive::Yes)?;
    let agent = Agent::new(session)?;
    let waker = agent.waker();
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(AgentError::Signals)?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if waker.send(Wake::Stop).is_err() {
                return;
            }
        }
    });
    agent.run();
    Ok(())
}

fn enrol(config: Config, json: bool) -> Result<(), AgentError> {
    let enrolled = Session::start(config, Exclusive::Yes)?.enrol()?;
    let words = match enrolled.state {
        Admission::Admitted => format!("{} is enrolled and admitted", enrolled.host),
        Admission::Pending => format!(
            "{} is enrolled; an operator has to admit it:\n  portcullis host admit {} --name {}",
            enrolled.host, enrolled.ek_fingerprint, enrolled.host
        ),
    };
    show(json, &json!(enrolled), &words)
}

fn attest(config: Config, json: bool) -> Result<(), AgentError> {
    let host = config.host.clone();
    let (result, boot) = Session::start(config, Exclusive::Yes)?.attest()?;
    let words = format!("{host} is trusted for {} s", result.expires_in_s);
    let value = json!({
        "trusted": true, "reasons": [], "expires_in_s": result.expires_in_s, "boot": boot, "token": result.token,
    });
    show(json, &value, &words)
}

fn evidence(config: Config, nonce: Vec<u8>, out: Option<&Path>, keys: Option<&Path>) -> Result<(), AgentError> {
    let mut session = Session::start(config, Exclusive::No)?;
    let evidence = session.offline_evidence(nonce)?;
    let bytes = evidence.to_json().map_err(|error| AgentError::Usage(error.to_string()))?;
    if let Some(dir) = keys {
        write_file(&dir.join("ak.tpmt"), session.prover.ak_public())?;
        write_file(&dir.join("ek.tpmt"), session.prover.ek_public())?;
    }
    match out {
        Some(path) => write_file(path, &bytes),
        None => print(&String::from_utf8_lossy(&bytes)),
    }
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), AgentError> {
    let output = |source| AgentError::Output { path: path.to_owned(), source };
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.create(true).truncate(true).write(true).mode(0o644).open(path).map_err(output)?;
    file.write_all(bytes).map_err(output)
}

fn show(json: bool, value: &Value, words: &str) -> Result<(), AgentError> {
    print(&if json { value.to_string() } else { words.to_owned() })
}

fn print(text: &str) -> Result<(), AgentError> {
    let output = |source| AgentError::Output { path: "standard output".into(), source };
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(output)
}
