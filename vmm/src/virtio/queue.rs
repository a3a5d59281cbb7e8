//! Split virtqueues (virtio 1.2, section 2.7), the device's side.
//!
//! Rings and descriptors lie in guest memory, where the guest may change them at any time. So each number is read
//! once, checked, and what was checked is what is used: a [`Chain`] is the device's own copy of addresses and lengths.
//! What breaks the rules is an error, never a shorter chain; the transport then stops the device.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, VolatileMemory, VolatileSlice};

use super::buffers::Buffers;
use crate::memory::{self, GuestRam};

/// Largest queue of the standard.
pub const MAX_SIZE: u16 = 32768;
/// Most bytes of one chain; the largest request that Linux makes has a few MiB.
pub const MAX_CHAIN_BYTES: u64 = 1 << 30;
/// Most descriptors of one chain, indirect ones included. A chain may not have more than the queue's size.
const MAX_DESCRIPTORS: u16 = 1024;

const DESCRIPTOR: u64 = 16;
const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
const FLAG_INDIRECT: u16 = 4;
const AVAIL_NO_INTERRUPT: u16 = 1;

// The parts of a queue.
const DESCRIPTOR_TABLE: &str = "descriptor table";
const AVAILABLE_RING: &str = "available ring";
const USED_RING: &str = "used ring";

/// How a driver broke the rules of its queue. The guest is at fault, not the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// A part of the queue, or a buffer, does not lie in guest memory.
    #[error("the {0} does not lie in guest memory")]
    OutsideMemory(&'static str),
    /// A part of the queue is not aligned as it must be.
    #[error("the {0} is not aligned")]
    Misaligned(&'static str),
    /// The driver offers more chains than the queue holds.
    #[error("the available ring runs {0} entries ahead, more than the queue holds")]
    TooFarAhead(u16),
    /// A number that is no descriptor of the table.
    #[error("descriptor {0} is outside the table")]
    NoSuchDescriptor(u16),
    /// More descriptors than the table has: they loop.
    #[error("the chain has more descriptors than are allowed")]
    ChainTooLong,
    /// More bytes than any request needs.
    #[error("the chain has more than {MAX_CHAIN_BYTES} bytes")]
    ChainTooBig,
    /// A descriptor for the driver's data after one for the device's.
    #[error("a readable descriptor follows a writable one")]
    ReadableAfterWritable,
    /// An indirect table inside an indirect table, with a successor, or of an odd size.
    #[error("an indirect descriptor table is not well formed")]
    BadIndirect,
    /// The chain does not have the shape of a request of this device.
    #[error("the chain is no request of this device: {0}")]
    BadRequest(&'static str),
    /// The device has no such queue.
    #[error("there is no queue {0}")]
    NoSuchQueue(usize),
}

/// Where a queue lies, as the driver has said, and how far it was served. What a snapshot keeps of it.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueState {
    /// Number of entries, a power of two.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring, the driver's.
    pub available: u64,
    /// Guest address of the used ring, the device's.
    pub used: u64,
    /// Next entry of the available ring to be taken.
    pub next_available: u16,
    /// Next entry of the used ring to be filled.
    pub next_used: u16,
    /// `RING_EVENT_IDX` was agreed on.
    pub event_idx: bool,
    /// `RING_INDIRECT_DESC` was agreed on.
    pub indirect: bool,
}

/// One queue of an active device.
pub struct Queue {
    ram: GuestRam,
    state: QueueState,
    /// Used entries that the driver was not asked about yet.
    added: Wrapping<u16>,
}

/// One request: buffers that the device reads, then buffers that it writes.
#[derive(Debug)]
pub struct Chain {
    /// The chain's number, to be given back to the driver.
    pub head: u16,
    /// What the driver wrote for the device.
    pub readable: Buffers,
    /// Where the device may write.
    pub writable: Buffers,
}

/// A descriptor, read once.
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// A descriptor table: the queue's own or an indirect one.
struct Table<'a> {
    memory: VolatileSlice<'a>,
    entries: u16,
}

impl<'a> Table<'a> {
    fn new(ram: &'a GuestRam, address: u64, entries: u16) -> Result<Self, QueueError> {
        let memory = part(ram, address, DESCRIPTOR * u64::from(entries), DESCRIPTOR_TABLE)?;
        Ok(Self { memory, entries })
    }

