//! Root's user id, given up.

use std::borrow::Cow;

use nix::sys::prctl::{get_pdeathsig, set_pdeathsig};
use nix::unistd::{Gid, Uid, geteuid, getuid, setgroups, setresgid, setresuid};

use super::{Layer, Omitted};

/// `nobody` and `nogroup`: no file should be theirs.
const NOBODY: u32 = 65534;

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

/// Makes a process of root's one of `nobody`'s, unless `needed` says why it cannot be. Call it while there is one thread,
/// and everything is open.
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
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    // A change of user forgets it.
    let with_parent = get_pdeathsig();
    let changed = setgroups(&[])
        .and_then(|()| setresgid(group, group, group))
        .and_then(|()| setresuid(user, user, user))
        .and_then(|()| with_parent.and_then(set_pdeathsig));
    match changed {
        Ok(()) => User::Nobody,
        Err(errno) => User::Root(format!("the system does not let it change: {errno}").into()),
    }
}
