//! One running VM: its `portcullis-vmm` process, the guest's console, the VMM's log.
//!
//! What comes out of the process is the tenant's: both streams are bounded on disk, and nothing in them is believed
//! beyond the two things a person wants to see, the boot time and the kernel's release.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use portcullis_vmm::log::{EndReason, Event, LogLine, MAX_LINE};

use crate::child;

/// How long the last words of an ended VMM are waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Time that a VMM has to end by itself after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);
/// Bytes of the console in which the kernel's banner is looked for.
const BANNER_WINDOW: usize = 64 * 1024;
/// What Linux prints first.
const BANNER: &[u8] = b"Linux version ";

/// What wakes the agent's loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wake {
    /// A signal asks the agent to end.
    Stop,
    /// A VM, named by its order, has something to say.
    Machine(String, MachineEvent),
}

/// What a VM has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest's kernel printed its release.
    Kernel(String),
    /// The guest's init runs; milliseconds since the VMM's start.
    Booted(u64),
    /// The VMM says how the VM ended.
    Ending(String),
    /// A stream of the process is at its end: it has ended or is about to.
    Closed,
}

/// Why a VM did not start.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The program cannot be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The VMM's path.
        program: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A log file cannot be made.
    #[error("cannot make {path}: {source}")]
    Log {
        /// The log file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// How and where one VM runs.
#[derive(Debug)]
pub struct MachineSetup<'a> {
    /// The order's id, which is also the VM's name in its log.
    pub order: &'a str,
    /// The VMM's program.
    pub program: &'a Path,
    /// The VM's configuration.
    pub config: &'a Path,
    /// Where the guest's console goes.
    pub console: &'a Path,
    /// Where the VMM's log goes.
    pub log: &'a Path,
    /// Bytes kept of each.
    pub max_log_bytes: u64,
}

/// A VM's process. Ended when dropped.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    status: Option<ExitStatus>,
    /// They end with the streams that they read.
    pumps: Vec<JoinHandle<()>>,
}

impl Machine {
    /// Starts a VM. To be called from the agent's main thread only: the VM ends with the thread that started it.
    pub fn start(setup: &MachineSetup<'_>, wake: &Sender<Wake>) -> Result<Self, MachineError> {
        let start = |source| MachineError::Start { program: setup.program.to_owned(), source };
        let console = BoundedLog::create(setup.console, setup.max_log_bytes)?;
        let log = BoundedLog::create(setup.log, setup.max_log_bytes)?;
        let mut command = child::command(setup.program);
        // The boot timer gives the guest one register to write to, by which the host learns how long it took to start.
        command.arg("--id").arg(setup.order).arg("--boot-timer").arg("--config-file").arg(setup.config);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(start)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut machine = Self { child, status: None, pumps: Vec::new() };
        let missing = || start(std::io::Error::other("a stream is missing"));
        let (stdout, stderr) = (stdout.ok_or_else(missing)?, stderr.ok_or_else(missing)?);
        machine.pumps.push(pump(stdout, console, Banner::default(), setup.order, wake));
        machine.pumps.push(pump(stderr, log, Lines::default(), setup.order, wake));
        Ok(machine)
    }