    /// The table that a descriptor points to.
    fn indirect(ram: &'a GuestRam, descriptor: &Descriptor) -> Result<Self, QueueError> {
        let entries = u64::from(descriptor.len) / DESCRIPTOR;
        let entries = u16::try_from(entries).map_err(|_| QueueError::BadIndirect)?;
        if entries == 0 || u64::from(descriptor.len) % DESCRIPTOR != 0 {
            return Err(QueueError::BadIndirect);
        }
        Self::new(ram, descriptor.address, entries)
    }

    fn descriptor(&self, index: u16) -> Result<Descriptor, QueueError> {
        if index >= self.entries {
            return Err(QueueError::NoSuchDescriptor(index));
        }
        let at = size_of::<[u64; 2]>() * usize::from(index);
        let entry = self.memory.get_ref::<[u64; 2]>(at).map_err(|_| QueueError::OutsideMemory(DESCRIPTOR_TABLE))?;
        let [address, rest] = entry.load().map(u64::from_le);
        // Little endian: 32 bits of length, 16 of flags, 16 of the next index.
        let half = |shift: u32| u16::try_from((rest >> shift) & 0xffff).unwrap_or(0);
        let len = u32::try_from(rest & 0xffff_ffff).unwrap_or(0);
        Ok(Descriptor { address, len, flags: half(32), next: half(48) })
    }
}

/// `len` bytes of guest memory, of which `what` consists.
fn part<'a>(ram: &'a GuestRam, address: u64, len: u64, what: &'static str) -> Result<VolatileSlice<'a>, QueueError> {
    memory::part(ram, address, len).ok_or(QueueError::OutsideMemory(what))
}

/// A number of a ring, the driver's or our own.
fn load(ring: &VolatileSlice<'_>, at: usize, order: Ordering) -> Result<u16, QueueError> {
    ring.load(at, order).map(u16::from_le).map_err(|_| QueueError::OutsideMemory(AVAILABLE_RING))
}

impl Queue {
    /// A queue over guest memory; refuses one that does not lie wholly in it.
    pub fn new(ram: GuestRam, state: QueueState) -> Result<Self, QueueError> {
        if !state.size.is_power_of_two() || state.size > MAX_SIZE {
            return Err(QueueError::BadRequest("the size is not a power of two up to 32768"));
        }
        for (what, address, align) in [
            (DESCRIPTOR_TABLE, state.descriptors, 16),
            (AVAILABLE_RING, state.available, 2),
            (USED_RING, state.used, 4),
        ] {
            if address % align != 0 {
                return Err(QueueError::Misaligned(what));
            }
        }
        Table::new(&ram, state.descriptors, state.size)?;
        available(&ram, &state)?;
        used(&ram, &state)?;
        Ok(Self { ram, state, added: Wrapping(0) })
    }

    /// Where it lies and how far it is.
    pub fn state(&self) -> QueueState {
        self.state
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.state.size
    }

    /// Chains that wait to be taken.
    pub fn waiting(&self) -> Result<u16, QueueError> {
        self.ahead(&available(&self.ram, &self.state)?)
    }

    /// How far the driver's ring is ahead.
    fn ahead(&self, available: &VolatileSlice<'_>) -> Result<u16, QueueError> {
        let index = load(available, 2, Ordering::Acquire)?;
        let ahead = (Wrapping(index) - Wrapping(self.state.next_available)).0;
        if ahead > self.state.size { Err(QueueError::TooFarAhead(ahead)) } else { Ok(ahead) }
    }

    /// Takes the next chain, if there is one.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        let available = available(&self.ram, &self.state)?;
        if self.ahead(&available)? == 0 {
            return Ok(None);
        }
        let slot = usize::from(self.state.next_available & (self.state.size - 1));
        let head = load(&available, 4 + 2 * slot, Ordering::Relaxed)?;
        let chain = self.chain(head)?;
        self.state.next_available = self.state.next_available.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Puts the chain that was popped last back, to be popped again later.
    pub fn unpop(&mut self) {
        self.state.next_available = self.state.next_available.wrapping_sub(1);
    }

