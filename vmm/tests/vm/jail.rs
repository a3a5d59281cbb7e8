//! What the process has given up when the guest runs.

use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;

use portcullis_vmm::jail::seccomp::{Descriptors, ThreadKind, compile, install};
use portcullis_vmm::jail::{Omitted, restrict_process};
use portcullis_vmm::log::{EndReason, Event};

use crate::guest::Guest;
use crate::harness::{Setup, Vmm, refused};

#[test]
fn every_thread_is_confined_while_the_guest_runs() {
    let mut setup = Setup::new(&Guest::new().print("ready").hang());
    setup.config = setup.config.with_vcpus(3);
    let mut vmm = setup.start();
    vmm.wait_for("ready");
    let pid = vmm.pid();
    let mut tasks: Vec<_> =
        std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|t| t.unwrap().path()).collect();
    // Some kernels run a worker of KVM's as a thread of the process; it never leaves the kernel.
    tasks.retain(|task| !std::fs::read_to_string(task.join("comm")).unwrap().starts_with("kvm-"));
    assert_eq!(tasks.len(), 4, "the main thread and three vCPUs");
    for task in tasks {
        let status = std::fs::read_to_string(task.join("status")).unwrap();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".to_owned(), "2".to_owned()), "{status}");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(u64::from_str_radix(&field(set), 16).unwrap(), 0, "{status}");
        }
    }
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().filter(|word| *word == "0").count(), 2, "{core}");
}

#[test]
fn it_holds_no_file_but_those_it_needs() {
    // A descriptor that this program lets its children have, as a careless agent might.
    let dir = tempfile::tempdir().unwrap();
    let leaked = std::fs::File::create(dir.path().join("leaked")).unwrap();
    // SAFETY: clears close-on-exec of a descriptor that is open.
    assert_eq!(unsafe { libc::fcntl(leaked.as_raw_fd(), libc::F_SETFD, 0) }, 0);
    let mut vmm = Setup::new(&Guest::new().print("ready").hang()).start();
    vmm.wait_for("ready");
    let mut open: Vec<String> = std::fs::read_dir(format!("/proc/{}/fd", vmm.pid()))
        .unwrap()
        .filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .filter(|target| target.starts_with('/'))
        .collect();
    open.sort();
    let log = open.iter().position(|path| path.ends_with("/vm.log")).expect("the log is not open");
    open.remove(log);
    // Kernel, initrd, configuration and the KVM device itself are closed by now.
    assert_eq!(open, Vec::<String>::new());
}

/// Says to this test program, run again by [`in_a_process`], what it has to do.
const PART: &str = "PORTCULLIS_VMM_TEST_PART";

/// What this process is to do, if it is one of [`in_a_process`].
pub fn part() -> Option<String> {
    std::env::var(PART).ok()
}

/// Runs the test `name` of this program again in a process of its own, where it plays `part`; gives the signal or the
/// code of its end, and its output.
pub fn in_a_process(name: &str, part: &str) -> (Option<i32>, Option<i32>, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(PART, part)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.signal(), output.status.code(), text)
}

#[test]
fn a_forbidden_system_call_kills_the_process() {
    if let Ok(part) = std::env::var(PART) {
        do_what_is_forbidden(&part);
        return;
    }
    for part in ["main opens a file", "vcpu opens a file", "maps code", "starts a program", "signals others"] {
        let (signal, _, text) = in_a_process("jail::a_forbidden_system_call_kills_the_process", part);
        assert_eq!(signal, Some(libc::SIGSYS), "{part}: {text}");
    }
    // The same way without a forbidden call ends well.
    let (signal, code, text) = in_a_process("jail::a_forbidden_system_call_kills_the_process", "nothing");
    assert_eq!((signal, code), (None, Some(0)), "{text}");
}

/// Standard output and error, which a thread may write to.
fn output() -> Descriptors {
    Descriptors { rung: vec![libc::STDOUT_FILENO, libc::STDERR_FILENO], ..Descriptors::default() }
}

