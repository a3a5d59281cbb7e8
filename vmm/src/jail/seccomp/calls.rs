//! Which calls each kind of thread may make, and with what arguments.

use super::program::{Condition, Rules, Together};
use super::{Call, Descriptors, ThreadKind, numbers};

// Requests of ioctl. They are 32-bit numbers, and only those bits are compared, as the kernel does.
const KVM_RUN: u32 = 0xae80;
/// An interrupt of a device.
const KVM_SIGNAL_MSI: u32 = 0x4020_aea5;
const KVM_GET_REGS: u32 = 0x8090_ae81;
const KVM_GET_SREGS: u32 = 0x8138_ae83;
/// `KVM_GET_CLOCK`.
const KVM_GET_CLOCK: u32 = 0x8030_ae7c;
/// `TCGETS` and `TCSETS`: the terminal may have to be restored.
const TERMINAL: [u32; 2] = [0x5401, 0x5402];
/// What reads the state of a vCPU that stands still: `KVM_KVMCLOCK_CTRL`, which tells the guest of the pause, then
/// `KVM_GET_MP_STATE`, `REGS`, `SREGS`, `XSAVE`, `XCRS`, `DEBUGREGS`, `LAPIC`, `MSRS`, `TSC_KHZ`, `VCPU_EVENTS`.
const PAUSED: [u32; 11] = [
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
];

/// What a vCPU thread and the main thread map or grow at once, in bytes: the state of many vCPUs.
const SMALL: u32 = 32 << 20;
/// The same of the API's thread, which holds a body of 16 MiB twice when it grows, and its JSON.
const LARGE: u32 = 128 << 20;
/// Descriptors in one list: what a jump passes is less than 256.
const IN_A_LIST: usize = 200;
/// Signals that a thread of this process sends to another: a kick of a vCPU, and its own abort.
const KICK_OR_ABORT: [u32; 2] = [libc::SIGUSR1 as u32, libc::SIGABRT as u32];

/// What every thread needs: memory for the allocator (never executable), locks, time, its own end.
const COMMON: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_munmap,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
];

/// What only a vCPU thread needs beside [`COMMON`]: its end, and the way back from a kick.
const VCPU: &[i64] = &[libc::SYS_exit, libc::SYS_rt_sigreturn];

/// What only the main thread needs beside [`COMMON`].
const MAIN: &[i64] = &[libc::SYS_clock_nanosleep, libc::SYS_close, libc::SYS_exit_group];

/// What only the thread of a queue needs beside [`COMMON`] and what its device's work takes: its end, and to close the file
/// of a disk that was replaced, when the last request to it is done.
const QUEUE: &[i64] = &[libc::SYS_close, libc::SYS_exit];

/// What only the watching thread needs beside [`COMMON`]: its end and the process's, a wait between the two, and to close
/// what it watched.
const WATCH: &[i64] = &[libc::SYS_clock_nanosleep, libc::SYS_close, libc::SYS_exit, libc::SYS_exit_group];

/// What only the API's thread needs beside [`COMMON`]. It opens files, where its Landlock domain lets it; it connects to
/// nothing and starts nothing.
const API: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_linkat,
    libc::SYS_lseek,
    // A snapshot that is written, and the one that it is a difference to.
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_statx,
    libc::SYS_unlink,
    libc::SYS_write,
];

/// Flags with which files are opened: to read, to append to, to write, to make them under a name of their own.
const OPENED: libc::c_int =
    libc::O_ACCMODE | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_APPEND | libc::O_CREAT | libc::O_EXCL;

/// A system call's number as the kernel's filters see it. The C library's are small and not negative.
pub(super) fn number(call: i64) -> u32 {
    u32::try_from(call).unwrap_or(u32::MAX)
}

/// The number of a flag word as the kernel's filters see it.
const fn bits(flags: libc::c_int) -> u32 {
    flags.cast_unsigned()
}

/// A list of rules that grows.
struct List(Rules);

impl List {
    fn any(&mut self, calls: &[i64]) {
        self.0.extend(calls.iter().map(|call| (number(*call), Vec::new())));
    }

    /// Allows one more way to make a call.
    fn with(&mut self, call: i64, conditions: impl Into<Together>) {
        self.0.entry(number(call)).or_default().push(conditions.into());
    }

