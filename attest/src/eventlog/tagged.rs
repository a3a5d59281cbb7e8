//! Tagged events (`TCG_PCClientTaggedEvent`): who measured them is told by the number that they begin with.

use super::{Cursor, EventKind, text_of};

/// The PCRs into which Windows measures its own boot log (WBCL).
const WINDOWS: core::ops::RangeInclusive<u32> = 11..=14;

/// Events of the Linux kernel's EFI stub and of systemd-boot and systemd-stub, by tag.
const LINUX: [(u32, EventKind, &str); 10] = [
    (0x8f3b_22ec, EventKind::StubInitrd, "initrd"),
    (0x8f3b_22ed, EventKind::StubCommandLine, "kernel command line"),
    (0xf5bc_582a, EventKind::BootLoaderFile, "systemd-boot's configuration"),
    (0x6c46_f751, EventKind::BootLoaderFile, "device tree beside a unified kernel image"),
    (0x49df_fe0f, EventKind::BootLoaderFile, "initrd beside a unified kernel image"),
    (0xdac0_8e1a, EventKind::BootLoaderFile, "microcode beside a unified kernel image"),
    (0x13ae_d6db, EventKind::BootLoaderText, "profile of a unified kernel image"),
    (0xd5cb_7cbc, EventKind::FirmwareData, "SMBIOS system information"),
    (0xe0d4_7bc8, EventKind::FirmwareData, "SMBIOS board information"),
    (0xc0b3_bd23, EventKind::FirmwareData, "SMBIOS strings"),
];

/// Events of a conventional BIOS, as SeaBIOS logs them (TCG PC Client Implementation for Conventional BIOS 1.21,
/// section 11.3.2.2).
const BIOS: [(u32, &str); 12] = [
    (0x1, "SMBIOS structure"),
    (0x2, "boot integrity certificate"),
    (0x3, "POST BIOS strings"),
    (0x4, "ESCD"),
    (0x5, "CMOS"),
    (0x6, "NVRAM"),
    (0x7, "option ROM that was run"),
    (0x8, "option ROM's configuration"),
    (0xa, "microcode from an option ROM"),
    (0xb, "S-CRTM version"),
    (0xc, "S-CRTM contents"),
    (0xd, "POST contents"),
];

/// Events of Windows' boot log, by SIPA type.
const SIPA: [(u32, &str); 33] = [
    (0x4001_0001, "trust boundary"),
    (0x4001_0002, "early-launch anti-malware"),
    (0x4001_0003, "loaded module"),
    (0xc001_0004, "trust point"),
    (0x4001_0005, "key storage roots"),
    (0x0002_0001, "information"),
    (0x0002_0002, "boot counter"),
    (0x0002_0003, "transfer of control"),
    (0x0002_0004, "return of an application"),
    (0x0002_0005, "BitLocker unlock"),
    (0x0002_0006, "event counter"),
    (0x0002_0007, "counter id"),
    (0x0002_0008, "memory overwrite cannot be cancelled"),
    (0x0002_0009, "application's security version"),
    (0x0003_0001, "firmware failure"),
    (0x0003_0003, "internal failure"),
    (0x0004_0001, "boot debugging"),
    (0x0004_0002, "boot revocation list"),
    (0x0005_0001, "kernel debugging"),
    (0x0005_0002, "code integrity"),
    (0x0005_0003, "test signing"),
    (0x0005_0004, "data execution prevention"),
    (0x0005_0005, "safe mode"),
    (0x0005_0006, "Windows PE"),
    (0x0005_0008, "OS device"),
    (0x0005_0009, "system root"),
    (0x0005_000a, "hypervisor launch"),
    (0x0005_000c, "hypervisor IOMMU policy"),
    (0x0005_000d, "hypervisor debugging"),
    (0x0005_0012, "virtual secure mode launch"),
    (0x0006_0001, "no authority"),
    (0x0006_0002, "authority's public key"),
    (0x0007_0001, "module's path"),
];

/// Whether data are one tagged event, from the first byte to the last.
pub(super) fn is_whole(data: &[u8]) -> bool {
    let mut cursor = Cursor::new(data);
    let size = cursor.u32().and_then(|_tag| cursor.u32());
    size.is_ok_and(|size| u64::try_from(cursor.rest().len()).is_ok_and(|left| left == u64::from(size)))
}

/// Whether data are a conventional BIOS's event of an option ROM, or of microcode from one.
pub(super) fn is_bios_option_rom(data: &[u8]) -> bool {
    is_whole(data) && Cursor::new(data).u32().is_ok_and(|tag| matches!(tag, 0x7 | 0xa))
}

/// What a tagged event means, in words, with its text where it has one.
pub(super) fn meaning(pcr: u32, data: &[u8]) -> (EventKind, String, Option<String>) {
    let mut cursor = Cursor::new(data);
    let tag = cursor.u32().unwrap_or_default();
    let text = cursor.u32().ok().and_then(|size| cursor.take(u64::from(size)).ok()).and_then(text_of);
    let of = |table: &[(u32, &'static str)]| table.iter().find(|(id, _)| *id == tag).map(|(_, words)| *words);
    if let Some((_, kind, words)) = LINUX.iter().find(|(id, _, _)| *id == tag) {
        return (*kind, (*words).to_owned(), text);
    }
    if WINDOWS.contains(&pcr) {
        let words = of(&SIPA).map_or_else(|| format!("event {tag:#010x}"), str::to_owned);
        return (EventKind::Windows, format!("Windows: {words}"), text);
    }
    match of(&BIOS) {
        Some(words) => (EventKind::FirmwareData, words.to_owned(), text),
        None => (EventKind::BootLoaderText, format!("tagged event {tag:#010x}"), text),
    }
}
