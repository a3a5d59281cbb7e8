//! Whether two distinguished names are the same (RFC 5280, 7.1): authorities write their own name with one string type in
//! certificates and with another in revocation lists.

use der::asn1::Any;
use der::{Tag, Tagged as _};
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::name::{Name, RelativeDistinguishedName};

/// Whether two names are the same: attribute by attribute, texts without regard to their string type, to case and to how
/// much white space is between words, anything else byte for byte. Texts that only Unicode's normal forms make alike stay
/// different.
pub(super) fn is_same(one: &Name, other: &Name) -> bool {
    let parts = |name: &Name| name.iter_rdn().map(attributes).collect::<Vec<_>>();
    one == other || parts(one) == parts(other)
}

/// An attribute's type and value, in a form that is the same for the same.
type Attribute = (const_oid::ObjectIdentifier, Result<String, Any>);

/// The attributes of one part, in an order that does not depend on how they are encoded.
fn attributes(part: &RelativeDistinguishedName) -> Vec<Attribute> {
    let mut found: Vec<_> = part.iter().map(attribute).collect();
    found.sort_by(|one, other| one.0.cmp(&other.0).then_with(|| one.1.as_ref().ok().cmp(&other.1.as_ref().ok())));
    found
}

fn attribute(attribute: &AttributeTypeAndValue) -> Attribute {
    let value = text(&attribute.value).map(|text| folded(&text));
    (attribute.oid, value.ok_or_else(|| attribute.value.clone()))
}

/// The text of a string, whatever type it is of; `None` for what is none.
fn text(value: &Any) -> Option<String> {
    let bytes = value.value();
    match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::NumericString | Tag::VisibleString => {
            String::from_utf8(bytes.to_vec()).ok()
        }
        // Written as Latin-1 by all who still write it.
        Tag::TeletexString => Some(bytes.iter().copied().map(char::from).collect()),
        Tag::BmpString => {
            let units = bytes.chunks(2).map(|unit| unit.try_into().map(u16::from_be_bytes));
            String::from_utf16(&units.collect::<Result<Vec<_>, _>>().ok()?).ok()
        }
        _ => None,
    }
}

fn folded(text: &str) -> String {
    text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use der::asn1::ObjectIdentifier;
    use der::{Decode as _, Encode as _};

    use super::*;

    const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
    const ORGANIZATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.10");

    fn attribute(oid: ObjectIdentifier, tag: Tag, value: &[u8]) -> AttributeTypeAndValue {
        AttributeTypeAndValue { oid, value: Any::new(tag, value).unwrap() }
    }

    /// A name of these parts, each of some attributes.
    fn name(parts: &[&[AttributeTypeAndValue]]) -> Name {
        let part = |attributes: &&[AttributeTypeAndValue]| {
            RelativeDistinguishedName::try_from(attributes.to_vec()).unwrap().to_der().unwrap()
        };
        let content: Vec<u8> = parts.iter().flat_map(part).collect();
        Name::from_der(&Any::new(Tag::Sequence, content).unwrap().to_der().unwrap()).unwrap()
    }

    fn common(tag: Tag, value: &[u8]) -> Name {
        name(&[&[attribute(COMMON_NAME, tag, value)]])
    }

    #[test]
    fn a_name_is_the_same_in_every_string_type() {
        let utf8 = common(Tag::Utf8String, b"TPM Vendor CA 1");
        for same in [
            common(Tag::PrintableString, b"TPM Vendor CA 1"),
            common(Tag::PrintableString, b"tpm vendor ca 1"),
            common(Tag::Utf8String, b" TPM  Vendor\tCA 1 "),
            common(Tag::TeletexString, b"TPM Vendor CA 1"),
            common(Tag::BmpString, b"\0T\0P\0M\0 \0V\0e\0n\0d\0o\0r\0 \0C\0A\0 \x001"),
        ] {
            assert!(is_same(&utf8, &same) && is_same(&same, &utf8), "{same}");
        }
        for other in [
            common(Tag::PrintableString, b"TPM Vendor CA 2"),
            common(Tag::PrintableString, b"TPM VendorCA 1"),
            common(Tag::OctetString, b"TPM Vendor CA 1"),
            name(&[&[attribute(ORGANIZATION, Tag::Utf8String, b"TPM Vendor CA 1")]]),
            name(&[]),
        ] {
            assert!(!is_same(&utf8, &other) && !is_same(&other, &utf8), "{other}");
        }
        let latin = common(Tag::TeletexString, b"Z\xfcrich");
        assert!(is_same(&latin, &common(Tag::Utf8String, "ZÜRICH".as_bytes())));
        // What is no text is the same only byte for byte.
        let octets = common(Tag::OctetString, b"A");
        assert!(is_same(&octets, &octets.clone()) && !is_same(&octets, &common(Tag::OctetString, b"a")));
    }

    #[test]
    fn parts_are_in_order_and_attributes_of_one_part_in_any() {
        let (cn, o) = (COMMON_NAME, ORGANIZATION);
        let utf8 = |oid, value: &[u8]| attribute(oid, Tag::Utf8String, value);
        let two = name(&[&[utf8(o, b"vendor")], &[utf8(cn, b"ca")]]);
        assert!(is_same(&two, &name(&[&[utf8(o, b"Vendor")], &[utf8(cn, b"CA")]])));
        assert!(!is_same(&two, &name(&[&[utf8(cn, b"ca")], &[utf8(o, b"vendor")]])));
        assert!(!is_same(&two, &name(&[&[utf8(o, b"vendor"), utf8(cn, b"ca")]])));
        assert!(!is_same(&two, &name(&[&[utf8(o, b"vendor")]])));
        // DER orders the attributes of a part by their bytes, which the string type changes.
        let printable = |oid, value: &[u8]| attribute(oid, Tag::PrintableString, value);
        let (one, other) = (
            name(&[&[utf8(cn, b"alpha"), printable(cn, b"gamma")]]),
            name(&[&[printable(cn, b"ALPHA"), utf8(cn, b"GAMMA")]]),
        );
        assert_ne!(one.to_der().unwrap(), other.to_der().unwrap());
        assert!(is_same(&one, &other));
    }
}
