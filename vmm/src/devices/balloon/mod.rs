//! A memory balloon (virtio 1.2, section 5.5): the guest gives pages that it has no use for, and the host takes the
//! memory behind them.
//!
//! How big it should be is the host's wish; how big it is, is what the guest makes of it. A page that was given reads
//! as zeros when the guest touches it again, and costs the host memory again. Page numbers are checked against guest
//! memory: a guest can throw away what is its own, and nothing else.
//!
//! Of a restored guest, whose memory is mapped from a file, at most 16,384 ranges are taken in its life: each takes a
//! mapping, of which a process has not many. What comes after those is not taken, unless it was taken before.

mod config;
mod metrics;
mod pages;
mod statistics;

use std::ops::Range;
use std::os::fd::AsRawFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::warn;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use super::DeviceError;
use crate::jail::seccomp::Call;
use crate::virtio::{Active, Buffers, Chain, DeviceKind, Progress, QueueError, Source, VirtioDevice, Watch};

pub use config::BalloonConfig;
use metrics::Metrics;
pub use statistics::{BalloonStatistics, GuestStatistics};
use statistics::{MAX_BYTES, PAGES_PER_MIB};

/// Queue of pages that the guest gives.
const INFLATE: usize = 0;
/// Queue of pages that it takes back.
const DEFLATE: usize = 1;
/// Entries of each.
const QUEUE_SIZE: u16 = 256;
/// Pages after which others have a turn.
const PAGES_PER_TURN: u64 = 4096;
/// The only token: the timer.
const TIMER: u32 = 0;

