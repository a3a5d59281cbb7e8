//! How the agent starts other programs: confined from their first instruction, and never outliving the agent.
//!
//! Every child gets an empty environment, no file descriptor but the three it is given, a session of its own, and
//! SIGKILL from the kernel when the thread that started it ends. That last point is why VMs are started from the
//! agent's main thread only: a kill -9 of the agent leaves no VM behind.

use std::io::{Error, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// What is kept of a program's output and of its complaints, each.
const MAX_OUTPUT_BYTES: u64 = 4 * 1024 * 1024;

/// How much rather the kernel ends a child than another program when memory runs out (-1000 to 1000).
const OOM_SCORE: &[u8] = b"500";

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// It cannot be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The program's path.
        program: PathBuf,
        /// What the system said.
        source: Error,
    },
    /// Talking to it failed.
    #[error("lost the connection to {program}: {source}")]
    Pipe {
        /// The program's path.
        program: PathBuf,
        /// What the system said.
        source: Error,
    },
    /// It did not end in time and was killed.
    #[error("{program} did not end within {seconds} s and was killed")]
    Timeout {
        /// The program's path.
        program: PathBuf,
        /// The time it was given.
        seconds: u64,
    },
}

/// What a program left when it ended by itself.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; `None` after a signal.
    pub code: Option<i32>,
    /// What it printed, cut at 4 MiB.
    pub stdout: Vec<u8>,
    /// Its complaints, as one line for a message.
    pub complaint: String,
}

/// A command that starts confined as described above; the caller adds arguments and the three streams.
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    // Nobody can lay a file into /proc: a shell that was put in the program's place finds no script named like an argument.
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/proc");
    let parent = std::process::id();
    // SAFETY: the closure runs in the child between fork and exec. It calls async-signal-safe system calls only
    // (setsid, prctl, getppid, open, write, close, close_range), allocates nothing and touches no memory but its own copy of `parent`.
    unsafe {
        command.pre_exec(move || confine(parent));
    }
    command
}

/// The steps in the child before exec.
fn confine(parent: u32) -> std::io::Result<()> {
    // SAFETY: plain system calls; the only pointers are to constants with the lengths given.
    unsafe {
        if libc::setsid() == -1 {
            return Err(Error::last_os_error());
        }
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == -1 {
            return Err(Error::last_os_error());
        }
        // The parent may have died before the line above: then nobody would ever send the signal.
        if u32::try_from(libc::getppid()) != Ok(parent) {
            return Err(Error::from_raw_os_error(libc::ESRCH));
        }
        // When memory runs out, a VM goes before the host's services: the agent's own protection would be inherited. Best
        // effort: without it the host still works.
        let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file != -1 {
            let _ = libc::write(file, OOM_SCORE.as_ptr().cast(), OOM_SCORE.len());
            libc::close(file);
        }
        // Libraries (the TPM's among them) open descriptors without O_CLOEXEC; marking instead of closing keeps
        // the pipe on which the standard library reports a failed exec.
        if libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) == -1 {
            return Err(Error::last_os_error());
        }
    }
    Ok(())
}

/// Runs a program to its end: `input` on its stdin, a time limit, bounded output.
pub fn run(mut command: Command, input: &[u8], limit: Duration) -> Result<Finished, ChildError> {
    let program = PathBuf::from(command.get_program());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| ChildError::Start { program: program.clone(), source })?;
    let result = converse(&mut child, &program, input, limit);
    if result.is_err() {
        kill(&mut child);
    }
    result
}

/// Kills a child started by [`command`] with all that it started, and collects it.
pub fn kill(child: &mut Child) {
    // Errors mean that it has ended already; the wait collects it in any case.
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = child.wait();
}

fn converse(child: &mut Child, program: &Path, input: &[u8], limit: Duration) -> Result<Finished, ChildError> {
    let pipe = |source| ChildError::Pipe { program: program.to_owned(), source };
    let missing = || pipe(Error::other("a stream is missing"));
    let stdout = collect(child.stdout.take().ok_or_else(missing)?);
    let stderr = collect(child.stderr.take().ok_or_else(missing)?);
    {
        let mut stdin = child.stdin.take().ok_or_else(missing)?;
        match stdin.write_all(input) {
            // It ended without reading all of it: its exit code says why.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            other => other.map_err(pipe)?,
        }
    }
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(pipe)? {
            break status;
        }
        if Instant::now() >= deadline {
            return Err(ChildError::Timeout { program: program.to_owned(), seconds: limit.as_secs() });
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let stdout = stdout.join().map_err(|_| missing())?.map_err(pipe)?;
    let stderr = stderr.join().map_err(|_| missing())?.map_err(pipe)?;
    Ok(Finished { code: status.code(), stdout, complaint: one_line(&stderr) })
}

fn collect(stream: impl Read + Send + 'static) -> std::thread::JoinHandle<std::io::Result<Vec<u8>>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut stream = stream.take(MAX_OUTPUT_BYTES);
        stream.read_to_end(&mut bytes)?;
        // Keep reading, so that a talkative program can end.
        std::io::copy(&mut stream.into_inner(), &mut std::io::sink())?;
        Ok(bytes)
    })
}

/// Output of a program as one printable line of at most 400 characters.
fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().filter(|c| !c.is_control()).take(400).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn sh(script: &str) -> Command {
        let mut command = command(Path::new("/bin/sh"));
        command.args(["-c", script]);
        command
    }

    #[test]
    fn input_reaches_the_program_and_output_comes_back() {
        let done = run(sh("cat; echo oops >&2; exit 3"), b"key", Duration::from_secs(10)).unwrap();
        assert_eq!((done.code, done.stdout.as_slice(), done.complaint.as_str()), (Some(3), &b"key"[..], "oops"));
    }

    #[test]
    fn environment_and_descriptors_do_not_leak() {
        let file = std::fs::File::open("/dev/null").unwrap();
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        assert!(file.as_raw_fd() > 2);
        // No pipeline: the shell itself would have its pipe open for a moment.
        let done = run(sh("env; ls /proc/$$/fd; true"), b"", Duration::from_secs(10)).unwrap();
        let text = String::from_utf8(done.stdout).unwrap();
        assert!(!text.contains("CARGO") && !text.contains("HOME="), "{text}");
        assert!(text.ends_with("\n0\n1\n2\n"), "{text}");
    }

    #[test]
    fn children_go_first_when_memory_runs_out() {
        let done = run(sh("cat /proc/self/oom_score_adj"), b"", Duration::from_secs(10)).unwrap();
        assert_eq!(done.stdout, b"500\n");
    }

    #[test]
    fn a_program_that_hangs_is_killed() {
        let started = Instant::now();
        let error = run(sh("sleep 100"), b"", Duration::from_millis(200)).unwrap_err();
        assert!(matches!(error, ChildError::Timeout { .. }), "{error}");
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(command(Path::new("/nonexistent/cryptsetup")), b"", Duration::from_secs(1)).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/cryptsetup"), "{error}");
    }
}
