//! What a thread that was taken over can still ask of the kernel: every system call, tried under each kind's filter.
//!
//! docs/ISOLATION.md has these lists with their reasons. A call counts as got through if it was not the end of its process
//! with any of the arguments that were tried, whatever the kernel answered.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;

use portcullis_vmm::jail::seccomp::{Descriptors, ThreadKind, compile, install};
use portcullis_vmm::jail::{Omitted, restrict_process};

use crate::jail::{in_a_process, part};

/// More numbers than this Linux has calls.
const NUMBERS: i64 = 480;
/// Not tried: `vfork` leaves its caller in no usable state if it gets through, as both share a stack; `uretprobe` and
/// `uprobe` are let through by the kernel itself since Linux 6.15, and do nothing but from its own trampolines.
const LEFT_OUT: [i64; 3] = [libc::SYS_vfork, 335, 336];

macro_rules! calls {
    ($($name:ident)*) => { [$((stringify!($name), libc::$name)),*] };
}

type Arguments = [usize; 6];

/// Whether a call gets through under a filter that was made before.
fn gets_through(kind: ThreadKind, filter: &seccompiler::BpfProgram, call: i64, arguments: Arguments) -> bool {
    let [first, second, third, fourth, fifth, sixth] = arguments;
    // SAFETY: the child does nothing but system calls: it shares no memory, and takes no lock.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0, "fork");
        if child == 0 {
            // Calls that wait have got through.
            let soon = libc::itimerval {
                it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
                it_value: libc::timeval { tv_sec: 0, tv_usec: 100_000 },
            };
            libc::setitimer(libc::ITIMER_REAL, &raw const soon, std::ptr::null_mut());
            if install(kind, filter).is_err() {
                libc::raise(libc::SIGKILL);
            }
            libc::syscall(call, first, second, third, fourth, fifth, sixth);
            // Allowed to the one or the other kind, and both mean the end of a process with one thread.
            let end = if kind == ThreadKind::Main { libc::SYS_exit_group } else { libc::SYS_exit };
            libc::syscall(end, 0);
            libc::raise(libc::SIGKILL);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        assert!(!libc::WIFSIGNALED(status) || libc::WTERMSIG(status) != libc::SIGKILL, "{kind:?} {call}: no filter");
        !(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS)
    }
}

/// What is open in the probed process.
struct Bench {
    known: Descriptors,
    /// A regular file that no thread's filter knows: a disk.
    file: std::fs::File,
    memory: Vec<u8>,
    _kvm: (kvm_ioctls::VmFd, kvm_ioctls::VcpuFd),
    _counter: vmm_sys_util::eventfd::EventFd,
}

impl Bench {
    fn new() -> Self {
        let vm = kvm_ioctls::Kvm::new().unwrap().create_vm().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let counter = vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let known = Descriptors {
            vm: vec![vm.as_raw_fd()],
            vcpus: vec![vcpu.as_raw_fd()],
            rung: vec![counter.as_raw_fd()],
            read: vec![counter.as_raw_fd()],
            events: vec![counter.as_raw_fd()],
            ..Descriptors::default()
        };
        let (file, memory) = (tempfile::tempfile().unwrap(), vec![0; 3 * 4096]);
        Self { known, file, memory, _kvm: (vm, vcpu), _counter: counter }
    }

    fn number(fd: i32) -> usize {
        usize::try_from(fd).unwrap()
    }

    /// A page of memory.
    fn page(&self) -> usize {
        self.memory.as_ptr().addr().next_multiple_of(4096)
    }

    /// Arguments that are tried with every call: nothing, too much, and what many calls begin with.
    fn generic(&self) -> Vec<Arguments> {
        let fds = [self.known.rung[0], self.known.vcpus[0], self.file.as_raw_fd()].map(Self::number);
        let on = |fd: usize| [fd, self.page(), 8, 0, 0, 0];
        [vec![[0; 6], [usize::MAX; 6], [self.page(), 64, 0, 0, 0, 0]], fds.map(on).to_vec()].concat()
    }

