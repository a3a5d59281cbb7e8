//! ACPI tables (ACPI 6.4, section 5.2): RSDP, XSDT, FADT, MADT and a DSDT.
//!
//! The machine is one of reduced hardware (section 4.1): sleep registers to power it off, and nothing else that is at
//! a fixed place; no PM timer, no PCI, no RTC, no 8259s.
//! The reset register is the i8042's, so that all ways to reset end in one device (see [`super::reset_vector`], too).

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::devices::{acpi_power, i8042, serial, vm_generation};
use crate::memory::{GuestRam, layout, layout::VirtioPlace};

const OEM_ID: [u8; 6] = *b"PORTCU";
const OEM_TABLE_ID: [u8; 8] = *b"PORTCVMM";
const OEM_REVISION: u32 = 1;

// FADT IA-PC boot architecture flags (ACPI 6.4, table 5.11).
const BOOT_ARCH_LEGACY_DEVICES: u16 = 1;
const BOOT_ARCH_8042: u16 = 1 << 1;
const BOOT_ARCH_NO_VGA: u16 = 1 << 2;
const BOOT_ARCH_NO_RTC: u16 = 1 << 5;
/// MADT flags: PCAT_COMPAT, which says that there is a PIC, is not for reduced hardware.
const MADT_FLAGS: u32 = 0;

/// Tables being laid out one behind the other.
struct Area {
    next: u64,
    tables: Vec<(u64, Vec<u8>)>,
}

impl Area {
    /// Takes the next place, aligned to 64 bytes.
    fn place(&mut self, table: &dyn Aml) -> u64 {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        self.place_bytes(bytes)
    }

    fn place_bytes(&mut self, bytes: Vec<u8>) -> u64 {
        let at = self.next;
        self.next = (at + bytes.len() as u64).next_multiple_of(64);
        self.tables.push((at, bytes));
        at
    }
}

/// Writes the tables of a machine with `vcpus` vCPUs and virtio devices in these places; the RSDP is at
/// [`layout::ACPI`].
pub fn write(ram: &GuestRam, vcpus: u8, virtio: &[VirtioPlace]) -> Result<(), BootError> {
    for (at, bytes) in tables(vcpus, virtio) {
        if at + bytes.len() as u64 > layout::ACPI_END {
            return Err(BootError::Write("ACPI tables"));
        }
        ram.write_slice(&bytes, GuestAddress(at)).map_err(|_| BootError::Write("ACPI tables"))?;
    }
    Ok(())
}

fn tables(vcpus: u8, virtio: &[VirtioPlace]) -> Vec<(u64, Vec<u8>)> {
    // The RSDP's place is kept free: it is written last, when the XSDT's address is known.
    let mut area = Area { next: layout::ACPI + 64, tables: Vec::new() };
    let dsdt = area.place_bytes(dsdt(virtio).as_slice().to_vec());
    let fadt = area.place(&fadt(dsdt).finalize());
    let madt = area.place_bytes(madt(vcpus).as_slice().to_vec());
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = area.place(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    area.tables.push((layout::ACPI, rsdp));
    area.tables
}

fn fadt(dsdt: u64) -> FADTBuilder {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION).dsdt_64(dsdt);
    fadt.sleep_control_reg = port(acpi_power::CONTROL_PORT);
    fadt.sleep_status_reg = port(acpi_power::STATUS_PORT);
    fadt.iapc_boot_arch = (BOOT_ARCH_LEGACY_DEVICES | BOOT_ARCH_8042 | BOOT_ARCH_NO_VGA | BOOT_ARCH_NO_RTC).into();
    fadt.reset_reg = port(i8042::COMMAND_PORT);
    fadt.reset_value = i8042::RESET_COMMAND;
    // The two button flags say that the fixed hardware has no such button.
    let flags = [Flags::HwReducedAcpi, Flags::Wbinvd, Flags::PwrButton, Flags::SlpButton, Flags::ResetRegSup];
    flags.into_iter().fold(fadt, FADTBuilder::flag)
}

fn madt(vcpus: u8) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", 36, 4, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.append_slice(&layout::LAPIC.to_le_bytes());
    madt.append_slice(&MADT_FLAGS.to_le_bytes());
    let mut entries = Vec::new();
    for cpu in 0..vcpus {
        ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled).to_aml_bytes(&mut entries);
    }
    // IOAPIC ids share no space with the LAPICs' here, but some guests want them apart.
    IoApic::new(vcpus, layout::IOAPIC, 0).to_aml_bytes(&mut entries);
    madt.append_slice(&entries);
    madt
}

fn dsdt(virtio: &[VirtioPlace]) -> Sdt {
    let mut code = Vec::new();
    let sleep_type = acpi_power::S5_SLEEP_TYPE;
    let zero = aml::ZERO;
    aml::Name::new("_S5_".into(), &aml::Package::new(vec![&sleep_type, &sleep_type, &zero, &zero]))
        .to_aml_bytes(&mut code);
    let (base, last) = (serial::PORT, serial::PORT);
    aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::IO::new(base, last, 1, serial::PORTS),
                    &aml::Interrupt::new(true, true, false, false, u32::from(serial::IRQ)),
                ]),
            ),
        ],
    )
    .to_aml_bytes(&mut code);
    keyboard(&mut code);
    generation(&mut code);
    for (number, place) in (0u8..).zip(virtio) {
        virtio_device(number, *place, &mut code);
    }
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&code);
    dsdt
}

