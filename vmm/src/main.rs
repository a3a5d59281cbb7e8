//! `portcullis-vmm`: one tenant VM in one confined process. The work is in the library; here is the command line.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{ArgGroup, CommandFactory, FromArgMatches, Parser};
use portcullis_vmm::api::{Api, ApiError, Limits, Session, Socket, http};
use portcullis_vmm::config::{ConfigError, LoggerConfig, MetricsConfig, VmConfig};
use portcullis_vmm::jail::{self, Layer, Reach};
use portcullis_vmm::log::{self, LogLevel};
use portcullis_vmm::mmds::{self, Mmds, SharedMmds};
use portcullis_vmm::snapshot;
use portcullis_vmm::vm::{self, Clock, Confinement, Controller, Options, StartTimes, Supervisor, VmError};

/// The name by which clients of Firecracker call it, through a link.
const FIRECRACKER: &str = "firecracker";
/// What `--version` prints then behind `Firecracker`: the version whose API this one follows
/// ([`portcullis_vmm::api::FIRECRACKER_VERSION`]), and what this really is.
const FIRECRACKER_VERSION: &str = concat!("v1.16.0\nportcullis-vmm ", env!("CARGO_PKG_VERSION"));
/// Firecracker's socket where none is named.
const FIRECRACKER_SOCKET: &str = "/run/firecracker.socket";

const EXAMPLES: &str = "\
Examples:
  portcullis-vmm --config-file vm.json
  portcullis-vmm --id web-1 --no-api --config-file vm.json --log-path vm.log --boot-timer
  portcullis-vmm --id web-1 --api-sock /run/web-1.sock
  curl --unix-socket /run/web-1.sock -X PUT http://localhost/actions \\
    -d '{\"action_type\": \"InstanceStart\"}'

A configuration (Firecracker's format):
  {
    \"boot-source\": {\"kernel_image_path\": \"vmlinuz\", \"initrd_path\": \"initrd.img\",
                    \"boot_args\": \"console=ttyS0 panic=-1\"},
    \"machine-config\": {\"vcpu_count\": 2, \"mem_size_mib\": 512}
  }

Called by the name firecracker (through a link), it prints the version of Firecracker that it
follows first, and without --api-sock and --no-api serves the API on /run/firecracker.socket.

The guest's serial line is standard input and output. SIGTERM ends the VM.

Exit codes:
  0  the guest reset or powered off, or a signal ended it
  1  the guest could not go on (triple fault, KVM error): see the last lines of the log
  2  bad usage, configuration, kernel or initrd
  3  the host lacks something: /dev/kvm, memory, a layer of the confinement

What requests of the API may name (docs/ISOLATION.md):
  Files in the folders of --api-dir, and below. Without one: those in the current folder, in the folder of the socket, and
  in the folders of the configuration's drives; called by the name firecracker: those in the top-level folders of the host
  but for /boot, /dev, /etc, /proc, /sys, and those of programs. Never all of / or /dev, and nothing of /proc or /sys.";

/// Runs one virtual machine in one confined process.
#[derive(Parser, Debug)]
#[command(name = "portcullis-vmm", version, after_help = EXAMPLES)]
#[command(group = ArgGroup::new("work").required(true).multiple(true).args(["config_file", "api_sock", "describe_snapshot"]))]
struct Args {
    /// Configuration of the VM, in Firecracker's JSON format. With --api-sock, the VM starts with it at once.
    #[arg(long, value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Serve Firecracker's API on a unix socket at this path. There must be no file yet.
    #[arg(long, value_name = "PATH", conflicts_with = "no_api")]
    api_sock: Option<PathBuf>,
    /// Let requests of the API name files in this folder and below; with a device or file, that one. Can be given again.
    #[arg(long, value_name = "PATH", requires = "api_sock")]
    api_dir: Vec<PathBuf>,
    /// Leave out this layer of the confinement, for development: landlock, seccomp, capabilities or user. Can be given again.
    /// Without it a VM does not start on a host that lacks a layer.
    #[arg(long, value_name = "LAYER")]
    unconfined: Vec<Layer>,
    /// Print the version of the format of a snapshot's state file, and end.
    #[arg(long, value_name = "FILE")]
    describe_snapshot: Option<PathBuf>,
    /// Largest body of a request of the API, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = http::MAX_BODY, value_parser = payload_size)]
    http_api_max_payload_size: usize,
    /// Name of the VM: 1 to 64 letters, digits and hyphens.
    #[arg(long, value_name = "NAME", default_value = "anonymous-instance", value_parser = instance_id)]
    id: String,
    /// Run without API socket, which is also what happens without --api-sock.
    #[arg(long)]
    no_api: bool,
    /// Append the log (JSON lines) to this file, instead of standard error.
    #[arg(long, value_name = "FILE")]
    log_path: Option<PathBuf>,
    /// How much to log: Off, Error, Warning, Info, Debug or Trace [default: Info].
    #[arg(long, value_name = "LEVEL")]
    level: Option<LogLevel>,
    /// Accepted for Firecracker's tools: each line of the log has its level.
    #[arg(long)]
    show_level: bool,
    /// Accepted for Firecracker's tools, without effect: lines of the log do not name file and line of the source.
    #[arg(long)]
    show_log_origin: bool,
    /// Accepted for Firecracker's tools, without effect: the log is not divided by Firecracker's modules.
    #[arg(long, value_name = "MODULE")]
    module: Option<String>,
    /// Accepted for Firecracker's tools: the VM runs confined by this VMM's own filters all the same, and the log says so.
    #[arg(long)]
    no_seccomp: bool,
    /// Accepted for Firecracker's tools: like --no-seccomp. The file is not read.
    #[arg(long, value_name = "FILE", conflicts_with = "no_seccomp")]
    seccomp_filter: Option<PathBuf>,
    /// Count the metric process_startup_time_us from this time of the monotonic clock on, in microseconds.
    #[arg(long, value_name = "MICROSECONDS")]
    start_time_us: Option<u64>,
    /// Count process_startup_time_cpu_us from this processor time of the process on, in microseconds.
    #[arg(long, value_name = "MICROSECONDS")]
    start_time_cpu_us: Option<u64>,
    /// Add this processor time of the program that started this one. Needs --start-time-cpu-us to have an effect.
    #[arg(long, value_name = "MICROSECONDS")]
    parent_cpu_time_us: Option<u64>,
    /// Accepted for Firecracker's tools, without effect: the guest finds its devices on virtio-mmio, through ACPI.
    #[arg(long)]
    enable_pci: bool,
    /// Write metrics, a JSON line every minute, to this file or FIFO.
    #[arg(long, value_name = "FILE")]
    metrics_path: Option<PathBuf>,
    /// Begin with the metadata in this file (JSON).
    #[arg(long, value_name = "FILE")]
    metadata: Option<PathBuf>,
    /// Largest metadata, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = mmds::DEFAULT_LIMIT)]
    mmds_size_limit: usize,
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

/// From what a small request takes to what no honest one needs.
fn payload_size(text: &str) -> Result<usize, String> {
    let size = text.parse().ok().filter(|size| (1024..=16 << 20).contains(size));
    size.ok_or_else(|| "1024 to 16777216 bytes".to_owned())
}

fn main() -> ExitCode {
    let clock = Clock::start();
    vm::abort_on_panic();
    vm::share_heap();
    let args = arguments();
    match run(&args, clock) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            // The exit code says it even where nobody hears the words.
            log::tell(&format!("portcullis-vmm: {message}\n"));
            ExitCode::from(code)
        }
    }
}