    /// With one of these descriptors as the first argument.
    fn on(&mut self, call: i64, descriptors: &[&[i32]]) {
        let numbers = numbers(&descriptors.concat());
        // One list holds no more, and a VM with many queues has more. Without any, there is one that nothing fits.
        let some = numbers.chunks(IN_A_LIST);
        let none = numbers.is_empty().then_some([].as_slice());
        some.chain(none).for_each(|some| self.with(call, [Condition::one_of(0, some)]));
    }

    /// `ioctl` with one of these requests on one of these descriptors.
    fn ioctl(&mut self, descriptors: &[i32], requests: &[u32]) {
        let conditions = [Condition::one_of(1, requests), Condition::one_of(0, &numbers(descriptors))];
        self.with(libc::SYS_ioctl, conditions);
    }

    /// Memory of this process's own, never executable, never of the host's pool of huge pages.
    fn memory(&mut self, bound: u32) {
        let not_executable = Condition::masked(2, bits(libc::PROT_EXEC), 0);
        // Where it lies and that it is not reserved changes nothing that others see; a stack is like all memory.
        let own = !bits(libc::MAP_NORESERVE | libc::MAP_STACK);
        let own = Condition::masked(3, own, bits(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS));
        let [high, low] = Condition::at_most(1, bound);
        self.with(libc::SYS_mmap, [not_executable.clone(), own, high, low]);
        self.with(libc::SYS_mprotect, [not_executable]);
        self.with(libc::SYS_madvise, [Condition::one_of(2, &[bits(libc::MADV_DONTNEED)])]);
    }

    /// The allocator, when something large grows.
    fn growth(&mut self, bound: u32) {
        let [high, low] = Condition::at_most(2, bound);
        self.with(libc::SYS_mremap, [Condition::one_of(3, &[bits(libc::MREMAP_MAYMOVE)]), high, low]);
    }

    /// Signals to threads of this process.
    fn signals(&mut self, signals: &[u32]) {
        self.with(libc::SYS_tgkill, [Condition::one_of(0, &[std::process::id()]), Condition::one_of(2, signals)]);
    }

    /// `poll` of so many descriptors at most.
    fn poll(&mut self, most: u32) {
        self.with(libc::SYS_poll, [Condition::one_of(1, &(0..=most).collect::<Vec<_>>())]);
    }
}

pub(super) fn rules(kind: ThreadKind, devices: &[Call], known: &Descriptors) -> Rules {
    let mut list = List(Rules::new());
    list.any(COMMON);
    if cfg!(debug_assertions) {
        // Rust's standard library looks whether a descriptor is open before it closes it.
        list.with(libc::SYS_fcntl, [Condition::one_of(1, &[bits(libc::F_GETFD)])]);
    }
    match kind {
        ThreadKind::Vcpu => vcpu(&mut list, known),
        ThreadKind::Main => main(&mut list, known),
        ThreadKind::Queue => queue(&mut list, known),
        ThreadKind::Watch => watch(&mut list, known),
        ThreadKind::Api => api(&mut list),
        ThreadKind::Building => building(&mut list),
    }
    for call in devices {
        let conditions = call.conditions(known);
        match list.0.get_mut(&number(call.number)) {
            // No condition means any arguments.
            _ if conditions.is_empty() => drop(list.0.insert(number(call.number), Vec::new())),
            Some(allowed) if allowed.is_empty() => {}
            _ => list.with(call.number, conditions),
        }
    }
    list.0
}

fn vcpu(list: &mut List, known: &Descriptors) {
    list.any(VCPU);
    list.memory(SMALL);
    list.signals(&[bits(libc::SIGABRT)]);
    list.ioctl(&known.vcpus, &[KVM_RUN, KVM_GET_REGS, KVM_GET_SREGS]);
    list.ioctl(&known.vm, &[KVM_SIGNAL_MSI]);
    list.on(libc::SYS_write, &[&known.rung]);
    // To say something last, where nobody may be listening.
    list.poll(1);
}

fn main(list: &mut List, known: &Descriptors) {
    list.any(MAIN);
    list.memory(SMALL);
    list.growth(SMALL);
    list.signals(&KICK_OR_ABORT);
    list.ioctl(&known.vcpus, &PAUSED);
    list.ioctl(&known.vm, &[KVM_SIGNAL_MSI, KVM_GET_CLOCK]);
    list.ioctl(&known.terminal, &TERMINAL);
    list.on(libc::SYS_epoll_wait, &[&known.events]);
    list.on(libc::SYS_read, &[&known.read, &known.watched]);
    list.on(libc::SYS_write, &[&known.rung, &known.written]);
    // Signals, the counter, the event loop, the console's input and output.
    list.poll(5);
}

