//! One VM: put together, confined, run, ended.
//!
//! The main thread is a [`Supervisor`]. With a configuration it builds and runs the VM at once; without one it waits
//! until a [`Controller`] sends it. Either way the process is confined between the building and the running, once.

pub mod control;

mod clock;
mod confine;
mod end;
mod heap;
mod kvm;
mod machine;
mod panic;
mod running;
mod signals;
mod watch;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::EventFd;

pub use clock::{Clock, StartTimes};
pub use confine::Confinement;
pub use control::{Command, ControlError, Controller, Reply, VmState};
pub use end::VmError;
pub use heap::{STACK, share_heap};
pub use kvm::KvmError;
pub use panic::abort_on_panic;

use crate::boot::BootFiles;
use crate::config::{MetricsConfig, VmConfig};
use crate::console::{Console, Outlet};
use crate::devices::{self, serial};
use crate::jail::seccomp::{self, Descriptors, ThreadKind};
use crate::log::{self, EndReason, Event};
use crate::memory::{self, HandlerEnd};
use crate::metrics::Output;
use crate::mmds::SharedMmds;
use crate::snapshot::{self, Loading, MemorySource, SnapshotLoad};
use crate::vcpu::{self, Threads, VcpuContext};
use crate::virtio::VirtioDevice;
use crate::virtio::queue_thread::{self, Report};
use confine::Early;
use control::Commands;
use kvm::Groundwork;
use machine::{Machine, Restore};
use running::{METRICS_INTERVAL, Running};
use signals::Signals;
use watch::{Watch, Watched};

/// What stands beside the configuration on the command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// The VM's name, for the log.
    pub id: String,
    /// Whether the guest has a boot timer.
    pub boot_timer: bool,
    /// What the metadata service gives.
    pub metadata: SharedMmds,
}

/// The main thread's work: one VM from its configuration to its end.
pub struct Supervisor {
    options: Options,
    clock: Clock,
    start: StartTimes,
    confinement: Confinement,
    signals: Signals,
    /// Wakes this thread: commands, vCPUs' messages, the serial line.
    wake: Arc<EventFd>,
    commands: Commands,
}

impl Supervisor {
    /// Takes over the signals that end a VM. To be made before any other thread, so that all inherit their mask, and
    /// once in a process, which it confines for good later.
    ///
    /// The second part is for whoever gives commands; dropped, there will be none.
    pub fn new(options: Options, clock: Clock) -> Result<(Self, Controller), VmError> {
        let signals = Signals::take_over()?;
        vcpu::install_kick_handler()?;
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(VmError::EventFd)?;
        let wake = Arc::new(wake);
        let (controller, commands) = control::connect(Arc::clone(&wake))?;
        let start = StartTimes::default();
        let confinement = Confinement::default();
        Ok((Self { options, clock, start, confinement, signals, wake, commands }, controller))
    }

    /// Counts the metrics of the start from these times on.
    #[must_use]
    pub fn with_start_times(mut self, start: StartTimes) -> Self {
        self.start = start;
        self
    }

    /// Confines the process like this. By default no layer is left out, and commands may name no files.
    #[must_use]
    pub fn with_confinement(mut self, confinement: Confinement) -> Self {
        self.confinement = confinement;
        self
    }

    /// Runs the VM of `config`, or the one that comes with a command, to its end. Whatever happens, the last line of the
    /// log is an `end`, and controllers are told.
    pub fn run(self, config: Option<&VmConfig>) -> Result<EndReason, VmError> {
        let (clock, shared) = (self.clock, Arc::clone(&self.commands.shared));
        shared.metrics.api.process_startup_time_us.set(self.start.elapsed_us(clock));
        shared.metrics.api.process_startup_time_cpu_us.set(self.start.cpu_us());
        let mut line = serial::Counters::default();
        let result = self.run_to_end(config, &mut line);
        let (reason, error) = match &result {
            Ok(reason) => (*reason, None),
            Err(error) => (EndReason::Error, Some(error)),
        };
        if let Some(VmError::Guest(fault)) = error {
            Event::Registers(fault.registers.clone()).emit();
        }
        Event::End {
            reason,
            error: error.map(|e| e.code().to_owned()),
            text: error.map(ToString::to_string),
            run_us: clock.elapsed_us(),
            serial_out: line.passed,
            serial_lost: line.lost,
        }
        .emit();
        shared.set_state(VmState::Ended);
        result
    }

