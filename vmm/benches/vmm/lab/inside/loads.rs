//! What guests say of the loads that they put on their devices, and the other end of their network.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use serde_json::{Value, json};

use super::{exits, start};
use crate::lab::load::{ECHO, HOST, SINK, SOURCE, STREAM_BYTES};

/// A guest that says nothing for so long by the host's clock stands still: its boot and its loads take a second or less.
const SILENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether one stands still.
const LOOK: Duration = Duration::from_millis(100);
/// A look that takes so many seconds of the world's time, usually about one, is spent in a loop around `PAUSE`, with which
/// the emulator has more work than with anything else: so many of them in sequence are a guest that waits for a lock.
const SLOW_LOOK: u64 = 5;
const SLOW_LOOKS: u32 = 4;
/// More guests of one program that stand still are no accident any more.
const STANDSTILLS: usize = 20;

/// What guests say of the loads that they put on their devices, and the exits of each: of so many lives that came to their
/// end. One that came to a standstill is ended and counted.
pub fn run(times: usize, program: &[&str]) -> Value {
    serve();
    let (mut all, mut standstills) = (Vec::new(), 0);
    while all.len() < times {
        match loaded(program) {
            Ok(life) => all.push(life),
            Err(said) => {
                standstills += 1;
                assert!(
                    standstills <= STANDSTILLS,
                    "{program:?}: {standstills} guests stood still, the last after {said:#?}"
                );
            }
        }
    }
    json!({"loads": all.concat(), "standstills": standstills})
}

/// How long nothing was heard.
struct Patience {
    looks: u32,
    slow: u32,
    /// The world's time at the last look, in seconds.
    last: u64,
}

impl Patience {
    fn new() -> Self {
        Self { looks: 0, slow: 0, last: seconds() }
    }

    /// Whether to look again.
    fn lasts(&mut self) -> bool {
        let before = std::mem::replace(&mut self.last, seconds());
        self.slow = if self.last >= before + SLOW_LOOK { self.slow + 1 } else { 0 };
        self.looks += 1;
        self.slow < SLOW_LOOKS && self.looks * LOOK < SILENCE
    }
}

/// The time of the host's battery-backed clock, which goes as the world's does and not by instructions.
fn seconds() -> u64 {
    let text = std::fs::read_to_string("/sys/class/rtc/rtc0/since_epoch").expect("a battery-backed clock");
    text.trim().parse().expect("a number")
}

/// The loads of one life; what the guest has said if it stands still.
fn loaded(program: &[&str]) -> Result<Vec<Value>, Vec<String>> {
    let mut child = start(program);
    let output = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
    let (to, lines) = mpsc::channel();
    std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| to.send(line)));
    let (mut all, mut said, mut before) = (Vec::new(), Vec::new(), 0);
    let mut patience = Patience::new();
    loop {
        let line = match lines.recv_timeout(LOOK) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if patience.lasts() => continue,
            Err(RecvTimeoutError::Timeout) => {
                child.kill().expect("a child");
                child.wait().expect("a child");
                return Err(said);
            }
        };
        patience = Patience::new();
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["load:", "begin", _] => {
                before = exits();
                said.push(line);
            }
            ["load:", "end", name, amount, nanos] => {
                let number = |text: &str| text.parse::<u64>().expect("a number");
                let exits = exits() - before;
                all.push(json!({"name": name, "amount": number(amount), "nanos": number(nanos), "exits": exits}));
            }
            _ => said.push(line),
        }
    }
    let status = child.wait().expect("a child");
    assert!(status.success() && !all.is_empty(), "{status}: {said:#?}");
    Ok(all)
}

/// Is the other end of the guests' network, in threads that end with the process. A guest that is ended in the middle of a
/// stream leaves its connection to a thread of its own.
fn serve() {
    let echo = UdpSocket::bind((HOST, ECHO)).expect("a tap with this address");
    std::thread::spawn(move || {
        let mut block = [0; 64];
        while let Ok((count, from)) = echo.recv_from(&mut block) {
            echo.send_to(block.get(..count).expect("what was read"), from).expect("a tap");
        }
    });
    accept(SINK, |mut stream| {
        let mut block = vec![0; 256 << 10];
        while stream.read(&mut block)? > 0 {}
        stream.write_all(&[0])
    });
    accept(SOURCE, |mut stream| {
        let block = vec![0; 256 << 10];
        (0..STREAM_BYTES / block.len() as u64).try_for_each(|_| stream.write_all(&block))
    });
}

/// Serves each connection to a port in a thread of its own.
fn accept(port: u16, serve: fn(TcpStream) -> std::io::Result<()>) {
    let listener = TcpListener::bind((HOST, port)).expect("a tap with this address");
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            std::thread::spawn(move || serve(stream));
        }
    });
}
