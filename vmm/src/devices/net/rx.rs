//! From the tap to the guest.

use std::collections::VecDeque;
use std::io;

use super::features::Features;
use super::frame::{BUFFER_COUNT, ETHERNET, HEADER, HEADER_BYTES, LARGEST};
use super::metadata::Metadata;
use super::{Net, RX, Tap};
use crate::virtio::{Active, Chain, IoVec, Progress, QueueError};

/// Most vectors of one `readv` (`IOV_MAX` of Linux).
const MAX_VECTORS: usize = 1024;
/// Largest packet of a link that the driver was not told of.
const ORDINARY_MTU: u16 = 1500;

/// So many frames in sequence have filled no more than one of several buffers: the next is expected to do so too.
const ALL_SMALL: u8 = 4;

/// A frame that was read and not yet given to the driver.
#[derive(Clone, Copy, Debug)]
struct Frame {
    /// Its bytes, the header among them.
    len: usize,
    /// So many of them are in the buffers that are held, from the first on; the others are in [`Rx::own`].
    in_buffers: usize,
}

/// Buffers of the driver that were taken from the queue, and the frame that is on its way.
pub(super) struct Rx {
    held: VecDeque<Held>,
    /// The vectors of all that are held, one after the other.
    vectors: Vectors,
    /// Bytes of all that are held.
    room: u64,
    /// A frame that waits: for more buffers, or for the limiter.
    waiting: Option<Frame>,
    /// Frames in sequence that filled no more than one buffer, up to [`ALL_SMALL`].
    small: u8,
    /// A frame for which the driver's buffers may be too small. One byte more than the largest.
    own: Vec<u8>,
}

/// A buffer of the driver that was taken from the queue.
struct Held {
    chain: Chain,
    /// How many of [`Rx::vectors`] it has.
    vectors: usize,
}

impl Held {
    fn bytes(&self) -> usize {
        usize::try_from(self.chain.writable.len()).unwrap_or(usize::MAX)
    }
}

/// Vectors that are kept from one frame to the next: a frame uses up few of those that it may need.
#[derive(Default)]
struct Vectors(VecDeque<IoVec>);

// SAFETY: a vector is an address that belongs to no thread.
unsafe impl Send for Vectors {}

/// What came of an attempt to receive one frame.
enum Step {
    /// One frame more, or one less.
    Next,
    /// There is none, or it may not pass yet.
    Wait,
    /// The driver has to give more buffers first.
    NoRoom,
}

