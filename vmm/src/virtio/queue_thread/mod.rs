//! Queues that are served by threads of their own, one each: what they do may take the host long, and nothing else is to
//! wait for it.
//!
//! Such a thread does one request after the other and waits for the host itself: when it stands still, nothing is in
//! flight. [`desk`] is how it stands still.

pub(super) mod desk;
mod threads;

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::Progress;
use crate::jail::seccomp::Call;
use desk::Desk;

pub use desk::{Served, Stop, Turn};
pub use threads::{Report, start};

// What a thread waits for.
const DOORBELL: u64 = 0;
const TIMER: u64 = 1;

/// What a device does with one of its queues, on the queue's thread.
///
/// As for [`VirtioDevice`](super::VirtioDevice): it must not panic, nor take memory that the guest decides about. It may
/// wait for the host in each of its system calls as long as one piece of work takes, and looks then whether somebody
/// wants the queue ([`Turn::wish`]).
pub trait QueueServer: Send {
    /// System calls that serving takes, beside those of every such thread ([`crate::jail::seccomp`]).
    fn system_calls(&self) -> &'static [Call];

    /// A descriptor that is readable when what had to wait may go on.
    fn timer(&self) -> RawFd;

    /// The timer's descriptor is readable.
    fn timer_event(&mut self);

    /// Serves the queue until it is empty, has to wait for the timer ([`Progress::Idle`]), or somebody wants it.
    fn serve(&mut self, turn: &mut Turn<'_>) -> Result<Progress, Stop>;
}

/// One thread's work, before there is the thread, or in a test instead of it.
pub struct QueueThread {
    desk: Arc<Desk>,
    server: Box<dyn QueueServer>,
    epoll: Epoll,
}

impl QueueThread {
    /// Serves the queue that lies on `desk` from now on. `doorbell` is the driver's.
    pub(super) fn new(desk: Arc<Desk>, doorbell: &EventFd, server: Box<dyn QueueServer>) -> std::io::Result<Self> {
        let epoll = Epoll::new()?;
        // The counter by edges: each write is told once, and nobody has to read it.
        let edges = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, DOORBELL);
        epoll.ctl(ControlOperation::Add, doorbell.as_raw_fd(), edges)?;
        epoll.ctl(ControlOperation::Add, server.timer(), EpollEvent::new(EventSet::IN, TIMER))?;
        Ok(Self { desk, server, epoll })
    }

    /// Waits for something to do, so many milliseconds at most (-1: for ever), and does it. Gives whether it is to go on.
    pub fn serve(&mut self, timeout_ms: i32) -> std::io::Result<bool> {
        let mut events = [EpollEvent::default(); 2];
        let count = match self.epoll.wait(timeout_ms, &mut events) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => 0,
            result => result?,
        };
        if events.iter().take(count).any(|event| event.data() == TIMER) {
            self.server.timer_event();
        }
        if count > 0 {
            self.work();
        }
        Ok(!self.desk.is_over())
    }

    /// Serves until there is nothing to do, or not now.
    fn work(&mut self) {
        while let Some(mut turn) = self.desk.take() {
            match self.server.serve(&mut turn) {
                Ok(Progress::Idle) => return,
                // When a turn is over there may be a new queue already, or the same one again.
                Ok(Progress::More) | Err(Stop::Over) => {}
                Err(Stop::Broken(error)) => turn.give_up(error),
            }
        }
    }
}

impl AsRawFd for QueueThread {
    /// Readable when there is something to do.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

#[cfg(test)]
mod tests;
