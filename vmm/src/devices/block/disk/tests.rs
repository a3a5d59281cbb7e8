use std::io::Write;
use std::path::Path;

use proptest::prelude::*;

use super::*;

/// Nobody wants the queue.
fn never() -> bool {
    false
}

fn file(dir: &tempfile::TempDir, name: &str, len: u64) -> std::path::PathBuf {
    let path = dir.path().join(name);
    File::create(&path).unwrap().set_len(len).unwrap();
    path
}

fn open(path: &Path, offset: u64, is_read_only: bool) -> Result<Disk, String> {
    let config = DriveConfig { is_read_only, offset, ..DriveConfig::new("d", path) };
    Disk::open(&config).map_err(|e| e.to_string())
}

proptest! {
    #[test]
    fn only_what_is_on_the_disk_is_found(
        sectors in prop_oneof![0..10u64, Just(1 << 40)],
        start in (0..8u64).prop_map(|n| n * SECTOR),
        sector in prop_oneof![0..12u64, any::<u64>()],
        bytes in prop_oneof![0..10_000u64, any::<u64>()],
    ) {
        let file = tempfile::tempfile().unwrap();
        let disk = Disk { file: Arc::new(file), identity: (0, 0), start, sectors, read_only: false };
        let end = u128::from(sector) * 512 + u128::from(bytes);
        let fits = end <= u128::from(sectors) * 512;
        prop_assert_eq!(disk.locate(sector, bytes), fits.then(|| start + sector * 512));
    }
}

#[test]
fn a_size_that_is_no_multiple_of_a_sector_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "disk", 4 * SECTOR + 511);
    assert_eq!(open(&path, 0, false).unwrap().sectors(), 4);
    assert_eq!(open(&path, 2 * SECTOR, false).unwrap().sectors(), 2);
    assert_eq!(open(&path, 4 * SECTOR, false).unwrap().sectors(), 0);
    let error = open(&path, 5 * SECTOR, false).unwrap_err();
    assert!(error.contains("drive d") && error.contains("2560"), "{error}");
}

#[test]
fn what_is_no_file_and_no_block_device_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [Path::new("/dev/zero"), &fifo] {
        let error = open(path, 0, false).unwrap_err();
        assert!(error.contains("neither a regular file nor a block device"), "{error}");
    }
    for path in [dir.path(), Path::new("/nonexistent/disk")] {
        let error = open(path, 0, false).unwrap_err();
        assert!(error.contains(&path.display().to_string()), "{error}");
    }
}

#[test]
fn a_read_only_disk_has_a_descriptor_that_cannot_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "disk", SECTOR);
    let mode = |disk: &Disk| {
        // SAFETY: asks about a descriptor that is open.
        unsafe { libc::fcntl(disk.file.as_raw_fd(), libc::F_GETFL) & libc::O_ACCMODE }
    };
    assert_eq!(mode(&open(&path, 0, true).unwrap()), libc::O_RDONLY);
    assert_eq!(mode(&open(&path, 0, false).unwrap()), libc::O_RDWR);
    assert!((&*open(&path, 0, true).unwrap().file).write(b"x").is_err());
}

#[test]
fn one_writes_or_many_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "disk", SECTOR);
    let disk = |read_only| open(&path, 0, read_only).unwrap();
    let (writer, second, reader, other) = (disk(false), disk(false), disk(true), disk(true));
    writer.lock().unwrap();
    assert!(second.lock().unwrap_err().contains("in use"));
    assert!(reader.lock().unwrap_err().contains("writes"));
    drop(writer);
    reader.lock().unwrap();
    other.lock().unwrap();
    assert!(second.lock().unwrap_err().contains("in use"));
    drop((reader, other));
    second.lock().unwrap();
}

#[test]
fn zeros_and_discards_leave_their_neighbours_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, vec![7; 64 * 1024]).unwrap();
    let disk = open(&path, 0, false).unwrap();
    disk.zero(4096, 4096, false, &never).unwrap();
    disk.zero(12288, 512, true, &never).unwrap();
    disk.discard(16384, 8192, &never).unwrap();
    for len in [0, 0, 0] {
        disk.zero(32768, len, true, &never).unwrap();
        disk.discard(32768, len, &never).unwrap();
    }
    disk.flush().unwrap();
    let zeros = [4096..8192, 12288..12800, 16384..24576];
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 64 * 1024);
    for (at, byte) in bytes.iter().enumerate() {
        let expected = if zeros.iter().any(|range| range.contains(&at)) { 0 } else { 7 };
        assert_eq!(*byte, expected, "byte {at}");
    }
}

