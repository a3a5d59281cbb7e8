//! The harness's side of the control shell: a byte stream to `/usr/lib/lab/control` on the host, over a virtio port, so
//! that kernel messages on the console do not mix with it and nothing is lost.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often a wait looks whether the host is still alive.
const LOOK: Duration = Duration::from_millis(100);
/// The most that a command may print, or a file may have.
const MOST: usize = 256 * 1024 * 1024;

/// What a command on the host did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status; 137 when it ran into its time limit.
    pub status: i32,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it printed on the error stream.
    pub stderr: Vec<u8>,
}

impl Output {
    /// The output as text, lossily, without blanks at its end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// The error stream as text, lossily, without blanks at its end.
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }
}

/// Why waiting for the host ended without what was waited for.
#[derive(Debug)]
pub(super) enum Interrupted {
    /// The time limit passed.
    TooSlow,
    /// The liveness check said so.
    Ended(String),
    /// The stream failed.
    Io(io::Error),
}

/// The connection to one host.
#[derive(Debug)]
pub(super) struct Control {
    stream: UnixStream,
    received: Vec<u8>,
    next: u32,
    boot_id: Option<String>,
}

/// Something that says why the host is gone, if it is.
pub(super) type Alive<'a> = &'a mut dyn FnMut() -> Option<String>;

impl Control {
    pub(super) fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(LOOK))?;
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self { stream, received: Vec::new(), next: 0, boot_id: None })
    }

    /// Waits until the control shell of a boot that was not seen before reports.
    pub(super) fn wait_ready(&mut self, end: Instant, alive: Alive) -> Result<(), Interrupted> {
        loop {
            let line = self.line(end, alive)?;
            if let Some(boot_id) = line.strip_prefix("@@ready ")
                && self.boot_id.as_deref() != Some(boot_id)
            {
                self.boot_id = Some(boot_id.to_owned());
                return Ok(());
            }
        }
    }

    /// Waits for a line.
    pub(super) fn wait_line(&mut self, wanted: &str, end: Instant, alive: Alive) -> Result<(), Interrupted> {
        while self.line(end, alive)? != wanted {}
        Ok(())
    }

    pub(super) fn run(
        &mut self,
        command: &str,
        limit: Duration,
        end: Instant,
        alive: Alive,
    ) -> Result<Output, Interrupted> {
        let id = self.id();
        let seconds = limit.as_secs().max(1);
        self.send(format!("run {id} {seconds} {}\n{command}", command.len()).as_bytes())?;
        self.result(id, end, alive)
    }

    pub(super) fn put(
        &mut self,
        path: &str,
        contents: &[u8],
        end: Instant,
        alive: Alive,
    ) -> Result<Output, Interrupted> {
        let id = self.id();
        self.send(format!("put {id} {} {path}\n", contents.len()).as_bytes())?;
        self.send(contents)?;
        self.result(id, end, alive)
    }

    fn id(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Interrupted> {
        self.stream.write_all(bytes).map_err(Interrupted::Io)
    }

    fn result(&mut self, id: u32, end: Instant, alive: Alive) -> Result<Output, Interrupted> {
        let bad = |line: &str| Interrupted::Ended(format!("its control shell said {line:?}"));
        loop {
            let line = self.line(end, alive)?;
            let Some(rest) = line.strip_prefix("@@result ") else { continue };
            let fields: Vec<&str> = rest.split_whitespace().collect();
            let &[answered, status, stdout, stderr] = fields.as_slice() else { return Err(bad(&line)) };
            let stdout: usize = stdout.parse().map_err(|_| bad(&line))?;
            let stderr: usize = stderr.parse().map_err(|_| bad(&line))?;
            let status: i32 = status.parse().map_err(|_| bad(&line))?;
            if stdout.saturating_add(stderr) > MOST {
                return Err(bad(&line));
            }
            let mut text = self.take(stdout + stderr, end, alive)?;
            // The answer to a command that was given up on may come late.
            if answered == id.to_string() {
                let stderr = text.split_off(stdout);
                return Ok(Output { status, stdout: text, stderr });
            }
        }
    }

    pub(super) fn line(&mut self, end: Instant, alive: Alive) -> Result<String, Interrupted> {
        let mut searched = 0;
        loop {
            if let Some(length) = self.received[searched..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=searched + length).collect();
                return Ok(String::from_utf8_lossy(&line[..line.len() - 1]).into_owned());
            }
            searched = self.received.len();
            self.receive(end, alive)?;
        }
    }

    fn take(&mut self, length: usize, end: Instant, alive: Alive) -> Result<Vec<u8>, Interrupted> {
        while self.received.len() < length {
            self.receive(end, alive)?;
        }
        Ok(self.received.drain(..length).collect())
    }

    fn receive(&mut self, end: Instant, alive: Alive) -> Result<(), Interrupted> {
        let mut buffer = [0; 16384];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    return Err(Interrupted::Ended(alive().unwrap_or_else(|| "its control port closed".to_owned())));
                }
                Ok(length) => {
                    self.received.extend_from_slice(&buffer[..length]);
                    return Ok(());
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Interrupted::Io(error)),
            }
            if let Some(why) = alive() {
                return Err(Interrupted::Ended(why));
            }
            if Instant::now() >= end {
                return Err(Interrupted::TooSlow);
            }
        }
    }
}
