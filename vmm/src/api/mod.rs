//! Firecracker's HTTP API on a unix socket.
//!
//! One thread serves it. It is confined before it takes a connection, and waits until the main thread is, too. It may open
//! the files of [`Reach`](crate::jail::Reach), accept, read and write, and remove its socket when the VM has ended.
//! Snapshots are written here, so that the main thread needs no call that lets a file grow. The thread never holds
//! anything that the VM waits for. What a request asks of the VM goes through a [`Controller`](crate::vm::Controller) to the main thread, with files opened here.
//!
//! - `http`: bytes to requests, responses to bytes; [`server`]: many clients on one thread; `socket`: the file.
//! - [`route`]: which request is which operation. `vmm/openapi/portcullis-vmm.json` describes them for clients.
//! - [`session`]: the configuration before the start, the VM after it.
//!
//! `docs/FIRECRACKER.md` lists where answers differ from Firecracker's. What is not supported is refused with `400` and a
//! `fault_message` that names it.

mod connection;
mod fault;
mod files;
mod socket;

pub mod http;
pub mod route;
pub mod server;
pub mod session;

use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use connection::SLOWEST;
pub use fault::Fault;
pub use http::Limits;
pub use session::{FIRECRACKER_VERSION, Session};
pub use socket::{Socket, SocketError};

use crate::jail::landlock::{self, Domain};
use crate::jail::seccomp::{self, Descriptors, ThreadKind};
use crate::jail::{self, JailError, Layer};
use crate::vcpu::RAISE_LIMITS;
use crate::vm::{Confinement, Controller, STACK};

/// How long the thread may take to end after the VM has. It never waits for a client then.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Why the API could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The thread could not be confined.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The thread could not be started.
    #[error("cannot start the thread of the API: {0}; {RAISE_LIMITS}")]
    Thread(std::io::Error),
}

impl ApiError {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Jail(JailError::Reach { .. }) => 2,
            Self::Jail(_) | Self::Thread(_) => 3,
        }
    }
}

/// The thread that serves the API.
#[derive(Debug)]
pub struct Api {
    thread: JoinHandle<()>,
}

impl Api {
    /// Serves `socket` on a thread of its own until the VM of `controller` has ended. Gives back when the thread is
    /// confined.
    pub fn start(
        socket: Socket,
        limits: Limits,
        mut session: Session,
        controller: Controller,
        confinement: &Confinement,
    ) -> Result<Self, ApiError> {
        let omitted = confinement.omitted;
        let filtered = !omitted.contains(Layer::Seccomp);
        let filter = seccomp::compile(ThreadKind::Api, &[], &Descriptors::default())?;
        let domain = landlock::unless(omitted, || Domain::for_api(&confinement.reach))?;
        let (sender, confined) = channel();
        let serve = move || {
            let install = |_| if filtered { seccomp::install(ThreadKind::Api, &filter) } else { Ok(()) };
            let result = jail::restrict_thread(omitted, domain).and_then(install);
            let ok = result.is_ok();
            let _ = sender.send(result);
            if ok {
                controller.wait_restricted();
                server::serve(&socket, controller.ended(), limits, &mut session);
            }
            drop(socket);
        };
        let thread = std::thread::Builder::new().name("api".to_owned()).stack_size(STACK);
        let thread = thread.spawn(serve).map_err(ApiError::Thread)?;
        wait_confined(&confined)?;
        Ok(Self { thread })
    }

    /// Waits until the thread has seen the VM's end and removed its socket.
    pub fn finish(self) {
        let limit = Instant::now() + END_LIMIT;
        while !self.thread.is_finished() && Instant::now() < limit {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

fn wait_confined(confined: &Receiver<Result<(), JailError>>) -> Result<(), JailError> {
    let ended = |_| JailError::Install { kind: ThreadKind::Api, reason: "the thread ended early".to_owned() };
    confined.recv().map_err(ended)?
}
