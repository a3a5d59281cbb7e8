//! When a VM's process gives up what, and which descriptors its filters know.

use std::os::fd::{AsFd, AsRawFd};

use seccompiler::BpfProgram;

use super::machine::Machine;
use super::{Supervisor, VmError};
use crate::config::VmConfig;
use crate::console::Console;
use crate::jail::seccomp::{self, Call, Descriptors, ThreadKind};
use crate::jail::{self, Confined, JailError, Layer, Omitted, Reach, User};
use crate::log::{self, Event};
use crate::metrics::Output;
use crate::snapshot;

/// How a process is confined.
#[derive(Clone, Debug, Default)]
pub struct Confinement {
    /// Layers that are left out: none, unless each is named.
    pub omitted: Omitted,
    /// What requests of the API may name. The main thread opens no other files once it takes commands.
    pub reach: Reach,
}

/// What was given up early, before anything of a tenant's was looked at.
#[derive(Clone, Debug)]
pub(super) struct Early {
    confined: Confined,
    user: User,
}

impl Supervisor {
    /// Before a configuration's kernel is looked at, once all that it names is open.
    pub(super) fn restrict_opened(&self, config: &VmConfig) -> Result<Early, JailError> {
        let omitted = self.confinement.omitted;
        let needed = match () {
            () if self.confinement.reach.socket.is_some() => Some("the API's thread opens files as this user"),
            () if config.vsock.is_some() => Some("its vsock connects to sockets as this user"),
            () => None,
        };
        let user = jail::give_up_root(omitted, needed);
        let confined = jail::restrict_process(omitted)?;
        self.filter_building()?;
        Ok(Early { confined, user })
    }

    /// Before commands are taken, which name files.
    pub(super) fn restrict_waiting(&self) -> Result<(), JailError> {
        jail::restrict_building(self.confinement.omitted, &self.confinement.reach)?;
        self.filter_building()
    }

    fn filter_building(&self) -> Result<(), JailError> {
        let filter = self.filter(ThreadKind::Building, &[], &Descriptors::default())?;
        filter.map_or(Ok(()), |filter| seccomp::install(ThreadKind::Building, &filter))?;
        self.commands.shared.set_restricted();
        Ok(())
    }

    /// Whether there are system-call filters.
    pub(super) fn is_filtered(&self) -> bool {
        !self.confinement.omitted.contains(Layer::Seccomp)
    }

    /// A filter, unless they are left out.
    pub(super) fn filter(
        &self,
        kind: ThreadKind,
        devices: &[Call],
        known: &Descriptors,
    ) -> Result<Option<BpfProgram>, JailError> {
        self.is_filtered().then(|| seccomp::compile(kind, devices, known)).transpose()
    }

    /// From here on there are no files to be opened and nothing more to be gained.
    pub(super) fn restrict_running(&self, early: Option<Early>, machine: &Machine) -> Result<Early, VmError> {
        // A file grows to what the largest disk is, or what a snapshot's memory takes.
        let memory = machine.memory_bytes();
        let disks = machine.devices.slots().iter().map(|slot| slot.largest_file()).max();
        jail::limit_files(disks.unwrap_or(0).max(memory).max(snapshot::MAX_FILE))?;
        jail::limit_memory(memory)?;
        if let Some(early) = early {
            return Ok(early);
        }
        let omitted = self.confinement.omitted;
        let user = jail::give_up_root(omitted, Some("the API's thread opens files as this user"));
        Ok(Early { confined: jail::restrict_process(omitted)?, user })
    }

    /// The descriptors of a VM that is about to run.
    pub(super) fn known(&self, machine: &Machine, console: &Console, metrics: Option<&Output>) -> Descriptors {
        let wake = self.wake.as_raw_fd();
        let counters = machine.devices.counters();
        let input = console.input();
        Descriptors {
            vm: vec![machine.vm_descriptor()],
            vcpus: machine.vcpus.iter().map(AsRawFd::as_raw_fd).collect(),
            rung: [counters.as_slice(), &[wake, log::descriptor(), libc::STDERR_FILENO]].concat(),
            read: [self.signals.as_fd().as_raw_fd(), wake].into_iter().chain(input).collect(),
            written: console
                .output()
                .into_iter()
                .chain(metrics.map(AsRawFd::as_raw_fd))
                .chain([self.commands.shared.ended_descriptor()])
                .chain(machine.handler.as_ref().map(|(_, watch)| watch.descriptor()))
                .collect(),
            watched: machine.devices.watched(),
            events: vec![machine.devices.as_raw_fd()],
            terminal: vec![libc::STDIN_FILENO],
        }
    }

    /// Says what was given up, and warns of what was not.
    pub(super) fn say_confined(&self, early: &Early) {
        let omitted = self.confinement.omitted;
        for layer in omitted.layers() {
            tracing::warn!("the VM is not confined by {layer}: --unconfined {layer} is for development only");
        }
        let user = match &early.user {
            User::Root(reason) => format!("root: {reason}"),
            other => other.as_str().to_owned(),
        };
        Event::Confined {
            seccomp: self.is_filtered(),
            landlock: early.confined.landlock.map_or("none", jail::landlock::Enforced::as_str).to_owned(),
            no_new_privs: true,
            capabilities: early.confined.capabilities,
            user,
        }
        .emit();
    }
}
