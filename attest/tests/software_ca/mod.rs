//! A TPM vendor in software: certificates in which every field can be wrong, signed all the same.
#![allow(dead_code, reason = "every test file uses some of it")]

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use der::Encode as _;
use der::asn1::ObjectIdentifier;

pub const SHA256_RSA: &str = "1.2.840.113549.1.1.11";
pub const SHA1_RSA: &str = "1.2.840.113549.1.1.5";
pub const ECDSA_SHA1: &str = "1.2.840.10045.4.1";
pub const ECDSA_SHA256: &str = "1.2.840.10045.4.3.2";
pub const BASIC_CONSTRAINTS: &str = "2.5.29.19";
pub const KEY_USAGE: &str = "2.5.29.15";
pub const EXTENDED_KEY_USAGE: &str = "2.5.29.37";
pub const ALTERNATIVE_NAME: &str = "2.5.29.17";
pub const NAME_CONSTRAINTS: &str = "2.5.29.30";
pub const AUTHORITY_KEY: &str = "2.5.29.35";
pub const SUBJECT_KEY: &str = "2.5.29.14";
pub const AUTHORITY_INFORMATION: &str = "1.3.6.1.5.5.7.1.1";

/// One DER element.
pub fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut out = vec![tag];
    match content.len() {
        short @ 0..=127 => out.push(u8::try_from(short).unwrap()),
        long => {
            let bytes = u16::try_from(long).unwrap().to_be_bytes();
            let bytes = if bytes[0] == 0 { &bytes[1..] } else { &bytes[..] };
            out.push(0x80 | u8::try_from(bytes.len()).unwrap());
            out.extend(bytes);
        }
    }
    out.extend(content);
    out
}

pub fn seq(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, parts)
}

pub fn oid(text: &str) -> Vec<u8> {
    ObjectIdentifier::new(text).unwrap().to_der().unwrap()
}

/// A distinguished name with one common name; empty for "".
pub fn name(common: &str) -> Vec<u8> {
    const UTF8_STRING: u8 = 0x0C;
    if common.is_empty() { seq(&[]) } else { name_as(UTF8_STRING, common) }
}

/// The same with a string of another type.
pub fn name_as(tag: u8, common: &str) -> Vec<u8> {
    let attribute = seq(&[&oid("2.5.4.3"), &tlv(tag, &[common.as_bytes()])]);
    seq(&[&tlv(0x31, &[&attribute])])
}

pub const PRINTABLE_STRING: u8 = 0x13;

/// An extension.
#[derive(Clone)]
pub struct Extension {
    pub oid: &'static str,
    pub critical: bool,
    pub value: Vec<u8>,
}

impl Extension {
    fn der(&self) -> Vec<u8> {
        let critical: &[u8] = if self.critical { &[0x01, 0x01, 0xFF] } else { &[] };
        seq(&[&oid(self.oid), critical, &tlv(0x04, &[&self.value])])
    }
}

/// `CA:TRUE`, with a path length or without.
pub fn authority(path_length: Option<u8>) -> Extension {
    let length = path_length.map_or(Vec::new(), |length| tlv(0x02, &[&[length]]));
    Extension { oid: BASIC_CONSTRAINTS, critical: true, value: seq(&[&[0x01, 0x01, 0xFF], &length]) }
}

/// A key usage: the bit string's first byte, with as many unused bits as DER wants.
pub fn key_usage(bits: u8) -> Extension {
    let unused = u8::try_from(bits.trailing_zeros()).unwrap();
    Extension { oid: KEY_USAGE, critical: true, value: tlv(0x03, &[&[unused, bits]]) }
}

pub const KEY_ENCIPHERMENT: u8 = 0x20;
pub const KEY_AGREEMENT: u8 = 0x08;
pub const KEY_CERT_SIGN: u8 = 0x04;
pub const CRL_SIGN: u8 = 0x02;
pub const DIGITAL_SIGNATURE: u8 = 0x80;

pub fn extended_key_usage(usage: &str) -> Extension {
    Extension { oid: EXTENDED_KEY_USAGE, critical: false, value: seq(&[&oid(usage)]) }
}

/// A directory name in the alternative names, as vendors name their TPMs.
pub fn alternative_name(critical: bool) -> Extension {
    let directory = tlv(0xA4, &[&name("id:00001014")]);
    Extension { oid: ALTERNATIVE_NAME, critical, value: seq(&[&directory]) }
}

