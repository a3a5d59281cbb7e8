//! One request of a disk (virtio 1.2, section 5.2.6): a header of 16 bytes and data from the driver, data for it, and
//! last a byte that says how it went.

use std::io;

use super::disk::{Disk, Wish, is_unsupported};
use super::{
    DISCARD, FLUSH, Features, MAX_DATA, MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS, MAX_WRITE_ZEROES_SECTORS, SECTOR,
    WRITE_ZEROES,
};
use crate::memory::GuestRam;
use crate::virtio::{Buffers, Chain, QueueError};

/// How a request went, in its last byte.
mod status {
    pub const OK: u8 = 0;
    pub const IO_ERROR: u8 = 1;
    pub const UNSUPPORTED: u8 = 2;
}

/// Bytes of the serial number.
pub(super) const ID_BYTES: usize = 20;
/// Bytes that describe one range to be discarded.
const SEGMENT: usize = 16;
const SEGMENT_UNMAP: u32 = 1;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
    GetId,
    Discard,
    WriteZeroes,
    Unknown,
}

impl From<u32> for Kind {
    fn from(number: u32) -> Self {
        match number {
            0 => Self::Read,
            1 => Self::Write,
            4 => Self::Flush,
            8 => Self::GetId,
            11 => Self::Discard,
            13 => Self::WriteZeroes,
            _ => Self::Unknown,
        }
    }
}

/// Why a request was not done.
#[derive(Debug)]
pub(super) enum Failure {
    /// It is not well formed, or goes beyond the disk or what is announced. The guest is at fault.
    Invalid,
    /// The disk does not do this.
    Unsupported,
    /// The host could not do it.
    Host(io::Error),
    /// It was interrupted because the queue is wanted; it has to be done again from its beginning.
    Stopped,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::Interrupted => Self::Stopped,
            _ if is_unsupported(&error) => Self::Unsupported,
            _ => Self::Host(error),
        }
    }
}

/// What a request did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Done {
    /// Bytes of the disk that it was about.
    pub(super) bytes: u64,
    /// Bytes that were written to guest memory.
    written: u32,
}

/// A request whose chain has the shape of one.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) kind: Kind,
    sector: u64,
    /// The driver's data, for requests that write.
    readable: Buffers,
    /// Where data goes, for requests that read.
    writable: Buffers,
    status: Buffers,
    /// What is to be discarded or made zeros. The guest's memory is read for it once.
    ranges: Result<Vec<Range>, Failure>,
}

/// A part of the disk.
#[derive(Clone, Copy, Debug)]
struct Range {
    /// Byte of the file.
    at: u64,
    bytes: u64,
    unmap: bool,
}

impl Request {
    /// Reads the header, and the ranges of a request for a disk with these features that has such. A chain in which there
    /// is no whole header, or no room to answer, is an error of the driver.
    pub(super) fn parse(ram: &GuestRam, mut chain: Chain, disk: &Disk, features: Features) -> Result<Self, QueueError> {
        let status = chain.writable.take_last(1);
        if status.is_empty() {
            return Err(QueueError::BadRequest("it has no room for a status"));
        }
        let header = u128::from_le_bytes(chain.readable.read_array(ram)?);
        let kind = Kind::from(u32::try_from(header & 0xffff_ffff).unwrap_or(u32::MAX));
        let sector = u64::try_from(header >> 64).unwrap_or(u64::MAX);
        let (readable, writable) = (chain.readable, chain.writable);
        let mut request = Self { kind, sector, readable, writable, status, ranges: Ok(Vec::new()) };
        if request.is_sound() && matches!(kind, Kind::Discard | Kind::WriteZeroes) {
            request.ranges = request.read_ranges(ram, disk, features);
        }
        Ok(request)
    }

    /// Bytes of data that go over from one side to the other.
    pub(super) fn data_bytes(&self) -> u64 {
        self.readable.len().saturating_add(self.writable.len())
    }

    /// Bytes that a limit on bandwidth counts: the data, and what is discarded or made zeros, which the host's disk may
    /// have to write.
    pub(super) fn cost(&self) -> u64 {
        self.data_bytes().saturating_add(self.range_bytes())
    }

    fn range_bytes(&self) -> u64 {
        let ranges = self.ranges.as_deref().unwrap_or_default();
        ranges.iter().fold(0, |sum, range| sum.saturating_add(range.bytes))
    }

    /// Whether there is no data in the wrong direction, and not more than is announced.
    fn is_sound(&self) -> bool {
        let wrong = match self.kind {
            Kind::Read | Kind::GetId => &self.readable,
            Kind::Write | Kind::Discard | Kind::WriteZeroes => &self.writable,
            Kind::Flush | Kind::Unknown => &Buffers::default(),
        };
        wrong.is_empty() && self.data_bytes() <= MAX_DATA
    }

    /// Whether the host's disk has to have everything before it is answered, once it is done.
    pub(super) fn is_durable(&self, features: Features) -> bool {
        match self.kind {
            Kind::Flush => true,
            Kind::Write | Kind::Discard | Kind::WriteZeroes => features.is_write_through(),
            Kind::Read | Kind::GetId | Kind::Unknown => false,
        }
    }

