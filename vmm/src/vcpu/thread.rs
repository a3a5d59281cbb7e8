//! One thread a vCPU.

use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use seccompiler::BpfProgram;
use vmm_sys_util::eventfd::EventFd;

use super::{Fault, FaultKind, VcpuError, registers};
use crate::devices::{Action, Bus};
use crate::jail::JailError;
use crate::jail::seccomp::{self, ThreadKind};
use crate::log::{EndReason, Mark};
use crate::vm::Clock;

/// Interrupts `KVM_RUN` of the thread that gets it.
const KICK: Signal = Signal::SIGUSR1;
/// How long threads may take to stop. They only ever run KVM and short device code.
const STOP_LIMIT: Duration = Duration::from_secs(2);

// `kvm_run.system_event.type` (Linux include/uapi/linux/kvm.h).
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
const SYSTEM_EVENT_RESET: u32 = 2;
const SYSTEM_EVENT_CRASH: u32 = 3;

/// What a vCPU thread tells the main thread.
#[derive(Debug)]
pub enum Message {
    /// The thread is confined and waits, or could not be confined.
    Confined(Result<(), JailError>),
    /// The guest set a mark.
    Mark(Mark),
    /// The guest ended the VM.
    Ended(EndReason),
    /// The vCPU cannot go on.
    Fault(Fault),
}

/// What every vCPU thread of a VM shares.
#[derive(Clone)]
pub struct VcpuContext {
    /// Devices on I/O ports.
    pub ports: Arc<Bus>,
    /// Devices in memory.
    pub mmio: Arc<Bus>,
    /// When the process began.
    pub clock: Clock,
    /// Where messages go. Their number is bounded by what devices and vCPUs can say.
    pub messages: Sender<Message>,
    /// Written after each message.
    pub wake: Arc<EventFd>,
    /// The filter of vCPU threads.
    pub filter: Arc<BpfProgram>,
}

/// Makes the signal that stops vCPU threads (SIGUSR1) interrupt system calls and do nothing else.
pub fn install_kick_handler() -> Result<(), VcpuError> {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, so it is async-signal-safe.
    unsafe { sigaction(KICK, &action) }.map(drop).map_err(VcpuError::Signal)
}

/// The vCPU threads of a VM.
pub struct Threads {
    handles: Vec<JoinHandle<VcpuFd>>,
    gates: Vec<SyncSender<()>>,
    stopping: Arc<AtomicBool>,
}

impl Threads {
    /// Starts a thread for each vCPU. Each confines itself, says so, and waits for [`Threads::run`].
    pub fn start(vcpus: Vec<VcpuFd>, context: &VcpuContext) -> Result<Self, VcpuError> {
        let mut all = Self { handles: Vec::new(), gates: Vec::new(), stopping: Arc::new(AtomicBool::new(false)) };
        for (number, fd) in (0u8..).zip(vcpus) {
            let (open, gate) = sync_channel(1);
            let vcpu = Vcpu { number, fd, context: context.clone(), stopping: Arc::clone(&all.stopping) };
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{number}"))
                .spawn(move || vcpu.main(&gate))
                .map_err(|source| VcpuError::Thread { vcpu: number, source })?;
            all.handles.push(thread);
            all.gates.push(open);
        }
        Ok(all)
    }

    /// Waits until every thread is confined.
    pub fn wait_confined(&self, messages: &Receiver<Message>) -> Result<(), JailError> {
        let mut waiting = self.handles.len();
        while waiting > 0 {
            match messages.recv() {
                Ok(Message::Confined(result)) => {
                    result?;
                    waiting -= 1;
                }
                // No thread runs its guest before all are confined.
                Ok(_) => {}
                Err(_) => {
                    let reason = "the thread ended early".to_owned();
                    return Err(JailError::Install { kind: ThreadKind::Vcpu, reason });
                }
            }
        }
        Ok(())
    }

    /// Lets the vCPUs run.
    pub fn run(&mut self) {
        for gate in self.gates.drain(..) {
            // A thread that is gone has sent why.
            let _ = gate.send(());
        }
    }

