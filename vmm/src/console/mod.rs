//! The host's side of the serial line: standard input and output.

mod terminal;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};

use crate::config::SerialConfig;
use crate::devices::DeviceError;
use crate::devices::serial::Serial;
use crate::rate_limiter::{TokenBucket, TokenBucketConfig};

pub use terminal::restore as restore_terminal;

/// Bytes that are moved in one go. Not more than `PIPE_BUF`, so that a pipe that polls writable takes them whole and
/// the write does not block.
const CHUNK: usize = 4096;
/// Guest output at once, in bytes.
const OUTPUT_BURST: u64 = 1024 * 1024;
/// Milliseconds until as much again may be written: 256 KiB a second in the long run. What fills the host's log is the
/// guest's choice.
const OUTPUT_REFILL_MS: u64 = 4000;
/// Milliseconds between two looks at whether output is allowed again, so that it comes in more than drops.
const OUTPUT_PAUSE_MS: u64 = 10;
/// Least time between two writes, if the first took all that there was: guests write byte by byte, and a write costs the
/// host many times what the byte costs the guest.
const GAP: Duration = Duration::from_millis(2);

/// Where the guest's output goes, and how much of it.
#[derive(Debug, Default)]
pub struct Outlet {
    /// Standard output, if there is no file.
    file: Option<File>,
    limit: Option<TokenBucketConfig>,
}

impl Outlet {
    /// Opens what is configured.
    pub fn open(config: Option<&SerialConfig>) -> Result<Self, DeviceError> {
        let Some(config) = config else {
            return Ok(Self::default());
        };
        let path = config.serial_out_path.as_deref().unwrap_or_else(|| "".as_ref()).display();
        let unusable = |error| DeviceError::Unusable {
            device: "the serial line".to_owned(),
            reason: format!("cannot write to {path}: {error}; give another serial_out_path"),
        };
        Ok(Self { file: config.open().map_err(unusable)?, limit: config.rate_limiter })
    }

    /// The limit, unused.
    fn limit(&self) -> Option<TokenBucket> {
        self.limit.map_or_else(|| TokenBucket::new(OUTPUT_BURST, 0, OUTPUT_REFILL_MS), TokenBucketConfig::bucket)
    }
}

/// Standard input, and standard output or a file, as the far end of a serial line.
pub struct Console {
    input: Option<RawFd>,
    output: Option<RawFd>,
    limit: Option<TokenBucket>,
    /// Until when what the guest writes is collected.
    collect: Option<Instant>,
    /// Keeps the file of `output` open.
    outlet: Outlet,
}

impl Console {
    /// Takes over standard input, and `outlet`. A terminal is switched to raw mode, see [`restore_terminal`].
    pub fn open(outlet: Outlet) -> Self {
        let stdin = io::stdin().as_raw_fd();
        let input = terminal::make_raw(stdin).then_some(stdin);
        let output = outlet.file.as_ref().map_or_else(|| io::stdout().as_raw_fd(), AsRawFd::as_raw_fd);
        Self { input, output: Some(output), limit: outlet.limit(), collect: None, outlet }
    }

    /// Where input comes from, until its end.
    pub fn input(&self) -> Option<RawFd> {
        self.input
    }

    /// Where output goes, until nobody reads it.
    pub fn output(&self) -> Option<RawFd> {
        self.output
    }

    /// Whether there may be input to wait for now.
    fn wants_input(&self, serial: &Serial) -> bool {
        self.input.is_some() && serial.input_room() > 0
    }

    /// Whether there is output that may be written now.
    pub fn wants_output(&mut self, serial: &Serial) -> bool {
        serial.has_output() && (self.output.is_none() || self.allowed() > 0 && self.gap().is_zero())
    }

    /// Time that is left of the gap after the last write.
    fn gap(&mut self) -> Duration {
        let left = self.collect.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
        self.collect = self.collect.filter(|_| !left.is_zero());
        left
    }

    /// Bytes of output that may be written now.
    fn allowed(&mut self) -> u64 {
        self.limit.as_mut().map_or(u64::MAX, |limit| limit.available(Instant::now()))
    }

