//! Sockets between guest and host: the guest's packets, and programs of the host that connect, listen and go away.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use portcullis_vmm::devices::vsock::{Vsock, VsockConfig};
use portcullis_vmm::virtio::{Slot, VirtioDevice};
use tempfile::TempDir;

use super::Target;
use super::guest::{self, Host};
use super::input::Input;
use super::program::{Part, Program};

/// The device, its driver, and programs of the host.
pub const VSOCK: Target = Target { name: "vsock", body: vsock, max_len: 1024, seeds: |_| seeds() };

const CID: u32 = 42;
/// The port on which a program of the host listens.
const PORT: u32 = 10;
/// Bytes of a large packet.
const FLOOD: u16 = 0xf000;
/// Programs of the host at a time.
const MAX_PROGRAMS: usize = 8;

struct Programs {
    dir: TempDir,
    listener: UnixListener,
    streams: Vec<UnixStream>,
}

fn vsock(bytes: &[u8]) -> bool {
    guest::run(Programs::new(), &mut Input::new(bytes))
}

impl Programs {
    fn new() -> Self {
        // As in every program of Rust's; a fuzzer has another's begin.
        // SAFETY: nothing of this process has a handler for it.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        let dir = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(dir.path().join(format!("v_{PORT}"))).expect("a socket");
        listener.set_nonblocking(true).expect("a socket that does not wait");
        Self { dir, listener, streams: Vec::new() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("v")
    }

    fn keep(&mut self, stream: UnixStream) {
        if self.streams.len() < MAX_PROGRAMS {
            stream.set_nonblocking(true).expect("a socket that does not wait");
            self.streams.push(stream);
        }
    }

    /// One of the programs that are connected.
    fn stream(&mut self, input: &mut Input<'_>) -> Option<&mut UnixStream> {
        let number = usize::from(input.u8()).checked_rem(self.streams.len())?;
        self.streams.get_mut(number)
    }
}

impl Host for Programs {
    fn device(&mut self) -> Box<dyn VirtioDevice> {
        // What the one before has left.
        let _ = std::fs::remove_file(self.path());
        let config = VsockConfig { vsock_id: None, guest_cid: CID, uds_path: self.path() };
        Box::new(Vsock::open(&config).expect("a device"))
    }

    fn act(&mut self, _slot: &Slot, input: &mut Input<'_>) {
        match input.u8() % 8 {
            0 => {
                if let Ok(mut stream) = UnixStream::connect(self.path()) {
                    let _ = stream.write(b"CONNECT 52\n");
                    self.keep(stream);
                }
            }
            1 => {
                if let Ok(stream) = UnixStream::connect(self.path()) {
                    self.keep(stream);
                }
            }
            2 => {
                if let Ok((stream, _)) = self.listener.accept() {
                    self.keep(stream);
                }
            }
            // What nobody takes is lost, as everywhere.
            3 => {
                let bytes = vec![0x77; usize::from(input.u16())];
                self.stream(input).into_iter().for_each(|stream| drop(stream.write(&bytes)));
            }
            4 => {
                let len = input.below(0..64);
                let bytes = input.bytes(len);
                self.stream(input).into_iter().for_each(|stream| drop(stream.write(bytes)));
            }
            5 => {
                let mut bytes = vec![0; usize::from(input.u16())];
                self.stream(input).into_iter().for_each(|stream| drop(stream.read(&mut bytes)));
            }
            6 => {
                let how = if input.u8() & 1 == 0 { Shutdown::Read } else { Shutdown::Write };
                self.stream(input).into_iter().for_each(|stream| drop(stream.shutdown(how)));
            }
            _ => {
                if let Some(number) = usize::from(input.u8()).checked_rem(self.streams.len()) {
                    self.streams.swap_remove(number);
                }
            }
        }
    }
}

/// The header of a packet of the guest's.
fn header(ports: [u32; 2], op: u16, flags: u32, len: u32) -> Vec<u8> {
    [
        &u64::from(CID).to_le_bytes()[..],
        &2u64.to_le_bytes(),
        &ports[1].to_le_bytes(),
        &ports[0].to_le_bytes(),
        &len.to_le_bytes(),
        &1u16.to_le_bytes(),
        &op.to_le_bytes(),
        &flags.to_le_bytes(),
        &0x1_0000u32.to_le_bytes(),
        &0u32.to_le_bytes(),
    ]
    .concat()
}

/// A packet of the guest's.
fn packet(ports: [u32; 2], op: u16, flags: u32, data: &[u8]) -> Program {
    let header = header(ports, op, flags, u32::try_from(data.len()).expect("a few bytes"));
    let program = Program::new().poke(0x6000, &[header.as_slice(), data].concat());
    let all = u16::try_from(44 + data.len()).expect("a few bytes");
    program.offer(1, &[Part::read(0x6000, 44), Part::read(0x602c, all - 44)]).notify(1).serve().serve()
}

/// Connections that either side begins, bytes in both directions, and their ends.
fn seeds() -> Vec<Vec<u8>> {
    let buffers = || {
        let buffer =
            |number: u16| [Part::write(0x8000 + 0x800 * number, 44), Part::write(0x8100 + 0x800 * number, 512)];
        (0..6).fold(Program::new(), |program, number| program.offer(0, &buffer(number))).notify(0).serve()
    };
    let (theirs, ours) = ([PORT, 1000], [1 << 30, 52]);
    let mut seeds = Vec::new();
    for features in [0, u32::MAX] {
        let start = || Program::new().start(features, 4).offer(2, &[Part::write(0x7000, 4)]).notify(2);
        let guests = [
            start(),
            buffers(),
            packet(theirs, 1, 0, &[]),
            Program::new().act(&[2]).serve(),
            packet(theirs, 5, 0, b"to the host"),
            Program::new().act(&[5, 0, 1, 0]).act(&[3, 0, 2, 0]).serve().serve(),
            buffers(),
            packet(theirs, 6, 0, &[]),
            packet(theirs, 7, 0, &[]),
            packet(theirs, 4, 3, &[]),
            Program::new().act(&[7, 0]).serve(),
        ];
        let hosts = [
            start(),
            buffers(),
            Program::new().act(&[0]).serve().serve(),
            packet(ours, 2, 0, &[]),
            Program::new().act(&[5, 64, 0, 0]).act(&[4, 5, 1, 2, 3, 4, 5, 0]).serve().serve(),
            packet(ours, 5, 0, b"to the host"),
            Program::new().act(&[6, 1, 0]).serve().act(&[7, 0]).serve(),
            packet(ours, 3, 0, &[]),
            Program::new().save_and_restore().serve(),
        ];
        // It sends no more, and the host's program does not care.
        let half = [start(), buffers(), packet(theirs, 1, 0, &[]), packet(theirs, 4, 2, &[])];
        seeds.push([half.map(Program::bytes).concat(), Program::new().act(&[2]).serve().serve().bytes()].concat());
        // It sends more than anybody takes.
        let header = header(theirs, 5, 0, FLOOD.into());
        let flood = (0..40).fold(Program::new().poke(0x6000, &header), |program, _| {
            program.offer(1, &[Part::read(0x6000, 44), Part::read(0, FLOOD)]).notify(1).serve()
        });
        let begin = [start(), buffers(), packet(theirs, 1, 0, &[]), Program::new().act(&[2]).serve()];
        seeds.push([begin.map(Program::bytes).concat(), flood.bytes()].concat());
        seeds.push(guests.map(Program::bytes).concat());
        seeds.push(hosts.map(Program::bytes).concat());
    }
    seeds
}
