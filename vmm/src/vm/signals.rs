//! The signals that end a VM.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::VmError;

/// Signals that ask the VM to end. They are read from a descriptor, so that they are answered in order with
/// everything else.
pub(super) struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals for this thread and those it makes, and opens the descriptor.
    pub(super) fn take_over() -> Result<Self, VmError> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
            set.add(signal);
        }
        // A write beyond a limit of the host is an error to be answered, not the end.
        // SAFETY: no handler is installed that could run at a bad time.
        unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.map_err(VmError::Signals)?;
        set.thread_block().map_err(VmError::Signals)?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        SignalFd::with_flags(&set, flags).map(Self).map_err(VmError::Signals)
    }

    /// Whether one has come.
    pub(super) fn take(&self) -> bool {
        matches!(self.0.read_signal(), Ok(Some(_)))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
