//! VMs whose memory another process hands out, page by page.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};

use crate::client::{LIMIT, Vmm};
use crate::guest::Guest;

/// Says to this test program, run again, that it hands out pages: the socket, the memory's file, how many pages.
const HANDLER: &str = "PORTCULLIS_TEST_HANDLER";
/// Pages that a handler hands out which is never tired.
const ALL: usize = 1 << 20;
const PAGE: u64 = 4096;
/// What the guest looks at again and again.
const PLACE: u32 = 0x20_0000;
/// Pages of the guest's memory.
const PAGES: usize = 1024;

/// A page-fault handler in its own process.
struct Handler {
    child: Child,
    socket: PathBuf,
}

impl Handler {
    fn start(dir: &Path, memory: &Path, pages: usize) -> Self {
        let socket = dir.join("handler.sock");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "page_faults::play_the_handler", "--nocapture"]);
        command.env(HANDLER, format!("{} {} {pages}", socket.display(), memory.display()));
        command.stdout(File::create(dir.join("handler.log")).unwrap());
        let child = command.spawn().unwrap();
        let limit = Instant::now() + LIMIT;
        while !socket.exists() {
            assert!(Instant::now() < limit, "no handler");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        Self { child, socket }
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
    let (memory, pages) = (File::open(told[1]).unwrap(), told[2].parse::<usize>().unwrap());
    let listener = UnixListener::bind(told[0]).unwrap();
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
    for count in 1.. {
        let Some(address) = next_fault(&faults) else { return };
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
        memory.read_exact_at(&mut page, at).unwrap();
        copy(&faults, address, &page);
        println!("page {count}");
    }
}

/// The page of the next fault.
fn next_fault(faults: &OwnedFd) -> Option<u64> {
    loop {
        poll(&mut [PollFd::new(faults.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
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
    // SAFETY: the kernel reads the page and writes the structure, both of which are there.
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
    vmm.must("PATCH", "/vm", &json!({"state": "Paused"}));
    let create = json!({"snapshot_path": dir.path().join("state"), "mem_file_path": dir.path().join("memory")});
    vmm.must("PUT", "/snapshot/create", &create);
    dir
}

fn load(dir: &Path, socket: &Path) -> Value {
    let backend = json!({"backend_type": "Uffd", "backend_path": socket});
    json!({"snapshot_path": dir.join("state"), "resume_vm": true, "mem_backend": backend})
}

#[test]
fn a_guest_goes_on_in_memory_that_is_handed_out_page_by_page() {
    let dir = snapshot();
    let handler = Handler::start(dir.path(), &dir.path().join("memory"), ALL);
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
        let mut handler = Handler::start(dir.path(), &dir.path().join("memory"), pages);
        let mut vmm = Vmm::new();
        std::thread::scope(|scope| {
            let (loader, socket) = (&vmm, handler.socket.clone());
            let path = dir.path();
            let loading = scope.spawn(move || {
                let mut stream = loader.connect();
                let body = load(path, &socket).to_string();
                let head = format!("PUT /snapshot/load HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len());
                std::io::Write::write_all(&mut stream, (head + &body).as_bytes()).unwrap();
                let mut answer = Vec::new();
                let _ = std::io::Read::read_to_end(&mut stream, &mut answer);
            });
            std::thread::sleep(std::time::Duration::from_millis(300));
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
    let handler = Handler::start(dir.path(), &dir.path().join("memory"), ALL);
    vmm.must("PUT", "/snapshot/load", &load(dir.path(), &handler.socket));
    vmm.wait_for("kept");
}
