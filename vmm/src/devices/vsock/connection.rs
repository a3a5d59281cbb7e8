//! One connection: bytes in both directions, no more in either than the receiver has room for, and an orderly end.
//!
//! Towards the guest nothing is kept: bytes are read from the host's socket when the guest has given a buffer and
//! credit. From the guest they go straight to the socket; what it does not take at once waits in the outbox, which
//! holds as much as the guest was told it could send ([`BUFFER`]).

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;

use super::greeting;
use super::metrics::Metrics;
use super::packet::{Closed, Credit, MAX_PAYLOAD, Op, Packet, Ports};
use super::stream;
use crate::memory::GuestRam;
use crate::virtio::{Buffers, QueueError};

/// Bytes that the guest may send before the host's program has read any, beside what the socket holds.
pub const BUFFER: u32 = 64 * 1024;
/// Time in which the guest has to answer a request; Linux's own for its connections.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Time in which the other side of a closed connection has to move; Linux's own.
pub const CLOSING_TIMEOUT: Duration = Duration::from_secs(8);

/// What serving a connection takes.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The guest's memory.
    pub ram: &'a GuestRam,
    /// The device's counters.
    pub metrics: &'a Metrics,
    /// The time.
    pub now: Instant,
    /// Bytes that all outboxes together may still take.
    pub room: usize,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Keep,
    /// It is over, and the guest has to be told.
    Reset,
    /// It is over, and the guest knows.
    Forget,
}

/// What a connection has for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A packet, whose bytes are in the buffers.
    Packet(Packet),
    /// Nothing now.
    Nothing,
    /// Its end.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The host wants it; the guest does not know yet.
    Asking,
    /// The guest knows and has not answered.
    Asked,
    /// The guest wants it and the host's program has it; the guest does not know yet.
    Accepting,
    /// Both have it.
    Open,
}

/// One connection.
pub struct Connection {
    ports: Ports,
    stream: UnixStream,
    phase: Phase,
    /// What the guest has closed.
    guest: Closed,
    /// What the host's program has closed.
    host: Closed,
    /// What of that the guest was told.
    told: Closed,
    /// The socket may have something to read.
    readable: bool,
    /// The host's program was told that no more bytes come.
    ended: bool,
    /// Bytes of the guest for the host's program.
    outbox: VecDeque<u8>,
    /// The guest's credit, as it last said.
    credit: Credit,
    /// Bytes that were sent to the guest, modulo 2^32.
    sent: u32,
    /// Bytes of the guest that have left the outbox, modulo 2^32.
    forwarded: u32,
    /// The same, as the guest was last told.
    told_forwarded: u32,
    /// The guest wants to be told.
    credit_wanted: bool,
    /// The guest was asked for its credit since it last had some.
    credit_asked: bool,
    deadline: Option<Instant>,
}

impl Connection {
    /// A connection that a program of the host asks for.
    pub fn ask(ports: Ports, stream: UnixStream, now: Instant) -> Self {
        Self::new(ports, stream, Phase::Asking, Credit::default(), now.checked_add(REQUEST_TIMEOUT))
    }

    /// A connection that the guest asked for, with this credit, and a program of the host has.
    pub fn accept(ports: Ports, stream: UnixStream, credit: Credit) -> Self {
        Self::new(ports, stream, Phase::Accepting, credit, None)
    }

    fn new(ports: Ports, stream: UnixStream, phase: Phase, credit: Credit, deadline: Option<Instant>) -> Self {
        Self {
            ports,
            stream,
            phase,
            guest: Closed::default(),
            host: Closed::default(),
            told: Closed::default(),
            // Perhaps not; the first read finds out.
            readable: true,
            ended: false,
            outbox: VecDeque::new(),
            credit,
            sent: 0,
            forwarded: 0,
            told_forwarded: 0,
            credit_wanted: false,
            credit_asked: false,
            deadline,
        }
    }

    /// Its ends.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Whether the guest has ever heard of it.
    pub fn is_known(&self) -> bool {
        self.phase != Phase::Asking
    }

    /// When it ends unless something happens.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Bytes of the guest that wait for the host's program.
    pub fn kept(&self) -> usize {
        self.outbox.len()
    }

    /// Bytes that the guest has room for. A guest that says it took more than it got has none.
    fn window(&self) -> u32 {
        self.credit.buf_alloc.saturating_sub(self.sent.wrapping_sub(self.credit.fwd_cnt))
    }

    fn may_read(&self) -> bool {
        self.readable && !self.host.send && !self.guest.receive
    }

