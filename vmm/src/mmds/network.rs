//! The guest's frames for the service: a host of its own on the guest's link, with TCP (`smoltcp`) and without any
//! network of the host.
//!
//! Everything here is bounded: frames in and out, connections, the bytes that a connection may send before it has
//! asked for something, and the time that it may take.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Cidr};

use super::http::{MAX_REQUEST, Outcome, outcome};
use super::metrics::Metrics;
use super::token::random;
use super::{MmdsConfig, SharedMmds, lock};

/// The service's hardware address, Firecracker's: some guests have it in their tables.
const MAC: [u8; 6] = [0x06, 0x01, 0x23, 0x45, 0x67, 0x01];
/// The service's port.
const PORT: u16 = 80;
/// Most connections of one card at a time.
const MAX_CONNECTIONS: usize = 16;
/// Longest silence of a connection.
const MAX_SILENCE: Duration = Duration::from_secs(30);
/// Most frames that wait in each direction.
const MAX_FRAMES: usize = 32;
/// Largest frame that is looked at: a whole request, with its headers.
const LARGEST_FRAME: usize = MAX_REQUEST + 128;
/// Largest frame that is sent.
const MTU: usize = 1514;
/// Bytes of an answer that a connection holds ready for TCP.
const SEND_BUFFER: usize = 16 * 1024;
/// Shortest time until the service wants to be looked at again. What can be done at once has been done.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);

/// Where a frame's parts begin.
const ETHERNET: usize = 14;
const SENDER: std::ops::Range<usize> = 6..12;
const IPV4_SOURCE: std::ops::Range<usize> = ETHERNET + 12..ETHERNET + 16;
const IPV4_TARGET: std::ops::Range<usize> = ETHERNET + 16..ETHERNET + 20;
const ARP_TARGET: std::ops::Range<usize> = ETHERNET + 24..ETHERNET + 28;
const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];

/// Whether a frame, or its first 42 bytes, is for the host `address`: an IPv4 packet, or a question who has it.
pub fn is_for(frame: &[u8], address: Ipv4Addr) -> bool {
    let target = match frame.get(12..14) {
        Some(kind) if kind == IPV4 => IPV4_TARGET,
        Some(kind) if kind == ARP => ARP_TARGET,
        _ => return false,
    };
    frame.get(target) == Some(&address.octets()[..])
}

/// Frames in both directions: the device that `smoltcp` sees.
#[derive(Default)]
struct Frames {
    incoming: VecDeque<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
    /// Something could not go on because too many frames wait for the guest.
    blocked: bool,
}

struct Incoming(Vec<u8>);

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        if len <= MTU {
            self.0.push_back(frame);
        }
        result
    }
}

impl Frames {
    fn is_full(&mut self) -> bool {
        let full = self.outgoing.len() >= MAX_FRAMES;
        self.blocked |= full;
        full
    }
}