    fn run_to_end(self, config: Option<&VmConfig>, line: &mut serial::Counters) -> Result<EndReason, VmError> {
        let running = if let Some(config) = config {
            Some(self.start(config)?)
        } else {
            self.restrict_waiting()?;
            self.wait_for_start()?
        };
        let Some(mut running) = running else {
            return Ok(EndReason::Killed);
        };
        let result = running.run();
        *line = running.end();
        result
    }

    /// Lets the VM of `config` run. Nothing of its kernel is looked at before the process is restricted.
    fn start(self, config: &VmConfig) -> Result<Running, VmError> {
        let groundwork = Groundwork::begin().map_err(VmError::Thread)?;
        let opened = self.open(config)?;
        let metrics = open_metrics(config.metrics.as_ref())?;
        let early = self.restrict_opened(config)?;
        let machine = self.put_together(config, opened, groundwork)?;
        let mut running = self.confine(machine, metrics, Some(early))?;
        running.resume();
        Ok(running)
    }

    /// Takes commands until one makes a VM; `None` when a signal came first.
    fn wait_for_start(self) -> Result<Option<Running>, VmError> {
        loop {
            while let Some(command) = self.commands.take() {
                match command {
                    Command::Start(config, reply) => {
                        let opened = |machine| Ok((machine, open_metrics(config.metrics.as_ref())?));
                        match self.build(&config).and_then(opened) {
                            Ok(made) => return self.confine_and_answer(made, true, reply, ()).map(Some),
                            Err(error) => reply.send(Err(error.into())),
                        }
                    }
                    Command::LoadSnapshot { files, request, metrics, reply } => {
                        let opened = |loaded| Ok((loaded, open_metrics(metrics.as_ref())?));
                        match self.load(&files, &request).and_then(opened) {
                            Ok(((machine, config), metrics)) => {
                                let made = (machine, metrics);
                                let answer = (config, files.memory.file());
                                return self.confine_and_answer(made, request.resume_vm, reply, answer).map(Some);
                            }
                            Err(error) => reply.send(Err(error.into())),
                        }
                    }
                    command => refuse_early(command),
                }
            }
            let mut set = [self.signals.as_fd(), borrow(&*self.wake)].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut set, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(source) => return Err(VmError::Poll(source)),
            }
            let _ = self.wake.read();
            if self.signals.take() {
                return Ok(None);
            }
        }
    }

    /// Goes on with a VM that a command has made, and gives that its answer.
    fn confine_and_answer<T>(
        self,
        (machine, metrics): (Machine, Option<Output>),
        run: bool,
        reply: Reply<T>,
        answer: T,
    ) -> Result<Running, VmError> {
        match self.confine(machine, metrics, None) {
            Ok(mut running) => {
                if run {
                    running.resume();
                } else {
                    running.set_state(VmState::Paused);
                }
                reply.send(Ok(answer));
                Ok(running)
            }
            Err(error) => {
                // Half confined there is no way back: the process ends.
                reply.send(Err(ControlError::Failed(error.to_string())));
                Err(error)
            }
        }
    }

    /// Opens what the configuration names and puts the VM together. It can be dropped again without a trace.
    fn build(&self, config: &VmConfig) -> Result<Machine, VmError> {
        let opened = self.open(config)?;
        self.put_together(config, opened, Groundwork::begin().map_err(VmError::Thread)?)
    }

    /// Opens what the configuration names, and looks into none of it.
    fn open(&self, config: &VmConfig) -> Result<Opened, VmError> {
        self.announce(config);
        config.check()?;
        let files = BootFiles::open(config)?;
        let outlet = Outlet::open(config.serial.as_ref())?;
        let virtio = devices::virtio(config, &self.options.metadata)?;
        Ok(Opened { files, outlet, virtio })
    }

    fn put_together(&self, config: &VmConfig, opened: Opened, groundwork: Groundwork) -> Result<Machine, VmError> {
        let Opened { files, outlet, virtio } = opened;
        let (boot_timer, wake) = (self.options.boot_timer, Arc::clone(&self.wake));
        let mut machine = Machine::boot(groundwork, config, files, virtio, boot_timer, wake)?;
        machine.outlet = outlet;
        Ok(machine)
    }

    /// Puts the VM of a snapshot together. It can be dropped again without a trace.
    fn load(&self, files: &Loading, request: &SnapshotLoad) -> Result<(Machine, Box<VmConfig>), VmError> {
        let begin = Instant::now();
        let state = snapshot::read(&files.state)?;
        let config = state.config(request)?;
        self.announce(&config);
        let outlet = Outlet::open(config.serial.as_ref())?;
        let virtio = devices::virtio(&config, &self.options.metadata)?;
        let options = Restore { boot_timer: self.options.boot_timer, clock_realtime: request.clock_realtime };
        let (ram, handler) = match &files.memory {
            MemorySource::File(file) => (memory::map(state.mem_mib, file)?, None),
            MemorySource::Handler(path) => {
                let (ram, handler, end) = memory::map_handed_out(state.mem_mib, path)?;
                // Before anything touches it.
                (ram, Some((handler, self.watch(end)?)))
            }
        };
        let mut machine = Machine::restore(&state, &config, ram, virtio, options, Arc::clone(&self.wake))?;
        machine.handler = handler;
        self.commands.shared.metrics.latencies.load_snapshot.set_since(begin);
        machine.outlet = outlet;
        Ok((machine, Box::new(config)))
    }

    /// Lets a thread watch for the end of the process that hands out pages, and for signals.
    fn watch(&self, handler: HandlerEnd) -> Result<Watch, VmError> {
        let shared = Arc::clone(&self.commands.shared);
        let rung = [self.wake.as_raw_fd(), shared.ended_descriptor(), log::descriptor(), libc::STDERR_FILENO];
        let known = Descriptors { rung: rung.to_vec(), ..Descriptors::default() };
        let filter = self.filter(ThreadKind::Watch, &[], &known)?;
        let signals = self.signals.as_fd().try_clone_to_owned().map_err(VmError::EventFd)?;
        Watch::start(Watched { handler, signals, shared, clock: self.clock }, filter)
    }

    fn announce(&self, config: &VmConfig) {
        Event::Start {
            id: self.options.id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            vcpus: config.machine_config.vcpu_count,
            mem_mib: config.machine_config.mem_size_mib,
        }
        .emit();
    }

    /// Gives up what the process does not need to run the VM. The vCPUs stand still.
    fn confine(self, mut machine: Machine, metrics: Option<Output>, early: Option<Early>) -> Result<Running, VmError> {
        let console = Console::open(std::mem::take(&mut machine.outlet));
        let known = self.known(&machine, &console, metrics.as_ref());
        let (messages, inbox) = channel();
        let report = Report { messages: messages.clone(), wake: Arc::clone(&self.wake) };
        let context = VcpuContext {
            ports: Arc::clone(&machine.ports),
            mmio: Arc::clone(&machine.mmio),
            clock: self.clock,
            messages,
            wake: Arc::clone(&self.wake),
            filter: self.filter(ThreadKind::Vcpu, &[], &known)?.map(Arc::new),
        };
        let fixed = [self.signals.as_fd().as_raw_fd(), self.wake.as_raw_fd()];
        for fd in fixed.into_iter().chain(console.input()) {
            match machine.devices.hear_of(fd) {
                // A file is always ready, which `poll` says until its end.
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
                result => result.map_err(VmError::Devices)?,
            }
        }
        let early = self.restrict_running(early, &machine)?;
        machine.devices.settle();
        let vcpus = std::mem::take(&mut machine.vcpus);
        let mut threads = Threads::start(u8::try_from(vcpus.len()).unwrap_or(u8::MAX), &context)?;
        let queues = machine.devices.take_threads();
        let others = queues.len();
        let started =
            queue_thread::start(queues, &report, self.is_filtered().then_some(&known)).map_err(VmError::Thread);
        // The threads' clones are the only senders left: when all have ended, the inbox says so.
        drop((context, report));
        // At the same time as those threads.
        let confined = started.and_then(|()| {
            let filter = self.filter(ThreadKind::Main, &machine.devices.system_calls(), &known)?;
            filter.map_or(Ok(()), |filter| seccomp::install(ThreadKind::Main, &filter))?;
            Ok(threads.wait_confined(others, &inbox)?)
        });
        if let Err(error) = confined {
            machine.devices.end();
            threads.stop(Some(vcpus));
            return Err(error);
        }
        self.say_confined(&early);
        Ok(Running {
            calm: false,
            machine,
            threads,
            paused: Some(vcpus),
            console,
            signals: self.signals,
            wake: self.wake,
            inbox,
            commands: self.commands,
            metrics,
            metadata: self.options.metadata,
            omitted: self.confinement.omitted,
            metrics_due: Instant::now() + METRICS_INTERVAL,
            began: Some(self.clock),
        })
    }
}

