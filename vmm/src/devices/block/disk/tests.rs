use std::io::Write;
use std::path::Path;

use proptest::prelude::*;

use super::*;

fn file(dir: &tempfile::TempDir, name: &str, len: u64) -> std::path::PathBuf {
    let path = dir.path().join(name);
    File::create(&path).unwrap().set_len(len).unwrap();
    path
}

fn open(path: &Path, offset: u64, is_read_only: bool) -> Result<Disk, String> {
    let config = DriveConfig { offset, is_read_only, ..DriveConfig::new("d", path) };
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
        let disk = Disk { file, identity: (0, 0), start, sectors, read_only: false };
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
    assert!((&open(&path, 0, true).unwrap().file).write(b"x").is_err());
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
    std::fs::write(&path, [7; 64 * 1024]).unwrap();
    let disk = open(&path, 0, false).unwrap();
    disk.zero(4096, 4096, false).unwrap();
    disk.zero(12288, 512, true).unwrap();
    disk.discard(16384, 8192).unwrap();
    for len in [0, 0, 0] {
        disk.zero(32768, len, true).unwrap();
        disk.discard(32768, len).unwrap();
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
