//! System-call filters: an allow list for each kind of thread, and death of the process for everything else.

mod program;

use seccompiler::BpfProgram;

use self::program::{Condition, Rules};
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
    /// Serves the API: takes connections, opens files and hands them on.
    Api,
}

// Requests of ioctl. They are 32-bit numbers, and only those bits are compared, as the kernel does.
const KVM_RUN: u32 = 0xae80;
/// An interrupt of a device.
const KVM_SIGNAL_MSI: u32 = 0x4020_aea5;
const KVM_GET_REGS: u32 = 0x8090_ae81;
const KVM_GET_SREGS: u32 = 0x8138_ae83;
/// `TCGETS` and `TCSETS`: the terminal may have to be restored.
const TERMINAL: [u32; 2] = [0x5401, 0x5402];
/// What reads the state of a VM that stands still: of its vCPUs (`KVM_KVMCLOCK_CTRL`, which tells the guest of the pause,
/// then `KVM_GET_MP_STATE`, `REGS`, `SREGS`, `XSAVE`, `XCRS`, `DEBUGREGS`, `LAPIC`, `MSRS`, `TSC_KHZ`,
/// `VCPU_EVENTS`), and of its clock.
const PAUSED: [u32; 12] = [
    0xaead,
    0x8004_ae98,
    KVM_GET_REGS,
    KVM_GET_SREGS,
    0x9000_aea4,
    0x8188_aea6,
    0x8080_aea1,
    0x8400_ae8e,
    0xc008_ae88,
    0xaea3,
    0x8040_ae9f,
    0x8030_ae7c,
];

/// What every thread needs: memory for the allocator (never executable), locks, time, its own end, and abort.
const COMMON: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_munmap,
    // To say something last, where nobody may be listening.
    libc::SYS_poll,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_write,
];

/// What only the main thread needs beside [`COMMON`].
const MAIN: &[i64] = &[
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_epoll_wait,
    // Snapshots and metrics, on descriptors that were handed over.
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    // The allocator, when something large grows: the state of many vCPUs.
    libc::SYS_mremap,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_pwrite64,
    libc::SYS_read,
];

/// What only the thread of a queue needs beside [`COMMON`] and what its device's work takes.
const QUEUE: &[i64] = &[
    // The file of a disk that was replaced, when the last request to it is done.
    libc::SYS_close,
    libc::SYS_epoll_wait,
];

/// What only the API's thread needs beside [`COMMON`]. It opens files, where its Landlock domain lets it; it connects to
/// nothing and starts nothing.
const API: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_close,
    // The files of snapshots, which are their owner's alone and get their names last.
    libc::SYS_fchmod,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_linkat,
    libc::SYS_lseek,
    // The allocator, when a large body grows.
    libc::SYS_mremap,
    libc::SYS_openat,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_statx,
    libc::SYS_unlink,
];

/// A system call that a device needs on the main thread, beside what every VM needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    number: i64,
    /// Index and value of the argument (32 bits) that it is allowed with; any, if there is none.
    argument: Option<(u8, u32)>,
}

impl Call {
    /// With any arguments.
    pub const fn any(number: i64) -> Self {
        Self { number, argument: None }
    }

    /// Only where the 32-bit argument `index`, counted from 0, is `value`.
    pub const fn with(number: i64, index: u8, value: u32) -> Self {
        Self { number, argument: Some((index, value)) }
    }
}

/// A system call's number as the kernel's filters see it. The C library's are small and not negative.
fn number(call: i64) -> u32 {
    u32::try_from(call).unwrap_or(u32::MAX)
}

fn rules(kind: ThreadKind, devices: &[Call]) -> Rules {
    let mut rules: Rules = COMMON.iter().map(|call| (number(*call), Vec::new())).collect();
    // New memory is never executable: there is nothing to allow it for.
    let not_executable = Condition { index: 2, mask: libc::PROT_EXEC as u32, value: 0 };
    rules.insert(number(libc::SYS_mmap), vec![not_executable]);
    rules.insert(number(libc::SYS_mprotect), vec![not_executable]);
    // Signals go to threads of this process.
    rules.insert(number(libc::SYS_tgkill), vec![Condition::equals(0, std::process::id())]);
    // Rust's standard library looks whether a descriptor is open before it closes it, in builds with debug assertions.
    rules.insert(number(libc::SYS_fcntl), vec![Condition::equals(1, libc::F_GETFD as u32)]);
    let ioctls: &[u32] = match kind {
        ThreadKind::Vcpu => &[KVM_RUN, KVM_GET_REGS, KVM_GET_SREGS, KVM_SIGNAL_MSI],
        ThreadKind::Main => {
            rules.extend(MAIN.iter().map(|call| (number(*call), Vec::new())));
            &[TERMINAL.as_slice(), &PAUSED, &[KVM_SIGNAL_MSI]].concat()
        }
        ThreadKind::Queue => {
            rules.extend(QUEUE.iter().map(|call| (number(*call), Vec::new())));
            &[KVM_SIGNAL_MSI]
        }
        ThreadKind::Api => {
            rules.extend(API.iter().map(|call| (number(*call), Vec::new())));
            &[]
        }
    };
    // No condition would mean any request.
    if !ioctls.is_empty() {
        let requests = ioctls.iter().map(|request| Condition::equals(1, *request));
        rules.insert(number(libc::SYS_ioctl), requests.collect());
    }
    for call in devices {
        match (rules.get_mut(&number(call.number)), call.argument) {
            // No condition means any arguments.
            (_, None) => drop(rules.insert(number(call.number), Vec::new())),
            (Some(allowed), Some(_)) if allowed.is_empty() => {}
            (Some(allowed), Some((index, value))) => allowed.push(Condition::equals(index, value)),
            (None, Some((index, value))) => {
                rules.insert(number(call.number), vec![Condition::equals(index, value)]);
            }
        }
    }
    rules
}

/// Makes the filter of `kind`, with what `devices` need beside.
pub fn compile(kind: ThreadKind, devices: &[Call]) -> Result<BpfProgram, JailError> {
    program::assemble(&rules(kind, devices)).ok_or(JailError::Filter { kind })
}

/// Installs a filter on the calling thread. There is no way back.
pub fn install(kind: ThreadKind, program: &BpfProgram) -> Result<(), JailError> {
    seccompiler::apply_filter(program).map_err(|e| JailError::Install { kind, reason: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_stay_small() {
        for kind in [ThreadKind::Vcpu, ThreadKind::Main, ThreadKind::Queue, ThreadKind::Api] {
            compile(kind, &[]).unwrap();
        }
        // What is measured: distinct system calls a thread. Firecracker's vCPU threads have 27.
        assert!(rules(ThreadKind::Vcpu, &[]).len() <= 21);
        assert!(rules(ThreadKind::Main, &[]).len() <= 31);
        assert!(rules(ThreadKind::Queue, &[]).len() <= 23);
        assert!(rules(ThreadKind::Api, &[]).len() <= 35);
    }

    #[test]
    fn nothing_that_opens_files_makes_processes_or_sockets_is_allowed() {
        for kind in [ThreadKind::Vcpu, ThreadKind::Main, ThreadKind::Queue, ThreadKind::Api] {
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
        assert_eq!(count(&[Call::with(libc::SYS_read, 0, 1)], libc::SYS_read), Some(0));
        let terminal = count(&[], libc::SYS_ioctl).unwrap();
        assert_eq!(count(&[Call::with(libc::SYS_ioctl, 1, 7)], libc::SYS_ioctl), Some(terminal + 1));
    }
}
