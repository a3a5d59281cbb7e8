//! Limits that the kernel keeps whatever a thread asks for.

use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::JailError;

/// Bytes that every file may have that the process writes to (log, metrics, serial line, snapshots): a disk or a guest's
/// memory may be larger, and then so may they.
pub const FILE_FLOOR: u64 = 1 << 30;
/// Bytes of address space beside the guest's memory: program, libraries, stacks, heap, and what requests make it grow.
const MEMORY_BESIDE: u64 = 1 << 30;

/// Differential snapshots keep 8 bytes for each page of 4 KiB, those of the last one and of the next.
const FINGERPRINTS: u64 = 4096 / (2 * 8);

/// What [`limit_files`] has set.
static LARGEST: AtomicU64 = AtomicU64::new(u64::MAX);

/// Bytes of the largest file that may be written now.
pub fn largest_file() -> u64 {
    LARGEST.load(Ordering::Relaxed)
}

/// Lowers a limit; one that is lower already stays.
fn lower(resource: Resource, step: &'static str, bound: u64) -> Result<(), JailError> {
    let failed = |source| JailError::Step { step, source };
    let (soft, hard) = getrlimit(resource).map_err(failed)?;
    setrlimit(resource, soft.min(bound), hard.min(bound)).map_err(failed)
}

/// Lets no file grow beyond this many bytes (RLIMIT_FSIZE), or [`FILE_FLOOR`] if that is more. Writing beyond is an error
/// (EFBIG). Block devices are not meant.
pub fn limit_files(largest: u64) -> Result<(), JailError> {
    let bound = largest.max(FILE_FLOOR);
    lower(Resource::RLIMIT_FSIZE, "RLIMIT_FSIZE", bound)?;
    LARGEST.store(bound, Ordering::Relaxed);
    Ok(())
}

/// Lets the process map no more than a guest's memory and 1 GiB beside (RLIMIT_AS).
pub fn limit_memory(guest: u64) -> Result<(), JailError> {
    lower(Resource::RLIMIT_AS, "RLIMIT_AS", guest.saturating_add(guest / FINGERPRINTS).saturating_add(MEMORY_BESIDE))
}