fn queue(list: &mut List, known: &Descriptors) {
    list.any(QUEUE);
    list.memory(SMALL);
    list.signals(&[bits(libc::SIGABRT)]);
    list.ioctl(&known.vm, &[KVM_SIGNAL_MSI]);
    list.on(libc::SYS_epoll_wait, &[&known.events]);
    list.on(libc::SYS_write, &[&known.rung]);
    list.poll(1);
}

fn watch(list: &mut List, known: &Descriptors) {
    list.any(WATCH);
    list.memory(SMALL);
    list.signals(&[bits(libc::SIGABRT)]);
    list.on(libc::SYS_write, &[&known.rung]);
    // The handler's end, signals, and its own end.
    list.poll(3);
}

fn api(list: &mut List) {
    list.any(API);
    list.memory(LARGE);
    list.growth(LARGE);
    list.signals(&[bits(libc::SIGABRT)]);
    // Never O_TRUNC: what cuts a file is ftruncate, of one that was looked at and locked.
    let flags = Condition::masked(2, !bits(OPENED | libc::O_TMPFILE), 0);
    list.with(libc::SYS_openat, [flags, Condition::one_of(0, &[bits(libc::AT_FDCWD)])]);
    // The files of snapshots, which are their owner's alone.
    list.with(libc::SYS_fchmod, [Condition::one_of(1, &[0o600])]);
    // The VM's end, the socket, and its connections.
    list.poll(2 + 16);
}

/// What opens the files of a configuration, with or without the API, and puts a VM together.
const BUILDING: &[i64] = &[
    libc::SYS_bind,
    libc::SYS_capget,
    libc::SYS_capset,
    // Threads. What is made otherwise would be under the same filters.
    libc::SYS_clone3,
    libc::SYS_epoll_create1,
    libc::SYS_eventfd2,
    libc::SYS_fstat,
    libc::SYS_geteuid,
    libc::SYS_getpgrp,
    libc::SYS_getsockopt,
    libc::SYS_getuid,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_listen,
    libc::SYS_lseek,
    // A page-fault handler: its process, and what it is sent.
    libc::SYS_pidfd_open,
    libc::SYS_sendmsg,
    libc::SYS_newfstatat,
    libc::SYS_prlimit64,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_seccomp,
    libc::SYS_set_robust_list,
    libc::SYS_statx,
    libc::SYS_timerfd_create,
    libc::SYS_unlink,
];

/// What threads do later, with filters of their own that say more exactly how.
const LATER: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_getrandom,
    libc::SYS_ioctl,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_poll,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_shutdown,
    libc::SYS_timerfd_settime,
    libc::SYS_write,
    libc::SYS_writev,
];

fn building(list: &mut List) {
    list.any(VCPU);
    list.any(MAIN);
    list.any(BUILDING);
    list.any(LATER);
    let not_executable = [Condition::masked(2, bits(libc::PROT_EXEC), 0)];
    list.with(libc::SYS_mmap, not_executable.clone());
    list.with(libc::SYS_mprotect, not_executable);
    list.signals(&KICK_OR_ABORT);
    let unix = [libc::AF_UNIX].map(bits);
    list.with(libc::SYS_socket, [Condition::one_of(0, &unix)]);
    let flags = Condition::masked(2, !bits(OPENED), 0);
    list.with(libc::SYS_openat, [flags, Condition::one_of(0, &[bits(libc::AT_FDCWD)])]);
    // Those that the C library keeps for itself, before it makes its first thread: no handler that means anything to us.
    list.with(libc::SYS_rt_sigaction, [Condition::one_of(0, &[32, 33])]);
    // The file of a snapshot's memory is held by each of its regions.
    list.with(libc::SYS_fcntl, [Condition::one_of(1, &[bits(libc::F_DUPFD_CLOEXEC)])]);
    // Names of threads, and what is given up.
    let options = [libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS, libc::PR_SET_DUMPABLE, libc::PR_SET_SECCOMP];
    list.with(libc::SYS_prctl, [Condition::one_of(0, &options.map(bits))]);
}
