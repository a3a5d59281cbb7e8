//! What the process gives up before the first guest instruction runs.
//!
//! A tenant is assumed to take over this process one day. What it then holds: the descriptors that were opened before
//! (the VM, its vCPUs, the log, standard input and output), and the system calls of [`seccomp`].
//!
//! The order matters. [`restrict_process`] is for the only thread there is beside the API's, so that every thread made
//! later inherits it; then each thread installs the filter of its own kind with [`seccomp::install`], the main thread once
//! it has made the others.

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
    #[error("cannot make the system-call filter of {kind:?} threads: one call has more than 255 conditions")]
    Filter {
        /// The kind of thread.
        kind: seccomp::ThreadKind,
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

/// Closes every descriptor beside standard input, output and error.
///
/// What the parent forgot to close would be the tenant's. Call it first of all, before anything is opened.
pub fn close_inherited() -> Result<(), JailError> {
    // SAFETY: nothing in this process has opened a descriptor yet, so nobody's is closed.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    nix::errno::Errno::result(result).map(drop).map_err(|source| JailError::Step { step: "close_range", source })
}

/// Gives up every capability of the calling thread; KVM needs none once the VM is made.
fn drop_capabilities() -> nix::Result<()> {
    /// `struct __user_cap_header_struct`.
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3`: two words of each set.
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    // Effective, permitted and inheritable, for the lower and the upper 32 capabilities.
    let none = [0u32; 6];
    // SAFETY: both point to live values of the layout and size that this version of the call reads.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    nix::errno::Errno::result(result).map(drop)
}

/// Restricts the process: no new privileges, no capabilities, no core dumps, no tracing by others of its user, no
/// files.
///
/// Everything that the VM needs from the file system has been opened by then. Call it while there is one thread.
pub fn restrict_process() -> Result<landlock::Enforced, JailError> {
    let step = |step| move |source| JailError::Step { step, source };
    nix::sys::prctl::set_no_new_privs().map_err(step("no_new_privs"))?;
    // Also makes /proc/self of this process root's.
    nix::sys::prctl::set_dumpable(false).map_err(step("PR_SET_DUMPABLE"))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(step("RLIMIT_CORE"))?;
    drop_capabilities().map_err(step("capset"))?;
    landlock::Domain::no_files()?.enter()
}

/// Restricts the calling thread, and those it makes: no new privileges, no capabilities, no files but those of `domain`.
pub fn restrict_thread(domain: landlock::Domain) -> Result<(), JailError> {
    let step = |step| move |source| JailError::Step { step, source };
    nix::sys::prctl::set_no_new_privs().map_err(step("no_new_privs"))?;
    drop_capabilities().map_err(step("capset"))?;
    domain.enter().map(drop)
}
