//! One VM: put together, confined, run, ended.

mod clock;
mod end;
mod kvm;
mod machine;
mod panic;
mod signals;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

pub use clock::Clock;
pub use end::VmError;
pub use kvm::KvmError;
pub use panic::abort_on_panic;

use crate::boot::BootFiles;
use crate::config::VmConfig;
use crate::console::Console;
use crate::devices::{self, boot_timer, serial};
use crate::jail::{self, seccomp, seccomp::ThreadKind};
use crate::log::{EndReason, Event};
use crate::vcpu::{self, Message, Threads, VcpuContext};
use machine::Machine;
use signals::Signals;

/// Descriptors that the main thread always waits for: signals, its own event counter, the devices.
const FIXED: usize = 3;

/// What stands beside the configuration on the command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// The VM's name, for the log.
    pub id: String,
    /// Whether the guest has a boot timer.
    pub boot_timer: bool,
}

/// Runs the VM of `config` to its end. Whatever happens, the last line of the log is an `end`.
///
/// To be called once in a process: it confines the process for good.
pub fn run(config: &VmConfig, options: &Options, clock: Clock) -> Result<EndReason, VmError> {
    let mut line = serial::Counters::default();
    let result = run_to_end(config, options, clock, &mut line);
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
    result
}

fn run_to_end(
    config: &VmConfig,
    options: &Options,
    clock: Clock,
    line: &mut serial::Counters,
) -> Result<EndReason, VmError> {
    // First of all, so that a signal during the start waits until it can be answered, and threads inherit it.
    let signals = Signals::take_over()?;
    vcpu::install_kick_handler()?;
    Event::Start {
        id: options.id.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        vcpus: config.machine_config.vcpu_count,
        mem_mib: config.machine_config.mem_size_mib,
    }
    .emit();
    let files = BootFiles::open(config)?;
    let virtio = devices::virtio(config)?;
    let mut machine = Machine::build(config, files, virtio, options.boot_timer)?;
    let (messages, inbox) = channel();
    let context = VcpuContext {
        ports: Arc::clone(&machine.ports),
        mmio: Arc::clone(&machine.mmio),
        clock,
        messages,
        wake: Arc::clone(&machine.wake),
        filter: Arc::new(seccomp::compile(ThreadKind::Vcpu, &[])?),
    };
    let main_filter = seccomp::compile(ThreadKind::Main, &machine.devices.system_calls())?;
    let console = Console::open();
    // From here on there are no files to be opened and nothing more to be gained.
    let landlock = jail::restrict_process()?;
    let mut threads = Threads::start(std::mem::take(&mut machine.vcpus), &context)?;
    // The threads' clones are the only senders left: when all have ended, the inbox says so.
    drop(context);
    let confined = threads.wait_confined(&inbox).and_then(|()| seccomp::install(ThreadKind::Main, &main_filter));
    if let Err(error) = confined {
        threads.stop();
        return Err(error.into());
    }
    Event::Confined { seccomp: true, landlock: landlock.as_str().to_owned(), no_new_privs: true }.emit();
    let mut running = Running { machine, threads, console, signals, inbox };
    let result = running.run(clock);
    *line = running.end();
    result
}

/// A VM whose vCPUs may run, on the main thread.
struct Running {
    machine: Machine,
    threads: Threads,
    console: Console,
    signals: Signals,
    inbox: Receiver<Message>,
}

impl Running {
    fn run(&mut self, clock: Clock) -> Result<EndReason, VmError> {
        Event::Running { setup_us: clock.elapsed_us() }.emit();
        self.threads.run();
        loop {
            if let Some(result) = self.wait_and_serve()? {
                return result;
            }
        }
    }

    /// Waits for anything to happen and serves it; gives how the VM ended, once it has.
    fn wait_and_serve(&mut self) -> Result<Option<Result<EndReason, VmError>>, VmError> {
        let serial = Arc::clone(&self.machine.serial);
        let console = self.console.poll_set(&serial);
        let timeout = self.console.wait_ms(&serial).filter(|ms| *ms > 0).map_or(PollTimeout::NONE, PollTimeout::from);
        // SAFETY: the eventfd lives as long as the machine, longer than this borrow.
        let wake = unsafe { BorrowedFd::borrow_raw(self.machine.wake.as_raw_fd()) };
        // SAFETY: as above.
        let devices = unsafe { BorrowedFd::borrow_raw(self.machine.devices.as_raw_fd()) };
        let mut set = Vec::with_capacity(FIXED + console.len());
        set.extend([self.signals.as_fd(), wake, devices].map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        set.extend(console);
        match poll(&mut set, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(None),
            Err(source) => return Err(VmError::Poll(source)),
        }
        let ready = |entry: Option<&PollFd<'_>>| entry.and_then(PollFd::any).unwrap_or(false);
        let (signalled, woken, devices) = (ready(set.first()), ready(set.get(1)), ready(set.get(2)));
        if woken {
            // Reading sets the counter back; the queues say what it was about.
            let _ = self.machine.wake.read();
        }
        self.console.serve(&serial, set.get(FIXED..).unwrap_or_default());
        if devices {
            self.machine.devices.serve().map_err(VmError::Devices)?;
        }
        if let Some(result) = self.take_messages() {
            return Ok(Some(result));
        }
        Ok((signalled && self.signals.take()).then_some(Ok(EndReason::Killed)))
    }

    fn take_messages(&mut self) -> Option<Result<EndReason, VmError>> {
        while let Ok(message) = self.inbox.try_recv() {
            match message {
                Message::Mark(mark) if boot_timer::is_boot(mark.source, mark.value) => Event::GuestBoot(mark).emit(),
                Message::Mark(mark) => Event::GuestMark(mark).emit(),
                Message::Ended(reason) => return Some(Ok(reason)),
                Message::Fault(fault) => return Some(Err(VmError::Guest(fault))),
                Message::Confined(_) => {}
            }
        }
        None
    }

    /// Stops the vCPUs and passes on what the guest last wrote.
    fn end(mut self) -> serial::Counters {
        let stopped = self.threads.stop();
        self.console.finish(&self.machine.serial);
        let line = self.machine.serial.counters();
        if !stopped {
            // A vCPU may still touch guest memory: leave it mapped until the process ends, which is now.
            tracing::warn!("vCPU threads did not stop in time");
            std::mem::forget(self.machine);
        }
        line
    }
}
