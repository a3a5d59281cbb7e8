//! All connections: which there are, who gets the next turn, and what the host's programs begin.
//!
//! Everything is bounded: connections by [`MAX_CONNECTIONS`] and by the descriptors that the process may have, what
//! each keeps by its buffer, what all keep by [`MAX_KEPT`], resets that wait for the guest by [`MAX_RESETS`]. Connections
//! take turns, a packet each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::ops::Bound;
use std::os::fd::RawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};

use super::config::VsockConfig;
use super::connection::{Connection, Context, Next, Verdict};
use super::greeting::{Greeting, Heard};
use super::metrics::Metrics;
use super::packet::{Credit, Op, Packet, Ports};
use super::stream;
use super::wakeup::{Happened, Wakeup};
use crate::memory::GuestRam;
use crate::socket_file::SocketFile;
use crate::virtio::{Buffers, QueueError};

/// Most connections at a time, those that are being made included.
pub const MAX_CONNECTIONS: usize = 1023;
/// Bytes of the guest that wait for programs of the host, of all connections together. Who sends more than that, to a
/// program that does not read, loses its connection: a quarter of all can be full, and the others go on.
pub const MAX_KEPT: usize = 16 << 20;
/// Resets that wait for the guest; the guest's packets are not looked at while there are so many.
pub const MAX_RESETS: usize = 256;
/// Descriptors of the process that connections leave alone.
const OTHER_DESCRIPTORS: u64 = 128;
/// Connections of the host that are taken at once.
const ACCEPT_BATCH: usize = 16;
/// Time in which a program of the host has to say where it wants to; a person may be typing it.
const GREETING_TIMEOUT: Duration = Duration::from_mins(1);
/// First port of the host's own connections, as in Firecracker; those below are for programs that listen.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// The table of connections.
pub struct Muxer {
    file: SocketFile,
    listener: UnixListener,
    wakeup: Wakeup,
    /// Whether connections are taken from the listener.
    listening: bool,
    /// Whether the driver is ready, so that there is a guest to connect to.
    live: bool,
    pub(super) limit: usize,
    /// Bytes in all outboxes, and how many there may be.
    kept: usize,
    pub(super) kept_limit: usize,
    greetings: BTreeMap<u32, Greeting>,
    connections: BTreeMap<u32, Connection>,
    by_ports: BTreeMap<Ports, u32>,
    /// Connections that may have something for the guest.
    ready: BTreeSet<u32>,
    /// The one that had the last turn.
    turn: u32,
    resets: VecDeque<Ports>,
    next_token: u32,
    next_port: u32,
    pub(super) metrics: Metrics,
}

