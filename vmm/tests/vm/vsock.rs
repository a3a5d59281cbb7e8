//! Sockets between guest and host, with real ones on the host's side.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use portcullis_vmm::config::VsockConfig;
use portcullis_vmm::log::EndReason;

use crate::guest::Guest;
use crate::harness::Setup;
use crate::virtio::{BUFFERS, DRIVER_OK, Descriptor, FIRST, NEEDS_RESET, Queue, STATUS, WRITE};

const CID: u32 = 42;
/// The guest's buffer for one packet from the host, and how many bytes it holds behind the header.
const IN: u32 = BUFFERS;
const ROOM: u32 = 4096;
/// The guest's packet to the host.
const OUT: u32 = BUFFERS + 0x4000;
/// Bytes that the guest has taken, its credit's `fwd_cnt`.
const TAKEN: u32 = 0x700;

const HEADER: u32 = 44;
/// Offsets in a header.
const LEN: u32 = 24;
const OP: u32 = 30;
const FLAGS: u32 = 32;
const FWD_CNT: u32 = 40;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const SHUTDOWN: u16 = 4;
const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;

/// First port that the host gives its own connections.
const HOST_PORT: u32 = 1 << 30;

fn rx() -> Queue {
    Queue::at(FIRST, 0, 1)
}

fn tx() -> Queue {
    Queue::at(FIRST, 1, 1)
}

impl Guest {
    /// Starts the device and prepares a buffer of each direction.
    fn vsock(self) -> Self {
        self.vsock_with(HEADER + ROOM)
    }

    fn vsock_with(self, receive: u32) -> Self {
        let guest = self.virtio_start(FIRST, 0, &[rx(), tx(), Queue::at(FIRST, 2, 1)]).store32(TAKEN, 0);
        let buffer = Descriptor { address: u64::from(IN), len: receive, flags: WRITE, next: 0 };
        let guest = guest.descriptor(rx().descriptors, 0, buffer).store16(rx().available + 4, 0);
        guest.store16(tx().available + 4, 0)
    }

    /// Gives the buffer to the device.
    fn give_buffer(self) -> Self {
        self.add16(rx().available + 2, 1).notify(rx())
    }

    /// Waits for the buffer to come back.
    fn wait_for_packet(self) -> Self {
        self.wait_equal16(rx().used_index(), rx().available + 2)
    }

    /// Takes the next packet of the host.
    fn receive(self) -> Self {
        self.give_buffer().wait_for_packet()
    }

    /// Takes the next packet and prints its operation, two hexadecimal digits.
    fn receive_and_print(self) -> Self {
        self.receive().print_hex(IN + OP, 1)
    }

    /// Writes a header of a connection's packet, with a window of `window` bytes.
    fn header(self, op: u16, (host, guest): (u32, u32), len: u32, window: u32) -> Self {
        let this = self.store64(OUT, u64::from(CID)).store64(OUT + 8, 2);
        let this = this.store32(OUT + 16, guest).store32(OUT + 20, host).store32(OUT + LEN, len);
        let this = this.store16(OUT + 28, 1).store16(OUT + OP, op).store32(OUT + FLAGS, 0);
        this.store32(OUT + 36, window).copy32(TAKEN, OUT + FWD_CNT)
    }

    /// Puts the first `len` bytes of the packet into the queue.
    fn offer_bytes(self, len: u32) -> Self {
        let buffer = Descriptor { address: u64::from(OUT), len, flags: 0, next: 0 };
        self.descriptor(tx().descriptors, 0, buffer).add16(tx().available + 2, 1).notify(tx())
    }

    /// Waits until the packet was taken.
    fn wait_for_sent(self) -> Self {
        self.wait_equal16(tx().used_index(), tx().available + 2)
    }

    /// Sends a packet without bytes.
    fn send(self, op: u16, ports: (u32, u32)) -> Self {
        self.header(op, ports, 0, 0x1_0000).offer_bytes(HEADER).wait_for_sent()
    }

    /// Sends bytes.
    fn send_bytes(self, ports: (u32, u32), bytes: &[u8]) -> Self {
        let len = u32::try_from(bytes.len()).unwrap();
        let guest = bytes.iter().zip(OUT + HEADER..).fold(self, |guest, (byte, at)| guest.store8(at, *byte));
        guest.header(RW, ports, len, 0x1_0000).offer_bytes(HEADER + len).wait_for_sent()
    }

