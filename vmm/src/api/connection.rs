//! One client's connection: bytes in, requests; responses, bytes out. Nothing here waits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;

use super::http::{self, Limits, Parsed, Request, Response, Status};

/// How long a client may take to send one request, or to take its response.
pub const SLOWEST: Duration = Duration::from_secs(30);
/// Bytes that are read in one go.
const CHUNK: usize = 4096;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    fd: OwnedFd,
    limits: Limits,
    /// What has come and was not answered.
    input: Vec<u8>,
    /// What is still to be sent.
    output: Vec<u8>,
    /// How much of it was.
    sent: usize,
    /// Whether the client was told to go on with the body.
    continued: bool,
    /// Nothing more is read; the connection ends when the output is sent.
    closing: bool,
    /// The begin of the request or response that is under way, or of the pause since the last one.
    since: Instant,
}

/// What to do with a connection.
pub(super) enum Turn {
    /// Wait for more.
    Wait,
    /// Answer this, with [`Connection::answer`].
    Answer(Request),
    /// Forget it.
    End,
}

impl Connection {
    pub(super) fn new(fd: OwnedFd, limits: Limits, now: Instant) -> Self {
        let (input, output) = (Vec::new(), Vec::new());
        Self { fd, limits, input, output, sent: 0, continued: false, closing: false, since: now }
    }

    /// What to wait for.
    pub(super) fn wants(&self) -> PollFlags {
        if self.output.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLOUT }
    }

    /// Whether the client neither sends nor is being sent anything.
    pub(super) fn is_idle(&self) -> bool {
        self.input.is_empty() && self.output.is_empty()
    }

    /// Since when it does what it does.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// When the client has been too slow; it never is while it sends nothing.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.is_idle()).then(|| self.since + SLOWEST)
    }

    /// The client was too slow.
    pub(super) fn expire(&mut self, now: Instant) -> Turn {
        if self.output.is_empty() {
            let fault = Response::fault(Status::RequestTimeout, "the request did not come to its end in time");
            self.reject(&fault, now);
            // As much as goes at once: this client has had its time.
            let _ = self.send(now);
        }
        Turn::End
    }

    /// Reads or writes what goes without waiting.
    pub(super) fn serve(&mut self, now: Instant) -> Turn {
        if self.output.is_empty() { self.receive(now) } else { self.send(now) }
    }

    fn receive(&mut self, now: Instant) -> Turn {
        let mut chunk = [0; CHUNK];
        let got = match nix::unistd::read(&self.fd, &mut chunk) {
            // A client that is gone, or has said all, gets no answer to half a request.
            Ok(0) => return Turn::End,
            Ok(got) => got,
            Err(Errno::EAGAIN | Errno::EINTR) => return Turn::Wait,
            Err(_) => return Turn::End,
        };
        if self.input.is_empty() {
            self.since = now;
        }
        self.input.extend_from_slice(chunk.get(..got).unwrap_or_default());
        self.next(now)
    }

    /// The next request, if it is there.
    fn next(&mut self, now: Instant) -> Turn {
        if self.input.is_empty() {
            return Turn::Wait;
        }
        match http::parse(&self.input, self.limits) {
            Ok(Parsed::Complete(request, len)) => {
                self.input.drain(..len.min(self.input.len()));
                self.continued = false;
                self.closing = !request.keep_alive;
                Turn::Answer(request)
            }
            Ok(Parsed::Partial { wants_continue: true }) if !self.continued => {
                self.continued = true;
                self.output.extend_from_slice(http::CONTINUE);
                self.send(now)
            }
            Ok(Parsed::Partial { .. }) => Turn::Wait,
            Err(rejected) => {
                self.reject(&Response::fault(rejected.status, &rejected.message), now);
                self.send(now)
            }
        }
    }

    /// Gives up on what the client sends: `fault` is the last that it hears.
    pub(super) fn reject(&mut self, fault: &Response, now: Instant) {
        self.closing = true;
        self.input = Vec::new();
        self.answer(fault, now);
    }

    /// Takes a response for the request that was given out last.
    pub(super) fn answer(&mut self, response: &Response, now: Instant) {
        self.output = response.to_bytes(!self.closing);
        self.sent = 0;
        self.since = now;
    }

    fn send(&mut self, now: Instant) -> Turn {
        while let Some(rest) = self.output.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match nix::unistd::write(&self.fd, rest) {
                Ok(count) => self.sent = self.sent.saturating_add(count),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Turn::Wait,
                Err(_) => return Turn::End,
            }
        }
        (self.output, self.sent, self.since) = (Vec::new(), 0, now);
        if self.closing {
            return Turn::End;
        }
        if self.input.is_empty() {
            // A client that keeps its connection open for days keeps no memory with it.
            self.input = Vec::new();
        }
        self.next(now)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