    /// Whether the guest thinks that the buffer is fuller than it is, by half of it.
    fn credit_is_due(&self) -> bool {
        self.credit_wanted || self.forwarded.wrapping_sub(self.told_forwarded) >= BUFFER / 2
    }

    /// Whether [`Connection::next`] may have something.
    pub fn wants_a_turn(&self) -> bool {
        match self.phase {
            Phase::Asking | Phase::Accepting => true,
            Phase::Asked => false,
            Phase::Open => {
                self.may_read() && (self.window() > 0 || !self.credit_asked)
                    || self.told != self.host
                    || self.credit_is_due()
            }
        }
    }

    /// A packet of the guest, with its bytes.
    pub fn receive(&mut self, packet: &Packet, payload: Buffers, on: Context<'_>) -> Result<Verdict, QueueError> {
        self.credit = packet.credit;
        if self.window() > 0 {
            self.credit_asked = false;
        }
        match (self.phase, packet.op) {
            (_, Op::Reset) => Ok(Verdict::Forget),
            (Phase::Asked, Op::Response) => {
                self.open();
                Ok(Verdict::Keep)
            }
            (Phase::Open, Op::Data(_)) => self.take_data(payload, on),
            (Phase::Open, Op::Shutdown(closed)) => Ok(self.close_guest(closed, on)),
            (Phase::Open, Op::CreditUpdate) => Ok(Verdict::Keep),
            (Phase::Open, Op::CreditRequest) => {
                self.credit_wanted = true;
                Ok(Verdict::Keep)
            }
            _ => Ok(Verdict::Reset),
        }
    }

    /// The guest has accepted: the host's program is told.
    fn open(&mut self) {
        (self.phase, self.deadline) = (Phase::Open, None);
        let answer = greeting::answer(self.ports.host);
        // Nothing was written to the socket before: it has room. A program that has closed it may have sent something
        // for the guest first.
        if stream::write(&self.stream, answer.as_bytes()).is_err() {
            self.host.receive = true;
        }
    }

