//! System-call filters: an allow list for each kind of thread, and death of the process for everything else.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::JailError;

/// What a thread does, and so what it may ask of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs a vCPU.
    Vcpu,
    /// Waits for events, moves the console's bytes, writes the log, ends the VM.
    Main,
    /// Serves the API: takes connections, opens files and hands them on.
    Api,
}

// Requests of ioctl. They are 32-bit numbers, and only those bits are compared, as the kernel does.
const KVM_RUN: u64 = 0xae80;
/// An edge of a device's interrupt.
const KVM_IRQ_LINE: u64 = 0x4008_ae61;
const KVM_GET_REGS: u64 = 0x8090_ae81;
const KVM_GET_SREGS: u64 = 0x8138_ae83;
/// Used by the terminal, which may have to be restored.
const TERMINAL: [u64; 2] = [libc::TCGETS, libc::TCSETS];
/// What reads the state of a VM that stands still: of its vCPUs (`KVM_KVMCLOCK_CTRL`, which tells the guest of the pause,
/// then `KVM_GET_MP_STATE`, `REGS`, `SREGS`, `XSAVE`, `XCRS`, `DEBUGREGS`, `LAPIC`, `MSRS`, `TSC_KHZ`,
/// `VCPU_EVENTS`), of its interrupt controllers and its clock.
const PAUSED: [u64; 13] = [
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
    0xc208_ae62,
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
    argument: Option<(u8, u64)>,
}

impl Call {
    /// With any arguments.
    pub const fn any(number: i64) -> Self {
        Self { number, argument: None }
    }

    /// Only where the 32-bit argument `index`, counted from 0, is `value`.
    pub const fn with(number: i64, index: u8, value: u64) -> Self {
        Self { number, argument: Some((index, value)) }
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;
type BackendResult<T> = Result<T, seccompiler::BackendError>;

/// The rule that argument `index` (32 bits) compares to `value` by `operator`.
fn argument(index: u8, operator: SeccompCmpOp, value: u64) -> BackendResult<SeccompRule> {
    SeccompRule::new(vec![SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?])
}

fn rules(kind: ThreadKind, devices: &[Call]) -> BackendResult<Rules> {
    let mut rules: Rules = COMMON.iter().map(|call| (*call, Vec::new())).collect();
    // New memory is never executable: there is nothing to allow it for.
    let not_executable = argument(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)?;
    rules.insert(libc::SYS_mmap, vec![not_executable.clone()]);
    rules.insert(libc::SYS_mprotect, vec![not_executable]);
    let process = u64::from(std::process::id());
    let own_threads = argument(0, SeccompCmpOp::Eq, process)?;
    rules.insert(libc::SYS_tgkill, vec![own_threads]);
    // Rust's standard library looks whether a descriptor is open before it closes it, in builds with debug assertions.
    rules.insert(libc::SYS_fcntl, vec![argument(1, SeccompCmpOp::Eq, libc::F_GETFD as u64)?]);
    let ioctls: &[u64] = match kind {
        ThreadKind::Vcpu => &[KVM_RUN, KVM_GET_REGS, KVM_GET_SREGS, KVM_IRQ_LINE],
        ThreadKind::Main => {
            rules.extend(MAIN.iter().map(|call| (*call, Vec::new())));
            &[TERMINAL.as_slice(), &PAUSED, &[KVM_IRQ_LINE]].concat()
        }
        ThreadKind::Api => {
            rules.extend(API.iter().map(|call| (*call, Vec::new())));
            &[]
        }
    };
    let ioctls =
        ioctls.iter().map(|request| argument(1, SeccompCmpOp::Eq, *request)).collect::<BackendResult<Vec<_>>>()?;
    // No rule would mean any request.
    if !ioctls.is_empty() {
        rules.insert(libc::SYS_ioctl, ioctls);
    }
    for call in devices {
        match (rules.get_mut(&call.number), call.argument) {
            // No rule means any arguments.
            (_, None) => drop(rules.insert(call.number, Vec::new())),
            (Some(allowed), Some(_)) if allowed.is_empty() => {}
            (Some(allowed), Some((index, value))) => allowed.push(argument(index, SeccompCmpOp::Eq, value)?),
            (None, Some((index, value))) => {
                rules.insert(call.number, vec![argument(index, SeccompCmpOp::Eq, value)?]);
            }
        }
    }
    Ok(rules)
}

/// Makes the filter of `kind`, with what `devices` need beside.
pub fn compile(kind: ThreadKind, devices: &[Call]) -> Result<BpfProgram, JailError> {
    let compiled = rules(kind, devices).and_then(|rules| {
        SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
    });
    compiled.map_err(|e| JailError::Filter { kind, reason: e.to_string() })
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
        for kind in [ThreadKind::Vcpu, ThreadKind::Main, ThreadKind::Api] {
            compile(kind, &[]).unwrap();
        }
        // What is measured: distinct system calls a thread. Firecracker's vCPU threads have 27.
        assert!(rules(ThreadKind::Vcpu, &[]).unwrap().len() <= 21);
        assert!(rules(ThreadKind::Main, &[]).unwrap().len() <= 31);
        assert!(rules(ThreadKind::Api, &[]).unwrap().len() <= 35);
    }

    #[test]
    fn nothing_that_opens_files_makes_processes_or_sockets_is_allowed() {
        for kind in [ThreadKind::Vcpu, ThreadKind::Main, ThreadKind::Api] {
            let rules = rules(kind, &[]).unwrap();
            // Only the API's thread opens files and takes connections.
            let api = kind == ThreadKind::Api;
            assert_eq!(rules.contains_key(&libc::SYS_openat) && rules.contains_key(&libc::SYS_accept4), api);
            assert!(!api || !rules.contains_key(&libc::SYS_ioctl));
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
                assert!(!rules.contains_key(&call), "{kind:?} {call}");
            }
        }
    }

    #[test]
    fn a_device_adds_what_it_needs_and_takes_nothing_away() {
        let count = |calls: &[Call], number| rules(ThreadKind::Main, calls).unwrap().get(&number).map(Vec::len);
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