fn do_what_is_forbidden(part: &str) {
    let confine = |kind| install(kind, &compile(kind, &[], &output()).unwrap()).unwrap();
    match part {
        "main opens a file" => {
            confine(ThreadKind::Main);
            drop(std::fs::File::open("/dev/null"));
        }
        "vcpu opens a file" => {
            confine(ThreadKind::Vcpu);
            drop(std::fs::File::open("/dev/null"));
        }
        "maps code" => {
            confine(ThreadKind::Vcpu);
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a new anonymous mapping, which nothing uses.
            unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_EXEC, flags, -1, 0) };
        }
        "starts a program" => {
            confine(ThreadKind::Main);
            drop(Command::new("/bin/true").status());
        }
        "signals others" => {
            let parent = nix::unistd::getppid().as_raw();
            confine(ThreadKind::Main);
            // SAFETY: the null signal, to a process that exists.
            unsafe { libc::syscall(libc::SYS_tgkill, parent, parent, 0) };
        }
        "nothing" => {
            confine(ThreadKind::Main);
            // SAFETY: ends the process.
            unsafe { libc::_exit(0) };
        }
        other => panic!("unknown part {other}"),
    }
}

#[test]
fn the_process_gives_up_files_dumps_and_capabilities() {
    if std::env::var(PART).is_err() {
        let (signal, code, text) =
            in_a_process("jail::the_process_gives_up_files_dumps_and_capabilities", "restricted");
        assert_eq!((signal, code), (None, Some(0)), "{text}");
        assert!(text.contains("denied as it should be"), "the part was not played: {text}");
        return;
    }
    let confined = restrict_process(Omitted::default()).unwrap();
    assert!(!nix::sys::prctl::get_dumpable().unwrap());
    assert!(nix::sys::prctl::get_no_new_privs().unwrap());
    assert!(confined.landlock.is_some() && confined.capabilities);
    let denied = std::fs::File::open("/etc/passwd").unwrap_err();
    assert_eq!(denied.kind(), std::io::ErrorKind::PermissionDenied);
    println!("denied as it should be");
}

#[test]
fn a_panic_aborts() {
    let kinds = [("main", ThreadKind::Main), ("vcpu", ThreadKind::Vcpu), ("api", ThreadKind::Api)];
    if let Ok(part) = std::env::var(PART) {
        portcullis_vmm::vm::abort_on_panic();
        for (_, kind) in kinds.into_iter().filter(|(name, _)| *name == part) {
            install(kind, &compile(kind, &[], &output()).unwrap()).unwrap();
        }
        panic!("on purpose");
    }
    for part in ["not confined", "main", "vcpu", "api"] {
        let (signal, _, text) = in_a_process("jail::a_panic_aborts", part);
        assert_eq!(signal, Some(libc::SIGABRT), "{part}: {text}");
        assert!(text.contains("internal error, aborting"), "{part}: {text}");
    }
}

/// Lets `landlock_create_ruleset` fail with `errno` in a program, as on a host without Landlock.
fn without_landlock(command: &mut Command, errno: i32) {
    use seccompiler::{SeccompAction, SeccompFilter, TargetArch};
    let rules = [(libc::SYS_landlock_create_ruleset, Vec::new())].into_iter().collect();
    let denied = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, TargetArch::x86_64).unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    // SAFETY: only system calls between fork and exec.
    unsafe { command.pre_exec(move || seccompiler::apply_filter(&program).map_err(std::io::Error::other)) };
}

#[test]
fn without_landlock_no_vm_starts_unless_it_is_left_out_by_name() {
    for (errno, word) in [(libc::ENOSYS, "built without"), (libc::EOPNOTSUPP, "booted without")] {
        let start = |arguments: &[&str]| {
            let setup = Setup::new(&Guest::new().print("ran").reset());
            let mut command = setup.command();
            command.args(arguments);
            without_landlock(&mut command, errno);
            Vmm::start(command, setup.dir).wait()
        };
        let refused = start(&[]);
        assert_eq!((refused.code(), refused.output.as_str()), (Some(3), ""), "{refused:?}");
        assert_eq!(refused.end(), (EndReason::Error, Some("jail")));
        for part in [word, "lacks landlock", "lsm=", "--unconfined landlock"] {
            assert!(refused.errors.contains(part), "{part}: {}", refused.errors);
        }
        // Another layer's name does not help.
        assert_eq!(start(&["--unconfined", "seccomp", "--unconfined", "capabilities"]).code(), Some(3));
        let ran = start(&["--unconfined", "landlock"]);
        ran.expect_warnings(EndReason::Reset, &["not confined by landlock"]);
        let confined = |event: &Event| match event {
            Event::Confined { seccomp: true, landlock, capabilities: true, .. } => landlock == "none",
            _ => false,
        };
        assert!(ran.events.iter().any(confined), "{ran:?}");
    }
}

