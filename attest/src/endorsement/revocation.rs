//! What was revoked: lists that vendors sign (CRLs, RFC 5280, section 5), and the operator's own list of fingerprints.
//!
//! A list counts for the authority that it names, by name or by key. One that names an authority which did not sign it
//! denies what that authority vouches for, for it may stand where a good one should; one that names no authority at all is
//! told ([`EkRoots::unmatched_lists`]). A list that should have been replaced denies what it does not name, too, unless
//! the operator accepts old ones: whoever keeps the new list away would else keep a revoked TPM in.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use const_oid::{AssociatedOid as _, ObjectIdentifier};
use der::asn1::BitString;
use der::{Decode as _, Encode as _, Reader as _, Sequence, SliceReader};
use sha2::{Digest as _, Sha256};
use spki::AlgorithmIdentifierOwned;
use thiserror::Error;
use x509_cert::certificate::Version;
use x509_cert::crl::RevokedCert;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::crl::{CrlNumber, IssuingDistributionPoint};
use x509_cert::ext::pkix::{AuthorityKeyIdentifier, KeyUsage, SubjectKeyIdentifier};

use x509_cert::name::Name;
use x509_cert::time::Time;

use super::certificate::ParsedCertificate;
use super::distinguished_name;
use super::pem;
use super::roots::EkRoots;
use crate::reason::{Reason, ReasonCode};

/// Longest list of one vendor that is read, in bytes.
const MAX_LIST: usize = 8 * 1024 * 1024;
/// id-ce-issuingDistributionPoint.
const ISSUING_DISTRIBUTION_POINT: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.28");

/// Why bytes are not a list that can be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CrlError {
    /// Longer than any vendor's.
    #[error("{0} bytes are more than a revocation list has")]
    TooLong(usize),
    /// Not DER of a CRL.
    #[error("not a certificate revocation list in DER: {0}")]
    Der(String),
    /// It lists only a part of what its authority revoked, or what others revoked.
    #[error("it is not a whole list of its authority's own ({0})")]
    Partial(ObjectIdentifier),
    /// A line outside PEM blocks of lists that is no SHA-256 fingerprint.
    #[error("line {0} is not a SHA-256 fingerprint (64 hex digits)")]
    Line(usize),
    /// A PEM block without an end, or whose content is not base64.
    #[error("the PEM block has no end or is not base64")]
    Pem,
}

/// A file among the revocations that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{file}: {problem}; use CRLs in PEM or DER, or text with one fingerprint a line")]
pub struct RevocationsError {
    /// The file's name.
    pub file: String,
    /// What is wrong.
    pub problem: CrlError,
}

/// What is revoked. Empty by default: nothing is.
#[derive(Clone, Debug, Default)]
pub struct Revocations {
    lists: Vec<Crl>,
    fingerprints: BTreeSet<[u8; 32]>,
    accept_stale: bool,
}

impl Revocations {
    /// Takes the files of a directory, by name and content: CRLs in DER, or text with CRLs in PEM and fingerprints, one a
    /// line (`#` begins a remark). A fingerprint is the SHA-256 of a certificate or of a key's SubjectPublicKeyInfo, so it
    /// revokes a vendor's authority or one endorsement key. Any other line is refused: nothing that an operator wrote down
    /// as revoked may be passed over.
    pub fn from_dir_files<N: AsRef<str>, B: AsRef<[u8]>>(
        files: impl IntoIterator<Item = (N, B)>,
    ) -> Result<Self, RevocationsError> {
        let mut all = Self::default();
        for (name, content) in files {
            all.add(content.as_ref())
                .map_err(|problem| RevocationsError { file: name.as_ref().to_owned(), problem })?;
        }
        Ok(all)
    }

    fn add(&mut self, content: &[u8]) -> Result<(), CrlError> {
        let Ok(text) = std::str::from_utf8(content) else {
            self.lists.push(Crl::parse(content)?);
            return Ok(());
        };
        let (blocks, around) = pem::split(text, "X509 CRL").map_err(|_| CrlError::Pem)?;
        for der in &blocks {
            self.lists.push(Crl::parse(der)?);
        }
        self.fingerprints.extend(fingerprints(&around)?);
        Ok(())
    }

    /// Adds a CRL that lay among the roots.
    pub(super) fn push(&mut self, list: Crl) {
        self.lists.push(list);
    }

    /// Adds everything of `other`; what either accepts, both do.
    pub(super) fn merge(&mut self, other: Self) {
        self.lists.extend(other.lists);
        self.fingerprints.extend(other.fingerprints);
        self.accept_stale |= other.accept_stale;
    }

    /// The same, with lists accepted that should have been replaced: for verifiers that seldom get new ones.
    #[must_use]
    pub fn accept_stale(mut self) -> Self {
        self.accept_stale = true;
        self
    }

    /// How many CRLs there are.
    #[must_use]
    pub fn crl_count(&self) -> usize {
        self.lists.len()
    }

    /// How many fingerprints the operator listed.
    #[must_use]
    pub fn fingerprint_count(&self) -> usize {
        self.fingerprints.len()
    }

