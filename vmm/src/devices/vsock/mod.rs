//! Sockets between guest and host (virtio 1.2, section 5.10), with Firecracker's protocol towards the host.
//!
//! - A program of the host connects to the unix socket `uds_path`, writes `CONNECT <port>` and a newline, and gets
//!   `OK <its own port>` when a program of the guest has accepted on that port; it sees the end of the connection when
//!   none has.
//! - A program of the guest that connects to port P of address 2, the host, gets to whoever listens on the unix socket
//!   of the path `uds_path` followed by `_P`; it is refused when nobody does.
//!
//! Each side may close one direction and go on with the other. Only streams are known.
//!
//! # Who may connect
//! The permissions of `uds_path` are those that the process's umask leaves, as in Firecracker; a directory of its own,
//! which only the right programs may enter, says more. The path must not exist at the start. A start that fails leaves
//! nothing there; of a VM that ran the socket stays, as with Firecracker: the confined process may remove no files. Who
//! starts VMs removes it.
//!
//! After the start the process may still connect to unix sockets, which Landlock does not govern when they have a path
//! (those without are forbidden where the kernel knows how, from interface 6 on). A VMM that its guest has taken over
//! could so try every socket that the user and the mount namespace of the process let it reach: run it as a user and
//! in a mount namespace of its own.
//!
//! # Snapshots
//! Connections are not saved. A guest that is restored gets the event that says so (`TRANSPORT_RESET`), and its driver
//! ends them; listening goes on.

mod config;
mod connection;
mod greeting;
mod metrics;
mod muxer;
mod packet;
mod stream;
mod wakeup;

use serde::{Deserialize, Serialize};
use vmm_sys_util::epoll::EventSet;

use super::DeviceError;
use crate::jail::seccomp::Call;
use crate::virtio::{Active, Chain, DeviceKind, Progress, QueueError, Source, VirtioDevice, Watch};

pub use config::{MAX_CID, MIN_CID, VsockConfig};
use muxer::Muxer;
use packet::{HEADER_BYTES, HEADER_LEN, Op, Packet, Refusal};

