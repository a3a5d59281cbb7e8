//! Kernels and initrds: whatever their headers say, they lie where the guest finds them, or nothing is booted.

use std::fs;
use std::path::Path;

use portcullis_vmm::boot::{BootFiles, Entry};
use portcullis_vmm::config::VmConfig;
use portcullis_vmm::memory::{self, layout};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::Target;
use super::files::MemoryFile;

/// A flag, and a kernel's file: bzImage, ELF, or ELF with a PVH note.
pub const KERNEL: Target = Target { name: "kernel", body: kernel, max_len: 4096, seeds: |_| seeds() };

const MIB: u64 = 4;
/// Low memory that no boot structure uses.
const UNUSED: [(usize, usize); 2] = [(0x1000, 0x6000), (0x3_0000, 0x9_0000)];
/// To be compared with: a loop over bytes is slow in a fuzzer.
static ZEROS: [u8; 0x6_0000] = [0; 0x6_0000];
const INITRD: [u8; 5000] = [0x1d; 5000];

fn kernel(bytes: &[u8]) -> bool {
    let Some((flags, image)) = bytes.split_first() else { return false };
    let image = MemoryFile::new(image);
    let initrd = (flags & 1 != 0).then(|| MemoryFile::new(&INITRD));
    let mut config = VmConfig::new(image.path()).with_mem_mib(MIB).with_boot_args("console=ttyS0");
    if let Some(initrd) = &initrd {
        config = config.with_initrd(initrd.path());
    }
    let ram = memory::reserve(MIB).expect("some memory");
    let files = BootFiles::open(&config).expect("the files are there");
    let Ok(entry) = files.load(&ram, &config, &[]) else { return false };
    let first = match entry {
        Entry::Long { rip } => rip,
        Entry::Pvh { eip } => u64::from(eip),
    };
    assert!(first >= layout::HIGH_RAM, "it begins in the boot structures, at {first:#x}");
    assert!(ram.check_range(GuestAddress(first), 1), "it begins outside memory, at {first:#x}");
    let end = kernel_end(bytes, first);
    assert!(end <= MIB << 20, "the kernel needs memory up to {end:#x}");
    for (start, end) in UNUSED {
        let mut low = vec![0xff; end - start];
        ram.read_slice(&mut low, GuestAddress(start as u64)).expect("low memory");
        assert!(low == ZEROS[..low.len()], "something of the kernel lies among the boot structures");
    }
    let mut cmdline = [0; 14];
    ram.read_slice(&mut cmdline, GuestAddress(layout::CMDLINE)).expect("low memory");
    assert_eq!(&cmdline, b"console=ttyS0\0");
    let (start, len) = initrd_place(&ram, entry);
    assert_eq!(len, if initrd.is_some() { 5000 } else { 0 });
    if len > 0 {
        let mut found = INITRD.map(|_| 0);
        ram.read_slice(&mut found, GuestAddress(start)).expect("the initrd lies in memory");
        assert!(found == INITRD && start >= layout::HIGH_RAM, "the initrd is not what the guest is told of");
        assert!(start >= end, "the initrd lies in the kernel");
    }
    true
}

/// Where the guest is told that its initrd lies.
fn initrd_place(ram: &memory::GuestRam, entry: Entry) -> (u64, u64) {
    let word = |at| u64::from(ram.read_obj::<u32>(GuestAddress(at)).expect("low memory"));
    match entry {
        Entry::Long { .. } => (word(layout::BOOT_PARAMS + 0x218), word(layout::BOOT_PARAMS + 0x21c)),
        Entry::Pvh { .. } if word(layout::PVH_START_INFO + 12) == 0 => (0, 0),
        Entry::Pvh { .. } => {
            let modules = word(layout::PVH_START_INFO + 16);
            (word(modules), word(modules + 8))
        }
    }
}