proptest! {
    #[test]
    fn what_the_host_does_in_parts_is_done_whole_and_in_order(
        lengths in proptest::collection::vec(prop_oneof![50 => 1..5000usize, 1 => 1_000_000..3_000_000usize], 1..1500),
        parts in proptest::collection::vec(1..200_000usize, 1..50),
        interrupted: bool,
    ) {
        let total: usize = lengths.iter().sum();
        // Addresses that nobody follows: one vector after the other, with gaps.
        let place = |number: usize| 0x10_0000 + number * 0x40_0000;
        let vectors = lengths.iter().enumerate();
        let vectors = vectors.map(|(n, len)| IoVec { iov_base: std::ptr::without_provenance_mut(place(n)), iov_len: *len });
        let moved = std::cell::RefCell::new(Vec::new());
        let calls = std::cell::Cell::new(0);
        let result = transfer(vectors.collect(), 512, ErrorKind::UnexpectedEof, &never, |vectors, count, at| {
            calls.set(calls.get() + 1);
            if interrupted && calls.get() % 3 == 1 {
                nix::errno::Errno::EINTR.set();
                return -1;
            }
            let count = usize::try_from(count).unwrap();
            assert!((1..=MAX_VECTORS).contains(&count));
            let before: usize = moved.borrow().iter().map(|(_, len)| len).sum();
            assert_eq!(usize::try_from(at).unwrap(), 512 + before);
            // SAFETY: `transfer` says how many there are.
            let vectors = unsafe { std::slice::from_raw_parts(vectors, count) };
            let offered: usize = vectors.iter().map(|vector| vector.iov_len).sum();
            assert!(offered <= MOVED_AT_ONCE, "{offered} bytes in one call");
            let mut left = parts[calls.get() % parts.len()];
            for vector in vectors {
                let part = left.min(vector.iov_len);
                moved.borrow_mut().push((vector.iov_base.addr(), part));
                left -= part;
            }
            let after: usize = moved.borrow().iter().map(|(_, len)| len).sum();
            isize::try_from(after - before).unwrap()
        });
        prop_assert!(result.is_ok());
        let bytes = moved.borrow().iter().map(|(_, len)| len).sum::<usize>();
        prop_assert_eq!(bytes, total);
        let mut expected = lengths.iter().enumerate().map(|(n, len)| (place(n), *len));
        let (mut at, mut left) = expected.next().unwrap();
        for (address, len) in moved.borrow().iter().filter(|(_, len)| *len > 0) {
            if left == 0 {
                (at, left) = expected.next().unwrap();
            }
            prop_assert_eq!(*address, at);
            (at, left) = (at + len, left - len);
        }
    }
}

#[test]
fn large_requests_stop_between_two_pieces_where_it_is_wished() {
    let calls = std::cell::Cell::new(0);
    let after = |count: u32| move |calls: &std::cell::Cell<u32>| calls.get() >= count;
    let large = || vec![IoVec { iov_base: std::ptr::null_mut(), iov_len: 4 * MOVED_AT_ONCE }];
    let pieces = |wished: u32| {
        calls.set(0);
        let wish = || after(wished)(&calls);
        let result = transfer(large(), 0, ErrorKind::WriteZero, &wish, |_, _, _| {
            calls.set(calls.get() + 1);
            isize::try_from(MOVED_AT_ONCE).unwrap()
        });
        (calls.get(), result.map_err(|error| error.kind()))
    };
    assert_eq!(pieces(9), (4, Ok(())));
    // Also where it is wished all the time one piece is done: whoever asks again and again does not keep it from ending.
    for wished in [0, 1] {
        assert_eq!(pieces(wished), (1, Err(ErrorKind::Interrupted)));
    }
    let ranges = |wished: u32| {
        let done = std::cell::RefCell::new(Vec::new());
        let wish = || done.borrow().len() >= wished as usize;
        let result = by_pieces(512, 2 * ZEROED_AT_ONCE + 1, &wish, |at, len| {
            done.borrow_mut().push((at, len));
            Ok(())
        });
        (done.take(), result.map_err(|error| error.kind()))
    };
    let all = vec![(512, ZEROED_AT_ONCE), (512 + ZEROED_AT_ONCE, ZEROED_AT_ONCE), (512 + 2 * ZEROED_AT_ONCE, 1)];
    assert_eq!(ranges(9), (all.clone(), Ok(())));
    assert_eq!(ranges(2), (all[..2].to_vec(), Err(ErrorKind::Interrupted)));
}

#[test]
fn a_host_that_moves_nothing_or_fails_ends_it() {
    let one = || vec![IoVec { iov_base: std::ptr::null_mut(), iov_len: 512 }];
    let end = transfer(one(), 0, ErrorKind::WriteZero, &never, |_, _, _| 0).unwrap_err();
    assert_eq!(end.kind(), ErrorKind::WriteZero);
    let failed = transfer(one(), 0, ErrorKind::WriteZero, &never, |_, _, _| {
        nix::errno::Errno::EIO.set();
        -1
    });
    assert_eq!(failed.unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(transfer(one(), u64::MAX, ErrorKind::WriteZero, &never, |_, _, _| 512).is_err());
}
