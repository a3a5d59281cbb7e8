//! The PVH start info (Xen's `start_info.h`, version 1).

use vm_memory::{Bytes, GuestAddress};

use super::{BootError, Initrd};
use crate::memory::{GuestRam, layout, layout::RangeKind};

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
/// Memory map and module list lie behind the start info, which has 56 bytes.
const MEMORY_MAP: u64 = layout::PVH_START_INFO + 0x100;
const MODULES: u64 = layout::PVH_START_INFO + 0x80;

/// Writes start info, memory map and, for an initrd, the module list.
pub(super) fn write_start_info(ram: &GuestRam, initrd: Initrd, bytes: u64) -> Result<(), BootError> {
    let put = |at: u64, bytes: &[u8]| {
        ram.write_slice(bytes, GuestAddress(at)).map_err(|_| BootError::Write("PVH start info"))
    };
    let map = layout::memory_map(bytes);
    let modules: u32 = u32::from(initrd.len > 0);
    let entries = u32::try_from(map.len()).map_err(|_| BootError::Write("PVH memory map"))?;

    let mut info = Vec::with_capacity(56);
    for word in [MAGIC, VERSION, 0, modules] {
        info.extend(word.to_le_bytes());
    }
    for address in [if modules == 0 { 0 } else { MODULES }, layout::CMDLINE, layout::ACPI, MEMORY_MAP] {
        info.extend(address.to_le_bytes());
    }
    info.extend(entries.to_le_bytes());
    info.extend(0u32.to_le_bytes());
    put(layout::PVH_START_INFO, &info)?;

    if modules != 0 {
        let module: Vec<u8> = [initrd.start, initrd.len, 0, 0].iter().flat_map(|n| n.to_le_bytes()).collect();
        put(MODULES, &module)?;
    }
    let mut table = Vec::new();
    for (start, len, kind) in map {
        let kind: u32 = match kind {
            RangeKind::Ram => 1,
            RangeKind::Reserved => 2,
        };
        table.extend(start.to_le_bytes());
        table.extend(len.to_le_bytes());
        table.extend(kind.to_le_bytes());
        table.extend(0u32.to_le_bytes());
    }
    put(MEMORY_MAP, &table)
}

#[cfg(test)]
mod tests {
    use linux_loader::loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
    use std::mem::{offset_of, size_of};

    use super::*;
    use crate::memory::reserve;

    #[test]
    fn the_structures_are_xens() {
        let ram = reserve(4).unwrap();
        write_start_info(&ram, Initrd { start: 0x30_0000, len: 9 }, 4 << 20).unwrap();
        let word = |at: usize| ram.read_obj::<u64>(GuestAddress(layout::PVH_START_INFO + at as u64)).unwrap();
        assert_eq!(word(offset_of!(hvm_start_info, modlist_paddr)), MODULES);
        assert_eq!(word(offset_of!(hvm_start_info, cmdline_paddr)), layout::CMDLINE);
        assert_eq!(word(offset_of!(hvm_start_info, rsdp_paddr)), layout::ACPI);
        assert_eq!(word(offset_of!(hvm_start_info, memmap_paddr)), MEMORY_MAP);
        assert_eq!(word(offset_of!(hvm_start_info, memmap_entries)), 3);
        assert!(layout::PVH_START_INFO + size_of::<hvm_start_info>() as u64 <= MODULES);
        assert!(MODULES + size_of::<hvm_modlist_entry>() as u64 <= MEMORY_MAP);
        assert_eq!(ram.read_obj::<u64>(GuestAddress(MODULES)).unwrap(), 0x30_0000);
        let last = MEMORY_MAP + 2 * size_of::<hvm_memmap_table_entry>() as u64;
        assert_eq!(ram.read_obj::<u64>(GuestAddress(last)).unwrap(), layout::HIGH_RAM);
    }
}
