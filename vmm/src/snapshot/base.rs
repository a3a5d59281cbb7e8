//! What a differential snapshot leaves out: pages that are as they were in the snapshot before.
//!
//! Pages are compared, not tracked: with the file that the memory was loaded from, or with fingerprints that were taken when
//! the last snapshot was written. So no device and no page table has to say what it writes, and none can forget to; but all
//! of the memory is read.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::FileExt;

use super::SnapshotType;
use super::memory::{self, CHUNK, PAGE};
use crate::memory::GuestRam;

/// Fingerprints that lie together: the allocator may map no more at once than the filter of a thread allows.
const TOGETHER: usize = 1 << 17;

/// What the pages of the memory were in the last snapshot.
pub struct Base {
    pages: Pages,
    /// Of fingerprints. The guest does not know its key, so it cannot make pages that have the same.
    hasher: RandomState,
}

enum Pages {
    /// There was no snapshot, and the memory began with zeros.
    Zeros,
    /// There was none, and the memory began with this file.
    Loaded(File),
    /// A fingerprint for each page.
    Known(Fingerprints),
    /// There was one, and nobody has kept what was in it.
    Unknown,
}

impl Base {
    /// For a VM that is booted. To be made before the process is confined: it takes random numbers.
    pub fn booted() -> Self {
        Self { pages: Pages::Zeros, hasher: RandomState::new() }
    }

    /// The VM's memory was loaded from `file`.
    pub fn load(&mut self, file: File) {
        self.pages = Pages::Loaded(file);
    }

    /// Forgets what was in the last snapshot, which is lost: the next one holds all pages.
    pub fn forget(&mut self) {
        self.pages = Pages::Unknown;
    }

    /// Writes the memory of a snapshot. With `track`, what it holds is kept in mind for the next one; the return value is the
    /// base of that.
    pub fn write(&self, ram: &GuestRam, file: &File, kind: SnapshotType, track: bool) -> io::Result<Self> {
        if matches!(self.pages, Pages::Zeros) {
            // Whatever the file holds, it is no snapshot of this VM.
            file.set_len(0)?;
        }
        let mut before = Before::of(&self.pages);
        let mut next = Fingerprints::default();
        memory::write(ram, file, |number, page| {
            if track {
                next.push(self.hasher.hash_one(page))?;
            }
            match kind {
                // The file was empty: what is not written is zero.
                SnapshotType::Full => Ok(!is_zero(page)),
                SnapshotType::Diff => self.has_changed(&mut before, number, page),
            }
        })?;
        let pages = if track { Pages::Known(next) } else { Pages::Unknown };
        Ok(Self { pages, hasher: self.hasher.clone() })
    }

    fn has_changed(&self, before: &mut Before<'_>, number: usize, page: &[u8]) -> io::Result<bool> {
        Ok(match &self.pages {
            Pages::Zeros => !is_zero(page),
            Pages::Loaded(_) => before.page(number)? != page,
            Pages::Known(all) => all.get(number) != Some(self.hasher.hash_one(page)),
            Pages::Unknown => true,
        })
    }
}

/// Numbers of pages, in the order of the file.
#[derive(Default)]
struct Fingerprints(Vec<Vec<u64>>);

impl Fingerprints {
    /// Adds that of the next page; an error where there is no memory for it.
    fn push(&mut self, fingerprint: u64) -> io::Result<()> {
        if self.0.last().is_none_or(|part| part.len() == TOGETHER) {
            let mut part = Vec::new();
            part.try_reserve_exact(TOGETHER).map_err(io::Error::other)?;
            self.0.push(part);
        }
        if let Some(part) = self.0.last_mut() {
            part.push(fingerprint);
        }
        Ok(())
    }

    fn get(&self, number: usize) -> Option<u64> {
        self.0.get(number / TOGETHER)?.get(number % TOGETHER).copied()
    }
}

/// The file that memory was loaded from, read in order.
struct Before<'a> {
    file: Option<&'a File>,
    chunk: Vec<u8>,
    /// The number of the first page of the chunk.
    first: usize,
}

impl<'a> Before<'a> {
    fn of(pages: &'a Pages) -> Self {
        let file = if let Pages::Loaded(file) = pages { Some(file) } else { None };
        Self { file, chunk: Vec::new(), first: 0 }
    }