impl Device for Frames {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Incoming, Outgoing<'_>)> {
        // Each frame may be answered by one.
        if self.incoming.is_empty() || self.is_full() {
            return None;
        }
        let frame = self.incoming.pop_front()?;
        Some((Incoming(frame), Outgoing(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Outgoing<'_>> {
        if self.is_full() { None } else { Some(Outgoing(&mut self.outgoing)) }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MTU;
        // A guest that leaves checksums to its card has not filled them in.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities.checksum.udp = Checksum::Tx;
        capabilities
    }
}

/// One connection of the guest's.
struct Connection {
    handle: SocketHandle,
    /// What has come and was not yet answered.
    request: Vec<u8>,
    /// The answer that is being sent.
    response: Vec<u8>,
    sent: usize,
    /// The connection ends behind the answer.
    close: bool,
    /// It was given up; the guest is to be told.
    aborted: bool,
    /// When it last did something.
    active: Instant,
}

/// The service on the link of one card.
pub struct Network {
    mmds: SharedMmds,
    metrics: Arc<Metrics>,
    address: Ipv4Addr,
    began: Instant,
    frames: Frames,
    interface: Interface,
    sockets: SocketSet<'static>,
    listener: Option<SocketHandle>,
    connections: Vec<Connection>,
}

impl Network {
    /// The service as `config` wants it; it is the same for all cards. An error if the host has no random numbers.
    pub fn new(mmds: SharedMmds, config: &MmdsConfig) -> std::io::Result<Self> {
        let address = config.address();
        let began = Instant::now();
        let mut frames = Frames::default();
        let mut link = Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC)));
        link.random_seed = u64::from_le_bytes(random().map_err(std::io::Error::other)?);
        let mut interface = Interface::new(link, &mut frames, smoltcp::time::Instant::ZERO);
        // Whatever address the guest has: it is on this link.
        interface.update_ip_addrs(|addresses| {
            // There is room for the first.
            let _ = addresses.push(IpCidr::Ipv4(Ipv4Cidr::new(address, 0)));
        });
        let metrics = {
            let mut mmds = lock(&mmds);
            mmds.configure(config);
            Arc::clone(&mmds.metrics)
        };
        let (sockets, connections) = (SocketSet::new(Vec::new()), Vec::new());
        Ok(Self { mmds, metrics, address, began, frames, interface, sockets, listener: None, connections })
    }

    /// Whether a frame of the guest's, or its first 42 bytes, is for the service.
    pub fn takes(&self, frame: &[u8]) -> bool {
        is_for(frame, self.address)
    }

    /// Takes a frame of the guest's that is for the service. Like any link it may lose one.
    pub fn receive(&mut self, mut frame: Vec<u8>, now: Instant) {
        if frame.len() > LARGEST_FRAME || self.frames.incoming.len() + 2 > MAX_FRAMES {
            self.metrics.rx_accepted_err.inc();
            return;
        }
        self.metrics.rx_accepted.inc();
        // A guest that has no route to the service sends to its gateway.
        if let Some(target) = frame.get_mut(..MAC.len()) {
            target.copy_from_slice(&MAC);
        }
        // Where the answer goes to is known: the guest need not be asked.
        self.frames.incoming.extend(introduction(&frame, self.address));
        self.frames.incoming.push_back(frame);
        self.poll(now);
    }

    /// The next frame for the guest.
    pub fn next_frame(&mut self, now: Instant) -> Option<Vec<u8>> {
        let frame = self.frames.outgoing.pop_front();
        if std::mem::take(&mut self.frames.blocked) {
            self.poll(now);
        }
        let frame = frame.or_else(|| self.frames.outgoing.pop_front())?;
        self.metrics.tx_frames.inc();
        self.metrics.tx_bytes.add(u64::try_from(frame.len()).unwrap_or(0));
        Some(frame)
    }

    /// Whether there are frames for the guest.
    pub fn has_frames(&self) -> bool {
        !self.frames.outgoing.is_empty()
    }

    /// How long the service can wait for something to happen. `None` if only a frame of the guest's, or its taking
    /// one, makes a difference.
    pub fn wait(&mut self, now: Instant) -> Option<Duration> {
        if self.frames.outgoing.len() >= MAX_FRAMES {
            return None;
        }
        let time = self.time(now);
        let tcp = self.interface.poll_delay(time, &self.sockets).map(Duration::from);
        let ends = self.connections.iter().map(|c| (c.active + MAX_SILENCE).saturating_duration_since(now));
        ends.chain(tcp).min().map(|wait| wait.max(SHORTEST_WAIT))
    }

    /// Does what can be done now.
    pub fn poll(&mut self, now: Instant) {
        self.listen(now);
        // Each round sends or takes something that is bounded; this is for the worst case only.
        for _ in 0..MAX_FRAMES {
            let time = self.time(now);
            let result = self.interface.poll(time, &mut self.frames, &mut self.sockets);
            let worked = self.serve(now);
            if !worked && result == PollResult::None {
                break;
            }
        }
    }

    /// Forgets all connections and frames: the guest's driver begins anew.
    pub fn clear(&mut self) {
        self.frames = Frames::default();
        self.listener.take().into_iter().for_each(|handle| drop(self.sockets.remove(handle)));
        for connection in self.connections.drain(..) {
            self.metrics.connections_destroyed.inc();
            self.sockets.remove(connection.handle);
        }
    }

    fn time(&self, now: Instant) -> smoltcp::time::Instant {
        let micros = now.saturating_duration_since(self.began).as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// Goes through all connections; gives whether there may be something to send.
    fn serve(&mut self, now: Instant) -> bool {
        let mut worked = self.listen(now);
        let mut index = 0;
        while let Some(connection) = self.connections.get_mut(index) {
            let socket = self.sockets.get_mut::<Socket<'_>>(connection.handle);
            // The other side has no interest in the service's memory of a connection that ended well.
            if connection.aborted || matches!(socket.state(), State::Closed | State::TimeWait) {
                self.sockets.remove(connection.handle);
                self.connections.swap_remove(index);
                self.metrics.connections_destroyed.inc();
                worked = true;
                continue;
            }
            if connection.step(socket, &self.mmds, now) {
                connection.active = now;
                worked = true;
            } else if now.saturating_duration_since(connection.active) >= MAX_SILENCE {
                socket.abort();
                connection.aborted = true;
                worked = true;
            }
            index += 1;
        }
        worked
    }

    /// Sees to it that somebody listens while there is room for one more connection.
    fn listen(&mut self, now: Instant) -> bool {
        if let Some(handle) = self.listener
            && self.sockets.get::<Socket<'_>>(handle).state() != State::Listen
        {
            self.listener = None;
            self.metrics.connections_created.inc();
            self.connections.push(Connection::new(handle, now));
        }
        if self.listener.is_some() || self.connections.len() >= MAX_CONNECTIONS {
            return false;
        }
        let buffer = |len| SocketBuffer::new(vec![0; len]);
        let mut socket = Socket::new(buffer(MAX_REQUEST), buffer(SEND_BUFFER));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        if socket.listen(PORT).is_ok() {
            self.listener = Some(self.sockets.add(socket));
        }
        true
    }
}

