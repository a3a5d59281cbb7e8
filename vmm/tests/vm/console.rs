//! The serial line's far end: pipes, files that are full, terminals.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use portcullis_vmm::log::{EndReason, Event};

use crate::guest::Guest;
use crate::harness::{Killed, Setup, wait_limited, with_config};

#[test]
fn input_reaches_the_guest_and_comes_back() {
    let mut vmm = Setup::new(&Guest::new().print("> ").echo_until(b'!').reset()).start();
    vmm.wait_for("> ");
    vmm.type_in("one line\n");
    vmm.wait_for("> one line\n");
    // More than the line's queue holds.
    let long = "abcdefgh".repeat(64);
    vmm.type_in(&long);
    vmm.type_in("!");
    let ended = vmm.wait();
    ended.expect_clean(EndReason::Reset);
    assert_eq!(ended.output, format!("> one line\n{long}!"));
}

#[test]
fn input_from_a_file_reaches_the_guest_to_its_end() {
    let setup = Setup::new(&Guest::new().print("> ").echo_until(b'!').reset());
    let (input, output) = (setup.dir.path().join("input"), setup.dir.path().join("output"));
    // More than the line's queue holds.
    let text = format!("{}!", "abcdefgh".repeat(64));
    std::fs::write(&input, &text).unwrap();
    let (input, shown) = (File::open(input).unwrap(), File::create(&output).unwrap());
    let mut child = Killed(setup.command().stdin(input).stdout(shown).spawn().unwrap());
    assert_eq!(wait_limited(&mut child.0).code(), Some(0));
    assert_eq!(std::fs::read_to_string(output).unwrap(), format!("> {text}"));
}

#[test]
fn what_a_guest_writes_byte_by_byte_is_collected() {
    // Each write to such a pipe is a packet of its own.
    let (read, write) = nix::unistd::pipe2(OFlag::O_DIRECT).unwrap();
    let text = "0123456789".repeat(1000);
    let setup = Setup::new(&Guest::new().print(&text).reset());
    let start = Instant::now();
    let mut child = Killed(setup.command().stdin(Stdio::null()).stdout(write).spawn().unwrap());
    let mut packets = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match nix::unistd::read(&read, &mut buffer).unwrap() {
            0 => break,
            count => packets.push(String::from_utf8(buffer[..count].to_vec()).unwrap()),
        }
    }
    let elapsed = start.elapsed().as_millis();
    assert_eq!(wait_limited(&mut child.0).code(), Some(0));
    assert_eq!(packets.concat(), text);
    // Two milliseconds between any two but the last, which is the end's.
    let most = elapsed / 2 + 2;
    assert!(u128::try_from(packets.len()).unwrap() <= most, "{} in {elapsed} ms", packets.len());
}

