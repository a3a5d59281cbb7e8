//! A source of entropy (virtio 1.2, section 5.4): buffers of the guest are filled from the host's kernel.

mod config;
mod metrics;

use crate::jail::seccomp::Call;
use crate::virtio::{Active, Buffers, DeviceKind, Progress, QueueError, VirtioDevice};

pub use config::EntropyConfig;
use metrics::Metrics;

/// Entries of the only queue.
const QUEUE_SIZE: u16 = 256;
/// Most bytes of one request that are filled; the driver asks again for more.
const MAX_BYTES: u64 = 64 * 1024;
/// Bytes that are fetched from the kernel at once.
const CHUNK: usize = 256;

/// The device.
#[derive(Default)]
pub struct Entropy {
    metrics: Metrics,
}

impl Entropy {
    /// A device that gives what the guest asks for.
    pub fn new() -> Self {
        Self::default()
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
        const { &[Call::any(libc::SYS_getrandom)] }
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn serve_queue(&mut self, active: &mut Active, index: usize) -> Result<Progress, QueueError> {
        self.metrics.entropy_event_count.inc();
        for _ in 0..active.queue(index)?.size() {
            let Some(chain) = active.queue(index)?.pop()? else {
                let more = active.queue(index)?.enable_notification()?;
                active.notify(index)?;
                return Ok(if more { Progress::More } else { Progress::Idle });
            };
            let filled = Self::fill(active, chain.writable)?;
            if filled == 0 {
                self.metrics.entropy_event_fails.inc();
            }
            self.metrics.entropy_bytes.add(u64::from(filled));
            active.queue(index)?.push(chain.head, filled)?;
        }
        active.notify(index)?;
        Ok(Progress::More)
    }

    fn metrics(&self) -> Vec<(String, serde_json::Value)> {
        vec![("entropy".to_owned(), serde_json::to_value(&self.metrics).unwrap_or_default())]
    }

    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}
