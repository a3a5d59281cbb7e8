//! A source of entropy (virtio 1.2, section 5.4): buffers of the guest are filled from the host's kernel.

mod config;
mod metrics;

use std::os::fd::AsRawFd;
use std::time::Duration;

use vmm_sys_util::epoll::EventSet;

use super::DeviceError;
use crate::jail::seccomp::Call;
use crate::rate_limiter::{RateLimiter, RateLimiterState};
use crate::virtio::{Active, Buffers, DeviceKind, Progress, QueueError, Source, VirtioDevice, Watch};

pub use config::EntropyConfig;
use metrics::Metrics;

/// Entries of the only queue.
const QUEUE_SIZE: u16 = 256;
/// Most bytes of one request that are filled; the driver asks again for more.
const MAX_BYTES: u64 = 64 * 1024;
/// Bytes after which others have a turn: a fraction of a millisecond.
const TURN_BYTES: u64 = 128 * 1024;
/// Bytes that are fetched from the kernel at once.
const CHUNK: usize = 256;

/// The limiter's timer.
const TIMER: u32 = 0;
/// What serving it takes.
const SYSTEM_CALLS: [Call; 2] = {
    let [timer] = RateLimiter::SYSTEM_CALLS;
    [Call::any(libc::SYS_getrandom), timer]
};

/// The device.
pub struct Entropy {
    limiter: RateLimiter,
    metrics: Metrics,
}

impl Entropy {
    /// A device that gives what the guest asks for, within the limits of `config`.
    pub fn new(config: &EntropyConfig) -> Result<Self, DeviceError> {
        let limiter = RateLimiter::new(config.rate_limiter.as_ref()).map_err(|source| DeviceError::Host {
            device: "entropy".to_owned(),
            step: "make a timer",
            source,
        })?;
        Ok(Self { limiter, metrics: Metrics::default() })
    }

    /// Fills one request's buffers; gives how many bytes.
    fn fill(active: &mut Active, mut buffers: Buffers) -> Result<u32, QueueError> {
        let mut left = usize::try_from(buffers.len().min(MAX_BYTES)).unwrap_or(0);
        let mut filled = 0u32;
        while left > 0 {
            let mut bytes = [0; CHUNK];
            let chunk = bytes.get_mut(..left.min(CHUNK)).unwrap_or_default();
            // SAFETY: the kernel writes at most as many bytes as `chunk` has.
            let got = unsafe { libc::getrandom(chunk.as_mut_ptr().cast(), chunk.len(), libc::GRND_NONBLOCK) };
            let Ok(got @ 1..) = usize::try_from(got) else {
                // The host's pool is not ready: the guest gets what there was.
                break;
            };
            buffers.write(&active.ram, chunk.get(..got).unwrap_or_default())?;
            left = left.saturating_sub(got);
            filled = filled.saturating_add(u32::try_from(got).unwrap_or(0));
        }
        Ok(filled)
    }
}

