//! Guest memory: where it lies in the guest, and how it is made known to KVM.

mod handler;
pub mod layout;

use std::fs::File;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, MmapRegion, VolatileSlice,
};

pub use handler::{Handler, HandlerEnd, HandlerError, map as map_handed_out};

/// The guest's memory. All access goes through `vm-memory`'s typed, bounds-checked operations.
pub type GuestRam = GuestMemoryMmap<()>;

/// Why the guest has no memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host did not give the address space.
    #[error("cannot reserve {mib} MiB of guest memory: {reason}; ask for less or free some")]
    Reserve {
        /// What was asked for.
        mib: u64,
        /// What the system said.
        reason: String,
    },
    /// The host's pool of huge pages is too small.
    #[error(
        "the host has no {mib} MiB of huge pages to give: {reason}; make more of them, \
         sysctl vm.nr_hugepages, or do without huge_pages"
    )]
    Pool {
        /// What was asked for.
        mib: u64,
        /// What the system said.
        reason: String,
    },
    /// The memory could not be kept out of core dumps.
    #[error("cannot keep guest memory out of core dumps: {0}")]
    DontDump(std::io::Error),
    /// KVM did not take the memory.
    #[error("KVM refused the guest's memory at {address:#x}: {source}")]
    Slot {
        /// Guest address of the region.
        address: u64,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// The file of a snapshot's memory cannot be used.
    #[error("cannot use the snapshot's memory file: {0}")]
    Snapshot(std::io::Error),
    /// It is not the one of this snapshot, or not whole.
    #[error("the snapshot's memory file is no regular file of {expected} bytes, as its state says, but has {found}")]
    SnapshotSize {
        /// Its length.
        found: u64,
        /// The guest's memory.
        expected: u64,
    },
    /// Its pages cannot come from another process.
    #[error(transparent)]
    Handler(#[from] HandlerError),
    /// A size that this machine's integers cannot hold.
    #[error("{0} MiB of guest memory cannot be addressed")]
    Size(u64),
}

/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// Reserves `mib` MiB of zeroed guest memory.
///
/// Pages are private and anonymous: the host gives them when the guest first touches them, and the kernel clears them
/// before anyone else gets them. They are kept out of core dumps.
pub fn reserve(mib: u64) -> Result<GuestRam, MemoryError> {
    let reserve = |e: MmapRegionError| MemoryError::Reserve { mib, reason: e.to_string() };
    from_mappings(mib, anonymous(mib, libc::MAP_NORESERVE)?, reserve)
}

/// The same of pages of 2 MiB from the host's pool (hugetlbfs). They are the guest's from now on, so that none is missing
/// later.
pub fn reserve_huge(mib: u64) -> Result<GuestRam, MemoryError> {
    let pool = |e: MmapRegionError| MemoryError::Pool { mib, reason: e.to_string() };
    from_mappings(mib, anonymous(mib, libc::MAP_HUGETLB | libc::MAP_HUGE_2MB)?, pool)
}

/// A mapping, if there is one, and the guest address at which it begins.
type Mapping = (Result<MmapRegion, MmapRegionError>, u64);

/// Private and anonymous mappings of `mib` MiB with further flags.
fn anonymous(mib: u64, flags: libc::c_int) -> Result<Vec<Mapping>, MemoryError> {
    let bytes = mib.checked_mul(1 << 20).ok_or(MemoryError::Size(mib))?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags;
    let mut regions = Vec::new();
    for (start, len) in layout::ram_ranges(bytes) {
        let len = usize::try_from(len).map_err(|_| MemoryError::Size(mib))?;
        let map = || MmapRegion::build(None, len, libc::PROT_READ | libc::PROT_WRITE, flags);
        regions.push((aligned(len, map), start));
    }
    Ok(regions)
}

/// Lets `map` make a mapping of `len` bytes where a huge page begins: KVM gives a guest's memory to it in huge pages
/// only if they are huge pages on both sides, and guest addresses begin with one.
///
/// Where it does not succeed the guest has small pages: it is slower, and nothing else.
fn aligned<E>(len: usize, map: impl Fn() -> Result<MmapRegion, E>) -> Result<MmapRegion, E> {
    let mut made = into_hole(len, &map)?;
    // It came into another hole of this size, or another thread was faster: what is there stays until the next is made, and
    // fills that hole.
    let mut others = Vec::new();
    while !made.as_ptr().addr().is_multiple_of(HUGE_PAGE) && others.len() < 4 {
        // There may be no room for two, and one is there.
        let Ok(another) = into_hole(len, &map) else { break };
        others.push(std::mem::replace(&mut made, another));
    }
    Ok(made)
}

/// Lets `map` make its mapping behind a hole that has room for it, and no more, and begins with a huge page: the kernel
/// takes the highest hole that has room.
fn into_hole<T>(len: usize, map: impl Fn() -> T) -> T {
    let Some(total) = len.checked_add(HUGE_PAGE) else { return map() };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, which the kernel puts where nothing is.
    let begin = unsafe { libc::mmap(std::ptr::null_mut(), total, libc::PROT_NONE, flags, -1, 0) };
    if begin == libc::MAP_FAILED {
        return map();
    }
    let before = begin.addr().next_multiple_of(HUGE_PAGE) - begin.addr();
    let unmap = |offset: usize, len: usize| {
        if len > 0 {
            // SAFETY: whole pages of the mapping above, to which nothing refers.
            unsafe { libc::munmap(begin.wrapping_byte_add(offset), len) };
        }
    };
    unmap(before, len);
    let made = map();
    unmap(0, before);
    unmap(before + len, HUGE_PAGE - before);
    made
}

/// Guest memory of mappings. `failed` says what it means that one could not be made.
fn from_mappings(
    mib: u64,
    mappings: Vec<Mapping>,
    failed: impl Fn(MmapRegionError) -> MemoryError,
) -> Result<GuestRam, MemoryError> {
    let reserve = |reason: String| MemoryError::Reserve { mib, reason };
    let mut regions = Vec::new();
    for (mapping, start) in mappings {
        let region = GuestRegionMmap::new(mapping.map_err(&failed)?, GuestAddress(start));
        regions.push(region.ok_or_else(|| reserve("it does not fit into the address space".to_owned()))?);
    }
    let ram = GuestRam::from_regions(regions).map_err(|e| reserve(e.to_string()))?;
    keep_out_of_dumps(&ram)?;
    Ok(ram)
}

fn keep_out_of_dumps(ram: &GuestRam) -> Result<(), MemoryError> {
    for region in ram.iter() {
        // SAFETY: the range is exactly the mapping that `region` owns, and MADV_DONTDUMP does not change its content.
        let done = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_DONTDUMP) };
        if done != 0 {
            return Err(MemoryError::DontDump(std::io::Error::last_os_error()));
        }
    }
    Ok(())
}

