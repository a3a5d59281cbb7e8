//! The Linux boot parameters ("zero page", Linux Documentation/arch/x86/zero-page.rst).

use vm_memory::{Bytes, GuestAddress};

use super::{BootError, Initrd, Kernel, bzimage};
use crate::memory::{GuestRam, layout, layout::RangeKind};

const SIZE: usize = 4096;
// Offsets.
const ACPI_RSDP_ADDR: usize = 0x070;
const E820_ENTRIES: usize = 0x1e8;
const BOOT_FLAG: usize = 0x1fe;
const MAGIC: usize = 0x202;
const TYPE_OF_LOADER: usize = 0x210;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const CMDLINE_SIZE: usize = 0x238;
const E820_TABLE: usize = 0x2d0;

/// A boot loader that has no number of its own.
const LOADER_UNDEFINED: u8 = 0xff;

/// A zero page being filled. Writes outside it are refused, not wrapped.
struct ZeroPage(Vec<u8>);

impl ZeroPage {
    fn put(&mut self, offset: usize, bytes: &[u8]) -> Result<(), BootError> {
        let end = offset.checked_add(bytes.len()).ok_or(BootError::Write("boot parameters"))?;
        let place = self.0.get_mut(offset..end).ok_or(BootError::Write("boot parameters"))?;
        place.copy_from_slice(bytes);
        Ok(())
    }

    /// The fields that lie in the first 4 GiB are 32 bits wide.
    fn put_address(&mut self, offset: usize, value: u64) -> Result<(), BootError> {
        let value = u32::try_from(value).map_err(|_| BootError::Write("boot parameters"))?;
        self.put(offset, &value.to_le_bytes())
    }
}

/// Writes the zero page for `kernel`.
pub(super) fn write_boot_params(
    ram: &GuestRam,
    kernel: &Kernel,
    initrd: Initrd,
    cmdline: &str,
    bytes: u64,
) -> Result<(), BootError> {
    let page = boot_params(kernel, initrd, cmdline, bytes)?;
    ram.write_slice(&page, GuestAddress(layout::BOOT_PARAMS)).map_err(|_| BootError::Write("boot parameters"))
}

fn boot_params(kernel: &Kernel, initrd: Initrd, cmdline: &str, bytes: u64) -> Result<Vec<u8>, BootError> {
    let mut page = ZeroPage(vec![0; SIZE]);
    if let Some(setup) = &kernel.setup {
        page.put(bzimage::HEADER, setup)?;
    } else {
        page.put(BOOT_FLAG, &0xaa55u16.to_le_bytes())?;
        page.put(MAGIC, b"HdrS")?;
        page.put_address(CMDLINE_SIZE, cmdline.len() as u64)?;
    }
    page.put(TYPE_OF_LOADER, &[LOADER_UNDEFINED])?;
    page.put_address(RAMDISK_IMAGE, initrd.start)?;
    page.put_address(RAMDISK_SIZE, initrd.len)?;
    page.put_address(CMD_LINE_PTR, layout::CMDLINE)?;
    page.put(ACPI_RSDP_ADDR, &layout::ACPI.to_le_bytes())?;
    let map = layout::memory_map(bytes);
    page.put(E820_ENTRIES, &[u8::try_from(map.len()).map_err(|_| BootError::Write("memory map"))?])?;
    for (number, (start, len, kind)) in map.into_iter().enumerate() {
        let kind: u32 = match kind {
            RangeKind::Ram => 1,
            RangeKind::Reserved => 2,
        };
        let at = E820_TABLE + number * 20;
        page.put(at, &start.to_le_bytes())?;
        page.put(at + 8, &len.to_le_bytes())?;
        page.put(at + 16, &kind.to_le_bytes())?;
    }
    Ok(page.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::Entry;
    use crate::boot::file::{u32_at, u64_at};

    #[test]
    fn offsets_are_those_of_the_kernels_header() {
        use linux_loader::loader::bootparam::boot_params as Abi;
        use std::mem::offset_of;
        assert_eq!(std::mem::size_of::<Abi>(), SIZE);
        assert_eq!(offset_of!(Abi, acpi_rsdp_addr), ACPI_RSDP_ADDR);
        assert_eq!(offset_of!(Abi, e820_entries), E820_ENTRIES);
        assert_eq!(offset_of!(Abi, e820_table), E820_TABLE);
        for (ours, theirs) in [
            (BOOT_FLAG, offset_of!(Abi, hdr.boot_flag)),
            (MAGIC, offset_of!(Abi, hdr.header)),
            (TYPE_OF_LOADER, offset_of!(Abi, hdr.type_of_loader)),
            (RAMDISK_IMAGE, offset_of!(Abi, hdr.ramdisk_image)),
            (RAMDISK_SIZE, offset_of!(Abi, hdr.ramdisk_size)),
            (CMD_LINE_PTR, offset_of!(Abi, hdr.cmd_line_ptr)),
            (CMDLINE_SIZE, offset_of!(Abi, hdr.cmdline_size)),
            (bzimage::HEADER, offset_of!(Abi, hdr)),
        ] {
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn a_guest_above_the_hole_is_told_of_all_its_memory() {
        let kernel =
            Kernel { entry: Entry::Long { rip: 0x10_0000 }, end: 0x20_0000, initrd_max: u64::MAX, setup: None };
        let initrd = Initrd { start: 0xb000_0000, len: 77 };
        let page = boot_params(&kernel, initrd, "quiet", 8 << 30).unwrap();
        assert_eq!(page[E820_ENTRIES], 4);
        assert_eq!(u64_at(&page, E820_TABLE + 60), Some(layout::FOUR_GIB));
        assert_eq!(u64_at(&page, E820_TABLE + 68), Some((8 << 30) - layout::MMIO_START));
        assert_eq!(u32_at(&page, RAMDISK_IMAGE), Some(0xb000_0000));
        assert_eq!(u32_at(&page, RAMDISK_SIZE), Some(77));
        assert_eq!(u32_at(&page, CMDLINE_SIZE), Some(5));
    }
}