impl VirtioDevice for Entropy {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Entropy
    }

    fn name(&self) -> String {
        "entropy".to_owned()
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn system_calls(&self) -> &'static [Call] {
        &SYSTEM_CALLS
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn reset(&mut self) {
        self.limiter.timer_event();
    }

    fn serve_queue(&mut self, active: &mut Active, index: usize) -> Result<Progress, QueueError> {
        self.metrics.entropy_event_count.inc();
        if self.limiter.is_waiting() {
            return Ok(Progress::Idle);
        }
        let mut bytes = 0;
        for _ in 0..active.queue(index)?.size() {
            let Some(chain) = active.queue(index)?.pop()? else {
                let more = active.queue(index)?.enable_notification()?;
                active.notify(index)?;
                return Ok(if more { Progress::More } else { Progress::Idle });
            };
            // No more than is given: of a larger buffer the rest stays as it is.
            if !self.limiter.admit(chain.writable.len().min(MAX_BYTES)) {
                self.metrics.entropy_rate_limiter_throttled.inc();
                active.queue(index)?.unpop();
                active.notify(index)?;
                return Ok(Progress::Idle);
            }
            let filled = Self::fill(active, chain.writable)?;
            if filled == 0 {
                self.metrics.entropy_event_fails.inc();
            }
            self.metrics.entropy_bytes.add(u64::from(filled));
            active.queue(index)?.push(chain.head, filled)?;
            bytes += u64::from(filled);
            if bytes >= TURN_BYTES {
                break;
            }
        }
        active.notify(index)?;
        Ok(Progress::More)
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { fd: self.limiter.as_raw_fd(), token: TIMER, set: EventSet::IN }]
    }

    fn serve_source(
        &mut self,
        active: Option<&mut Active>,
        _token: u32,
        _set: EventSet,
        _watch: Watch<'_>,
    ) -> Result<(), QueueError> {
        self.metrics.rate_limiter_event_count.inc();
        self.limiter.timer_event();
        // The driver may have been reset since, and may have set up no queue.
        if let Some(active) = active
            && active.queue(0).is_ok()
            && self.serve_queue(active, 0)? == Progress::More
        {
            self.limiter.wake_after(Duration::ZERO);
        }
        Ok(())
    }

    fn save(&mut self, _active: Option<&mut Active>) -> Vec<u8> {
        let state = self.limiter.save();
        // Nothing for a device without limits, as before there were any.
        if state == RateLimiterState::default() { Vec::new() } else { postcard::to_stdvec(&state).unwrap_or_default() }
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        if state.is_empty() {
            return self.limiter.restore(RateLimiterState::default());
        }
        let broken = |e: &dyn std::fmt::Display| format!("entropy: its state cannot be read: {e}");
        let (state, rest): (RateLimiterState, _) = postcard::take_from_bytes(state).map_err(|e| broken(&e))?;
        if !rest.is_empty() {
            return Err(broken(&"it is too long"));
        }
        self.limiter.restore(state).map_err(|e| broken(&e))
    }

    fn metrics(&self) -> Vec<(String, serde_json::Value)> {
        vec![("entropy".to_owned(), serde_json::to_value(&self.metrics).unwrap_or_default())]
    }

    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::transport::driver::{CHAINS, Driver, FREE};

    #[test]
    fn others_have_a_turn_before_all_large_requests_are_done() {
        let mut driver = Driver::new(Box::new(Entropy::new(&EntropyConfig::default()).unwrap()));
        driver.start(0);
        driver.settle();
        for number in 0..CHAINS {
            driver.offer(0, &[(FREE + 0x1_0000 * u64::from(number), 0x1_0000, true)]);
        }
        let mut turns = 0;
        while driver.is_busy() {
            driver.events.wait(0).unwrap();
            let used = std::iter::from_fn(|| driver.used(0)).count();
            assert!(used <= 2, "{used} requests of 64 KiB in one turn");
            turns += usize::from(used > 0);
        }
        assert_eq!(turns, usize::from(CHAINS) / 2);
    }

    #[test]
    fn a_snapshot_keeps_what_is_left_of_the_limits() {
        let config = r#"{"rate_limiter": {"ops": {"size": 2, "refill_time": 3600000}}}"#;
        let limited = || Entropy::new(&serde_json::from_str(config).unwrap()).unwrap();
        let mut used = limited();
        assert!(used.limiter.admit(0));
        let state = used.save(None);
        let mut restored = limited();
        restored.restore(&state).unwrap();
        assert!(restored.limiter.admit(0) && !restored.limiter.admit(0));
        for broken in [&state[..state.len() - 1], &[state.as_slice(), &[0]].concat()] {
            assert!(limited().restore(broken).unwrap_err().contains("entropy"));
        }
        let mut free = Entropy::new(&EntropyConfig::default()).unwrap();
        let state = free.save(None);
        assert!(state.is_empty());
        free.restore(&state).unwrap();
        assert!((0..9).all(|_| free.limiter.admit(1 << 20)));
    }
}
