//! Leads an endorsement key's certificate to a trusted root. Web-PKI libraries refuse such certificates for their empty
//! subjects and critical directory names, so the path is built and checked here (RFC 5280, 6.1, without policies).

use std::cmp::Ordering;
use std::time::SystemTime;

use const_oid::db::rfc5280::{ANY_EXTENDED_KEY_USAGE, ID_AD_CA_ISSUERS};
use x509_cert::TbsCertificate;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    AuthorityInfoAccessSyntax, AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage,
};

use super::certificate::{LinkError, ParsedCertificate};
use super::ek_certificate::EK_CERTIFICATE;
use super::roots::EkRoots;
use crate::reason::{Reason, ReasonCode};

/// Most authorities above the endorsement key's certificate; vendors have two or three.
const MAX_DEPTH: usize = 6;
/// Most signatures checked for one chain: bounds the work that hostile intermediates can cause.
const MAX_CHECKS: usize = 64;

/// Searches from `leaf` upwards. Returns the root, or the anchor below it, that it leads to; or why no path leads to one.
pub(super) fn find_root<'r>(
    leaf: &ParsedCertificate,
    sent: &[ParsedCertificate],
    roots: &'r EkRoots,
    now: SystemTime,
) -> Result<&'r ParsedCertificate, Vec<Reason>> {
    let mut search = Search { sent, roots, now, checks: 0, reasons: Vec::new() };
    match search.climb(leaf, 0) {
        Some(root) => Ok(root),
        None if search.reasons.is_empty() => Err(vec![unknown_root(leaf)]),
        None => {
            // An authority may be met on several paths.
            let mut reasons: Vec<Reason> = Vec::new();
            for reason in search.reasons {
                if !reasons.contains(&reason) {
                    reasons.push(reason);
                }
            }
            Err(reasons)
        }
    }
}

struct Search<'s, 'r> {
    sent: &'s [ParsedCertificate],
    roots: &'r EkRoots,
    now: SystemTime,
    checks: usize,
    /// Why paths ended that were tried.
    reasons: Vec<Reason>,
}

impl<'r> Search<'_, 'r> {
    /// `below` authorities are between the leaf and `certificate`'s issuer.
    fn climb(&mut self, certificate: &ParsedCertificate, below: usize) -> Option<&'r ParsedCertificate> {
        if below >= MAX_DEPTH {
            self.refuse(ReasonCode::EkChainInvalid, format!("more than {MAX_DEPTH} authorities"));
            return None;
        }
        let (roots, sent) = (self.roots, self.sent);
        let mut known = false;
        for root in roots.anchors().filter(|root| certificate.names_as_issuer(root)) {
            known = true;
            if self.links(certificate, root, below) && self.is_not_revoked(root) {
                return Some(root);
            }
        }
        for issuer in roots.intermediates.iter().chain(sent).filter(|issuer| certificate.names_as_issuer(issuer)) {
            known = true;
            // A self-issued certificate that is no configured root leads nowhere.
            if !issuer.is_self_issued()
                && self.links(certificate, issuer, below)
                && let Some(root) = self.climb(issuer, below.saturating_add(1))
            {
                return Some(root);
            }
        }
        if !known {
            self.reasons.push(unknown_root(certificate));
        }
        None
    }

    /// Whether `issuer` may and did sign `certificate`, with `below` authorities between it and the leaf.
    fn links(&mut self, certificate: &ParsedCertificate, issuer: &ParsedCertificate, below: usize) -> bool {
        if !self.may_check() {
            return false;
        }
        let before = self.reasons.len();
        let name = issuer.subject();
        match issuer.validity(self.now) {
            Ordering::Less => self.refuse(ReasonCode::EkCertificateNotYetValid, name.clone()),
            Ordering::Greater => self.refuse(ReasonCode::EkCertificateExpired, name.clone()),
            Ordering::Equal => {}
        }
        if let Some(oid) = issuer.unknown_critical() {
            self.refuse(ReasonCode::EkCertificateExtension, format!("{oid} in {name}"));
        }
        if let Err(problem) = may_issue(issuer, below) {
            self.refuse(ReasonCode::EkChainInvalid, format!("{name}: {problem}"));
        }
        match certificate.verify_signed_by(issuer) {
            Ok(()) => {}
            Err(LinkError::Weak(oid)) => {
                self.refuse(ReasonCode::EkChainWeakSignature, format!("{oid} in {}", certificate.subject()));
            }
            Err(error) => self.refuse(ReasonCode::EkChainInvalid, format!("{}: {error}", certificate.subject())),
        }
        let (roots, revocations) = (self.roots, &self.roots.revocations);
        self.reasons.extend(revocations.check(certificate, issuer, &roots.authorities(), below == 0, self.now));
        if revocations.names(issuer) {
            self.refuse(ReasonCode::EkRevoked, format!("{name}, by the operator"));
        }
        self.reasons.len() == before
    }

    /// Whether none of the configured authorities that signed an anchor revoked it: that an operator trusts an intermediate
    /// does not mean that its revocation is passed over.
    fn is_not_revoked(&mut self, anchor: &ParsedCertificate) -> bool {
        if anchor.is_self_issued() {
            return true;
        }
        let (roots, before) = (self.roots, self.reasons.len());
        for issuer in roots.authorities().filter(|issuer| anchor.names_as_issuer(issuer)) {
            if !self.may_check() {
                return false;
            }
            if anchor.verify_signed_by(issuer).is_ok() {
                let reasons = roots.revocations.check(anchor, issuer, &roots.authorities(), false, self.now);
                self.reasons.extend(reasons);
            }
        }
        self.reasons.len() == before
    }

    /// Counts a signature's check; whether one more is allowed.
    fn may_check(&mut self) -> bool {
        self.checks = self.checks.saturating_add(1);
        if self.checks > MAX_CHECKS {
            self.refuse(ReasonCode::EkChainInvalid, format!("more than {MAX_CHECKS} signatures to check"));
        }
        self.checks <= MAX_CHECKS
    }

    fn refuse(&mut self, code: ReasonCode, found: String) {
        self.reasons.push(Reason::new(code).event("EK certificate chain").found(found));
    }
}

