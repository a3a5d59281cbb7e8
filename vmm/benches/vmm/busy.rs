//! How soon a VM stands still, and is gone, while its guest keeps its disk busy.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::guest::Guest;
use crate::programs::{MEM_MIB, Program, Programs};
use crate::report::{Report, Row};
use crate::rounds::Summary;
use crate::virtio::{BUFFERS, Descriptor, FIRST, NEXT, Queue, WRITE};

/// Lives of each VM, and pauses in each.
const LIVES: u64 = 8;
const PAUSES: u64 = 8;
/// Requests in the queue when it begins.
const REQUESTS: u16 = 64;
/// The longest that is waited for anything.
const LIMIT: Duration = Duration::from_mins(1);

const MIB: u32 = 1 << 20;
/// The disk's size. A file without holes, so that a discard has something to do.
const DISK: i64 = 2 << 30;

/// Kinds of requests (virtio 1.2, 5.2.6), and features that they take.
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const FEATURES: u32 = (1 << 9) | (1 << 13) | (1 << 14);

/// What a guest asks of its disk: kinds of requests by turns, bytes of each that writes.
struct Load {
    name: &'static str,
    kinds: &'static [u32],
    bytes: u32,
    features: u32,
}

const LOADS: [Load; 4] = [
    Load { name: "writes of 62 MiB", kinds: &[OUT], bytes: 62 * MIB, features: 0 },
    Load { name: "writes of 8 MiB, each with a flush", kinds: &[OUT, FLUSH], bytes: 8 * MIB, features: FEATURES },
    Load { name: "discards of 1 GiB", kinds: &[DISCARD], bytes: 0, features: FEATURES },
    Load { name: "zeroes written to 1 GiB", kinds: &[WRITE_ZEROES], bytes: 0, features: FEATURES },
];

/// A guest that offers all its requests at once, says so, and does no more.
fn guest(load: &Load) -> Guest {
    let queue = Queue::at(FIRST, 0, 256);
    let (range, status, data) = (BUFFERS + 0x4000, BUFFERS + 0x2000, 8 * MIB);
    // Sectors of 512 bytes: 1 GiB from the first on.
    let guest = Guest::new().virtio_start(FIRST, load.features, &[queue]);
    let guest = guest.store64(range, 0).store32(range + 8, 1 << 21).store32(range + 12, 0);
    let guest = (1..=REQUESTS).zip(load.kinds.iter().cycle()).fold(guest, |guest, (number, kind)| {
        let header = BUFFERS + 32 * u32::from(number);
        let parts = match *kind {
            OUT => vec![(data, load.bytes)],
            FLUSH => vec![],
            _ => vec![(range, 16)],
        };
        let all = [&[(header, 16)], &parts[..], &[(status, 1)]].concat();
        let first = 3 * (number - 1);
        let guest = guest.store32(header, *kind).store32(header + 4, 0).store64(header + 8, 0);
        let guest = all.iter().zip(first..).fold(guest, |guest, ((address, len), index)| {
            let flags = if *address == status { WRITE } else { NEXT };
            let descriptor = Descriptor { address: u64::from(*address), len: *len, flags, next: index + 1 };
            guest.descriptor(queue.descriptors, u32::from(index), descriptor)
        });
        guest.offer(queue, number, first)
    });
    guest.notify(queue).print("!").hang()
}

/// Sends one request over a connection, and waits for its answer, which has no body.
fn ask(api: &mut BufReader<UnixStream>, body: &Value) -> Option<()> {
    let body = body.to_string();
    let head =
        format!("PATCH /vm HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    api.get_mut().write_all([head, body].concat().as_bytes()).ok()?;
    let mut line = String::new();
    api.read_line(&mut line).ok()?;
    let done = line.contains("204");
    while line.trim() != "" {
        line.clear();
        api.read_line(&mut line).ok()?;
    }
    done.then_some(())
}

/// One life: milliseconds of each pause, and of the end after SIGTERM.
fn life(program: &Program, at: &Path, number: u64) -> (Vec<f64>, f64) {
    let socket = at.join("api.sock");
    let _ = std::fs::remove_file(&socket);
    let disk = std::fs::File::create(at.join("disk")).expect("a disk");
    nix::fcntl::fallocate(&disk, nix::fcntl::FallocateFlags::empty(), 0, DISK).expect("room for a disk");
    let mut child = program.serving(at, &socket).spawn().expect("a program that was found");
    let mut output = child.stdout.take().expect("standard output is a pipe");
    let mut byte = [0];
    while byte != *b"!" {
        assert!(output.read(&mut byte).is_ok_and(|count| count == 1), "{}: no sign of the guest", program.name);
    }
    let stream = UnixStream::connect(&socket).expect("the API's socket");
    stream.set_read_timeout(Some(LIMIT)).expect("a socket");
    let mut api = BufReader::new(stream);
    let milliseconds = |begin: Instant| begin.elapsed().as_secs_f64() * 1e3;
    let pauses = (0..PAUSES).map(|pause| {
        // At another place of the work each time.
        std::thread::sleep(Duration::from_millis(3 + (number + 5 * pause) % 17));
        let begin = Instant::now();
        ask(&mut api, &json!({ "state": "Paused" })).expect("a pause");
        let took = milliseconds(begin);
        ask(&mut api, &json!({ "state": "Resumed" })).expect("to go on");
        took
    });
    let pauses = pauses.collect();
    let begin = Instant::now();
    kill(Pid::from_raw(i32::try_from(child.id()).expect("a process")), Signal::SIGTERM).expect("a child");
    child.wait().expect("a child");
    (pauses, milliseconds(begin))
}

/// Measures the builds of ours.
pub fn run(report: &mut Report, programs: &Programs) {
    for load in &LOADS {
        report.section(load.name);
        let at = programs.guest(load.name, &guest(load));
        let config = json!({
            "boot-source": {"kernel_image_path": at.join("kernel")},
            "machine-config": {"vcpu_count": 1, "mem_size_mib": MEM_MIB},
            "drives": [{"drive_id": "disk", "path_on_host": at.join("disk"), "is_root_device": false,
                        "is_read_only": false, "cache_type": "Writeback"}],
        });
        std::fs::write(at.join("serving.json"), config.to_string()).expect("a guest's files");
        for program in programs.all.iter().filter(|program| program.is_ours) {
            let lives: Vec<_> = (0..LIVES).map(|number| life(program, &at, number)).collect();
            let pauses: Vec<f64> = lives.iter().flat_map(|(pauses, _)| pauses.clone()).collect();
            let ends: Vec<f64> = lives.iter().map(|(_, end)| *end).collect();
            for (what, figures) in [("pause", pauses), ("SIGTERM to the end", ends)] {
                let longest = figures.iter().copied().fold(0.0, f64::max);
                report.row(Row::figure(what, program.name, Summary::of(figures), "ms"));
                report.row(Row::figure("  the longest", program.name, Summary::of(vec![longest]), "ms"));
            }
        }
    }
}
