//! A disk (virtio 1.2, section 5.2): sectors of a file or a block device of the host.
//!
//! The file is raw sectors. Nothing in it is looked at, so there is nothing in it that a guest could forge. What is
//! read only is opened for reading; what is written belongs to one VM.

mod config;
mod disk;
mod metrics;
mod request;

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tracing::warn;
use vmm_sys_util::epoll::EventSet;

use super::DeviceError;
use crate::jail::seccomp::Call;
use crate::rate_limiter::{RateLimiter, RateLimiterConfig, RateLimiterState};
use crate::virtio::{Active, DeviceKind, Progress, QueueError, Source, VirtioDevice, Watch};

pub use config::{CacheType, DriveConfig, DriveUpdate, IoEngine};
pub use disk::Disk;
use metrics::Metrics;
use request::{Done, Failure, ID_BYTES, Kind, Request};

/// Bytes of a sector, the unit of everything here. What the host's device has below is its own business.
pub const SECTOR: u64 = 512;

/// Entries of the only queue.
const QUEUE_SIZE: u16 = 256;
/// Most buffers of data in one request: the queue's size less header and status.
const MAX_SEGMENTS: u32 = 254;
/// Most bytes of one buffer.
const MAX_SEGMENT_BYTES: u32 = 256 * 1024;
/// Most bytes of data in one request: what the two above allow.
const MAX_DATA: u64 = MAX_SEGMENTS as u64 * MAX_SEGMENT_BYTES as u64;
/// Most ranges in one discard.
const MAX_DISCARD_SEGMENTS: usize = 16;
/// Most sectors of each of them: 1 GiB.
const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// Most sectors in one request for zeros, which has one range: 1 GiB.
const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 21;
/// Sectors that a discard should begin at a multiple of: file systems give up whole pages.
const DISCARD_ALIGNMENT: u32 = 8;

/// Bytes after which others have a turn.
const TURN_BYTES: u64 = 4 << 20;
/// Bytes after which the driver is told of what is done, while there is more to do: it could go on meanwhile.
const NOTIFY_BYTES: u64 = 256 * 1024;
/// Errors of the host that are logged for one disk; later ones are only counted. A guest must not fill the log.
const LOGGED_ERRORS: u32 = 8;
/// The limiter's timer.
const TIMER: u32 = 0;

// Feature bits (section 5.2.3).
const SIZE_MAX: u32 = 1;
const SEG_MAX: u32 = 2;
const READ_ONLY: u32 = 5;
const BLK_SIZE: u32 = 6;
const FLUSH: u32 = 9;
const DISCARD: u32 = 13;
const WRITE_ZEROES: u32 = 14;

/// System calls of a disk that is read only.
const READ_CALLS: [Call; 3] = {
    let ([timer], [read, lock]) = (RateLimiter::SYSTEM_CALLS, Disk::READ_CALLS);
    [timer, read, lock]
};
/// System calls of a disk that is written.
const WRITE_CALLS: [Call; 7] = {
    let ([timer], [read, _]) = (RateLimiter::SYSTEM_CALLS, Disk::READ_CALLS);
    let [write, flush, punch, zero, lock] = Disk::WRITE_CALLS;
    [timer, read, write, flush, punch, zero, lock]
};

/// What was agreed on with the driver, and what a flush is worth.
#[derive(Clone, Copy, Debug)]
struct Features {
    agreed: u64,
    cache: CacheType,
}

impl Features {
    fn has(self, feature: u32) -> bool {
        self.agreed & (1 << feature) != 0
    }

    /// Whether everything has to be on the host's disk when it is answered: the driver was offered a flush and cannot
    /// ask for one.
    fn is_write_through(self) -> bool {
        self.cache == CacheType::Writeback && !self.has(FLUSH)
    }
}

/// The device.
pub struct Block {
    id: String,
    cache: CacheType,
    disk: Disk,
    limiter: RateLimiter,
    metrics: Metrics,
    logged: u32,
}

/// What a snapshot keeps of it.
#[derive(Serialize, Deserialize)]
struct State {
    sectors: u64,
    limiter: RateLimiterState,
}

