//! Clients that mean harm, and a guest that goes on meanwhile; and what the thread that meets them may do.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use portcullis_vmm::jail::landlock::Domain;
use portcullis_vmm::jail::restrict_thread;
use portcullis_vmm::jail::seccomp::{ThreadKind, compile, install};
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
fn the_thread_of_the_api_is_confined_before_the_start_too() {
    let vmm = Vmm::new();
    assert_eq!(vmm.state(), "Not started");
    let tasks = std::fs::read_dir(format!("/proc/{}/task", vmm.pid())).unwrap().map(|task| task.unwrap().path());
    let api: Vec<_> = tasks.filter(|task| std::fs::read_to_string(task.join("comm")).unwrap() == "api\n").collect();
    assert_eq!(api.len(), 1);
    let status = std::fs::read_to_string(api[0].join("status")).unwrap();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".to_owned(), "2".to_owned()), "{status}");
    assert_eq!(u64::from_str_radix(&field("CapEff:"), 16).unwrap(), 0, "{status}");
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
        restrict_thread(Domain::for_api(&at("api.sock")).unwrap()).unwrap();
        let denied = |result: std::io::Result<()>| {
            assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
        };
        // What Landlock denies.
        denied(std::fs::remove_file(elsewhere.path()));
        denied(std::fs::create_dir(at("folder")));
        denied(std::os::unix::fs::symlink("/", at("link")));
        denied(std::os::unix::net::UnixListener::bind(at("other.sock")).map(drop));
        std::fs::remove_file(at("mine")).unwrap();
        install(ThreadKind::Api, &compile(ThreadKind::Api, &[]).unwrap()).unwrap();
        match part.as_str() {
            "opens" => {
                let mut file = std::fs::File::create(at("new")).unwrap();
                file.write_all(b"x").unwrap();
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
        // SAFETY: ends the process, before what it cannot do any more is tried.
        unsafe { libc::_exit(0) };
    }
    let (signal, code, text) = in_a_process(NAME, "opens");
    assert_eq!((signal, code), (None, Some(0)), "{text}");
    assert!(text.contains("played"), "{text}");
    for part in ["runs", "connects", "controls"] {
        let (signal, _, text) = in_a_process(NAME, part);
        assert_eq!(signal, Some(libc::SIGSYS), "{part}: {text}");
    }
}
