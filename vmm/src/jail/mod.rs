//! What the process gives up before the first guest instruction runs.
//!
//! A tenant is assumed to take over this process one day. What it then holds: the descriptors that were opened before
//! (the VM, its vCPUs, the log, standard input and output), and the system calls of [`seccomp`].
//!
//! The order matters. [`restrict_process`] is for the only thread there is, so that every thread made later inherits
//! it; then each thread installs the filter of its own kind with [`seccomp::install`], the main thread last.

pub mod landlock;
pub mod seccomp;

use nix::sys::resource::{Resource, setrlimit};

/// Why the process could not be confined. The VM does not run then.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A system call of the confinement failed.
    #[error("cannot confine the process: {step}: {source}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// What the system said.
        source: nix::errno::Errno,
    },
    /// A filter could not be made.
    #[error("cannot make the system-call filter of {kind:?} threads: {reason}")]
    Filter {
        /// The kind of thread.
        kind: seccomp::ThreadKind,
        /// What the compiler said.
        reason: String,
    },
    /// A filter could not be installed.
    #[error("cannot install the system-call filter of {kind:?} threads: {reason}")]
    Install {
        /// The kind of thread.
        kind: seccomp::ThreadKind,
        /// What the system said.
        reason: String,
    },
    /// Landlock failed for another reason than not being there.
    #[error("cannot restrict the process with Landlock: {0}")]
    Landlock(String),
}

/// Restricts the process: no new privileges, no core dumps, no tracing by others of its user, no files.
///
/// Everything that the VM needs from the file system has been opened by then. Call it while there is one thread.
pub fn restrict_process() -> Result<landlock::Enforced, JailError> {
    let step = |step| move |source| JailError::Step { step, source };
    nix::sys::prctl::set_no_new_privs().map_err(step("no_new_privs"))?;
    // Also makes /proc/self of this process root's.
    nix::sys::prctl::set_dumpable(false).map_err(step("PR_SET_DUMPABLE"))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(step("RLIMIT_CORE"))?;
    landlock::forbid_all_files()
}
