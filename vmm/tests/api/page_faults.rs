//! VMs whose memory another process hands out, page by page.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::client::{LIMIT, Vmm, command};
use crate::guest::Guest;
use crate::virtio::{FIRST, Queue, WRITE};

/// Says to this test program, run again, that it hands out pages: its folder, how many pages, and which not.
const HANDLER: &str = "PORTCULLIS_TEST_HANDLER";
/// Pages that a handler hands out which is never tired.
const ALL: usize = 1 << 20;
const PAGE: u64 = 4096;
/// What the guest looks at again and again.
const PLACE: u32 = 0x20_0000;
/// Pages of the guest's memory.
const PAGES: usize = 1024;
/// A page that a handler withholds. Nothing touches it by itself.
const WITHHELD: u32 = 0x30_0000;

/// A page-fault handler in its own process.
struct Handler {
    child: Child,
    socket: PathBuf,
}

impl Handler {
    /// Starts a handler that serves this many pages and then stops answering.
    fn start(dir: &Path, pages: usize) -> Self {
        Self::run(dir, pages, u64::MAX)
    }

    /// One that hands out every page but the one at this address, until it is told to ([`Handler::release`]).
    fn withholding(dir: &Path, page: u32) -> Self {
        Self::run(dir, ALL, page.into())
    }

