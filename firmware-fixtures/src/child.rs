//! Child processes that never outlive us.
//!
//! A child is killed when its [`Guarded`] handle is dropped (also while a panic unwinds), and by the kernel
//! (`PR_SET_PDEATHSIG`) when this process dies without dropping anything. The kernel's signal is tied to the *thread*
//! that forked, so all children are forked by one thread that lives as long as the process: a handle may be made in a
//! short-lived thread and used in another.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running child process that is killed and reaped when this handle goes away.
#[derive(Debug)]
pub struct Guarded {
    child: Child,
    name: String,
}

impl Guarded {
    /// Starts `command`; `name` is how errors call it.
    ///
    /// # Errors
    /// What the operating system says when the program cannot be started.
    pub fn spawn(name: &str, command: Command) -> io::Result<Self> {
        Ok(Self { child: spawn_guarded(command)?, name: name.to_owned() })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The name given at the start, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The exit status if the child has ended by itself.
    ///
    /// # Errors
    /// What `waitpid` says.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits up to `limit` for the child to end by itself.
    ///
    /// # Errors
    /// What `waitpid` says.
    pub fn wait_for_end(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks the child to end (SIGTERM), and kills it when it has not within `grace`.
    pub fn terminate(&mut self, grace: Duration) {
        if let (Ok(None), Ok(pid)) = (self.child.try_wait(), i32::try_from(self.child.id())) {
            // The child is not reaped yet, so the id is still its own.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            if matches!(self.wait_for_end(grace), Ok(Some(_))) {
                return;
            }
        }
        self.kill();
    }

    /// Kills the child at once (SIGKILL) and reaps it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.kill();
    }
}

type Order = (Command, mpsc::Sender<io::Result<Child>>);

/// Starts `command` so that the kernel kills it when this process dies. Prefer [`Guarded::spawn`].
///
/// # Errors
/// What the operating system says when the program cannot be started.
///
/// # Panics
/// When no thread can be started.
pub fn spawn_guarded(mut command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let parent = nix::unistd::getpid();
    // SAFETY: the closure runs between fork and exec; prctl and getppid are async-signal-safe and it allocates nothing.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
        });
    }
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::Builder::new()
            .name("child-spawner".to_owned())
            .spawn(move || {
                for (mut command, reply) in inbox {
                    let _ = reply.send(command.spawn());
                }
            })
            .expect("cannot start the thread that forks children");
        Mutex::new(orders)
    });
    let (reply, answer) = mpsc::channel();
    let gone = || io::Error::other("the thread that forks children has ended");
    spawner.lock().map_err(|_| gone())?.send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}