    /// Does it on a disk with these features and this serial number, but for what [`Request::is_durable`] demands.
    pub(super) fn execute(
        &mut self,
        ram: &GuestRam,
        disk: &Disk,
        features: Features,
        id: &[u8; ID_BYTES],
        wish: Wish<'_>,
    ) -> Result<Done, Failure> {
        if !self.is_sound() {
            return Err(Failure::Invalid);
        }
        match self.kind {
            Kind::Read => {
                let (at, bytes) = self.locate(disk, self.writable.len())?;
                disk.read(ram, &self.writable, at, wish)?;
                Ok(Done { bytes, written: u32::try_from(bytes).map_err(|_| Failure::Invalid)? })
            }
            Kind::Write if disk.is_read_only() => Err(Failure::Invalid),
            Kind::Write => {
                let (at, bytes) = self.locate(disk, self.readable.len())?;
                disk.write(ram, &self.readable, at, wish)?;
                Ok(Done { bytes, written: 0 })
            }
            Kind::Flush if features.has(FLUSH) => Ok(Done::default()),
            // A buffer that is too short for all of it is the driver's mistake.
            Kind::GetId if self.writable.len() < ID_BYTES as u64 => Err(Failure::Invalid),
            Kind::GetId => {
                let written = self.writable.write(ram, id).map_err(|_| Failure::Invalid)?;
                Ok(Done { bytes: 0, written: u32::try_from(written).map_err(|_| Failure::Invalid)? })
            }
            Kind::Discard | Kind::WriteZeroes => self.zero(disk, wish),
            Kind::Flush | Kind::Unknown => Err(Failure::Unsupported),
        }
    }

    fn locate(&self, disk: &Disk, bytes: u64) -> Result<(u64, u64), Failure> {
        if !bytes.is_multiple_of(SECTOR) {
            return Err(Failure::Invalid);
        }
        disk.locate(self.sector, bytes).map(|at| (at, bytes)).ok_or(Failure::Invalid)
    }

    /// Reads the ranges to be discarded or made zeros: all of them, or why none is touched.
    fn read_ranges(&mut self, ram: &GuestRam, disk: &Disk, features: Features) -> Result<Vec<Range>, Failure> {
        let discard = self.kind == Kind::Discard;
        // A disk that is read only offers neither.
        if disk.is_read_only() || !features.has(if discard { DISCARD } else { WRITE_ZEROES }) {
            return Err(Failure::Unsupported);
        }
        let (max_segments, max_sectors) =
            if discard { (MAX_DISCARD_SEGMENTS, MAX_DISCARD_SECTORS) } else { (1, MAX_WRITE_ZEROES_SECTORS) };
        let mut space = [0; SEGMENT * MAX_DISCARD_SEGMENTS];
        let len = usize::try_from(self.readable.len()).unwrap_or(usize::MAX);
        let data = space.get_mut(..len).ok_or(Failure::Invalid)?;
        if len == 0 || !len.is_multiple_of(SEGMENT) || len / SEGMENT > max_segments {
            return Err(Failure::Invalid);
        }
        // A copy is moved on: what was read still counts as data.
        self.readable.clone().read(ram, data).map_err(|_| Failure::Invalid)?;
        let mut ranges = Vec::with_capacity(len / SEGMENT);
        for segment in data.chunks_exact(SEGMENT) {
            let word = u128::from_le_bytes(segment.try_into().map_err(|_| Failure::Invalid)?);
            let half = |shift: u32| u32::try_from((word >> shift) & 0xffff_ffff).unwrap_or(u32::MAX);
            let (sectors, flags) = (half(64), half(96));
            if flags & !SEGMENT_UNMAP != 0 || (discard && flags != 0) {
                return Err(Failure::Unsupported);
            }
            let bytes = u64::from(sectors) * SECTOR;
            let sector = u64::try_from(word & u128::from(u64::MAX)).unwrap_or(u64::MAX);
            let at = disk.locate(sector, bytes).filter(|_| sectors <= max_sectors).ok_or(Failure::Invalid)?;
            ranges.push(Range { at, bytes, unmap: flags & SEGMENT_UNMAP != 0 });
        }
        Ok(ranges)
    }

    /// Discards the ranges, or makes them zeros.
    fn zero(&mut self, disk: &Disk, wish: Wish<'_>) -> Result<Done, Failure> {
        let bytes = self.range_bytes();
        for Range { at, bytes, unmap } in std::mem::replace(&mut self.ranges, Ok(Vec::new()))? {
            let discards = self.kind == Kind::Discard;
            if discards { disk.discard(at, bytes, wish) } else { disk.zero(at, bytes, unmap, wish) }?;
        }
        Ok(Done { bytes, written: 0 })
    }

    /// Tells the driver how it went. Gives the number of bytes of its memory that were written.
    pub(super) fn answer(mut self, ram: &GuestRam, result: &Result<Done, Failure>) -> Result<u32, QueueError> {
        let (status, written) = match result {
            Ok(done) => (status::OK, done.written),
            Err(Failure::Invalid | Failure::Host(_) | Failure::Stopped) => (status::IO_ERROR, 0),
            Err(Failure::Unsupported) => (status::UNSUPPORTED, 0),
        };
        self.status.write(ram, &[status])?;
        Ok(written.saturating_add(1))
    }
}
