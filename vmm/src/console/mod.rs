//! The host's side of the serial line: standard input and output.

mod rate;
mod terminal;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::poll::{PollFd, PollFlags};

use crate::devices::serial::Serial;

pub use rate::Bucket;
pub use terminal::restore as restore_terminal;

/// Bytes that are moved in one go. Not more than `PIPE_BUF`, so that a pipe that polls writable takes them whole and
/// the write does not block.
const CHUNK: usize = 4096;
/// Guest output a second, in bytes, in the long run: what fills the host's log is the guest's choice.
const OUTPUT_RATE: u64 = 256 * 1024;
/// Guest output at once, in bytes.
const OUTPUT_BURST: u64 = 1024 * 1024;

/// Standard input and output as the far end of a serial line.
pub struct Console {
    input: Option<RawFd>,
    output: Option<RawFd>,
    bucket: Bucket,
}

impl Console {
    /// Takes over standard input and output. A terminal is switched to raw mode, see [`restore_terminal`].
    pub fn open() -> Self {
        let stdin = io::stdin().as_raw_fd();
        let input = terminal::make_raw(stdin).then_some(stdin);
        Self { input, output: Some(io::stdout().as_raw_fd()), bucket: Bucket::new(OUTPUT_RATE, OUTPUT_BURST) }
    }

    /// Whether there may be input to wait for now.
    fn wants_input(&self, serial: &Serial) -> bool {
        self.input.is_some() && serial.input_room() > 0
    }

    /// Whether there is output that may be written now.
    fn wants_output(&mut self, serial: &Serial) -> bool {
        serial.has_output() && (self.output.is_none() || self.bucket.available() > 0)
    }

    /// What to wait for. At most two entries.
    pub fn poll_set(&mut self, serial: &Serial) -> Vec<PollFd<'static>> {
        let mut set = Vec::with_capacity(2);
        // SAFETY: standard input and output stay open for the life of the process: nothing here closes them.
        let borrow = |fd: RawFd| unsafe { BorrowedFd::borrow_raw(fd) };
        if let Some(fd) = self.input.filter(|_| self.wants_input(serial)) {
            set.push(PollFd::new(borrow(fd), PollFlags::POLLIN));
        }
        if let Some(fd) = self.output.filter(|_| self.wants_output(serial)) {
            set.push(PollFd::new(borrow(fd), PollFlags::POLLOUT));
        }
        set
    }

    /// Milliseconds until output is allowed again, if that is what keeps it waiting.
    pub fn wait_ms(&mut self, serial: &Serial) -> Option<u16> {
        (serial.has_output() && self.output.is_some()).then(|| self.bucket.wait_ms())
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
        let allowed = usize::try_from(self.bucket.available()).unwrap_or(CHUNK).min(CHUNK);
        let count = serial.take_output(buffer.get_mut(..allowed).unwrap_or_default());
        let bytes = buffer.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            return false;
        }
        // SAFETY: see `poll_set`.
        match nix::unistd::write(unsafe { BorrowedFd::borrow_raw(fd) }, bytes) {
            Ok(written) => {
                self.bucket.take(written as u64);
                serial.output_done(written, true);
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
        self.bucket = Bucket::new(OUTPUT_RATE, OUTPUT_BURST);
        for _ in 0..OUTPUT_BURST / CHUNK as u64 {
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
