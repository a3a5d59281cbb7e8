//! One thread a vCPU.

use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
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
use crate::metrics;
use crate::vm::{Clock, STACK};

/// Interrupts `KVM_RUN` of the thread that gets it.
const KICK: Signal = Signal::SIGUSR1;
/// How long threads may take to stop. They only ever run KVM and short device code.
const STOP_LIMIT: Duration = Duration::from_secs(2);

// `kvm_run.system_event.type` (Linux include/uapi/linux/kvm.h).
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
const SYSTEM_EVENT_RESET: u32 = 2;
const SYSTEM_EVENT_CRASH: u32 = 3;

/// What a vCPU's thread, or a queue's, tells the main thread.
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
    /// The thread of a queue cannot wait for it.
    QueueThread(std::io::Error),
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
    /// Written after each message from a guest.
    pub wake: Arc<EventFd>,
    /// The filter of vCPU threads, unless filters are left out.
    pub filter: Option<Arc<BpfProgram>>,
}

/// Makes the signal that stops vCPU threads (SIGUSR1) interrupt system calls and do nothing else.
pub fn install_kick_handler() -> Result<(), VcpuError> {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, so it is async-signal-safe.
    unsafe { sigaction(KICK, &action) }.map(drop).map_err(VcpuError::Signal)
}

/// The vCPU threads of a VM.
///
/// A thread runs its guest while it holds its vCPU. To pause is to take the vCPUs from the threads: whoever has them can
/// read and set their state, and no thread needs the system calls for that. To go on is to give them back.
pub struct Threads {
    handles: Vec<JoinHandle<Receiver<VcpuFd>>>,
    gates: Vec<SyncSender<VcpuFd>>,
    parked: Receiver<Parked>,
    /// Those that have stopped for good: the main thread has not seen yet that the VM ends.
    ended: Vec<Parked>,
    interrupt: Arc<AtomicBool>,
    metrics: Vec<Arc<metrics::Vcpu>>,
}

/// A vCPU that its thread has handed over.
struct Parked {
    number: u8,
    fd: VcpuFd,
    why: Stop,
}

/// Why a thread has handed its vCPU over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// It was asked to: the guest can go on.
    WantedBack,
    /// The guest has ended the VM, or cannot go on.
    Ended,
}

impl Threads {
    /// Starts `count` threads. Each confines itself, says so, and waits for its vCPU.
    pub fn start(count: u8, context: &VcpuContext) -> Result<Self, VcpuError> {
        let (park, parked) = channel();
        let interrupt = Arc::new(AtomicBool::new(false));
        let mut all =
            Self { handles: Vec::new(), gates: Vec::new(), parked, ended: Vec::new(), interrupt, metrics: Vec::new() };
        for number in 0..count {
            let (open, gate) = sync_channel(1);
            let (context, park, interrupt) = (context.clone(), park.clone(), Arc::clone(&all.interrupt));
            let counters = Arc::new(metrics::Vcpu::default());
            all.metrics.push(Arc::clone(&counters));
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{number}"))
                .stack_size(STACK)
                .spawn(move || {
                    let run = |fd| {
                        let mut vcpu =
                            Vcpu { number, fd, context: &context, interrupt: &interrupt, counters: &counters };
                        let why = vcpu.run();
                        (vcpu.fd, why)
                    };
                    thread(number, &context, gate, &park, run)
                })
                .map_err(|source| VcpuError::Thread { vcpu: number, source })?;
            all.handles.push(thread);
            all.gates.push(open);
        }
        Ok(all)
    }

