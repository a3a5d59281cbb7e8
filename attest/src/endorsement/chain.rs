//! Leads an endorsement key's certificate to a trusted root. Web-PKI libraries refuse such certificates for their empty
//! subjects and critical directory names, so the path is built and checked here (RFC 5280, 6.1, without policies).

use std::cmp::Ordering;
use std::time::SystemTime;

use const_oid::db::rfc5280::ID_AD_CA_ISSUERS;
use x509_cert::TbsCertificate;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{AuthorityInfoAccessSyntax, AuthorityKeyIdentifier, BasicConstraints, KeyUsage};

use super::certificate::{LinkError, ParsedCertificate};
use super::roots::EkRoots;
use crate::reason::{Reason, ReasonCode};

/// Most authorities above the endorsement key's certificate; vendors have two or three.
const MAX_DEPTH: usize = 6;
/// Most signatures checked for one chain: bounds the work that hostile intermediates can cause.
const MAX_CHECKS: usize = 64;

/// Searches from `leaf` upwards. Gives the root's name, or why no path leads to one.
pub(super) fn find_root(
    leaf: &ParsedCertificate,
    sent: &[ParsedCertificate],
    roots: &EkRoots,
    now: SystemTime,
) -> Result<String, Vec<Reason>> {
    let mut search = Search { sent, roots, now, checks: 0, reasons: Vec::new() };
    match search.climb(leaf, 0) {
        Some(root) => Ok(root),
        None if search.reasons.is_empty() => Err(vec![unknown_root(leaf)]),
        None => Err(search.reasons),
    }
}

struct Search<'a> {
    sent: &'a [ParsedCertificate],
    roots: &'a EkRoots,
    now: SystemTime,
    checks: usize,
    /// Why paths ended that were tried.
    reasons: Vec<Reason>,
}

impl Search<'_> {
    /// `below` authorities lie between the leaf and `certificate`'s issuer.
    fn climb(&mut self, certificate: &ParsedCertificate, below: usize) -> Option<String> {
        if below >= MAX_DEPTH {
            self.refuse(ReasonCode::EkChainInvalid, format!("more than {MAX_DEPTH} authorities"));
            return None;
        }
        let (roots, sent) = (self.roots, self.sent);
        for root in roots.roots.iter().filter(|root| certificate.names_as_issuer(root)) {
            if self.links(certificate, root, below) {
                return Some(root.subject());
            }
        }
        let mut known = false;
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
        if !known && !roots.roots.iter().any(|root| certificate.names_as_issuer(root)) {
            self.reasons.push(unknown_root(certificate));
        }
        None
    }

    /// Whether `issuer` may and did sign `certificate`, with `below` authorities between it and the leaf.
    fn links(&mut self, certificate: &ParsedCertificate, issuer: &ParsedCertificate, below: usize) -> bool {
        self.checks = self.checks.saturating_add(1);
        if self.checks > MAX_CHECKS {
            self.refuse(ReasonCode::EkChainInvalid, format!("more than {MAX_CHECKS} signatures to check"));
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
        if revocations.names_authority(issuer) {
            self.refuse(ReasonCode::EkRevoked, format!("{name}, by the operator"));
        }
        self.reasons.len() == before
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
