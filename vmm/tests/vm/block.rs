//! Disks.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use portcullis_vmm::config::{CacheType, DriveConfig};
use portcullis_vmm::log::EndReason;

use crate::guest::Guest;
use crate::harness::Setup;
use crate::virtio::{BUFFERS, Descriptor, FIRST, NEEDS_RESET, NEXT, Queue, STATUS, WRITE};

pub const READ_KIND: u32 = 0;
pub const WRITE_KIND: u32 = 1;
pub const FLUSH_KIND: u32 = 4;
pub const ID_KIND: u32 = 8;
pub const DISCARD_KIND: u32 = 11;
pub const ZEROES_KIND: u32 = 13;

pub const FLUSH: u32 = 1 << 9;

/// Headers of requests, 32 bytes apart.
pub const HEADERS: u32 = BUFFERS;
/// Their statuses, one byte each.
pub const STATUSES: u32 = BUFFERS + 0x2000;
/// Data from here on.
pub const DATA: u32 = BUFFERS + 0x4000;

/// The queue of the first disk.
pub fn queue() -> Queue {
    Queue::at(FIRST, 0, 256)
}

pub fn header(number: u16) -> (u64, u32, u16) {
    (u64::from(HEADERS + 32 * u32::from(number)), 16, 0)
}

pub fn status(number: u16) -> (u64, u32, u16) {
    (u64::from(STATUSES + u32::from(number)), 1, WRITE)
}

pub fn data(offset: u32, len: u32) -> (u64, u32, u16) {
    (u64::from(DATA + offset), len, 0)
}

pub fn room(offset: u32, len: u32) -> (u64, u32, u16) {
    (u64::from(DATA + offset), len, WRITE)
}

impl Guest {
    /// Fills `len` bytes of the data with a double word.
    pub fn disk_fill(self, offset: u32, len: u32, value: u32) -> Self {
        // mov ecx, len / 4; mov eax, value; rep stosd
        let guest = self.edi(DATA + offset).raw(&[0xb9]).raw(&(len / 4).to_le_bytes());
        guest.raw(&[0xb8]).raw(&value.to_le_bytes()).raw(&[0xf3, 0xab])
    }

    /// Writes the header of the `number`-th request, and a status that no device answers.
    pub fn disk_header(self, number: u16, kind: u32, sector: u64) -> Self {
        let at = HEADERS + 32 * u32::from(number);
        let guest = self.store32(at, kind).store32(at + 4, 0).store64(at + 8, sector);
        guest.store8(STATUSES + u32::from(number), 0xee)
    }

    /// The `number`-th request of a queue, counted from 1, and the wait for its end.
    pub fn disk_request_at(
        self,
        queue: Queue,
        number: u16,
        kind: u32,
        sector: u64,
        buffers: &[(u64, u32, u16)],
    ) -> Self {
        let all = [&[header(number)], buffers, &[status(number)]].concat();
        self.disk_header(number, kind, sector).request(queue, number, 0, &all)
    }

    /// The same on the first disk.
    pub fn disk(self, number: u16, kind: u32, sector: u64, buffers: &[(u64, u32, u16)]) -> Self {
        self.disk_request_at(queue(), number, kind, sector, buffers)
    }

    /// Prints the statuses of the first `count` requests.
    pub fn print_statuses(self, count: u32) -> Self {
        self.print_hex(STATUSES + 1, count)
    }
}

/// A VM with one disk in a file of its own directory, filled with this.
pub fn with_disk(guest: &Guest, content: &[u8]) -> (Setup, PathBuf) {
    let mut setup = Setup::new(guest);
    let path = setup.dir.path().join("disk");
    std::fs::write(&path, content).unwrap();
    setup.config = setup.config.with_drive(DriveConfig::new("rootfs", &path));
    (setup, path)
}

/// Runs it to its end; gives what the guest printed and what is in the file afterwards.
pub fn run(setup: Setup, path: &PathBuf) -> (String, Vec<u8>) {
    run_warned(setup, path, &[])
}