/// The identifier of the issuer's key.
pub fn authority_key(id: &[u8]) -> Extension {
    Extension { oid: AUTHORITY_KEY, critical: false, value: seq(&[&tlv(0x80, &[id])]) }
}

/// The identifier of the certificate's own key.
pub fn subject_key(id: &[u8]) -> Extension {
    Extension { oid: SUBJECT_KEY, critical: false, value: tlv(0x04, &[id]) }
}

/// The number of a revocation list.
pub fn crl_number(number: u16) -> Extension {
    let bytes = u32::from(number).to_be_bytes();
    // As few as leave it positive.
    let first = (0..3).find(|first| bytes[*first] != 0 || bytes[first + 1] >= 0x80).unwrap_or(3);
    Extension { oid: "2.5.29.20", critical: false, value: tlv(0x02, &[&bytes[first..]]) }
}

/// A name of one part with two attributes, which are as in DER or the other way round: Nuvoton's.
pub fn two_in_one_part(common: &str, in_order: bool) -> Vec<u8> {
    let attribute = |kind: &str, text: &str| seq(&[&oid(kind), &tlv(PRINTABLE_STRING, &[text.as_bytes()])]);
    let (country, common) = (attribute("2.5.4.6", "TW"), attribute("2.5.4.3", common));
    seq(&[&tlv(0x31, &if in_order { [&country, &common] } else { [&common, &country] }.map(Vec::as_slice))])
}

/// Where the issuer's certificate can be had.
pub fn published_at(uri: &str) -> Extension {
    let access = seq(&[&oid("1.3.6.1.5.5.7.48.2"), &tlv(0x86, &[uri.as_bytes()])]);
    Extension { oid: AUTHORITY_INFORMATION, critical: false, value: seq(&[&access]) }
}

/// A certificate, field by field.
#[derive(Clone)]
pub struct Certificate {
    pub version: u8,
    pub issuer: Vec<u8>,
    pub subject: Vec<u8>,
    /// UTCTime, such as "200101000000Z", or with four digits of the year GeneralizedTime.
    pub not_before: &'static str,
    pub not_after: &'static str,
    /// SubjectPublicKeyInfo.
    pub key: Vec<u8>,
    pub algorithm: &'static str,
    pub extensions: Vec<Extension>,
}

impl Certificate {
    /// Puts an extension in the place of the one of the same kind.
    pub fn replace(&mut self, extension: Extension) {
        self.remove(extension.oid);
        self.extensions.push(extension);
    }

    pub fn remove(&mut self, oid: &str) {
        self.extensions.retain(|one| one.oid != oid);
    }

    pub fn signed_by(&self, issuer: &Authority) -> Vec<u8> {
        self.signed_with_extra(issuer, &[])
    }

    /// The certificate with one more extension, given as it is to be written.
    pub fn signed_with_extra(&self, issuer: &Authority, extra: &[u8]) -> Vec<u8> {
        issuer.sign_tbs(&self.tbs(extra), self.algorithm)
    }

    /// The TBSCertificate, with one more extension.
    pub fn tbs(&self, extra: &[u8]) -> Vec<u8> {
        let extensions: Vec<u8> = self.extensions.iter().flat_map(Extension::der).chain(extra.to_vec()).collect();
        seq(&[
            &tlv(0xA0, &[&tlv(0x02, &[&[self.version]])]),
            &tlv(0x02, &[&[SERIAL]]),
            &seq(&[&oid(self.algorithm)]),
            &self.issuer,
            &seq(&[&date(self.not_before), &date(self.not_after)]),
            &self.subject,
            &self.key,
            &tlv(0xA3, &[&seq(&[&extensions])]),
        ])
    }
}

fn date(text: &str) -> Vec<u8> {
    tlv(if text.len() == 15 { 0x18 } else { 0x17 }, &[text.as_bytes()])
}

/// A revocation list, field by field.
pub struct RevocationList {
    /// 1 for version 2; version 1 leaves it out.
    pub version: Option<u8>,
    pub issuer: Vec<u8>,
    /// UTCTime.
    pub this_update: &'static str,
    pub next_update: Option<&'static str>,
    /// Serial numbers; that of every certificate made here is [`SERIAL`].
    pub serials: Vec<u8>,
    /// Of each entry.
    pub entry_extensions: Vec<Extension>,
    pub extensions: Vec<Extension>,
}

/// The serial number of every certificate made here.
pub const SERIAL: u8 = 0x11;

