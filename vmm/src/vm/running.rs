//! The main thread while there is a VM.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kvm_ioctls::VcpuFd;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::EventFd;

use super::control::{Command, Commands, ControlError, VmState};
use super::machine::Machine;
use super::signals::Signals;
use super::{Clock, VmError, borrow};
use crate::config::VmConfig;
use crate::console::Console;
use crate::devices::{boot_timer, serial};
use crate::jail::Omitted;
use crate::log::{self, EndReason, Event};
use crate::metrics::{self, Output};
use crate::mmds::{self, SharedMmds};
use crate::snapshot::Saved;
use crate::vcpu::{Message, Threads};
use crate::virtio::Heard;

/// Descriptors that the main thread always waits for: signals, its own event counter, the devices.
const FIXED: usize = 3;
/// Between two lines of metrics that nobody asked for.
pub(super) const METRICS_INTERVAL: Duration = Duration::from_mins(1);

/// How long the host may take for a piece of a request to a disk until a pause fails.
const QUEUE_LIMIT: Duration = Duration::from_secs(2);
/// The same at the VM's end, which does not wait longer.
const END_LIMIT: Duration = Duration::from_millis(50);

/// How a VM ended, once it has.
type End = Result<EndReason, VmError>;

/// A confined VM.
pub(super) struct Running {
    pub(super) machine: Machine,
    pub(super) threads: Threads,
    /// The vCPUs, while they stand still.
    pub(super) paused: Option<Vec<VcpuFd>>,
    pub(super) console: Console,
    pub(super) signals: Signals,
    pub(super) wake: Arc<EventFd>,
    pub(super) inbox: Receiver<Message>,
    pub(super) commands: Commands,
    pub(super) metrics: Option<Output>,
    /// What the metadata service gives.
    pub(super) metadata: SharedMmds,
    /// Layers of the confinement that are left out.
    pub(super) omitted: Omitted,
    /// When metrics are due, whether anybody asks or not.
    pub(super) metrics_due: Instant,
    /// Whether `poll` has found nothing to do beside the devices' work, so that their event loop will tell of whatever
    /// comes. It does not tell of input from files, nor of a reader that takes output again.
    pub(super) calm: bool,
    /// When the process began, until the vCPUs run for the first time.
    pub(super) began: Option<Clock>,
}

impl Running {
    /// Serves the VM until it ends.
    pub(super) fn run(&mut self) -> End {
        loop {
            if let Some(end) = self.wait_and_serve()? {
                return end;
            }
        }
    }

    /// Waits for anything to happen and serves it; gives how the VM ended, once it has.
    fn wait_and_serve(&mut self) -> Result<Option<End>, VmError> {
        let timeout = self.timeout();
        let serial = Arc::clone(&self.machine.fixed.serial);
        if self.calm && self.paused.is_none() && !self.console.wants_output(&serial) {
            let heard = self.machine.devices.wait(timeout.map_or(-1, i32::from)).map_err(VmError::Devices)?;
            return if heard == Heard::Device { Ok(None) } else { self.look_around(Some(0)) };
        }
        self.look_around(timeout)
    }

