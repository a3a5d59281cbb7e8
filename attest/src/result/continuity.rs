//! What two results of one host say of the time between them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Submodule;

/// How a later result of a host continues an earlier one.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", rename_all_fields = "snake_case", tag = "continuity")]
#[non_exhaustive]
pub enum Continuity {
    /// The same boot, with the same measured state.
    SameBoot,
    /// The host booted in between, so often: what it was told or given in the earlier boot is gone.
    Reset {
        /// Resets of its TPM.
        resets: u32,
    },
    /// It was suspended and resumed in between, so often, or its TPM was restarted without a reset.
    Restarted {
        /// Restarts of its TPM.
        restarts: u32,
    },
    /// The counters are those of one boot, but what was measured at boot is not: one of the results is wrong.
    OtherState,
    /// The later result is from before the earlier one, by the TPM's own count.
    Backwards,
    /// The results are of different TPMs.
    OtherTpm,
    /// Nobody vouched for the parent of an attestation key, so the counters prove nothing.
    Unproved,
}

impl Continuity {
    /// What lies between two results.
    pub fn between(earlier: &Submodule, later: &Submodule) -> Self {
        let (then, now) = (&earlier.boot, &later.boot);
        if then.ek.is_none() || now.ek.is_none() {
            return Self::Unproved;
        }
        if then.ek != now.ek {
            return Self::OtherTpm;
        }
        match now.reset_count.checked_sub(then.reset_count) {
            None => Self::Backwards,
            Some(0) => match now.restart_count.checked_sub(then.restart_count) {
                None => Self::Backwards,
                Some(0) if earlier.static_pcrs != later.static_pcrs => Self::OtherState,
                Some(0) => Self::SameBoot,
                Some(restarts) => Self::Restarted { restarts },
            },
            Some(resets) => Self::Reset { resets },
        }
    }

    /// Whether the later result is of the same boot in the same state.
    pub const fn is_same_boot(self) -> bool {
        matches!(self, Self::SameBoot)
    }
}

impl fmt::Display for Continuity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SameBoot => f.write_str("the same boot"),
            Self::Reset { resets } => write!(f, "another boot: the TPM was reset {resets} times in between"),
            Self::Restarted { restarts } => write!(f, "resumed: the TPM was restarted {restarts} times in between"),
            Self::OtherState => f.write_str("the same boot with another measured state, which cannot be"),
            Self::Backwards => f.write_str("the later result is from before the earlier one"),
            Self::OtherTpm => f.write_str("another TPM"),
            Self::Unproved => f.write_str("unproved: nobody vouched for the attestation key's parent"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::ResultClaims;

    #[test]
    fn counters_say_what_lies_between_two_results() {
        let result = include_str!("../../schemas/examples/result-1.json");
        let result: ResultClaims = serde_json::from_str(result).unwrap();
        let earlier = result.submods["host-1"].clone();
        let after = |change: &dyn Fn(&mut Submodule)| {
            let mut later = earlier.clone();
            change(&mut later);
            Continuity::between(&earlier, &later)
        };
        assert_eq!(after(&|_| {}), Continuity::SameBoot);
        assert_eq!(after(&|later| later.boot.reset_count += 2), Continuity::Reset { resets: 2 });
        assert_eq!(after(&|later| later.boot.restart_count += 1), Continuity::Restarted { restarts: 1 });
        assert_eq!(after(&|later| later.boot.reset_count -= 1), Continuity::Backwards);
        assert_eq!(after(&|later| later.static_pcrs = "00".repeat(32)), Continuity::OtherState);
        assert_eq!(after(&|later| later.boot.ek = Some("00".repeat(32))), Continuity::OtherTpm);
        assert_eq!(after(&|later| later.boot.ek = None), Continuity::Unproved);
        let mut later = earlier.clone();
        later.boot.restart_count = 5;
        assert_eq!(Continuity::between(&later, &earlier), Continuity::Backwards);
        assert!(Continuity::SameBoot.is_same_boot() && !Continuity::Reset { resets: 1 }.is_same_boot());
    }
}
