//! What other threads ask of a VM: commands to the main thread, and their answers.
//!
//! The API's thread holds a [`Controller`]. Each of its calls is a [`Command`] that the main thread takes when it has
//! its turn, and the answer comes back through a [`Reply`]. Files are opened by who asks, and handed over open: the
//! main thread can open none once a guest runs.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::VmError;
use crate::config::{MetricsConfig, VmConfig};
use crate::jail;
use crate::metrics::Metrics;
use crate::snapshot::{Loading, Saved, SnapshotLoad};
use crate::virtio::{Active, EventLoop, VirtioDevice};

/// How often somebody who waits for an answer looks whether one can still come.
const LOOK: Duration = Duration::from_millis(100);
/// How long the main thread of a VM that runs may take to come to a command. A turn of its loop takes milliseconds.
const TURN_LIMIT: Duration = Duration::from_secs(10);

/// What a VM does, as Firecracker's `InstanceInfo` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum VmState {
    /// Nothing was started or loaded yet.
    NotStarted,
    /// vCPUs run.
    Running,
    /// vCPUs and devices stand still.
    Paused,
    /// The VM is gone, the process about to end.
    Ended,
}

impl VmState {
    /// Firecracker's words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotStarted => "Not started",
            Self::Running => "Running",
            Self::Paused => "Paused",
            Self::Ended => "Ended",
        }
    }
}

/// Why a command was not carried out. The VM goes on as before, unless it has ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// It needs a VM that was started.
    #[error("the VM has not been started")]
    NotStarted,
    /// It has to come before the start.
    #[error("the VM has been started already")]
    AlreadyStarted,
    /// It needs a paused VM.
    #[error("the VM is not paused")]
    NotPaused,
    /// The VM has no such device.
    #[error("the VM has no {0}")]
    NoDevice(String),
    /// It was tried and failed.
    #[error("{0}")]
    Failed(String),
    /// The main thread did not come to it, and will not do it later.
    #[error(
        "nothing was done: the VM's main thread stands still, as if a page-fault handler did not hand out a page; \
         SIGTERM ends the VM"
    )]
    Stuck,
    /// The VM ended before the answer.
    #[error("the VM has ended")]
    Ended,
}

impl From<VmError> for ControlError {
    fn from(error: VmError) -> Self {
        let text = error.to_string();
        // As the system's errors are written. Whoever gives commands names files for a process that reaches only some.
        let hint = if text.contains(&format!("(os error {})", libc::EACCES)) { jail::REACH_HINT } else { "" };
        Self::Failed(text + hint)
    }
}

/// The answer's way back.
#[derive(Debug)]
pub struct Reply<T>(SyncSender<Result<T, ControlError>>);

impl<T> Reply<T> {
    /// Answers. Who asked may be gone, which is no concern of the VM.
    pub fn send(self, answer: Result<T, ControlError>) {
        let _ = self.0.try_send(answer);
    }
}

/// Work with the devices of a VM, on the main thread; `None` before there is one. It answers by itself.
pub type DeviceWork = Box<dyn FnOnce(Option<&EventLoop>) + Send>;

/// One command.
pub enum Command {
    /// Build the VM and let it run. On an error nothing has been started, and it may be tried again.
    Start(Box<VmConfig>, Reply<()>),
    /// Let vCPUs and devices stand still. Nothing to do where they do already.
    Pause(Reply<()>),
    /// Let them go on. Nothing to do where they do already.
    Resume(Reply<()>),
    /// Give out what a snapshot of the paused VM is made of. It stays paused, and whoever asks must not let it go on before
    /// the snapshot is written ([`snapshot::write`](crate::snapshot::write)).
    CreateSnapshot {
        /// The configuration as it is now, with what was changed since the start.
        config: Box<VmConfig>,
        /// The answer.
        reply: Reply<Saved>,
    },
    /// Build the VM that lies in these files, instead of a start. It is paused, unless the request says otherwise. The
    /// answer is its configuration, and the memory's file again, if there is one. On an error nothing has been started, and something else may be tried.
    LoadSnapshot {
        /// Where from.
        files: Loading,
        /// How; the paths in it are not looked at.
        request: Box<SnapshotLoad>,
        /// Where its metrics go.
        metrics: Option<MetricsConfig>,
        /// The answer.
        reply: Reply<(Box<VmConfig>, Option<File>)>,
    },
    /// Press Ctrl, Alt and Delete on the guest's keyboard.
    SendCtrlAltDel(Reply<()>),
    /// Do something with a device.
    Device(DeviceWork),
    /// Write metrics now.
    FlushMetrics(Reply<()>),
}