/// Maps a snapshot's memory of `mib` MiB from its file: pages are read when they are touched first, and what the guest
/// writes stays out of the file.
///
/// The file must not change while the VM lives; a lock on it (`flock`) lasts as long as the mapping. One that is cut short
/// all the same kills the process when the guest touches what is gone.
pub fn map(mib: u64, file: &File) -> Result<GuestRam, MemoryError> {
    let bytes = mib.checked_mul(1 << 20).ok_or(MemoryError::Size(mib))?;
    let metadata = file.metadata().map_err(MemoryError::Snapshot)?;
    if !metadata.is_file() || metadata.len() != bytes {
        return Err(MemoryError::SnapshotSize { found: metadata.len(), expected: bytes });
    }
    let mut offset = 0;
    let mut regions = Vec::new();
    for (start, len) in layout::ram_ranges(bytes) {
        let part = FileOffset::new(file.try_clone().map_err(MemoryError::Snapshot)?, offset);
        offset += len;
        let len = usize::try_from(len).map_err(|_| MemoryError::Size(mib))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        regions.push((MmapRegion::build(Some(part), len, libc::PROT_READ | libc::PROT_WRITE, flags), start));
    }
    from_mappings(mib, regions, |e| MemoryError::Reserve { mib, reason: e.to_string() })
}

/// `len` bytes of guest memory from `address` on; nothing if not all of them are there.
///
/// A range that lies in memory lies in one region of it: regions do not touch, a hole for devices is between them.
pub fn part(ram: &GuestRam, address: u64, len: u64) -> Option<VolatileSlice<'_>> {
    // There are one or two regions: to look at each is faster than to search.
    let (region, offset) = ram.iter().find_map(|region| {
        let offset = address.checked_sub(region.start_addr().0)?;
        (offset < region.len()).then_some((region, offset))
    })?;
    region.get_slice(MemoryRegionAddress(offset), usize::try_from(len).ok()?).ok()
}

