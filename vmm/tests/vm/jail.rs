//! What the process has given up when the guest runs.

use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use portcullis_vmm::jail::restrict_process;
use portcullis_vmm::jail::seccomp::{ThreadKind, compile, install};

use crate::guest::Guest;
use crate::harness::Setup;

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

/// Runs the test `name` of this program again in a process of its own, where it plays `part`; gives the signal or the
/// code of its end, and its output.
fn in_a_process(name: &str, part: &str) -> (Option<i32>, Option<i32>, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("jail::{name}"), "--nocapture", "--test-threads=1"])
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
        let (signal, _, text) = in_a_process("a_forbidden_system_call_kills_the_process", part);
        assert_eq!(signal, Some(libc::SIGSYS), "{part}: {text}");
    }
    // The same way without a forbidden call ends well.
    let (signal, code, text) = in_a_process("a_forbidden_system_call_kills_the_process", "nothing");
    assert_eq!((signal, code), (None, Some(0)), "{text}");
}

fn do_what_is_forbidden(part: &str) {
    let confine = |kind| install(kind, &compile(kind, &[]).unwrap()).unwrap();
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
        "nothing" => confine(ThreadKind::Main),
        other => panic!("unknown part {other}"),
    }
}

#[test]
fn the_process_gives_up_files_dumps_and_capabilities() {
    if std::env::var(PART).is_err() {
        let (signal, code, text) = in_a_process("the_process_gives_up_files_dumps_and_capabilities", "restricted");
        assert_eq!((signal, code), (None, Some(0)), "{text}");
        assert!(text.contains("denied as it should be"), "the part was not played: {text}");
        return;
    }
    let enforced = restrict_process().unwrap();
    assert!(!nix::sys::prctl::get_dumpable().unwrap());
    assert!(nix::sys::prctl::get_no_new_privs().unwrap());
    // The machines that test this have Landlock; one without it must not pass for one with it.
    assert_ne!(enforced.as_str(), "none", "this kernel does not enforce Landlock");
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
            install(kind, &compile(kind, &[]).unwrap()).unwrap();
        }
        panic!("on purpose");
    }
    for part in ["not confined", "main", "vcpu", "api"] {
        let (signal, _, text) = in_a_process("a_panic_aborts", part);
        assert_eq!(signal, Some(libc::SIGABRT), "{part}: {text}");
        assert!(text.contains("internal error, aborting"), "{part}: {text}");
    }
}
