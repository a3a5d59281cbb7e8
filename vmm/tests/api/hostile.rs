//! Clients that mean harm, and a guest that goes on meanwhile; and what the thread that meets them may do.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;

use portcullis_vmm::jail::landlock::Domain;
use portcullis_vmm::jail::seccomp::{Descriptors, ThreadKind, compile, install};
use portcullis_vmm::jail::{Omitted, Reach, restrict_thread};
use serde_json::json;

use crate::client::Vmm;
use crate::guest::Guest;

/// A VM that runs.
fn running() -> Vmm {
    let mut vmm = Vmm::new();
    vmm.boot_source(&Guest::new().print("ready").hang());
    vmm.act("InstanceStart");
    vmm.wait_for("ready");
    vmm
}

#[test]
fn floods_of_connections_bytes_and_nonsense_leave_the_vm_alone() {
    let mut vmm = running();
    let half: Vec<_> = (0..40)
        .filter_map(|_| {
            let mut stream = std::os::unix::net::UnixStream::connect(vmm.socket()).ok()?;
            stream.write_all(b"PUT /actions HTTP/1.1\r\nContent-Le").ok()?;
            Some(stream)
        })
        .collect();
    // While all places are taken by clients that never end, others are told so, or wait for the slow ones' end.
    drop(half);
    for bytes in [
        vec![0; 100_000],
        vec![b'A'; 100_000],
        b"PUT /vm HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n".to_vec(),
        b"PUT /vm HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_vec(),
        format!("PUT /mmds HTTP/1.1\r\nConnection: close\r\nContent-Length: 40000\r\n\r\n{}", "[".repeat(40_000))
            .into_bytes(),
        format!("PUT /mmds HTTP/1.1\r\nConnection: close\r\nContent-Length: 40000\r\n\r\n{}", "{\"a\":".repeat(8_000))
            .into_bytes(),
    ] {
        let mut stream = vmm.connect();
        // The server may close before it has everything.
        let _ = stream.write_all(&bytes);
        let mut text = String::new();
        let _ = stream.take(4096).read_to_string(&mut text);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 4"), "{text}");
    }
    assert_eq!(vmm.state(), "Running");
    vmm.must("PATCH", "/vm", &json!({"state": "Paused"}));
    vmm.must("PATCH", "/vm", &json!({"state": "Resumed"}));
    vmm.wait_until("the VM to be there", |vmm| vmm.state() == "Running");
}

#[test]
fn a_client_that_dies_in_the_middle_is_forgotten() {
    let vmm = running();
    for round in 0..50 {
        let mut stream = vmm.connect();
        let whole = b"PATCH /vm HTTP/1.1\r\nContent-Length: 18\r\n\r\n{\"state\":\"Paused\"}";
        stream.write_all(&whole[..whole.len() - round % 20]).unwrap();
        drop(stream);
    }
    // The whole ones were carried out, and their answers had nobody to go to.
    vmm.must("PATCH", "/vm", &json!({"state": "Resumed"}));
    let open = std::fs::read_dir(format!("/proc/{}/fd", vmm.pid())).unwrap().count();
    assert!(open < 40, "{open} descriptors");
}

#[test]
fn every_thread_is_confined_before_the_first_request() {
    let vmm = Vmm::new();
    assert_eq!(vmm.state(), "Not started");
    let tasks = std::fs::read_dir(format!("/proc/{}/task", vmm.pid())).unwrap().map(|task| task.unwrap().path());
    let mut names = Vec::new();
    for task in tasks {
        let name = std::fs::read_to_string(task.join("comm")).unwrap();
        let status = std::fs::read_to_string(task.join("status")).unwrap();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".to_owned(), "2".to_owned()), "{status}");
        // The main thread may make taps and open others' files until the VM is made.
        let kept = if name == "api\n" { 0 } else { 1 << 1 | 1 << 12 };
        assert_eq!(u64::from_str_radix(&field("CapPrm:"), 16).unwrap() & !kept, 0, "{name}: {status}");
        names.push(name);
    }
    assert_eq!(names.iter().filter(|name| *name == "api\n").count(), 1, "{names:?}");
    assert_eq!(names.len(), 2, "{names:?}");
}

