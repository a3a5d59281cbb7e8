//! Landlock: no new access to any file, and where the kernel knows how, to ports, sockets and other processes.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope,
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

/// Denies the calling thread, and those it makes, every access to files that is not through an open descriptor.
pub fn forbid_all_files() -> Result<Enforced, JailError> {
    let status = restrict().map_err(|e| JailError::Landlock(e.to_string()))?;
    Ok(match status {
        RulesetStatus::FullyEnforced => Enforced::Full,
        RulesetStatus::PartiallyEnforced => Enforced::Partial,
        RulesetStatus::NotEnforced => Enforced::None,
    })
}

fn restrict() -> Result<RulesetStatus, RulesetError> {
    // Rights that are handled and allowed by no rule are denied. Best effort: what an older kernel lacks is left out.
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .restrict_self()?;
    Ok(status.ruleset)
}
