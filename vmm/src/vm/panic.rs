//! A panic ends the process at once, in every profile.

use crate::{console, log};

/// Makes any panic, on any thread, abort the process after saying so on standard error.
///
/// Going on after a panic would mean running a guest on state that nobody understands. The terminal is put back first.
/// The log is not written: the panic may have come out of it.
pub fn abort_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        console::restore_terminal();
        // Not `eprintln!`: it would panic again where standard error cannot be written.
        log::tell(&format!("portcullis-vmm: internal error, aborting: {info}\n"));
        std::process::abort();
    }));
}
