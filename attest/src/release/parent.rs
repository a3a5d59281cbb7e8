//! The storage parent that a key is wrapped for, and the proof that it dies with the boot (protocol rule 4).

use subtle::ConstantTimeEq as _;

use crate::binding::Binding;
use crate::key::{
    Attributes, Bank, EnrolledAk, HIERARCHY_NULL, KeyKind, PublicArea, Scheme, Symmetric, curve_weakness, rsa_weakness,
};
use crate::quote::{AttestError, Certify, ClockInfo};
use crate::reason::{Denial, Reason, ReasonCode};

/// A storage key that a known TPM holds in its NULL hierarchy: it cannot leave that TPM, opens nothing but what was wrapped
/// for it, and is gone at the next reset.
///
/// Made only by [`CertifiedParent::verify`].
#[derive(Clone, Debug)]
pub struct CertifiedParent {
    public: PublicArea,
    clock: ClockInfo,
    ak_name: Vec<u8>,
}

impl CertifiedParent {
    /// Checks that `ak` certified (TPM2_Certify) the parent, for what is `expected` (purpose "parent", the launch's nonce
    /// and body), and that the parent is what it must be. Gives every reason against it.
    ///
    /// `parent_public` is a TPMT_PUBLIC, `certify_attest` a TPMS_ATTEST, `certify_signature` a TPMT_SIGNATURE.
    pub fn verify(
        parent_public: &[u8],
        certify_attest: &[u8],
        certify_signature: &[u8],
        ak: &EnrolledAk,
        expected: &Binding,
    ) -> Result<Self, Denial> {
        let mut reasons = Vec::new();
        let public = PublicArea::parse(parent_public)
            .map_err(|error| reasons.push(Reason::new(ReasonCode::ParentMalformed).found(error.to_string())))
            .ok();
        if let Some(public) = &public {
            check_parent(public, &mut reasons);
        }
        let clock = match ak.verify(certify_attest, certify_signature) {
            Ok(()) => check_certification(certify_attest, public.as_ref(), ak, expected, &mut reasons),
            Err(error) => {
                reasons.push(Reason::new(ReasonCode::ParentNotCertified).found(error.to_string()));
                None
            }
        };
        match (public, clock) {
            (Some(public), Some(clock)) if reasons.is_empty() => {
                Ok(Self { public, clock, ak_name: ak.name().to_vec() })
            }
            _ => Err(reasons.into()),
        }
    }

    /// The parent's public area.
    #[must_use]
    pub fn public(&self) -> &PublicArea {
        &self.public
    }

    /// The TPM's clock and counters when the parent was certified.
    #[must_use]
    pub fn clock(&self) -> ClockInfo {
        self.clock
    }

    /// The name of the attestation key that certified it.
    #[must_use]
    pub fn ak_name(&self) -> &[u8] {
        &self.ak_name
    }
}

fn check_certification(
    attest: &[u8],
    public: Option<&PublicArea>,
    ak: &EnrolledAk,
    expected: &Binding,
    reasons: &mut Vec<Reason>,
) -> Option<ClockInfo> {
    let certify = match Certify::parse(attest) {
        Ok(certify) => certify,
        Err(error) => {
            let code = match error {
                AttestError::Magic(_) | AttestError::Type { .. } => ReasonCode::ParentNotCertified,
                _ => ReasonCode::ParentMalformed,
            };
            reasons.push(Reason::new(code).found(error.to_string()));
            return None;
        }
    };
    let mut differ = |code, expected: &[u8], found: &[u8]| {
        if !bool::from(expected.ct_eq(found)) {
            reasons.push(Reason::new(code).expected(hex::encode(expected)).found(hex::encode(found)));
        }
    };
    differ(ReasonCode::QuoteSignerMismatch, ak.qualified_name().unwrap_or_default(), certify.header.qualified_signer);
    differ(ReasonCode::ParentBindingMismatch, &expected.extra_data(), certify.header.extra_data);
    if let Some(public) = public {
        differ(ReasonCode::ParentNotCertified, &public.name(), certify.name);
        // Only a primary of the NULL hierarchy has this qualified name.
        differ(
            ReasonCode::ParentHierarchy,
            &public.qualified_name_in_hierarchy(HIERARCHY_NULL),
            certify.qualified_name,
        );
    }
    Some(certify.header.clock)
}

fn check_parent(public: &PublicArea, reasons: &mut Vec<Reason>) {
    let attributes = public.attributes();
    let needed = [
        (Attributes::FIXED_TPM, "fixedTPM"),
        (Attributes::FIXED_PARENT, "fixedParent"),
        (Attributes::SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin"),
        (Attributes::RESTRICTED, "restricted"),
        (Attributes::DECRYPT, "decrypt"),
    ];
    for (_, name) in needed.into_iter().filter(|(bit, _)| !attributes.has(*bit)) {
        reasons.push(Reason::new(ReasonCode::ParentAttributes).expected(name).found(format!("{attributes:?}")));
    }
    if attributes.has(Attributes::SIGN) {
        reasons.push(Reason::new(ReasonCode::ParentAttributes).expected("no sign").found(format!("{attributes:?}")));
    }
    let weakness = match public.kind() {
        KeyKind::Rsa { bits, exponent, .. } => rsa_weakness(*bits, *exponent),
        KeyKind::Ecc { curve, .. } => curve_weakness(*curve),
    };
    let name_alg = public.name_alg();
    let weak = [
        weakness,
        matches!(name_alg, Bank::Sha1 | Bank::Sm3_256).then(|| format!("name algorithm {name_alg}")),
        (!matches!(public.symmetric(), Symmetric::AesCfb(128 | 256))).then(|| format!("{:?}", public.symmetric())),
        (public.scheme() != Scheme::Any).then(|| "a scheme of its own, which no storage key has".to_owned()),
    ];
    for found in weak.into_iter().flatten() {
        reasons.push(Reason::new(ReasonCode::ParentWeakKey).found(found));
    }
}