#[test]
fn a_kernel_is_not_looked_at_before_the_process_is_restricted() {
    let setup = Setup::with_kernel(b"no kernel");
    let mut command = setup.command();
    without_landlock(&mut command, libc::ENOSYS);
    let refused = Vmm::start(command, setup.dir).wait();
    assert_eq!((refused.code(), refused.end().1), (Some(3), Some("jail")), "{refused:?}");
    // Where it can be restricted, it is looked at.
    let refused = Setup::with_kernel(b"no kernel").run();
    assert_eq!((refused.code(), refused.end().1), (Some(2), Some("bad-kernel")), "{refused:?}");
}

#[test]
fn each_layer_is_left_out_alone_and_said_so() {
    for layer in ["landlock", "seccomp", "capabilities", "user"] {
        let setup = Setup::new(&Guest::new().print("ready").hang());
        let mut command = setup.command();
        let metrics = setup.dir.path().join("metrics");
        command.args(["--unconfined", layer, "--metrics-path"]).arg(&metrics);
        let mut vmm = Vmm::start(command, setup.dir);
        vmm.wait_for("ready");
        let status = std::fs::read_to_string(format!("/proc/{}/status", vmm.pid())).unwrap();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        assert_eq!(field("NoNewPrivs:"), "1");
        assert_eq!(field("Seccomp:") == "2", layer != "seccomp", "{status}");
        let capable = u64::from_str_radix(&field("CapEff:"), 16).unwrap() != 0;
        let root = nix::unistd::geteuid().is_root();
        assert!(!capable || layer == "capabilities", "{status}");
        assert_eq!(field("Uid:").starts_with("0\t"), root && layer == "user", "{status}");
        vmm.signal(nix::sys::signal::Signal::SIGTERM);
        let (ended, log) = vmm.wait_with(|dir| std::fs::read_to_string(dir.join("metrics")).unwrap());
        ended.expect_warnings(EndReason::Killed, &[&format!("not confined by {layer}")]);
        let line: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
        let unconfined = line["unconfined"].as_object().unwrap();
        let out: Vec<_> = unconfined.iter().filter(|(_, value)| **value == 1).map(|(name, _)| name.as_str()).collect();
        assert_eq!((out, unconfined.len()), (vec![layer], 4));
    }
    // Where neither of the two that need it is there, the process gains nothing all the same.
    let setup = Setup::new(&Guest::new().print("ready").hang());
    let mut command = setup.command();
    command.args(["--unconfined", "landlock", "--unconfined", "seccomp"]);
    let mut vmm = Vmm::start(command, setup.dir);
    vmm.wait_for("ready");
    let status = std::fs::read_to_string(format!("/proc/{}/status", vmm.pid())).unwrap();
    assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    drop(vmm);
    let (code, errors) = refused(Setup::new(&Guest::new().reset()).command().args(["--unconfined", "all"]));
    assert!(code == 2 && errors.contains("landlock, seccomp, capabilities, user"), "{code} {errors}");
}

#[test]
fn the_largest_file_and_all_memory_have_a_limit() {
    let mut vmm = Setup::new(&Guest::new().print("ready").hang()).start();
    vmm.wait_for("ready");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", vmm.pid())).unwrap();
    for (name, most) in [("Max file size", 1 << 30), ("Max address space", (1 << 30) + (4 << 20) + (16 << 10))] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        let values: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        assert_eq!(values, [most; 2], "{line}");
    }
}