/// A VMM with these arguments about `--api-dir`, in a folder of its own that is the current one.
fn reaching(arguments: &[&std::path::Path]) -> Vmm {
    let dir = tempfile::tempdir().unwrap();
    let mut command = crate::client::program();
    command.current_dir(dir.path()).arg("--api-sock").arg(dir.path().join("api.sock"));
    for argument in arguments {
        command.arg("--api-dir").arg(argument);
    }
    Vmm::run(command, dir)
}

#[test]
fn requests_reach_the_folders_that_were_named_and_no_others() {
    let other = tempfile::tempdir().unwrap();
    let at = |folder: &std::path::Path, name: &str| folder.join(name).to_str().unwrap().to_owned();
    let kernel = Guest::new().print("ready").hang().elf();
    std::fs::write(at(other.path(), "kernel"), &kernel).unwrap();
    let by_default = reaching(&[]);
    let own = by_default.dir.path().to_owned();
    std::fs::write(at(&own, "kernel"), &kernel).unwrap();
    let named = reaching(&[other.path()]);
    let log = |path: &str| json!({ "log_path": path });
    for vmm in [&by_default, &named] {
        // Even for root.
        for path in ["/etc/portcullis", "/proc/self/mem", "/proc/sys/kernel/core_pattern", "/dev/null", "/sys/x"] {
            vmm.refused("PUT", "/logger", Some(&log(path)), "Permission denied");
            vmm.refused("PUT", "/boot-source", Some(&json!({ "kernel_image_path": path })), "");
        }
        // What to do about it is said.
        let passwords = json!({ "kernel_image_path": "/etc/passwd" });
        vmm.refused("PUT", "/boot-source", Some(&passwords), "is it in a folder of --api-dir?");
        let drive = json!({"drive_id": "d", "path_on_host": "/etc/passwd", "is_root_device": false});
        vmm.refused("PUT", "/drives/d", Some(&drive), "is it in a folder of --api-dir?");
    }
    by_default.refused("PUT", "/logger", Some(&log(&at(other.path(), "log"))), "Permission denied");
    named.refused("PUT", "/logger", Some(&log(&at(&own, "log"))), "Permission denied");
    // Also to the main thread, which opens kernels.
    for (vmm, not, folder) in [(&by_default, other.path(), own.as_path()), (&named, own.as_path(), other.path())] {
        let start = json!({"action_type": "InstanceStart"});
        vmm.must("PUT", "/logger", &log(&at(folder, "log")));
        vmm.must("PUT", "/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 4}));
        vmm.refused("PUT", "/boot-source", Some(&json!({ "kernel_image_path": at(not, "kernel") })), "--api-dir");
        vmm.must("PUT", "/boot-source", &json!({ "kernel_image_path": at(folder, "kernel") }));
        vmm.must("PUT", "/actions", &start);
        assert_eq!(vmm.state(), "Running");
    }
}

#[test]
fn clients_of_firecracker_name_files_anywhere_but_in_the_hosts_own_folders() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let link = dir.path().join("firecracker");
    let program = crate::client::program();
    std::os::unix::fs::symlink(program.get_program(), &link).unwrap();
    let mut command = Command::new(&link);
    // As a service is started: nothing of this folder may follow from it.
    command.current_dir("/").arg("--api-sock").arg(dir.path().join("api.sock"));
    let vmm = Vmm::run(command, dir);
    let kernel = other.path().join("kernel");
    std::fs::write(&kernel, Guest::new().print("ready").hang().elf()).unwrap();
    for path in ["/etc/x", "/usr/x", "/x", "/proc/sys/kernel/core_pattern", "/dev/null"] {
        vmm.refused("PUT", "/logger", Some(&json!({ "log_path": path })), "Permission denied");
    }
    vmm.must("PUT", "/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 4}));
    vmm.must("PUT", "/boot-source", &json!({ "kernel_image_path": kernel }));
    vmm.must("PUT", "/actions", &json!({"action_type": "InstanceStart"}));
    assert_eq!(vmm.state(), "Running");
}

#[test]
fn what_no_request_may_reach_cannot_be_named() {
    // A chroot in a folder that is named, with the kernel's controls; in namespaces of the programs' own, as a folder with such
    // a mount is nobody's to reach.
    let chroot = tempfile::tempdir().unwrap();
    let (above, place) = (chroot.path().to_str().unwrap(), chroot.path().join("proc"));
    std::fs::create_dir(&place).unwrap();
    let tried = |socket: &std::path::Path, path: &str| {
        let mut command = crate::client::program();
        command.arg("--api-sock").arg(socket).args(["--api-dir", path]);
        let place = place.clone();
        // SAFETY: only system calls between fork and exec.
        unsafe { command.pre_exec(move || Ok(mount_proc(&place)?)) };
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    for path in ["/", "/proc", "/sys/kernel", "/dev", "/absent", above] {
        let (code, errors) = tried(&socket, path);
        assert!(code == Some(2) && errors.contains("--api-dir"), "{path}: {errors}");
        assert!(!socket.exists());
    }
    // Nor by the folder in which the socket may be removed.
    let (code, errors) = tried(std::path::Path::new("/portcullis-test.sock"), dir.path().to_str().unwrap());
    assert!(code == Some(2) && errors.contains("root of all files"), "{errors}");
}

/// Mounts proc for this process and its children alone.
fn mount_proc(place: &std::path::Path) -> nix::Result<()> {
    use nix::mount::{MsFlags, mount};
    const NONE: Option<&str> = None;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    mount(Some("proc"), place, Some("proc"), MsFlags::empty(), NONE)
}

const PART: &str = "PORTCULLIS_VMM_TEST_PART";

/// Runs a test of this program again in a process of its own, where it plays `part`; signal, code and output.
fn in_a_process(name: &str, part: &str) -> (Option<i32>, Option<i32>, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("hostile::{name}"), "--nocapture", "--test-threads=1"]).env(PART, part);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.signal(), output.status.code(), text)
}