impl Rx {
    pub(super) fn new() -> Self {
        Self {
            held: VecDeque::new(),
            vectors: Vectors::default(),
            room: 0,
            waiting: None,
            small: 0,
            own: vec![0; LARGEST + 1],
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.held.clear();
        self.vectors.0.clear();
        (self.room, self.waiting, self.small) = (0, None, 0);
    }

    /// Puts the buffers back into the queue. A frame that waits is lost, as on any wire.
    pub(super) fn put_back(&mut self, active: &mut Active) {
        if let Ok(queue) = active.queue(RX) {
            self.held.iter().for_each(|_| queue.unpop());
        }
        self.clear();
    }

    /// Buffers of this many bytes hold every frame that may come, so that it can be read straight into them.
    fn enough(features: Features, mtu: Option<u16>) -> u64 {
        let packet = if features.mergeable() || features.large_receive() {
            return u64::try_from(LARGEST).unwrap_or(u64::MAX);
        } else {
            mtu.unwrap_or(ORDINARY_MTU)
        };
        u64::from(packet) + u64::try_from(HEADER + ETHERNET).unwrap_or(0)
    }

    /// Takes buffers from the queue: one, or with mergeable buffers as many as the largest frame may need. Gives
    /// whether there is one.
    fn refill(&mut self, active: &mut Active, features: Features) -> Result<bool, QueueError> {
        let wanted = if features.mergeable() { u64::try_from(LARGEST).unwrap_or(u64::MAX) } else { 1 };
        while self.room < wanted
            && let Some(chain) = active.queue(RX)?.pop()?
        {
            if !chain.readable.is_empty() {
                return Err(QueueError::BadRequest("a buffer to receive into that is not the device's to write"));
            }
            let len = chain.writable.len();
            if len < HEADER_BYTES {
                return Err(QueueError::BadRequest("a buffer to receive into that holds no header"));
            }
            let vectors = chain.writable.io_vecs(&active.ram)?;
            self.room = self.room.saturating_add(len);
            self.held.push_back(Held { chain, vectors: vectors.len() });
            self.vectors.0.extend(vectors);
        }
        Ok(!self.held.is_empty())
    }

    fn own_vector(&mut self) -> IoVec {
        IoVec { iov_base: self.own.as_mut_ptr().cast(), iov_len: self.own.len() }
    }

    /// Reads a frame into the buffers that are held, and at last into [`Rx::own`]: what lands there did not fit.
    fn read(&mut self, tap: &Tap) -> io::Result<Option<usize>> {
        let own = self.own_vector();
        let vectors = &mut self.vectors.0;
        vectors.push_back(own);
        // SAFETY: the vectors are checked ranges of guest memory, which stays mapped and to which nobody has a
        // reference, and the VMM's own buffer, which nobody else uses meanwhile.
        let result = unsafe { tap.read(vectors.make_contiguous()) };
        vectors.pop_back();
        result
    }

    /// The same with the first buffer only, if that is one vector and all frames were small of late: of a readv of many
    /// vectors, to look at them is most of the work.
    fn read_small(&mut self, tap: &Tap) -> Option<(io::Result<Option<usize>>, usize)> {
        let first = self.held.front().filter(|first| first.vectors == 1 && self.small >= ALL_SMALL)?.bytes();
        let vectors = [*self.vectors.0.front()?, self.own_vector()];
        // SAFETY: as above.
        Some((unsafe { tap.read(&vectors) }, first))
    }

    /// Reads a frame into [`Rx::own`].
    fn read_own(&mut self, tap: &Tap) -> io::Result<Option<usize>> {
        let vector = self.own_vector();
        // SAFETY: the VMM's own buffer, which nobody else uses meanwhile.
        unsafe { tap.read(&[vector]) }
    }

    /// How many buffers a frame of `len` bytes fills; `None` if they do not hold it.
    fn buffers_for(&self, len: usize, features: Features) -> Option<usize> {
        let most = if features.mergeable() { self.held.len() } else { 1 };
        let mut left = len;
        for (index, held) in self.held.iter().take(most).enumerate() {
            left = left.saturating_sub(held.bytes());
            if left == 0 {
                return Some(index + 1);
            }
        }
        None
    }

    /// Gives the driver the frame that waits, in the first `count` buffers.
    fn deliver(&mut self, active: &mut Active, frame: Frame, count: usize) -> Result<(), QueueError> {
        let mut used = Vec::with_capacity(count);
        let mut done = 0usize;
        for (index, held) in self.held.drain(..count).enumerate() {
            let part = held.bytes().min(frame.len.saturating_sub(done));
            let Held { chain, vectors } = held;
            let buffers = chain.writable;
            self.room = self.room.saturating_sub(buffers.len());
            self.vectors.0.drain(..vectors);
            let end = done.saturating_add(part);
            let own = frame.in_buffers.max(done);
            if own < end {
                let range = own.saturating_sub(frame.in_buffers)..end.saturating_sub(frame.in_buffers);
                let offset = u64::try_from(own.saturating_sub(done)).unwrap_or(u64::MAX);
                buffers.write_at(&active.ram, offset, self.own.get(range).unwrap_or_default())?;
            }
            if index == 0 {
                // The tap leaves this field of the header to us.
                let count = u16::try_from(count).unwrap_or(u16::MAX);
                buffers.write_at(&active.ram, BUFFER_COUNT, &count.to_le_bytes())?;
            }
            done = end;
            used.push((chain.head, u32::try_from(part).unwrap_or(u32::MAX)));
        }
        active.queue(RX)?.push_all(&used)
    }
}

impl Net {
    /// Gives the guest what the metadata service has answered, after something was sent.
    pub(super) fn answer(&mut self, active: &mut Active) -> Result<Progress, QueueError> {
        if self.metadata.as_ref().is_some_and(Metadata::has_frames) { self.receive(active) } else { Ok(Progress::Idle) }
    }

