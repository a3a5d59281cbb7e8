//! The file of the guest's memory: its bytes from address 0 on, without the hole below 4 GiB.
//!
//! Pages that are left out are holes of a new file: they take no room on disk, and are read as zeros.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::GuestRam;

/// Bytes that are copied at once: they stay in the processor's cache between the looking and the writing.
pub(super) const CHUNK: usize = 256 * 1024;
/// What is written or left out.
pub(super) const PAGE: usize = 4096;

/// Writes the pages of the memory that are `wanted` into a file. It is asked for each page, in order: its number in the file,
/// and its bytes. Nobody may write to the memory meanwhile.
pub(super) fn write(
    ram: &GuestRam,
    file: &File,
    mut wanted: impl FnMut(usize, &[u8]) -> io::Result<bool>,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut at = 0u64;
    for region in ram.iter() {
        let (start, len) = (region.start_addr().0, region.len());
        let mut done = 0;
        while done < len {
            let count = usize::try_from(len - done).unwrap_or(CHUNK).min(CHUNK);
            let bytes = chunk.get_mut(..count).unwrap_or_default();
            ram.read_slice(bytes, GuestAddress(start + done)).map_err(io::Error::other)?;
            write_pages(file, bytes, at + done, &mut wanted)?;
            done += count as u64;
        }
        at += len;
    }
    // Also where the last pages are left out.
    file.set_len(at)
}

/// Writes the pages of `bytes` that are wanted, neighbours together.
fn write_pages(
    file: &File,
    bytes: &[u8],
    at: u64,
    mut wanted: impl FnMut(usize, &[u8]) -> io::Result<bool>,
) -> io::Result<()> {
    let first = usize::try_from(at / PAGE as u64).map_err(io::Error::other)?;
    let numbered = bytes.chunks(PAGE).zip(first..);
    let pages: Vec<(usize, bool)> =
        numbered.map(|(page, number)| Ok((page.len(), wanted(number, page)?))).collect::<io::Result<_>>()?;
    let mut done = 0;
    for run in pages.chunk_by(|a, b| a.1 == b.1) {
        let len: usize = run.iter().map(|(len, _)| len).sum();
        if run.first().is_some_and(|(_, wanted)| *wanted) {
            file.write_all_at(bytes.get(done..done + len).unwrap_or_default(), at + done as u64)?;
        }
        done += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::memory;

    #[test]
    fn what_is_written_is_mapped_back_and_zeros_take_no_room() {
        let ram = memory::reserve(8).unwrap();
        let places = [0, 0x1fff, 0x3000, CHUNK as u64 - 1, CHUNK as u64, (8 << 20) - 1];
        for (place, value) in places.iter().zip(1u8..) {
            ram.write_obj(value, GuestAddress(*place)).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        write(&ram, &file, |_, page| Ok(page.iter().any(|byte| *byte != 0))).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), 8 << 20);
        assert!(metadata.blocks() * 512 <= 16 * PAGE as u64, "{} blocks", metadata.blocks());
        let mapped = memory::map(8, &file).unwrap();
        for (place, value) in places.iter().zip(1u8..) {
            assert_eq!(mapped.read_obj::<u8>(GuestAddress(*place)).unwrap(), value);
        }
        let (mut before, mut after) = (vec![0; 8 << 20], vec![0; 8 << 20]);
        ram.read_slice(&mut before, GuestAddress(0)).unwrap();
        mapped.read_slice(&mut after, GuestAddress(0)).unwrap();
        assert!(before == after);
        // The guest's writes stay its own.
        mapped.write_obj(99u8, GuestAddress(0)).unwrap();
        let mut first = [0];
        file.read_exact_at(&mut first, 0).unwrap();
        assert_eq!(first, [1]);
    }
}