/// What a configuration names, open.
struct Opened {
    files: BootFiles,
    outlet: Outlet,
    virtio: Vec<Box<dyn VirtioDevice>>,
}

/// Opens where metrics go.
fn open_metrics(config: Option<&MetricsConfig>) -> Result<Option<Output>, VmError> {
    let open = |config: &MetricsConfig| {
        let path = config.metrics_path.clone();
        config.open().map(Output::new).map_err(|source| VmError::Metrics { path, source })
    };
    config.map(open).transpose()
}

/// Answers a command that needs a VM, before there is one.
fn refuse_early(command: Command) {
    match command {
        Command::Device(work) => work(None),
        Command::LoadSnapshot { reply, .. } => reply.send(Err(ControlError::NotStarted)),
        Command::CreateSnapshot { reply, .. } => reply.send(Err(ControlError::NotStarted)),
        Command::Start(_, reply)
        | Command::Pause(reply)
        | Command::Resume(reply)
        | Command::SendCtrlAltDel(reply)
        | Command::FlushMetrics(reply) => reply.send(Err(ControlError::NotStarted)),
    }
}

/// The descriptor of something that outlives the borrow, for [`poll`].
fn borrow(of: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: `of` owns the descriptor and lives as long as this borrow.
    unsafe { BorrowedFd::borrow_raw(of.as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DriveConfig;
    use crate::mmds::Mmds;

    #[test]
    fn a_configuration_that_nobody_has_checked_is_checked() {
        let options = Options { id: "x".to_owned(), boot_timer: false, metadata: Mmds::new(100).into_shared() };
        let (supervisor, _controller) = Supervisor::new(options, Clock::start()).unwrap();
        let drives = |count: usize| {
            let drive = |i: usize| DriveConfig::new(format!("d{i}"), "/absent");
            (0..count).map(drive).fold(VmConfig::new("/absent"), VmConfig::with_drive)
        };
        // As many as there are places come as far as the kernel.
        assert!(matches!(supervisor.build(&drives(16)), Err(VmError::Boot(_))));
        let error = supervisor.build(&drives(17)).err().unwrap();
        assert!(matches!(error, VmError::Config(_)), "{error}");
        assert_eq!((error.code(), error.exit_code()), ("configuration", 2));
    }
}
