//! `portcullis-verifier`: makes a verifier's state, issues people's certificates, serves.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use portcullis_attest::endorsement::CertificateFingerprint;
use portcullis_verifier::service::Ready;
use portcullis_verifier::service::config::Config;
use portcullis_verifier::service::peer::Role;
use portcullis_verifier::service::rules::{self, RuleFiles, Rules};
use portcullis_verifier::service::state::{self, State};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

const EXAMPLES: &str = "\
Examples:
  Make a verifier that hosts reach as verifier.example or 10.0.2.2:
    portcullis-verifier init --state /var/lib/portcullis-verifier --name verifier.example \\
        --san verifier.example 10.0.2.2
  Give alice an operator's certificate:
    portcullis-verifier certificate --state /var/lib/portcullis-verifier --role operator --name alice --out ./alice
  Serve:
    portcullis-verifier serve --state /var/lib/portcullis-verifier --listen 0.0.0.0:8443 \\
        --roots /etc/portcullis/roots --reference /etc/portcullis/host.toml --policy /etc/portcullis/policy.toml

Exit codes: 0 done, 1 a clear no, 2 bad usage or unreadable input, 3 something needed is unavailable.";

#[derive(Parser)]
#[command(name = "portcullis-verifier", version, after_help = EXAMPLES)]
/// Enrols hosts, appraises their evidence, places tenant VMs and releases volume keys.
struct Cli {
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a new state directory: CA, service certificate, signing keys. Never overwrites.
    Init(Init),
    /// Write a client certificate and key for a person.
    Certificate(Certificate),
    /// Run the service until SIGTERM or SIGINT.
    Serve(Serve),
}

#[derive(Args)]
struct Init {
    /// Directory to make (0700).
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// The verifier's id: 1 to 64 characters of a-z, 0-9, '.' and '-'. Quotes are bound to it.
    #[arg(long, value_name = "VERIFIER_ID")]
    name: String,
    /// DNS names and IP addresses under which hosts and people reach it.
    #[arg(long, value_name = "NAME_OR_IP", required = true, num_args = 1..)]
    san: Vec<String>,
}

#[derive(Args)]
struct Certificate {
    /// The verifier's state directory.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// What the person may do.
    #[arg(long)]
    role: Role,
    /// The person's name; a tenant's volumes belong to this name.
    #[arg(long)]
    name: String,
    /// Directory for cert.pem, key.pem (0600) and ca.pem; made if it is missing.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How long it is valid.
    #[arg(long, default_value_t = 365)]
    days: u32,
}

#[derive(Args)]
struct Serve {
    /// The verifier's state directory.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Where to listen; port 0 takes any free port.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Directory with the root (and intermediate) certificates of TPM vendors, PEM or DER; their CRLs may be there too.
    /// Certificates in its subdirectory `anchors` are trusted without their root.
    #[arg(long, value_name = "DIR")]
    roots: PathBuf,
    /// A root (SHA-256 of its certificate) whose EK certificates may have no extended key usage, as GCP's have none; may be
    /// given more than once.
    #[arg(long, value_name = "SHA256")]
    allow_missing_eku: Vec<CertificateFingerprint>,
    /// Directory with revocation lists: CRLs (PEM or DER), and text with one SHA-256 fingerprint of a certificate or key a
    /// line. What they name is refused, also after it was enrolled.
    #[arg(long, value_name = "DIR")]
    revocations: Option<PathBuf>,
    /// Let CRLs count after the time at which their vendor would have replaced them.
    #[arg(long)]
    accept_stale_revocations: bool,
    /// Reference values; may be given more than once or with several files. The signature of each lies beside it, as
    /// FILE.sig; without one they count only under a policy that says so.
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    reference: Vec<PathBuf>,
    /// The policy; of several, the first that is for a host counts for it.
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    policy: Vec<PathBuf>,
    /// Settings (TOML); without it the defaults.
    #[arg(long, value_name = "TOML")]
    config: Option<PathBuf>,
}

/// What ends a command: an exit code and a message.
struct Failure(u8, String);

fn input(message: impl std::fmt::Display) -> Failure {
    Failure(2, message.to_string())
}

