use super::*;
use crate::config::VmConfig;
use crate::memory::reserve;

/// A bzImage with the given preferred address, size of setup 1 sector, 64-bit entry.
fn bzimage(pref_address: u64, init_size: u32, body: usize) -> Vec<u8> {
    let mut image = vec![0; 1024 + body];
    image[0x1f1] = 1;
    image[0x1f4..0x1f8].copy_from_slice(&u32::try_from(body / 16).unwrap().to_le_bytes());
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x200..0x202].copy_from_slice(&[0xeb, 0x6a]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    image[0x211] = 1;
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    image[0x236] = 1;
    image[0x258..0x260].copy_from_slice(&pref_address.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&init_size.to_le_bytes());
    image[1024..].fill(0xf4);
    image
}

fn load(image: &[u8], mem_mib: u64, initrd: Option<&[u8]>) -> Result<Entry, BootError> {
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("kernel");
    std::fs::write(&kernel, image).unwrap();
    let mut config = VmConfig::new(&kernel).with_mem_mib(mem_mib).with_boot_args("quiet");
    if let Some(initrd) = initrd {
        let path = dir.path().join("initrd");
        std::fs::write(&path, initrd).unwrap();
        config = config.with_initrd(path);
    }
    BootFiles::open(&config)?.load(&reserve(mem_mib).unwrap(), &config, &[])
}

#[test]
fn a_bzimage_is_entered_in_long_mode() {
    assert_eq!(load(&bzimage(0x100_0000, 0x10_0000, 4096), 32, None).unwrap(), Entry::Long { rip: 0x100_0200 });
}

#[test]
fn a_truncated_bzimage_is_named_so() {
    let image = bzimage(0x100_0000, 0x10_0000, 4096);
    for len in [1023, 1024, 1024 + 0x200, image.len() - 1] {
        assert!(matches!(load(&image[..len], 32, None), Err(BootError::Truncated { .. })), "{len}");
    }
    for len in [0, 1, 0x1ff, 0x203] {
        assert!(matches!(load(&image[..len], 32, None), Err(BootError::Format { .. })), "{len}");
    }
}

#[test]
fn kernels_of_another_kind_are_named_so() {
    let error = |image: &[u8]| load(image, 32, None).unwrap_err().to_string();
    for (at, value, words) in [(0x206, 0x0b, "older than 2.12"), (0x211, 0, "zImage"), (0x236, 0, "64-bit entry")] {
        let mut image = bzimage(0x100_0000, 0x10_0000, 4096);
        image[at] = value;
        if at == 0x206 {
            image[0x207] = 2;
        }
        assert!(error(&image).contains(words), "{}", error(&image));
    }
    // ELF of 64 bits, little endian, for x86-64; then each of them otherwise.
    let elf = |class: u8, order: u8, machine: u8| {
        let mut head = vec![0; 64];
        head[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, order]);
        (head[18], head[54]) = (machine, 56);
        error(&head)
    };
    assert!(elf(2, 1, 62).contains("nothing to load"), "{}", elf(2, 1, 62));
    for (class, order, machine) in [(1, 1, 62), (2, 2, 62), (2, 1, 3)] {
        assert!(elf(class, order, machine).contains("not ELF for x86-64"), "{class} {order} {machine}");
    }
}

#[test]
fn kernels_that_lie_about_addresses_are_refused() {
    for address in [0, 0x7000, layout::HIGH_RAM - 1, layout::MMIO_START, u64::MAX] {
        assert!(matches!(load(&bzimage(address, 0, 4096), 32, None), Err(BootError::Format { .. })), "{address:#x}");
    }
    for (address, init_size) in [(0x1f0_0000, 0x20_0000), (0x100_0000, u32::MAX), (0xbfff_f000, 0)] {
        let result = load(&bzimage(address, init_size, 8192), 32, None);
        assert!(matches!(result, Err(BootError::TooLittleMemory { what: "kernel", .. })), "{address:#x}");
    }
}

#[test]
fn an_initrd_lies_above_the_kernel_or_is_refused() {
    let image = bzimage(0x100_0000, 0xf0_0000, 4096);
    assert!(load(&image, 32, Some(&vec![1; 0x10_0000])).is_ok());
    let result = load(&image, 32, Some(&vec![1; 0x10_0001]));
    assert!(matches!(result, Err(BootError::TooLittleMemory { what: "initrd", .. })));
}

#[test]
fn files_that_are_none_are_refused() {
    let open = |path: &str| BootFiles::open(&VmConfig::new(path)).err();
    assert!(matches!(open("/nonexistent"), Some(BootError::Read { what: "kernel", .. })));
    assert!(matches!(open("/dev/zero"), Some(BootError::NotAFile { .. })));
    assert!(matches!(open("/"), Some(BootError::NotAFile { .. })));
    assert!(matches!(load(b"#!/bin/sh", 32, None), Err(BootError::Format { .. })));
}

/// An ELF file with one program header.
fn elf(entry: u64, address: u64, file_size: u64, memory_size: u64) -> Vec<u8> {
    let mut image = vec![0; 4096];
    image[..6].copy_from_slice(b"\x7fELF\x02\x01");
    image[18] = 62;
    image[24..32].copy_from_slice(&entry.to_le_bytes());
    image[32..40].copy_from_slice(&64u64.to_le_bytes());
    image[54] = 56;
    image[56] = 1;
    image[64] = 1;
    for (at, value) in [(72, 2048), (88, address), (96, file_size), (104, memory_size)] {
        image[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
    }
    image
}

#[test]
fn an_elf_kernel_is_loaded_where_it_says() {
    assert_eq!(load(&elf(0x10_0010, 0x10_0000, 2048, 4096), 2, None).unwrap(), Entry::Long { rip: 0x10_0010 });
}

#[test]
fn elf_headers_that_lie_are_refused() {
    let cases = [
        ("entry", elf(0x20_0000, 0x10_0000, 2048, 4096)),
        ("entry", elf(0, 0x10_0000, 2048, 4096)),
        ("low", elf(0x10_0000, 0x9_f000, 2048, 0x10_0000)),
        ("file size", elf(0x10_0000, 0x10_0000, 2049, 4096)),
        ("file size", elf(0x10_0000, 0x10_0000, u64::MAX, 4096)),
        ("memory size", elf(0x10_0000, 0x10_0000, 2048, u64::MAX)),
        ("address", elf(0x10_0000, u64::MAX, 2048, 4096)),
        ("nothing", elf(0x10_0000, 0x10_0000, 0, 0)),
    ];
    for (what, image) in cases {
        assert!(load(&image, 2, None).is_err(), "{what}");
    }
    let mut image = elf(0x10_0000, 0x10_0000, 2048, 4096);
    image[56..58].copy_from_slice(&65u16.to_le_bytes());
    assert!(matches!(load(&image, 2, None), Err(BootError::Format { .. })));
    image[56] = 64;
    image[57] = 0;
    image[32..40].copy_from_slice(&4000u64.to_le_bytes());
    assert!(matches!(load(&image, 2, None), Err(BootError::Truncated { .. })));
}

proptest::proptest! {
    #[test]
    fn no_header_crashes_the_loader(
        flips in proptest::collection::vec((0usize..1024, proptest::prelude::any::<u8>()), 0..40),
        is_elf: bool,
    ) {
        let mut image = if is_elf { elf(0x10_0000, 0x10_0000, 2048, 4096) } else { bzimage(0x10_0000, 4096, 4096) };
        for (at, value) in flips {
            image[at] = value;
        }
        let _ = load(&image, 2, None);
    }
}
