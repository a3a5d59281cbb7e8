//! What runs on the host: this very program, started there with [`WORD`] before its arguments. Figures go to standard
//! output, as JSON.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike as _};
use serde_json::{Value, json};

use super::guest::SIGN;

/// The first argument of this program when it runs on the host.
pub const WORD: &str = "on-the-host";

/// Does what the arguments after [`WORD`] ask for.
pub fn main(arguments: &[String]) {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let figures = match words.as_slice() {
        ["lives", times, program @ ..] => lives(times.parse().expect("a number"), program),
        _ => panic!("{arguments:?}: nobody asks for this"),
    };
    println!("{figures}");
}

/// Nanoseconds, which are instructions here.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).expect("less than centuries")
}

/// Processor time of all children that have ended, their guests' among it.
fn of_children() -> u64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("Linux counts this");
    let nanos = |time: TimeVal| u64::try_from(time.num_nanoseconds()).expect("not negative");
    nanos(usage.user_time()) + nanos(usage.system_time())
}

/// The part of it that their guests have used (`cguest_time`), which the kernel counts in its clock's ticks and tells in
/// hundredths of a second.
fn of_their_guests() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc");
    // The name stands in parentheses and may have blanks; the field after it is the third.
    let fields = stat.rsplit_once(')').expect("a name").1;
    let ticks = fields.split_whitespace().nth(44 - 3).expect("a kernel that counts guests");
    ticks.parse::<u64>().expect("a number") * 10_000_000
}

/// Exits of all VMs that there are now.
fn exits() -> u64 {
    let text = std::fs::read_to_string("/sys/kernel/debug/kvm/exits").expect("debugfs");
    text.trim().parse().expect("a number")
}

fn start(program: &[&str]) -> Child {
    let (name, arguments) = program.split_first().expect("a program");
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Reads until the text has come.
fn read_until(from: &mut impl Read, text: &str) {
    let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
    while !read.windows(text.len()).any(|found| found == text.as_bytes()) {
        let count = from.read(&mut buffer).expect("a pipe");
        assert!(count > 0, "no {text:?} in {:?}", String::from_utf8_lossy(&read));
        read.extend_from_slice(buffer.get(..count).expect("what was read"));
    }
}

/// Lives of a VM, one after the other.
fn lives(times: usize, program: &[&str]) -> Value {
    let mut all = Vec::new();
    for _ in 0..times {
        let before = of_children();
        let begin = Instant::now();
        let mut child = start(program);
        let mut output = child.stdout.take().expect("standard output is a pipe");
        read_until(&mut output, SIGN);
        let sign = begin.elapsed();
        let exits = exits();
        let mut rest = Vec::new();
        output.read_to_end(&mut rest).expect("a pipe");
        let status = child.wait().expect("a child");
        assert!(status.success(), "{status}: {}", String::from_utf8_lossy(&rest));
        let end = begin.elapsed();
        all.push(json!({"sign": nanos(sign), "end": nanos(end), "cpu": of_children() - before, "exits": exits}));
    }
    // Only the sum is worth something: a tick is long against what the VMM uses in one life.
    json!({"lives": all, "cpu": of_children(), "guests": of_their_guests()})
}