impl Muxer {
    /// Binds the listening socket. Nothing is taken from it before [`Muxer::start`].
    pub fn open(config: &VsockConfig) -> std::io::Result<Self> {
        let listener = UnixListener::bind(&config.uds_path)?;
        let file = SocketFile::new(&config.uds_path);
        listener.set_nonblocking(true)?;
        let (descriptors, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let limit = usize::try_from(descriptors.saturating_sub(OTHER_DESCRIPTORS)).unwrap_or(usize::MAX);
        Ok(Self {
            file,
            listener,
            wakeup: Wakeup::new()?,
            listening: false,
            live: false,
            limit: limit.min(MAX_CONNECTIONS),
            kept: 0,
            kept_limit: MAX_KEPT,
            greetings: BTreeMap::new(),
            connections: BTreeMap::new(),
            by_ports: BTreeMap::new(),
            ready: BTreeSet::new(),
            turn: 0,
            resets: VecDeque::new(),
            next_token: 0,
            next_port: FIRST_HOST_PORT,
            metrics: Metrics::default(),
        })
    }

    /// Leaves the listening socket's file behind, from now on.
    pub fn keep_file(&mut self) {
        self.file.keep();
    }

    /// Readable when [`Muxer::serve`] has something to do.
    pub fn fd(&self) -> RawFd {
        self.wakeup.fd()
    }

    /// The guest's driver is ready.
    pub fn start(&mut self) {
        self.live = true;
        self.listen();
    }

    /// The guest's driver is gone, and with it all connections. New ones wait in the listening socket.
    pub fn stop(&mut self) {
        // What has happened so far concerns nobody any more.
        drop(self.wakeup.take());
        self.live = false;
        self.pause_listening();
        let gone = self.connections.len();
        self.metrics.conns_removed.add(u64::try_from(gone).unwrap_or(0));
        self.greetings.clear();
        self.connections.clear();
        self.kept = 0;
        self.by_ports.clear();
        self.ready.clear();
        self.resets.clear();
    }

    fn listen(&mut self) {
        if self.live && !self.listening {
            self.listening = self.wakeup.watch_listener(&self.listener).is_ok();
            if !self.listening {
                self.metrics.activate_fails.inc();
                self.wakeup.tick();
            }
        }
    }

    fn pause_listening(&mut self) {
        if std::mem::take(&mut self.listening) {
            let _ = self.wakeup.ignore_listener(&self.listener);
        }
    }

    /// Comes back to [`Muxer::serve`] soon.
    pub fn again(&self) {
        self.wakeup.again();
    }

    /// Serves what has happened on the host's side: sockets, timers; a bounded part of it.
    pub fn serve(&mut self, ram: &GuestRam) {
        for happened in self.wakeup.take() {
            match happened {
                Happened::Again => {}
                Happened::Tick => self.expire(Instant::now()),
                Happened::Listener => self.take_connections(),
                Happened::Stream(token, _) if self.greetings.contains_key(&token) => self.hear(token),
                Happened::Stream(token, set) => {
                    let verdict = self.with(token, ram, |connection, on| connection.event(set, on));
                    self.settle(token, verdict.unwrap_or(Verdict::Keep));
                }
            }
        }
    }

    /// Does `work` with a connection, if it is still there.
    fn with<T>(
        &mut self,
        token: u32,
        ram: &GuestRam,
        work: impl FnOnce(&mut Connection, Context<'_>) -> T,
    ) -> Option<T> {
        let connection = self.connections.get_mut(&token)?;
        let others = self.kept.saturating_sub(connection.kept());
        let room = self.kept_limit.saturating_sub(self.kept);
        let done = work(connection, Context { ram, metrics: &self.metrics, now: Instant::now(), room });
        self.kept = others.saturating_add(connection.kept());
        Some(done)
    }

    fn is_full(&self) -> bool {
        self.connections.len() + self.greetings.len() >= self.limit
    }

    /// Watches a stream under a number of its own.
    fn watch(&mut self, stream: &UnixStream) -> std::io::Result<u32> {
        while self.connections.contains_key(&self.next_token) || self.greetings.contains_key(&self.next_token) {
            self.next_token = self.next_token.wrapping_add(1);
        }
        let token = self.next_token;
        self.next_token = token.wrapping_add(1);
        self.wakeup.watch_stream(stream, token).map(|()| token)
    }

    fn take_connections(&mut self) {
        for _ in 0..ACCEPT_BATCH {
            let stream = match stream::accept(&self.listener) {
                Ok(stream) => stream,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => return,
                Err(_) => {
                    // No descriptors, no memory: those who wait do so until the next tick.
                    self.metrics.muxer_event_fails.inc();
                    self.pause_listening();
                    self.wakeup.tick();
                    return;
                }
            };
            if self.is_full() {
                self.metrics.muxer_event_fails.inc();
                continue;
            }
            let Ok(token) = self.watch(&stream) else {
                self.metrics.muxer_event_fails.inc();
                continue;
            };
            if let Some(deadline) = Instant::now().checked_add(GREETING_TIMEOUT) {
                self.greetings.insert(token, Greeting::new(stream, deadline));
                self.wakeup.tick();
            }
        }
    }

    fn hear(&mut self, token: u32) {
        match self.greetings.get_mut(&token).map(Greeting::hear) {
            None | Some(Heard::Part) => {}
            Some(Heard::Wrong) => {
                self.metrics.conn_event_fails.inc();
                self.greetings.remove(&token);
            }
            Some(Heard::Port(guest)) => {
                if let Some(greeting) = self.greetings.remove(&token) {
                    let ports = Ports { host: self.free_port(guest), guest };
                    self.add(token, Connection::ask(ports, greeting.stream, Instant::now()));
                }
            }
        }
    }

    /// A port of the host that has no connection with `guest` yet. There are far more ports than connections.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            // All ones means "any".
            self.next_port = if host >= u32::MAX - 1 { FIRST_HOST_PORT } else { host + 1 };
            if !self.by_ports.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }

    fn add(&mut self, token: u32, connection: Connection) {
        self.metrics.conns_added.inc();
        self.by_ports.insert(connection.ports(), token);
        self.connections.insert(token, connection);
        self.settle(token, Verdict::Keep);
    }

    /// What follows from what was done with a connection.
    fn settle(&mut self, token: u32, verdict: Verdict) {
        let Some(connection) = self.connections.get(&token) else { return };
        if verdict == Verdict::Keep {
            if connection.wants_a_turn() {
                self.ready.insert(token);
            } else {
                self.ready.remove(&token);
            }
            if connection.deadline().is_some() {
                self.wakeup.tick();
            }
            return;
        }
        let (ports, known) = (connection.ports(), connection.is_known());
        self.ready.remove(&token);
        self.by_ports.remove(&ports);
        self.kept = self.kept.saturating_sub(connection.kept());
        self.connections.remove(&token);
        self.metrics.conns_removed.inc();
        if verdict == Verdict::Reset && known {
            // Of connections that the guest knows: no more than there can be, beside MAX_RESETS.
            self.resets.push_back(ports);
        }
    }

    /// Ends what has hung for too long.
    pub(super) fn expire(&mut self, now: Instant) {
        let before = self.greetings.len();
        self.greetings.retain(|_, greeting| greeting.deadline > now);
        self.metrics.conn_event_fails.add(u64::try_from(before - self.greetings.len()).unwrap_or(0));
        let over = |connection: &Connection| connection.deadline().is_some_and(|deadline| deadline <= now);
        let hung: Vec<u32> = self.connections.iter().filter(|(_, c)| over(c)).map(|(token, _)| *token).collect();
        for token in hung {
            self.metrics.conns_killed.inc();
            self.settle(token, Verdict::Reset);
        }
        self.listen();
        if !self.greetings.is_empty() || self.connections.values().any(|c| c.deadline().is_some()) {
            self.wakeup.tick();
        }
    }

    /// A packet of the guest, with its bytes.
    pub fn receive(&mut self, packet: &Packet, payload: Buffers, ram: &GuestRam) -> Result<(), QueueError> {
        self.metrics.tx_packets_count.inc();
        let known = self.by_ports.get(&packet.ports).copied();
        match (known, packet.op) {
            (None, Op::Request) => self.connect(packet.ports, packet.credit),
            (None, Op::Reset) => {}
            (None, _) => self.refuse(packet.ports),
            (Some(token), _) => {
                if let Some(verdict) = self.with(token, ram, |connection, on| connection.receive(packet, payload, on)) {
                    self.settle(token, verdict?);
                }
            }
        }
        Ok(())
    }

    /// The guest wants a connection to a program of the host.
    fn connect(&mut self, ports: Ports, credit: Credit) {
        let mut path = OsString::from(self.file.path());
        path.push(format!("_{}", ports.host));
        let stream = if self.is_full() { None } else { stream::connect(path.as_ref()).ok() };
        let watched = stream.and_then(|stream| self.watch(&stream).ok().map(|token| (token, stream)));
        match watched {
            Some((token, stream)) => self.add(token, Connection::accept(ports, stream, credit)),
            None => self.refuse(ports),
        }
    }

    /// Tells the guest that there is no such connection.
    pub fn refuse(&mut self, ports: Ports) {
        self.resets.push_back(ports);
    }

    /// Whether the guest's packets have to wait until it has taken some of ours.
    pub fn is_congested(&self) -> bool {
        self.resets.len() >= MAX_RESETS
    }

    /// Connections, those that are being made included.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        assert_eq!(self.connections.len(), self.by_ports.len());
        assert!(self.ready.iter().all(|token| self.connections.contains_key(token)));
        self.connections.len() + self.greetings.len()
    }

