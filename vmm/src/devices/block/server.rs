//! What serves a disk's queue, on the queue's thread.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;
use vmm_sys_util::timerfd::TimerFd;

use super::disk::Disk;
use super::metrics::Metrics;
use super::request::{Done, Failure, ID_BYTES, Kind, Request};
use super::{CacheType, Features};
use crate::jail::seccomp::Call;
use crate::rate_limiter::Limits;
use crate::virtio::Progress;
use crate::virtio::queue_thread::{QueueServer, Stop, Turn};

/// Bytes after which the driver is told of what is done, while there is more to do: it could go on meanwhile.
const NOTIFY_BYTES: u64 = 256 * 1024;
/// Errors of the host that are logged for one disk; later ones are only counted. A guest must not fill the log.
const LOGGED_ERRORS: u32 = 8;

/// Sets the timer of what has to wait.
const TIMER: Call = Call::any(libc::SYS_timerfd_settime).on_watched();
/// System calls of a disk that is read only.
const READ_CALLS: [Call; 2] = {
    let [read] = Disk::READ_CALLS;
    [TIMER, read]
};
/// System calls of a disk that is written.
const WRITE_CALLS: [Call; 6] = {
    let ([read], [write, flush, punch, zero]) = (Disk::READ_CALLS, Disk::WRITE_CALLS);
    [TIMER, read, write, flush, punch, zero]
};

/// What the threads of a disk and the main thread share.
pub(super) struct Shared {
    pub(super) id: String,
    pub(super) cache: CacheType,
    pub(super) is_read_only: bool,
    disk: Mutex<Arc<Disk>>,
    limits: Mutex<Limits>,
    pub(super) metrics: Metrics,
    logged: AtomicU32,
    /// Flushes that the host could not do.
    flush_failures: AtomicU64,
}

impl Shared {
    pub(super) fn new(id: &str, cache: CacheType, disk: Disk, limits: Limits) -> Self {
        Self {
            id: id.to_owned(),
            cache,
            is_read_only: disk.is_read_only(),
            disk: Mutex::new(Arc::new(disk)),
            limits: Mutex::new(limits),
            metrics: Metrics::default(),
            logged: AtomicU32::new(0),
            flush_failures: AtomicU64::new(0),
        }
    }

    /// The disk as it is now.
    pub(super) fn disk(&self) -> Arc<Disk> {
        // A panic has aborted the process: locks are never poisoned.
        Arc::clone(&self.disk.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Requests that come from now on go to this disk.
    pub(super) fn replace(&self, disk: Disk) {
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(disk);
    }

    /// What the guest may ask of it.
    pub(super) fn limits(&self) -> MutexGuard<'_, Limits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The serial number: the drive's name, as far as there is room. Unlike numbers of the host's file system it stays
    /// when the file is replaced, and tells the guest nothing of the host.
    fn serial(&self) -> [u8; ID_BYTES] {
        let mut serial = [0; ID_BYTES];
        serial.iter_mut().zip(self.id.bytes()).for_each(|(to, from)| *to = from);
        serial
    }

    fn count(&self, kind: Kind, result: &Result<Done, Failure>, time: Duration) {
        let metrics = &self.metrics;
        match (result, kind) {
            (Ok(done), Kind::Read) => {
                metrics.read_count.inc();
                metrics.read_bytes.add(done.bytes);
                metrics.read_agg.add(time);
            }
            (Ok(done), Kind::Write) => {
                metrics.write_count.inc();
                metrics.write_bytes.add(done.bytes);
                metrics.write_agg.add(time);
            }
            (Ok(_), Kind::Flush) => metrics.flush_count.inc(),
            (Ok(done), Kind::Discard | Kind::WriteZeroes) => metrics.discard_bytes.add(done.bytes),
            (Ok(_), Kind::GetId | Kind::Unknown) | (Err(Failure::Stopped), _) => {}
            (Err(Failure::Invalid | Failure::Unsupported), _) => metrics.invalid_reqs_count.inc(),
            (Err(Failure::Host(error)), _) => self.failed(kind, error),
        }
    }

    fn failed_to_flush(&self) {
        self.flush_failures.fetch_add(1, Ordering::SeqCst);
    }

    fn failed(&self, kind: Kind, error: &io::Error) {
        self.metrics.execute_fails.inc();
        let before = self.logged.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_add(1));
        if before.is_ok_and(|before| before < LOGGED_ERRORS) {
            warn!(drive = self.id, request = ?kind, %error, "the host could not do what the guest asked of its disk");
        }
    }
}

/// Serves one queue.
pub(super) struct Server {
    shared: Arc<Shared>,
    timer: TimerFd,
    /// Something had to wait, and the timer has not gone off yet.
    waiting: bool,
    /// Failed flushes that the driver of this queue was told of.
    told_failures: u64,
}

impl Server {
    pub(super) fn new(shared: &Arc<Shared>) -> io::Result<Self> {
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Self { shared: Arc::clone(shared), timer, waiting: false, told_failures: 0 })
    }

