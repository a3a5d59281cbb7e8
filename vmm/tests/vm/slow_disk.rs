//! Disks whose host takes long: nothing but the request waits for it.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use portcullis_vmm::config::{CacheType, DriveConfig};
use portcullis_vmm::log::EndReason;

use crate::block::*;
use crate::driver::Driven;
use crate::guest::Guest;
use crate::harness::{Setup, Vmm};
use crate::virtio::{Descriptor, FIRST, NEXT, Queue, STATUS};

const LIMIT: Duration = Duration::from_mins(1);

/// A thread of a VMM whose next call of one kind does not come to its end before it is let go.
struct Held {
    begun: Receiver<()>,
    release: Option<Sender<Errno>>,
    tracer: Option<JoinHandle<()>>,
}

impl Held {
    /// Holds the thread of this name at `call`. Nothing of the host is slow at will, so the kernel's tracing stands in.
    fn at(vmm: &Vmm, thread: &str, call: i64) -> Self {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", vmm.pid())).unwrap().map(|task| task.unwrap().path());
        let mut named = tasks.filter(|task| std::fs::read_to_string(task.join("comm")).unwrap().trim() == thread);
        let task = named.next().unwrap_or_else(|| panic!("there is no thread {thread}"));
        let task = Pid::from_raw(task.file_name().unwrap().to_str().unwrap().parse().unwrap());
        let ((tell, begun), (release, released), (ready, is_ready)) = (channel(), channel(), channel());
        let tracer = std::thread::spawn(move || {
            ptrace::seize(task, ptrace::Options::PTRACE_O_TRACESYSGOOD).unwrap();
            ptrace::interrupt(task).unwrap();
            ready.send(()).unwrap();
            trace(task, call, &tell, &released);
        });
        is_ready.recv_timeout(LIMIT).unwrap();
        Self { begun, release: Some(release), tracer: Some(tracer) }
    }

    /// The thread is in the call.
    fn begun(&self) {
        self.begun.recv_timeout(LIMIT).unwrap();
    }

    fn release(&mut self) {
        self.release = None;
        self.tracer.take().unwrap().join().unwrap();
    }

    /// Lets it go, and the call has failed like this.
    fn fail(&mut self, error: Errno) {
        self.release.take().unwrap().send(error).unwrap();
        self.tracer.take().unwrap().join().unwrap();
    }
}