    /// Calls as they would be made, with whether they are to get through for main, vCPU, queue, API and watching threads.
    fn chosen(&self) -> Vec<(&'static str, i64, Arguments, [bool; 5])> {
        const GIB: usize = 1 << 30;
        const NONE: [bool; 5] = [false; 5];
        const ALL: [bool; 5] = [true; 5];
        let flags = |flags: i32| usize::try_from(flags).unwrap();
        let [counter, vcpu, vm] = [self.known.rung[0], self.known.vcpus[0], self.known.vm[0]].map(Self::number);
        let (file, page) = (Self::number(self.file.as_raw_fd()), self.page());
        let (own, read_write) =
            (flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS), flags(libc::PROT_READ | libc::PROT_WRITE));
        let exec = flags(libc::PROT_READ | libc::PROT_EXEC);
        // Of the forked child: its filter was made by this process, and knows that one's number.
        let (parent, at) =
            (flags(nix::unistd::getpid().as_raw()), usize::try_from(libc::AT_FDCWD.cast_unsigned()).unwrap());
        let open = |mode: i32| [at, page, flags(mode), 0, 0, 0];
        vec![
            ("memory", libc::SYS_mmap, [0, 4096, read_write, own, usize::MAX, 0], ALL),
            ("executable memory", libc::SYS_mmap, [0, 4096, exec, own, usize::MAX, 0], NONE),
            (
                "shared memory",
                libc::SYS_mmap,
                [0, 4096, read_write, flags(libc::MAP_SHARED | libc::MAP_ANONYMOUS), usize::MAX, 0],
                NONE,
            ),
            ("the file as memory", libc::SYS_mmap, [0, 4096, read_write, flags(libc::MAP_PRIVATE), file, 0], NONE),
            ("huge pages", libc::SYS_mmap, [0, 4096, read_write, own | flags(libc::MAP_HUGETLB), usize::MAX, 0], NONE),
            ("much memory", libc::SYS_mmap, [0, GIB, read_write, own, usize::MAX, 0], NONE),
            ("very much memory", libc::SYS_mmap, [0, (4 * GIB) + 4096, read_write, own, usize::MAX, 0], NONE),
            ("growing memory", libc::SYS_mremap, [page, 4096, GIB, 1, 0, 0], NONE),
            ("a little more memory", libc::SYS_mremap, [page, 4096, 4096, 1, 0, 0], [true, false, false, true, false]),
            (
                "whether it is open",
                libc::SYS_fcntl,
                [counter, flags(libc::F_GETFD), 0, 0, 0, 0],
                [cfg!(debug_assertions); 5],
            ),
            ("its flags", libc::SYS_fcntl, [counter, flags(libc::F_SETFL), 0, 0, 0, 0], NONE),
            ("moving memory", libc::SYS_mremap, [page, 4096, 4096, 3, page + 4096, 0], NONE),
            ("made executable", libc::SYS_mprotect, [page, 4096, exec, 0, 0, 0], NONE),
            ("given back", libc::SYS_madvise, [page, 4096, flags(libc::MADV_DONTNEED), 0, 0, 0], ALL),
            ("merged", libc::SYS_madvise, [page, 4096, flags(libc::MADV_MERGEABLE), 0, 0, 0], NONE),
            ("huge", libc::SYS_madvise, [page, 4096, flags(libc::MADV_HUGEPAGE), 0, 0, 0], NONE),
            ("dumped", libc::SYS_madvise, [page, 4096, flags(libc::MADV_DODUMP), 0, 0, 0], NONE),
            ("ringing", libc::SYS_write, [counter, page, 8, 0, 0, 0], ALL),
            ("writing to the file", libc::SYS_write, [file, page, 8, 0, 0, 0], [false, false, false, true, false]),
            ("writing to the VM", libc::SYS_write, [vm, page, 8, 0, 0, 0], [false, false, false, true, false]),
            ("reading from the file", libc::SYS_read, [file, page, 8, 0, 0, 0], [false, false, false, true, false]),
            (
                "writing at 1 TiB",
                libc::SYS_pwrite64,
                [file, page, 8, 1024 * GIB, 0, 0],
                [false, false, false, true, false],
            ),
            ("cutting the file", libc::SYS_ftruncate, [file, 0, 0, 0, 0, 0], [false, false, false, true, false]),
            ("set-uid", libc::SYS_fchmod, [file, 0o4755, 0, 0, 0, 0], NONE),
            ("for its owner", libc::SYS_fchmod, [file, 0o600, 0, 0, 0, 0], [false, false, false, true, false]),
            ("opening", libc::SYS_openat, open(libc::O_RDWR), [false, false, false, true, false]),
            ("opening beside a folder", libc::SYS_openat, [file, page, 0, 0, 0, 0], NONE),
            ("opening and cutting", libc::SYS_openat, open(libc::O_WRONLY | libc::O_TRUNC), NONE),
            ("opening a way only", libc::SYS_openat, open(libc::O_PATH), NONE),
            ("running the guest", libc::SYS_ioctl, [vcpu, 0xae80, 0, 0, 0, 0], [false, true, false, false, false]),
            ("its registers", libc::SYS_ioctl, [vcpu, 0x8090_ae81, page, 0, 0, 0], [true, true, false, false, false]),
            ("changing its registers", libc::SYS_ioctl, [vcpu, 0x4090_ae82, page, 0, 0, 0], NONE),
            ("more guest memory", libc::SYS_ioctl, [vm, 0x4020_ae46, page, 0, 0, 0], NONE),
            ("one more vCPU", libc::SYS_ioctl, [vm, 0xae41, 1, 0, 0, 0], NONE),
            ("an interrupt", libc::SYS_ioctl, [vm, 0x4020_aea5, page, 0, 0, 0], [true, true, true, false, false]),
            ("an interrupt of a vCPU", libc::SYS_ioctl, [vcpu, 0x4020_aea5, page, 0, 0, 0], NONE),
            ("typing into the terminal", libc::SYS_ioctl, [0, 0x5412, page, 0, 0, 0], NONE),
            ("an abort", libc::SYS_tgkill, [parent, 0, flags(libc::SIGABRT), 0, 0, 0], ALL),
            (
                "a kick",
                libc::SYS_tgkill,
                [parent, 0, flags(libc::SIGUSR1), 0, 0, 0],
                [true, false, false, false, false],
            ),
            ("a stop", libc::SYS_tgkill, [parent, 0, flags(libc::SIGSTOP), 0, 0, 0], NONE),
            ("a signal to another", libc::SYS_tgkill, [1, 1, flags(libc::SIGABRT), 0, 0, 0], NONE),
            ("waiting for many", libc::SYS_poll, [page, 1000, 0, 0, 0, 0], NONE),
        ]
    }
}