/// The keyboard controller. There is no mouse, and no entry for one: drivers that find none do not look for it.
fn keyboard(code: &mut Vec<u8>) {
    aml::Device::new(
        "_SB_.KBD0".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0303")),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::IO::new(i8042::PORT, i8042::PORT, 1, 1),
                    &aml::IO::new(i8042::COMMAND_PORT, i8042::COMMAND_PORT, 1, 1),
                    &aml::Interrupt::new(true, true, false, false, u32::from(i8042::IRQ)),
                ]),
            ),
        ],
    )
    .to_aml_bytes(code);
}

/// The VM generation ID, and the generic event device that tells of a new one.
fn generation(code: &mut Vec<u8>) {
    const STATUS_CHANGED: u8 = 0x80;
    // From the root on: a method looks for names of several parts only below itself.
    let id = "\\_SB_.VGEN";
    // It lies below 4 GiB.
    let address = u32::try_from(layout::VM_GENERATION).unwrap_or(0);
    aml::Device::new(
        id.into(),
        vec![
            &aml::Name::new("_HID".into(), &"PCLVMGID"),
            &aml::Name::new("_CID".into(), &"VM_Gen_Counter"),
            &aml::Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &aml::Name::new("ADDR".into(), &aml::Package::new(vec![&address, &aml::ZERO])),
        ],
    )
    .to_aml_bytes(code);
    let gsi = vm_generation::GSI;
    aml::Device::new(
        "_SB_.GED0".into(),
        vec![
            &aml::Name::new("_HID".into(), &"ACPI0013"),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![&aml::Interrupt::new(true, true, false, false, u32::from(gsi))]),
            ),
            &aml::Method::new(
                "_EVT".into(),
                1,
                true,
                vec![&aml::If::new(
                    &aml::Equal::new(&aml::Arg(0), &gsi),
                    vec![&aml::Notify::new(&aml::Path::new(id), &STATUS_CHANGED)],
                )],
            ),
        ],
    )
    .to_aml_bytes(code);
}

/// A virtio device with memory-mapped registers: "LNRO0005" is what Linux knows it by.
fn virtio_device(number: u8, place: VirtioPlace, code: &mut Vec<u8>) {
    // Both lie below 4 GiB.
    let base = u32::try_from(place.base).unwrap_or(0);
    let len = u32::try_from(layout::VIRTIO_LEN).unwrap_or(0);
    aml::Device::new(
        format!("_SB_.V{number:03}").as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), &"LNRO0005"),
            &aml::Name::new("_UID".into(), &number),
            // Its accesses to memory are coherent with the processors' caches.
            &aml::Name::new("_CCA".into(), &aml::ONE),
            &aml::Name::new(
                "_CRS".into(),
                &aml::ResourceTemplate::new(vec![
                    &aml::Memory32Fixed::new(true, base, len),
                    &aml::Interrupt::new(true, true, false, false, u32::from(place.gsi)),
                ]),
            ),
        ],
    )
    .to_aml_bytes(code);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::file::{u32_at, u64_at};

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn every_table_can_be_reached_and_adds_up() {
        let places: Vec<_> = layout::virtio_places().collect();
        for (vcpus, places) in [(1, &places[..0]), (2, &places[..3]), (32, &places[..])] {
            let tables: std::collections::BTreeMap<u64, Vec<u8>> = tables(vcpus, places).into_iter().collect();
            let rsdp = &tables[&layout::ACPI];
            assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
            let xsdt = &tables[&u64_at(rsdp, 24).unwrap()];
            assert_eq!((&xsdt[..4], sum(xsdt)), (&b"XSDT"[..], 0));
            let listed: Vec<_> = (36..xsdt.len()).step_by(8).map(|at| &tables[&u64_at(xsdt, at).unwrap()]).collect();
            assert_eq!(listed.len(), 2);
            for (table, signature) in listed.iter().zip([b"FACP", b"APIC"]) {
                assert_eq!((&table[..4], sum(table)), (&signature[..], 0));
                assert_eq!(u32_at(table, 4).unwrap() as usize, table.len());
            }
            let fadt = listed[0];
            let dsdt = &tables[&u64_at(fadt, 140).unwrap()];
            assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
            assert_eq!(dsdt.windows(8).filter(|bytes| bytes == b"LNRO0005").count(), places.len());
            let generation = u32::try_from(layout::VM_GENERATION).unwrap().to_le_bytes();
            assert!(dsdt.windows(14).any(|bytes| bytes == b"VM_Gen_Counter"));
            assert!(dsdt.windows(4).any(|bytes| bytes == generation));
            // Notify (ACPI 6.5, section 20.2.5.3) with a name from the root on, of two parts.
            let notify = b"\x86\\\x2e_SB_VGEN\x0a\x80";
            assert!(dsdt.windows(notify.len()).any(|bytes| bytes == notify));
            for place in places {
                let base = u32::try_from(place.base).unwrap().to_le_bytes();
                assert!(dsdt.windows(4).any(|bytes| bytes == base), "{place:?}");
            }
            // Reduced hardware, and its sleep registers: 8 bits wide each, at a port (ACPI 6.4, table 5.9).
            assert_ne!(u32_at(fadt, 112).unwrap() & (1 << 20), 0);
            for (at, port) in [(244, acpi_power::CONTROL_PORT), (256, acpi_power::STATUS_PORT)] {
                assert_eq!((&fadt[at..at + 4], u64_at(fadt, at + 4)), (&[1, 8, 0, 1][..], Some(u64::from(port))));
            }
            // One LAPIC of 8 bytes a vCPU, an IOAPIC of 12.
            assert_eq!(listed[1].len(), 44 + usize::from(vcpus) * 8 + 12);
            assert!(tables.iter().all(|(at, bytes)| at + bytes.len() as u64 <= layout::ACPI_END));
        }
    }
}
