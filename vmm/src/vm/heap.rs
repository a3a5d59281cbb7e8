//! The memory that the process allocates for itself.

/// Bytes of a thread's stack. Less than a huge page: else a host that gives huge pages to all that is big enough gives
/// one to every stack that is touched, and has to clear its 2 MiB first.
pub const STACK: usize = 512 * 1024;

/// Lets every thread allocate from one heap.
///
/// glibc would make another for each thread, which takes system calls and pages between the guest and its first
/// instruction. The threads allocate too little to get into each other's way. Call it before there are any.
pub fn share_heap() {
    // SAFETY: it sets a number in the allocator. Where it is refused, there are more heaps.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