/// The same, with a log that warns of this.
pub fn run_warned(setup: Setup, path: &PathBuf, warnings: &[&str]) -> (String, Vec<u8>) {
    // The directory goes away with the VM.
    let disk = File::open(path).unwrap();
    let ended = setup.run();
    ended.expect_warnings(EndReason::Reset, warnings);
    let mut content = vec![0; usize::try_from(disk.metadata().unwrap().len()).unwrap()];
    disk.read_exact_at(&mut content, 0).unwrap();
    (ended.output, content)
}

pub fn run_on(guest: &Guest, content: &[u8]) -> (String, Vec<u8>) {
    let (setup, path) = with_disk(guest, content);
    run(setup, &path)
}

/// A content in which every sector is another one.
pub fn numbered(sectors: u8) -> Vec<u8> {
    (1..=sectors).flat_map(|number| [number; 512]).collect()
}

#[test]
fn what_is_written_is_read_back_and_stays() {
    let guest = Guest::new()
        .virtio_start(FIRST, 0, &[queue()])
        .disk_fill(0, 512, 0x4433_2211)
        .disk_fill(0x1000, 1024, 0x8877_6655)
        .disk(1, WRITE_KIND, 3, &[data(0, 512), data(0x1000, 1024)])
        .disk(2, READ_KIND, 2, &[room(0x2000, 512), room(0x3000, 1024 + 512), room(0x4000, 512)])
        .print_statuses(2)
        .print_hex(queue().used_len(0), 4)
        .print_hex(queue().used_len(1), 4)
        .print_hex(DATA + 0x21fe, 4)
        .print_hex(DATA + 0x31fe, 4)
        .print_hex(DATA + 0x4000, 2)
        .reset();
    let before = numbered(8);
    let (output, after) = run_on(&guest, &before);
    // Lengths: the status, and 2560 bytes with a status.
    assert_eq!(output, ["0000", "01000000", "010a0000", "03030000", "33445566", "0707"].concat());
    let mut expected = before;
    expected[3 * 512..4 * 512].copy_from_slice(&[0x11, 0x22, 0x33, 0x44].repeat(128));
    expected[4 * 512..6 * 512].copy_from_slice(&[0x55, 0x66, 0x77, 0x88].repeat(256));
    assert!(after == expected);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let guest = Guest::new()
        .virtio_start(FIRST, 1 << 5, &[queue()])
        .disk(1, WRITE_KIND, 1, &[data(0, 512)])
        .disk_fill(0, 16, 0)
        .store32(DATA + 8, 1)
        .disk(2, DISCARD_KIND, 0, &[data(0, 16)])
        .disk(3, ZEROES_KIND, 0, &[data(0, 16)])
        .disk(4, READ_KIND, 1, &[room(0, 512)])
        .print_statuses(4)
        .print_hex(DATA, 1)
        .reset();
    let (mut setup, path) = with_disk(&guest, &numbered(4));
    setup.config.drives[0].is_read_only = true;
    let (output, after) = run(setup, &path);
    assert_eq!(output, "0102020002");
    assert!(after == numbered(4));
}

#[test]
fn nothing_beyond_the_last_sector_is_reached() {
    let all = room(0, 512);
    let guest = Guest::new()
        .virtio_start(FIRST, 0, &[queue()])
        .disk(1, READ_KIND, 3, &[all])
        .disk(2, READ_KIND, 4, &[all])
        .disk(3, READ_KIND, 3, &[all, all])
        .disk(4, WRITE_KIND, 4, &[data(0, 512)])
        .disk(5, WRITE_KIND, u64::MAX, &[data(0, 512)])
        .disk(6, WRITE_KIND, u64::MAX / 512 + 1, &[data(0, 512)])
        .disk(7, READ_KIND, 0, &[room(0, 511)])
        .disk(8, WRITE_KIND, 0, &[data(0, 513)])
        .disk(9, WRITE_KIND, 3, &[data(0, 512)])
        .print_statuses(9)
        .reset();
    // Three bytes more than four sectors: they are not the guest's.
    let content = [numbered(4), vec![9; 3]].concat();
    let (setup, path) = with_disk(&guest, &content);
    let (output, after) = run_warned(setup, &path, &["the guest does not see the last 3"]);
    assert_eq!(output, "000101010101010100");
    let expected = [numbered(3), vec![4; 512], vec![9; 3]].concat();
    assert!(after == expected);
}

