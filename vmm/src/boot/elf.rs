//! ELF kernels: entered by PVH where the image has its note, else in 64-bit mode at the ELF entry point.

use super::file::{BootFile, u16_at, u32_at, u64_at};
use super::{BootError, Entry, Kernel};
use crate::memory::{GuestRam, layout};

/// Most program headers that are looked at. Linux has about six.
const MAX_SEGMENTS: u16 = 64;
/// Longest note segment that is looked at, in bytes.
const MAX_NOTES: u64 = 64 * 1024;
/// Size of an ELF64 program header.
const PROGRAM_HEADER: u16 = 56;

const CLASS_64_LITTLE_ENDIAN: u16 = 0x0102;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Xen's note that holds the 32-bit PVH entry point.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// Whether the file begins like an ELF file.
pub(super) fn is_elf(head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF")
}

/// One program header.
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

impl Segment {
    fn parse(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            kind: u32_at(bytes, 0)?,
            offset: u64_at(bytes, 8)?,
            address: u64_at(bytes, 24)?,
            file_size: u64_at(bytes, 32)?,
            memory_size: u64_at(bytes, 40)?,
        })
    }
}

/// Loads every segment to its physical address.
pub(super) fn load(file: &mut BootFile, head: &[u8], ram: &GuestRam, low_end: u64) -> Result<Kernel, BootError> {
    let entry = check_header(file, head)?;
    let mut pvh = None;
    let mut end = 0;
    for segment in segments(file, head)? {
        match segment.kind {
            PT_LOAD => end = end.max(load_segment(file, ram, &segment, low_end)?),
            PT_NOTE if pvh.is_none() => pvh = find_pvh_entry(file, &segment)?,
            _ => {}
        }
    }
    if end == 0 {
        return Err(file.bad_format("it has nothing to load"));
    }
    let start = pvh.map_or(entry, u64::from);
    if !(layout::HIGH_RAM..end).contains(&start) {
        return Err(file.bad_format("its entry point is outside what it loads"));
    }
    let entry = pvh.map_or(Entry::Long { rip: entry }, |eip| Entry::Pvh { eip });
    Ok(Kernel { entry, end, initrd_max: u64::from(u32::MAX), setup: None })
}

/// Checks the ELF header; gives the entry point.
fn check_header(file: &BootFile, head: &[u8]) -> Result<u64, BootError> {
    let short = || file.truncated("its ELF header");
    if u16_at(head, 4).ok_or_else(short)? != CLASS_64_LITTLE_ENDIAN
        || u16_at(head, 18).ok_or_else(short)? != MACHINE_X86_64
    {
        return Err(file.bad_format("it is not ELF for x86-64"));
    }
    u64_at(head, 24).ok_or_else(short)
}

/// Reads the program headers.
fn segments(file: &mut BootFile, head: &[u8]) -> Result<Vec<Segment>, BootError> {
    let short = || file.truncated("its ELF header");
    let offset = u64_at(head, 32).ok_or_else(short)?;
    let size = u16_at(head, 54).ok_or_else(short)?;
    let count = u16_at(head, 56).ok_or_else(short)?;
    if size != PROGRAM_HEADER || count > MAX_SEGMENTS || offset > file.len() {
        return Err(file.bad_format("its ELF program headers are not as they should be"));
    }
    let bytes = file.read_up_to(offset, u64::from(size) * u64::from(count))?;
    let segments: Vec<_> = bytes.chunks_exact(usize::from(size)).filter_map(Segment::parse).collect();
    if segments.len() != usize::from(count) {
        return Err(file.truncated("its ELF program headers"));
    }
    Ok(segments)
}

/// Loads one segment; gives the address behind it.
fn load_segment(file: &mut BootFile, ram: &GuestRam, segment: &Segment, low_end: u64) -> Result<u64, BootError> {
    let size = segment.memory_size.max(segment.file_size);
    if size == 0 {
        return Ok(0);
    }
    if segment.address < layout::HIGH_RAM {
        return Err(file.bad_format("it wants to be loaded below 1 MiB, where the boot structures are"));
    }
    let end = segment.address.saturating_add(size);
    if end > low_end {
        return Err(BootError::TooLittleMemory { what: "kernel", needed: end, end: low_end });
    }
    file.copy_to(ram, segment.offset, segment.address, segment.file_size, "one of its segments")?;
    Ok(end)
}

/// Looks for the PVH entry point among the notes.
fn find_pvh_entry(file: &mut BootFile, segment: &Segment) -> Result<Option<u32>, BootError> {
    if segment.offset > file.len() {
        return Err(file.truncated("its ELF notes"));
    }
    let notes = file.read_up_to(segment.offset, segment.file_size.min(MAX_NOTES))?;
    Ok(pvh_entry(&notes))
}

/// Walks a note segment: name size, descriptor size, kind, name, descriptor; the last two padded to four bytes.
fn pvh_entry(notes: &[u8]) -> Option<u32> {
    let mut rest = notes;
    loop {
        let name_size = usize::try_from(u32_at(rest, 0)?).ok()?;
        let desc_size = usize::try_from(u32_at(rest, 4)?).ok()?;
        let kind = u32_at(rest, 8)?;
        let body = rest.get(12..)?;
        let desc_start = name_size.checked_next_multiple_of(4)?;
        if kind == XEN_ELFNOTE_PHYS32_ENTRY && body.get(..name_size)? == b"Xen\0" && desc_size >= 4 {
            return u32_at(body, desc_start);
        }
        rest = body.get(desc_start.checked_add(desc_size.checked_next_multiple_of(4)?)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(name.len()).unwrap().to_le_bytes());
        bytes.extend(u32::try_from(desc.len()).unwrap().to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        for part in [name, desc] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn the_pvh_note_is_found_behind_others() {
        let mut notes = note(b"GNU\0", 3, &[1, 2, 3, 4, 5]);
        notes.extend(note(b"Xen\0", 6, b"x\0"));
        notes.extend(note(b"Xen\0", 18, &0x10_0200u64.to_le_bytes()));
        assert_eq!(pvh_entry(&notes), Some(0x10_0200));
        assert_eq!(pvh_entry(&notes[..notes.len() - 8]), None);
        assert_eq!(pvh_entry(&note(b"Xen\0", 18, &[1, 2])), None);
        assert_eq!(pvh_entry(&[]), None);
    }

    proptest! {
        #[test]
        fn no_notes_crash_the_walk(notes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = pvh_entry(&notes);
        }
    }
}
