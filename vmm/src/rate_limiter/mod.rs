//! How much a guest may ask of the host: token buckets for bytes and for operations, and the timer that goes off when
//! what had to wait may go on.

mod bucket;
mod config;
mod limits;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

use crate::jail::seccomp::Call;

pub use bucket::{Level, TokenBucket};
pub use config::{RateLimiterConfig, TokenBucketConfig};
pub use limits::{Limits, RateLimiterState};

/// The limits of one device, or of one direction of it.
///
/// A device asks [`RateLimiter::admit`] before each request. Told no, it leaves the request where it is, watches the
/// limiter's descriptor, and when that is readable calls [`RateLimiter::timer_event`] and asks again.
pub struct RateLimiter {
    limits: Limits,
    timer: TimerFd,
    /// Something had to wait, and the timer has not gone off yet.
    waiting: bool,
}

impl RateLimiter {
    /// System calls that a limiter makes on the thread that uses it.
    pub const SYSTEM_CALLS: [Call; 1] = [Call::any(libc::SYS_timerfd_settime).on_watched()];

    /// A limiter as configured, its buckets full; without a configuration, one that lets everything through until
    /// [`RateLimiter::update`] gives it limits.
    pub fn new(config: Option<&RateLimiterConfig>) -> io::Result<Self> {
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Self { limits: Limits::new(config), timer, waiting: false })
    }

    /// Takes over the buckets that `config` names, full. Those that it does not name stay as they are. What waits is
    /// looked at again at once.
    pub fn update(&mut self, config: &RateLimiterConfig) {
        self.limits.update(config);
        if self.waiting {
            self.wake_after(Duration::ZERO);
        }
    }

    /// Whether one operation of `bytes` bytes may be done now; it is then counted. If not, the timer goes off when it
    /// may.
    pub fn admit(&mut self, bytes: u64) -> bool {
        if self.waiting {
            return false;
        }
        let wait = self.limits.admit(bytes);
        if wait.is_zero() {
            return true;
        }
        self.wake_after(wait);
        false
    }

    /// Whether something waits for the timer.
    pub fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Lets the timer go off after `wait`. Also for a device that was served by the timer and has more to do.
    pub fn wake_after(&mut self, wait: Duration) {
        // Zero would switch it off.
        self.waiting = self.timer.reset(wait.max(Duration::from_nanos(1)), None).is_ok();
    }

    /// The timer has gone off, or the device is reset: nothing waits any more.
    pub fn timer_event(&mut self) {
        if std::mem::take(&mut self.waiting) {
            // Setting it also takes back that it went off; reading it could block.
            let _ = self.timer.clear();
        }
    }

    /// What a snapshot keeps.
    pub fn save(&mut self) -> RateLimiterState {
        self.limits.save()
    }

    /// Puts back what a snapshot has kept; the text says what is wrong with it.
    pub fn restore(&mut self, state: RateLimiterState) -> Result<(), String> {
        self.limits.restore(state)
    }
}

impl AsRawFd for RateLimiter {
    /// The timer's descriptor, readable when it has gone off.
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

#[cfg(test)]
mod tests;