    /// Gives the guest what there is for it: as many frames as the queue has entries, at most.
    pub(super) fn receive(&mut self, active: &mut Active) -> Result<Progress, QueueError> {
        // A driver that only sends may leave this queue out.
        if active.queues.get(RX).is_none_or(Option::is_none) {
            return Ok(Progress::Idle);
        }
        let mut progress = Progress::More;
        for _ in 0..active.queue(RX)?.size() {
            let stop = match self.receive_one(active)? {
                Step::Next => false,
                Step::Wait => true,
                Step::NoRoom => {
                    self.metrics.no_rx_avail_buffer.inc();
                    !active.queue(RX)?.enable_notification()?
                }
            };
            if stop {
                progress = Progress::Idle;
                break;
            }
        }
        active.notify(RX)?;
        Ok(progress)
    }

    fn receive_one(&mut self, active: &mut Active) -> Result<Step, QueueError> {
        if !self.rx.refill(active, self.features)? {
            return Ok(Step::NoRoom);
        }
        let Some(frame) = self.rx.waiting.take().or_else(|| self.fetch()) else {
            return Ok(Step::Wait);
        };
        let len = frame.len;
        let Some(count) = self.rx.buffers_for(len, self.features) else {
            let more = usize::from(active.queue(RX)?.size()) > self.rx.held.len();
            if self.features.mergeable() && more && len <= LARGEST {
                self.rx.waiting = Some(frame);
                return Ok(Step::NoRoom);
            }
            self.metrics.rx_fails.inc();
            return Ok(Step::Next);
        };
        let throttled = self.rx_limiter.is_waiting();
        let size = u64::try_from(len.saturating_sub(HEADER)).unwrap_or(0);
        if !self.rx_limiter.admit(size) {
            if !throttled {
                self.metrics.rx_rate_limiter_throttled.inc();
            }
            self.rx.waiting = Some(frame);
            return Ok(Step::Wait);
        }
        self.rx.deliver(active, frame, count)?;
        self.metrics.rx_packets_count.inc();
        self.metrics.rx_bytes_count.add(size);
        Ok(Step::Next)
    }

    /// Takes the next frame: the metadata service's, or the tap's, straight into the guest's buffers if they hold any
    /// that may come.
    fn fetch(&mut self) -> Option<Frame> {
        if let Some(len) = self.metadata.as_mut().and_then(|metadata| metadata.next_frame(&mut self.rx.own)) {
            return Some(Frame { len, in_buffers: 0 });
        }
        let roomy = self.rx.room >= Rx::enough(self.features, self.mtu);
        let (result, room) = match self.rx.vectors.0.len() {
            count if roomy && count < MAX_VECTORS => {
                let small = self.features.mergeable().then(|| self.rx.read_small(&self.tap)).flatten();
                small.unwrap_or_else(|| (self.rx.read(&self.tap), usize::MAX))
            }
            _ => (self.rx.read_own(&self.tap), 0),
        };
        match result {
            Ok(Some(len)) if len > HEADER => {
                self.metrics.rx_count.inc();
                let fits = self.rx.held.front().is_some_and(|first| len <= first.bytes());
                self.rx.small = if fits { self.rx.small.saturating_add(1).min(ALL_SMALL) } else { 0 };
                Some(Frame { len, in_buffers: len.min(room) })
            }
            Ok(_) => None,
            Err(error) => {
                self.metrics.tap_read_fails.inc();
                self.complain("read", &error);
                None
            }
        }
    }

    /// Throws away what the tap has: frames of an agreement that does not hold any more.
    pub(super) fn drain(&mut self) {
        for _ in 0..super::TAP_BACKLOG {
            if !matches!(self.rx.read_own(&self.tap), Ok(Some(_))) {
                return;
            }
        }
    }
}