    fn take_data(&mut self, mut payload: Buffers, on: Context<'_>) -> Result<Verdict, QueueError> {
        let waiting = u64::try_from(self.outbox.len()).unwrap_or(u64::MAX);
        if self.guest.send || waiting.saturating_add(payload.len()) > u64::from(BUFFER) {
            return Ok(Verdict::Reset);
        }
        if self.outbox.is_empty() && !self.host.receive && !payload.is_empty() {
            match stream::write_vectored(&self.stream, &payload.io_vecs(on.ram)?) {
                Ok(count) => {
                    let written = payload.take(u64::try_from(count).unwrap_or(0));
                    self.forward(written.len(), on);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => {
                    on.metrics.tx_write_fails.inc();
                    self.host.receive = true;
                }
            }
        }
        if self.host.receive {
            // Nobody takes it. The guest is told so, and its window must not fill up meanwhile.
            self.forward(payload.len(), on);
            return Ok(Verdict::Keep);
        }
        // At most BUFFER bytes, see above.
        let len = usize::try_from(payload.len()).unwrap_or(usize::MAX);
        if len > on.room {
            on.metrics.tx_write_fails.inc();
            return Ok(Verdict::Reset);
        }
        let mut rest = vec![0; len];
        payload.read(on.ram, &mut rest)?;
        self.outbox.extend(rest);
        Ok(Verdict::Keep)
    }

    /// So many bytes of the guest are not here any more.
    fn forward(&mut self, count: u64, on: Context<'_>) {
        self.forwarded = self.forwarded.wrapping_add(u32::try_from(count).unwrap_or(0));
        on.metrics.tx_bytes_count.add(count);
    }

    fn close_guest(&mut self, closed: Closed, on: Context<'_>) -> Verdict {
        let before = self.guest;
        self.guest = before.or(closed);
        if self.guest.receive && !before.receive {
            // Who still writes shall learn that nobody reads.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        if self.guest.is_both() && !before.is_both() {
            self.deadline = on.now.checked_add(CLOSING_TIMEOUT);
        }
        self.host_may_be_gone();
        self.finish_sending()
    }

    /// What follows from an empty outbox.
    fn finish_sending(&mut self) -> Verdict {
        if !self.outbox.is_empty() {
            return Verdict::Keep;
        }
        if self.guest.is_both() {
            return Verdict::Reset;
        }
        if self.guest.send && !self.ended {
            // Once: each time is an event of the socket, which would lead here again.
            self.ended = true;
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Verdict::Keep
    }

    /// A program that reads no more, and whose bytes the guest does not want, is as good as gone.
    fn host_may_be_gone(&mut self) {
        if self.host.receive && self.guest.receive {
            self.host.send = true;
        }
    }

    /// Something happened to the socket.
    pub fn event(&mut self, set: EventSet, on: Context<'_>) -> Verdict {
        if set.intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR) {
            self.readable = true;
        }
        if set.contains(EventSet::HANG_UP) {
            self.stop_writing(on);
        }
        if set.contains(EventSet::OUT) { self.flush(on) } else { self.finish_sending() }
    }

    /// Nobody will ever read what the guest sends.
    fn stop_writing(&mut self, on: Context<'_>) {
        self.host.receive = true;
        let lost = std::mem::take(&mut self.outbox);
        self.forward(u64::try_from(lost.len()).unwrap_or(0), on);
        self.host_may_be_gone();
    }

    /// Writes what waits in the outbox.
    fn flush(&mut self, on: Context<'_>) -> Verdict {
        while !self.outbox.is_empty() {
            let (front, _) = self.outbox.as_slices();
            match stream::write(&self.stream, front) {
                Ok(count) => {
                    self.outbox.drain(..count.min(self.outbox.len()));
                    self.forward(u64::try_from(count).unwrap_or(0), on);
                    if self.guest.is_both() {
                        self.deadline = on.now.checked_add(CLOSING_TIMEOUT);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Verdict::Keep,
                Err(_) => {
                    on.metrics.tx_flush_fails.inc();
                    self.stop_writing(on);
                }
            }
        }
        // Its memory is not kept for the next time.
        self.outbox = VecDeque::new();
        self.finish_sending()
    }

    /// The next packet for the guest; its bytes are written to `room`.
    pub fn next(&mut self, room: &Buffers, on: Context<'_>) -> Result<Next, QueueError> {
        let op = match self.phase {
            Phase::Asking => {
                self.phase = Phase::Asked;
                Some(Op::Request)
            }
            Phase::Accepting => {
                self.phase = Phase::Open;
                Some(Op::Response)
            }
            Phase::Asked => None,
            Phase::Open => match self.read(room, on)? {
                Read::Broken => return Ok(Next::Over),
                Read::Bytes(count) => Some(Op::Data(count)),
                Read::Nothing => self.news(on),
            },
        };
        let Some(op) = op else { return Ok(Next::Nothing) };
        (self.told_forwarded, self.credit_wanted) = (self.forwarded, false);
        let credit = Credit { buf_alloc: BUFFER, fwd_cnt: self.forwarded };
        Ok(Next::Packet(Packet { ports: self.ports, credit, op }))
    }

    /// Reads from the socket what the guest has room for.
    fn read(&mut self, room: &Buffers, on: Context<'_>) -> Result<Read, QueueError> {
        let window = self.window().min(MAX_PAYLOAD);
        if !self.may_read() || window == 0 {
            return Ok(Read::Nothing);
        }
        let target = room.clone().take(u64::from(window));
        match stream::read_vectored(&self.stream, &target.io_vecs(on.ram)?) {
            Ok(0) => {
                self.host.send = true;
                // The end may be read before its event is: the guest shall hear of both directions at once.
                if stream::is_hung_up(&self.stream) {
                    self.stop_writing(on);
                }
                Ok(Read::Nothing)
            }
            Ok(count) => {
                let count = u32::try_from(count).unwrap_or(0);
                self.sent = self.sent.wrapping_add(count);
                on.metrics.rx_bytes_count.add(u64::from(count));
                Ok(Read::Bytes(count))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(Read::Nothing)
            }
            Err(_) => {
                on.metrics.rx_read_fails.inc();
                Ok(Read::Broken)
            }
        }
    }

    /// What there is to say beside bytes.
    fn news(&mut self, on: Context<'_>) -> Option<Op> {
        if self.told != self.host {
            self.told = self.host;
            if self.told.is_both() {
                self.deadline = on.now.checked_add(CLOSING_TIMEOUT);
            }
            Some(Op::Shutdown(self.told))
        } else if self.credit_is_due() {
            Some(Op::CreditUpdate)
        } else if self.may_read() && self.window() == 0 && !self.credit_asked {
            self.credit_asked = true;
            Some(Op::CreditRequest)
        } else {
            None
        }
    }
}

/// How reading from the host's socket went.
enum Read {
    /// So many bytes; not zero.
    Bytes(u32),
    /// Nothing now, or no more.
    Nothing,
    /// The connection is broken.
    Broken,
}
