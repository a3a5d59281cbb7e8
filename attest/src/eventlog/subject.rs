//! Finds the subject of a certificate without reading the rest of it: a log shows ten of them, and only their names and
//! fingerprints are asked for.

use der::{Decode as _, Header, Reader as _, SliceReader, Tag};
use x509_cert::name::Name;

/// Longest subject that is kept, in characters.
const MAX_SUBJECT: usize = 256;

/// Longest name that is written out whole where it has no common name, in bytes of its encoding: each of its parts is
/// looked up in a table.
const MAX_NAME: usize = 1024;

/// 2.5.4.3, the content of its encoding.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// The subject's common name where there is one, for the rest of a subject says little more; else all of the subject;
/// `None` if the bytes do not begin as a certificate does (RFC 5280, section 4.1).
pub(super) fn of_certificate(der: &[u8]) -> Option<String> {
    let mut certificate = SliceReader::new(content(der, Tag::Sequence)?).ok()?;
    let mut fields = SliceReader::new(content(certificate.tlv_bytes().ok()?, Tag::Sequence)?).ok()?;
    let first = fields.tlv_bytes().ok()?;
    // The version may be left out; the serial number may not.
    if first.first() == Some(&0xa0) {
        fields.tlv_bytes().ok()?;
    }
    let [_algorithm, _issuer, _validity, subject] = [(); 4].map(|()| fields.tlv_bytes().ok());
    let subject = subject?;
    let name = common_name(subject).or_else(|| {
        let short = Some(subject).filter(|subject| subject.len() <= MAX_NAME)?;
        Some(Name::from_der(short).ok()?.to_string())
    })?;
    Some(name.chars().take(MAX_SUBJECT).collect())
}

/// The first common name of a name.
fn common_name(name: &[u8]) -> Option<String> {
    let mut sets = SliceReader::new(content(name, Tag::Sequence)?).ok()?;
    while !sets.is_finished() {
        let mut attributes = SliceReader::new(content(sets.tlv_bytes().ok()?, Tag::Set)?).ok()?;
        while !attributes.is_finished() {
            let mut attribute = SliceReader::new(content(attributes.tlv_bytes().ok()?, Tag::Sequence)?).ok()?;
            let kind = content(attribute.tlv_bytes().ok()?, Tag::ObjectIdentifier)?;
            if kind == COMMON_NAME {
                return text(attribute.tlv_bytes().ok()?);
            }
        }
    }
    None
}

fn text(der: &[u8]) -> Option<String> {
    let mut reader = SliceReader::new(der).ok()?;
    let header = Header::decode(&mut reader).ok()?;
    let content = reader.read_slice(header.length()).ok()?;
    match header.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String => {
            core::str::from_utf8(content).ok().map(str::to_owned)
        }
        // Of the many letters of T.61 those that are used are Latin-1's.
        Tag::TeletexString => Some(content.iter().copied().map(char::from).collect()),
        Tag::BmpString => {
            let units = content.as_chunks::<2>().0.iter().copied().map(u16::from_be_bytes);
            char::decode_utf16(units).collect::<Result<_, _>>().ok()
        }
        _ => None,
    }
}

/// What is in one element of a kind, if the bytes begin with it.
fn content(der: &[u8], tag: Tag) -> Option<&[u8]> {
    let mut reader = SliceReader::new(der).ok()?;
    let header = Header::decode(&mut reader).ok().filter(|header| header.tag() == tag)?;
    reader.read_slice(header.length()).ok()
}

#[cfg(test)]
mod tests {
    use portcullis_firmware_fixtures::recorded;
    use x509_cert::Certificate;

    use super::*;
    use crate::eventlog::{EventLog, SignatureType, Variable, signature_lists};

    /// Every certificate of the recorded boots' logs.
    fn certificates() -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        for boot in &recorded::ALL {
            for event in EventLog::parse(boot.event_log).unwrap().events() {
                let Ok(variable) = Variable::parse(event.data) else { continue };
                let signatures = signature_lists(variable.data).unwrap_or_default();
                found.extend(
                    signatures
                        .iter()
                        .filter(|s| s.kind == SignatureType::X509)
                        .map(|signature| signature.data.to_vec()),
                );
            }
        }
        assert!(found.len() > 10);
        found
    }

    #[test]
    fn the_subject_is_the_one_that_reading_all_of_the_certificate_gives() {
        for der in certificates() {
            let all = Certificate::from_der(&der).unwrap().tbs_certificate().subject().to_string();
            let name = of_certificate(&der).unwrap();
            assert!(all.split(',').any(|part| part == format!("CN={name}")), "{all}: {name}");
        }
    }

    #[test]
    fn a_subject_without_common_name_is_told_in_full_and_what_is_no_certificate_has_none() {
        // SEQUENCE { SEQUENCE { serial, algorithm, issuer, validity, subject: O=x } }, without version.
        let subject = [0x30, 0x0c, 0x31, 0x0a, 0x30, 0x08, 0x06, 3, 0x55, 4, 10, 0x0c, 1, b'x'];
        let fields = [&[2, 1, 1, 0x30, 0, 0x30, 0, 0x30, 0][..], &subject].concat();
        let size = u8::try_from(fields.len()).unwrap();
        let der = [&[0x30, size + 2, 0x30, size][..], &fields].concat();
        assert_eq!(of_certificate(&der).as_deref(), Some("O=x"));
        for cut in 0..der.len() {
            assert_eq!(of_certificate(&der[..cut]), None, "{cut}");
        }
        let latin = [0x14, 2, b'A', 0xe4];
        assert_eq!(text(&latin).as_deref(), Some("Aä"));
        assert_eq!(text(&[0x1e, 4, 0, b'A', 0, 0xe4]).as_deref(), Some("Aä"));
    }
}