    /// Whether the operator revoked the key with this fingerprint (SHA-256 of its SubjectPublicKeyInfo).
    #[must_use]
    pub fn names_key(&self, fingerprint: &[u8; 32]) -> bool {
        self.fingerprints.contains(fingerprint)
    }

    /// Whether the operator revoked this certificate.
    pub(super) fn names_certificate(&self, certificate: &ParsedCertificate) -> bool {
        self.names_digest_of(certificate.certificate.to_der())
    }

    /// Whether the operator revoked this authority: its certificate or its key.
    pub(super) fn names_authority(&self, authority: &ParsedCertificate) -> bool {
        let spki = authority.certificate.tbs_certificate().subject_public_key_info();
        self.names_certificate(authority) || self.names_digest_of(spki.to_der())
    }

    fn names_digest_of(&self, der: der::Result<Vec<u8>>) -> bool {
        der.is_ok_and(|der| self.names_key(&Sha256::digest(&der).into()))
    }

    /// What the lists of `issuer` say against `certificate`, which it signed. `authorities` are all that are configured.
    pub(super) fn check<'a>(
        &self,
        certificate: &ParsedCertificate,
        issuer: &ParsedCertificate,
        authorities: &(impl Iterator<Item = &'a ParsedCertificate> + Clone),
        is_leaf: bool,
        now: SystemTime,
    ) -> Vec<Reason> {
        let mut reasons = Vec::new();
        let now = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        for list in self.lists.iter().filter(|list| list.names(issuer) && list.scope.covers(is_leaf)) {
            let mut refuse = |code, found: String| {
                reasons.push(Reason::new(code).event("certificate revocation list").found(found));
            };
            let authority = issuer.subject();
            if let Err(problem) = list.verify(issuer) {
                // Of two authorities with one name each has its lists.
                if !list.is_by_another(issuer, authorities.clone()) {
                    refuse(ReasonCode::EkCrlInvalid, format!("{authority}: {problem}"));
                }
                continue;
            }
            if now < list.this_update {
                refuse(ReasonCode::EkCrlInvalid, format!("{authority}: it is from the future"));
            }
            // A list that does not say when the next one comes (RFC 5280 demands it) could be held up for ever.
            if !self.accept_stale && list.next_update.is_none_or(|next| now > next) {
                refuse(ReasonCode::EkCrlExpired, authority);
            }
            if list.serials.contains(certificate.certificate.tbs_certificate().serial_number().as_bytes()) {
                let name = certificate.certificate.tbs_certificate();
                refuse(ReasonCode::EkRevoked, format!("serial number {} by {}", name.serial_number(), name.issuer()));
            }
        }
        reasons
    }
}

impl EkRoots {
    /// The issuers of revocation lists that name no configured authority: they revoke nothing, unless a host sends the
    /// authority's certificate. An operator should know, for what such a list was to revoke is still accepted.
    #[must_use]
    pub fn unmatched_lists(&self) -> Vec<String> {
        let is_anyones = |list: &&Crl| self.authorities().any(|authority| list.names(authority));
        self.revocations.lists.iter().filter(|list| !is_anyones(list)).map(|list| list.issuer.to_string()).collect()
    }
}

fn fingerprints(text: &str) -> Result<Vec<[u8; 32]>, CrlError> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line: String = line.split('#').next().unwrap_or_default().replace(':', "").trim().to_owned();
        if line.is_empty() {
            continue;
        }
        let bytes = hex::decode(&line).ok().and_then(|bytes| bytes.try_into().ok());
        found.push(bytes.ok_or(CrlError::Line(index.saturating_add(1)))?);
    }
    Ok(found)
}

/// Which certificates a list speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    All,
    Leaves,
    Authorities,
}

impl Scope {
    const fn covers(self, is_leaf: bool) -> bool {
        match self {
            Self::All => true,
            Self::Leaves => is_leaf,
            Self::Authorities => !is_leaf,
        }
    }
}

/// CertificateList (RFC 5280, 5.1). Not x509-cert's, which reads no lists of version 1; some authorities make no others.
#[derive(Clone, Debug, Sequence)]
struct CertificateList {
    tbs: TbsCertList,
    algorithm: AlgorithmIdentifierOwned,
    signature: BitString,
}

/// TBSCertList (RFC 5280, 5.1).
#[derive(Clone, Debug, Sequence)]
struct TbsCertList {
    #[asn1(optional = "true")]
    version: Option<Version>,
    signature: AlgorithmIdentifierOwned,
    issuer: Name,
    this_update: Time,
    #[asn1(optional = "true")]
    next_update: Option<Time>,
    #[asn1(optional = "true")]
    revoked: Option<Vec<RevokedCert>>,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    extensions: Option<Vec<Extension>>,
}

/// A certificate revocation list, with the bytes that its authority signed.
#[derive(Clone, Debug)]
pub(super) struct Crl {
    issuer: Name,
    algorithm: ObjectIdentifier,
    signature: Vec<u8>,
    signed: Vec<u8>,
    scope: Scope,
    authority_key: Option<Vec<u8>>,
    this_update: Duration,
    next_update: Option<Duration>,
    serials: BTreeSet<Vec<u8>>,
}

