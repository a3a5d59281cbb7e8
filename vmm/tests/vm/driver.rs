//! A VM that is driven by commands: this program, run again in a process of its own, where it plays the VMM and takes
//! a line for each command from a socket.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use portcullis_vmm::config::{DriveConfig, VmConfig};
use portcullis_vmm::devices::block::{Block, Disk};
use portcullis_vmm::jail::Reach;
use portcullis_vmm::mmds::{DEFAULT_LIMIT, Mmds};
use portcullis_vmm::snapshot::{self, Base, Files, Loading, MemorySource, Saved, SnapshotLoad, SnapshotType, Written};
use portcullis_vmm::virtio::Active;
use portcullis_vmm::vm::{Clock, Command, Confinement, ControlError, Controller, Options, Supervisor};

use crate::harness::{Setup, Vmm};

/// Says to this test program, run again, where its commands come from.
const SOCKET: &str = "PORTCULLIS_VMM_TEST_SOCKET";
const LIMIT: Duration = Duration::from_mins(1);

/// A VMM and the way to command it.
pub struct Driven {
    pub vmm: Vmm,
    socket: BufReader<UnixStream>,
    pub dir: PathBuf,
}

impl Driven {
    /// A VMM without a VM.
    pub fn new(setup: Setup) -> Self {
        Self::with(setup, |_| ())
    }

    /// The same, with something done to its process before it begins.
    pub fn with(setup: Setup, change: impl FnOnce(&mut Program)) -> Self {
        let dir = setup.dir.path().to_owned();
        setup.config_file();
        let path = dir.join("control");
        let mut command = Program::new(std::env::current_exe().unwrap());
        command.args(["--exact", "driver::play_the_vmm", "--nocapture", "--test-threads=1"]).env(SOCKET, &path);
        // The VMM plays on a thread of the tests. Only the first thread of a process gives memory back without looking
        // into /proc, which a confined one may not; with one arena all threads do as the first.
        command.env("MALLOC_ARENA_MAX", "1");
        // Blocked from the start, so that a signal finds the VMM's descriptor and not another thread of the tests.
        // SAFETY: only a system call between fork and exec.
        unsafe { command.pre_exec(|| Ok(SigSet::from(Signal::SIGTERM).thread_block()?)) };
        change(&mut command);
        let vmm = Vmm::start(command, setup.dir);
        let limit = Instant::now() + LIMIT;
        let socket = loop {
            match UnixStream::connect(&path) {
                Ok(socket) => break socket,
                Err(e) => assert!(Instant::now() < limit, "no VMM at {}: {e}", path.display()),
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Self { vmm, socket: BufReader::new(socket), dir }
    }

    /// One that runs the setup's guest.
    pub fn started(setup: Setup) -> Self {
        let mut driven = Self::new(setup);
        driven.ok("start");
        driven
    }

    /// Gives a command; gives the answer.
    pub fn ask(&mut self, command: &str) -> Result<String, String> {
        self.tell(command);
        let mut answer = String::new();
        self.socket.read_line(&mut answer).unwrap();
        match answer.trim_end_matches('\n').split_once(' ') {
            Some(("ok", text)) => Ok(text.to_owned()),
            Some(("error", text)) => Err(text.to_owned()),
            _ => panic!("{command}: {answer:?}"),
        }
    }

    /// Gives a command and does not wait for the answer.
    pub fn tell(&mut self, command: &str) {
        writeln!(self.socket.get_mut(), "{command}").unwrap();
    }

    /// Gives a command that succeeds.
    pub fn ok(&mut self, command: &str) -> String {
        self.ask(command).unwrap_or_else(|error| panic!("{command}: {error}"))
    }
}

/// The VMM, in its own process. Alone, as one of all tests, it does nothing.
#[test]
fn play_the_vmm() {
    let Ok(path) = std::env::var(SOCKET) else {
        return;
    };
    let dir = Path::new(&path).parent().unwrap().to_owned();
    portcullis_vmm::log::install(Some(&dir.join("vm.log")), portcullis_vmm::log::LogLevel::default()).unwrap();
    let options =
        Options { id: "driven".to_owned(), boot_timer: true, metadata: Mmds::new(DEFAULT_LIMIT).into_shared() };
    let (supervisor, controller) = Supervisor::new(options, Clock::start()).unwrap();
    let reach = Reach { written: vec![std::env::temp_dir()], ..Reach::default() };
    let supervisor = supervisor.with_confinement(Confinement { reach, ..Confinement::default() });
    let listener = UnixListener::bind(&path).unwrap();
    // Takes random numbers, which a confined process may not.
    let base = Base::booted();
    std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        let mut answers = socket.try_clone().unwrap();
        for line in BufReader::new(socket).lines() {
            let words: Vec<&str> = line.as_deref().unwrap_or_default().split(' ').collect();
            let line = match obey(&controller, &dir, &base, &words) {
                Ok(text) => format!("ok {text}\n"),
                Err(error) => format!("error {error}\n"),
            };
            let _ = answers.write_all(line.as_bytes());
        }
    });
    let code = match supervisor.run(None) {
        Ok(_) => 0,
        Err(error) => i32::from(error.exit_code()),
    };
    std::process::exit(code);
}

fn obey(controller: &Controller, dir: &Path, base: &Base, words: &[&str]) -> Result<String, ControlError> {
    let config = || VmConfig::from_file(&dir.join("vm.json")).unwrap();
    let done = |result: Result<(), ControlError>| result.map(|()| String::new());
    match words {
        ["start"] => done(controller.call(|reply| Command::Start(Box::new(config()), reply))),
        ["state"] => Ok(controller.state().as_str().to_owned()),
        ["pause"] => done(controller.call(Command::Pause)),
        ["resume"] => done(controller.call(Command::Resume)),
        ["flush"] => done(controller.call(Command::FlushMetrics)),
        ["replace", path] => {
            let disk = Disk::open(&DriveConfig::new("rootfs", *path)).unwrap();
            let replace = |device: &mut Block, _: Option<&mut Active>| (device.replace(disk), true);
            done(controller.device("drive rootfs", replace))
        }
        ["keys"] => done(controller.call(Command::SendCtrlAltDel)),
        ["save", path] => {
            let open = |what: &str| {
                let path = format!("{path}.{what}");
                OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).unwrap()
            };
            let files = Files { state: open("state"), memory: open("memory") };
            let config = Box::new(config());
            let Saved { state, ram } = controller.call(|reply| Command::CreateSnapshot { config, reply })?;
            let kind = SnapshotType::Full;
            let written = snapshot::write(&files, &Written { state, ram: &ram, kind, base, track: false }, false);
            done(written.map(drop).map_err(|error| ControlError::Failed(error.to_string())))
        }
        ["load", path, more @ ..] => {
            let open = |what: &str| OpenOptions::new().read(true).open(format!("{path}.{what}")).unwrap();
            let files = Loading { state: open("state"), memory: MemorySource::File(open("memory")) };
            let text = r#"{"snapshot_path": "state", "mem_file_path": "memory"}"#;
            let mut request: Box<SnapshotLoad> = serde_json::from_str(text).unwrap();
            request.resume_vm = more.contains(&"resume");
            request.clock_realtime = more.contains(&"realtime");
            let begin = Instant::now();
            let (config, _) =
                controller.call(|reply| Command::LoadSnapshot { files, request, metrics: config().metrics, reply })?;
            Ok(format!("{} {}", begin.elapsed().as_micros(), config.machine_config.vcpu_count))
        }
        other => panic!("no command {other:?}"),
    }
}