#[test]
fn discarded_and_zeroed_sectors_read_as_zeros() {
    let segment = |guest: Guest, at: u32, sector: u64, count: u32, flags: u32| {
        guest.store64(DATA + at, sector).store32(DATA + at + 8, count).store32(DATA + at + 12, flags)
    };
    let mut guest = Guest::new().virtio_start(FIRST, (1 << 13) | (1 << 14), &[queue()]);
    for (at, sector, count, flags) in [
        (0, 8, 8, 0),
        (16, 24, 1, 0),
        (32, 40, 3, 0),
        (48, 50, 2, 1),
        // Not good: beyond the end, a flag that there is not, a flag that a discard has not.
        (64, 63, 2, 0),
        (80, 0, 1, 2),
        (96, 0, 1, 1),
        (112, u64::MAX, u32::MAX, 0),
    ] {
        guest = segment(guest, at, sector, count, flags);
    }
    let guest = guest
        .disk(1, DISCARD_KIND, 0, &[data(0, 32)])
        .disk(2, ZEROES_KIND, 0, &[data(32, 16)])
        .disk(3, ZEROES_KIND, 0, &[data(48, 16)])
        // What is wrong with one of two is wrong with both.
        .disk(4, DISCARD_KIND, 0, &[data(32, 16), data(64, 16)])
        .disk(5, ZEROES_KIND, 0, &[data(64, 16)])
        .disk(6, ZEROES_KIND, 0, &[data(80, 16)])
        .disk(7, DISCARD_KIND, 0, &[data(96, 16)])
        .disk(8, DISCARD_KIND, 0, &[data(112, 16)])
        .disk(9, ZEROES_KIND, 0, &[data(32, 32)])
        .disk(10, DISCARD_KIND, 0, &[data(0, 15)])
        .disk(11, DISCARD_KIND, 0, &[data(0, 16 * 17)])
        .disk(12, DISCARD_KIND, 0, &[])
        .disk(13, READ_KIND, 24, &[room(0x1000, 512)])
        .print_statuses(13)
        .print_hex(DATA + 0x11ff, 1)
        .reset();
    let (output, after) = run_on(&guest, &numbered(64));
    assert_eq!(output, ["000000", "0101", "0202", "01", "01", "010101", "00", "00"].concat());
    let zeros = [8..16, 24..25, 40..43, 50..52];
    for (sector, bytes) in after.chunks(512).enumerate() {
        let zero = zeros.iter().any(|range| range.contains(&sector));
        let expected = if zero { 0 } else { u8::try_from(sector + 1).unwrap() };
        assert!(bytes.iter().all(|byte| *byte == expected), "sector {sector}");
    }
}

#[test]
fn ranges_are_discarded_and_zeroed_only_where_that_was_agreed_on() {
    const DISCARD: u32 = 1 << 13;
    const WRITE_ZEROES: u32 = 1 << 14;
    for (features, statuses) in
        [(0, "0202"), (DISCARD, "0002"), (WRITE_ZEROES, "0200"), (DISCARD | WRITE_ZEROES, "0000")]
    {
        let guest = Guest::new()
            .virtio_start(FIRST, features, &[queue()])
            .store64(DATA, 0)
            .store32(DATA + 8, 1)
            .store32(DATA + 12, 0)
            .store64(DATA + 16, 1)
            .store32(DATA + 24, 1)
            .store32(DATA + 28, 0)
            .disk(1, DISCARD_KIND, 0, &[data(0, 16)])
            .disk(2, ZEROES_KIND, 0, &[data(16, 16)])
            .print_statuses(2)
            .reset();
        let (output, after) = run_on(&guest, &numbered(2));
        assert_eq!(output, statuses, "{features:#x}");
        let expected: Vec<u8> = [(DISCARD, 1), (WRITE_ZEROES, 2)]
            .into_iter()
            .flat_map(|(feature, content)| [if features & feature == 0 { content } else { 0 }; 512])
            .collect();
        assert!(after == expected, "{features:#x}");
    }
}