/// Lets the thread run until it comes to `call`, tells, and waits for leave. Returns when it is let go, or has ended.
fn trace(task: Pid, call: i64, tell: &Sender<()>, released: &Receiver<Errno>) {
    loop {
        match waitpid(task, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::PtraceSyscall(_)) if ptrace::getregs(task).unwrap().orig_rax == call.cast_unsigned() => {
                tell.send(()).unwrap();
                // Ends when the sender is gone.
                if let Ok(error) = released.recv() {
                    ptrace::syscall(task, None).unwrap();
                    assert!(matches!(waitpid(task, Some(WaitPidFlag::__WALL)), Ok(WaitStatus::PtraceSyscall(_))));
                    let mut registers = ptrace::getregs(task).unwrap();
                    registers.rax = (-i64::from(error as i32)).cast_unsigned();
                    ptrace::setregs(task, registers).unwrap();
                }
                let _ = ptrace::detach(task, None);
                return;
            }
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => return,
            Ok(_) => match ptrace::syscall(task, None) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => panic!("{error}"),
            },
            Err(Errno::EINTR) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Asks the first disk for a flush, the first of its requests, and does not wait.
fn flush(guest: Guest) -> Guest {
    ask(guest, FLUSH_KIND, &[])
}

/// The same for a request of this kind, with this data.
fn ask(guest: Guest, kind: u32, data: &[(u64, u32, u16)]) -> Guest {
    let all = [&[header(1)], data, &[status(1)]].concat();
    let guest = all.iter().zip(0u16..).fold(guest.disk_header(1, kind, 0), |guest, ((address, len, flags), index)| {
        let flags = if usize::from(index) + 1 < all.len() { flags | NEXT } else { *flags };
        let descriptor = Descriptor { address: *address, len: *len, flags, next: index + 1 };
        guest.descriptor(queue().descriptors, u32::from(index), descriptor)
    });
    guest.offer(queue(), 1, 0).notify(queue())
}

/// A VM with two disks, whose guest waits for a `g` and begins a flush of the first then.
fn flushing(after: impl FnOnce(Guest) -> Guest) -> Driven {
    let guest = Guest::new().virtio_start(FIRST, FLUSH, &[queue()]).virtio_start(FIRST + 0x1000, 0, &[second()]);
    let (mut setup, path) = with_disk(&after(flush(guest.print("ready").echo_until(b'g'))), &numbered(4));
    setup.config.drives[0].cache_type = CacheType::Writeback;
    let second = path.with_file_name("second");
    std::fs::write(&second, numbered(1)).unwrap();
    setup.config = setup.config.with_drive(DriveConfig::new("second", second));
    let mut vm = Driven::started(setup);
    vm.vmm.wait_for("ready");
    vm
}

/// A VM with one disk of so many queues, whose guest has said `ready`, got its `g` and begun a request: the host is at its
/// flush, and the guest tells at each key how many requests are done.
fn held_at_its_flush(guest: Guest, queues: u16) -> (Driven, Held) {
    let (mut setup, _) = with_disk(&guest.serve_keys(&Guest::new(), queue().used_index(), 1), &numbered(4));
    setup.config.drives[0].cache_type = CacheType::Writeback;
    setup.config.drives[0].num_queues = queues;
    let mut vm = Driven::started(setup);
    vm.vmm.wait_for("ready");
    let held = Held::at(&vm.vmm, "queue0", libc::SYS_fdatasync);
    vm.vmm.type_in("g");
    held.begun();
    (vm, held)
}

/// The request is not answered before the host's flush is over, and is then.
fn is_done_once_let_go(mut vm: Driven, mut held: Held) {
    assert_eq!(done(&mut vm), "00");
    held.release();
    until_done(&mut vm);
    vm.vmm.type_in("q");
    vm.vmm.wait().expect_end(EndReason::Reset);
}

fn second() -> Queue {
    Queue::at(FIRST + 0x1000, 0, 8)
}

/// A VMM for a snapshot.
fn other() -> Driven {
    Driven::new(Setup::new(&Guest::new().hang()))
}

/// Presses a key; gives how many requests of the first disk are done.
fn done(vm: &mut Driven) -> String {
    let before = vm.vmm.output_text().len();
    vm.vmm.type_in("p");
    vm.vmm.wait_for_more(before, 2)
}

fn until_done(vm: &mut Driven) {
    let limit = Instant::now() + LIMIT;
    while done(vm) != "01" {
        assert!(Instant::now() < limit, "the flush was never answered");
    }
}

#[test]
fn nothing_waits_for_a_flush_that_takes_long() {
    let used = queue().used_index();
    let mut vm = flushing(|guest| {
        // The other disk is served meanwhile.
        let guest = guest.disk_request_at(second(), 2, READ_KIND, 0, &[room(0, 512)]).print_hex(DATA, 1);
        guest.serve_keys(&Guest::new(), used, 1)
    });
    let mut held = Held::at(&vm.vmm, "queue0", libc::SYS_fdatasync);
    vm.vmm.type_in("g");
    held.begun();
    vm.vmm.wait_for("g01");
    assert_eq!(done(&mut vm), "00");
    vm.ok("flush");
    for _ in 0..3 {
        vm.ok("pause");
        vm.ok("resume");
        assert_eq!(done(&mut vm), "00");
    }
    // A snapshot has the flush among what is still to be done.
    vm.ok("pause");
    let path = vm.dir.join("snapshot");
    vm.ok(&format!("save {}", path.display()));
    vm.ok("resume");
    held.release();
    until_done(&mut vm);
    vm.ok("pause");
    let load = format!("load {} resume", path.display());
    // Its disks are locked by the one that was saved.
    let error = other().ask(&load).unwrap_err();
    assert!(error.contains("in use"), "{error}");
    vm.vmm.signal(Signal::SIGKILL);
    vm.vmm.wait_killed();
    let mut restored = other();
    restored.ok(&load);
    until_done(&mut restored);
    restored.vmm.type_in("q");
    restored.vmm.wait().expect_end(EndReason::Reset);
}

#[test]
fn a_disk_of_several_queues_serves_one_while_another_waits() {
    const MULTIQUEUE: u32 = 1 << 12;
    let other = Queue::at(FIRST, 1, 8);
    let guest = Guest::new().virtio_start(FIRST, FLUSH | MULTIQUEUE, &[queue(), other]);
    let guest = flush(guest.print("ready").echo_until(b'g')).echo_until(b'h');
    let guest = guest.disk_request_at(other, 1, READ_KIND, 2, &[room(0, 512)]).print_hex(DATA, 1);
    let (mut vm, held) = held_at_its_flush(guest, 2);
    vm.vmm.type_in("h");
    vm.vmm.wait_for("gh03");
    is_done_once_let_go(vm, held);
}

/// The host tells of a write that it lost once. A guest whose flush has failed while its VM was paused must hear of it all the
/// same, though its flush is done again.
#[test]
fn a_flush_that_failed_during_a_pause_is_told() {
    let after = |guest: Guest| {
        let guest = guest.wait_for16(queue().used_index(), 1).disk(2, FLUSH_KIND, 0, &[]);
        guest.print_statuses(2).serve_keys(&Guest::new(), queue().used_index(), 1)
    };
    let mut vm = flushing(after);
    let mut held = Held::at(&vm.vmm, "queue0", libc::SYS_fdatasync);
    vm.vmm.type_in("g");
    held.begun();
    vm.ok("pause");
    held.fail(Errno::EIO);
    vm.ok("resume");
    // The first has failed, the next is as good as the disk is then.
    vm.vmm.wait_for("g0100");
    vm.vmm.type_in("q");
    vm.vmm.wait().expect_warnings(EndReason::Reset, &["the host could not do what the guest asked"]);
}

/// A driver that was offered a flush and did not take it cannot ask for one: each write is on the host's disk before it is
/// answered.
#[test]
fn a_driver_without_a_flush_waits_for_the_hosts_disk() {
    let guest = Guest::new().virtio_start(FIRST, 0, &[queue()]).print("ready").echo_until(b'g');
    let (mut vm, held) = held_at_its_flush(ask(guest, WRITE_KIND, &[data(0, 512)]), 1);
    vm.vmm.wait_for("readyg");
    is_done_once_let_go(vm, held);
}

/// A guest that keeps its queue filled does not keep the file that was taken from it.
#[test]
fn a_replaced_disk_is_used_from_the_next_request_on() {
    // Both are in the queue before the device hears of any.
    let guest = Guest::new().virtio_start(FIRST, 0, &[queue()]).print("ready").echo_until(b'g');
    let guest = (1..=2u16).fold(guest, |guest, number| {
        let first = 3 * u32::from(number - 1);
        let all = [header(number), room(0x1000 * u32::from(number), 512), status(number)];
        let guest = all.iter().zip(first..).fold(guest.disk_header(number, READ_KIND, 0), |guest, (part, index)| {
            let (address, len, flags) = *part;
            let (flags, next) =
                (if index < first + 2 { flags | NEXT } else { flags }, u16::try_from(index + 1).unwrap());
            guest.descriptor(queue().descriptors, index, Descriptor { address, len, flags, next })
        });
        guest.offer(queue(), number, u16::try_from(first).unwrap())
    });
    let guest = guest.notify(queue()).wait_for16(queue().used_index(), 2);
    let guest = guest.print_hex(DATA + 0x1000, 1).print_hex(DATA + 0x2000, 1).print_statuses(2).reset();
    let (setup, path) = with_disk(&guest, &[1; 512]);
    let other = path.with_file_name("other");
    std::fs::write(&other, [2; 512]).unwrap();
    let mut vm = Driven::started(setup);
    vm.vmm.wait_for("ready");
    let mut held = Held::at(&vm.vmm, "queue0", libc::SYS_preadv);
    vm.vmm.type_in("g");
    held.begun();
    vm.ok(&format!("replace {}", other.display()));
    held.release();
    // The first request had begun.
    vm.vmm.wait_for("g01020000");
    vm.vmm.wait().expect_end(EndReason::Reset);
}

#[test]
fn a_vm_ends_while_a_flush_takes_long() {
    let mut vm = flushing(|guest| guest.serve_keys(&Guest::new(), queue().used_index(), 1));
    let mut held = Held::at(&vm.vmm, "queue0", libc::SYS_fdatasync);
    vm.vmm.type_in("g");
    held.begun();
    vm.vmm.signal(Signal::SIGTERM);
    // The last line of the log is there; what is left is the kernel's to end, which waits for the tracer.
    let (log, limit) = (vm.dir.join("vm.log"), Instant::now() + LIMIT);
    while !std::fs::read_to_string(&log).unwrap().contains(r#""event":"end""#) {
        assert!(Instant::now() < limit, "the VM did not end");
        std::thread::sleep(Duration::from_millis(2));
    }
    held.release();
    vm.vmm.wait().expect_end(EndReason::Killed);
}

#[test]
fn a_reset_does_not_wait_for_a_flush_and_the_next_driver_is_served() {
    let mut vm = flushing(|guest| {
        let guest = guest.echo_until(b'r').store32(FIRST + STATUS, 0).print("reset").echo_until(b'h');
        // The same place in the ring: the first request of the new driver.
        let guest = guest.store16(queue().available + 2, 0).store16(queue().used_index(), 0);
        let guest = guest.virtio_start(FIRST, FLUSH, &[queue()]);
        guest.disk(1, READ_KIND, 1, &[room(0, 512)]).print_hex(DATA, 1).reset()
    });
    let mut held = Held::at(&vm.vmm, "queue0", libc::SYS_fdatasync);
    vm.vmm.type_in("g");
    held.begun();
    vm.vmm.type_in("r");
    vm.vmm.wait_for("reset");
    held.release();
    vm.vmm.type_in("h");
    vm.vmm.wait_for("h02");
    vm.vmm.wait().expect_end(EndReason::Reset);
}