    /// Waits until every thread is confined, and so many others.
    pub fn wait_confined(&self, others: usize, messages: &Receiver<Message>) -> Result<(), JailError> {
        let mut waiting = self.handles.len().saturating_add(others);
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

    /// Gives the threads their vCPUs, in order of their numbers: they run.
    pub fn run(&self, vcpus: Vec<VcpuFd>) {
        self.interrupt.store(false, Ordering::SeqCst);
        for (gate, vcpu) in self.gates.iter().zip(vcpus) {
            // A gate holds one, and its thread has none.
            let _ = gate.send(vcpu);
        }
    }

    /// Takes the vCPUs from the threads, in order of their numbers. What an instruction of the guest has begun with a
    /// device is finished: the state that can be read now is a whole one. `None` when a thread did not stop in time;
    /// those that did run on, and so do those that do it later ([`Threads::give_back_late`]).
    pub fn pause(&mut self) -> Option<Vec<VcpuFd>> {
        self.interrupt.store(true, Ordering::SeqCst);
        let limit = Instant::now() + STOP_LIMIT;
        let mut parked = std::mem::take(&mut self.ended);
        parked.reserve_exact(self.handles.len().saturating_sub(parked.len()));
        while parked.len() < self.handles.len() {
            match self.parked.try_recv() {
                Ok(vcpu) => parked.push(vcpu),
                Err(TryRecvError::Empty) if Instant::now() < limit => self.kick(&parked),
                Err(_) => {
                    self.interrupt.store(false, Ordering::SeqCst);
                    self.give_back(parked);
                    return None;
                }
            }
        }
        parked.sort_unstable_by_key(|vcpu| vcpu.number);
        Some(parked.into_iter().map(|vcpu| vcpu.fd).collect())
    }

    /// Lets vCPUs run on that have stopped only when [`Threads::pause`] had given up. Their threads ring the bell. One that
    /// has ended the VM stays here, though its message may not have been read yet: it can have come after the last look.
    pub fn give_back_late(&mut self) {
        let late: Vec<Parked> = self.parked.try_iter().collect();
        self.give_back(late);
    }

    fn give_back(&mut self, parked: Vec<Parked>) {
        for vcpu in parked {
            match vcpu.why {
                // A gate holds one, and its thread has none.
                Stop::WantedBack => drop(self.gates.get(usize::from(vcpu.number)).map(|gate| gate.send(vcpu.fd))),
                Stop::Ended => self.ended.push(vcpu),
            }
        }
    }

    /// What the vCPUs have counted since the last time, together.
    pub fn metrics(&self) -> serde_json::Value {
        metrics::Vcpu::sum(&self.metrics)
    }

    /// Interrupts the threads that still run a guest, and gives them some time. To be repeated: a kick that arrives
    /// between a thread's look at the flag and `KVM_RUN` is lost.
    fn kick(&self, parked: &[Parked]) {
        for (number, thread) in self.handles.iter().enumerate() {
            if !parked.iter().any(|parked| usize::from(parked.number) == number) {
                // SAFETY: the thread has not been joined, so its handle is valid.
                unsafe { libc::pthread_kill(thread.as_pthread_t(), KICK as libc::c_int) };
            }
        }
        std::thread::sleep(Duration::from_micros(100));
    }

    /// Stops all threads for good and gives back whether they did stop. `vcpus` are those that were taken before.
    pub fn stop(&mut self, vcpus: Option<Vec<VcpuFd>>) -> bool {
        let Some(vcpus) = vcpus.or_else(|| self.pause()) else {
            return false;
        };
        // The threads end while the vCPUs are closed.
        self.gates.clear();
        drop(vcpus);
        for thread in self.handles.drain(..) {
            // It waits for its vCPU and finds that there will be none. A panic in a thread has aborted the process.
            drop(thread.join());
        }
        true
    }
}

/// The thread of vCPU `number`, which does `run` whenever it is given its vCPU. The gate comes back because it may still
/// hold one, and closing that is not among the system calls of this thread.
fn thread(
    number: u8,
    context: &VcpuContext,
    gate: Receiver<VcpuFd>,
    park: &Sender<Parked>,
    run: impl Fn(VcpuFd) -> (VcpuFd, Stop),
) -> Receiver<VcpuFd> {
    let install = |filter: &Arc<BpfProgram>| seccomp::install(ThreadKind::Vcpu, filter);
    let confined = context.filter.as_ref().map_or(Ok(()), install);
    let ok = confined.is_ok();
    // The main thread waits for just this, see `Threads::wait_confined`: it needs not be woken by the counter.
    let _ = context.messages.send(Message::Confined(confined));
    while ok && let Ok(fd) = gate.recv() {
        // The main thread holds the other end until this thread has ended.
        let (fd, why) = run(fd);
        if let Err(unsent) = park.send(Parked { number, fd, why }) {
            std::mem::forget(unsent);
        }
        // Nobody may be waiting for it any more.
        let _ = context.wake.write(1);
    }
    gate
}

impl VcpuContext {
    fn tell(&self, message: Message) {
        // The main thread holds the other ends until this thread has ended.
        let _ = self.messages.send(message);
        let _ = self.wake.write(1);
    }
}

/// One vCPU, on its thread.
struct Vcpu<'a> {
    number: u8,
    fd: VcpuFd,
    context: &'a VcpuContext,
    interrupt: &'a AtomicBool,
    counters: &'a metrics::Vcpu,
}

