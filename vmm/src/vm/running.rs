//! The main thread while there is a VM.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use kvm_ioctls::VcpuFd;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmm_sys_util::eventfd::EventFd;

use super::control::{Command, Commands, ControlError, VmState};
use super::machine::Machine;
use super::signals::Signals;
use super::{VmError, borrow};
use crate::config::VmConfig;
use crate::console::Console;
use crate::devices::{boot_timer, serial};
use crate::log::{EndReason, Event};
use crate::snapshot::{self, Files};
use crate::vcpu::{Message, Threads};

/// Descriptors that the main thread always waits for: signals, its own event counter, the devices.
const FIXED: usize = 3;

/// How a VM ended, once it has.
type End = Result<EndReason, VmError>;

/// A confined VM.
pub(super) struct Running {
    pub(super) config: VmConfig,
    pub(super) machine: Machine,
    pub(super) threads: Threads,
    /// The vCPUs, while they stand still.
    pub(super) paused: Option<Vec<VcpuFd>>,
    pub(super) console: Console,
    pub(super) signals: Signals,
    pub(super) wake: Arc<EventFd>,
    pub(super) inbox: Receiver<Message>,
    pub(super) commands: Commands,
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
        let serial = Arc::clone(&self.machine.fixed.serial);
        let console = self.console.poll_set(&serial);
        let timeout = self.console.wait_ms(&serial).filter(|ms| *ms > 0).map_or(PollTimeout::NONE, PollTimeout::from);
        // Devices stand still with the vCPUs: what is in their queues and descriptors stays there.
        let devices = if self.paused.is_none() { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut set = Vec::with_capacity(FIXED + console.len());
        set.extend([self.signals.as_fd(), borrow(&*self.wake)].map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        set.push(PollFd::new(borrow(&self.machine.devices), devices));
        set.extend(console);
        match poll(&mut set, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(None),
            Err(source) => return Err(VmError::Poll(source)),
        }
        let ready = |entry: Option<&PollFd<'_>>| entry.and_then(PollFd::any).unwrap_or(false);
        let (signalled, woken, devices) = (ready(set.first()), ready(set.get(1)), ready(set.get(2)));
        self.console.serve(&serial, set.get(FIXED..).unwrap_or_default());
        drop(set);
        if woken {
            // Reading sets the counter back; the queues say what it was about.
            let _ = self.wake.read();
        }
        if devices && self.paused.is_none() {
            self.machine.devices.serve().map_err(VmError::Devices)?;
        }
        if let Some(end) = self.take_messages() {
            return Ok(Some(end));
        }
        if let Ok(command) = self.commands.inbox.try_recv() {
            self.obey(command);
            // One a turn: what happens meanwhile is seen before the next.
            let _ = self.wake.write(1);
        }
        Ok((signalled && self.signals.take()).then_some(Ok(EndReason::Killed)))
    }

    fn take_messages(&mut self) -> Option<End> {
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

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start(_, reply) => reply.send(Err(ControlError::AlreadyStarted)),
            Command::LoadSnapshot { reply, .. } => reply.send(Err(ControlError::AlreadyStarted)),
            Command::CreateSnapshot { files, sync, reply } => reply.send(self.snapshot(&files, sync)),
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
            Command::SetMetrics(_, reply) | Command::FlushMetrics(reply) => {
                reply.send(Err(ControlError::Failed("not there yet".to_owned())));
            }
        }
    }

    fn snapshot(&self, files: &Files, sync: bool) -> Result<(), ControlError> {
        let vcpus = self.paused.as_ref().ok_or(ControlError::NotPaused)?;
        let state = self.machine.save(vcpus, &self.config)?;
        Ok(snapshot::write(files, &state, self.machine.ram(), sync).map_err(VmError::from)?)
    }

    pub(super) fn set_state(&self, state: VmState) {
        self.commands.shared.set_state(state);
    }

    fn pause(&mut self) -> Result<(), ControlError> {
        if self.paused.is_none() {
            let stopped = self.threads.pause();
            self.paused = Some(stopped.ok_or_else(|| ControlError::Failed("vCPUs did not stop in time".to_owned()))?);
            self.set_state(VmState::Paused);
        }
        Ok(())
    }

    /// Lets vCPUs and devices go on, or begin.
    pub(super) fn resume(&mut self) {
        if let Some(vcpus) = self.paused.take() {
            for vcpu in &vcpus {
                // Tells the guest's watchdogs that it stood still. Refused where the guest does not use KVM's clock.
                let _ = vcpu.kvmclock_ctrl();
            }
            self.set_state(VmState::Running);
            self.threads.run(vcpus);
        }
    }

    /// Stops the vCPUs and passes on what the guest last wrote.
    pub(super) fn end(mut self) -> serial::Counters {
        let stopped = self.threads.stop(self.paused.take());
        self.console.finish(&self.machine.fixed.serial);
        let line = self.machine.fixed.serial.counters();
        if !stopped {
            // A vCPU may still touch guest memory: leave it mapped until the process ends, which is now.
            tracing::warn!("vCPU threads did not stop in time");
            std::mem::forget(self.machine);
        }
        line
    }
}