#[test]
fn a_driver_that_breaks_the_rules_again_and_again_does_not_fill_the_log() {
    let guest = (0..20).fold(Guest::new(), |guest, _| {
        // There is no such descriptor.
        let guest = guest.virtio_start(FIRST, 0, &[queue()]).offer(queue(), 1, 999).notify(queue());
        guest.wait_for32(FIRST + STATUS, NEEDS_RESET | 15)
    });
    let (setup, _) = with_disk(&guest.reset(), &numbered(1));
    setup.run().expect_warnings(EndReason::Reset, &["the guest's driver broke the rules"; 8]);
}

#[test]
fn no_range_is_longer_than_is_announced() {
    // One GiB, and a sector more, of a disk that has both.
    const GIB: u32 = 1 << 21;
    for (sectors, statuses) in [(GIB, "0000"), (GIB + 1, "0101")] {
        let guest = Guest::new().virtio_start(FIRST, (1 << 13) | (1 << 14), &[queue()]);
        let guest = guest.store64(DATA, 0).store32(DATA + 8, sectors).store32(DATA + 12, 0);
        let guest = guest.disk(1, DISCARD_KIND, 0, &[data(0, 16)]).disk(2, ZEROES_KIND, 0, &[data(0, 16)]);
        let (setup, path) = with_disk(&guest.print_statuses(2).reset(), &[]);
        File::options().write(true).open(&path).unwrap().set_len(2 << 30).unwrap();
        let ended = setup.run();
        ended.expect_clean(EndReason::Reset);
        assert_eq!(ended.output, statuses, "{sectors}");
    }
}

#[test]
fn the_serial_number_is_the_drives_name_and_the_rest_is_not_supported() {
    let guest = Guest::new()
        .virtio_start(FIRST, 0, &[queue()])
        .disk_fill(0, 32, 0xeeee_eeee)
        .disk(1, ID_KIND, 0, &[room(0, 20)])
        .disk(2, ID_KIND, 0, &[room(32, 19)])
        .disk(3, FLUSH_KIND, 0, &[])
        .disk(4, 99, 0, &[room(32, 512)])
        .print_statuses(4)
        .print_hex(DATA, 21)
        .reset();
    let (output, _) = run_on(&guest, &numbered(1));
    // "rootfs".
    assert_eq!(output, format!("00010202726f6f746673{}ee", "00".repeat(14)));
}

#[test]
fn a_flush_is_there_where_it_was_configured() {
    for (features, status) in [(FLUSH, "0000"), (0, "0002")] {
        let guest = Guest::new()
            .virtio_start(FIRST, features, &[queue()])
            .disk_fill(0, 512, 0x0101_0101)
            .disk(1, WRITE_KIND, 0, &[data(0, 512)])
            .disk(2, FLUSH_KIND, 0, &[])
            .print_statuses(2)
            .reset();
        let (mut setup, path) = with_disk(&guest, &[0; 512]);
        setup.config.drives[0].cache_type = CacheType::Writeback;
        let (output, after) = run(setup, &path);
        assert_eq!((output.as_str(), after), (status, vec![1; 512]));
    }
}

#[test]
fn requests_may_be_cut_into_buffers_as_the_driver_likes() {
    let head = u64::from(HEADERS + 32);
    let guest = Guest::new()
        .virtio_start(FIRST, 0, &[queue()])
        .disk_header(1, READ_KIND, 1)
        // The status is the last byte behind the data, which begins in the middle of nowhere.
        .request(
            queue(),
            1,
            0,
            &[(head, 3, 0), (head + 3, 12, 0), (head + 15, 1, 0), room(0x101, 13), room(0x200, 500)],
        )
        .print_hex(DATA + 0x101, 1)
        .print_hex(DATA + 0x200 + 498, 2)
        .disk_fill(0x400, 516, 0x0606_0606)
        .disk_header(2, WRITE_KIND, 0)
        .copy32(HEADERS + 64, DATA + 0x3f0)
        .copy32(HEADERS + 68, DATA + 0x3f4)
        .copy32(HEADERS + 72, DATA + 0x3f8)
        .copy32(HEADERS + 76, DATA + 0x3fc)
        .request(queue(), 2, 0, &[data(0x3f0, 16 + 512), status(2)])
        .print_hex(STATUSES + 2, 1)
        .reset();
    let (output, after) = run_on(&guest, &numbered(2));
    assert_eq!(output, "02020000");
    assert!(after == [vec![6; 512], vec![2; 512]].concat());
}

