//! `entropy`, as Firecracker writes it.

use serde::{Deserialize, Serialize};

/// A source of entropy.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct EntropyConfig {}