    /// Bytes of the guest that wait for programs of the host.
    #[cfg(test)]
    pub fn kept(&self) -> usize {
        assert_eq!(self.kept, self.connections.values().map(Connection::kept).sum::<usize>());
        self.kept
    }

    /// Resets that wait for the guest.
    #[cfg(test)]
    pub fn waiting_resets(&self) -> usize {
        self.resets.len()
    }

    /// Whether there may be something for the guest.
    pub fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// The next packet for the guest; its bytes are written to `room`.
    pub fn next_packet(&mut self, room: &Buffers, ram: &GuestRam) -> Result<Option<Packet>, QueueError> {
        if let Some(ports) = self.resets.pop_front() {
            return Ok(Some(Packet { ports, credit: Credit::default(), op: Op::Reset }));
        }
        // The next one behind the last turn's, then around.
        let behind = (Bound::Excluded(self.turn), Bound::Unbounded);
        while let Some(token) = self.ready.range(behind).next().or_else(|| self.ready.first()).copied() {
            self.turn = token;
            let next = self.with(token, ram, |connection, on| connection.next(room, on)).transpose()?;
            let verdict = if next == Some(Next::Over) { Verdict::Reset } else { Verdict::Keep };
            self.settle(token, verdict);
            match next {
                Some(Next::Packet(packet)) => return Ok(Some(packet)),
                Some(Next::Over) => {
                    if let Some(ports) = self.resets.pop_front() {
                        return Ok(Some(Packet { ports, credit: Credit::default(), op: Op::Reset }));
                    }
                }
                Some(Next::Nothing) | None => {
                    self.ready.remove(&token);
                }
            }
        }
        Ok(None)
    }
}