impl Block {
    /// Opens and locks the file of a drive.
    pub fn open(config: &DriveConfig) -> Result<Self, DeviceError> {
        let disk = Disk::open(config)?;
        let device = || format!("drive {}", config.drive_id);
        disk.lock().map_err(|reason| DeviceError::Unusable { device: device(), reason })?;
        let limiter = RateLimiter::new(config.rate_limiter.as_ref()).map_err(|source| DeviceError::Host {
            device: device(),
            step: "make a timer",
            source,
        })?;
        let metrics = Metrics::default();
        Ok(Self { id: config.drive_id.clone(), cache: config.cache_type, disk, limiter, metrics, logged: 0 })
    }

    /// The drive's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Replaces the file by another one, or takes over the new size of the same one. The driver has to be told that the
    /// configuration has changed.
    ///
    /// The disk is opened by whoever may still open files; it is locked here, because the same file may be locked
    /// already. Requests that the driver has not been answered go to the new file.
    pub fn replace(&mut self, disk: Disk) -> Result<(), String> {
        let result = self.try_replace(disk);
        match &result {
            Ok(()) => self.metrics.update_count.inc(),
            Err(_) => self.metrics.update_fails.inc(),
        }
        result
    }

    fn try_replace(&mut self, disk: Disk) -> Result<(), String> {
        if disk.is_read_only() != self.disk.is_read_only() {
            return Err("whether it is read only cannot be changed".to_owned());
        }
        if disk.is_same_file(&self.disk) {
            self.disk.resize_as(&disk);
            return Ok(());
        }
        disk.lock()?;
        self.disk = disk;
        Ok(())
    }

    /// Replaces the limits that `limits` names.
    pub fn limit(&mut self, limits: &RateLimiterConfig) {
        self.limiter.update(limits);
        self.metrics.update_count.inc();
    }

    /// The serial number: the drive's name, as far as there is room. Unlike numbers of the host's file system it stays
    /// when the file is replaced, and tells the guest nothing of the host.
    fn serial(&self) -> [u8; ID_BYTES] {
        let mut serial = [0; ID_BYTES];
        serial.iter_mut().zip(self.id.bytes()).for_each(|(to, from)| *to = from);
        serial
    }

    /// Section 5.2.4.
    fn config_space(&self) -> [u8; 60] {
        let mut space = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| {
            space.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
        };
        put(0, &self.disk.sectors().to_le_bytes());
        let max_discard_segments = u32::try_from(MAX_DISCARD_SEGMENTS).unwrap_or(1);
        let sector = u32::try_from(SECTOR).unwrap_or(512);
        for (at, value) in [
            (8, MAX_SEGMENT_BYTES),
            (12, MAX_SEGMENTS),
            (20, sector),
            (36, MAX_DISCARD_SECTORS),
            (40, max_discard_segments),
            (44, DISCARD_ALIGNMENT),
            (48, MAX_WRITE_ZEROES_SECTORS),
            (52, 1),
            // write_zeroes_may_unmap
            (56, 1),
        ] {
            put(at, &value.to_le_bytes());
        }
        space
    }

    /// Does one request and counts it. Gives how much of the driver's memory was written.
    fn serve(&mut self, active: &Active, mut request: Request) -> Result<u32, QueueError> {
        let features = Features { agreed: active.features, cache: self.cache };
        let (kind, begin) = (request.kind, Instant::now());
        let result = request.execute(&active.ram, &self.disk, features, &self.serial());
        match &result {
            Ok(done) => self.count(kind, *done, begin.elapsed()),
            Err(Failure::Invalid | Failure::Unsupported) => self.metrics.invalid_reqs_count.inc(),
            Err(Failure::Host(error)) => self.failed(kind, error),
        }
        request.answer(&active.ram, &result)
    }

