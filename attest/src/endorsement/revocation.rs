//! What was revoked: lists that vendors sign (CRLs, RFC 5280, section 5), and the operator's own list of fingerprints.
//!
//! A list counts for the authority that it names, by name or by key. Of several lists that the authority signed for the
//! same scope the newest counts: an old list that was left beside its successor says nothing. If the authority signed none
//! of them, they deny what it vouches for, for one may stand where a good one should. Lists that do not count are told
//! ([`EkRoots::warnings`]). A newest list that should have been replaced denies what it does not name, too, unless the
//! operator accepts old ones: whoever keeps the new list away would else keep a revoked TPM in.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use const_oid::{AssociatedOid as _, ObjectIdentifier};
use der::asn1::BitString;
use der::{Decode as _, Reader as _, Sequence, SliceReader};
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
use super::roots::EkRoots;
use crate::pem;
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
            all.add(name.as_ref(), content.as_ref())
                .map_err(|problem| RevocationsError { file: name.as_ref().to_owned(), problem })?;
        }
        Ok(all)
    }

    fn add(&mut self, name: &str, content: &[u8]) -> Result<(), CrlError> {
        let Ok(text) = std::str::from_utf8(content) else {
            self.lists.push(Crl::parse(content, name)?);
            return Ok(());
        };
        let (blocks, around) = pem::split(text, "X509 CRL");
        for der in blocks {
            self.lists.push(Crl::parse(&der.map_err(|_| CrlError::Pem)?, name)?);
        }
        self.fingerprints.extend(fingerprints(&around)?);
        Ok(())
    }

    /// Adds a CRL that was found among the roots.
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

    /// Whether the operator revoked this certificate, or its key as the certificate has it.
    pub(super) fn names(&self, certificate: &ParsedCertificate) -> bool {
        [certificate.received(), certificate.received_spki()]
            .iter()
            .any(|der| self.names_key(&Sha256::digest(der).into()))
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
        let authority = issuer.subject();
        let mut refuse = |code, found: String| {
            reasons.push(Reason::new(code).event("certificate revocation list").found(found));
        };
        let named = self.lists.iter().filter(|list| list.names(issuer) && list.scope.covers(is_leaf));
        let (mut verified, mut unverified) = (Vec::new(), Vec::new());
        for list in named {
            match list.verify(issuer) {
                Ok(()) => verified.push(list),
                Err(problem) => unverified.push((list, problem)),
            }
        }
        for (list, problem) in unverified {
            // Of two authorities with one name each has its lists.
            if !verified.iter().any(|good| good.has_same_scope_as(list))
                && !list.is_by_another(issuer, authorities.clone())
            {
                refuse(ReasonCode::EkCrlInvalid, format!("{authority}: {problem}"));
            }
        }
        for list in &verified {
            if verified.iter().any(|other| other.this_update <= now && other.supersedes(list)) {
                continue;
            }
            if now < list.this_update {
                refuse(ReasonCode::EkCrlInvalid, format!("{authority}: it is from the future"));
            }
            // A list that does not say when the next one comes (RFC 5280 demands it) could be held up for ever.
            if !self.accept_stale && list.next_update.is_none_or(|next| now > next) {
                refuse(ReasonCode::EkCrlExpired, authority.clone());
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

    /// Lists that do not count because another of the same authority does, each with its file and why.
    pub(super) fn idle_lists(&self) -> Vec<String> {
        let mut told = BTreeSet::new();
        let lists = &self.revocations.lists;
        for authority in self.authorities() {
            let named: Vec<_> = lists.iter().filter(|list| list.names(authority)).collect();
            let (verified, unverified): (Vec<_>, Vec<_>) =
                named.into_iter().partition(|list| list.verify(authority).is_ok());
            for (list, other) in pairs(&verified, &verified).filter(|(list, other)| other.supersedes(list)) {
                let (file, newer) = (&list.file, &other.file);
                told.insert(format!(
                    "{file}: the revocation list of {:?} does not count: {newer} has a newer one",
                    list.issuer.to_string()
                ));
            }
            for (list, other) in pairs(&unverified, &verified).filter(|(list, other)| other.has_same_scope_as(list)) {
                if !list.is_by_another(authority, self.authorities()) {
                    let (file, good) = (&list.file, &other.file);
                    told.insert(format!("{file}: the revocation list of {:?} does not count: its signature does not verify, that of {good} does", list.issuer.to_string()));
                }
            }
        }
        told.into_iter().collect()
    }
}

/// Every pair of a list of the first kind with one of the second.
fn pairs<'l>(first: &'l [&'l Crl], second: &'l [&'l Crl]) -> impl Iterator<Item = (&'l Crl, &'l Crl)> {
    first.iter().flat_map(move |one| second.iter().map(move |other| (*one, *other)))
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
    /// The file that it was found in.
    file: String,
    issuer: Name,
    algorithm: ObjectIdentifier,
    signature: Vec<u8>,
    signed: Vec<u8>,
    scope: Scope,
    /// The content of its issuing distribution point, if it has one: an authority may publish its list in parts.
    point: Option<Vec<u8>>,
    /// Its number, which rises with every list of a scope (RFC 5280, 5.2.3), without leading zeros.
    number: Option<Vec<u8>>,
    authority_key: Option<Vec<u8>>,
    this_update: Duration,
    next_update: Option<Duration>,
    serials: BTreeSet<Vec<u8>>,
}

impl Crl {
    /// Reads a list; `file` is where it was found.
    pub fn parse(der: &[u8], file: &str) -> Result<Self, CrlError> {
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
        let content = |oid| extensions.iter().find(|one| one.extn_id == oid).map(|one| one.extn_value.as_bytes());
        let number = content(CrlNumber::OID).and_then(|content| CrlNumber::from_der(content).ok());
        Ok(Self {
            file: file.to_owned(),
            issuer: tbs.issuer,
            algorithm: algorithm.oid,
            signature: signature.as_bytes().unwrap_or_default().to_vec(),
            signed,
            scope: scope(&extensions)?,
            point: content(ISSUING_DISTRIBUTION_POINT).map(<[u8]>::to_vec),
            number: number.map(|number| number.0.as_bytes().to_vec()),
            authority_key: authority_key(&extensions).map_err(not_der)?,
            this_update: tbs.this_update.to_unix_duration(),
            next_update: tbs.next_update.as_ref().map(|time| time.to_unix_duration()),
            serials: tbs.revoked.unwrap_or_default().iter().map(serial).collect::<Result<_, _>>()?,
        })
    }

    /// Whether both are lists of one issuer for one scope, so that one can stand in the other's place.
    fn has_same_scope_as(&self, other: &Self) -> bool {
        self.point == other.point && distinguished_name::is_same(&self.issuer, &other.issuer)
    }

    /// Whether it was made to replace `older`, if one authority signed both: it has a higher number and is not from before it,
    /// or, where they have not both a number or the same, it is from after it. Of two lists whose numbers and times
    /// contradict each other neither replaces the other.
    fn supersedes(&self, older: &Self) -> bool {
        let by_number = match (&self.number, &older.number) {
            (Some(number), Some(older)) => (number.len(), number).cmp(&(older.len(), older)),
            _ => Ordering::Equal,
        };
        self.has_same_scope_as(older)
            && match by_number {
                Ordering::Greater => self.this_update >= older.this_update,
                Ordering::Equal => self.this_update > older.this_update,
                Ordering::Less => false,
            }
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
