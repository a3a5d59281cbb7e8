//! Runs `portcullis-vmm` as a process and looks at what it says.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use portcullis_vmm::config::VmConfig;
use portcullis_vmm::log::{EndReason, Event, LogLine, Mark};

use crate::guest::Guest;

/// Longest life of a VM in these tests. They take milliseconds; a shared machine may be a hundred times slower.
const LIMIT: Duration = Duration::from_mins(1);

/// The program: that of this build, or the one that the environment names (the VMM as it is installed, in `scripts/test`).
pub fn program() -> Command {
    let other = std::env::var_os("PORTCULLIS_VMM");
    Command::new(other.unwrap_or_else(|| env!("CARGO_BIN_EXE_portcullis-vmm").into()))
}

/// A directory with a kernel, its configuration, and a place for the log.
pub struct Setup {
    pub dir: tempfile::TempDir,
    pub config: VmConfig,
}

impl Setup {
    /// For a kernel file of these bytes.
    pub fn with_kernel(kernel: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        std::fs::write(&path, kernel).unwrap();
        Self { dir, config: VmConfig::new(path).with_mem_mib(4) }
    }

    pub fn new(guest: &Guest) -> Self {
        Self::with_kernel(&guest.elf())
    }

    pub fn config_file(&self) -> PathBuf {
        let path = self.dir.path().join("vm.json");
        std::fs::write(&path, self.config.to_json().unwrap()).unwrap();
        path
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.path().join("vm.log")
    }

    /// The command that runs it.
    pub fn command(&self) -> Command {
        let mut command = program();
        command.args(["--no-api", "--boot-timer", "--config-file"]).arg(self.config_file());
        command.arg("--log-path").arg(self.log_path());
        command
    }

    pub fn start(self) -> Vmm {
        let command = self.command();
        Vmm::start(command, self.dir)
    }

    pub fn run(self) -> Ended {
        self.start().wait()
    }
}

/// A running VMM. Killed when dropped.
pub struct Vmm {
    child: Child,
    output: Arc<Mutex<Vec<u8>>>,
    errors: Arc<Mutex<Vec<u8>>>,
    readers: Vec<std::thread::JoinHandle<()>>,
    dir: tempfile::TempDir,
}

fn collect(mut from: impl Read + Send + 'static, to: Arc<Mutex<Vec<u8>>>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            to.lock().unwrap().extend(&buffer[..count]);
        }
    })
}

impl Vmm {
    pub fn start(mut command: Command, dir: tempfile::TempDir) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (output, errors) = <(Arc<Mutex<Vec<u8>>>, Arc<Mutex<Vec<u8>>>)>::default();
        let readers = vec![
            collect(child.stdout.take().unwrap(), Arc::clone(&output)),
            collect(child.stderr.take().unwrap(), Arc::clone(&errors)),
        ];
        Self { child, output, errors, readers, dir }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    pub fn type_in(&mut self, text: &str) {
        self.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    pub fn output_text(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap()).into_owned()
    }