impl RevocationList {
    /// A current list by the authority of this name that revokes nothing.
    pub fn new(issuer: &str) -> Self {
        Self {
            version: Some(1),
            issuer: name(issuer),
            this_update: "200101000000Z",
            next_update: Some("491231235959Z"),
            serials: Vec::new(),
            entry_extensions: Vec::new(),
            extensions: Vec::new(),
        }
    }

    /// The same, revoking every certificate made here that this authority signed.
    pub fn revoking(issuer: &str) -> Self {
        Self { serials: vec![SERIAL], ..Self::new(issuer) }
    }

    pub fn signed_by(&self, issuer: &Authority) -> Vec<u8> {
        let algorithm = seq(&[&oid(ECDSA_SHA256)]);
        let time = |text: &str| tlv(0x17, &[text.as_bytes()]);
        let of_entry: Vec<u8> = self.entry_extensions.iter().flat_map(Extension::der).collect();
        let of_entry = if of_entry.is_empty() { Vec::new() } else { seq(&[&of_entry]) };
        let entry = |serial: &u8| seq(&[&tlv(0x02, &[&[*serial]]), &time(self.this_update), &of_entry]);
        let entries: Vec<u8> = self.serials.iter().flat_map(entry).collect();
        let revoked = if entries.is_empty() { Vec::new() } else { seq(&[&entries]) };
        let extensions: Vec<u8> = self.extensions.iter().flat_map(Extension::der).collect();
        let extensions = if extensions.is_empty() { Vec::new() } else { tlv(0xA0, &[&seq(&[&extensions])]) };
        let tbs = seq(&[
            &self.version.map_or(Vec::new(), |version| tlv(0x02, &[&[version]])),
            &algorithm,
            &self.issuer,
            &time(self.this_update),
            &self.next_update.map_or(Vec::new(), time),
            &revoked,
            &extensions,
        ]);
        issuer.sign_tbs(&tbs, ECDSA_SHA256)
    }
}

/// PEM of one block, as vendors publish it.
pub fn pem(label: &str, der: &[u8]) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    format!("Vendor\r\n-----BEGIN {label}-----\r\n{body}\r\n-----END {label}-----\r\n")
}

/// A certificate authority with a P-256 key.
pub struct Authority {
    pub certificate: Certificate,
    secret: EcdsaKeyPair,
}

impl Authority {
    /// An authority called `subject`, whose certificate says that `issuer` signed it.
    pub fn new(subject: &str, issuer: &str) -> Self {
        Self::with_key(subject, issuer, EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap())
    }

    /// The same with a key of the caller's.
    pub fn with_key(subject: &str, issuer: &str, secret: EcdsaKeyPair) -> Self {
        let algorithm = seq(&[&oid("1.2.840.10045.2.1"), &oid("1.2.840.10045.3.1.7")]);
        let key = seq(&[&algorithm, &tlv(0x03, &[&[0], secret.public_key().as_ref()])]);
        let certificate = Certificate {
            version: 2,
            issuer: name(issuer),
            subject: name(subject),
            not_before: "200101000000Z",
            not_after: "491231235959Z",
            key,
            algorithm: ECDSA_SHA256,
            extensions: vec![authority(None), key_usage(KEY_CERT_SIGN | CRL_SIGN)],
        };
        Self { certificate, secret }
    }

    /// A certificate of these bytes, whatever they say.
    pub fn sign_tbs(&self, tbs: &[u8], algorithm: &str) -> Vec<u8> {
        let signature = self.secret.sign(&SystemRandom::new(), tbs).unwrap();
        seq(&[tbs, &seq(&[&oid(algorithm)]), &tlv(0x03, &[&[0], signature.as_ref()])])
    }

    pub fn self_signed(&self) -> Vec<u8> {
        self.certificate.signed_by(self)
    }
}

/// An endorsement key's certificate as it must be, for the key with this SubjectPublicKeyInfo.
pub fn ek_certificate(issuer: &str, key: Vec<u8>, usage: u8) -> Certificate {
    Certificate {
        version: 2,
        issuer: name(issuer),
        subject: name(""),
        not_before: "200101000000Z",
        not_after: "491231235959Z",
        key,
        algorithm: ECDSA_SHA256,
        extensions: vec![
            Extension { oid: BASIC_CONSTRAINTS, critical: true, value: seq(&[]) },
            key_usage(usage),
            extended_key_usage("2.23.133.8.1"),
            alternative_name(true),
        ],
    }
}
