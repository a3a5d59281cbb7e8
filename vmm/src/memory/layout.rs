//! The guest's physical address space.
//!
//! ```text
//! 0x0000_0500  GDT                       0x0000_7000  boot parameters (zero page)
//! 0x0000_6000  PVH start info            0x0000_8ff0  initial stack, downwards
//! 0x0000_9000  page tables (6 pages)     0x0002_0000  command line
//! 0x0009_fc00  end of low memory         0x000e_0000  ACPI tables
//! 0x000f_e000  VM generation ID, a page         0x000f_fff0  what resets the machine
//! 0x0010_0000  kernel and everything else, initrd at the top
//! 0xc000_0000  boot timer                0xc000_1000  virtio devices, a page each
//! 0xfec0_0000  IOAPIC, LAPICs, KVM's own pages
//! 0x1_0000_0000  memory above 3 GiB
//! ```

/// Global descriptor table.
pub const GDT: u64 = 0x500;
/// PVH start info, memory map and module list (one page).
pub const PVH_START_INFO: u64 = 0x6000;
/// Linux boot parameters, the "zero page".
pub const BOOT_PARAMS: u64 = 0x7000;
/// Initial stack pointer.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Top-level page table; the next level and four page directories follow, a page each.
pub const PAGE_TABLES: u64 = 0x9000;
/// Kernel command line, NUL-terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// End of low memory that the guest may use; the rest of the first MiB is reserved.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables; the RSDP is first, where a guest that scans for it finds it.
pub const ACPI: u64 = 0xe_0000;
/// End of the ACPI area.
pub const ACPI_END: u64 = VM_GENERATION;
/// The VM generation ID; nothing else lies in its page.
pub const VM_GENERATION: u64 = 0xf_e000;
/// Where the firmware of a PC begins in real mode (F000:FFF0).
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Lowest address of a kernel.
pub const HIGH_RAM: u64 = 0x10_0000;
/// Start of the hole for memory-mapped devices.
pub const MMIO_START: u64 = 0xc000_0000;
/// First virtio device; the others follow, [`VIRTIO_LEN`] bytes each.
pub const VIRTIO: u64 = 0xc000_1000;
/// Bytes of one virtio device's registers.
pub const VIRTIO_LEN: u64 = 0x1000;
/// Interrupts of the virtio devices, in their order: lines of the IOAPIC that no other device has. There are no more.
pub const VIRTIO_GSIS: [u8; 16] = [5, 6, 7, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];
/// First address above the hole.
pub const FOUR_GIB: u64 = 1 << 32;
/// The I/O APIC.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The local APICs, which KVM emulates.
pub const LAPIC: u32 = 0xfee0_0000;
/// Three pages that Intel's KVM needs for real mode.
pub const KVM_TSS: usize = 0xfffb_d000;

/// Where a virtio device stands: the guest learns it from the ACPI tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioPlace {
    /// Guest address of its registers.
    pub base: u64,
    /// Its interrupt, a line of the IOAPIC.
    pub gsi: u8,
}

/// The places of virtio devices, in their order.
pub fn virtio_places() -> impl Iterator<Item = VirtioPlace> {
    (VIRTIO..).step_by(0x1000).zip(VIRTIO_GSIS).map(|(base, gsi)| VirtioPlace { base, gsi })
}

/// Splits `bytes` of memory around the hole: (start, length) each.
pub fn ram_ranges(bytes: u64) -> Vec<(u64, u64)> {
    if bytes <= MMIO_START { vec![(0, bytes)] } else { vec![(0, MMIO_START), (FOUR_GIB, bytes - MMIO_START)] }
}

/// End of the memory below the hole.
pub fn low_end(bytes: u64) -> u64 {
    bytes.min(MMIO_START)
}

/// What a range of the guest's address space is, for the memory map that the guest is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    /// The guest's to use.
    Ram,
    /// Not to be touched.
    Reserved,
}

/// The memory map (e820) of a guest with `bytes` of memory: (start, length, kind).
pub fn memory_map(bytes: u64) -> Vec<(u64, u64, RangeKind)> {
    let mut map = vec![
        (0, LOW_RAM_END, RangeKind::Ram),
        (LOW_RAM_END, HIGH_RAM - LOW_RAM_END, RangeKind::Reserved),
        (HIGH_RAM, low_end(bytes).saturating_sub(HIGH_RAM), RangeKind::Ram),
    ];
    if bytes > MMIO_START {
        map.push((FOUR_GIB, bytes - MMIO_START, RangeKind::Ram));
    }
    map
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn all_memory_is_mapped_once_outside_the_hole(mib in 2u64..=(1 << 20)) {
            let bytes = mib << 20;
            let ranges = ram_ranges(bytes);
            prop_assert_eq!(ranges.iter().map(|r| r.1).sum::<u64>(), bytes);
            for (start, len) in &ranges {
                prop_assert!(start + len <= MMIO_START || *start >= FOUR_GIB);
            }
            let usable: u64 =
                memory_map(bytes).iter().filter(|r| r.2 == RangeKind::Ram).map(|r| r.1).sum();
            prop_assert_eq!(usable + (HIGH_RAM - LOW_RAM_END), bytes);
        }
    }
}