/// Queue of packets to the guest.
const RX: usize = 0;
/// Queue of packets from the guest.
const TX: usize = 1;
/// Queue of events to the guest.
const EVENTS: usize = 2;
/// Entries of each.
const QUEUE_SIZE: u16 = 256;
/// The only token: the host's side.
const HOST: u32 = 0;
/// `VIRTIO_VSOCK_F_STREAM`.
const FEATURE_STREAM: u64 = 1;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`: all connections are gone.
const TRANSPORT_RESET: u32 = 0;

/// The device.
pub struct Vsock {
    guest_cid: u32,
    muxer: Muxer,
    /// The guest's packets wait until it has taken some of ours.
    stalled: bool,
    /// The guest was restored and has not been told yet that its connections are gone.
    restored: bool,
}

/// What a snapshot keeps.
#[derive(Serialize, Deserialize, Debug, PartialEq, Eq)]
struct State {
    guest_cid: u32,
}

impl Vsock {
    /// Binds the socket of a configuration.
    pub fn open(config: &VsockConfig) -> Result<Self, DeviceError> {
        let muxer = Muxer::open(config).map_err(|source| match source.kind() {
            std::io::ErrorKind::AddrInUse => DeviceError::Unusable {
                device: "vsock".to_owned(),
                reason: format!("{} exists already; remove it or choose another path", config.uds_path.display()),
            },
            _ => DeviceError::Unusable {
                device: "vsock".to_owned(),
                reason: format!("cannot listen on {}: {source}", config.uds_path.display()),
            },
        })?;
        Ok(Self { guest_cid: config.guest_cid, muxer, stalled: false, restored: false })
    }

    /// Takes the guest's packets, until there are none, the guest should first take some, or others should have a turn.
    fn take_packets(&mut self, active: &mut Active) -> Result<Progress, QueueError> {
        let mut progress = Progress::More;
        self.stalled = false;
        for _ in 0..active.queue(TX)?.size() {
            if self.muxer.is_congested() {
                self.stalled = true;
                progress = Progress::Idle;
                break;
            }
            let Some(chain) = active.queue(TX)?.pop()? else {
                if active.queue(TX)?.enable_notification()? {
                    continue;
                }
                progress = Progress::Idle;
                break;
            };
            let head = chain.head;
            self.take_packet(active, chain).inspect_err(|_| self.muxer.metrics.tx_queue_event_fails.inc())?;
            active.queue(TX)?.push(head, 0)?;
        }
        active.notify(TX)?;
        Ok(progress)
    }

    fn take_packet(&mut self, active: &Active, mut chain: Chain) -> Result<(), QueueError> {
        let header = chain.readable.read_array::<HEADER_LEN>(&active.ram)?;
        match Packet::from_guest(&header, self.guest_cid) {
            Ok(packet) => {
                let len = if let Op::Data(len) = packet.op { u64::from(len) } else { 0 };
                let payload = chain.readable.take(len);
                if payload.len() < len {
                    return Err(QueueError::BadRequest("its length is more than its buffers hold"));
                }
                self.muxer.receive(&packet, payload, &active.ram)?;
            }
            Err(refusal) => {
                self.muxer.metrics.tx_queue_event_fails.inc();
                if let Refusal::Unknown(ports) = refusal {
                    self.muxer.refuse(ports);
                }
            }
        }
        Ok(())
    }

    /// Gives the guest packets, until there are none, its buffers are full, or others should have a turn.
    fn give_packets(&mut self, active: &mut Active) -> Result<Progress, QueueError> {
        let mut progress = Progress::More;
        for _ in 0..active.queue(RX)?.size() {
            if !self.muxer.has_packets() {
                progress = Progress::Idle;
                break;
            }
            let Some(mut chain) = active.queue(RX)?.pop()? else {
                if active.queue(RX)?.enable_notification()? {
                    continue;
                }
                progress = Progress::Idle;
                break;
            };
            let mut header = chain.writable.take(u64::from(HEADER_BYTES));
            if chain.writable.is_empty() {
                self.muxer.metrics.rx_queue_event_fails.inc();
                return Err(QueueError::BadRequest("a buffer for packets holds a header and no bytes"));
            }
            let Some(packet) = self.muxer.next_packet(&chain.writable, &active.ram)? else {
                active.queue(RX)?.unpop();
                progress = Progress::Idle;
                break;
            };
            header.write(&active.ram, &packet.to_guest(self.guest_cid))?;
            let len = if let Op::Data(len) = packet.op { len } else { 0 };
            active.queue(RX)?.push(chain.head, len.saturating_add(HEADER_BYTES))?;
            self.muxer.metrics.rx_packets_count.inc();
        }
        active.notify(RX)?;
        Ok(progress)
    }

    /// Gives packets, and takes those that had to wait for it.
    fn turn(&mut self, active: &mut Active) -> Result<Progress, QueueError> {
        let mut progress = self.give_packets(active)?;
        if self.stalled && !self.muxer.is_congested() {
            self.muxer.again();
            progress = Progress::More;
        }
        Ok(progress)
    }

    /// Tells a guest that was restored that its connections are gone, once it has given a buffer for that.
    fn give_event(&mut self, active: &mut Active) -> Result<(), QueueError> {
        if !self.restored {
            return Ok(());
        }
        let Some(mut chain) = active.queue(EVENTS)?.pop()? else {
            active.queue(EVENTS)?.enable_notification()?;
            return Ok(());
        };
        if chain.writable.write(&active.ram, &TRANSPORT_RESET.to_le_bytes())? < 4 {
            self.muxer.metrics.ev_queue_event_fails.inc();
            return Err(QueueError::BadRequest("a buffer for events is too short"));
        }
        active.queue(EVENTS)?.push(chain.head, 4)?;
        self.restored = false;
        active.notify(EVENTS)
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn name(&self) -> String {
        "vsock".to_owned()
    }

    fn features(&self) -> u64 {
        FEATURE_STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 3]
    }

    fn system_calls(&self) -> &'static [Call] {
        stream::CALLS
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let cid = u64::from(self.guest_cid).to_le_bytes();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, byte) in data.iter_mut().zip(cid.iter().skip(from)) {
            *place = *byte;
        }
    }

    fn settle(&mut self) {
        self.muxer.keep_file();
    }

    fn activate(&mut self, _active: &mut Active) {
        self.muxer.start();
    }

    fn reset(&mut self) {
        self.muxer.stop();
        (self.stalled, self.restored) = (false, false);
    }

    fn serve_queue(&mut self, active: &mut Active, index: usize) -> Result<Progress, QueueError> {
        match index {
            RX => {
                self.muxer.metrics.rx_queue_event_count.inc();
                self.turn(active)
            }
            TX => {
                self.muxer.metrics.tx_queue_event_count.inc();
                let taken = self.take_packets(active)?;
                if self.turn(active)? == Progress::More {
                    self.muxer.again();
                }
                Ok(taken)
            }
            _ => self.give_event(active).map(|()| Progress::Idle),
        }
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { fd: self.muxer.fd(), token: HOST, set: EventSet::IN }]
    }

    fn serve_source(
        &mut self,
        active: Option<&mut Active>,
        _token: u32,
        _set: EventSet,
        _watch: Watch<'_>,
    ) -> Result<(), QueueError> {
        let Some(active) = active else {
            // The driver is gone, or broke the rules: nobody may be left waiting, and no event either.
            self.muxer.stop();
            return Ok(());
        };
        self.muxer.serve(&active.ram);
        if self.stalled && !self.muxer.is_congested() && self.take_packets(active)? == Progress::More {
            self.muxer.again();
        }
        if self.turn(active)? == Progress::More {
            self.muxer.again();
        }
        Ok(())
    }

    fn save(&mut self, _active: Option<&mut Active>) -> Vec<u8> {
        postcard::to_stdvec(&State { guest_cid: self.guest_cid }).unwrap_or_default()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        match postcard::take_from_bytes::<State>(state) {
            Ok((State { guest_cid }, [])) if guest_cid == self.guest_cid => {
                self.restored = true;
                Ok(())
            }
            Ok((_, [])) => Err("vsock: the snapshot's guest has another guest_cid".to_owned()),
            _ => Err("vsock: the snapshot's state is not readable".to_owned()),
        }
    }

    fn metrics(&self) -> Vec<(String, serde_json::Value)> {
        vec![("vsock".to_owned(), serde_json::to_value(&self.muxer.metrics).unwrap_or_default())]
    }

    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

#[cfg(test)]
mod tests;