    fn run(dir: &Path, pages: usize, withheld: u64) -> Self {
        let socket = dir.join("handler.sock");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "page_faults::play_the_handler", "--nocapture"]);
        command.env(HANDLER, format!("{} {pages} {withheld}", dir.display()));
        command.stdout(File::create(dir.join("handler.log")).unwrap());
        let child = command.spawn().unwrap();
        let limit = Instant::now() + LIMIT;
        while !socket.exists() {
            assert!(Instant::now() < limit, "no handler");
            std::thread::sleep(Duration::from_millis(2));
        }
        Self { child, socket }
    }

    /// Waits until somebody waits for the page that is withheld.
    fn wait_for_victim(dir: &Path) {
        let limit = Instant::now() + LIMIT;
        while !std::fs::read_to_string(dir.join("handler.log")).unwrap().contains("withheld") {
            assert!(Instant::now() < limit, "nobody touches the page");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Lets it hand out what it withheld.
    fn release(dir: &Path) {
        std::fs::write(dir.join("release"), "").unwrap();
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The handler. Alone, as one of all tests, it does nothing.
#[test]
fn play_the_handler() {
    let Ok(told) = std::env::var(HANDLER) else {
        return;
    };
    let told: Vec<&str> = told.split(' ').collect();
    let (dir, pages, withheld) =
        (Path::new(told[0]), told[1].parse::<usize>().unwrap(), told[2].parse::<u64>().unwrap());
    let memory = File::open(dir.join("memory")).unwrap();
    let listener = UnixListener::bind(dir.join("handler.sock")).unwrap();
    let (stream, _) = listener.accept().unwrap();
    let (mut text, mut room) = (vec![0; 4096], nix::cmsg_space!([i32; 1]));
    let mut parts = [IoSliceMut::new(&mut text)];
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::empty()).unwrap();
    let length = message.bytes;
    let Some(ControlMessageOwned::ScmRights(descriptors)) = message.cmsgs().unwrap().next() else {
        panic!("no faults")
    };
    // SAFETY: the kernel has just made this descriptor for us.
    let faults = unsafe { OwnedFd::from_raw_fd(descriptors[0]) };
    let mappings: Vec<Value> = serde_json::from_slice(&text[..length]).unwrap();
    for mapping in &mappings {
        assert_eq!((&mapping["page_size"], &mapping["page_size_kib"]), (&json!(PAGE), &json!(PAGE)));
    }
    let mut held = None;
    for count in 1.. {
        let address = loop {
            match next_fault(&faults) {
                Some(address) => break address,
                None if held.is_some() && dir.join("release").exists() => break held.take().unwrap(),
                None => {}
            }
        };
        if count > pages {
            // Tired: nothing is handed out any more.
            std::thread::park();
        }
        let number = |mapping: &Value, name: &str| mapping[name].as_u64().unwrap();
        let within = |mapping: &&Value| {
            let start = number(mapping, "base_host_virt_addr");
            (start..start + number(mapping, "size")).contains(&address)
        };
        let mapping = mappings.iter().find(within).expect("a fault in the guest's memory");
        let mut page = vec![0; usize::try_from(PAGE).unwrap()];
        let at = address - number(mapping, "base_host_virt_addr") + number(mapping, "offset");
        if at == withheld && !dir.join("release").exists() {
            held = Some(address);
            println!("withheld");
            continue;
        }
        memory.read_exact_at(&mut page, at).unwrap();
        copy(&faults, address, &page);
        println!("page {count}");
    }
}

/// The page of the next fault, if there is one soon.
fn next_fault(faults: &OwnedFd) -> Option<u64> {
    loop {
        let mut set = [PollFd::new(faults.as_fd(), PollFlags::POLLIN)];
        if poll(&mut set, PollTimeout::from(20u16)).unwrap() == 0 {
            return None;
        }
        // `struct uffd_msg`: what it is, and of a page fault (0x12) the address.
        let mut message = [0; 32];
        match nix::unistd::read(faults, &mut message) {
            Ok(32) if message[0] == 0x12 => {
                let address = u64::from_ne_bytes(message[16..24].try_into().unwrap());
                return Some(address & !(PAGE - 1));
            }
            Ok(32) | Err(nix::errno::Errno::EAGAIN) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn copy(faults: &OwnedFd, address: u64, page: &[u8]) {
    // `UFFDIO_COPY` and its structure: to, from, length, mode, and how much it was.
    let mut copy = [address, page.as_ptr().addr() as u64, PAGE, 0, 0];
    // SAFETY: the kernel reads the page and writes the structure; both are live and of the right size.
    let done = unsafe { libc::ioctl(faults.as_raw_fd(), 0xc028_aa03, copy.as_mut_ptr()) };
    let error = std::io::Error::last_os_error();
    // Another fault of the same page came before.
    assert!(done == 0 || error.raw_os_error() == Some(libc::EEXIST), "{error}");
}

/// A snapshot of a guest that looks at its memory and says that it is there.
fn snapshot() -> tempfile::TempDir {
    let look = Guest::new().load8(PLACE).print_if_al(b'k', "kept ");
    let guest = Guest::new().store8(PLACE, b'k').print("ready").until32(PLACE + 8, 1, &look);
    let (mut vmm, dir) = (Vmm::new(), tempfile::tempdir().unwrap());
    vmm.boot_source(&guest);
    vmm.act("InstanceStart");
    vmm.wait_for("kept");
    save(&vmm, dir.path(), "state", "memory");
    dir
}

/// A snapshot of a guest that asks for random bytes again and again, and for them at this address, which the main thread of
/// its VMM writes to.
fn asking(address: u32) -> tempfile::TempDir {
    let queue = Queue::at(FIRST, 0, 8);
    let ask = |guest: Guest, number| guest.request(queue, number, 0, &[(address.into(), 16, WRITE)]).print(".");
    let guest = (1..=200).fold(Guest::new().virtio_start(FIRST, 0, &[queue]), ask).print("done").hang();
    let (mut vmm, dir) = (Vmm::new(), tempfile::tempdir().unwrap());
    vmm.boot_source(&guest);
    vmm.must("PUT", "/entropy", &json!({"rate_limiter": {"ops": {"size": 1, "refill_time": 50}}}));
    vmm.act("InstanceStart");
    vmm.wait_for(".");
    save(&vmm, dir.path(), "state", "memory");
    dir
}

/// Pauses the VM and writes a snapshot of it.
fn save(vmm: &Vmm, dir: &Path, state: &str, memory: &str) {
    vmm.must("PATCH", "/vm", &json!({"state": "Paused"}));
    let create = json!({"snapshot_path": dir.join(state), "mem_file_path": dir.join(memory)});
    vmm.must("PUT", "/snapshot/create", &create);
}

fn terminate(vmm: &Vmm) {
    kill(Pid::from_raw(vmm.pid().try_into().unwrap()), Signal::SIGTERM).unwrap();
}

fn load(dir: &Path, socket: &Path) -> Value {
    let backend = json!({"backend_type": "Uffd", "backend_path": socket});
    json!({"snapshot_path": dir.join("state"), "resume_vm": true, "mem_backend": backend})
}

#[test]
fn a_guest_goes_on_in_memory_that_is_handed_out_page_by_page() {
    let dir = snapshot();
    let handler = Handler::start(dir.path(), ALL);
    let mut vmm = Vmm::new();
    vmm.must("PUT", "/snapshot/load", &load(dir.path(), &handler.socket));
    vmm.wait_for("kept");
    let handed_out = std::fs::read_to_string(dir.path().join("handler.log")).unwrap().matches("page ").count();
    assert!((1..PAGES / 4).contains(&handed_out), "{handed_out} of {PAGES} pages");
    // A snapshot of it is whole, also one that says that it is a difference.
    vmm.must("PATCH", "/vm", &json!({"state": "Paused"}));
    let memory = dir.path().join("again");
    vmm.must(
        "PUT",
        "/snapshot/create",
        &json!({"snapshot_path": dir.path().join("state2"), "mem_file_path": memory, "snapshot_type": "Diff"}),
    );
    let read = |path: &Path| std::fs::read(path).unwrap()[usize::try_from(PLACE).unwrap()];
    assert_eq!((read(&memory), memory.metadata().unwrap().len()), (b'k', PAGE * u64::try_from(PAGES).unwrap()));
    drop(handler);
    assert_eq!(vmm.end().code(), Some(3));
}

#[test]
fn a_vm_ends_with_the_process_that_hands_out_its_memory_whoever_waits_for_a_page() {
    let dir = snapshot();
    // With one that hands out nothing, the main thread waits while it loads; with few, a vCPU does.
    for pages in [0, 4, ALL] {
        let mut handler = Handler::start(dir.path(), pages);
        let mut vmm = Vmm::new();
        std::thread::scope(|scope| {
            let (loader, body) = (&vmm, load(dir.path(), &handler.socket));
            let loading = scope.spawn(move || loader.try_send("PUT", "/snapshot/load", &body));
            std::thread::sleep(Duration::from_millis(300));
            handler.kill();
            loading.join().unwrap();
        });
        assert_eq!(vmm.end().code(), Some(3), "{pages}");
        let log = vmm.read("vm.log");
        let last = log.lines().last().unwrap_or_default();
        assert!(last.contains("page-fault-handler") && last.contains("\"event\":\"end\""), "{pages}: {log}");
        assert_eq!(log.matches("\"event\":\"end\"").count(), 1, "{pages}: {log}");
        assert!(!vmm.socket().exists(), "{pages}: the API's socket was left");
        std::fs::remove_file(&handler.socket).unwrap();
    }
}

#[test]
fn a_handler_that_cannot_be_reached_is_named_and_the_load_can_be_tried_again() {
    let dir = snapshot();
    let mut vmm = Vmm::new();
    let refused = |vmm: &Vmm, socket: &Path, word: &str| {
        vmm.refused("PUT", "/snapshot/load", Some(&load(dir.path(), socket)), word);
        assert_eq!(vmm.state(), "Not started");
    };
    refused(&vmm, &dir.path().join("absent"), "absent: No such file");
    refused(&vmm, &dir.path().join("state"), "it is no socket");
    // A socket that nobody listens on.
    let deaf = dir.path().join("deaf");
    drop(UnixListener::bind(&deaf).unwrap());
    refused(&vmm, &deaf, "Connection refused");
    // One in a folder that requests do not reach.
    let outside = tempfile::tempdir_in("/var/lib").unwrap();
    let far = outside.path().join("handler.sock");
    let listener = UnixListener::bind(&far).unwrap();
    refused(&vmm, &far, "--api-dir");
    drop(listener);
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&far, &link).unwrap();
    refused(&vmm, &link, "it is no socket");
    let handler = Handler::start(dir.path(), ALL);
    vmm.must("PUT", "/snapshot/load", &load(dir.path(), &handler.socket));
    vmm.wait_for("kept");
}

#[test]
fn a_snapshot_of_memory_that_is_lost_meanwhile_is_none() {
    let dir = snapshot();
    for (word, memory) in [("whole", true), ("lost", false)] {
        let mut handler = Handler::withholding(dir.path(), WITHHELD);
        let mut vmm = Vmm::new();
        vmm.must("PUT", "/snapshot/load", &load(dir.path(), &handler.socket));
        vmm.must("PATCH", "/vm", &json!({"state": "Paused"}));
        std::thread::scope(|scope| {
            let (again, path) = (&vmm, dir.path());
            let saving = scope.spawn(move || {
                let create =
                    json!({"snapshot_path": path.join(format!("{word}.state")), "mem_file_path": path.join(word)});
                again.try_send("PUT", "/snapshot/create", &create)
            });
            Handler::wait_for_victim(dir.path());
            if memory {
                Handler::release(dir.path());
            } else {
                handler.kill();
            }
            let answer = saving.join().unwrap();
            assert_eq!(answer.starts_with("HTTP/1.1 204"), memory, "{word}: {answer}");
        });
        let files = [dir.path().join(word), dir.path().join(format!("{word}.state"))];
        assert_eq!(files.map(|file| file.exists()), [memory; 2], "{word}");
        if !memory {
            assert_eq!(vmm.end().code(), Some(3));
        }
        drop(handler);
        std::fs::remove_file(dir.path().join("handler.sock")).unwrap();
        let _ = std::fs::remove_file(dir.path().join("release"));
    }
}

#[test]
fn a_signal_ends_a_vm_whose_handler_lives_and_hands_nothing_out() {
    // While it loads.
    let dir = snapshot();
    let handler = Handler::start(dir.path(), 0);
    let mut vmm = Vmm::new();
    std::thread::scope(|scope| {
        let (loader, body) = (&vmm, load(dir.path(), &handler.socket));
        let loading = scope.spawn(move || loader.try_send("PUT", "/snapshot/load", &body));
        let limit = Instant::now() + LIMIT;
        while !vmm.read("vm.log").contains("\"event\":\"start\"") {
            assert!(Instant::now() < limit, "it is not loaded");
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(200));
        terminate(&vmm);
        assert!(!loading.join().unwrap().contains("204"));
    });
    ends_by_signal(&mut vmm);
    // While it runs, and the main thread stands still; while it is saved, and the API's thread does.
    for saved in [false, true] {
        let dir = if saved { snapshot() } else { asking(WITHHELD) };
        let handler = Handler::withholding(dir.path(), WITHHELD);
        let mut vmm = Vmm::new();
        vmm.must("PUT", "/snapshot/load", &load(dir.path(), &handler.socket));
        std::thread::scope(|scope| {
            let (again, path) = (&vmm, dir.path());
            if saved {
                vmm.must("PATCH", "/vm", &json!({"state": "Paused"}));
                let create = json!({"snapshot_path": path.join("state2"), "mem_file_path": path.join("memory2")});
                scope.spawn(move || again.try_send("PUT", "/snapshot/create", &create));
            }
            Handler::wait_for_victim(dir.path());
            terminate(&vmm);
        });
        ends_by_signal(&mut vmm);
        assert!(!dir.path().join("memory2").exists());
    }
}

/// Asserts that a signal has ended the VM.
fn ends_by_signal(vmm: &mut Vmm) {
    assert_eq!(vmm.end().code(), Some(0));
    let log = vmm.read("vm.log");
    let last = log.lines().last().unwrap_or_default();
    assert!(last.contains("\"event\":\"end\"") && last.contains("\"killed\""), "{log}");
    assert_eq!(log.matches("\"event\":\"end\"").count(), 1, "{log}");
}

#[test]
fn a_request_that_the_main_thread_cannot_take_fails_and_is_not_carried_out_later() {
    let dir = asking(WITHHELD);
    let _handler = Handler::withholding(dir.path(), WITHHELD);
    let mut vmm = Vmm::new();
    vmm.must("PUT", "/snapshot/load", &load(dir.path(), &dir.path().join("handler.sock")));
    Handler::wait_for_victim(dir.path());
    vmm.refused("PATCH", "/vm", Some(&json!({"state": "Paused"})), "page-fault handler");
    assert_eq!(vmm.state(), "Running");
    Handler::release(dir.path());
    vmm.wait_for("...");
    assert_eq!(vmm.state(), "Running");
    vmm.must("PATCH", "/vm", &json!({"state": "Paused"}));
    assert_eq!(vmm.state(), "Paused");
}

#[test]
fn a_handler_of_another_pid_namespace_is_seen_to_end() {
    let dir = snapshot();
    let mut handler = Handler::start(dir.path(), ALL);
    let own = tempfile::tempdir().unwrap();
    let mut vmm = Vmm::run(in_pid_namespace(&command(own.path())), own);
    vmm.must("PUT", "/snapshot/load", &load(dir.path(), &handler.socket));
    vmm.wait_for("kept");
    handler.kill();
    assert_eq!(vmm.end().code(), Some(3));
    assert!(vmm.read("vm.log").contains("page-fault-handler"), "{}", vmm.read("vm.log"));
}

/// A program with its arguments, in a PID namespace of its own.
fn in_pid_namespace(program: &Command) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--"]).arg(program.get_program()).args(program.get_args());
    command.current_dir(program.get_current_dir().unwrap());
    command
}
