//! Checks quotes: that the enrolled key of the expected TPM signed them, for exactly what was asked, over exactly the PCR
//! values that came along.

mod attest;
mod checked;
mod logs;
mod pcr_file;
mod values;

use std::ops::Deref;

use subtle::ConstantTimeEq as _;

pub use attest::{AttestError, ClockInfo};
pub(crate) use attest::{Certify, Header};
pub use checked::{Caveat, CheckedQuote};
pub use pcr_file::{PcrFile, PcrFileError};
pub use values::QuotedState;

use crate::binding::Binding;
use crate::evidence::{Evidence, MAX_QUOTES, PcrValues, SignedQuote};
use crate::key::{Bank, EnrolledAk, SignatureError};
use crate::reason::{Denial, Reason, ReasonCode};

/// PCR values that a known TPM signed for what was asked, and the counters that say in which boot: a [`QuotedState`].
///
/// Made only by [`VerifiedQuote::verify`].
#[derive(Clone, Debug)]
pub struct VerifiedQuote {
    state: QuotedState,
    binding: Binding,
    ak_name: Vec<u8>,
    ek: Option<[u8; 32]>,
    ek_certified: bool,
}

/// One quote that held by itself.
struct Checked<'a> {
    clock: ClockInfo,
    firmware_version: u64,
    pcrs: &'a PcrValues,
}

impl VerifiedQuote {
    /// Checks every quote of `evidence`. In this order, and each over the bytes as received:
    ///
    /// 1. the signature is `ak`'s, in its own scheme and hash;
    /// 2. the signed bytes are exactly one quote (magic, type, no byte left over, a plain selection);
    /// 3. the signer is `ak` under its endorsement key;
    /// 4. extraData is `expected`'s;
    /// 5. the values are those of the selected PCRs and of no others, and hash to the signed digest;
    /// 6. all quotes are of one boot and agree.
    ///
    /// Every reason against the evidence is given, except that nothing is read out of bytes whose signature is wrong.
    pub fn verify(evidence: &Evidence, ak: &EnrolledAk, expected: &Binding) -> Result<Self, Denial> {
        let mut reasons = Vec::new();
        if evidence.quotes.is_empty() {
            return Err(ReasonCode::EvidenceNoQuote.into());
        }
        if evidence.quotes.len() > MAX_QUOTES {
            let found = format!("{} quotes, {MAX_QUOTES} are read", evidence.quotes.len());
            return Err(Reason::new(ReasonCode::EvidenceMalformed).found(found).into());
        }
        let mut checked = Vec::new();
        for quote in &evidence.quotes {
            match check_one(quote, ak, |found| check_binding(found, expected, &evidence.binding)) {
                Ok(good) => checked.push(good),
                Err(bad) => reasons.extend(bad),
            }
        }
        match merge(&checked, &mut reasons) {
            Some(state) if reasons.is_empty() => {
                let (ak_name, ek, ek_certified) = (ak.name().to_vec(), ak.ek(), ak.is_ek_certified());
                Ok(Self { state, binding: expected.clone(), ak_name, ek, ek_certified })
            }
            _ => Err(reasons.into()),
        }
    }

    /// What the quote was made for.
    #[must_use]
    pub fn binding(&self) -> &Binding {
        &self.binding
    }

    /// The name of the attestation key that signed it.
    #[must_use]
    pub fn ak_name(&self) -> &[u8] {
        &self.ak_name
    }

    /// The fingerprint of the endorsement key under which that key is enrolled, see [`EnrolledAk::ek`].
    #[must_use]
    pub const fn ek(&self) -> Option<[u8; 32]> {
        self.ek
    }

    /// Whether the endorsement key above that key has a certificate of a configured vendor.
    #[must_use]
    pub const fn is_ek_certified(&self) -> bool {
        self.ek_certified
    }
}

impl Deref for VerifiedQuote {
    type Target = QuotedState;

    fn deref(&self) -> &QuotedState {
        &self.state
    }
}

/// `check_extra_data` says what is wrong with the quote's extraData.
fn check_one<'a>(
    quote: &'a SignedQuote,
    ak: &EnrolledAk,
    check_extra_data: impl FnOnce(&[u8]) -> Vec<Reason>,
) -> Result<Checked<'a>, Vec<Reason>> {
    ak.verify(&quote.message, &quote.signature).map_err(|error| vec![signature_reason(&error)])?;
    let parsed = attest::Quote::parse(&quote.message).map_err(|error| vec![structure_reason(&error)])?;
    let mut reasons = check_signed(&parsed, &quote.pcrs, ak.scheme_hash(), ak.qualified_name());
    reasons.extend(check_extra_data(parsed.header.extra_data));
    if reasons.is_empty() {
        let Header { clock, firmware_version, .. } = parsed.header;
        Ok(Checked { clock, firmware_version, pcrs: &quote.pcrs })
    } else {
        Err(reasons)
    }
}