/// `VIRTIO_BALLOON_F_STATS_VQ`
const FEATURE_STATISTICS: u32 = 1;
/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`
const FEATURE_DEFLATE_ON_OOM: u32 = 2;
/// `VIRTIO_BALLOON_F_PAGE_REPORTING`
const FEATURE_REPORTING: u32 = 5;

/// Offset of the size that the guest has reached, in configuration space.
const ACTUAL: u64 = 4;

/// Why a command for the balloon was refused. The texts are Firecracker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BalloonError {
    /// The guest does not have that much.
    #[error("Amount of pages requested is too large.")]
    TooManyPagesRequested,
    /// There are no statistics.
    #[error("Statistics for the balloon device are not enabled")]
    StatisticsDisabled,
    /// Whether there are statistics was settled at the start.
    #[error("Cannot enable/disable the statistics after boot.")]
    StatisticsStateChange,
}

/// The device.
pub struct Balloon {
    config: BalloonConfig,
    /// Most pages that can be asked for: what the guest has.
    max_pages: u32,
    queue_sizes: Vec<u16>,
    /// Pages that the balloon should have.
    target: u32,
    /// Pages that it has, as the guest says.
    actual: u32,
    timer: TimerFd,
    /// The guest's buffer for statistics, which it gets back when new ones are wanted.
    held: Option<u16>,
    statistics: GuestStatistics,
    /// What was taken of a snapshot's memory.
    replaced: pages::Replaced,
    /// The log says already that pages cannot be taken.
    told: bool,
    metrics: Metrics,
}

/// What a snapshot keeps.
#[derive(Serialize, Deserialize, Debug, PartialEq, Eq)]
struct State {
    target: u32,
    actual: u32,
    interval_s: u16,
    held: Option<u16>,
}

impl Balloon {
    /// A balloon of a guest with `mem_size_mib` of memory.
    pub fn new(config: &BalloonConfig, mem_size_mib: u64) -> Result<Self, DeviceError> {
        let host = |source: vmm_sys_util::errno::Error| DeviceError::Host {
            device: "balloon".to_owned(),
            step: "make a timer",
            source: source.into(),
        };
        let max_pages = u32::try_from(mem_size_mib.saturating_mul(u64::from(PAGES_PER_MIB))).unwrap_or(u32::MAX);
        let optional = [config.stats_polling_interval_s > 0, config.free_page_reporting];
        // The driver counts the queues that there are; those of features that are not offered are not there.
        let queues = 2 + optional.into_iter().filter(|there| *there).count();
        Ok(Self {
            config: config.clone(),
            max_pages,
            queue_sizes: vec![QUEUE_SIZE; queues],
            target: config.amount_mib.saturating_mul(PAGES_PER_MIB).min(max_pages),
            actual: 0,
            timer: TimerFd::new().map_err(host)?,
            held: None,
            statistics: GuestStatistics::default(),
            replaced: pages::Replaced::default(),
            told: false,
            metrics: Metrics::default(),
        })
    }

    /// The queue of statistics, if there are any.
    fn statistics_queue(&self) -> Option<usize> {
        (self.config.stats_polling_interval_s > 0).then_some(DEFLATE + 1)
    }

    /// How it is configured now, for `GET /balloon`.
    pub fn config(&self) -> BalloonConfig {
        BalloonConfig { amount_mib: self.target / PAGES_PER_MIB, ..self.config.clone() }
    }

    /// Asks the guest for so many MiB, for `PATCH /balloon`. The configuration space changes.
    pub fn set_target(&mut self, mib: u32) -> Result<(), BalloonError> {
        let pages = mib.checked_mul(PAGES_PER_MIB).filter(|pages| *pages <= self.max_pages);
        self.target = pages.ok_or(BalloonError::TooManyPagesRequested)?;
        Ok(())
    }

    /// Asks the guest for statistics every so many seconds, for `PATCH /balloon/statistics`.
    pub fn set_polling(&mut self, interval_s: u16) -> Result<(), BalloonError> {
        if (interval_s == 0) != (self.config.stats_polling_interval_s == 0) {
            return Err(BalloonError::StatisticsStateChange);
        }
        if interval_s != self.config.stats_polling_interval_s {
            self.config.stats_polling_interval_s = interval_s;
            self.set_timer();
        }
        Ok(())
    }

    /// What the guest last said, for `GET /balloon/statistics`.
    pub fn statistics(&self) -> Result<BalloonStatistics, BalloonError> {
        if self.config.stats_polling_interval_s == 0 {
            return Err(BalloonError::StatisticsDisabled);
        }
        Ok(BalloonStatistics {
            target_pages: self.target,
            actual_pages: self.actual,
            target_mib: self.target / PAGES_PER_MIB,
            actual_mib: self.actual / PAGES_PER_MIB,
            guest: self.statistics.clone(),
        })
    }

    fn set_timer(&mut self) {
        let interval = Duration::from_secs(u64::from(self.config.stats_polling_interval_s));
        let set = if interval.is_zero() { Ok(()) } else { self.timer.reset(interval, None) };
        if set.is_err() {
            self.metrics.event_fails.inc();
        }
    }

    /// Gives a range back to the host. Where that cannot be it stays the guest's, who is not told: nothing of the
    /// protocol says how. A guest may bring that about as often as it likes, and the log hears of it once.
    fn discard(&mut self, active: &Active, range: &Range<u64>) -> bool {
        let Err(error) = pages::discard(&active.ram, range, &mut self.replaced) else {
            return true;
        };
        if !std::mem::replace(&mut self.told, true) {
            warn!(device = "balloon", %error, "memory that the guest gives cannot be taken, and costs the host as before");
        }
        false
    }

    /// Takes pages; gives how many.
    fn inflate(&mut self, active: &Active, readable: Buffers) -> Result<u64, QueueError> {
        let ranges = pages::read_ranges(readable, &active.ram)?;
        for range in &ranges {
            if !self.discard(active, range) {
                self.metrics.event_fails.inc();
            }
        }
        Ok(ranges.iter().map(|range| (range.end - range.start) / pages::PAGE).sum())
    }

    /// Takes pages that the guest has no use for at the moment; gives how many.
    fn take_reported(&mut self, active: &Active, writable: &Buffers) -> u64 {
        let mut taken = 0;
        for range in writable.ranges() {
            let range = pages::whole_pages(range);
            let bytes = range.end - range.start;
            if bytes == 0 {
                continue;
            }
            if self.discard(active, &range) {
                self.metrics.free_page_report_freed.add(bytes);
                taken += bytes / pages::PAGE;
            } else {
                self.metrics.free_page_report_fails.inc();
            }
        }
        taken
    }

    /// Takes statistics, and keeps the buffer they came in until the next are wanted. There should be one buffer; a
    /// driver with more gets the older back.
    fn take_statistics(&mut self, active: &Active, mut chain: Chain) -> Result<Option<u16>, QueueError> {
        self.metrics.stats_updates_count.inc();
        let mut bytes = [0; MAX_BYTES];
        let count = chain.readable.read(&active.ram, &mut bytes)?;
        let unknown = self.statistics.update(bytes.get(..count).unwrap_or_default());
        self.metrics.stats_update_fails.add(u64::try_from(unknown).unwrap_or(0));
        Ok(self.held.replace(chain.head))
    }

    /// Serves one chain of queue `index`; gives how many pages that cost, nothing if there was none.
    fn serve_chain(&mut self, active: &mut Active, index: usize) -> Result<Option<u64>, QueueError> {
        let Some(chain) = active.queue(index)?.pop()? else {
            return Ok(None);
        };
        if Some(index) == self.statistics_queue() {
            if let Some(older) = self.take_statistics(active, chain)? {
                active.queue(index)?.push(older, 0)?;
            }
            return Ok(Some(0));
        }
        let cost = match index {
            INFLATE => {
                self.metrics.inflate_count.inc();
                self.inflate(active, chain.readable)?
            }
            // What the guest takes back is there when it touches it.
            DEFLATE => {
                self.metrics.deflate_count.inc();
                0
            }
            _ => {
                self.metrics.free_page_report_count.inc();
                self.take_reported(active, &chain.writable)
            }
        };
        active.queue(index)?.push(chain.head, 0)?;
        Ok(Some(cost))
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn name(&self) -> String {
        "balloon".to_owned()
    }

    fn features(&self) -> u64 {
        let bit = |set, bit: u32| if set { 1 << bit } else { 0 };
        bit(self.config.stats_polling_interval_s > 0, FEATURE_STATISTICS)
            | bit(self.config.deflate_on_oom, FEATURE_DEFLATE_ON_OOM)
            | bit(self.config.free_page_reporting, FEATURE_REPORTING)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn system_calls(&self) -> &'static [Call] {
        // To give anonymous memory back is what every thread may.
        const { &[pages::REPLACE[0], pages::REPLACE[1], Call::any(libc::SYS_timerfd_settime).on_watched()] }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = [self.target.to_le_bytes(), self.actual.to_le_bytes()];
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, byte) in data.iter_mut().zip(space.as_flattened().iter().skip(from)) {
            *place = *byte;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        match (offset, data.try_into().map(u32::from_le_bytes)) {
            (ACTUAL, Ok(pages)) => self.actual = pages,
            _ => self.metrics.cfg_fails.inc(),
        }
    }

    fn activate(&mut self, _active: &mut Active) {
        self.set_timer();
    }

    fn reset(&mut self) {
        // Not the size that was reached: the next driver may have written it already.
        self.held = None;
        let _ = self.timer.clear();
    }

    fn serve_queue(&mut self, active: &mut Active, index: usize) -> Result<Progress, QueueError> {
        let mut progress = Progress::More;
        let mut cost = 0;
        for _ in 0..active.queue(index)?.size() {
            let served = self.serve_chain(active, index);
            match served.inspect_err(|_| self.metrics.event_fails.inc())? {
                Some(pages) => cost += pages,
                None if active.queue(index)?.enable_notification()? => {}
                None => {
                    progress = Progress::Idle;
                    break;
                }
            }
            if cost >= PAGES_PER_TURN {
                break;
            }
        }
        active.notify(index)?;
        Ok(progress)
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { fd: self.timer.as_raw_fd(), token: TIMER, set: EventSet::IN }]
    }

    fn serve_source(
        &mut self,
        active: Option<&mut Active>,
        _token: u32,
        _set: EventSet,
        _watch: Watch<'_>,
    ) -> Result<(), QueueError> {
        let Some((active, index)) = active.zip(self.statistics_queue()) else {
            // Nobody to ask. The next driver starts it again.
            let _ = self.timer.clear();
            return Ok(());
        };
        self.set_timer();
        if let Some(head) = self.held.take() {
            active.queue(index)?.push(head, 0)?;
            active.notify(index)
        } else {
            self.metrics.stats_update_fails.inc();
            Ok(())
        }
    }

    fn save(&mut self, _active: Option<&mut Active>) -> Vec<u8> {
        let state = State {
            target: self.target,
            actual: self.actual,
            interval_s: self.config.stats_polling_interval_s,
            held: self.held,
        };
        postcard::to_stdvec(&state).unwrap_or_default()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        let Ok((state, [])) = postcard::take_from_bytes::<State>(state) else {
            return Err("balloon: the snapshot's state is not readable".to_owned());
        };
        if state.target > self.max_pages
            || (state.interval_s == 0) != (self.config.stats_polling_interval_s == 0)
            || state.held.is_some_and(|head| head >= QUEUE_SIZE || state.interval_s == 0)
        {
            return Err("balloon: the snapshot's state does not fit the VM".to_owned());
        }
        (self.target, self.actual, self.held) = (state.target, state.actual, state.held);
        self.config.stats_polling_interval_s = state.interval_s;
        Ok(())
    }

    fn metrics(&self) -> Vec<(String, serde_json::Value)> {
        vec![("balloon".to_owned(), serde_json::to_value(&self.metrics).unwrap_or_default())]
    }

    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

#[cfg(test)]
mod tests;