/// A command on its way. The first to claim it has it: the main thread, or the sender that waits no longer.
struct Sent {
    command: Command,
    claim: Claim,
}

impl Sent {
    fn claimed(self) -> Option<Command> {
        self.claim.take().then_some(self.command)
    }
}

#[derive(Clone, Default)]
struct Claim(Arc<AtomicBool>);

impl Claim {
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::SeqCst)
    }
}

/// What both ends share.
pub(super) struct Shared {
    state: AtomicU8,
    /// Wakes the main thread.
    bell: Arc<EventFd>,
    /// Readable, for ever, once the VM has ended.
    ended: EventFd,
    /// Set once the main thread is restricted, or has ended.
    restricted: OnceLock<()>,
    pub(super) metrics: Metrics,
}

impl Shared {
    pub(super) fn set_state(&self, state: VmState) {
        self.state.store(state as u8, Ordering::SeqCst);
        if state == VmState::Ended {
            self.set_restricted();
            // Nobody reads it, so it cannot be full.
            let _ = self.ended.write(1);
        }
    }

    /// Lets requests be read: what they bring meets a main thread that is restricted.
    pub(super) fn set_restricted(&self) {
        let _ = self.restricted.set(());
    }

    /// Wakes the main thread.
    pub(super) fn ring(&self) {
        // Full only if it has not looked for very long, and it will.
        let _ = self.bell.write(1);
    }

    /// Readable once the VM has ended.
    pub(super) fn ended(&self) -> BorrowedFd<'_> {
        super::borrow(&self.ended)
    }

    pub(super) fn ended_descriptor(&self) -> RawFd {
        self.ended.as_raw_fd()
    }

    fn state(&self) -> VmState {
        let states = [VmState::NotStarted, VmState::Running, VmState::Paused];
        let found = self.state.load(Ordering::SeqCst);
        states.into_iter().find(|state| *state as u8 == found).unwrap_or(VmState::Ended)
    }
}

/// The asking end. Calls wait for their answer; the main thread gives it within one turn of its loop. A command that the
/// main thread of a VM that runs does not come to is taken back after some seconds.
#[derive(Clone)]
pub struct Controller {
    commands: Sender<Sent>,
    shared: Arc<Shared>,
}

/// The end that carries commands out: the main thread's.
pub struct Commands {
    inbox: Receiver<Sent>,
    pub(super) shared: Arc<Shared>,
}

impl Commands {
    /// Waits for the next command; `None` when nobody is left who could send one.
    pub fn wait(&self) -> Option<Command> {
        self.inbox.iter().find_map(Sent::claimed)
    }

    /// The next command that is there and still wanted.
    pub(super) fn take(&self) -> Option<Command> {
        self.inbox.try_iter().find_map(Sent::claimed)
    }

    /// Says what the VM does from now on.
    pub fn set_state(&self, state: VmState) {
        self.shared.set_state(state);
    }
}

/// A pair of ends; `bell` is written with each command.
pub fn connect(bell: Arc<EventFd>) -> Result<(Controller, Commands), VmError> {
    let ended = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(VmError::EventFd)?;
    let shared = Arc::new(Shared {
        state: AtomicU8::new(VmState::NotStarted as u8),
        bell,
        ended,
        restricted: OnceLock::new(),
        metrics: Metrics::default(),
    });
    let (commands, inbox) = channel();
    Ok((Controller { commands, shared: Arc::clone(&shared) }, Commands { inbox, shared }))
}

