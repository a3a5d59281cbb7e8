//! A vendor of TPMs made in software, and what the library says of its certificates.
#![allow(dead_code, reason = "every test file uses some of it")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portcullis_attest::endorsement::{EkCertificate, EkRoots, EndorsementKey};
use portcullis_attest::key::PublicArea;
use portcullis_attest::reason::{Reason, ReasonCode as Code};

use crate::software_ca::*;
use crate::software_tpm::{Public, codes, ek};

/// 2030, within every certificate's validity.
pub fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_900_000_000)
}

/// A vendor: root, intermediate, and the endorsement key that it certifies.
pub struct Vendor {
    pub root: Authority,
    pub issuing: Authority,
    pub ek: Public,
    pub leaf: Certificate,
}

impl Vendor {
    pub fn new() -> Self {
        let ek = ek();
        let leaf = ek_certificate("issuing", spki(&ek), KEY_ENCIPHERMENT);
        Self { root: Authority::new("root", "root"), issuing: Authority::new("issuing", "root"), ek, leaf }
    }

    pub fn roots(&self) -> EkRoots {
        EkRoots::from_dir_files([("root.der", self.root.self_signed())]).unwrap()
    }

    /// The reasons for which a certificate is refused with this vendor's intermediate.
    pub fn reasons(&self, leaf: &[u8], roots: &EkRoots) -> Vec<Reason> {
        let issuing = self.issuing.certificate.signed_by(&self.root);
        EkCertificate::check(leaf, &[issuing.as_slice()], roots, now()).err().map(Vec::from).unwrap_or_default()
    }

    /// The codes for which this vendor's certificate is refused.
    pub fn refused(&self) -> Vec<Code> {
        self.refused_der(&self.leaf.signed_by(&self.issuing))
    }

    pub fn refused_der(&self, leaf: &[u8]) -> Vec<Code> {
        let issuing = self.issuing.certificate.signed_by(&self.root);
        let checked = EndorsementKey::check(&self.ek.bytes(), Some(leaf), &[issuing.as_slice()], &self.roots(), now());
        checked.map_or_else(
            |reasons| codes(&reasons),
            |ek| {
                assert!(ek.is_certified());
                Vec::new()
            },
        )
    }
}

pub fn spki(key: &Public) -> Vec<u8> {
    PublicArea::parse(&key.bytes()).unwrap().spki_der().unwrap()
}

pub fn after(change: impl FnOnce(&mut Vendor)) -> Vec<Code> {
    let mut vendor = Vendor::new();
    change(&mut vendor);
    vendor.refused()
}

/// SHA-256 of a certificate, by which an operator names a root.
pub fn fingerprint(der: &[u8]) -> [u8; 32] {
    portcullis_attest::key::Bank::Sha256.hash(der).try_into().unwrap()
}