/// What is to be done after an exit.
enum Next {
    Run,
    /// The guest was not entered, or left because of a kick.
    Interrupted,
    Do(Action),
    Fail(FaultKind),
    /// Its details lie in `kvm_run`, which the exit still borrowed.
    FailInternal,
}

impl Vcpu<'_> {
    /// Runs the guest until it ends the VM, cannot go on, or the vCPU is wanted back.
    fn run(&mut self) -> Stop {
        self.fd.set_kvm_immediate_exit(0);
        loop {
            let wanted_back = self.interrupt.load(Ordering::SeqCst);
            if wanted_back {
                // What the last exit has begun (a read from a device, a string instruction) is finished by entering
                // once more; the guest itself does not get any further.
                self.fd.set_kvm_immediate_exit(1);
            }
            let next = match self.step() {
                Next::FailInternal => Next::Fail(FaultKind::internal_error(self.fd.get_kvm_run())),
                next => next,
            };
            match next {
                Next::Interrupted if wanted_back => return Stop::WantedBack,
                Next::Interrupted | Next::Run | Next::FailInternal => {}
                Next::Do(Action::Mark(source, value)) => {
                    let (boot_us, cpu_us) = (self.context.clock.elapsed_us(), Clock::cpu_us());
                    self.context.tell(Message::Mark(Mark { source, value, boot_us, cpu_us }));
                }
                Next::Do(Action::Reset) => return self.end(Message::Ended(EndReason::Reset)),
                Next::Do(Action::PowerOff) => return self.end(Message::Ended(EndReason::PowerOff)),
                Next::Fail(kind) => {
                    let registers = Box::new(registers::read(&self.fd, self.number));
                    if matches!(kind, FaultKind::CannotEmulate { .. }) && registers::are_at_reset(&registers) {
                        return self.end(Message::Ended(EndReason::Reset));
                    }
                    self.counters.failures.inc();
                    return self.end(Message::Fault(Fault { kind, registers }));
                }
            }
        }
    }

    /// Tells how the VM ends, before the vCPU is handed over.
    fn end(&self, message: Message) -> Stop {
        self.context.tell(message);
        Stop::Ended
    }

    /// Runs the guest until its next exit, and serves that.
    fn step(&mut self) -> Next {
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            // A kick, the immediate exit, or a vCPU that its siblings have not started yet.
            Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => return Next::Interrupted,
            Err(e) => {
                let e = std::io::Error::from(e);
                return Next::Fail(FaultKind::Run(e.kind(), e.to_string()));
            }
        };
        let (context, counters) = (self.context, self.counters);
        let action = match exit {
            VcpuExit::IoIn(port, data) => {
                counters.exit_io_in.inc();
                context.ports.read(port.into(), data);
                None
            }
            VcpuExit::MmioRead(address, data) => {
                counters.exit_mmio_read.inc();
                context.mmio.read(address, data);
                None
            }
            VcpuExit::IoOut(port, data) => {
                counters.exit_io_out.inc();
                context.ports.write(port.into(), data)
            }
            VcpuExit::MmioWrite(address, data) => {
                counters.exit_mmio_write.inc();
                context.mmio.write(address, data)
            }
            VcpuExit::Intr => return Next::Interrupted,
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::jail::seccomp::Descriptors;

    fn filter(vcpu: &VcpuFd, wake: &EventFd) -> BpfProgram {
        let known = Descriptors {
            vcpus: vec![vcpu.as_raw_fd()],
            rung: vec![wake.as_raw_fd(), libc::STDERR_FILENO],
            ..Descriptors::default()
        };
        seccomp::compile(ThreadKind::Vcpu, &[], &known).unwrap()
    }

    #[test]
    fn a_vcpu_that_has_ended_the_vm_does_not_run_again() {
        install_kick_handler().unwrap();
        let vm = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
        let (messages, inbox) = channel();
        let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let vcpu = vm.create_vcpu(0).unwrap();
        let context = VcpuContext {
            ports: Arc::default(),
            mmio: Arc::default(),
            clock: Clock::start(),
            messages,
            wake: Arc::clone(&wake),
            filter: Some(Arc::new(filter(&vcpu, &wake))),
        };
        let ((park, parked), (open, gate)) = (channel(), sync_channel(1));
        let runs = Arc::new(AtomicU32::new(0));
        let (counter, teller) = (Arc::clone(&runs), context.clone());
        let run = move |fd| {
            counter.fetch_add(1, Ordering::SeqCst);
            teller.tell(Message::Ended(EndReason::Reset));
            (fd, Stop::Ended)
        };
        let handle = std::thread::spawn(move || thread(0, &context, gate, &park, run));
        let interrupt = Arc::default();
        let (handles, gates) = (vec![handle], vec![open]);
        let mut threads = Threads { handles, gates, parked, ended: Vec::new(), interrupt, metrics: Vec::new() };
        threads.run(vec![vcpu]);
        while !matches!(inbox.recv(), Ok(Message::Ended(_))) {}
        // The main thread has looked for messages just before this one came, and now looks for late vCPUs.
        for _ in 0..100 {
            threads.give_back_late();
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(runs.load(Ordering::SeqCst), 1, "the guest ran on after its end");
        assert!(threads.stop(None));
    }

    #[test]
    fn a_vcpu_that_stops_too_late_runs_on() {
        install_kick_handler().unwrap();
        let vm = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
        let (messages, _inbox) = channel();
        let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let vcpu = vm.create_vcpu(0).unwrap();
        let context = VcpuContext {
            ports: Arc::default(),
            mmio: Arc::default(),
            clock: Clock::start(),
            messages,
            wake: Arc::clone(&wake),
            filter: Some(Arc::new(filter(&vcpu, &wake))),
        };
        let ((park, parked), (open, gate), (release, held)) = (channel(), sync_channel(1), channel());
        let runs = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&runs);
        let run = move |fd| {
            counter.fetch_add(1, Ordering::SeqCst);
            let _: Result<(), _> = held.recv();
            (fd, Stop::WantedBack)
        };
        let handle = std::thread::spawn(move || thread(0, &context, gate, &park, run));
        let interrupt = Arc::default();
        let (handles, gates) = (vec![handle], vec![open]);
        let mut threads = Threads { handles, gates, parked, ended: Vec::new(), interrupt, metrics: Vec::new() };
        let wait_until = |what: &dyn Fn() -> bool| {
            let limit = Instant::now() + Duration::from_mins(1);
            while !what() {
                assert!(Instant::now() < limit);
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        threads.run(vec![vcpu]);
        wait_until(&|| runs.load(Ordering::SeqCst) == 1);
        assert!(threads.pause().is_none());
        while wake.read().is_ok() {}
        release.send(()).unwrap();
        wait_until(&|| wake.read().is_ok());
        threads.give_back_late();
        wait_until(&|| runs.load(Ordering::SeqCst) == 2);
        release.send(()).unwrap();
        assert!(threads.stop(None));
    }
}
