//! Root's user id, given up.

use std::borrow::Cow;

use nix::errno::Errno;
use nix::sys::prctl::{get_pdeathsig, set_pdeathsig};
use nix::unistd::{geteuid, getuid};

use super::{Layer, Omitted};

/// `nobody` and `nogroup`: no file should be theirs.
const NOBODY: libc::c_ulong = 65534;

/// As whom the process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// It was no root.
    Own,
    /// It was root, and is `nobody` now.
    Nobody,
    /// It is root still, for this reason.
    Root(Cow<'static, str>),
}

impl User {
    /// As it stands in the log.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Nobody => "nobody",
            Self::Root(_) => "root",
        }
    }
}

/// Makes the calling thread, and those it makes, `nobody`'s where they are root's, unless `needed` says why that cannot be.
/// Call it when everything is open. No other thread may live on.
pub fn give_up_root(omitted: Omitted, needed: Option<&'static str>) -> User {
    if !geteuid().is_root() && !getuid().is_root() {
        return User::Own;
    }
    if omitted.contains(Layer::User) {
        return User::Root("it was left out".into());
    }
    if let Some(reason) = needed {
        return User::Root(reason.into());
    }
    // A change of user forgets it.
    let with_parent = get_pdeathsig();
    let changed = change(libc::SYS_setgroups, [0, 0, 0])
        .and_then(|()| change(libc::SYS_setresgid, [NOBODY; 3]))
        .and_then(|()| change(libc::SYS_setresuid, [NOBODY; 3]))
        .and_then(|()| with_parent.and_then(set_pdeathsig));
    match changed {
        Ok(()) => User::Nobody,
        Err(errno) => User::Root(format!("the system does not let it change: {errno}").into()),
    }
}

/// Asks the kernel for one thread. The C library's functions interrupt all others to change them, too, and one that makes
/// a VM just then begins anew.
fn change(call: libc::c_long, arguments: [libc::c_ulong; 3]) -> nix::Result<()> {
    let [first, second, third] = arguments;
    // SAFETY: these calls take numbers; the list of no groups is not read.
    Errno::result(unsafe { libc::syscall(call, first, second, third) }).map(drop)
}