/// Tells KVM about every region of guest memory.
pub fn register(vm: &VmFd, ram: &GuestRam) -> Result<(), MemoryError> {
    for (slot, region) in (0u32..).zip(ram.iter()) {
        let address = region.start_addr().0;
        let memory_region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: address,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is a live mapping of that size, owned by `ram`, which outlives the VM (see `vm::Machine`).
        unsafe { vm.set_user_memory_region(memory_region) }.map_err(|source| MemoryError::Slot { address, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn memory_is_where_the_layout_says_and_nowhere_else() {
        let ram = reserve(4096).unwrap();
        ram.write_obj(7u64, GuestAddress(0)).unwrap();
        ram.write_obj(7u64, GuestAddress(layout::FOUR_GIB)).unwrap();
        assert!(ram.write_obj(7u64, GuestAddress(layout::MMIO_START)).is_err());
        assert!(ram.write_obj(7u64, GuestAddress(layout::MMIO_START - 4)).is_err());
        assert!(ram.write_obj(7u64, GuestAddress(u64::MAX - 3)).is_err());
    }

    #[test]
    fn a_part_is_whole_or_it_is_none() {
        let ram = reserve(4096).unwrap();
        let len = |address, len| part(&ram, address, len).map(|part| part.len());
        assert_eq!(len(layout::MMIO_START - 8, 8), Some(8));
        assert_eq!(len(layout::MMIO_START - 8, 9), None);
        assert_eq!(len(layout::MMIO_START, 0), None);
        assert_eq!(len(layout::FOUR_GIB, 1 << 30), Some(1 << 30));
        // From one region to the other there is a hole.
        assert_eq!(len(0, layout::FOUR_GIB + 1), None);
        assert_eq!([len(u64::MAX, 1), len(8, u64::MAX)], [None; 2]);
    }

    /// Makes a hole of this size that does not begin with a huge page; it lies higher than what is free below.
    fn odd_hole(len: usize) {
        const PAGE: usize = 4096;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let total = len + HUGE_PAGE + 2 * PAGE;
        // SAFETY: a new mapping, which the kernel puts where nothing is.
        let begin = unsafe { libc::mmap(std::ptr::null_mut(), total, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(begin, libc::MAP_FAILED);
        let odd = begin.addr().next_multiple_of(HUGE_PAGE) - begin.addr() + PAGE;
        // SAFETY: whole pages of that mapping, to which nothing refers.
        assert_eq!(unsafe { libc::munmap(begin.wrapping_byte_add(odd), len) }, 0);
    }

    #[test]
    fn memory_begins_with_a_huge_page() {
        // Newer kernels do so by themselves with mappings of whole huge pages.
        for mib in [33, 4097] {
            let ranges = layout::ram_ranges(mib << 20);
            for (_, len) in &ranges {
                odd_hole(usize::try_from(*len).unwrap());
            }
            let ram = reserve(mib).unwrap();
            let starts: Vec<usize> = ram.iter().map(|region| region.as_ptr().addr()).collect();
            assert!(starts.iter().all(|start| start.is_multiple_of(HUGE_PAGE)), "{mib}: {starts:x?}");
        }
    }

    #[test]
    fn a_mapping_that_begins_oddly_is_kept_where_there_is_no_other() {
        let len = 35 << 20;
        odd_hole(len);
        let maps = std::cell::Cell::new(0);
        let made = aligned(len, || {
            maps.set(maps.get() + 1);
            if maps.get() > 1 { Err("no room") } else { MmapRegion::new(len).map_err(|_| "not even for one") }
        });
        assert_eq!(made.map(|region| region.size()).unwrap(), len);
        assert_eq!(maps.get(), 2);
    }

    #[test]
    fn absurd_sizes_are_an_error() {
        assert!(matches!(reserve(u64::MAX), Err(MemoryError::Size(_))));
        assert!(reserve(1 << 40).is_err());
        // More than any machine keeps in a pool.
        assert!(matches!(reserve_huge(1 << 25), Err(MemoryError::Pool { .. })));
    }

    #[test]
    fn memory_is_kept_out_of_core_dumps() {
        let ram = reserve(16).unwrap();
        let start = format!("{:x}-", ram.iter().next().unwrap().as_ptr() as usize);
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let flags = maps
            .split_inclusive('\n')
            .skip_while(|line| !line.starts_with(&start))
            .find(|line| line.starts_with("VmFlags:"))
            .expect("the mapping is not in /proc/self/smaps");
        assert!(flags.split_whitespace().any(|flag| flag == "dd"), "{flags}");
    }
}