    /// Gives a chain back: `written` bytes of its writable part are filled.
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        self.push_all(&[(head, written)])
    }

    /// Gives chains back, each with the bytes of its writable part that are filled. The driver sees all or none.
    pub fn push_all(&mut self, chains: &[(u16, u32)]) -> Result<(), QueueError> {
        let outside = QueueError::OutsideMemory(USED_RING);
        let used = used(&self.ram, &self.state)?;
        for (head, written) in chains {
            let slot = usize::from(self.state.next_used & (self.state.size - 1));
            let entry = (u64::from(*written) << 32) | u64::from(*head);
            used.get_ref(4 + 8 * slot).map_err(|_| outside)?.store(entry.to_le());
            self.state.next_used = self.state.next_used.wrapping_add(1);
            self.added += 1;
        }
        // After the entries: the driver reads up to this index.
        used.store(self.state.next_used.to_le(), 2, Ordering::Release).map_err(|_| outside)
    }

    /// Whether the driver wants to be called about what was pushed since the last time (section 2.7.10).
    pub fn needs_notification(&mut self) -> Result<bool, QueueError> {
        let added = std::mem::take(&mut self.added);
        if added.0 == 0 {
            return Ok(false);
        }
        // What was pushed must be visible before the driver's wish is read, else both could wait for each other.
        fence(Ordering::SeqCst);
        let available = available(&self.ram, &self.state)?;
        if !self.state.event_idx {
            return Ok(load(&available, 0, Ordering::Relaxed)? & AVAIL_NO_INTERRUPT == 0);
        }
        let event = Wrapping(load(&available, 4 + 2 * usize::from(self.state.size), Ordering::Relaxed)?);
        let new = Wrapping(self.state.next_used);
        Ok(new - event - Wrapping(1) < added)
    }

    /// Asks the driver to notify of the next chain, and says whether chains came in meanwhile (section 2.7.8).
    ///
    /// To be called when the queue has been emptied: with `RING_EVENT_IDX` a driver does not notify otherwise.
    pub fn enable_notification(&mut self) -> Result<bool, QueueError> {
        if self.state.event_idx {
            let (used, at) = (used(&self.ram, &self.state)?, 4 + 8 * usize::from(self.state.size));
            let next = self.state.next_available.to_le();
            used.store(next, at, Ordering::Relaxed).map_err(|_| QueueError::OutsideMemory(USED_RING))?;
            fence(Ordering::SeqCst);
        }
        Ok(self.waiting()? > 0)
    }

    /// Walks the chain that begins at `head`.
    fn chain(&self, head: u16) -> Result<Chain, QueueError> {
        let mut chain = Chain { head, readable: Buffers::default(), writable: Buffers::default() };
        let mut table = Table::new(&self.ram, self.state.descriptors, self.state.size)?;
        let (mut index, mut indirect, mut seen, mut bytes) = (head, false, 0u16, 0u64);
        loop {
            let descriptor = table.descriptor(index)?;
            if descriptor.flags & FLAG_INDIRECT != 0 {
                // FLAG_WRITE says nothing of a table: the device ignores it (section 2.7.5.3.2).
                if indirect || !self.state.indirect || descriptor.flags & FLAG_NEXT != 0 {
                    return Err(QueueError::BadIndirect);
                }
                table = Table::indirect(&self.ram, &descriptor)?;
                (index, indirect) = (0, true);
                continue;
            }
            seen += 1;
            if seen > self.state.size.min(MAX_DESCRIPTORS) {
                return Err(QueueError::ChainTooLong);
            }
            bytes += u64::from(descriptor.len);
            if bytes > MAX_CHAIN_BYTES {
                return Err(QueueError::ChainTooBig);
            }
            let writable = descriptor.flags & FLAG_WRITE != 0;
            if !writable && !chain.writable.is_empty() {
                return Err(QueueError::ReadableAfterWritable);
            }
            let part = if writable { &mut chain.writable } else { &mut chain.readable };
            // No more than the chain may have: room is taken for what the guest announces.
            let most = self.state.size.min(MAX_DESCRIPTORS);
            let left = if indirect { table.entries.saturating_sub(index).min(most) } else { 1 };
            part.add(&self.ram, descriptor.address, descriptor.len, usize::from(left))?;
            if descriptor.flags & FLAG_NEXT == 0 {
                return Ok(chain);
            }
            index = descriptor.next;
        }
    }
}

/// The driver's ring: flags, index, an entry of two bytes for each of the queue's, and the number of the used entry that
/// it wants to hear of.
fn available<'a>(ram: &'a GuestRam, state: &QueueState) -> Result<VolatileSlice<'a>, QueueError> {
    part(ram, state.available, 6 + 2 * u64::from(state.size), AVAILABLE_RING)
}

/// The device's ring: the same the other way round, with entries of eight bytes.
fn used<'a>(ram: &'a GuestRam, state: &QueueState) -> Result<VolatileSlice<'a>, QueueError> {
    part(ram, state.used, 6 + 8 * u64::from(state.size), USED_RING)
}

#[cfg(test)]
mod tests;