#[test]
fn the_thread_of_the_api_opens_files_and_no_more() {
    const NAME: &str = "the_thread_of_the_api_opens_files_and_no_more";
    if let Ok(part) = std::env::var(PART) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(at("mine"), "x").unwrap();
        let reach = Reach { written: vec![dir.path().to_owned()], socket: Some(at("api.sock")), ..Reach::default() };
        restrict_thread(Omitted::default(), Some(Domain::for_api(&reach).unwrap())).unwrap();
        let denied = |result: std::io::Result<()>| {
            assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
        };
        // What Landlock denies.
        denied(std::fs::remove_file(elsewhere.path()));
        denied(std::fs::create_dir(at("folder")));
        denied(std::os::unix::fs::symlink("/", at("link")));
        denied(std::os::unix::net::UnixListener::bind(at("other.sock")).map(drop));
        std::fs::remove_file(at("mine")).unwrap();
        install(ThreadKind::Api, &compile(ThreadKind::Api, &[], &Descriptors::default()).unwrap()).unwrap();
        match part.as_str() {
            "opens" => {
                let mut file = std::fs::File::create_new(at("new")).unwrap();
                file.write_all(b"x").unwrap();
            }
            "cuts" => drop(std::fs::File::create(at("new"))),
            "sets the user" => {
                use std::os::unix::fs::PermissionsExt;
                let file = std::fs::File::create_new(at("new")).unwrap();
                drop(file.set_permissions(std::fs::Permissions::from_mode(0o4755)));
            }
            "runs" => drop(Command::new("/bin/true").status()),
            "connects" => drop(std::os::unix::net::UnixStream::connect(at("api.sock"))),
            "controls" => {
                let file = std::fs::File::open("/dev/null").unwrap();
                // SAFETY: asks how much there is to read, of a descriptor that is open.
                unsafe { libc::ioctl(file.as_raw_fd(), libc::FIONREAD, &mut 0) };
            }
            other => panic!("unknown part {other}"),
        }
        println!("played");
        // Ends the process, before what it cannot do any more is tried.
        std::process::abort();
    }
    let (signal, _, text) = in_a_process(NAME, "opens");
    assert_eq!(signal, Some(libc::SIGABRT), "{text}");
    assert!(text.contains("played"), "{text}");
    for part in ["runs", "connects", "controls", "cuts", "sets the user"] {
        let (signal, _, text) = in_a_process(NAME, part);
        assert_eq!(signal, Some(libc::SIGSYS), "{part}: {text}");
    }
}
