//! A thread that sees the end of the process that hands out the guest's pages, and the signals that end the VM.
//!
//! Whoever touches a page that nobody hands out stands still, and that can be every other thread. So this one touches none of
//! the guest's memory: it tells the main thread, and where that does not end the VM, ends the process.

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
use crate::memory::HandlerEnd;

/// Milliseconds that the main thread has to end the VM as it ends others.
const GRACE: u16 = 5000;
/// What the API's thread has to remove its socket.
const CLEANING: Duration = Duration::from_millis(500);

/// Watches until it is dropped.
pub(super) struct Watch {
    done: Arc<EventFd>,
    lost: Arc<AtomicBool>,
}

/// What is watched, and who is told.
pub(super) struct Watched {
    pub(super) handler: HandlerEnd,
    /// Readable while a signal waits for the main thread.
    pub(super) signals: OwnedFd,
    pub(super) shared: Arc<Shared>,
    pub(super) clock: Clock,
}

impl Watch {
    /// Starts the thread. `filter` is of its kind, unless filters are left out.
    pub(super) fn start(watched: Watched, filter: Option<BpfProgram>) -> Result<Self, VmError> {
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
                watched.watch(&hears, &sees);
            }
        };
        builder.spawn(thread).map_err(VmError::Thread)?;
        told.recv().map_err(|_| VmError::HandlerEnded)??;
        Ok(Self { done, lost })
    }

    /// Whether the handler has ended.
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

impl Watched {
    fn watch(&self, done: &EventFd, lost: &AtomicBool) {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let error = loop {
            let mut set = [self.handler.poll_fd(), readable(self.signals.as_fd()), readable(borrow(done))];
            let _ = poll(&mut set, PollTimeout::NONE);
            match set.map(|entry| entry.any().unwrap_or(false)) {
                [_, _, true] => return,
                [true, _, _] => break Some(VmError::HandlerEnded),
                // The main thread reads it, and ends the VM, if it can.
                [_, true, _] => break None,
                _ => {}
            }
        };
        if error.is_some() {
            lost.store(true, Ordering::SeqCst);
            self.shared.ring();
        }
        let mut set = [readable(self.shared.ended()), readable(borrow(done))];
        let _ = poll(&mut set, PollTimeout::from(GRACE));
        if set.iter().any(|entry| entry.any().unwrap_or(false)) {
            return;
        }
        self.end(error)
    }

    /// Ends the process, whatever its other threads wait for.
    fn end(&self, error: Option<VmError>) -> ! {
        if error.is_none() {
            tracing::warn!("the main thread stands still: the page-fault handler does not hand out what it waits for");
        }
        Event::End {
            reason: if error.is_some() { EndReason::Error } else { EndReason::Killed },
            error: error.as_ref().map(|error| error.code().to_owned()),
            text: error.as_ref().map(ToString::to_string),
            run_us: self.clock.elapsed_us(),
            serial_out: 0,
            serial_lost: 0,
        }
        .emit();
        self.shared.set_state(VmState::Ended);
        std::thread::sleep(CLEANING);
        // Not `exit`, which would wait for what other threads hold.
        // SAFETY: it does not return.
        unsafe { libc::_exit(error.map_or(0, |error| i32::from(error.exit_code()))) }
    }
}