    /// Waits for what is not only the devices', so many milliseconds at most, and serves it.
    fn look_around(&mut self, timeout: Option<u16>) -> Result<Option<End>, VmError> {
        let runs = self.paused.is_none();
        let serial = Arc::clone(&self.machine.fixed.serial);
        let console = self.console.poll_set(&serial);
        // Devices stand still with the vCPUs: what is in their queues and descriptors stays there.
        let devices = if runs { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut set = Vec::with_capacity(FIXED + console.len());
        set.extend([self.signals.as_fd(), borrow(&*self.wake)].map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        set.push(PollFd::new(borrow(&self.machine.devices), devices));
        set.extend(console);
        match poll(&mut set, timeout.map_or(PollTimeout::NONE, PollTimeout::from)) {
            Ok(_) => {}
            Err(Errno::EINTR) => {
                // What the event loop has told of was not looked at.
                self.calm = false;
                return Ok(None);
            }
            Err(source) => return Err(VmError::Poll(source)),
        }
        let ready = |entry: Option<&PollFd<'_>>| entry.and_then(PollFd::any).unwrap_or(false);
        let (signalled, woken, devices) = (ready(set.first()), ready(set.get(1)), ready(set.get(2)));
        let console = set.get(FIXED..).unwrap_or_default();
        self.calm = !signalled && !woken && !console.iter().any(|entry| ready(Some(entry)));
        self.console.serve(&serial, console);
        drop(set);
        if woken {
            // Reading sets the counter back; the queues say what it was about.
            let _ = self.wake.read();
        }
        if devices && runs {
            // What came since the look above is to be looked at before the loop is waited for again.
            self.calm &= !self.machine.devices.serve().map_err(VmError::Devices)?;
        }
        if let Some(end) = self.serve_others() {
            return Ok(Some(end));
        }
        Ok((signalled && self.signals.take()).then_some(Ok(EndReason::Killed)))
    }

    /// What needs no descriptor: metrics that are due, messages of the vCPUs, a command of the API.
    fn serve_others(&mut self) -> Option<End> {
        if self.metrics.is_some() && Instant::now() >= self.metrics_due {
            self.write_metrics();
        }
        if let Some(end) = self.take_messages() {
            return Some(end);
        }
        if self.machine.handler.as_ref().is_some_and(|(_, watch)| watch.has_lost()) {
            return Some(Err(VmError::HandlerEnded));
        }
        if self.paused.is_none() {
            self.threads.give_back_late();
        }
        if let Some(command) = self.commands.take() {
            self.obey(command);
            // One a turn: what happens meanwhile is seen before the next.
            let _ = self.wake.write(1);
        }
        None
    }

    /// Milliseconds to wait at most: until the console may write again, or metrics are due.
    fn timeout(&mut self) -> Option<u16> {
        let console = self.console.pause(&self.machine.fixed.serial);
        let metrics = self.metrics.as_ref().map(|_| self.metrics_due.saturating_duration_since(Instant::now()));
        let shortest = console.into_iter().chain(metrics).min();
        // Rounded up, so that the time has come when the wait is over.
        shortest.map(|wait| u16::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u16::MAX))
    }

    /// Writes a line of metrics, if they go anywhere. An error loses this line; the next may go.
    fn flush_metrics(&mut self) -> std::io::Result<()> {
        self.metrics_due = Instant::now() + METRICS_INTERVAL;
        let Some(mut output) = self.metrics.take() else {
            return Ok(());
        };
        let result = output.write(|| self.metrics_line());
        self.metrics = Some(output);
        let logger = &self.commands.shared.metrics.logger;
        match &result {
            Ok(true) => {}
            Ok(false) => logger.missed_metrics_count.inc(),
            Err(_) => logger.metrics_fails.inc(),
        }
        result.map(drop)
    }

    /// The same where nobody waits for an answer.
    fn write_metrics(&mut self) {
        if let Err(error) = self.flush_metrics() {
            tracing::warn!(%error, "cannot write metrics");
        }
    }

    fn metrics_line(&self) -> Vec<u8> {
        let (fixed, shared) = (&self.machine.fixed, &self.commands.shared.metrics);
        let mut vcpu = self.threads.metrics();
        if let Some(vcpu) = vcpu.as_object_mut() {
            vcpu.insert("kvmclock_ctrl_fails".to_owned(), metrics::group(&shared.kvmclock_ctrl_fails));
        }
        shared.logger.missed_log_count.raise_to(log::missed());
        let own = [
            ("vcpu", vcpu),
            ("logger", metrics::group(&shared.logger)),
            ("deprecated_api", metrics::group(&shared.deprecated)),
            ("uart", metrics::group(fixed.serial.metrics())),
            ("i8042", metrics::group(fixed.keyboard.metrics())),
            ("latencies_us", metrics::group(&shared.latencies)),
            ("mmds", mmds::lock(&self.metadata).metrics()),
            ("unconfined", self.omitted.metrics()),
        ];
        let own = own.into_iter().map(|(name, group)| (name.to_owned(), group));
        let devices = self.machine.devices.slots().iter().flat_map(|slot| slot.metrics());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        metrics::line(own.chain(shared.api.groups()).chain(devices), u64::try_from(now.as_millis()).unwrap_or(0))
    }

    fn take_messages(&mut self) -> Option<End> {
        while let Ok(message) = self.inbox.try_recv() {
            match message {
                Message::Mark(mark) if boot_timer::is_boot(mark.source, mark.value) => Event::GuestBoot(mark).emit(),
                Message::Mark(mark) => Event::GuestMark(mark).emit(),
                Message::Ended(reason) => return Some(Ok(reason)),
                Message::Fault(fault) => return Some(Err(VmError::Guest(fault))),
                Message::QueueThread(source) => return Some(Err(VmError::Devices(source))),
                Message::Confined(_) => {}
            }
        }
        None
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start(_, reply) => reply.send(Err(ControlError::AlreadyStarted)),
            Command::LoadSnapshot { reply, .. } => reply.send(Err(ControlError::AlreadyStarted)),
            Command::CreateSnapshot { config, reply } => reply.send(self.snapshot(*config)),
            Command::Pause(reply) => reply.send(self.pause()),
            Command::Resume(reply) => {
                self.resume();
                reply.send(Ok(()));
            }
            Command::Device(work) => work(Some(&self.machine.devices)),
            Command::SendCtrlAltDel(reply) => {
                let pressed = self.machine.fixed.keyboard.press_ctrl_alt_del();
                reply.send(pressed.map_err(|e| ControlError::Failed(e.to_string())));
            }
            Command::FlushMetrics(reply) => {
                let flushed = self.flush_metrics();
                reply.send(flushed.map_err(|e| ControlError::Failed(format!("cannot write metrics: {e}"))));
            }
        }
    }