#[test]
fn what_is_no_request_stops_the_device_until_it_is_reset() {
    let (far, huge) = (0x4000_0000, u32::MAX);
    let good = [header(1), room(0, 512), status(1)];
    for (what, buffers) in [
        ("a header that is too short", vec![(header(1).0, 15, 0), room(0, 512), status(1)]),
        ("nothing to read", vec![room(0, 512), status(1)]),
        ("nowhere to answer", vec![header(1), data(0, 512), (status(1).0, 1, 0)]),
        ("4 GiB", vec![header(1), room(0, huge), status(1)]),
        ("data outside memory", vec![header(1), (far, 512, WRITE), status(1)]),
        ("a status outside memory", vec![header(1), room(0, 512), (far, 1, WRITE)]),
        ("a header outside memory", vec![(far, 16, 0), room(0, 512), status(1)]),
    ] {
        // It does not answer, so what is waited for is the status register.
        let mut offered = Guest::new().virtio_start(FIRST, 0, &[queue()]).disk_header(1, READ_KIND, 0);
        for (index, (address, len, flags)) in (0..).zip(&buffers) {
            let next = if index + 1 < buffers.len() { NEXT } else { 0 };
            let descriptor = Descriptor {
                address: *address,
                len: *len,
                flags: flags | next,
                next: u16::try_from(index + 1).unwrap(),
            };
            offered = offered.descriptor(queue().descriptors, u32::try_from(index).unwrap(), descriptor);
        }
        let guest = offered
            .offer(queue(), 1, 0)
            .notify(queue())
            .wait_for32(FIRST + STATUS, NEEDS_RESET | 15)
            .print_hex(STATUSES + 1, 1)
            .virtio_start(FIRST, 0, &[queue()])
            .disk_header(1, READ_KIND, 0)
            .request(queue(), 1, 0, &good)
            .print_statuses(1)
            .reset();
        let (setup, path) = with_disk(&guest, &numbered(1));
        let (output, after) = run_warned(setup, &path, &["the guest's driver broke the rules"]);
        assert_eq!(output, "ee00", "{what}");
        assert!(after == numbered(1), "{what}");
    }
}

#[test]
fn what_is_not_announced_is_answered_with_an_error() {
    // 64 buffers of 1 MiB, the same one, are more than a request may have.
    let big = vec![room(0, 1 << 20); 64];
    let guest = Guest::new()
        .virtio_start(FIRST, 0, &[queue()])
        .disk(1, READ_KIND, 0, &big)
        .disk(2, READ_KIND, 0, &[data(0, 512), room(0, 512)])
        .disk(3, WRITE_KIND, 0, &[data(0, 512), room(0, 512)])
        .disk(4, READ_KIND, 0, &[])
        .print_statuses(4)
        .reset();
    let (setup, path) = with_disk(&guest, &[]);
    File::options().write(true).open(&path).unwrap().set_len(1 << 30).unwrap();
    let ended = setup.run();
    ended.expect_clean(EndReason::Reset);
    assert_eq!(ended.output, "01010100");
}

#[test]
fn data_may_begin_behind_a_header_that_is_not_the_guests() {
    let guest = Guest::new()
        .virtio_start(FIRST, 0, &[queue()])
        .disk(1, READ_KIND, 0, &[room(0, 512)])
        .disk(2, WRITE_KIND, 1, &[room(0, 0), data(0x1000, 512)])
        .disk(3, READ_KIND, 2, &[room(0, 512)])
        .disk(4, READ_KIND, u64::MAX, &[room(0, 512)])
        .print_statuses(4)
        .print_hex(DATA, 1)
        .reset();
    let (mut setup, path) = with_disk(&guest, &numbered(4));
    setup.config.drives[0].offset = 1024;
    let (output, after) = run(setup, &path);
    assert_eq!(output, "0000010103");
    assert!(after == [numbered(3), vec![0; 512]].concat());
}