impl Crl {
    pub fn parse(der: &[u8]) -> Result<Self, CrlError> {
        if der.len() > MAX_LIST {
            return Err(CrlError::TooLong(der.len()));
        }
        let not_der = |error: der::Error| CrlError::Der(error.to_string());
        let CertificateList { tbs, algorithm, signature } = CertificateList::from_der(der).map_err(not_der)?;
        let signed = first_element(der).map_err(not_der)?;
        let extensions = tbs.extensions.unwrap_or_default();
        if tbs.signature != algorithm || !matches!(tbs.version, None | Some(Version::V2)) {
            return Err(CrlError::Der("its two signature algorithms differ, or it has another version".to_owned()));
        }
        Ok(Self {
            issuer: tbs.issuer,
            algorithm: algorithm.oid,
            signature: signature.as_bytes().unwrap_or_default().to_vec(),
            signed,
            scope: scope(&extensions)?,
            authority_key: authority_key(&extensions).map_err(not_der)?,
            this_update: tbs.this_update.to_unix_duration(),
            next_update: tbs.next_update.as_ref().map(|time| time.to_unix_duration()),
            serials: tbs.revoked.unwrap_or_default().iter().map(serial).collect::<Result<_, _>>()?,
        })
    }

    /// Whether it says that it is this authority's: by its name or by its key.
    fn names(&self, issuer: &ParsedCertificate) -> bool {
        let subject = issuer.certificate.tbs_certificate().subject();
        distinguished_name::is_same(&self.issuer, subject) || self.names_key_of(issuer) == Some(true)
    }

    /// Whether it names this authority's key; `None` where not both say which key it is.
    fn names_key_of(&self, issuer: &ParsedCertificate) -> Option<bool> {
        let tbs = issuer.certificate.tbs_certificate();
        let (_, key) = tbs.get_extension::<SubjectKeyIdentifier>().ok().flatten()?;
        Some(self.authority_key.as_deref()? == key.0.as_bytes())
    }

    /// Whether it names another key than `issuer`'s, and one of `authorities` has that key and signed it.
    fn is_by_another<'a>(
        &self,
        issuer: &ParsedCertificate,
        mut authorities: impl Iterator<Item = &'a ParsedCertificate>,
    ) -> bool {
        self.names_key_of(issuer) == Some(false)
            && authorities.any(|other| self.names_key_of(other) == Some(true) && self.verify(other).is_ok())
    }

    fn verify(&self, issuer: &ParsedCertificate) -> Result<(), String> {
        let usage = issuer.certificate.tbs_certificate().get_extension::<KeyUsage>();
        if !matches!(usage, Ok(None)) && !matches!(usage, Ok(Some((_, usage))) if usage.crl_sign()) {
            return Err("its key may not sign revocation lists".to_owned());
        }
        issuer.verify_signature(self.algorithm, &self.signed, &self.signature).map_err(|error| error.to_string())
    }
}

/// The bytes of the first element within a sequence: what is signed, as it was received.
fn first_element(der: &[u8]) -> Result<Vec<u8>, der::Error> {
    let mut reader = SliceReader::new(der)?;
    der::Header::decode(&mut reader)?;
    reader.tlv_bytes().map(<[u8]>::to_vec)
}

/// Refuses lists that are only a part: what they do not name may be revoked all the same.
fn scope(extensions: &[Extension]) -> Result<Scope, CrlError> {
    let mut scope = Scope::All;
    for extension in extensions {
        let partial = CrlError::Partial(extension.extn_id);
        if extension.extn_id == ISSUING_DISTRIBUTION_POINT {
            let point =
                IssuingDistributionPoint::from_der(extension.extn_value.as_bytes()).map_err(|_| partial.clone())?;
            let others = point.indirect_crl || point.only_contains_attribute_certs || point.only_some_reasons.is_some();
            scope = match (point.only_contains_user_certs, point.only_contains_ca_certs) {
                _ if others => return Err(partial),
                (false, false) => Scope::All,
                (true, false) => Scope::Leaves,
                (false, true) => Scope::Authorities,
                (true, true) => return Err(partial),
            };
        } else if extension.critical && ![AuthorityKeyIdentifier::OID, CrlNumber::OID].contains(&extension.extn_id) {
            return Err(partial);
        }
    }
    Ok(scope)
}

fn authority_key(extensions: &[Extension]) -> Result<Option<Vec<u8>>, der::Error> {
    let Some(extension) = extensions.iter().find(|one| one.extn_id == AuthorityKeyIdentifier::OID) else {
        return Ok(None);
    };
    let identifier = AuthorityKeyIdentifier::from_der(extension.extn_value.as_bytes())?;
    Ok(identifier.key_identifier.map(|key| key.as_bytes().to_vec()))
}

/// An entry's serial number. Entries that speak of another authority's certificates would be misread.
fn serial(entry: &RevokedCert) -> Result<Vec<u8>, CrlError> {
    match entry.crl_entry_extensions.iter().flatten().find(|extension| extension.critical) {
        Some(extension) => Err(CrlError::Partial(extension.extn_id)),
        None => Ok(entry.serial_number.as_bytes().to_vec()),
    }
}
