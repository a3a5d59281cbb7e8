//! A disk (virtio 1.2, section 5.2): sectors of a file or a block device of the host.
//!
//! The file is raw sectors. Nothing in it is looked at, so there is nothing in it that a guest could forge. What is
//! read only is opened for reading; what is written belongs to one VM.

mod config;
mod disk;
mod metrics;
mod request;
mod server;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::DeviceError;
use crate::jail::seccomp::Call;
use crate::rate_limiter::{Limits, RateLimiterConfig, RateLimiterState};
use crate::virtio::queue_thread::QueueServer;
use crate::virtio::{Active, DeviceKind, VirtioDevice};

pub use config::{CacheType, DriveConfig, DriveUpdate, IoEngine};
pub use disk::Disk;
use server::{Server, Shared};

/// Bytes of a sector, the unit of everything here. What the host's device has below is its own business.
pub const SECTOR: u64 = 512;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;
/// Most queues of one disk.
const MAX_QUEUES: u16 = 16;
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

// Feature bits (section 5.2.3).
const SIZE_MAX: u32 = 1;
const SEG_MAX: u32 = 2;
const READ_ONLY: u32 = 5;
const BLK_SIZE: u32 = 6;
const FLUSH: u32 = 9;
const MQ: u32 = 12;
const DISCARD: u32 = 13;
const WRITE_ZEROES: u32 = 14;

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
    shared: Arc<Shared>,
    /// The sizes of its queues.
    queues: Vec<u16>,
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
        let limits = Limits::new(config.rate_limiter.as_ref());
        let queues = vec![QUEUE_SIZE; usize::from(config.num_queues)];
        Ok(Self { shared: Arc::new(Shared::new(&config.drive_id, config.cache_type, disk, limits)), queues })
    }

    /// The drive's name.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// Replaces the file by another one, or takes over the new size of the same one. The driver has to be told that the
    /// configuration has changed.
    ///
    /// The disk is opened by whoever may still open files; it is locked here, because the same file may be locked
    /// already. Requests that the driver has not been answered go to the new file.
    pub fn replace(&mut self, disk: Disk) -> Result<(), String> {
        let (result, metrics) = (self.try_replace(disk), &self.shared.metrics);
        match &result {
            Ok(()) => metrics.update_count.inc(),
            Err(_) => metrics.update_fails.inc(),
        }
        result
    }

    fn try_replace(&mut self, disk: Disk) -> Result<(), String> {
        let now = self.shared.disk();
        if disk.is_read_only() != now.is_read_only() {
            return Err("whether it is read only cannot be changed".to_owned());
        }
        let (bytes, most) = (disk.file_bytes(), crate::jail::largest_file());
        if bytes > most {
            // The kernel would refuse what is written beyond.
            return Err(format!("it has {bytes} bytes, and the VM was started with a limit of {most} for every file"));
        }
        let disk = if disk.is_same_file(&now) {
            // Its lock is the descriptor's that there is.
            now.resized_as(&disk)
        } else {
            disk.lock()?;
            disk
        };
        self.shared.replace(disk);
        Ok(())
    }

    /// Replaces the limits that `limits` names.
    pub fn limit(&mut self, limits: &RateLimiterConfig) {
        self.shared.limits().update(limits);
        self.shared.metrics.update_count.inc();
    }

    /// Section 5.2.4.
    fn config_space(&self) -> [u8; 60] {
        let mut space = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| {
            space.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
        };
        put(0, &self.shared.disk().sectors().to_le_bytes());
        put(34, &u16::try_from(self.queues.len()).unwrap_or(1).to_le_bytes());
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
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn name(&self) -> String {
        format!("drive {}", self.shared.id)
    }

    fn features(&self) -> u64 {
        let mut features = (1 << SIZE_MAX) | (1 << SEG_MAX) | (1 << BLK_SIZE);
        if self.shared.is_read_only {
            features |= 1 << READ_ONLY;
        } else {
            features |= (1 << DISCARD) | (1 << WRITE_ZEROES);
        }
        if self.shared.cache == CacheType::Writeback {
            features |= 1 << FLUSH;
        }
        if self.queues.len() > 1 {
            features |= 1 << MQ;
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queues
    }

    fn system_calls(&self) -> &'static [Call] {
        // Another file is locked by the main thread.
        &Disk::LOCK_CALLS
    }

    fn largest_file(&self) -> u64 {
        self.shared.disk().file_bytes()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = self.config_space();
        let rest = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)).unwrap_or_default();
        data.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    }

    fn queue_servers(&mut self) -> std::io::Result<Vec<Box<dyn QueueServer>>> {
        let server = |_: &u16| Server::new(&self.shared).map(|server| Box::new(server) as _);
        self.queues.iter().map(server).collect()
    }

    fn save(&mut self, _active: Option<&mut Active>) -> Vec<u8> {
        let state = State { sectors: self.shared.disk().sectors(), limiter: self.shared.limits().save() };
        postcard::to_stdvec(&state).unwrap_or_default()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        let name = self.name();
        let broken = |e: &dyn std::fmt::Display| format!("{name}: its state cannot be read: {e}");
        let (state, rest): (State, _) = postcard::take_from_bytes(state).map_err(|e| broken(&e))?;
        if !rest.is_empty() {
            return Err(broken(&"it is too long"));
        }
        let (then, now) = (state.sectors, self.shared.disk().sectors());
        if then != now {
            return Err(format!("{name}: it had {then} sectors when the snapshot was made, now it has {now}"));
        }
        self.shared.limits().restore(state.limiter).map_err(|e| broken(&e))
    }

    fn metrics(&self) -> Vec<(String, serde_json::Value)> {
        let shared = &self.shared;
        vec![(format!("block_{}", shared.id), serde_json::to_value(&shared.metrics).unwrap_or_default())]
    }

    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

#[cfg(test)]
mod tests;
