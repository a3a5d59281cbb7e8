//! What Firecracker's clients give on the command line.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::process::Command;

use portcullis_vmm::api::FIRECRACKER_VERSION;
use portcullis_vmm::config::{DriveConfig, EntropyConfig};
use portcullis_vmm::log::EndReason;

use crate::guest::Guest;
use crate::harness::{Setup, Vmm, program, refused};

/// The program by Firecracker's name, through a link in `dir`.
fn by_name(dir: &tempfile::TempDir) -> Command {
    let link = dir.path().join("firecracker");
    let target = program().get_program().to_owned();
    symlink(std::path::absolute(target).unwrap(), &link).unwrap();
    Command::new(link)
}

#[test]
fn by_firecrackers_name_the_version_is_the_one_whose_api_this_is() {
    let dir = tempfile::tempdir().unwrap();
    let version = |mut command: Command| {
        let output = command.arg("--version").output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let own = concat!("portcullis-vmm ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(version(by_name(&dir)), (Some(0), format!("Firecracker v{FIRECRACKER_VERSION}\n{own}")));
    assert_eq!(version(program()), (Some(0), own.to_owned()));
}

#[test]
fn by_firecrackers_name_there_is_a_default_socket() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = by_name(&dir);
    // A place where it cannot be made: the error names it.
    let hide = "mount -t tmpfs -o ro none /run && exec \"$0\" \"$@\"";
    let mut hidden = Command::new("unshare");
    // Root needs no user namespace, which containers and chroots refuse.
    if !nix::unistd::getuid().is_root() {
        hidden.arg("--map-root-user");
    }
    hidden.args(["--mount", "sh", "-c", hide]).arg(command.get_program());
    let (code, errors) = refused(&mut hidden);
    assert!(code == 2 && errors.contains("/run/firecracker.socket"), "{code} {errors}");
    // Where there is to be no API, there has to be a configuration.
    let (code, errors) = refused(command.arg("--no-api"));
    assert!(code == 2 && errors.contains("--config-file"), "{code} {errors}");
    // By its own name, a socket has to be asked for.
    let (code, errors) = refused(&mut program());
    assert!(code == 2 && errors.contains("--api-sock") && !errors.contains("firecracker.socket"), "{code} {errors}");
}

#[test]
fn a_vm_runs_confined_whatever_is_said_of_seccomp() {
    for arguments in [&["--no-seccomp"][..], &["--seccomp-filter", "/nonexistent/filter.bpf"]] {
        let setup = Setup::new(&Guest::new().print("ready").hang());
        let mut command = setup.command();
        command.args(arguments);
        let mut vmm = Vmm::start(command, setup.dir);
        vmm.wait_for("ready");
        let status = std::fs::read_to_string(format!("/proc/{}/status", vmm.pid())).unwrap();
        assert!(status.lines().any(|line| line.starts_with("Seccomp:") && line.ends_with('2')), "{status}");
        vmm.signal(nix::sys::signal::Signal::SIGTERM);
        vmm.wait().expect_warnings(EndReason::Killed, &[arguments[0]]);
    }
    let setup = Setup::new(&Guest::new().reset());
    let (code, errors) = refused(setup.command().args(["--no-seccomp", "--seccomp-filter", "x"]));
    assert!(code == 2 && errors.contains("--seccomp-filter"), "{code} {errors}");
    setup.run().expect_clean(EndReason::Reset);
}

#[test]
fn a_vm_without_a_pci_bus_runs_where_one_is_asked_for() {
    let setup = Setup::new(&Guest::new().reset());
    let mut command = setup.command();
    command.arg("--enable-pci");
    Vmm::start(command, setup.dir).wait().expect_warnings(EndReason::Reset, &["--enable-pci has no effect"]);
}

/// The last line of metrics of a VM with these arguments.
fn metrics(setup: Setup, arguments: &[String]) -> serde_json::Value {
    let metrics = setup.dir.path().join("metrics");
    let mut command = setup.command();
    command.args(arguments).arg("--metrics-path").arg(&metrics);
    // The folder is gone when the VM has ended, its file is not.
    let file = std::fs::File::options().read(true).append(true).create(true).open(&metrics).unwrap();
    Vmm::start(command, setup.dir).wait().expect_clean(EndReason::Reset);
    let text = std::io::read_to_string(file).unwrap();
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

/// The names of all numbers in `value`.
fn names(value: &serde_json::Value, prefix: &str, all: &mut BTreeSet<String>) {
    match value.as_object() {
        None => drop(all.insert(prefix.to_owned())),
        Some(fields) => {
            for (name, value) in fields {
                names(value, &if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") }, all);
            }
        }
    }
}

#[test]
fn a_line_of_metrics_has_every_name_of_firecrackers() {
    // Made from the structures of Firecracker 1.16.0, and compared with what that program writes.
    let wanted: BTreeSet<String> = include_str!("firecracker-metrics.txt").lines().map(str::to_owned).collect();
    assert_eq!(wanted.len(), 240);
    let mut setup = Setup::new(&Guest::new().reset());
    let bare = metrics(Setup::new(&Guest::new().reset()), &[]);
    let disk = setup.dir.path().join("disk");
    std::fs::write(&disk, [0; 512]).unwrap();
    setup.config = setup.config.with_drive(DriveConfig::new("d", disk));
    setup.config.entropy = Some(EntropyConfig::default());
    let line = metrics(setup, &[]);
    for line in [&bare, &line] {
        let mut found = BTreeSet::new();
        names(line, "", &mut found);
        assert_eq!(wanted.difference(&found).collect::<Vec<_>>(), Vec::<&String>::new());
        // What is not Firecracker's is beside it: requests that it does not count, a disk's own group, what was left out of
        // the confinement, and two counters.
        let groups = ["block_", "unconfined."];
        let counted = |name: &&&String| name.contains("_api_requests.") || groups.iter().any(|g| name.starts_with(g));
        let own = found.difference(&wanted).filter(|name| !counted(&name));
        let named = |name: &&String| ["block.discard_bytes", "balloon.cfg_fails"].contains(&name.as_str());
        assert!(own.clone().all(|name| named(&name)), "{:?}", own.collect::<Vec<_>>());
    }
    let both: Vec<_> =
        ["block", "block_d"].map(|group| line[group].as_object().unwrap().keys().collect::<Vec<_>>()).into();
    assert_eq!(both[0], both[1]);
    assert!(line["block"]["remaining_reqs_count"] == 0 && line["vcpu"]["exit_io_out"].as_u64() > Some(0), "{line}");
}

/// The metrics of the API's start that a VM with these arguments writes: time and processor time, in microseconds.
fn startup(arguments: &[String]) -> (u64, u64) {
    let line = metrics(Setup::new(&Guest::new().reset()), arguments);
    let of = |name: &str| line["api_server"][name].as_u64().unwrap();
    (of("process_startup_time_us"), of("process_startup_time_cpu_us"))
}

#[test]
fn times_of_the_start_are_counted_from_where_a_jailer_says() {
    const HOUR: u64 = 3_600_000_000;
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    let now = u64::try_from(now.tv_sec()).unwrap() * 1_000_000 + u64::try_from(now.tv_nsec()).unwrap() / 1000;
    let argument = |name: &str, value: u64| [name.to_owned(), value.to_string()];
    let hour_ago = now.saturating_sub(HOUR);
    let (time, cpu) = startup(&argument("--start-time-us", hour_ago));
    let gone = now - hour_ago;
    assert!((gone..gone + HOUR / 2).contains(&time) && cpu < HOUR / 2, "{time} {cpu}");
    let both = [argument("--start-time-cpu-us", 0), argument("--parent-cpu-time-us", HOUR)].concat();
    let (time, cpu) = startup(&both);
    assert!(time < HOUR / 2 && (HOUR..2 * HOUR).contains(&cpu), "{time} {cpu}");
    // As in Firecracker, the parent's time counts only where the own one is said to begin.
    let (_, cpu) = startup(&argument("--parent-cpu-time-us", HOUR));
    assert!(cpu < HOUR / 2, "{cpu}");
    // Times to come, and times of the processor that were not: nothing has passed.
    let ahead = [argument("--start-time-us", u64::MAX), argument("--start-time-cpu-us", u64::MAX)].concat();
    assert_eq!(startup(&ahead), (0, 0));
    let (code, errors) = refused(Setup::new(&Guest::new().reset()).command().args(["--start-time-us", "soon"]));
    assert!(code == 2 && errors.contains("--start-time-us"), "{code} {errors}");
}

#[test]
fn what_firecracker_says_of_its_log_is_accepted_and_explained() {
    let setup = Setup::new(&Guest::new().reset());
    let mut command = setup.command();
    command.args(["--show-log-origin", "--show-level", "--module", "api_server", "--level", "Info"]);
    Vmm::start(command, setup.dir).wait().expect_clean(EndReason::Reset);
    let help = program().arg("--help").output().unwrap();
    let text = String::from_utf8(help.stdout).unwrap();
    for argument in [
        "--show-log-origin",
        "--module",
        "--enable-pci",
        "--no-seccomp",
        "--seccomp-filter",
        "--start-time-us",
        "--start-time-cpu-us",
        "--parent-cpu-time-us",
    ] {
        assert!(text.contains(argument), "{argument}");
    }
}
