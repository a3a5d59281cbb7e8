//! Linux bzImage, entered in 64-bit mode (Linux Documentation/arch/x86/boot.rst, protocol 2.12 and later).

use super::file::{BootFile, u16_at, u32_at, u64_at};
use super::{BootError, Entry, Kernel};
use crate::memory::{GuestRam, layout};

// Offsets of the setup header's fields in the file, which are those in the zero page too.
const SETUP_SECTS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const JUMP_LENGTH: usize = 0x201;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOADFLAGS: usize = 0x211;
const INITRD_ADDR_MAX: usize = 0x22c;
const XLOADFLAGS: usize = 0x236;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;

const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry point lies this far into the protected-mode part.
const ENTRY_64: u64 = 0x200;
/// First protocol whose header says whether there is a 64-bit entry point.
const PROTOCOL_2_12: u16 = 0x020c;
/// The header's offset in the file.
pub(super) const HEADER: usize = SETUP_SECTS;
/// End of what the zero page has room for.
const HEADER_MAX_END: usize = 0x290;

/// Whether the file begins like a bzImage.
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    u16_at(head, BOOT_FLAG) == Some(0xaa55) && u32_at(head, MAGIC) == Some(u32::from_le_bytes(*b"HdrS"))
}

/// The numbers of the setup header that loading needs.
struct Header {
    setup_bytes: u64,
    pref_address: u64,
    init_size: u64,
    initrd_max: u64,
    raw: Vec<u8>,
}

impl Header {
    fn parse(file: &BootFile, head: &[u8]) -> Result<Self, BootError> {
        let short = || file.truncated("its setup header");
        if u16_at(head, VERSION).ok_or_else(short)? < PROTOCOL_2_12 {
            return Err(file.bad_format("its boot protocol is older than 2.12"));
        }
        if head.get(LOADFLAGS).ok_or_else(short)? & LOADED_HIGH == 0 {
            return Err(file.bad_format("it is a zImage, not a bzImage"));
        }
        if u16_at(head, XLOADFLAGS).ok_or_else(short)? & XLF_KERNEL_64 == 0 {
            return Err(file.bad_format("it has no 64-bit entry point"));
        }
        let sectors = match head.get(SETUP_SECTS).ok_or_else(short)? {
            0 => 4, // as the protocol says for old kernels
            n => u64::from(*n),
        };
        let end = MAGIC.saturating_add(usize::from(*head.get(JUMP_LENGTH).ok_or_else(short)?)).min(HEADER_MAX_END);
        Ok(Self {
            setup_bytes: (sectors + 1) * 512,
            pref_address: u64_at(head, PREF_ADDRESS).ok_or_else(short)?,
            init_size: u64::from(u32_at(head, INIT_SIZE).ok_or_else(short)?),
            initrd_max: u64::from(u32_at(head, INITRD_ADDR_MAX).ok_or_else(short)?),
            raw: head.get(HEADER..end).ok_or_else(short)?.to_vec(),
        })
    }
}

/// Loads the protected-mode part to the address that the kernel prefers.
pub(super) fn load(file: &mut BootFile, head: &[u8], ram: &GuestRam, low_end: u64) -> Result<Kernel, BootError> {
    let header = Header::parse(file, head)?;
    let start = header.pref_address;
    // Page tables for the first 4 GiB are set up; below 1 MiB lie the boot structures.
    if !(layout::HIGH_RAM..layout::MMIO_START).contains(&start) {
        return Err(file.bad_format("its preferred load address is outside memory for kernels"));
    }
    let len = file.len().checked_sub(header.setup_bytes).filter(|len| *len > ENTRY_64);
    let len = len.ok_or_else(|| file.truncated("its protected-mode part"))?;
    // The kernel unpacks itself in place, within init_size.
    let end = start.saturating_add(header.init_size.max(len));
    if end > low_end {
        return Err(BootError::TooLittleMemory { what: "kernel", needed: end, end: low_end });
    }
    // syssize (in 16-byte units) is how much the header says is there.
    let announced = u32_at(head, 0x1f4).map_or(0, |units| u64::from(units) * 16);
    if len < announced {
        return Err(file.truncated("the end of its protected-mode part"));
    }
    file.copy_to(ram, header.setup_bytes, start, len, "its protected-mode part")?;
    Ok(Kernel {
        entry: Entry::Long { rip: start + ENTRY_64 },
        end,
        initrd_max: header.initrd_max,
        setup: Some(header.raw),
    })
}