    /// Whether a request of this cost may be done now. If not, the timer goes off when it may.
    fn admit(&mut self, cost: u64) -> bool {
        let wait = self.shared.limits().admit(cost);
        if wait.is_zero() {
            return true;
        }
        if !self.waiting {
            self.shared.metrics.rate_limiter_throttled_events.inc();
        }
        // Zero would switch it off.
        self.waiting = self.timer.reset(wait, None).is_ok();
        false
    }

    /// Does one request and counts it.
    fn execute(
        &mut self,
        turn: &mut Turn<'_>,
        request: &mut Request,
        disk: &Disk,
    ) -> Result<Result<Done, Failure>, Stop> {
        let (kind, begin, wish) = (request.kind, Instant::now(), turn.wish());
        let served = turn.served()?;
        let features = Features { agreed: served.features, cache: self.shared.cache };
        let mut result = request.execute(&served.ram, disk, features, &self.shared.serial(), &wish);
        if result.is_ok() && request.is_durable(features) {
            // What is done already: it may take long.
            served.notify()?;
            let shared = Arc::clone(&self.shared);
            let flushed = turn.aside(|| disk.flush().inspect_err(|_| shared.failed_to_flush()))?;
            // The host tells of a failure once for each file. So that each queue's driver is told, also where somebody has
            // come between, or the other queue's flush was the one that failed, they are counted.
            let failures = shared.flush_failures.load(Ordering::SeqCst);
            let all_told = std::mem::replace(&mut self.told_failures, failures) == failures;
            let lost = || Err(io::Error::other("an earlier flush has failed"));
            if let Err(error) = flushed.and_then(|()| if all_told { Ok(()) } else { lost() }) {
                result = Err(error.into());
            }
        }
        self.shared.count(kind, &result, begin.elapsed());
        Ok(result)
    }
}

impl QueueServer for Server {
    fn system_calls(&self) -> &'static [Call] {
        if self.shared.is_read_only { &READ_CALLS } else { &WRITE_CALLS }
    }

    fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    fn timer_event(&mut self) {
        self.shared.metrics.rate_limiter_event_count.inc();
        self.waiting = false;
        // Setting it also takes back that it went off; reading it could block.
        let _ = self.timer.clear();
    }

    fn serve(&mut self, turn: &mut Turn<'_>) -> Result<Progress, Stop> {
        self.shared.metrics.queue_event_count.inc();
        let wish = turn.wish();
        let (mut is_empty, mut untold, mut count) = (true, 0u64, 0u16);
        while !wish() {
            let served = turn.served()?;
            let Some(chain) = served.queue.pop()? else {
                if is_empty {
                    self.shared.metrics.no_avail_buffer.inc();
                }
                let more = served.queue.enable_notification()?;
                served.notify()?;
                return Ok(if more { Progress::More } else { Progress::Idle });
            };
            is_empty = false;
            // It may have been replaced since the last request.
            let disk = self.shared.disk();
            let head = chain.head;
            let features = Features { agreed: served.features, cache: self.shared.cache };
            let mut request = Request::parse(&served.ram, chain, &disk, features)?;
            if !self.admit(request.cost()) {
                served.queue.unpop();
                served.notify()?;
                return Ok(Progress::Idle);
            }
            let data = request.data_bytes();
            let result = self.execute(turn, &mut request, &disk)?;
            let served = turn.served()?;
            if matches!(result, Err(Failure::Stopped)) {
                served.queue.unpop();
                break;
            }
            let written = request.answer(&served.ram, &result)?;
            served.queue.push(head, written)?;
            (untold, count) = (untold.saturating_add(data), count.saturating_add(1));
            if untold >= NOTIFY_BYTES || count >= served.queue.size() {
                served.notify()?;
                (untold, count) = (0, 0);
            }
        }
        turn.served()?.notify()?;
        Ok(Progress::More)
    }
}
