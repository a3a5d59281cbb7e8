//! The whole judgement: from evidence to a verdict, or to every reason against it.

mod boot;
mod policy;

pub use boot::{BootInstance, Judged, static_digest};
pub use policy::{MAX_POLICY, Policy, PolicyError, SCHEMA as POLICY_SCHEMA, STATIC_PCRS};
