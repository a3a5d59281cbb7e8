//! Landlock: no new access to any file, and where the kernel knows how, to ports, sockets and other processes.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, PathFdError, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::JailError;

/// Newest interface that the rules are written for.
const NEWEST: ABI = ABI::V6;

/// What the kernel enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforced {
    /// Everything of the interface that the rules are written for.
    Full,
    /// What an older kernel can.
    Partial,
    /// Nothing: the kernel has no Landlock, or it is switched off.
    None,
}

impl Enforced {
    /// As it stands in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Partial => "partial",
            Self::None => "none",
        }
    }
}

/// What a thread may still reach.
#[derive(Debug)]
pub struct Domain(RulesetCreated);

/// Rights that the API's thread keeps: to read and write files, and to make regular ones. To run programs, to make
/// devices, sockets, links or folders, or to remove anything is not among them.
const API_RIGHTS: [AccessFs; 5] =
    [AccessFs::ReadFile, AccessFs::WriteFile, AccessFs::MakeReg, AccessFs::Truncate, AccessFs::ReadDir];

impl Domain {
    /// No file that is not open already.
    pub fn no_files() -> Result<Self, JailError> {
        handle_all().map(Self).map_err(|e| JailError::Landlock(e.to_string()))
    }

    /// Files that requests of the API name, and the removal of its own socket: of files in its folder and those below,
    /// for Landlock knows no finer. A folder of its own for each VM's socket leaves nothing else to be removed.
    pub fn for_api(socket: &Path) -> Result<Self, JailError> {
        let folder = socket.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let add = || {
            let rights = API_RIGHTS.into_iter().fold(BitFlags::EMPTY, |all, right| all | right);
            let rules = handle_all()?
                .add_rule(PathBeneath::new(PathFd::new("/")?, rights))?
                .add_rule(PathBeneath::new(PathFd::new(folder)?, AccessFs::RemoveFile))?;
            Ok::<_, RulesetFault>(Self(rules))
        };
        add().map_err(|e| JailError::Landlock(e.to_string()))
    }

    /// Restricts the calling thread, and those it makes. There is no way back.
    pub fn enter(self) -> Result<Enforced, JailError> {
        let status = self.0.restrict_self().map_err(|e| JailError::Landlock(e.to_string()))?;
        Ok(match status.ruleset {
            RulesetStatus::FullyEnforced => Enforced::Full,
            RulesetStatus::PartiallyEnforced => Enforced::Partial,
            RulesetStatus::NotEnforced => Enforced::None,
        })
    }
}

/// Rights that are handled and allowed by no rule are denied. Best effort: what an older kernel lacks is left out.
fn handle_all() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()
}

#[derive(Debug, thiserror::Error)]
enum RulesetFault {
    #[error(transparent)]
    Rules(#[from] RulesetError),
    #[error(transparent)]
    Path(#[from] PathFdError),
}