    fn snapshot(&self, config: VmConfig) -> Result<Saved, ControlError> {
        let vcpus = self.paused.as_ref().ok_or(ControlError::NotPaused)?;
        Ok(Saved { state: self.machine.save(vcpus, config)?, ram: self.machine.ram().clone() })
    }

    pub(super) fn set_state(&self, state: VmState) {
        self.commands.set_state(state);
    }

    fn pause(&mut self) -> Result<(), ControlError> {
        if self.paused.is_none() {
            let begin = Instant::now();
            let stopped = self.threads.pause();
            let vcpus = stopped.ok_or_else(|| ControlError::Failed("vCPUs did not stop in time".to_owned()))?;
            if let Err(device) = self.machine.devices.pause(QUEUE_LIMIT) {
                self.threads.run(vcpus);
                return Err(ControlError::Failed(format!("the host does not finish a request to {device}")));
            }
            self.paused = Some(vcpus);
            self.set_state(VmState::Paused);
            self.commands.shared.metrics.latencies.pause_vm.set_since(begin);
        }
        Ok(())
    }

    /// Lets vCPUs and devices go on, or begin.
    pub(super) fn resume(&mut self) {
        if let Some(vcpus) = self.paused.take() {
            let begin = Instant::now();
            for vcpu in &vcpus {
                // Tells the guest's watchdogs that it stood still. Refused where the guest does not use KVM's clock, as
                // none does before it began.
                if vcpu.kvmclock_ctrl().is_err() && self.began.is_none() {
                    self.commands.shared.metrics.kvmclock_ctrl_fails.inc();
                }
            }
            self.set_state(VmState::Running);
            // Before they run: what the guest does first must come later in the log.
            if let Some(clock) = self.began.take() {
                Event::Running { setup_us: clock.elapsed_us() }.emit();
            }
            self.machine.devices.resume();
            self.threads.run(vcpus);
            self.commands.shared.metrics.latencies.resume_vm.set_since(begin);
        }
    }

    /// Stops the vCPUs and passes on what the guest last wrote.
    pub(super) fn end(mut self) -> serial::Counters {
        let stopped = self.threads.stop(self.paused.take());
        self.machine.devices.end();
        // A request that the host does not finish is given up with the process: nobody was told that it is done.
        let finished = self.machine.devices.pause(END_LIMIT);
        self.console.finish(&self.machine.fixed.serial);
        match finished {
            Ok(()) if stopped => self.write_metrics(),
            // A vCPU may wait for that device with its lock held: whoever asks for its counters would wait, too.
            Ok(()) => {}
            Err(device) => tracing::warn!(device, "the host does not finish a request"),
        }
        let line = self.machine.fixed.serial.counters();
        // The API's thread may be reading the memory for a snapshot. Were the last descriptor of its page faults closed now,
        // it would find zeros where no page was handed out. The watch goes on to the end of the process, too.
        std::mem::forget(self.machine.handler.take());
        if !stopped {
            // A vCPU may still touch guest memory: leave it mapped until the process ends, which is now.
            tracing::warn!("vCPU threads did not stop in time");
            std::mem::forget(self.machine);
        }
        line
    }
}
