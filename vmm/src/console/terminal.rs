//! Raw mode of a terminal, and the way back.

use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Mutex;

use nix::sys::termios::{self, SetArg, Termios};

/// The terminal that was switched, and how it was. Kept in a static so that the panic hook can restore it too.
static SAVED: Mutex<Option<(RawFd, Termios)>> = Mutex::new(None);

/// Switches `fd` to raw mode if it is a terminal, so that keys such as Ctrl-C reach the guest.
///
/// Gives whether input should be read from it: not from a terminal whose foreground belongs to someone else (reading
/// would stop this process).
pub(super) fn make_raw(fd: RawFd) -> bool {
    // SAFETY: standard input; if it is closed, the calls below say so.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let Ok(before) = termios::tcgetattr(borrowed) else {
        // No terminal: a pipe, a file, /dev/null.
        return true;
    };
    if nix::unistd::tcgetpgrp(borrowed).ok() != Some(nix::unistd::getpgrp()) {
        return false;
    }
    let mut raw = before.clone();
    termios::cfmakeraw(&mut raw);
    // Lines of the log on the same terminal still want their carriage returns.
    raw.output_flags = before.output_flags;
    if termios::tcsetattr(borrowed, SetArg::TCSANOW, &raw).is_ok()
        && let Ok(mut saved) = SAVED.lock()
    {
        *saved = Some((fd, before));
    }
    true
}

/// Puts the terminal back as it was. Harmless when there is nothing to do.
pub fn restore() {
    // `try_lock`: called from the panic hook too, where waiting could be for ever.
    if let Ok(mut saved) = SAVED.try_lock()
        && let Some((fd, before)) = saved.take()
    {
        // SAFETY: standard input, see above.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        let _ = termios::tcsetattr(borrowed, SetArg::TCSANOW, &before);
    }
}