impl From<state::StateError> for Failure {
    fn from(error: state::StateError) -> Self {
        Self(error.exit_code(), error.to_string())
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Init(args) => init(&args, cli.json),
        Command::Certificate(args) => certificate(&args, cli.json),
        Command::Serve(args) => serve(&args, cli.json),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(code, message)) => {
            if cli.json {
                // The exit code says it too when standard output is gone.
                let _ = print(&serde_json::json!({ "error": { "exit": code, "text": message } }).to_string());
            }
            complain(&message);
            ExitCode::from(code)
        }
    }
}

fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        // Whoever read it has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|e| Failure(3, format!("cannot write to standard output: {e}"))),
    }
}

/// Writes a line to standard error. Not by `eprintln!`, which panics where it cannot: the service goes on without.
fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "portcullis-verifier: {line}");
}

fn init(args: &Init, json: bool) -> Result<(), Failure> {
    let made = state::init(&args.state, &args.name, &args.san)?;
    if json {
        return print(&serde_json::to_string(&made).map_err(input)?);
    }
    print(&format!(
        "verifier {} made in {}\nput {} into every host's measured initrd\nCA certificate SHA-256 {}",
        made.verifier,
        made.state.display(),
        made.trust.display(),
        made.ca_sha256
    ))
}

fn certificate(args: &Certificate, json: bool) -> Result<(), Failure> {
    let files = state::certificate(&args.state, args.role, &args.name, args.days, &args.out)?;
    let (role, name) = (args.role.as_str(), &args.name);
    print(&if json {
        serde_json::json!({ "role": role, "name": name, "files": files }).to_string()
    } else {
        format!("certificate for {role} {name} in {}", args.out.display())
    })
}

fn log(json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PORTCULLIS_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Otherwise a line that cannot be written is reported by `eprintln!`, which panics where it cannot either, and what was
    // being served would end with it.
    let log = log.log_internal_errors(false);
    if json {
        log.json().init();
    } else {
        log.with_ansi(std::io::stderr().is_terminal()).init();
    }
}

fn serve(args: &Serve, json: bool) -> Result<(), Failure> {
    log(json);
    let config = match &args.config {
        Some(path) => {
            let text = rules::read_text(path).map_err(input)?;
            Config::from_toml(&text).map_err(|e| input(format!("{}: {e}", path.display())))?
        }
        None => Config::default(),
    };
    let files = RuleFiles {
        roots: args.roots.clone(),
        roots_without_eku: args.allow_missing_eku.iter().map(|root| root.0).collect(),
        revocations: args.revocations.clone(),
        accept_stale_revocations: args.accept_stale_revocations,
        references: args.reference.clone(),
        policies: args.policy.clone(),
    };
    let rules = Rules::load(&files).map_err(input)?;
    for warning in rules.warnings() {
        tracing::warn!("{warning}");
    }
    let state = State::open(&args.state)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(32)
        .build()
        .map_err(|e| Failure(3, format!("cannot start threads: {e}")))?;
    runtime.block_on(run(args, json, config, rules, state))
}

async fn run(args: &Serve, json: bool, config: Config, rules: Rules, state: State) -> Result<(), Failure> {
    let unavailable = |e: std::io::Error| Failure(3, format!("cannot wait for signals: {e}"));
    // Before anything listens: a signal that comes early must not kill a service that holds a lock.
    let mut terminate = signal(SignalKind::terminate()).map_err(unavailable)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(unavailable)?;
    let verifier = state.id.clone();
    let ready =
        Ready::new(state, rules, config, args.listen).await.map_err(|e| Failure(e.exit_code(), e.to_string()))?;
    let address = ready.address().map_err(|e| Failure(3, e.to_string()))?;
    let (stop, stopped) = watch::channel(false);
    if json {
        print(&serde_json::json!({ "ready": true, "listen": address, "verifier": verifier }).to_string())?;
    }
    complain(&format!("ready, {verifier} listens on {address}"));
    let serving = tokio::spawn(ready.serve(stopped));
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
    }
    // The service is the only reader and it is still there.
    let _ = stop.send(true);
    serving.await.map_err(|e| Failure(3, format!("the service ended badly: {e}")))
}