/// The calls that get through, of each kind.
fn expected(kind: ThreadKind) -> BTreeSet<(&'static str, i64)> {
    let common = calls![
        SYS_brk SYS_clock_gettime SYS_futex SYS_getpid SYS_gettid SYS_ioctl SYS_madvise SYS_mmap SYS_mprotect SYS_munmap
        SYS_poll SYS_restart_syscall SYS_rt_sigprocmask SYS_sched_yield SYS_sigaltstack SYS_tgkill SYS_write
    ];
    let own = match kind {
        ThreadKind::Vcpu => calls![SYS_exit SYS_rt_sigreturn].to_vec(),
        ThreadKind::Queue => calls![SYS_close SYS_epoll_wait SYS_exit].to_vec(),
        ThreadKind::Watch => calls![SYS_clock_nanosleep SYS_close SYS_exit SYS_exit_group].to_vec(),
        ThreadKind::Main => {
            calls![SYS_clock_nanosleep SYS_close SYS_epoll_wait SYS_exit_group SYS_mremap SYS_read].to_vec()
        }
        _ => calls![
            SYS_accept4 SYS_close SYS_exit SYS_fchmod SYS_flock SYS_fstat SYS_fsync SYS_ftruncate SYS_linkat SYS_lseek
            SYS_mremap SYS_openat SYS_pread64 SYS_pwrite64 SYS_read SYS_statx SYS_unlink
        ]
        .to_vec(),
    };
    let debug = if cfg!(debug_assertions) { calls![SYS_fcntl].to_vec() } else { Vec::new() };
    let has_ioctl = !matches!(kind, ThreadKind::Api | ThreadKind::Watch);
    let no_ioctl = |(name, _): &(&str, i64)| has_ioctl || *name != "SYS_ioctl";
    common.into_iter().filter(no_ioctl).chain(own).chain(debug).collect()
}

#[test]
fn what_gets_through_is_what_is_written_down() {
    const NAME: &str = "probe::what_gets_through_is_what_is_written_down";
    if part().is_none() {
        let (signal, code, text) = in_a_process(NAME, "probe");
        assert_eq!((signal, code), (None, Some(0)), "{text}");
        println!("{text}");
        return;
    }
    let bench = Bench::new();
    // Whatever should get through has nothing to harm then.
    restrict_process(Omitted::default()).unwrap();
    let kinds = [ThreadKind::Main, ThreadKind::Vcpu, ThreadKind::Queue, ThreadKind::Api, ThreadKind::Watch];
    for (place, kind) in kinds.into_iter().enumerate() {
        let filter = compile(kind, &[], &bench.known).unwrap();
        let through = |call, arguments| gets_through(kind, &filter, call, arguments);
        let mut found = BTreeSet::new();
        for (what, call, arguments, wanted) in bench.chosen() {
            let passed = through(call, arguments);
            assert_eq!(passed, wanted[place], "{kind:?}: {what}");
            found.extend(passed.then_some(call));
        }
        for call in (0..NUMBERS).filter(|call| !LEFT_OUT.contains(call)) {
            if !found.contains(&call) && bench.generic().into_iter().any(|arguments| through(call, arguments)) {
                found.insert(call);
            }
        }
        let expected = expected(kind);
        let names: BTreeSet<_> = expected.iter().map(|(_, number)| *number).collect();
        assert_eq!(found, names, "{kind:?}, of {expected:?}");
        println!("{kind:?}: {} calls of {NUMBERS} get through", found.len());
    }
}