    /// Closes directions.
    fn send_shutdown(self, ports: (u32, u32), flags: u32) -> Self {
        self.header(SHUTDOWN, ports, 0, 0x1_0000).store32(OUT + FLAGS, flags).offer_bytes(HEADER).wait_for_sent()
    }

    /// Notes that the bytes of the last packet have been taken.
    fn taken(self) -> Self {
        self.add32_from(IN + LEN, TAKEN)
    }
}

/// A VM with the device; its socket's path.
fn setup(guest: &Guest) -> (Setup, PathBuf) {
    let mut setup = Setup::new(guest);
    let path = setup.dir.path().join("v.sock");
    setup.config.vsock = Some(VsockConfig { vsock_id: None, guest_cid: CID, uds_path: path.clone() });
    (setup, path)
}

/// No test waits for ever.
fn limited(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

/// Connects as soon as the VMM listens.
fn connect(path: &Path) -> UnixStream {
    for _ in 0..10_000 {
        match UnixStream::connect(path) {
            Ok(stream) => return limited(stream),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    panic!("nobody listens on {}", path.display());
}

fn accept(listener: &UnixListener) -> UnixStream {
    listener.set_nonblocking(true).unwrap();
    for _ in 0..10_000 {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                return limited(stream);
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("nobody connects");
}

/// Reads exactly this text.
fn expect(stream: &mut UnixStream, text: &str) {
    let mut bytes = vec![0; text.len()];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), text);
}

/// Reads the end.
fn expect_end(stream: &mut UnixStream) {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(String::from_utf8_lossy(&rest), "");
}

#[test]
fn a_program_of_the_host_connects_to_one_of_the_guest() {
    let ports = (HOST_PORT, 52);
    let guest = Guest::new().vsock().receive().print_hex(IN, HEADER).print("\n");
    let guest = guest.send(RESPONSE, ports).receive().taken().print_hex(IN + LEN, 4).print_hex(IN + HEADER, 5);
    let guest = guest.send_bytes(ports, b"world");
    // The host closes: both directions. The guest knows, and says so.
    let guest = guest.print("\n").receive().print_hex(IN + OP, 6).send(RST, ports).reset();
    let (setup, path) = setup(&guest);
    let vmm = setup.start();
    let mut stream = connect(&path);
    stream.write_all(b"CONNECT 52\n").unwrap();
    expect(&mut stream, &format!("OK {HOST_PORT}\n"));
    stream.write_all(b"hello").unwrap();
    expect(&mut stream, "world");
    drop(stream);
    let ended = vmm.wait();
    ended.expect_clean(EndReason::Reset);
    let lines: Vec<&str> = ended.output.lines().collect();
    // From 2 to 42, port 2^30 to 52, no bytes, a stream, a request, no flags, 64 KiB of room.
    let request = format!("{}{}", "02000000000000002a00000000000000", "0000004034000000000000000100010000000000");
    assert_eq!(lines[0], format!("{request}{}", "0000010000000000"));
    assert_eq!(lines[1], "0500000068656c6c6f");
    assert_eq!(lines[2], "040003000000");
}

#[test]
fn a_program_of_the_guest_connects_to_one_of_the_host() {
    let ports = (77, 1000);
    let guest = Guest::new().vsock().send(REQUEST, (78, 1000)).receive_and_print();
    let guest = guest.send(REQUEST, ports).receive_and_print().send_bytes(ports, b"ping");
    let guest = guest.receive().taken().print_hex(IN + OP, 1).print_hex(IN + HEADER, 4);
    // The guest sends no more; the host still does.
    let guest = guest.send_shutdown(ports, 2).receive().taken().print_hex(IN + OP, 1).print_hex(IN + HEADER, 4);
    let guest = guest.send_shutdown(ports, 3).receive_and_print().reset();
    let (setup, path) = setup(&guest);
    let listener = UnixListener::bind(format!("{}_77", path.display())).unwrap();
    let vmm = setup.start();
    let mut stream = accept(&listener);
    expect(&mut stream, "ping");
    stream.write_all(b"pong").unwrap();
    expect_end(&mut stream);
    stream.write_all(b"more").unwrap();
    let ended = vmm.wait();
    ended.expect_clean(EndReason::Reset);
    // Nobody at 78: reset. 77: response, bytes, bytes, and at last the reset that ends it.
    assert_eq!(ended.output, format!("{}{}{}", "0302", "05706f6e6705", "6d6f726503"));
}

/// Where the guest adds up what it gets.
const SUM: u32 = 0x704;

#[test]
fn a_long_transfer_keeps_to_a_small_window() {
    const TOTAL: u32 = 200_000;
    let ports = (HOST_PORT, 52);
    let guest = Guest::new().vsock().store32(SUM, 0).receive();
    // A window of one buffer: each packet is acknowledged.
    let guest = guest.header(RESPONSE, ports, 0, ROOM).offer_bytes(HEADER).wait_for_sent();
    let turn = Guest::new().receive().add_bytes(IN + HEADER, IN + LEN, SUM).taken();
    let turn = turn.header(CREDIT_UPDATE, ports, 0, ROOM).offer_bytes(HEADER).wait_for_sent();
    let guest = guest.until32(TAKEN, TOTAL, &turn).print_hex(SUM, 4).receive().print_hex(IN + OP, 6).reset();
    let (setup, path) = setup(&guest);
    let vmm = setup.start();
    let mut stream = connect(&path);
    stream.write_all(b"CONNECT 52\n").unwrap();
    expect(&mut stream, &format!("OK {HOST_PORT}\n"));
    let bytes: Vec<u8> = (0..TOTAL).map(|i| u8::try_from((i ^ (i >> 8)) & 0xff).unwrap()).collect();
    let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    stream.write_all(&bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let ended = vmm.wait();
    ended.expect_clean(EndReason::Reset);
    // The host sends no more, and still listens.
    assert_eq!(ended.output, format!("{:08x}040002000000", sum.swap_bytes()));
}

#[test]
fn a_driver_that_breaks_the_rules_or_resets_loses_its_connections_and_may_start_again() {
    let ports = (HOST_PORT, 52);
    let broken = Guest::new().vsock().receive().send(RESPONSE, ports).header(RW, ports, 5, 0x1_0000);
    // A length beyond what is there, then a reset in the middle of a connection.
    let broken = broken.offer_bytes(HEADER + 4).until32(FIRST + STATUS, DRIVER_OK | NEEDS_RESET, &Guest::new());
    let broken = broken.print("broken\n").echo_until(b'g');
    let again = broken.vsock().receive().send(RESPONSE, (HOST_PORT + 1, 52)).print("again\n").echo_until(b'h');
    let last = again.vsock().receive().send(RESPONSE, (HOST_PORT + 2, 52)).receive_and_print().reset();
    let (setup, path) = setup(&last);
    let mut vmm = setup.start();
    let open = |port: u32| {
        let mut stream = connect(&path);
        stream.write_all(b"CONNECT 52\n").unwrap();
        (format!("OK {port}\n"), stream)
    };
    let (answer, mut first) = open(HOST_PORT);
    expect(&mut first, &answer);
    vmm.wait_for("broken");
    // Nobody is served meanwhile, and the process does not go round in circles over it.
    let (answer, mut second) = open(HOST_PORT + 1);
    let _ = first.write_all(b"anybody?");
    let busy = main_thread_ticks(vmm.pid());
    std::thread::sleep(Duration::from_millis(500));
    let ticks = main_thread_ticks(vmm.pid()) - busy;
    assert!(ticks < 25, "{ticks} of 50 ticks");
    vmm.type_in("g");
    expect(&mut second, &answer);
    vmm.wait_for("again");
    vmm.type_in("h");
    assert!(matches!(first.read(&mut [0]), Ok(0) | Err(_)));
    assert!(matches!(second.read(&mut [0]), Ok(0) | Err(_)));
    let (answer, mut third) = open(HOST_PORT + 2);
    expect(&mut third, &answer);
    drop(third);
    let ended = vmm.wait();
    ended.expect_warnings(EndReason::Reset, &["vsock"]);
    assert!(ended.output.ends_with("04"), "{}", ended.output);
}

/// Processor time of the main thread, in hundredths of a second.
fn main_thread_ticks(pid: nix::unistd::Pid) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn an_address_that_is_taken_ends_the_start_and_is_left_alone() {
    let (mut setup, _) = setup(&Guest::new().reset());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    setup.config.vsock = Some(VsockConfig { vsock_id: None, guest_cid: CID, uds_path: path.clone() });
    let owner = UnixListener::bind(&path).unwrap();
    let ended = setup.run();
    assert_eq!(ended.code(), Some(2));
    assert!(ended.errors.contains("exists already"), "{}", ended.errors);
    UnixStream::connect(&path).unwrap();
    drop(owner);
}