    fn page(&mut self, number: usize) -> io::Result<&[u8]> {
        let inside = |first: usize, len: usize| number.checked_sub(first).filter(|ahead| *ahead < len / PAGE);
        if inside(self.first, self.chunk.len()).is_none()
            && let Some(file) = self.file
        {
            let at = u64::try_from(number).ok().and_then(|number| number.checked_mul(PAGE as u64));
            let at = at.ok_or(io::ErrorKind::InvalidInput)?;
            let left = usize::try_from(file.metadata()?.len().saturating_sub(at)).unwrap_or(CHUNK);
            self.chunk.resize(CHUNK.min(left / PAGE * PAGE), 0);
            file.read_exact_at(&mut self.chunk, at)?;
            self.first = number;
        }
        let ahead = inside(self.first, self.chunk.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(self.chunk.get(ahead * PAGE..(ahead + 1) * PAGE).unwrap_or_default())
    }
}

fn is_zero(page: &[u8]) -> bool {
    static ZEROS: [u8; PAGE] = [0; PAGE];
    ZEROS.get(..page.len()) == Some(page)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    const MIB: u64 = 4;

    fn bytes(ram: &GuestRam) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(MIB << 20).unwrap()];
        ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    fn set(ram: &GuestRam, page: u64, value: u8) {
        ram.write_slice(&[value; PAGE], GuestAddress(page * PAGE as u64)).unwrap();
    }

    /// Asserts that `file` is what `ram` holds, and how many pages of it were written.
    fn holds(file: &File, ram: &GuestRam, pages: Option<u64>) {
        let mapped = crate::memory::map(MIB, file).unwrap();
        assert!(bytes(&mapped) == bytes(ram));
        if let Some(pages) = pages {
            assert_eq!(file.metadata().unwrap().blocks() * 512, pages * PAGE as u64);
        }
    }

    /// A guest with three pages that are not zero, and its first snapshot.
    fn begun(track: bool) -> (GuestRam, File, Base) {
        let (ram, file) = (crate::memory::reserve(MIB).unwrap(), tempfile::tempfile().unwrap());
        (1..=3).for_each(|page| set(&ram, page, 7));
        let base = Base::booted().write(&ram, &file, SnapshotType::Full, track).unwrap();
        holds(&file, &ram, Some(3));
        (ram, file, base)
    }

    #[test]
    fn a_difference_merged_into_what_was_before_is_the_memory() {
        let (ram, full, base) = begun(true);
        // Changed, made zero, made from zero, changed and back: one page each, and one that stays.
        set(&ram, 1, 8);
        set(&ram, 2, 0);
        set(&ram, 9, 1);
        set(&ram, 3, 8);
        set(&ram, 3, 7);
        let alone = tempfile::tempfile().unwrap();
        let next = base.write(&ram, &alone, SnapshotType::Diff, true).unwrap();
        assert_eq!(alone.metadata().unwrap().blocks() * 512, 3 * PAGE as u64);
        base.write(&ram, &full, SnapshotType::Diff, true).unwrap();
        holds(&full, &ram, None);
        // The next one is the difference to this one, not to the first.
        set(&ram, 1, 7);
        let second = tempfile::tempfile().unwrap();
        next.write(&ram, &second, SnapshotType::Diff, true).unwrap();
        assert_eq!(second.metadata().unwrap().blocks() * 512, PAGE as u64);
        next.write(&ram, &full, SnapshotType::Diff, true).unwrap();
        holds(&full, &ram, None);
    }

    #[test]
    fn without_a_snapshot_before_the_difference_is_to_the_begin() {
        let (ram, file) = (crate::memory::reserve(MIB).unwrap(), tempfile::tempfile().unwrap());
        set(&ram, 5, 1);
        // As long as the memory, and another's.
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![9; 4 << 20], 0).unwrap();
        Base::booted().write(&ram, &file, SnapshotType::Diff, false).unwrap();
        holds(&file, &ram, Some(1));
        let loaded = crate::memory::map(MIB, &file).unwrap();
        let mut base = Base::booted();
        base.load(file.try_clone().unwrap());
        set(&loaded, 5, 0);
        set(&loaded, 6, 2);
        let difference = tempfile::tempfile().unwrap();
        base.write(&loaded, &difference, SnapshotType::Diff, false).unwrap();
        assert_eq!(difference.metadata().unwrap().blocks() * 512, 2 * PAGE as u64);
        let copy = tempfile::tempfile().unwrap();
        Base::booted().write(&crate::memory::map(MIB, &file).unwrap(), &copy, SnapshotType::Full, false).unwrap();
        base.write(&loaded, &copy, SnapshotType::Diff, false).unwrap();
        holds(&copy, &loaded, None);
    }

    #[test]
    fn what_is_not_known_is_written_whether_it_is_zero_or_not() {
        for forgotten in [false, true] {
            let (ram, full, mut base) = begun(forgotten);
            if forgotten {
                base.forget();
            }
            set(&ram, 2, 0);
            base.write(&ram, &full, SnapshotType::Diff, false).unwrap();
            holds(&full, &ram, Some((MIB << 20) / PAGE as u64));
        }
    }
}
