//! One life of a VM: what its guest says, until it ends itself or comes to a standstill.

use std::io::{BufRead as _, BufReader};
use std::process::Child;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::start;

/// A guest that says nothing for so long by the host's clock stands still: its boot and its loads take a second or less.
const SILENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether one stands still; each look takes the processor from it.
const LOOK: Duration = Duration::from_millis(400);
/// A look that takes so many seconds of the world's time, usually about four, is spent in a loop around `PAUSE`, with which
/// the emulator has more work than with anything else: so many of them in sequence are a guest that waits for a lock.
const SLOW_LOOK: u64 = 20;
const SLOW_LOOKS: u32 = 4;
/// More guests of one program that stand still are no accident any more.
const STANDSTILLS: usize = 20;

/// A guest that came to a standstill, and was ended.
#[derive(Debug)]
pub struct Standstill;

/// Results of so many lives that came to their end, and how many others came to a standstill.
pub fn ended<T>(times: usize, program: &[&str], hear: impl Fn(&mut Life) -> Result<T, Standstill>) -> (Vec<T>, usize) {
    let (mut all, mut standstills) = (Vec::new(), 0);
    while all.len() < times {
        let mut life = Life::begin(program);
        if let Ok(result) = hear(&mut life) {
            all.push(result);
        } else {
            standstills += 1;
            let said = life.said;
            assert!(
                standstills <= STANDSTILLS,
                "{program:?}: {standstills} guests stood still, the last after {said:#?}"
            );
        }
    }
    (all, standstills)
}

/// A VM whose guest is heard.
pub struct Life {
    pub child: Child,
    /// When its program was started.
    pub begin: Instant,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Life {
    fn begin(program: &[&str]) -> Self {
        let begin = Instant::now();
        let mut child = start(program);
        let output = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
        let (to, lines) = mpsc::channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| to.send(line)));
        Self { child, begin, lines, said: Vec::new() }
    }

    /// The next line, or nothing if there is none because the VM came to its end by itself.
    pub fn line(&mut self) -> Result<Option<String>, Standstill> {
        let mut patience = Patience::new();
        loop {
            match self.lines.recv_timeout(LOOK) {
                Ok(line) => {
                    self.said.push(line.clone());
                    return Ok(Some(line));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait().expect("a child");
                    assert!(status.success(), "{status}: {:#?}", self.said);
                    return Ok(None);
                }
                Err(RecvTimeoutError::Timeout) if patience.lasts() => {}
                Err(RecvTimeoutError::Timeout) => {
                    self.child.kill().expect("a child");
                    self.child.wait().expect("a child");
                    return Err(Standstill);
                }
            }
        }
    }

    /// Hears until the guest says this.
    pub fn hear(&mut self, text: &str) -> Result<(), Standstill> {
        while let Some(line) = self.line()? {
            if line.contains(text) {
                return Ok(());
            }
        }
        panic!("no {text:?} in {:#?}", self.said)
    }

    /// Hears until the VM's end.
    pub fn end(&mut self) -> Result<(), Standstill> {
        while self.line()?.is_some() {}
        Ok(())
    }
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