    /// Waits until the guest has printed `text`.
    pub fn wait_for(&mut self, text: &str) {
        let limit = Instant::now() + LIMIT;
        while !self.output_text().contains(text) {
            assert!(Instant::now() < limit, "the guest did not print {text:?} but {:?}", self.output_text());
            if self.has_ended() {
                // What it printed last may still be on its way through the pipe.
                let errors = String::from_utf8_lossy(&self.errors.lock().unwrap()).into_owned();
                assert!(self.output_text().contains(text), "it ended and did not print {text:?}: {errors}");
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether the program has ended and all that it printed was read. It is not reaped: it can still be sent signals.
    fn has_ended(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let status = waitid(Id::Pid(self.pid()), flags).unwrap();
        status != WaitStatus::StillAlive && self.readers.iter().all(std::thread::JoinHandle::is_finished)
    }

    /// Waits until the guest has printed `len` bytes beyond the first `before`, and gives them.
    pub fn wait_for_more(&mut self, before: usize, len: usize) -> String {
        let limit = Instant::now() + LIMIT;
        while self.output_text().len() < before + len {
            let (errors, output) = (self.errors.lock().unwrap().clone(), self.output_text());
            assert!(Instant::now() < limit, "{output:?}, {}", String::from_utf8_lossy(&errors));
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "ended with {ended:?}: {output:?}, {}", String::from_utf8_lossy(&errors));
            std::thread::sleep(Duration::from_millis(2));
        }
        self.output_text()[before..before + len].to_owned()
    }

    /// Waits for the end of one that was killed; its directory stays.
    pub fn wait_killed(&mut self) {
        let status = wait_limited(&mut self.child);
        assert_eq!(status.signal(), Some(libc::SIGKILL));
    }

    /// Waits for the end. A VMM that takes too long is a failure, never a hang.
    pub fn wait(self) -> Ended {
        self.wait_with(|_| ()).0
    }

    /// The same, and looks into its folder before that is gone.
    pub fn wait_with<T>(mut self, look: impl FnOnce(&Path) -> T) -> (Ended, T) {
        let status = wait_limited(&mut self.child);
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        let log = std::fs::read_to_string(self.dir.path().join("vm.log")).unwrap_or_default();
        let (mut events, mut warnings) = (Vec::new(), Vec::new());
        for line in log.lines() {
            match LogLine::parse(line) {
                Some(line) => events.push(line.event),
                None if line.contains(r#""level":"WARN""#) => warnings.push(line.to_owned()),
                None => panic!("not a line of the log: {line}"),
            }
        }
        let errors = String::from_utf8_lossy(&self.errors.lock().unwrap()).into_owned();
        let seen = look(self.dir.path());
        (Ended { status, output: self.output_text(), errors, events, warnings }, seen)
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A child that does not outlive its test, also when that fails.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a child, and kills it when it takes too long.
pub fn wait_limited(child: &mut Child) -> ExitStatus {
    let limit = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > limit {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the VMM did not end within {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What a VMM left.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    /// Standard output: the serial line.
    pub output: String,
    /// Standard error.
    pub errors: String,
    /// The log.
    pub events: Vec<Event>,
    /// Its warnings, which are for people.
    pub warnings: Vec<String>,
}

impl Ended {
    pub fn code(&self) -> Option<i32> {
        assert!(self.status.signal().is_none(), "killed by a signal: {self:?}");
        self.status.code()
    }

    /// The reason and the error of the last line.
    pub fn end(&self) -> (EndReason, Option<&str>) {
        match self.events.last() {
            Some(Event::End { reason, error, .. }) => (*reason, error.as_deref()),
            other => panic!("the last line of the log is no end but {other:?}: {self:?}"),
        }
    }

    /// Asserts a clean end without warnings.
    pub fn expect_clean(&self, reason: EndReason) {
        assert_eq!(self.warnings, [""; 0], "{self:?}");
        self.expect_end(reason);
    }

    /// Asserts a clean end, and that the log warns of each of `parts`, and of nothing else.
    pub fn expect_warnings(&self, reason: EndReason, parts: &[&str]) {
        self.expect_end(reason);
        assert_eq!(self.warnings.len(), parts.len(), "{self:?}");
        for (warning, part) in self.warnings.iter().zip(parts) {
            assert!(warning.contains(part), "{part:?} is not in {warning:?}");
        }
    }

    pub fn expect_end(&self, reason: EndReason) {
        assert_eq!((self.code(), self.end()), (Some(0), (reason, None)), "{self:?}");
        assert_eq!(self.errors, "");
    }

    /// The marks that mean "booted".
    pub fn boots(&self) -> Vec<Mark> {
        let boot = |event: &Event| if let Event::GuestBoot(mark) = event { Some(*mark) } else { None };
        self.events.iter().filter_map(boot).collect()
    }
}

/// Runs the program with arguments that should be refused; gives exit code and standard error.
pub fn refused(command: &mut Command) -> (i32, String) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let status = wait_limited(&mut child);
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    (status.code().unwrap_or_else(|| panic!("killed by a signal: {status:?} {errors}")), errors)
}

/// The command line for a configuration file.
pub fn with_config(path: &Path) -> Command {
    let mut command = program();
    command.arg("--config-file").arg(path);
    command
}
