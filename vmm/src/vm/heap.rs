//! The memory that the process allocates for itself.

/// Lets every thread allocate from one heap.
///
/// glibc would make another for each thread, which takes system calls and pages between the guest and its first
/// instruction. The threads allocate too little to get into each other's way. Call it before there are any.
pub fn share_heap() {
    // SAFETY: it sets a number in the allocator. Where it is refused, there are more heaps.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