/// Whether it was called by Firecracker's name.
fn is_firecracker() -> bool {
    let name = std::env::args_os().next().map(PathBuf::from);
    name.as_deref().and_then(Path::file_name).is_some_and(|name| name == FIRECRACKER)
}

/// Reads the command line; a wrong one ends the process.
fn arguments() -> Args {
    if !is_firecracker() {
        return Args::parse();
    }
    let mut command = Args::command().display_name("Firecracker").version(FIRECRACKER_VERSION);
    command = command.mut_group("work", |work| work.required(false));
    let matches = command.clone().get_matches();
    let mut args = Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let works = args.api_sock.is_some() || args.describe_snapshot.is_some();
    match (args.no_api, &args.config_file) {
        _ if works => {}
        (true, None) => {
            command.error(ErrorKind::MissingRequiredArgument, "--no-api needs a VM: give --config-file FILE").exit()
        }
        (true, Some(_)) => {}
        (false, _) => args.api_sock = Some(FIRECRACKER_SOCKET.into()),
    }
    args
}

/// What ends the process: exit code and words.
type Failure = (u8, String);

fn run(args: &Args, clock: Clock) -> Result<(), Failure> {
    jail::close_inherited().map_err(|e| (3, e.to_string()))?;
    if let Some(path) = &args.describe_snapshot {
        let version = snapshot::describe(path).map_err(|e| (2, format!("{}: {e}", path.display())))?;
        return writeln!(std::io::stdout(), "v{version}").map_err(|e| (3, e.to_string()));
    }
    let config = configuration(args)?;
    let unheeded = [("--no-seccomp", args.no_seccomp), ("--seccomp-filter", args.seccomp_filter.is_some())];
    for (argument, _) in unheeded.into_iter().filter(|(_, given)| *given) {
        tracing::warn!("{argument} has no effect: the VM runs confined by this VMM's own system-call filters");
    }
    if args.enable_pci {
        tracing::warn!("--enable-pci has no effect: the guest finds its devices on virtio-mmio, through ACPI");
    }
    let options = Options { id: args.id.clone(), boot_timer: args.boot_timer, metadata: metadata(args)? };
    // Before any other thread, so that all leave the signals to this one.
    let (supervisor, controller) = Supervisor::new(options.clone(), clock).map_err(|e| vm_failure(&e))?;
    let confinement =
        Confinement { omitted: args.unconfined.iter().copied().collect(), reach: reach(args, config.as_ref()) };
    let supervisor = supervisor.with_confinement(confinement.clone()).with_start_times(StartTimes {
        start_us: args.start_time_us,
        start_cpu_us: args.start_time_cpu_us,
        parent_cpu_us: args.parent_cpu_time_us,
    });
    let api = match &args.api_sock {
        None => {
            drop(controller);
            None
        }
        Some(path) => {
            let session = Session::new(&options, controller.clone(), config.clone());
            Some(serve(args, path, session, controller, &confinement)?)
        }
    };
    let ended = supervisor.run(config.as_ref());
    if let Some(api) = api {
        api.finish();
    }
    ended.map(drop).map_err(|e| vm_failure(&e))
}