/// An authority says so, may sign certificates, and allows as many authorities below it as there are.
fn may_issue(issuer: &ParsedCertificate, below: usize) -> Result<(), &'static str> {
    let tbs = issuer.certificate.tbs_certificate();
    let (_, constraints) = tbs
        .get_extension::<BasicConstraints>()
        .map_err(|_| "its basic constraints cannot be read")?
        .ok_or("it does not say that it is a certificate authority")?;
    if !constraints.ca {
        return Err("it is not a certificate authority");
    }
    if constraints.path_len_constraint.is_some_and(|most| usize::from(most) < below) {
        return Err("it allows fewer authorities below it (pathLen)");
    }
    let usage = tbs.get_extension::<KeyUsage>().map_err(|_| "its key usage cannot be read")?;
    if usage.is_some_and(|(_, usage)| !usage.key_cert_sign()) {
        return Err("its key may not sign certificates");
    }
    // What an authority's extended key usage means RFC 5280 leaves open (4.2.1.12). All who give it a meaning take it for
    // the usages that the authority may certify, and so do Intel and Google, whose issuing authorities have the endorsement
    // keys' there. That makes no authority an endorsement key, for which it would have to be none (`EkCertificateCa`).
    let usages = tbs.get_extension::<ExtendedKeyUsage>().map_err(|_| "its extended key usage cannot be read")?;
    if usages
        .is_some_and(|(_, usages)| ![EK_CERTIFICATE, ANY_EXTENDED_KEY_USAGE].iter().any(|one| usages.0.contains(one)))
    {
        return Err("its extended key usage leaves out endorsement keys (2.23.133.8.1)");
    }
    Ok(())
}

/// Says which root would be needed, as far as the last certificate of the path tells.
fn unknown_root(certificate: &ParsedCertificate) -> Reason {
    let tbs = certificate.certificate.tbs_certificate();
    let key = tbs.get_extension::<AuthorityKeyIdentifier>().ok().flatten();
    let key = key.and_then(|(_, key)| key.key_identifier);
    let needed = [
        Some(format!("a root or intermediate {}", certificate.issuer())),
        key.map(|key| format!("key identifier {}", hex::encode(key.as_bytes()))),
        published_at(tbs).map(|place| format!("published at {place}")),
    ];
    let subject = if tbs.subject().is_empty() { "the endorsement key".to_owned() } else { certificate.subject() };
    Reason::new(ReasonCode::EkRootUnknown)
        .event("EK certificate chain")
        .expected(needed.into_iter().flatten().collect::<Vec<_>>().join(", "))
        .found(format!("no such certificate for {subject}"))
}

/// Where the issuer says that its own certificate can be had (caIssuers).
fn published_at(tbs: &TbsCertificate) -> Option<String> {
    let (_, access) = tbs.get_extension::<AuthorityInfoAccessSyntax>().ok().flatten()?;
    access.0.into_iter().find_map(|one| match one.access_location {
        GeneralName::UniformResourceIdentifier(uri) if one.access_method == ID_AD_CA_ISSUERS => Some(uri.to_string()),
        _ => None,
    })
}
