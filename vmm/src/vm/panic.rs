//! A panic ends the process at once, in every profile.

use crate::{console, log};

/// Makes any panic, on any thread, abort the process after saying so on standard error.
///
/// Going on after a panic would mean running a guest on state that nobody understands. The terminal is put back, by a
/// thread that may do that.
/// The log is not written: the panic may have come out of it.
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        // Not `eprintln!`: it would panic again where standard error cannot be written.
        log::tell(&format!("portcullis-vmm: internal error, aborting: {info}\n"));
        // Behind the words: the filter of a vCPU's thread lets it say them, and not touch the terminal.
        console::restore_terminal();
        std::process::abort();
    }));
}