    /// Stops all threads and gives back whether they did stop.
    ///
    /// The kick is repeated: one that arrives between the thread's look at the flag and `KVM_RUN` is lost.
    pub fn stop(&mut self) -> bool {
        self.stopping.store(true, Ordering::Relaxed);
        self.gates.clear();
        let limit = Instant::now() + STOP_LIMIT;
        while let Some(thread) = self.handles.iter().find(|thread| !thread.is_finished()) {
            if Instant::now() > limit {
                return false;
            }
            // SAFETY: the thread has not been joined, so its handle is valid.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), KICK as libc::c_int) };
            std::thread::sleep(Duration::from_micros(200));
        }
        for thread in self.handles.drain(..) {
            // A panic in a thread has aborted the process.
            drop(thread.join());
        }
        true
    }
}

/// One vCPU, on its thread.
struct Vcpu {
    number: u8,
    fd: VcpuFd,
    context: VcpuContext,
    stopping: Arc<AtomicBool>,
}

/// What is to be done after an exit.
enum Next {
    Run,
    Do(Action),
    Fail(FaultKind),
    /// Its details lie in `kvm_run`, which the exit still borrowed.
    FailInternal,
}

impl Vcpu {
    /// The thread. It gives back the vCPU, so that closing it is not among the system calls of this thread.
    fn main(mut self, gate: &Receiver<()>) -> VcpuFd {
        let confined = seccomp::install(ThreadKind::Vcpu, &self.context.filter);
        let ok = confined.is_ok();
        self.tell(Message::Confined(confined));
        if ok && gate.recv().is_ok() {
            self.run();
        }
        self.fd
    }

    fn tell(&self, message: Message) {
        // The main thread holds the other ends until this thread has ended.
        let _ = self.context.messages.send(message);
        let _ = self.context.wake.write(1);
    }

    fn run(&mut self) {
        while !self.stopping.load(Ordering::Relaxed) {
            let next = match self.step() {
                Next::FailInternal => Next::Fail(FaultKind::internal_error(self.fd.get_kvm_run())),
                next => next,
            };
            match next {
                Next::Run | Next::FailInternal => {}
                Next::Do(Action::Mark(source, value)) => {
                    let (boot_us, cpu_us) = (self.context.clock.elapsed_us(), Clock::cpu_us());
                    self.tell(Message::Mark(Mark { source, value, boot_us, cpu_us }));
                }
                Next::Do(Action::Reset) => return self.tell(Message::Ended(EndReason::Reset)),
                Next::Do(Action::PowerOff) => return self.tell(Message::Ended(EndReason::PowerOff)),
                Next::Fail(kind) => {
                    let registers = Box::new(registers::read(&self.fd, self.number));
                    return self.tell(Message::Fault(Fault { kind, registers }));
                }
            }
        }
    }

    /// Runs the guest until its next exit, and serves that.
    fn step(&mut self) -> Next {
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            // Interrupted by a kick, or not started by its siblings yet.
            Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => return Next::Run,
            Err(e) => {
                let e = std::io::Error::from(e);
                return Next::Fail(FaultKind::Run(e.kind(), e.to_string()));
            }
        };
        let context = &self.context;
        let action = match exit {
            VcpuExit::IoIn(port, data) => {
                context.ports.read(port.into(), data);
                None
            }
            VcpuExit::MmioRead(address, data) => {
                context.mmio.read(address, data);
                None
            }
            VcpuExit::IoOut(port, data) => context.ports.write(port.into(), data),
            VcpuExit::MmioWrite(address, data) => context.mmio.write(address, data),
            VcpuExit::Intr => None,
            VcpuExit::SystemEvent(SYSTEM_EVENT_SHUTDOWN, _) => Some(Action::PowerOff),
            VcpuExit::SystemEvent(SYSTEM_EVENT_RESET, _) => Some(Action::Reset),
            VcpuExit::SystemEvent(SYSTEM_EVENT_CRASH, _) => return Next::Fail(FaultKind::GuestCrash),
            VcpuExit::InternalError => return Next::FailInternal,
            VcpuExit::Shutdown => return Next::Fail(FaultKind::TripleFault),
            VcpuExit::FailEntry(reason, cpu) => return Next::Fail(FaultKind::EntryRefused { reason, cpu }),
            other => return Next::Fail(FaultKind::Unhandled(format!("{other:?}"))),
        };
        action.map_or(Next::Run, Next::Do)
    }
}
