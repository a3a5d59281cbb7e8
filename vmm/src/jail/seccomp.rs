//! System-call filters: an allow list for each kind of thread, and death of the process for everything else.
//!
//! docs/ISOLATION.md has the list, and the reason for each call in it.

mod calls;
mod program;

use std::os::fd::RawFd;

use seccompiler::BpfProgram;

use self::program::Condition;
use super::JailError;

/// What a thread does, and so what it may ask of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs a vCPU.
    Vcpu,
    /// Waits for events, moves the console's bytes, writes the log, ends the VM.
    Main,
    /// Serves one queue of a device: waits for it, and for the host.
    Queue,
    /// Watches the process that hands out the guest's pages, and touches none of them.
    Watch,
    /// Serves the API: takes connections, opens files and hands them on.
    Api,
    /// Builds a VM: the main thread before it is of the kind above, under whose filter it comes then.
    Building,
}

/// A system call that a device needs on the thread that serves it, beside what every VM needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    number: i64,
    /// Indices and values of the arguments (32 bits) that it is allowed with; any, if there are none.
    arguments: [Option<(u8, u32)>; 2],
    /// Only where the first argument is a descriptor that the event loop watches from the start.
    watched: bool,
}

impl Call {
    /// With any arguments.
    pub const fn any(number: i64) -> Self {
        Self { number, arguments: [None; 2], watched: false }
    }

    /// Only where the 32-bit argument `index`, counted from 0, is `value`.
    pub const fn with(number: i64, index: u8, value: u32) -> Self {
        Self { number, arguments: [Some((index, value)), None], watched: false }
    }

    /// Only where these two arguments are as said.
    pub const fn with_both(number: i64, first: (u8, u32), second: (u8, u32)) -> Self {
        Self { number, arguments: [Some(first), Some(second)], watched: false }
    }

    /// And only on a descriptor that the event loop watches from the start
    /// ([`VirtioDevice::sources`](crate::virtio::VirtioDevice::sources)), as the first argument.
    #[must_use]
    pub const fn on_watched(mut self) -> Self {
        self.watched = true;
        self
    }

    fn conditions(&self, known: &Descriptors) -> program::Together {
        let given = self.arguments.iter().flatten();
        let given = given.map(|(index, value)| Condition::one_of(*index, &[*value]));
        given.chain(self.watched.then(|| Condition::one_of(0, &numbers(&known.watched)))).collect()
    }
}

/// The descriptors that are known when a filter is made: calls that take one take none but these. Empty lists allow none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Descriptors {
    /// The VM: devices' interrupts, its clock.
    pub vm: Vec<RawFd>,
    /// Its vCPUs.
    pub vcpus: Vec<RawFd>,
    /// Event counters that a vCPU rings, the log, standard error.
    pub rung: Vec<RawFd>,
    /// What the main thread reads: signals, counters, timers, input.
    pub read: Vec<RawFd>,
    /// What only the main thread writes to: serial line, metrics.
    pub written: Vec<RawFd>,
    /// What the event loop watches for the devices, but for what they open later.
    pub watched: Vec<RawFd>,
    /// The thread's event loop.
    pub events: Vec<RawFd>,
    /// The terminal that may have to be put back.
    pub terminal: Vec<RawFd>,
}

/// Descriptors as the filters compare them. Open ones are not negative.
fn numbers(descriptors: &[RawFd]) -> Vec<u32> {
    let mut numbers: Vec<u32> = descriptors.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// Makes the filter of `kind`, with what `devices` need beside, for these descriptors.
pub fn compile(kind: ThreadKind, devices: &[Call], descriptors: &Descriptors) -> Result<BpfProgram, JailError> {
    program::assemble(&calls::rules(kind, devices, descriptors)).ok_or(JailError::Filter { kind })
}

/// Installs a filter on the calling thread. There is no way back.
pub fn install(kind: ThreadKind, program: &BpfProgram) -> Result<(), JailError> {
    seccompiler::apply_filter(program).map_err(|e| JailError::Install { kind, reason: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::calls::number;
    use super::*;

    fn rules(kind: ThreadKind, devices: &[Call]) -> program::Rules {
        calls::rules(kind, devices, &Descriptors::default())
    }

    #[test]
    fn more_descriptors_than_one_comparison_takes_are_all_known() {
        // 16 disks of 16 queues each have 272.
        let known = Descriptors { rung: (3..1003).collect(), ..Descriptors::default() };
        for kind in [ThreadKind::Vcpu, ThreadKind::Main, ThreadKind::Queue] {
            compile(kind, &[], &known).unwrap();
            let write = &calls::rules(kind, &[], &known)[&number(libc::SYS_write)];
            assert_eq!(write.len(), 5, "lists of 200");
        }
        // Without any, none is allowed, and not all: there is a list.
        assert_eq!(rules(ThreadKind::Vcpu, &[])[&number(libc::SYS_write)].len(), 1);
    }

    #[test]
    fn nothing_that_opens_files_makes_processes_or_sockets_is_allowed() {
        for kind in [ThreadKind::Vcpu, ThreadKind::Main, ThreadKind::Queue, ThreadKind::Watch, ThreadKind::Api] {
            let rules = rules(kind, &[]);
            // Only the API's thread opens files and takes connections.
            let api = kind == ThreadKind::Api;
            assert_eq!(
                rules.contains_key(&number(libc::SYS_openat)) && rules.contains_key(&number(libc::SYS_accept4)),
                api
            );
            assert!(!api || !rules.contains_key(&number(libc::SYS_ioctl)));
            for call in [
                libc::SYS_open,
                libc::SYS_execve,
                libc::SYS_execveat,
                libc::SYS_clone,
                libc::SYS_clone3,
                libc::SYS_fork,
                libc::SYS_socket,
                libc::SYS_connect,
                libc::SYS_ptrace,
                libc::SYS_process_vm_readv,
                libc::SYS_memfd_create,
                libc::SYS_kill,
                libc::SYS_prctl,
                libc::SYS_bpf,
                libc::SYS_io_uring_setup,
                libc::SYS_userfaultfd,
            ] {
                assert!(!rules.contains_key(&number(call)), "{kind:?} {call}");
            }
        }
    }

    #[test]
    fn a_device_adds_what_it_needs_and_takes_nothing_away() {
        let count = |calls: &[Call], call| rules(ThreadKind::Main, calls).get(&number(call)).map(Vec::len);
        let [narrow, other] = [1, 2].map(|value| Call::with(libc::SYS_socket, 0, value));
        assert_eq!(count(&[], libc::SYS_socket), None);
        assert_eq!(count(&[narrow, other], libc::SYS_socket), Some(2));
        // Zero rules: any arguments.
        assert_eq!(count(&[narrow, Call::any(libc::SYS_socket), other], libc::SYS_socket), Some(0));
        assert_eq!(count(&[Call::with(libc::SYS_close, 0, 1)], libc::SYS_close), Some(0));
        let terminal = count(&[], libc::SYS_ioctl).unwrap();
        assert_eq!(count(&[Call::with(libc::SYS_ioctl, 1, 7)], libc::SYS_ioctl), Some(terminal + 1));
        let both = rules(ThreadKind::Main, &[Call::with_both(libc::SYS_socket, (0, 1), (1, 2))]);
        assert_eq!(both.get(&number(libc::SYS_socket)).unwrap()[0].len(), 2);
    }
}
