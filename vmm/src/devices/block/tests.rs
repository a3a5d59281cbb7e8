use std::fs::File;
use std::path::{Path, PathBuf};

use super::*;
use crate::rate_limiter::TokenBucketConfig;

fn file(dir: &tempfile::TempDir, name: &str, sectors: u64) -> PathBuf {
    let path = dir.path().join(name);
    File::create(&path).unwrap().set_len(sectors * SECTOR).unwrap();
    path
}

fn drive(path: &Path) -> DriveConfig {
    DriveConfig::new("rootfs", path)
}

fn capacity(block: &Block) -> u64 {
    let mut bytes = [0; 8];
    block.read_config(0, &mut bytes);
    u64::from_le_bytes(bytes)
}

#[test]
fn the_file_is_replaced_by_another_or_by_its_own_new_size() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (file(&dir, "first", 8), file(&dir, "second", 16));
    let mut block = Block::open(&drive(&first)).unwrap();
    assert_eq!(capacity(&block), 8);
    // The same file is locked by the device itself.
    File::options().write(true).open(&first).unwrap().set_len(12 * SECTOR).unwrap();
    block.replace(Disk::open(&drive(&first)).unwrap()).unwrap();
    assert_eq!(capacity(&block), 12);
    block.replace(Disk::open(&drive(&second)).unwrap()).unwrap();
    assert_eq!(capacity(&block), 16);
    // The first is free again, the second is not.
    let other = Block::open(&drive(&first)).unwrap();
    assert!(Block::open(&drive(&second)).is_err());
    let error = block.replace(Disk::open(&drive(&first)).unwrap()).unwrap_err();
    assert!(error.contains("in use"), "{error}");
    assert_eq!(capacity(&block), 16);
    drop(other);
    let read_only = DriveConfig { is_read_only: true, ..drive(&first) };
    assert!(block.replace(Disk::open(&read_only).unwrap()).unwrap_err().contains("read only"));
    assert_eq!((block.shared.metrics.update_count.total(), block.shared.metrics.update_fails.total()), (2, 2));
}

#[test]
fn what_is_offered_is_what_was_configured() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "disk", 8);
    let features = |config: DriveConfig| {
        let features = Block::open(&config).unwrap().features();
        [READ_ONLY, FLUSH, DISCARD, WRITE_ZEROES].map(|bit| features & (1 << bit) != 0)
    };
    assert_eq!(features(drive(&path)), [false, false, true, true]);
    assert_eq!(features(DriveConfig { is_read_only: true, ..drive(&path) }), [true, false, false, false]);
    let flushed = DriveConfig { cache_type: CacheType::Writeback, ..drive(&path) };
    assert_eq!(features(flushed), [false, true, true, true]);
    let queues = |count| Block::open(&DriveConfig { num_queues: count, ..drive(&path) }).unwrap();
    assert_eq!([1, 2, 16].map(|count| queues(count).features() & (1 << MQ) != 0), [false, true, true]);
    assert_eq!([1, 16].map(|count| queues(count).queue_sizes().len()), [1, 16]);
    let writes = Features { agreed: 1 << FLUSH, cache: CacheType::Writeback };
    assert!(!writes.is_write_through());
    assert!(Features { agreed: 0, ..writes }.is_write_through());
    assert!(!Features { agreed: 0, cache: CacheType::Unsafe }.is_write_through());
}

#[test]
fn the_configuration_space_is_the_standards_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let block = Block::open(&drive(&file(&dir, "disk", 8))).unwrap();
    let word = |at| {
        let mut bytes = [0; 4];
        block.read_config(at, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    // Capacity, size_max, seg_max, blk_size.
    assert_eq!([0, 4, 8, 12, 20].map(word), [8, 0, 256 * 1024, 254, 512]);
    // max_discard_sectors, max_discard_seg, discard_sector_alignment, and the same of zeros, which may be unmapped.
    assert_eq!([36, 40, 44, 48, 52, 56].map(word), [1 << 21, 16, 8, 1 << 21, 1, 1]);
    // num_queues
    assert_eq!(word(32) >> 16, 1);
    assert_eq!([58, 60, 0xeff, u64::MAX].map(word), [0; 4]);
}

#[test]
fn a_snapshots_state_fits_the_same_disk_only() {
    let dir = tempfile::tempdir().unwrap();
    let ops = TokenBucketConfig { size: 3, one_time_burst: None, refill_time: 3_600_000 };
    let limits = RateLimiterConfig { ops: Some(ops), bandwidth: None };
    let limited = |path: &Path| DriveConfig { rate_limiter: Some(limits), ..drive(path) };
    let mut block = Block::open(&limited(&file(&dir, "first", 8))).unwrap();
    let passes = |block: &Block| block.shared.limits().admit(0).is_zero();
    assert!(passes(&block) && passes(&block));
    let state = block.save(None);
    let mut same = Block::open(&limited(&file(&dir, "second", 8))).unwrap();
    same.restore(&state).unwrap();
    assert!(passes(&same) && !passes(&same));
    let mut other = Block::open(&drive(&file(&dir, "third", 9))).unwrap();
    assert!(other.restore(&state).unwrap_err().contains("sectors"));
    for broken in [&state[..state.len() - 1], &[state.as_slice(), &[0]].concat(), &[]] {
        assert!(same.restore(broken).is_err());
    }
}
