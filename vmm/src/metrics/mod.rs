//! Counters that the VMM keeps of itself and its devices, by Firecracker's names.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Serialize, Serializer};

/// A counter. Written out, it gives what was added since it was written out the last time.
#[derive(Debug, Default)]
pub struct Counter {
    total: AtomicU64,
    written: AtomicU64,
}

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// `count` more.
    pub fn add(&self, count: u64) {
        self.total.fetch_add(count, Ordering::Relaxed);
    }

    /// All since the start.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

impl Serialize for Counter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let total = self.total();
        serializer.serialize_u64(total.wrapping_sub(self.written.swap(total, Ordering::Relaxed)))
    }
}
