//! What runs in a guest: this very program, started there with [`WORD`] as its argument. It puts loads on the disk and
//! the network card, and says on the console when each begins and what it was.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::time::{Duration, Instant};

/// The first argument of this program when it runs in a guest.
pub const WORD: &str = "in-the-guest";
/// The host's address on the tap.
pub const HOST: &str = "10.7.0.1";
/// The guest's.
pub const GUEST: &str = "10.7.0.2";
/// The host sends back what comes here (UDP).
pub const ECHO: u16 = 7;
/// The host swallows what comes here, and says so at the end (TCP).
pub const SINK: u16 = 9;
/// The host sends [`STREAM_BYTES`] to whoever connects (TCP).
pub const SOURCE: u16 = 19;
/// Bytes of one stream: so many that its slow start is little of it.
pub const STREAM_BYTES: u64 = 32 << 20;

/// Bytes of the disk.
pub const DISK_BYTES: u64 = 64 << 20;
/// Bytes of one request to it, and their alignment.
const BLOCK: usize = 4096;
/// Requests that are under way at once, where there are many.
const DEPTH: u64 = 32;
/// Requests of one load.
const REQUESTS: u64 = 1024;

/// A buffer as direct I/O wants it.
#[repr(align(4096))]
struct Block([u8; BLOCK]);

/// Puts every load of one kind on its device, once.
pub fn main(kind: &str) {
    match kind {
        "disk" => disk(),
        "network" => network(),
        _ => panic!("no load is called {kind}"),
    }
}

fn disk() {
    let disk = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open("/dev/vda").expect("a disk");
    for (name, write, depth) in
        [("read", false, 1), ("write", true, 1), ("read-32", false, DEPTH), ("write-32", true, DEPTH)]
    {
        load(name, REQUESTS, || random(&disk, write, depth));
    }
}

fn network() {
    load("round-trip", REQUESTS, round_trips);
    load("send", STREAM_BYTES, send);
    load("receive", STREAM_BYTES, receive);
}

/// Says when `work` begins, and how many nanoseconds it took for so much.
fn load(name: &str, amount: u64, work: impl FnOnce()) {
    println!("load: begin {name}");
    // Until the console and whoever reads it are done with the line.
    std::thread::sleep(Duration::from_millis(20));
    let begin = Instant::now();
    work();
    println!("load: end {name} {amount} {}", begin.elapsed().as_nanos());
    std::thread::sleep(Duration::from_millis(20));
}

/// Requests for blocks all over the disk, so many at once.
fn random(disk: &File, write: bool, depth: u64) {
    std::thread::scope(|scope| {
        for thread in 0..depth {
            scope.spawn(move || {
                let mut block = Block([0x5a; BLOCK]);
                let mut number = thread;
                for _ in 0..REQUESTS / depth {
                    // Knuth's MMIX: its high bits are what is random.
                    number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let offset = (number >> 33) % (DISK_BYTES / BLOCK as u64) * BLOCK as u64;
                    let done = if write {
                        disk.write_all_at(&block.0, offset)
                    } else {
                        disk.read_exact_at(&mut block.0, offset)
                    };
                    done.expect("a disk");
                }
            });
        }
    });
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::new(HOST.parse().expect("an address"), port)
}

/// Datagrams of one byte, one after the other.
fn round_trips() {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect(at(ECHO)).expect("a network");
    let mut byte = [0];
    for _ in 0..REQUESTS {
        socket.send(&byte).expect("a network");
        socket.recv(&mut byte).expect("an answer");
    }
}

fn send() {
    let mut stream = TcpStream::connect(at(SINK)).expect("the host");
    let block = vec![0; 64 << 10];
    for _ in 0..STREAM_BYTES / block.len() as u64 {
        stream.write_all(&block).expect("the host");
    }
    stream.shutdown(std::net::Shutdown::Write).expect("the host");
    stream.read_exact(&mut [0]).expect("the host says that it has all");
}

fn receive() {
    let mut stream = TcpStream::connect(at(SOURCE)).expect("the host");
    let mut block = vec![0; 64 << 10];
    let mut rest = STREAM_BYTES;
    while rest > 0 {
        let count = stream.read(&mut block).expect("the host");
        assert!(count > 0, "the host stopped early");
        rest -= count as u64;
    }
}
