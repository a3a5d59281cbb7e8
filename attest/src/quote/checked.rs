//! One quote by itself, as `tpm2_quote` makes it: whether a given key signed these values for this nonce.

use std::ops::Deref;

use subtle::ConstantTimeEq as _;

use super::pcr_file::{PcrFile, PcrFileError};
use super::values::QuotedState;
use super::{check_signed, signature_reason, structure_reason};
use crate::evidence::MAX_SIGNED;
use crate::key::{Bank, QuotingKey};
use crate::quote::attest::Quote;
use crate::reason::{Denial, Reason, ReasonCode};

/// What a quote that holds leaves open. None of it is a reason to refuse the quote, all of it is one to trust it less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Caveat {
    /// The key is a bare public key: it may sign whatever it is given.
    AttributesUnknown,
    /// The key's parent is unknown: so is the TPM, and outside the endorsement hierarchy counters are obfuscated.
    ParentUnknown,
    /// Key and quote are bound to SHA-1.
    Sha1,
    /// The quote answers no nonce: it may be of any age.
    NoNonce,
    /// Bytes follow the last event of the log that was replayed.
    TrailingBytes,
    /// The log that was replayed has events of PCRs that were not quoted. What it says of them is proved by nothing.
    UnquotedPcrs,
    /// PCR 10 was quoted and extended, and the list that would say with what was not replayed.
    RuntimeUnchecked,
}

impl Caveat {
    /// The stable name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AttributesUnknown => "attributes-unknown",
            Self::ParentUnknown => "parent-unknown",
            Self::Sha1 => "sha1",
            Self::NoNonce => "no-nonce",
            Self::TrailingBytes => "trailing-bytes",
            Self::UnquotedPcrs => "unquoted-pcrs",
            Self::RuntimeUnchecked => "runtime-unchecked",
        }
    }

    /// What it means, in a sentence.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::AttributesUnknown => {
                "The key is given without its attributes: an unrestricted key signs forged quotes, too."
            }
            Self::ParentUnknown => {
                "The key's parent is not known: the quote says neither which TPM made it nor true boot counters."
            }
            Self::Sha1 => {
                "The signature is made with SHA-1, of which collisions are practical: it proves little, and never enough \
                 for a host to be trusted."
            }
            Self::NoNonce => "The quote answers an empty nonce: it may be of any age.",
            Self::TrailingBytes => "Bytes follow the last event of the event log: padding, or what no digest covers.",
            Self::UnquotedPcrs => {
                "The event log has events of PCRs that the quote does not cover: nothing proves what it says of them."
            }
            Self::RuntimeUnchecked => {
                "PCR 10 was extended since the boot; without the IMA list nobody can say with what."
            }
        }
    }
}

/// A quote that a key signed for a nonce, with the values it covers: a [`QuotedState`].
///
/// It says nothing of who asked and what for, so no [`VerifiedQuote`](super::VerifiedQuote) can be made of it. Made only
/// by [`CheckedQuote::check`].
#[derive(Clone, Debug)]
pub struct CheckedQuote {
    state: QuotedState,
    hash: Bank,
    caveats: Vec<Caveat>,
}

impl CheckedQuote {
    /// Checks a quote as [`VerifiedQuote::verify`](super::VerifiedQuote::verify) does, as far as `key` is known, and with
    /// `nonce` as the whole of its extraData. Gives every reason against it.
    pub fn check(
        key: &QuotingKey,
        message: &[u8],
        signature: &[u8],
        values: &PcrFile,
        nonce: &[u8],
    ) -> Result<Self, Denial> {
        let hash = key.verify(message, signature).map_err(|error| signature_reason(&error))?;
        if message.len() > MAX_SIGNED {
            let found = format!("{} bytes", message.len());
            return Err(Reason::new(ReasonCode::QuoteMalformed).found(found).into());
        }
        let parsed = Quote::parse(message).map_err(|error| structure_reason(&error))?;
        let pcrs = values.named(&parsed)?;
        let mut reasons = check_signed(&parsed, &pcrs, hash, key.qualified_name());
        reasons.extend(unfit_signer(key, parsed.header.qualified_signer));
        if !bool::from(parsed.header.extra_data.ct_eq(nonce)) {
            let found = hex::encode(parsed.header.extra_data);
            reasons.push(Reason::new(ReasonCode::QuoteNonceMismatch).expected(hex::encode(nonce)).found(found));
        }
        if !reasons.is_empty() {
            return Err(reasons.into());
        }
        let caveats = [
            (key.public().is_none(), Caveat::AttributesUnknown),
            (key.qualified_name().is_none(), Caveat::ParentUnknown),
            (key.is_sha1(), Caveat::Sha1),
            (nonce.is_empty(), Caveat::NoNonce),
        ];
        let mut state = QuotedState::new(parsed.header.clock, parsed.header.firmware_version);
        state.add(&pcrs, |_, _, _| {});
        Ok(Self {
            state,
            hash,
            caveats: caveats.into_iter().filter_map(|(holds, caveat)| holds.then_some(caveat)).collect(),
        })
    }

    /// The hash of the signature, which pcrDigest is made with, too.
    #[must_use]
    pub fn hash(&self) -> Bank {
        self.hash
    }

    /// What the quote leaves open.
    #[must_use]
    pub fn caveats(&self) -> &[Caveat] {
        &self.caveats
    }
}

impl Deref for CheckedQuote {
    type Target = QuotedState;

    fn deref(&self) -> &QuotedState {
        &self.state
    }
}

/// A qualified name is made with the key's own name algorithm, whatever its parent is.
fn unfit_signer(key: &QuotingKey, found: &[u8]) -> Option<Reason> {
    let name_alg = key.public()?.name_alg();
    let (id, digest) = found.split_first_chunk::<2>()?;
    let fits = u16::from_be_bytes(*id) == name_alg.tpm_alg_id() && digest.len() == name_alg.digest_size();
    let reason = || {
        Reason::new(ReasonCode::QuoteSignerMismatch)
            .expected(format!("a qualified name made with {name_alg}"))
            .found(hex::encode(found))
    };
    (!fits && key.qualified_name().is_none()).then(reason)
}

impl From<PcrFileError> for Denial {
    fn from(error: PcrFileError) -> Self {
        Reason::new(ReasonCode::QuotePcrLength).found(error.to_string()).into()
    }
}
