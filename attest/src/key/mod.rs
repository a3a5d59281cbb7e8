//! TPM keys: public areas, their names, what an attestation key must be, and signatures.

mod bank;
mod constant;
mod digest;
mod enrolled;
mod public;
mod quoting;
mod received;
mod signature;
mod sm2;
mod spki;

pub use bank::{Bank, UnknownBank};
pub(crate) use constant::Constant;
pub(crate) use digest::{Digest, MAX_DIGEST};
pub use enrolled::EnrolledAk;
pub(crate) use enrolled::{curve_weakness, rsa_weakness};
pub use public::{Attributes, Curve, KeyError, KeyKind, PublicArea, Scheme, SchemeKind, Symmetric};
pub use quoting::QuotingKey;
pub(crate) use received::{ReceivedCertificate, canonical};
pub use signature::{Signature, SignatureError};
pub(crate) use spki::{decode as decode_spki, encode as encode_spki};

/// TPM_RH_ENDORSEMENT: what an endorsement key's qualified name begins with.
pub(crate) const HIERARCHY_ENDORSEMENT: u32 = 0x4000_000B;
/// TPM_RH_NULL: the hierarchy that dies at every reset.
pub(crate) const HIERARCHY_NULL: u32 = 0x4000_0007;
