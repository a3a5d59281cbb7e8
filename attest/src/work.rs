//! Counts the work that a judgement does, for tests: time depends on the machine, the number of steps does not.
//!
//! The unit is about one byte hashed. Code that works on something whose size evidence decides says here how much it did;
//! outside of tests that costs nothing. Tests assert that twice the evidence costs twice the work (N95).

/// What one call of a hash costs beside its bytes: padding, and setting it up.
#[cfg(test)]
const CALL: usize = 64;

/// What one check of an RSA signature costs, in bytes hashed.
#[cfg(test)]
const SIGNATURE: usize = 32 << 10;

#[cfg(test)]
thread_local! {
    static DONE: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// So many bytes were hashed in one call.
#[inline]
pub fn hashed(bytes: usize) {
    #[cfg(test)]
    steps(bytes.saturating_add(CALL));
    #[cfg(not(test))]
    let _ = bytes;
}

/// So many elementary steps were done: comparisons, bytes copied or looked at.
#[inline]
pub fn steps(count: usize) {
    #[cfg(test)]
    DONE.with(|done| done.set(done.get().saturating_add(count)));
    #[cfg(not(test))]
    let _ = count;
}

/// A signature was checked.
#[inline]
pub fn signature() {
    #[cfg(test)]
    steps(SIGNATURE);
}

/// What `work` gives, and how much was done for it on this thread.
#[cfg(test)]
pub fn of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = DONE.with(std::cell::Cell::get);
    let result = work();
    (result, DONE.with(std::cell::Cell::get).wrapping_sub(before))
}
