//! How certificates may be encoded: N34. What genuine vendors sign is accepted over the bytes as received, other BER is not.

mod software_ca;
mod software_tpm;
mod vendor;

use portcullis_attest::endorsement::{EkCertificate, EkRoots, Revocations};
use portcullis_attest::reason::ReasonCode as Code;
use portcullis_firmware_fixtures::recorded;
use software_ca::*;
use software_tpm::codes;
use vendor::{Vendor, after, fingerprint, now};

/// A certificate of this vendor's in each of the forms that are no DER but signed by genuine vendors.
#[test]
fn n34_genuine_encodings_are_accepted_over_the_bytes_as_received() {
    // Attributes of one part of a name out of order, in the root and in what it signs: Nuvoton.
    let mut vendor = Vendor::new();
    for certificate in [&mut vendor.root.certificate, &mut vendor.issuing.certificate] {
        certificate.issuer = two_in_one_part("root", false);
    }
    vendor.root.certificate.subject = two_in_one_part("root", false);
    assert_eq!(vendor.refused(), []);
    assert_eq!(vendor.roots().root_count(), 1);
    // An issuer that its subordinate writes in order is the same.
    vendor.issuing.certificate.issuer = two_in_one_part("root", true);
    assert_eq!(vendor.refused(), []);

    // A default that DER leaves out: Intel.
    let mut vendor = Vendor::new();
    vendor.leaf.remove(EXTENDED_KEY_USAGE);
    assert_eq!(vendor.refused_der(&vendor.leaf.signed_with_extra(&vendor.issuing, &explicit(0x00))), []);
    let constraints = Extension { oid: BASIC_CONSTRAINTS, critical: true, value: seq(&[&[0x01, 0x01, 0x00]]) };
    assert_eq!(after(|vendor| vendor.leaf.replace(constraints)), []);
    // A year in four digits that two would do for: Alibaba.
    let dates = after(|vendor| {
        (vendor.leaf.not_before, vendor.leaf.not_after) = ("20200101000000Z", "20491231235959Z");
        vendor.issuing.certificate.not_before = "19990101000000Z";
    });
    assert_eq!(dates, []);
    assert_eq!(after(|vendor| vendor.leaf.not_after = "20500101000000Z"), [], "as it must be");
    assert_eq!(after(|vendor| vendor.leaf.not_after = "20210101000000Z"), [Code::EkCertificateExpired]);

    // What was signed is what was received: the same certificate, put in order after it was signed, does not hold.
    let mut vendor = Vendor::new();
    vendor.leaf.not_after = "20491231235959Z";
    let leaf = vendor.leaf.signed_by(&vendor.issuing);
    vendor.leaf.not_after = "491231235959Z";
    let tbs = vendor.leaf.tbs(&[]);
    let tail = leaf.len() - signed_part(&leaf);
    let reordered = seq(&[&tbs, &leaf[leaf.len() - tail..]]);
    assert_eq!(vendor.refused_der(&leaf), []);
    assert_eq!(vendor.refused_der(&reordered), [Code::EkChainInvalid]);
    // Its fingerprint is that of what was received.
    let revoked = Revocations::from_dir_files([("ours", hex::encode(fingerprint(&leaf)))]).unwrap();
    assert_eq!(codes(&vendor.reasons(&leaf, &vendor.roots().with_revocations(revoked))), [Code::EkRevoked]);
}

/// Where the signature algorithm of a certificate begins.
fn signed_part(certificate: &[u8]) -> usize {
    // Both lengths have two bytes.
    8 + usize::from(u16::from_be_bytes([certificate[6], certificate[7]]))
}

/// The endorsement key's extended usage with its `critical` written out.
fn explicit(critical: u8) -> Vec<u8> {
    let usage = tlv(0x04, &[&seq(&[&oid("2.23.133.8.1")])]);
    seq(&[&oid(EXTENDED_KEY_USAGE), &[0x01, 0x01, critical], &usage])
}

#[test]
fn n34_genuine_encodings_of_real_vendors_are_accepted() {
    let Some(corpus) = recorded::corpus("genuine EK certificates") else { return };
    let corpus = corpus.join("genuine/ek");
    let read = |name: &str| std::fs::read(corpus.join(name)).unwrap();
    let file = |name: &str| (name.to_owned(), read(name));
    let gcp = fingerprint(&read("gcp_ek_ak_ca_root.crt"));
    for (leaf, roots) in [
        ("nuvoton-npct75x-a.der", vec!["nuvoton-root-2111.cer"]),
        ("intel-spth-rsa.der", vec!["intel-root.cer", "intel-spth-issuer.cer"]),
        ("intel-cml-ecc.der", vec!["intel-root.cer", "intel-cml-issuer.cer"]),
        ("gcp-pca-rsa-enc.pem", vec!["gcp_ek_ak_ca_root.crt", "gcp_ek_ak_ca_intermediate_v3.crt"]),
    ] {
        let roots = EkRoots::from_dir_files(roots.into_iter().map(file)).unwrap();
        let der = portcullis_attest::endorsement::pem_certificates(&read(leaf)).unwrap().remove(0);
        let checked = EkCertificate::check(&der, &[], &roots, now());
        if leaf.starts_with("gcp") {
            assert_eq!(codes(&checked.unwrap_err()), [Code::EkCertificateExtendedKeyUsage]);
            EkCertificate::check(&der, &[], &roots.allow_missing_usage(&[gcp]).unwrap(), now()).unwrap();
        } else {
            checked.unwrap_or_else(|reasons| panic!("{leaf}: {reasons:?}"));
        }
    }
}

