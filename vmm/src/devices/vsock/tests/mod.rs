//! The device with a driver in Rust, and programs of the host.

mod flow;
mod hostile;
mod life;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::connection::BUFFER;
use super::packet::{Closed, Credit, Ports};
use super::*;
use crate::virtio::transport::driver::{CHAINS, Driver, FREE};

const CID: u32 = 42;
/// Bytes behind the header in each of the guest's buffers.
const ROOM: u32 = 4096;
const OUT: u64 = FREE + 0x10_0000;
const OUT_STEP: u64 = 0x2_0000;

/// A guest with a vsock driver.
struct Guest {
    driver: Driver,
    dir: tempfile::TempDir,
    path: PathBuf,
    /// Each buffer's room behind the header.
    room: u32,
}

/// A packet that the guest got.
#[derive(Debug, PartialEq, Eq)]
struct Got {
    ports: Ports,
    credit: Credit,
    op: Op,
    bytes: Vec<u8>,
}

/// A header as the guest writes it.
fn header(ports: Ports, credit: Credit, op: Op) -> [u8; HEADER_LEN] {
    // What the host would write, with the ends swapped.
    let mut bytes = Packet { ports, credit, op }.to_guest(CID);
    bytes[..16].rotate_left(8);
    bytes[16..24].rotate_left(4);
    bytes
}

fn read_header(bytes: [u8; HEADER_LEN]) -> (Ports, Credit, Op) {
    let mut swapped = bytes;
    swapped[..16].rotate_left(8);
    swapped[16..24].rotate_left(4);
    let packet = Packet::from_guest(&swapped, CID).unwrap();
    (packet.ports, packet.credit, packet.op)
}

const WINDOW: Credit = Credit { buf_alloc: 64 * 1024, fwd_cnt: 0 };
const CLOSED: Closed = Closed { receive: true, send: true };

impl Guest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let driver = Driver::new(Box::new(open(&path)));
        let mut guest = Self { driver, dir, path, room: ROOM };
        guest.driver.start(0);
        guest
    }

    /// A guest that has given buffers.
    fn ready() -> Self {
        let mut guest = Self::new();
        guest.give_buffers();
        guest
    }

    fn vsock<T>(&self, work: impl FnOnce(&mut Vsock) -> T) -> T {
        self.driver.slot.control(|device, _| (work(device.as_any().downcast_mut().unwrap()), false))
    }

    fn counter(&self, name: &str) -> u64 {
        self.driver.slot.metrics()[0].1[name].as_u64().unwrap()
    }

    fn give_buffers(&mut self) {
        while self.driver.has_room(RX) {
            self.give_buffer();
        }
    }

    fn give_buffer(&mut self) {
        // Two parts, so that headers and bytes cross from one to the other.
        let place = self.next_place();
        let at = FREE + u64::from(place) * 0x1_0000;
        self.driver.offer(RX, &[(at, 30, true), (at + 0x100, 14 + self.room, true)]);
    }

    fn next_place(&self) -> u16 {
        // Buffers are given in order and come back in order.
        self.driver.ram.read_obj::<u16>(GuestAddress(0x1_1002)).unwrap() % CHAINS
    }

    /// The next packet of the host, if there is one.
    fn poll(&mut self) -> Option<Got> {
        let (place, len) = self.driver.used(RX)?;
        let at = FREE + u64::from(place) * 0x1_0000;
        let mut bytes = vec![0; 44 + self.room as usize];
        self.driver.ram.read_slice(&mut bytes[..30], GuestAddress(at)).unwrap();
        self.driver.ram.read_slice(&mut bytes[30..], GuestAddress(at + 0x100)).unwrap();
        bytes.truncate(len as usize);
        let (ports, credit, op) = read_header(bytes[..HEADER_LEN].try_into().unwrap());
        let bytes = bytes.split_off(HEADER_LEN);
        if let Op::Data(count) = op {
            assert_eq!(bytes.len(), count as usize);
        } else {
            assert!(bytes.is_empty());
        }
        Some(Got { ports, credit, op, bytes })
    }

    /// The next packet of the host, and the buffer is given again.
    fn receive(&mut self, what: &str) -> Got {
        let limit = Instant::now() + Duration::from_secs(30);
        loop {
            self.driver.events.serve().unwrap();
            if let Some(got) = self.poll() {
                self.give_buffer();
                return got;
            }
            assert!(Instant::now() < limit, "{what} did not come");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn expect(&mut self, op: Op) -> Got {
        let got = self.receive(&format!("{op:?}"));
        assert_eq!(got.op, op);
        got
    }

    /// Puts a header and bytes into the queue, whatever they are.
    fn offer_raw(&mut self, header: &[u8], bytes: &[u8]) {
        while self.driver.used(TX).is_some() {}
        let place = self.driver.ram.read_obj::<u16>(GuestAddress(0x1_5002)).unwrap() % CHAINS;
        let at = OUT + u64::from(place) * OUT_STEP;
        self.driver.ram.write_slice(header, GuestAddress(at)).unwrap();
        self.driver.ram.write_slice(bytes, GuestAddress(at + 0x100)).unwrap();
        let parts = [
            (at, u32::try_from(header.len()).unwrap(), false),
            (at + 0x100, u32::try_from(bytes.len()).unwrap(), false),
        ];
        self.driver.offer(TX, &parts[..=usize::from(!bytes.is_empty())]);
    }

    /// Sends a packet, and waits until the device has taken it.
    fn send(&mut self, ports: Ports, credit: Credit, op: Op, bytes: &[u8]) {
        self.offer_raw(&header(ports, credit, op), bytes);
        self.driver.until("the packet is taken", |driver| driver.used(TX));
    }

    fn data(&mut self, ports: Ports, bytes: &[u8]) {
        self.send(ports, WINDOW, Op::Data(u32::try_from(bytes.len()).unwrap()), bytes);
    }

    /// A program of the host that has connected to port 52 of the guest, which has accepted with this credit.
    fn accepted(&mut self, credit: Credit) -> (Ports, UnixStream) {
        let mut stream = self.connect();
        let ports = self.expect(Op::Request).ports;
        assert_eq!(ports.guest, 52);
        self.send(ports, credit, Op::Response, &[]);
        let mut answer = [0; 14];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(std::str::from_utf8(&answer).unwrap(), format!("OK {}\n", ports.host));
        (ports, stream)
    }

    fn connect(&self) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(b"CONNECT 52\n").unwrap();
        stream
    }

    /// A program of the host that the guest has connected to.
    fn connected(&mut self, host: u32, credit: Credit) -> (Ports, UnixStream) {
        let listener = UnixListener::bind(format!("{}_{host}", self.path.display())).unwrap();
        let ports = Ports { host, guest: 1000 };
        self.send(ports, credit, Op::Request, &[]);
        let got = self.expect(Op::Response);
        assert_eq!((got.ports, got.credit), (ports, Credit { buf_alloc: BUFFER, fwd_cnt: 0 }));
        (ports, listener.accept().unwrap().0)
    }
}

fn open(path: &std::path::Path) -> Vsock {
    Vsock::open(&VsockConfig { vsock_id: None, guest_cid: CID, uds_path: path.to_owned() }).unwrap()
}

/// Connections that the device has, those that are being made included.
fn count(driver: &Driver) -> usize {
    driver.slot.control(|device, _| (device.as_any().downcast_mut::<Vsock>().unwrap().muxer.count(), false))
}

fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|i| u8::try_from((i ^ (i >> 8) ^ (i >> 16)) & 0xff).unwrap()).collect()
}
