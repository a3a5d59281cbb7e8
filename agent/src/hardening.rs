//! What the agent does to itself before it holds a secret: no core dumps, no debugger, no swapping of its memory, and
//! mounts that nobody else sees.

use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

/// Makes every panic end the process at once: a thread that died alone would leave a gate that nobody watches.
pub fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

/// Keeps libtss2 from writing to standard error: all it could say is in our errors. Somebody who wants to hear it sets
/// `TSS2_LOG`. To be called first of all, before any thread is started.
pub fn silence_libtss2() {
    if std::env::var_os("TSS2_LOG").is_none() {
        // SAFETY: no other thread exists yet that could read the environment meanwhile.
        unsafe { std::env::set_var("TSS2_LOG", "all+none") };
    }
}

/// Keeps the process's memory out of core dumps and debuggers.
///
/// Returns one sentence for each step that the system refused; the agent goes on and says so, because each step only
/// adds to the protection that the volume keys' short life gives.
pub fn protect_memory() -> Vec<String> {
    let mut refused = Vec::new();
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        refused.push(format!("cannot forbid core dumps: {error}"));
    }
    // SAFETY: prctl with integer arguments only.
    if unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } == -1 {
        refused.push(format!("cannot make the process undumpable: {}", std::io::Error::last_os_error()));
    }
    refused
}

/// Keeps the process's memory out of swap, if it may lock as much as it likes; otherwise gives the reason why not. (With a
/// limit it could be refused memory later, in the middle of its work.)
pub fn lock_memory() -> Result<(), String> {
    let unlimited = getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft == RLIM_INFINITY);
    if !unlimited && !may_lock_memory() {
        return Err("the memory is not locked against swapping: it needs CAP_IPC_LOCK".to_owned());
    }
    // SAFETY: mlockall takes flags only. ONFAULT: thread stacks are locked page by page as they are used.
    if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) } == -1 {
        return Err(format!("cannot lock the memory against swapping: {}", std::io::Error::last_os_error()));
    }
    Ok(())
}

/// Whether CAP_IPC_LOCK is among the effective capabilities.
fn may_lock_memory() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = capabilities.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    bits.is_some_and(|bits| bits >> CAP_IPC_LOCK & 1 == 1)
}

/// Gives the process a mount namespace of its own, so that mounts of volumes are seen by it and its VMs only and end
/// with the last of them, also after a kill -9. Must run before any thread is started.
pub fn private_mounts() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Slave, not private: what the host unmounts must not stay alive in here.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
}