#[test]
fn n34_ber_is_refused_and_so_is_what_follows_a_certificate() {
    let vendor = Vendor::new();
    let leaf = vendor.leaf.signed_by(&vendor.issuing);
    assert_eq!(vendor.refused_der(&leaf), []);
    // Padding of an NV index is trimmed; anything else is not.
    assert_eq!(vendor.refused_der(&[leaf.as_slice(), &[0; 300]].concat()), []);
    assert_eq!(vendor.refused_der(&[leaf.as_slice(), &[0xFF; 300]].concat()), []);
    let malformed = [Code::EkCertificateMalformed];
    assert_eq!(vendor.refused_der(&[leaf.as_slice(), &[0, 0xFF]].concat()), malformed);
    assert_eq!(vendor.refused_der(&[leaf.as_slice(), &[1]].concat()), malformed);
    assert_eq!(vendor.refused_der(&[leaf.as_slice(), leaf.as_slice()].concat()), malformed);
    assert_eq!(vendor.refused_der(&[leaf.as_slice(), &[0; 9000]].concat()), malformed, "more than any NV index holds");
    assert_eq!(vendor.refused_der(&[]), malformed);
    for length in (0..leaf.len()).step_by(7) {
        assert_eq!(vendor.refused_der(&leaf[..length]), malformed, "cut to {length} bytes");
    }
    // The outer length written with one byte more than it needs.
    let mut longer = leaf.clone();
    longer.splice(1..2, [0x83, 0x00]);
    assert_eq!(vendor.refused_der(&longer), malformed);
    // DER leaves out what is the default: a version 1 is not written.
    let version: &[u8] = &[0xA0, 3, 2, 1, 2];
    let at = leaf.windows(version.len()).position(|bytes| bytes == version).unwrap();
    let mut first = leaf.clone();
    first[at + 4] = 0;
    let reasons = vendor.reasons(&first, &vendor.roots());
    assert!(reasons[0].found.as_ref().unwrap().contains("not in the one form that DER has"), "{reasons:?}");
    // Everything in it is as DER has it, but for one element.
    let mut vendor = Vendor::new();
    vendor.leaf.remove(EXTENDED_KEY_USAGE);
    let usage = tlv(0x04, &[&seq(&[&oid("2.23.133.8.1")])]);
    let extension = |parts: &[&[u8]]| seq(&[&[oid(EXTENDED_KEY_USAGE).as_slice()], parts].concat());
    let with = |extra: &[u8]| vendor.refused_der(&vendor.leaf.signed_with_extra(&vendor.issuing, extra));
    assert_eq!(with(&extension(&[&usage])), []);
    for (what, extra) in [
        ("TRUE is written 0xFF", explicit(0x01)),
        ("FALSE after the value", extension(&[&usage, &[0x01, 0x01, 0x00]])),
        ("FALSE twice", extension(&[&[0x01, 0x01, 0x00], &[0x01, 0x01, 0x00], &usage])),
        ("FALSE in two bytes", extension(&[&[0x01, 0x02, 0x00, 0x00], &usage])),
        ("a string in pieces", extension(&[&tlv(0x24, &[&usage])])),
        ("a length of two bytes where one will do", extension(&[&[&[0x04, 0x81], &usage[1..]].concat()])),
        ("an indefinite length", [&[0x30, 0x80][..], &extension(&[&usage])[2..], &[0, 0]].concat()),
        ("something else behind it", extension(&[&usage, &[0x05, 0x00]])),
    ] {
        assert_eq!(with(&extra), malformed, "{what}");
    }
    for (what, date) in [
        ("no seconds", "202001010000Z"),
        ("a fraction", "20200101000000.0Z"),
        ("a time zone", "20200101000000+0000"),
        ("no such day", "20200231000000Z"),
    ] {
        assert_eq!(after(|vendor| vendor.leaf.not_before = date), malformed, "{what}");
    }
    // Names: parts are in order, whatever the attributes within one are; a set of pieces is none.
    let part = |parts: &[&[u8]]| seq(&[&tlv(0x31, parts)]);
    let attribute = seq(&[&oid("2.5.4.3"), &tlv(0x2C, &[&tlv(0x0C, &[b"TPM"])])]);
    assert_eq!(after(|vendor| vendor.leaf.subject = part(&[&attribute])), malformed, "a constructed string");
    assert_eq!(after(|vendor| vendor.leaf.subject = part(&[])), malformed, "an empty set");
    assert_eq!(after(|vendor| vendor.leaf.subject = name("TPM")), []);
    // Twice the same extension.
    let twice = after(|vendor| {
        let again = extended_key_usage("2.23.133.8.1");
        vendor.leaf.extensions.push(again);
    });
    assert_eq!(twice, malformed);
    let policies = Extension { oid: "2.5.29.32", critical: false, value: seq(&[&seq(&[&oid("2.23.133.8.1")])]) };
    assert_eq!(after(|vendor| vendor.leaf.extensions.push(policies.clone())), []);
    assert_eq!(after(|vendor| vendor.leaf.extensions.extend([policies.clone(), policies.clone()])), malformed);
    // One signature algorithm where the issuer signed, another one outside.
    let tbs = vendor.leaf.tbs(&extension(&[&usage]));
    assert_eq!(vendor.refused_der(&vendor.issuing.sign_tbs(&tbs, ECDSA_SHA256)), []);
    assert_eq!(vendor.refused_der(&vendor.issuing.sign_tbs(&tbs, "1.2.840.10045.4.3.3")), malformed);
    // An old version has no extensions to rely on.
    assert_eq!(after(|vendor| vendor.leaf.version = 0), malformed);
    assert_eq!(after(|vendor| vendor.leaf.version = 1), malformed);
}
