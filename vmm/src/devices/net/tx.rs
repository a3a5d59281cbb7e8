//! From the guest to the tap.

use std::time::Duration;

use super::frame::{self, HEAD, HEADER, HEADER_BYTES, Verdict};
use super::{Net, TX};
use crate::virtio::{Active, Buffers, IoVec, Progress, QueueError};

/// Whoever sends so many bytes at once, more than any link's frame has, is about to send more.
const BULK: u64 = 16 << 10;
/// So long the card waits then before it looks again, and does not ask to be notified meanwhile: else each frame of a
/// stream would take a notification, and two switches where vCPU and main thread share a processor.
const PAUSE: Duration = Duration::from_micros(150);

impl Net {
    /// Sends what the guest has put into the queue: as many frames as it has entries, at most.
    pub(super) fn transmit(&mut self, active: &mut Active) -> Result<Progress, QueueError> {
        let mut progress = Progress::More;
        let mut sent = 0u64;
        for turn in 0..active.queue(TX)?.size() {
            let Some(chain) = active.queue(TX)?.pop()? else {
                if turn == 0 {
                    self.metrics.no_tx_avail_buffer.inc();
                }
                if sent >= BULK && self.pause() {
                    progress = Progress::Idle;
                    break;
                }
                if active.queue(TX)?.enable_notification()? {
                    continue;
                }
                progress = Progress::Idle;
                break;
            };
            if !chain.writable.is_empty() {
                return Err(QueueError::BadRequest("a frame to be sent that is the device's to write"));
            }
            let throttled = self.tx_limiter.is_waiting();
            if !self.tx_limiter.admit(chain.readable.len().saturating_sub(HEADER_BYTES)) {
                if !throttled {
                    self.metrics.tx_rate_limiter_throttled.inc();
                }
                // It is looked at again when the timer goes off.
                active.queue(TX)?.unpop();
                progress = Progress::Idle;
                break;
            }
            sent = sent.saturating_add(chain.readable.len());
            self.send(active, chain.readable)?;
            active.queue(TX)?.push(chain.head, 0)?;
        }
        active.notify(TX)?;
        Ok(progress)
    }

    /// Looks again later, whether or not the driver notifies. Gives whether there is a timer for it.
    fn pause(&mut self) -> bool {
        self.tx_limiter.wake_after(PAUSE);
        self.pausing = self.tx_limiter.is_waiting();
        self.pausing
    }

    /// Sends one frame, or drops it. The host's errors are not the guest's: as on any wire, what is lost is lost.
    fn send(&mut self, active: &Active, mut buffers: Buffers) -> Result<(), QueueError> {
        let len = usize::try_from(buffers.len()).unwrap_or(usize::MAX);
        let mut head = [0; HEAD];
        let copied = buffers.read(&active.ram, &mut head)?;
        let head = head.get(..copied).unwrap_or_default();
        match frame::judge(head, len, self.features, self.mac) {
            Verdict::Send => {}
            Verdict::Malformed => {
                self.metrics.tx_malformed_frames.inc();
                return Ok(());
            }
            Verdict::Spoofed => {
                self.metrics.tx_spoofed_mac_count.inc();
                return Ok(());
            }
        }
        if let Some(metadata) = self.metadata.as_mut()
            && metadata.takes(head.get(HEADER..).unwrap_or_default())
        {
            metadata.receive(head, buffers, &active.ram)?;
            self.count_sent(len);
            return Ok(());
        }
        let mut vectors = Vec::with_capacity(buffers.ranges().len() + 1);
        // `writev` only reads what its vectors point to.
        vectors.push(IoVec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() });
        buffers.add_io_vecs(&active.ram, &mut vectors)?;
        // SAFETY: the copied head, which lives as long, and checked ranges of guest memory, which stays mapped.
        match unsafe { self.tap.write(&vectors) } {
            Ok(Some(_)) => self.metrics.tx_count.inc(),
            Ok(None) => self.metrics.tx_fails.inc(),
            Err(error) => {
                self.metrics.tap_write_fails.inc();
                self.metrics.tx_fails.inc();
                self.complain("write", &error);
                return Ok(());
            }
        }
        self.count_sent(len);
        Ok(())
    }

    fn count_sent(&self, len: usize) {
        self.metrics.tx_packets_count.inc();
        self.metrics.tx_bytes_count.add(u64::try_from(len.saturating_sub(HEADER)).unwrap_or(0));
    }
}