    /// What to wait for. At most two entries.
    pub fn poll_set(&mut self, serial: &Serial) -> Vec<PollFd<'static>> {
        let mut set = Vec::with_capacity(2);
        // SAFETY: standard input and output stay open for the life of the process, the file for that of `self`.
        let borrow = |fd: RawFd| unsafe { BorrowedFd::borrow_raw(fd) };
        if let Some(fd) = self.input.filter(|_| self.wants_input(serial)) {
            set.push(PollFd::new(borrow(fd), PollFlags::POLLIN));
        }
        if let Some(fd) = self.output.filter(|_| self.wants_output(serial)) {
            set.push(PollFd::new(borrow(fd), PollFlags::POLLOUT));
        }
        set
    }

    /// Time until output may be written, if that is what keeps it waiting.
    pub fn pause(&mut self, serial: &Serial) -> Option<Duration> {
        if !serial.has_output() || self.output.is_none() {
            return None;
        }
        let pause = if self.allowed() > 0 { self.gap() } else { Duration::from_millis(OUTPUT_PAUSE_MS) };
        Some(pause).filter(|pause| !pause.is_zero())
    }

    /// Moves what is ready, as told by the entries of [`Console::poll_set`].
    pub fn serve(&mut self, serial: &Serial, ready: &[PollFd<'_>]) {
        for entry in ready {
            if !entry.any().unwrap_or(false) {
                continue;
            }
            if entry.events().contains(PollFlags::POLLIN) {
                self.move_input(serial);
            } else {
                self.move_output(serial);
            }
        }
        if self.output.is_none() {
            discard(serial);
        }
    }

    fn move_input(&mut self, serial: &Serial) {
        let Some(fd) = self.input else {
            return;
        };
        let mut buffer = [0; 64];
        let room = serial.input_room().min(buffer.len());
        let Some(space) = buffer.get_mut(..room).filter(|space| !space.is_empty()) else {
            return;
        };
        // SAFETY: see `poll_set`.
        match nix::unistd::read(unsafe { BorrowedFd::borrow_raw(fd) }, space) {
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::EAGAIN) => {}
            // End of input or a terminal that went away: the guest's line stays open, nobody types.
            Ok(0) | Err(_) => self.input = None,
            Ok(count) => {
                serial.give_input(space.get(..count).unwrap_or_default());
            }
        }
    }

    /// Writes one chunk. Gives whether there may be more to write at once.
    fn move_output(&mut self, serial: &Serial) -> bool {
        let Some(fd) = self.output else {
            return false;
        };
        let mut buffer = [0; CHUNK];
        let allowed = usize::try_from(self.allowed()).unwrap_or(CHUNK).min(CHUNK);
        let count = serial.take_output(buffer.get_mut(..allowed).unwrap_or_default());
        let bytes = buffer.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            return false;
        }
        // SAFETY: see `poll_set`.
        match nix::unistd::write(unsafe { BorrowedFd::borrow_raw(fd) }, bytes) {
            Ok(written) => {
                if let Some(limit) = &mut self.limit {
                    limit.take(written as u64);
                }
                serial.output_done(written, true);
                self.collect = (written < CHUNK).then(|| Instant::now() + GAP);
                true
            }
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::EAGAIN) => false,
            Err(_) => {
                // Nobody reads any more (EPIPE), the disk is full: the guest runs on without its line.
                self.output = None;
                false
            }
        }
    }

    /// Writes what is left when the VM has ended, as far as it goes without waiting for long.
    pub fn finish(&mut self, serial: &Serial) {
        self.limit = self.outlet.limit();
        for _ in 0..OUTPUT_BURST / CHUNK as u64 {
            self.collect = None;
            let mut set = self.poll_set(serial);
            set.retain(|entry| entry.events().contains(PollFlags::POLLOUT));
            if set.is_empty() || nix::poll::poll(&mut set, 100u16).unwrap_or(0) == 0 || !self.move_output(serial) {
                break;
            }
        }
        discard(serial);
    }
}

/// Drops output that cannot be written; the line counts it as lost.
///
/// All of it at once: a loop until there is none would go on for as long as the guest writes, and hear no signal.
fn discard(serial: &Serial) {
    serial.output_done(usize::MAX, false);
}

impl Drop for Console {
    fn drop(&mut self) {
        terminal::restore();
    }
}