/// Checks what a quote, whose signature holds, says of its signer and its values. `signer` is the qualified name, if it is
/// known; `hash` is that of the signature.
fn check_signed(quote: &attest::Quote<'_>, pcrs: &PcrValues, hash: Bank, signer: Option<&[u8]>) -> Vec<Reason> {
    let found = quote.header.qualified_signer;
    let mut reasons = Vec::new();
    if let Some(expected) = signer.filter(|expected| *expected != found) {
        let reason = Reason::new(ReasonCode::QuoteSignerMismatch);
        reasons.push(reason.expected(hex::encode(expected)).found(hex::encode(found)));
    }
    reasons.extend(values::check(quote, pcrs, hash));
    reasons
}

/// Whether a quote that this machine's TPM just made covers exactly these values.
#[cfg(feature = "tpm")]
pub(crate) fn covers(message: &[u8], pcrs: &PcrValues, scheme_hash: Bank) -> bool {
    attest::Quote::parse(message).is_ok_and(|quote| values::check(&quote, pcrs, scheme_hash).is_empty())
}

/// What is wrong with extraData that should be `expected`'s, in evidence that says it is `claimed`'s.
fn check_binding(extra_data: &[u8], expected: &Binding, claimed: &Binding) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if bool::from(extra_data.ct_eq(&expected.extra_data())) {
        if claimed != expected {
            // The quote is right and the envelope is not: somebody rewrote it, and whoever reads it would be misled.
            reasons.push(
                Reason::new(ReasonCode::QuoteBindingMismatch)
                    .text("The evidence says that its quote is bound to something else than it is."),
            );
        }
    } else if extra_data == claimed.extra_data() {
        // The quote is what the evidence says it is, so the evidence can say in which part it is wrong.
        reasons.extend(expected.differences(claimed));
    } else {
        reasons.push(
            Reason::new(ReasonCode::QuoteBindingMismatch)
                .expected(hex::encode(expected.extra_data()))
                .found(hex::encode(extra_data)),
        );
    }
    reasons
}

fn signature_reason(error: &SignatureError) -> Reason {
    let code = match error {
        SignatureError::Wire(_)
        | SignatureError::Algorithm(_)
        | SignatureError::Number(_)
        | SignatureError::Unreadable { .. } => ReasonCode::QuoteSignatureMalformed,
        SignatureError::Hash(_) | SignatureError::Scheme { .. } | SignatureError::Unsupported(_) => {
            ReasonCode::QuoteSignatureScheme
        }
        SignatureError::Key(_) | SignatureError::Size { .. } | SignatureError::Invalid => {
            ReasonCode::QuoteSignatureInvalid
        }
    };
    let reason = Reason::new(code);
    match error {
        SignatureError::Scheme { expected, found } => reason.expected(expected).found(found),
        SignatureError::Invalid => reason,
        other => reason.found(other.to_string()),
    }
}

fn structure_reason(error: &AttestError) -> Reason {
    let code = match error {
        AttestError::Wire(_) | AttestError::Safe(_) => ReasonCode::QuoteMalformed,
        AttestError::Magic(_) => ReasonCode::QuoteMagic,
        AttestError::Type { .. } => ReasonCode::QuoteType,
        AttestError::Selection(_) => ReasonCode::QuoteSelection,
        AttestError::EmptySelection => ReasonCode::QuoteEmptySelection,
    };
    Reason::new(code).found(error.to_string())
}

/// What all quotes say together.
fn merge(checked: &[Checked<'_>], reasons: &mut Vec<Reason>) -> Option<QuotedState> {
    let (clock, firmware_version) = same_boot(checked, reasons)?;
    let mut state = QuotedState::new(clock, firmware_version);
    for quote in checked {
        state.add(quote.pcrs, |pcr, first, other| {
            let reason = Reason::new(ReasonCode::QuotePcrConflict).pcr(pcr.into());
            reasons.push(reason.expected(hex::encode(first)).found(hex::encode(other)));
        });
    }
    Some(state)
}

/// Refuses quotes of different boots or TPM firmware; gives the latest clock, safe only if every quote says so.
fn same_boot(checked: &[Checked<'_>], reasons: &mut Vec<Reason>) -> Option<(ClockInfo, u64)> {
    let first = checked.first()?;
    let instance = |quote: &Checked<'_>| (quote.clock.reset_count, quote.clock.restart_count, quote.firmware_version);
    let words = |quote: &Checked<'_>| {
        let (reset, restart, firmware) = instance(quote);
        format!("resetCount {reset}, restartCount {restart}, TPM firmware {firmware:#x}")
    };
    for other in checked.iter().filter(|other| instance(other) != instance(first)) {
        reasons.push(Reason::new(ReasonCode::QuoteInstanceMismatch).expected(words(first)).found(words(other)));
    }
    let clock_ms = checked.iter().map(|quote| quote.clock.clock_ms).max()?;
    let safe = checked.iter().all(|quote| quote.clock.safe);
    Some((ClockInfo { clock_ms, safe, ..first.clock }, first.firmware_version))
}
