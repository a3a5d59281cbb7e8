//! A thread that sees the end of the process that hands out the guest's pages.
//!
//! Whoever touches a page that nobody hands out any more stands still for ever, and that can be every other thread. So this
//! one touches none of the guest's memory: it tells the main thread, and where that does not end the VM, ends the process.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use seccompiler::BpfProgram;
use vmm_sys_util::eventfd::EventFd;

use super::control::{Shared, VmState};
use super::{Clock, STACK, VmError, borrow};
use crate::jail::seccomp::{self, ThreadKind};
use crate::log::{EndReason, Event};

/// Milliseconds that the main thread has to end the VM as it ends others.
const GRACE: u16 = 5000;
/// What the API's thread has to remove its socket.
const CLEANING: Duration = Duration::from_millis(500);

/// Watches the process until it is dropped.
pub(super) struct Watch {
    done: Arc<EventFd>,
    lost: Arc<AtomicBool>,
}

impl Watch {
    /// Starts the thread. `filter` is of its kind, unless filters are left out.
    pub(super) fn start(
        process: OwnedFd,
        shared: Arc<Shared>,
        clock: Clock,
        filter: Option<BpfProgram>,
    ) -> Result<Self, VmError> {
        let done = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(VmError::EventFd)?;
        let done = Arc::new(done);
        let lost = Arc::new(AtomicBool::new(false));
        let (hears, sees) = (Arc::clone(&done), Arc::clone(&lost));
        let builder = std::thread::Builder::new().name("watch".to_owned()).stack_size(STACK);
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let thread = move || {
            let confined = filter.map_or(Ok(()), |filter| seccomp::install(ThreadKind::Watch, &filter));
            let ok = confined.is_ok();
            let _ = tell.send(confined);
            if ok {
                watch(&process, &hears, &sees, &shared, clock);
            }
        };
        builder.spawn(thread).map_err(VmError::Thread)?;
        told.recv().map_err(|_| VmError::HandlerEnded)??;
        Ok(Self { done, lost })
    }

    /// Whether the process has ended.
    pub(super) fn has_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    /// What is written when it is dropped.
    pub(super) fn descriptor(&self) -> RawFd {
        self.done.as_raw_fd()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.done.write(1);
    }
}

fn watch(process: &OwnedFd, done: &EventFd, lost: &AtomicBool, shared: &Shared, clock: Clock) {
    let waited = |fd, timeout: PollTimeout| {
        let mut set = [fd, borrow(done)].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let _ = poll(&mut set, timeout);
        set.map(|entry| entry.any().unwrap_or(false))
    };
    loop {
        match waited(process.as_fd(), PollTimeout::NONE) {
            [_, true] => return,
            [true, _] => break,
            _ => {}
        }
    }
    lost.store(true, Ordering::SeqCst);
    shared.ring();
    if waited(shared.ended(), PollTimeout::from(GRACE)) != [false, false] {
        return;
    }
    let error = VmError::HandlerEnded;
    let (reason, text) = (EndReason::Error, Some(error.to_string()));
    let run_us = clock.elapsed_us();
    Event::End { reason, error: Some(error.code().to_owned()), text, run_us, serial_out: 0, serial_lost: 0 }.emit();
    shared.set_state(VmState::Ended);
    std::thread::sleep(CLEANING);
    // Not `exit`, which would wait for what other threads hold.
    // SAFETY: it does not return.
    unsafe { libc::_exit(i32::from(error.exit_code())) }
}
