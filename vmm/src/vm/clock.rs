//! Time since the process began.

use std::time::Instant;

/// When the process began. Made in the first line of `main`.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// The process begins now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Microseconds since then.
    pub fn elapsed_us(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Microseconds of the host's monotonic clock, which a program that starts this one can read too.
    pub fn monotonic_us() -> u64 {
        read(libc::CLOCK_MONOTONIC)
    }

    /// Microseconds of processor time that all threads of the process have used.
    pub fn cpu_us() -> u64 {
        read(libc::CLOCK_PROCESS_CPUTIME_ID)
    }
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the call to fill.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000).saturating_add(nanos / 1000)
}

/// When the start began, as a program says that starts this one (Firecracker's jailer does), for the metrics of the
/// start. In microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct StartTimes {
    /// On the monotonic clock. Without it the start began with the process.
    pub start_us: Option<u64>,
    /// On the clock of the process's processor time.
    pub start_cpu_us: Option<u64>,
    /// Processor time that the program used which started this one. As in Firecracker, it counts only beside
    /// `start_cpu_us`.
    pub parent_cpu_us: Option<u64>,
}

impl StartTimes {
    /// Time since the start began; `clock` knows the process's.
    pub(super) fn elapsed_us(&self, clock: Clock) -> u64 {
        self.start_us.map_or_else(|| clock.elapsed_us(), |start| Clock::monotonic_us().saturating_sub(start))
    }

    /// Processor time since then.
    pub(super) fn cpu_us(&self) -> u64 {
        let own = Clock::cpu_us();
        self.start_cpu_us.map_or(own, |start| own.saturating_sub(start).saturating_add(self.parent_cpu_us.unwrap_or(0)))
    }
}
