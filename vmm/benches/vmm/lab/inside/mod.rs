//! What runs on the host: this very program, started there with [`WORD`] before its arguments. Figures go to standard
//! output, as JSON.

mod life;
mod loads;

use std::io::{Read, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike as _};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::guest::{ANSWER, SIGN};

/// The API socket of a VMM that is told to have one.
pub const SOCKET: &str = "api.sock";
/// What it is asked for a snapshot, and to load it: the same files.
const FILES: &str = r#""snapshot_path":"/tmp/state","#;

/// The first argument of this program when it runs on the host.
pub const WORD: &str = "on-the-host";

/// Does what the arguments after [`WORD`] ask for.
pub fn main(arguments: &[String]) {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let figures = match words.as_slice() {
        ["lives", times, program @ ..] => lives(times.parse().expect("a number"), program),
        ["guests", times, program @ ..] => guests(times.parse().expect("a number"), program),
        ["snapshot", program @ ..] => snapshot(program),
        ["restores", times, program @ ..] => restores(times.parse().expect("a number"), program),
        ["loads", times, program @ ..] => loads::run(times.parse().expect("a number"), program),
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

/// Processor time of a child and all its threads so far, its guest's among it.
fn so_far(child: &Child) -> u64 {
    let pid = Pid::from_raw(child.id().try_into().expect("a process"));
    let clock = clock_getcpuclockid(pid).and_then(clock_gettime).expect("the child lives");
    nanos(clock.into())
}

/// Lives of a VM, one after the other.
fn lives(times: usize, program: &[&str]) -> Value {
    let (all, standstills) = life::ended(times, program, |life| {
        let (before, begin) = (of_children(), life.begin);
        life.hear(SIGN)?;
        let sign = json!({"time": nanos(begin.elapsed()), "cpu": so_far(&life.child), "exits": exits()});
        life.end()?;
        let end = json!({"time": nanos(begin.elapsed()), "cpu": of_children() - before});
        Ok(json!({"sign": sign, "end": end}))
    });
    json!({"lives": all, "standstills": standstills})
}

/// Time that the guests of such lives have, by the kernel's events of entries and exits.
fn guests(times: usize, program: &[&str]) -> Value {
    let file = |name: &str| format!("/sys/kernel/tracing/{name}");
    let set = |name: &str, value: &str| std::fs::write(file(name), value).expect("tracefs");
    // The clock that counts instructions, as it is.
    set("trace_clock", "x86-tsc");
    set("buffer_size_kb", "16384");
    let record = |value: &str| {
        for event in ["kvm_entry", "kvm_exit"] {
            set(&format!("events/kvm/{event}/enable"), value);
        }
    };
    record("1");
    let (all, standstills) = life::ended(times, program, |life| {
        let heard = life.hear(SIGN).and_then(|()| {
            set("trace_marker", SIGN);
            life.end()
        });
        let text = std::fs::read_to_string(file("trace")).expect("tracefs");
        set("trace", "");
        heard.map(|()| {
            let (sign, end) = in_the_guest(&text);
            json!({"sign": sign, "end": end})
        })
    });
    record("0");
    json!({"lives": all, "standstills": standstills})
}

/// Sums of the times from an entry to the exit after it, until the sign and until the end. What the kernel does between
/// its two events is in each of them: so much as is in the shortest is taken off all.
fn in_the_guest(trace: &str) -> (u64, u64) {
    let (mut entered, mut until_sign) = (None, None);
    let mut stays = Vec::new();
    for line in trace.lines() {
        if line.contains(SIGN) {
            until_sign = Some(stays.len());
        }
        let mut words = line.split_whitespace().map(|word| word.trim_end_matches(':'));
        let Some((at, event)) = words.clone().zip(words.by_ref().skip(1)).find(|(_, word)| word.starts_with("kvm_e"))
        else {
            continue;
        };
        let at: u64 = at.parse().expect("a time of the processor's counter");
        match (event, entered.take()) {
            ("kvm_entry", _) => entered = Some(at),
            (_, Some(begin)) => stays.push(at - begin),
            (_, None) => panic!("an exit without an entry: events were lost"),
        }
    }
    let shortest = stays.iter().min().expect("a guest that ran");
    let (first, rest) = stays.split_at(until_sign.expect("a mark in the trace"));
    let sum = |stays: &[u64]| stays.iter().map(|stay| stay - shortest).sum::<u64>();
    (sum(first), sum(first) + sum(rest))
}

/// One request to the VMM's API, which has to succeed.
fn request(method: &str, path: &str, body: &str) {
    let mut stream = loop {
        // It is there some milliseconds after the VMM's start.
        match UnixStream::connect(SOCKET) {
            Ok(stream) => break stream,
            Err(_) => std::thread::sleep(Duration::from_micros(100)),
        }
    };
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}").expect("the API's socket");
    read_until(&mut stream, "HTTP/1.1 204");
}

/// Makes a snapshot of a guest that waits for what it hears. Its program has an API.
fn snapshot(program: &[&str]) -> Value {
    let mut child = start(program);
    let mut output = child.stdout.take().expect("standard output is a pipe");
    read_until(&mut output, SIGN);
    // Its shell has some way to go until it listens.
    std::thread::sleep(Duration::from_millis(100));
    request("PATCH", "/vm", r#"{"state":"Paused"}"#);
    request("PUT", "/snapshot/create", &format!(r#"{{{FILES}"mem_file_path":"/tmp/memory"}}"#));
    end(child);
    json!({})
}

/// Restores of that snapshot: from the start of the VMM to the guest's answer.
fn restores(times: usize, program: &[&str]) -> Value {
    let body =
        format!(r#"{{{FILES}"mem_backend":{{"backend_type":"File","backend_path":"/tmp/memory"}},"resume_vm":true}}"#);
    let mut all = Vec::new();
    for _ in 0..times {
        let begin = Instant::now();
        let mut child = start(program);
        writeln!(child.stdin.as_mut().expect("standard input is a pipe"), "you").expect("a pipe");
        request("PUT", "/snapshot/load", &body);
        let loaded = begin.elapsed();
        read_until(child.stdout.as_mut().expect("standard output is a pipe"), ANSWER);
        all.push(json!({"answer": nanos(begin.elapsed()), "loaded": nanos(loaded)}));
        end(child);
    }
    json!({"lives": all})
}

/// Ends a VMM with an API.
fn end(mut child: Child) {
    child.kill().expect("a child");
    child.wait().expect("a child");
    std::fs::remove_file(SOCKET).expect("the API's socket");
}