impl Controller {
    /// Sends the command that `make` puts around a reply, and waits for the answer.
    pub fn call<T>(&self, make: impl FnOnce(Reply<T>) -> Command) -> Result<T, ControlError> {
        let (reply, answer) = sync_channel(1);
        let (claim, limit) = (Claim::default(), Instant::now() + TURN_LIMIT);
        let sent = Sent { command: make(Reply(reply)), claim: claim.clone() };
        self.commands.send(sent).map_err(|_| ControlError::Ended)?;
        self.shared.ring();
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Disconnected) => return Err(ControlError::Ended),
                Err(RecvTimeoutError::Timeout) => {}
            }
            match self.state() {
                // Where another thread had to end the VM, no answer comes.
                VmState::Ended => return Err(ControlError::Ended),
                VmState::Running | VmState::Paused if Instant::now() >= limit && claim.take() => {
                    return Err(ControlError::Stuck);
                }
                // It may take its time to build a VM.
                _ => {}
            }
        }
    }

    /// Waits until the main thread is restricted: before that nothing is to be read that others have sent.
    pub fn wait_restricted(&self) {
        self.shared.restricted.wait();
    }

    /// Does `work` on the main thread, which may open then what it opens at the start. Before there is a VM only.
    pub fn before_start(
        &self,
        work: impl FnOnce() -> Result<(), VmError> + Send + 'static,
    ) -> Result<(), ControlError> {
        self.call(|reply| {
            Command::Device(Box::new(|devices: Option<&EventLoop>| {
                let early = devices.map_or(Ok(()), |_| Err(ControlError::AlreadyStarted));
                reply.send(early.and_then(|()| Ok(work()?)));
            }))
        })
    }

    /// Waits until the main thread takes commands. Where it began with a configuration, there is a VM then.
    pub fn wait_for_turn(&self) -> Result<(), ControlError> {
        self.call(|reply| Command::Device(Box::new(|_| reply.send(Ok(())))))
    }

    /// What the VM does. Does not wait.
    pub fn state(&self) -> VmState {
        self.shared.state()
    }

    /// What the process counts, the requests to its API among it.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Readable once the VM has ended: the thread that serves commands is to clean up and end then.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.shared.ended()
    }

    /// Does `work` with the device of type `D` that has this name ([`VirtioDevice::name`]), on the main thread and
    /// with its system calls. The second part of what `work` gives says whether the driver is to be told of a change
    /// in configuration space.
    pub fn device<D, T, W>(&self, name: &str, work: W) -> Result<T, ControlError>
    where
        D: VirtioDevice + 'static,
        T: Send + 'static,
        W: FnOnce(&mut D, Option<&mut Active>) -> (Result<T, String>, bool) + Send + 'static,
    {
        let name = name.to_owned();
        self.call(move |reply| {
            Command::Device(Box::new(move |devices: Option<&EventLoop>| {
                let answer = devices.ok_or(ControlError::NotStarted).and_then(|devices| find(devices, &name, work));
                reply.send(answer);
            }))
        })
    }
}

/// Does `work` with the device of this type and name.
fn find<D, T, W>(devices: &EventLoop, name: &str, work: W) -> Result<T, ControlError>
where
    D: VirtioDevice + 'static,
    W: FnOnce(&mut D, Option<&mut Active>) -> (Result<T, String>, bool),
{
    let mut work = Some(work);
    for slot in devices.slots() {
        let done = slot.control(|device, active| {
            if device.name() != name {
                return (None, false);
            }
            let device = device.as_any().downcast_mut::<D>();
            let Some((device, work)) = device.zip(work.take()) else {
                return (None, false);
            };
            let (answer, changed) = work(device, active);
            (Some(answer), changed)
        });
        if let Some(answer) = done {
            return answer.map_err(ControlError::Failed);
        }
    }
    Err(ControlError::NoDevice(name.to_owned()))
}
