//! What the process gives up before the first guest instruction runs. docs/ISOLATION.md says what is left to each thread.
//!
//! A tenant is assumed to take over this process one day. What it then holds: the descriptors that were opened before
//! (the VM, its vCPUs, the log, standard input and output), and the system calls of [`seccomp`].
//!
//! There are two steps, each for the calling thread and those that it makes:
//!
//! 1. Before anything of a tenant's is looked at: [`restrict_building`] where requests of the API still name files to be
//!    opened, [`restrict_process`] where all are open. The API's thread: [`restrict_thread`].
//! 2. Before the guest runs: [`restrict_process`], and each thread installs the filter of its own kind
//!    ([`seccomp::install`]), the main thread once it has made the others.
//!
//! A layer that the host lacks is an error ([`JailError::Lacking`]): nothing runs with less than was asked for. A developer
//! leaves layers out by name, see [`Omitted`].

mod layer;
mod limits;
mod user;

pub mod landlock;
pub mod seccomp;

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};

pub use landlock::Reach;
pub use layer::{Layer, Omitted};
pub use limits::{FILE_FLOOR, largest_file, limit_files, limit_memory};
pub use user::{User, give_up_root};

/// What to look at when a file that a request of the API names cannot be opened.
pub const REACH_HINT: &str = "; is it in a folder of --api-dir?";

/// Why the process could not be confined. The VM does not run then.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The host lacks a layer.
    #[error(
        "this host cannot confine the VM: it lacks {layer}: {reason}; {remedy}; to run a VM that is not isolated, for \
         development only: --unconfined {layer}"
    )]
    Lacking {
        /// What is lacking.
        layer: Layer,
        /// What the system said.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A system call of the confinement failed.
    #[error("cannot confine the process: {step}: {source}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// What the system said.
        source: Errno,
    },
    /// A filter could not be made.
    #[error(
        "cannot make the system-call filter of {kind:?} threads: an argument is compared with more than 256 values"
    )]
    Filter {
        /// The kind of thread.
        kind: seccomp::ThreadKind,
    },
    /// A filter could not be installed.
    #[error(
        "cannot install the system-call filter of {kind:?} threads: {reason}; the kernel needs CONFIG_SECCOMP_FILTER; to \
         run a VM that is not isolated, for development only: --unconfined seccomp"
    )]
    Install {
        /// The kind of thread.
        kind: seccomp::ThreadKind,
        /// What the system said.
        reason: String,
    },
    /// Landlock failed for another reason than not being there.
    #[error("cannot restrict the process with Landlock: {0}")]
    Landlock(String),
    /// A folder that the API's requests are to reach cannot be used.
    #[error("cannot let the API reach {path}: {reason}; name another --api-dir, or another folder for --api-sock")]
    Reach {
        /// As it was named.
        path: std::path::PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// What was given up, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confined {
    /// What the kernel enforces of Landlock; nothing if it was left out.
    pub landlock: Option<landlock::Enforced>,
    /// Whether the thread has no capability.
    pub capabilities: bool,
}

/// Closes every descriptor beside standard input, output and error.
///
/// What the parent forgot to close would be the tenant's. Call it first of all, before anything is opened.
pub fn close_inherited() -> Result<(), JailError> {
    // SAFETY: nothing in this process has opened a descriptor yet, so nobody's is closed.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    Errno::result(result).map(drop).map_err(|source| JailError::Step { step: "close_range", source })
}

/// `CAP_DAC_OVERRIDE`: to open files of others, as root expects to.
const DAC_OVERRIDE: u32 = 1;
/// `CAP_NET_ADMIN`: to make tap devices.
const NET_ADMIN: u32 = 12;

/// Gives up every capability of the calling thread but those of the bits in `keep`, as far as it has them.
fn keep_capabilities(keep: u32) -> nix::Result<()> {
    /// `struct __user_cap_header_struct`.
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3`: two words of each set.
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    // Effective, permitted and inheritable, of the lower 32 capabilities and of the upper.
    let mut sets = [0u32; 6];
    if keep != 0 {
        // SAFETY: both point to live values of the layout and size that this version of the call writes.
        let result = unsafe { libc::syscall(libc::SYS_capget, &raw const header, sets.as_mut_ptr()) };
        Errno::result(result)?;
    }
    let [effective, permitted, ..] = sets;
    let sets = [effective & keep, permitted & keep, 0, 0, 0, 0];
    // SAFETY: both point to live values of the layout and size that this version of the call reads.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
    Errno::result(result).map(drop)
}

/// What no VM runs without, and no `--unconfined` leaves out: no new privileges, no core dumps, no tracing by others of
/// its user.
fn restrict_always() -> Result<(), JailError> {
    let step = |step| move |source| JailError::Step { step, source };
    nix::sys::prctl::set_no_new_privs().map_err(step("no_new_privs"))?;
    // Also makes /proc/self of this process root's.
    nix::sys::prctl::set_dumpable(false).map_err(step("PR_SET_DUMPABLE"))?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(step("RLIMIT_CORE"))
}

fn restrict(omitted: Omitted, capabilities: u32, domain: Option<landlock::Domain>) -> Result<Confined, JailError> {
    restrict_always()?;
    let none_left = !omitted.contains(Layer::Capabilities);
    if none_left {
        keep_capabilities(capabilities).map_err(|source| JailError::Step { step: "capset", source })?;
    }
    let landlock = domain.map(landlock::Domain::enter).transpose()?;
    Ok(Confined { landlock, capabilities: none_left })
}

/// Restricts the process: no new privileges, no capabilities, no core dumps, no tracing by others of its user, no
/// files.
///
/// Everything that the VM needs from the file system has been opened by then. Call it while there is one thread beside the
/// API's. It fails where the host lacks a layer that is not in `omitted`.
pub fn restrict_process(omitted: Omitted) -> Result<Confined, JailError> {
    let domain = landlock::unless(omitted, landlock::Domain::no_files)?;
    restrict(omitted, 0, domain)
}

/// Restricts the calling thread, and those it makes, to what building a VM takes whose files requests of the API name: the
/// files of `reach`, `/dev/kvm` and `/dev/net/tun`, and of the capabilities those to make taps and to open others' files.
pub fn restrict_building(omitted: Omitted, reach: &Reach) -> Result<Confined, JailError> {
    let domain = landlock::unless(omitted, || landlock::Domain::for_building(reach))?;
    restrict(omitted, 1 << DAC_OVERRIDE | 1 << NET_ADMIN, domain)
}

/// Restricts the calling thread, and those it makes: no new privileges, no capabilities, no files but those of `domain`.
pub fn restrict_thread(omitted: Omitted, domain: Option<landlock::Domain>) -> Result<Confined, JailError> {
    restrict(omitted, 0, domain)
}