/// Reads the metadata to begin with.
fn metadata(args: &Args) -> Result<SharedMmds, Failure> {
    let mut mmds = Mmds::new(args.mmds_size_limit);
    args.metadata.as_deref().map_or(Ok(()), |path| mmds.put_file(path)).map_err(|e| (2, e.to_string()))?;
    Ok(mmds.into_shared())
}

/// Reads the configuration and directs the log where the command line or the configuration wants it.
fn configuration(args: &Args) -> Result<Option<VmConfig>, Failure> {
    let unusable = |error: &dyn std::error::Error| (2, error.to_string());
    let mut config = args.config_file.as_deref().map(VmConfig::from_file).transpose().map_err(|e| unusable(&e))?;
    let logger = config.as_ref().and_then(|config| config.logger.clone()).unwrap_or_default();
    let (path, level) = logging(args, &logger).map_err(|e| unusable(&e))?;
    log::install(path, level).map_err(|e| unusable(&e))?;
    if let (Some(config), Some(path)) = (&mut config, &args.metrics_path) {
        config.metrics = Some(MetricsConfig::new(path));
    }
    Ok(config)
}

/// The command line goes before the configuration.
fn logging<'a>(args: &'a Args, logger: &'a LoggerConfig) -> Result<(Option<&'a Path>, LogLevel), ConfigError> {
    let path = args.log_path.as_deref().or(logger.log_path.as_deref());
    let level = args.level.map_or_else(|| logger.level(), |level| Ok(Some(level)))?;
    Ok((path, level.unwrap_or_default()))
}

/// What requests of the API may name.
fn reach(args: &Args, config: Option<&VmConfig>) -> Reach {
    let Some(socket) = &args.api_sock else {
        return Reach::default();
    };
    let folder = |file: &Path| file.parent().filter(|folder| !folder.as_os_str().is_empty()).map(Path::to_owned);
    let drives = config.map(|config| config.drives.as_slice()).unwrap_or_default();
    let drives = |read_only| {
        let some = drives.iter().filter(move |drive| drive.is_read_only == read_only);
        Reach::usable(some.filter_map(|drive| folder(&drive.path_on_host)))
    };
    let named = match args.api_dir.as_slice() {
        [] if is_firecracker() => Reach::top_level(),
        [] => {
            let own = [std::env::current_dir().ok(), folder(socket)];
            Reach::usable(own.into_iter().flatten())
        }
        named => named.to_vec(),
    };
    Reach { written: [named, drives(false)].concat(), read: drives(true), socket: Some(socket.clone()) }
}

/// Starts the API's thread.
fn serve(
    args: &Args,
    path: &Path,
    mut session: Session,
    controller: Controller,
    confinement: &Confinement,
) -> Result<Api, Failure> {
    let socket = Socket::bind(path).map_err(|e| (e.exit_code(), e.to_string()))?;
    let limits = Limits { body: args.http_api_max_payload_size, ..Limits::default() };
    if let Some(path) = &args.metrics_path {
        session.send_metrics_to(path);
    }
    Api::start(socket, limits, session, controller, confinement)
        .map_err(|error: ApiError| (error.exit_code(), error.to_string()))
}

fn vm_failure(error: &VmError) -> Failure {
    let registers = match error {
        VmError::Guest(fault) => format!("\n  {}", fault.registers),
        _ => String::new(),
    };
    (error.exit_code(), format!("{error}{registers}"))
}