impl Connection {
    fn new(handle: SocketHandle, now: Instant) -> Self {
        let (request, response) = (Vec::new(), Vec::new());
        Self { handle, request, response, sent: 0, close: false, aborted: false, active: now }
    }

    /// Sends, takes and answers what it can; gives whether it did.
    fn step(&mut self, socket: &mut Socket<'_>, mmds: &SharedMmds, now: Instant) -> bool {
        if !self.response.is_empty() {
            return self.send(socket, mmds);
        }
        if self.close {
            return false;
        }
        let room = MAX_REQUEST.saturating_sub(self.request.len());
        let took = socket.can_recv()
            && socket.recv(|bytes| {
                let part = bytes.get(..room.min(bytes.len())).unwrap_or_default();
                self.request.extend_from_slice(part);
                (part.len(), !part.is_empty())
            }) == Ok(true);
        match outcome(&mut lock(mmds), &self.request, now) {
            Outcome::Answer { used, response, close } => {
                self.request.drain(..used.min(self.request.len()));
                (self.response, self.sent, self.close) = (response, 0, close);
                true
            }
            Outcome::Partial if socket.state() == State::CloseWait && !took => {
                // The guest has said all it wants to, and it is no request.
                socket.close();
                self.close = true;
                true
            }
            Outcome::Partial => took,
        }
    }

    fn send(&mut self, socket: &mut Socket<'_>, mmds: &SharedMmds) -> bool {
        let rest = self.response.get(self.sent..).unwrap_or_default();
        let sent = if socket.can_send() { socket.send_slice(rest).unwrap_or(0) } else { 0 };
        self.sent = self.sent.saturating_add(sent);
        if self.sent >= self.response.len() {
            lock(mmds).metrics.tx_count.inc();
            self.response = Vec::new();
            if self.close {
                socket.close();
            }
        }
        sent > 0
    }
}

/// An ARP answer (RFC 826) that says who sent an IPv4 frame, as the guest would give it if it were asked.
fn introduction(frame: &[u8], to: Ipv4Addr) -> Option<Vec<u8>> {
    if frame.get(12..14)? != IPV4 {
        return None;
    }
    let (mac, address) = (frame.get(SENDER)?, frame.get(IPV4_SOURCE)?);
    // Ethernet and IPv4 addresses of 6 and 4 bytes; an answer.
    let head = [0, 1, 8, 0, 6, 4, 0, 2];
    Some([&MAC[..], mac, &ARP, &head, mac, address, &MAC, &to.octets()].concat())
}

#[cfg(test)]
mod tests;