/// Where the memory ends that a kernel's headers claim, read a second time; the initrd lies above it.
fn kernel_end(bytes: &[u8], first: u64) -> u64 {
    let image = &bytes[1..];
    let number = |at: usize, len: usize| {
        let bytes = image.get(at..at + len).expect("what was loaded has its headers");
        bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    if !image.starts_with(b"\x7fELF") {
        // In 64-bit mode it is entered 0x200 bytes behind its begin.
        return first - 0x200 + number(0x260, 4);
    }
    let headers = usize::try_from(number(32, 8)).expect("they lie in the file");
    let headers = (0..usize::try_from(number(56, 2)).expect("a few")).map(|index| headers + 56 * index);
    let loaded = headers.filter(|at| number(*at, 4) == 1);
    let ranges = loaded.map(|at| (number(at + 24, 8), number(at + 32, 8).max(number(at + 40, 8))));
    ranges.filter(|(_, len)| *len > 0).map(|(start, len)| start + len).max().expect("something is loaded")
}

/// Puts numbers into an image, little endian.
fn put(image: &mut [u8], values: &[(usize, &[u8])]) {
    for (at, value) in values {
        image[*at..*at + value.len()].copy_from_slice(value);
    }
}

fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 0x400 + 0x300];
    let address = 0x10_0000u64.to_le_bytes();
    let fields: [(usize, &[u8]); 9] = [
        (0x1f1, &[1]),
        (0x1fe, &[0x55, 0xaa]),
        (0x201, &[0x6a]),
        (0x202, b"HdrS"),
        (0x206, &[0x0f, 0x02]),
        (0x211, &[1]),
        (0x22c, &[0xff, 0xff, 0xff, 0x7f]),
        (0x236, &[1]),
        (0x260, &[0, 0x20, 0, 0]),
    ];
    put(&mut image, &fields);
    put(&mut image, &[(0x258, &address)]);
    image
}

/// An ELF image of one segment, and with a note that has the entry point of PVH.
fn elf(pvh: bool) -> Vec<u8> {
    let mut image = [[0; 0x200].as_slice(), &[0xcc; 0x100]].concat();
    let entry = 0x10_0010u64.to_le_bytes();
    let segment = |kind: u32, offset: u64, len: u64| {
        let head = [kind.to_le_bytes(), 5u32.to_le_bytes()].concat();
        let numbers = [offset, 0x10_0000, 0x10_0000, len, len, 4].map(u64::to_le_bytes).concat();
        [head, numbers].concat()
    };
    put(&mut image, &[(0, b"\x7fELF\x02\x01\x01"), (16, &[2]), (18, &[62]), (24, &entry), (32, &[64]), (54, &[56])]);
    put(&mut image, &[(56, &[1 + u8::from(pvh)]), (64, &segment(1, 0x200, 0x100)), (120, &segment(4, 0x180, 20))]);
    let note = [4u32.to_le_bytes(), 4u32.to_le_bytes(), 18u32.to_le_bytes(), *b"Xen\0", 0x10_0020u32.to_le_bytes()];
    put(&mut image, &[(0x180, &note.concat())]);
    image
}

fn seeds() -> Vec<Vec<u8>> {
    let images = [bzimage(), elf(false), elf(true)];
    let mut seeds: Vec<_> =
        images.iter().flat_map(|image| [0, 1].map(|flags| [&[flags], image.as_slice()].concat())).collect();
    // A kernel fits just into memory, an initrd just above it, and not any more.
    for (flags, end) in [(0, 0x30_0000u32), (0, 0x30_0001), (1, 0x2f_e000), (1, 0x2f_e001)] {
        let mut image = bzimage();
        put(&mut image, &[(0x260, &end.to_le_bytes())]);
        seeds.push([&[flags], image.as_slice()].concat());
    }
    // A second segment, among the boot structures.
    let mut low = elf(true);
    let [offset, address, len] = [0x200u64, 0x4_0000, 0x100].map(u64::to_le_bytes);
    put(&mut low, &[(120, &[1]), (128, &offset), (144, &address), (152, &len), (160, &len)]);
    seeds.push([&[0], low.as_slice()].concat());
    // The begin of a real one, where this machine has any.
    for entry in fs::read_dir(Path::new("/boot")).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("vmlinuz") {
            let image = fs::read(entry.path()).unwrap_or_default();
            seeds.push([&[0], image.get(..0x800).unwrap_or_default()].concat());
        }
    }
    seeds
}
