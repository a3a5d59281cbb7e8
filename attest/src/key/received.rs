//! Certificates as their bytes were received: what an issuer signed, and what others hash or quote, is these bytes and no
//! re-encoded copy (RFC 5280, 4.1.1.3).
//!
//! Vendors of TPMs have signed certificates that are not DER (X.690, 11). [`canonical`] undoes three such forms, so that
//! a caller can demand DER apart from them:
//! - the attributes of one part of a name out of order (SET OF, X.690, 11.6): Nuvoton;
//! - `critical` of an extension written although it is FALSE (DEFAULT, X.690, 11.5): Intel;
//! - a date before 2050 as GeneralizedTime (RFC 5280, 4.1.2.5): Alibaba.

use der::asn1::AnyRef;
use der::{Decode as _, Encode as _, Header, Reader as _, SliceReader, Tag, TagNumber};

/// `critical FALSE`, which DER leaves out.
const FALSE: &[u8] = &[0x01, 0x01, 0x00];
/// A date with four digits of the year: `YYYYMMDDHHMMSSZ`.
const GENERALIZED_TIME: &[u8] = &[0x18, 15];
/// A date with two: `YYMMDDHHMMSSZ`.
const UTC_TIME: &[u8] = &[0x17, 13];
/// `[0]`, the version, which is left out of version 1.
const VERSION: u8 = 0xA0;
/// `[3]`, the extensions.
const EXTENSIONS: u8 = 0xA3;
const EXTENSIONS_TAG: Tag = Tag::ContextSpecific { constructed: true, number: TagNumber(3) };

/// Elements of a certificate, each with its tag and length, as they were received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReceivedCertificate<'a> {
    /// The TBSCertificate: what was signed.
    pub tbs: &'a [u8],
    /// The serial number.
    pub serial: &'a [u8],
    /// The issuer's name.
    pub issuer: &'a [u8],
    /// The SubjectPublicKeyInfo.
    pub spki: &'a [u8],
}

impl<'a> ReceivedCertificate<'a> {
    /// Finds the elements of a certificate that begins as RFC 5280, 4.1, has it; what they hold is not read.
    pub fn read(certificate: &'a [u8]) -> der::Result<Self> {
        let tbs = *elements(certificate, Tag::Sequence)?.first().ok_or(Tag::Sequence.value_error())?;
        let fields = elements(tbs, Tag::Sequence)?;
        let fields = fields.get(first_field(&fields)..).unwrap_or_default();
        match fields {
            [serial, _algorithm, issuer, _validity, _subject, spki, ..] => Ok(Self { tbs, serial, issuer, spki }),
            _ => Err(Tag::Sequence.length_error().into()),
        }
    }
}

/// The certificate as it would be in DER, if the three forms above are all that keep it from being so. Whatever else is
/// wrong with it is left as it is.
pub(crate) fn canonical(certificate: &[u8]) -> der::Result<Vec<u8>> {
    rewritten(certificate, Tag::Sequence, |index, part| if index == 0 { tbs(part) } else { Ok(part.to_vec()) })
}

fn tbs(certificate: &[u8]) -> der::Result<Vec<u8>> {
    let before = first_field(&elements(certificate, Tag::Sequence)?);
    rewritten(certificate, Tag::Sequence, |index, part| match index.checked_sub(before) {
        Some(2 | 4) => rewritten(part, Tag::Sequence, |_, set| sorted(set)),
        Some(3) => rewritten(part, Tag::Sequence, |_, date| Ok(utc_time(date))),
        Some(6..) if part.first() == Some(&EXTENSIONS) => rewritten(part, EXTENSIONS_TAG, |_, list| {
            rewritten(list, Tag::Sequence, |_, extension| {
                rewritten(extension, Tag::Sequence, |at, part| {
                    Ok(if at == 1 && part == FALSE { Vec::new() } else { part.to_vec() })
                })
            })
        }),
        _ => Ok(part.to_vec()),
    })
}

/// At which place the serial number is.
fn first_field(fields: &[&[u8]]) -> usize {
    usize::from(fields.first().is_some_and(|first| first.first() == Some(&VERSION)))
}

fn sorted(set: &[u8]) -> der::Result<Vec<u8>> {
    let mut attributes = elements(set, Tag::Set)?;
    attributes.sort_unstable();
    AnyRef::new(Tag::Set, &attributes.concat())?.to_der()
}

fn utc_time(date: &[u8]) -> Vec<u8> {
    match date.strip_prefix(GENERALIZED_TIME).and_then(<[u8]>::split_first_chunk::<2>) {
        Some((b"19", rest)) if rest >= b"50".as_slice() => [UTC_TIME, rest].concat(),
        Some((b"20", rest)) if rest < b"50".as_slice() => [UTC_TIME, rest].concat(),
        _ => date.to_vec(),
    }
}

/// The elements within one that has this tag, each with its own tag and length.
fn elements(element: &[u8], tag: Tag) -> der::Result<Vec<&[u8]>> {
    let mut reader = SliceReader::new(element)?;
    Header::decode(&mut reader)?.tag().assert_eq(tag)?;
    let mut parts = Vec::new();
    while !reader.is_finished() {
        parts.push(reader.tlv_bytes()?);
    }
    Ok(parts)
}

/// The element with each of the elements within it, which are numbered from 0, rewritten.
fn rewritten(element: &[u8], tag: Tag, rewrite: impl Fn(usize, &[u8]) -> der::Result<Vec<u8>>) -> der::Result<Vec<u8>> {
    let mut content = Vec::new();
    for (index, part) in elements(element, tag)?.into_iter().enumerate() {
        content.extend(rewrite(index, part)?);
    }
    AnyRef::new(tag, &content)?.to_der()
}