#[test]
fn a_guest_that_floods_its_line_is_slowed_and_ends_on_a_signal() {
    // Standard output is a pipe that nobody reads: it is soon full.
    let setup = Setup::new(&Guest::new().flood());
    let (_unread, full) = nix::unistd::pipe().unwrap();
    let mut command = setup.command();
    command.stdin(Stdio::null()).stdout(full.try_clone().unwrap());
    let mut child = Killed(command.spawn().unwrap());
    let limit = Instant::now() + Duration::from_mins(1);
    let writable = || poll(&mut [PollFd::new(full.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO).unwrap() > 0;
    while writable() {
        assert!(Instant::now() < limit, "the pipe is not full yet");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Time for the line's own queue.
    std::thread::sleep(Duration::from_millis(500));
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.0.id())).unwrap();
    let resident: u64 =
        status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok()).unwrap();
    assert!(resident < 32 * 1024, "{resident} KiB resident");
    let start = Instant::now();
    kill(Pid::from_raw(child.0.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(wait_limited(&mut child.0).code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(10));
    let log = std::fs::read_to_string(setup.log_path()).unwrap();
    let end = portcullis_vmm::log::LogLine::parse(log.lines().last().unwrap()).unwrap().event;
    let Event::End { reason: EndReason::Killed, serial_out, serial_lost, .. } = end else { panic!("{log}") };
    assert!(serial_out <= 64 * 1024 && serial_lost > 0, "{serial_out} {serial_lost}");
    assert!(log.len() < 4096, "the guest can make the log long");
}

#[test]
fn output_to_a_file_is_limited_in_rate() {
    let setup = Setup::new(&Guest::new().flood());
    let path = setup.dir.path().join("out");
    let out = File::create(&path).unwrap();
    let mut child = Killed(setup.command().stdin(Stdio::null()).stdout(out).spawn().unwrap());
    let start = Instant::now();
    std::thread::sleep(Duration::from_secs(3));
    kill(Pid::from_raw(child.0.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(wait_limited(&mut child.0).code(), Some(0));
    let written = std::fs::metadata(&path).unwrap().len();
    // A burst of 1 MiB, 256 KiB a second, and another burst at the end.
    let allowed = 2 * 1024 * 1024 + u64::try_from(start.elapsed().as_millis()).unwrap() * 262;
    assert!((1..=allowed).contains(&written), "{written} of {allowed}");
}

#[test]
fn a_guest_runs_on_when_nobody_reads_its_line() {
    let setup = Setup::new(&Guest::new().print("one").print(&"two".repeat(100)).reset());
    let mut child = Killed(setup.command().stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    drop(child.0.stdout.take());
    assert_eq!(wait_limited(&mut child.0).code(), Some(0));
}

/// A VMM on a terminal of its own; gives the terminal too.
fn on_a_terminal(setup: &Setup) -> (Killed, OwnedFd) {
    let pty = openpty(None, None).unwrap();
    let mut command = setup.command();
    let slave = pty.slave.try_clone().unwrap();
    command.stdin(slave.try_clone().unwrap()).stdout(slave).stderr(Stdio::piped());
    // SAFETY: between fork and exec only setsid and an ioctl on standard input, both async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            if libc::ioctl(0, libc::TIOCSCTTY, 0) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    // The slave stays open here, so that the terminal's settings outlive the VMM.
    let child = Killed(command.spawn().unwrap());
    std::mem::forget(pty.slave.try_clone().unwrap());
    (child, pty.master)
}

/// The end for writing of a pipe that is full, and the other, which nobody reads.
fn full_pipe() -> (File, OwnedFd) {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let (read, write) = nix::unistd::pipe().unwrap();
    fcntl(&write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while nix::unistd::write(&write, &[0; 4096]).is_ok() {}
    fcntl(&write, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (write.into(), read)
}

#[test]
fn a_standard_error_that_nobody_reads_holds_up_neither_the_guest_nor_the_end() {
    let setup = Setup::new(&Guest::new().out8(0x80, 1).print("ready").hang());
    let (errors, _unread) = full_pipe();
    let output = setup.dir.path().join("output");
    let mut command = with_config(&setup.config_file());
    command.arg("--boot-timer").stdin(Stdio::null()).stdout(File::create(&output).unwrap());
    let mut vmm = Killed(command.stderr(errors).spawn().unwrap());
    let limit = Instant::now() + Duration::from_mins(1);
    while std::fs::read_to_string(&output).unwrap() != "ready" {
        assert!(Instant::now() < limit, "the guest does not run");
        std::thread::sleep(Duration::from_millis(2));
    }
    let pid = Pid::from_raw(i32::try_from(vmm.0.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(wait_limited(&mut vmm.0).code(), Some(0));
    // What is said last waits a little, and not for ever.
    let (errors, _unread) = full_pipe();
    let mut refused = with_config(std::path::Path::new("/nonexistent.json"));
    let mut vmm = Killed(refused.stdin(Stdio::null()).stderr(errors).spawn().unwrap());
    assert_eq!(wait_limited(&mut vmm.0).code(), Some(2));
}

#[test]
fn a_terminal_is_raw_while_the_guest_runs_and_as_before_after_a_signal() {
    let setup = Setup::new(&Guest::new().print("ready").hang());
    let (mut child, master) = on_a_terminal(&setup);
    let cooked = |fd: &OwnedFd| tcgetattr(fd).unwrap().local_flags.contains(LocalFlags::ICANON | LocalFlags::ISIG);
    let limit = Instant::now() + Duration::from_mins(1);
    while cooked(&master) {
        assert!(Instant::now() < limit && child.0.try_wait().unwrap().is_none(), "the terminal was not switched");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut seen = [0; 5];
    std::io::Read::read_exact(&mut File::from(master.try_clone().unwrap()), &mut seen).unwrap();
    assert_eq!(&seen, b"ready");
    kill(Pid::from_raw(child.0.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(wait_limited(&mut child.0).code(), Some(0));
    assert!(cooked(&master), "the terminal was left in raw mode");
}
