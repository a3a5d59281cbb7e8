//! What the device waits for on the host's side: one epoll instance, which the event loop sees as one descriptor.
//!
//! Streams are watched edge by edge: whoever does not read or write to the end remembers that there is more. So a
//! socket that the guest does not empty costs nothing.

use std::io::Result;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

/// Events that are taken at once.
const BATCH: usize = 64;
/// How exactly deadlines are kept.
const TICK: Duration = Duration::from_millis(250);

// Above all numbers of streams.
const AGAIN: u64 = 1 << 32;
const TIMER: u64 = AGAIN + 1;
const LISTENER: u64 = AGAIN + 2;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// [`Wakeup::again`] was called.
    Again,
    /// Deadlines are to be looked at; once for each [`Wakeup::tick`], or several.
    Tick,
    /// Somebody connects.
    Listener,
    /// Something with the stream of that number.
    Stream(u32, EventSet),
}

/// The descriptors.
pub struct Wakeup {
    epoll: Epoll,
    timer: TimerFd,
    ticking: bool,
    again: EventFd,
}

impl Wakeup {
    /// Nothing to wait for yet.
    pub fn new() -> Result<Self> {
        let wakeup = Self {
            epoll: Epoll::new()?,
            timer: TimerFd::new()?,
            ticking: false,
            again: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        };
        wakeup.add(wakeup.timer.as_raw_fd(), EventSet::IN, TIMER)?;
        wakeup.add(wakeup.again.as_raw_fd(), EventSet::IN, AGAIN)?;
        Ok(wakeup)
    }

    /// Readable when something has happened.
    pub fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    fn add(&self, fd: RawFd, set: EventSet, data: u64) -> Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(set, data))
    }

    /// Waits for a stream too, until it is closed.
    pub fn watch_stream(&self, stream: &UnixStream, number: u32) -> Result<()> {
        let set = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        self.add(stream.as_raw_fd(), set, u64::from(number))
    }

    /// Waits for connections too.
    pub fn watch_listener(&self, listener: &UnixListener) -> Result<()> {
        self.add(listener.as_raw_fd(), EventSet::IN, LISTENER)
    }

    /// Waits for connections no more.
    pub fn ignore_listener(&self, listener: &UnixListener) -> Result<()> {
        self.epoll.ctl(ControlOperation::Delete, listener.as_raw_fd(), EpollEvent::default())
    }

    /// Looks at deadlines soon.
    pub fn tick(&mut self) {
        if !self.ticking {
            self.ticking = self.timer.reset(TICK, None).is_ok();
        }
    }

    /// Comes back at once.
    pub fn again(&self) {
        // Full only if it says so already.
        let _ = self.again.write(1);
    }

    /// What has happened, without waiting; a bounded part of it.
    pub fn take(&mut self) -> Vec<Happened> {
        let mut events = [EpollEvent::default(); BATCH];
        // It fails only when a signal came; the next turn is soon then.
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        let mut happened = Vec::with_capacity(count);
        for event in events.iter().take(count) {
            happened.push(match event.data() {
                AGAIN => {
                    let _ = self.again.read();
                    Happened::Again
                }
                TIMER => {
                    // Stopped rather than read, which would wait if it had been set anew since.
                    let _ = self.timer.clear();
                    self.ticking = false;
                    Happened::Tick
                }
                LISTENER => Happened::Listener,
                number => Happened::Stream(u32::try_from(number).unwrap_or(u32::MAX), event.event_set()),
            });
        }
        happened
    }
}