    fn count(&self, kind: Kind, done: Done, time: Duration) {
        let metrics = &self.metrics;
        match kind {
            Kind::Read => {
                metrics.read_count.inc();
                metrics.read_bytes.add(done.bytes);
                metrics.read_agg.add(time);
            }
            Kind::Write => {
                metrics.write_count.inc();
                metrics.write_bytes.add(done.bytes);
                metrics.write_agg.add(time);
            }
            Kind::Flush => metrics.flush_count.inc(),
            Kind::Discard | Kind::WriteZeroes => metrics.discard_bytes.add(done.bytes),
            Kind::GetId | Kind::Unknown => {}
        }
    }

    fn failed(&mut self, kind: Kind, error: &io::Error) {
        self.metrics.execute_fails.inc();
        self.logged = self.logged.saturating_add(1);
        if self.logged <= LOGGED_ERRORS {
            warn!(drive = self.id, request = ?kind, %error, "the host could not do what the guest asked of its disk");
        }
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn name(&self) -> String {
        format!("drive {}", self.id)
    }

    fn features(&self) -> u64 {
        let mut features = (1 << SIZE_MAX) | (1 << SEG_MAX) | (1 << BLK_SIZE);
        if self.disk.is_read_only() {
            features |= 1 << READ_ONLY;
        } else {
            features |= (1 << DISCARD) | (1 << WRITE_ZEROES);
        }
        if self.cache == CacheType::Writeback {
            features |= 1 << FLUSH;
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn system_calls(&self) -> &'static [Call] {
        if self.disk.is_read_only() { &READ_CALLS } else { &WRITE_CALLS }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = self.config_space();
        let rest = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)).unwrap_or_default();
        data.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    }

    fn reset(&mut self) {
        self.limiter.timer_event();
    }

    fn serve_queue(&mut self, active: &mut Active, index: usize) -> Result<Progress, QueueError> {
        self.metrics.queue_event_count.inc();
        if self.limiter.is_waiting() {
            return Ok(Progress::Idle);
        }
        let (mut bytes, mut untold) = (0u64, 0u64);
        for _ in 0..active.queue(index)?.size() {
            let Some(chain) = active.queue(index)?.pop()? else {
                if bytes == 0 {
                    self.metrics.no_avail_buffer.inc();
                }
                let more = active.queue(index)?.enable_notification()?;
                active.notify(index)?;
                return Ok(if more { Progress::More } else { Progress::Idle });
            };
            let head = chain.head;
            let features = Features { agreed: active.features, cache: self.cache };
            let request = Request::parse(&active.ram, chain, &self.disk, features)?;
            let data = request.data_bytes();
            if !self.limiter.admit(request.cost()) {
                self.metrics.rate_limiter_throttled_events.inc();
                active.queue(index)?.unpop();
                active.notify(index)?;
                return Ok(Progress::Idle);
            }
            let is_slow = request.kind == Kind::Flush;
            let written = self.serve(active, request)?;
            active.queue(index)?.push(head, written)?;
            (bytes, untold) = (bytes.saturating_add(data), untold.saturating_add(data));
            if untold >= NOTIFY_BYTES || is_slow {
                active.notify(index)?;
                untold = 0;
            }
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
        let state = State { sectors: self.disk.sectors(), limiter: self.limiter.save() };
        postcard::to_stdvec(&state).unwrap_or_default()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        let name = self.name();
        let broken = |e: &dyn std::fmt::Display| format!("{name}: its state cannot be read: {e}");
        let (state, rest): (State, _) = postcard::take_from_bytes(state).map_err(|e| broken(&e))?;
        if !rest.is_empty() {
            return Err(broken(&"it is too long"));
        }
        if state.sectors != self.disk.sectors() {
            let (then, now) = (state.sectors, self.disk.sectors());
            return Err(format!("{name}: it had {then} sectors when the snapshot was made, now it has {now}"));
        }
        self.limiter.restore(state.limiter).map_err(|e| broken(&e))
    }

    fn metrics(&self) -> Vec<(String, serde_json::Value)> {
        vec![(format!("block_{}", self.id), serde_json::to_value(&self.metrics).unwrap_or_default())]
    }

    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

#[cfg(test)]
mod tests;
