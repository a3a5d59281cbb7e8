//! Counts what a target allocates, so that a length field that is believed too early is found even where nothing is ever
//! written to the memory. Counts what Rust allocates; the C library of cryptography is under libFuzzer's own limits.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// What any input may cost: the tables of TOML and certificate parsers, and the reasons of a denial.
const BASE: usize = 1 << 20;
/// What each byte of an input may cost: the smallest entry of a log makes the largest structure for its size.
const PER_BYTE: usize = 64;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
    static ALLOWED: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, with a count of what each thread holds.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn grown(by: usize) {
    LIVE.with(|live| {
        live.set(live.get().saturating_add(by));
        PEAK.with(|peak| peak.set(peak.get().max(live.get())));
    });
}

fn shrunk(by: usize) {
    LIVE.with(|live| live.set(live.get().saturating_sub(by)));
}

// SAFETY: every call is passed on to the system's allocator as it came; counting touches only cells of the thread, which
// need no allocation and no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        shrunk(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grown(size);
        shrunk(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Lets the input that is being tried cost so much more. For readers that reserve room for what is only announced.
pub fn allow(bytes: usize) {
    ALLOWED.with(|allowed| allowed.set(bytes));
}

/// Runs `body` and panics if this thread held more memory at one time than an input of that length may cost.
pub fn in_proportion<T>(input: usize, body: impl FnOnce() -> T) -> T {
    let before = LIVE.with(Cell::get);
    PEAK.with(|peak| peak.set(before));
    allow(0);
    let result = body();
    let peak = PEAK.with(Cell::get).saturating_sub(before);
    let most = BASE.saturating_add(input.saturating_mul(PER_BYTE)).saturating_add(ALLOWED.with(Cell::get));
    assert!(peak <= most, "an input of {input} bytes took {peak} bytes of memory, more than {most}");
    result
}