    /// How the process ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    /// Waits until all that an ended VM wrote has been read and told. Not for ever: something that it started might hold
    /// its streams open.
    pub fn wait_for_last_words(&self) {
        let deadline = Instant::now() + LAST_WORDS;
        while !self.pumps.iter().all(JoinHandle::is_finished) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks the VM to end, without waiting for it.
    pub fn ask_to_end(&mut self) {
        // Not after it was collected: its process id may be another's by then.
        if self.ended().is_none()
            && let Ok(pid) = i32::try_from(self.child.id())
        {
            // An error means that it is ending already.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }

    /// Ends the VM: first by asking, then by force. Returns when the process is gone.
    pub fn end(&mut self) {
        self.ask_to_end();
        let deadline = Instant::now() + GRACE;
        while self.ended().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.ended().is_none() {
            child::kill(&mut self.child);
            self.status = self.child.try_wait().ok().flatten();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}

/// A file that takes so many bytes and then no more.
struct BoundedLog {
    file: File,
    left: u64,
}

impl BoundedLog {
    fn create(path: &Path, limit: u64) -> Result<Self, MachineError> {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(true).write(true).mode(0o600).open(path);
        let file = file.map_err(|source| MachineError::Log { path: path.to_owned(), source })?;
        Ok(Self { file, left: limit })
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.left == 0 {
            return;
        }
        let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        // A full disk must not stop the guest: what cannot be written is lost.
        let _ = self.file.write_all(bytes.get(..count).unwrap_or_default());
        self.left = self.left.saturating_sub(count as u64);
        if self.left == 0 {
            let _ = self.file.write_all(b"\n[portcullis-agent: the log is full, what follows is dropped]\n");
        }
    }
}

/// Looks for something worth knowing in a stream.
trait Watch: Send + 'static {
    fn see(&mut self, bytes: &[u8], tell: &mut dyn FnMut(MachineEvent));
}

fn pump(
    mut stream: impl Read + Send + 'static,
    mut log: BoundedLog,
    mut watch: impl Watch,
    order: &str,
    wake: &Sender<Wake>,
) -> JoinHandle<()> {
    let (order, wake) = (order.to_owned(), wake.clone());
    std::thread::spawn(move || {
        // The loop's end may be gone already when the agent shuts down; then nobody needs to know.
        let mut tell = |event| drop(wake.send(Wake::Machine(order.clone(), event)));
        let mut buffer = vec![0_u8; 16 * 1024];
        loop {
            match stream.read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(count @ 1..) => {
                    let bytes = buffer.get(..count).unwrap_or_default();
                    log.take(bytes);
                    watch.see(bytes, &mut tell);
                }
                _ => break,
            }
        }
        tell(MachineEvent::Closed);
    })
}

/// Finds the kernel's release in the beginning of the console.
#[derive(Default)]
struct Banner {
    seen: Vec<u8>,
    done: bool,
}

impl Watch for Banner {
    fn see(&mut self, bytes: &[u8], tell: &mut dyn FnMut(MachineEvent)) {
        if self.done {
            return;
        }
        let room = BANNER_WINDOW.saturating_sub(self.seen.len());
        self.seen.extend(bytes.iter().take(room));
        if let Some(release) = release(&self.seen) {
            tell(MachineEvent::Kernel(release));
            self.done = true;
        }
        self.done |= self.seen.len() >= BANNER_WINDOW;
        if self.done {
            self.seen = Vec::new();
        }
    }
}

/// The word after the banner, once it is there whole. The guest chooses it: only plain characters come through.
fn release(console: &[u8]) -> Option<String> {
    let at = console.windows(BANNER.len()).position(|part| part == BANNER)?;
    let rest = console.get(at + BANNER.len()..)?;
    let end = rest.iter().position(|byte| !is_release_byte(*byte))?;
    let word = rest.get(..end.min(64))?;
    (!word.is_empty()).then(|| String::from_utf8_lossy(word).into_owned())
}

fn is_release_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b".-+_~".contains(&byte)
}

/// Reads the VMM's log line by line. Each event is told once: a VMM that a tenant took over must not keep the agent busy.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
    too_long: bool,
    booted: bool,
    ending: bool,
}

impl Watch for Lines {
    fn see(&mut self, bytes: &[u8], tell: &mut dyn FnMut(MachineEvent)) {
        for &byte in bytes {
            if byte != b'\n' {
                if self.line.len() < MAX_LINE {
                    self.line.push(byte);
                } else {
                    self.too_long = true;
                }
                continue;
            }
            if !self.too_long
                && let Some(event) = std::str::from_utf8(&self.line).ok().and_then(LogLine::parse)
            {
                self.tell(event.event, tell);
            }
            self.line.clear();
            self.too_long = false;
        }
    }
}

impl Lines {
    fn tell(&mut self, event: Event, tell: &mut dyn FnMut(MachineEvent)) {
        match event {
            Event::GuestBoot(mark) if !self.booted => {
                self.booted = true;
                tell(MachineEvent::Booted(mark.boot_us / 1000));
            }
            Event::End { reason, error, text, .. } if !self.ending => {
                self.ending = true;
                tell(MachineEvent::Ending(ending(reason, error.as_deref(), text.as_deref())));
            }
            _ => {}
        }
    }
}

/// The end in words, fit for a receipt: printable and short.
fn ending(reason: EndReason, error: Option<&str>, text: Option<&str>) -> String {
    let words = match reason {
        EndReason::Reset => "the guest reset itself".to_owned(),
        EndReason::PowerOff => "the guest powered off".to_owned(),
        EndReason::Killed => "the VM was told to end".to_owned(),
        EndReason::Error => {
            format!("{}: {}", error.unwrap_or("error"), text.unwrap_or("no more is known"))
        }
    };
    printable(&words, 1000)
}

/// `text` without control characters, cut to so many characters.
pub fn printable(text: &str, characters: usize) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(characters).collect()
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
