//! Endorsement keys, their certificates and chains: N28 to N30 and N100 (N31 and N96 are in n_revocation.rs, N34 in
//! n_encodings.rs, N32 in the verifier). `genuine_certificates_pass` is the twin without the defect.

mod software_ca;
mod software_tpm;
mod vendor;

use portcullis_attest::endorsement::{CredentialError, EkCertificate, EkRoots, EndorsementKey, make_credential};
use portcullis_attest::reason::ReasonCode as Code;
use software_ca::*;
use software_tpm::{ECC, P256, Public, SoftTpm, codes, ek};
use vendor::{Vendor, after, fingerprint, now, spki};

#[test]
fn genuine_certificates_pass() {
    assert_eq!(after(|_| ()), []);
    // With a subject, the alternative name need not be critical; without basic constraints it is no authority either.
    let with_subject = after(|vendor| {
        vendor.leaf.subject = name("TPM");
        vendor.leaf.replace(alternative_name(false));
        vendor.leaf.remove(BASIC_CONSTRAINTS);
    });
    assert_eq!(with_subject, []);
    // Other usages beside the endorsement key's.
    let usages = seq(&[&oid("1.3.6.1.5.5.7.3.2"), &oid("2.23.133.8.1")]);
    let usages = Extension { oid: EXTENDED_KEY_USAGE, critical: false, value: usages };
    assert_eq!(after(|vendor| vendor.leaf.replace(usages)), []);
    // Policies may be critical.
    let policies = Extension { oid: "2.5.29.32", critical: true, value: seq(&[&seq(&[&oid("2.23.133.8.1")])]) };
    assert_eq!(after(|vendor| vendor.leaf.replace(policies)), []);
    // A path length that is long enough.
    assert_eq!(after(|vendor| vendor.root.certificate.replace(authority(Some(1)))), []);
    assert_eq!(after(|vendor| vendor.issuing.certificate.replace(authority(Some(0)))), []);

    // The fingerprint is of the key, so it is the same without a certificate, and then nobody vouches for it.
    let vendor = Vendor::new();
    let leaf = vendor.leaf.signed_by(&vendor.issuing);
    let issuing = vendor.issuing.certificate.signed_by(&vendor.root);
    let certified =
        EndorsementKey::check(&vendor.ek.bytes(), Some(&leaf), &[&issuing], &vendor.roots(), now()).unwrap();
    let bare = EndorsementKey::check(&vendor.ek.bytes(), None, &[], &EkRoots::default(), now()).unwrap();
    assert_eq!(certified.root(), Some("CN=root"));
    assert_eq!(certified.fingerprint(), bare.fingerprint());
    assert!(!bare.is_certified());

    // Intermediates may lie beside the roots, in PEM with other text around.
    let chain = [vendor.root.self_signed(), issuing.clone()].map(|der| pem("CERTIFICATE", &der)).concat();
    let roots = EkRoots::from_dir_files([("chain.pem", chain)]).unwrap();
    assert_eq!(roots.root_count(), 1);
    EndorsementKey::check(&vendor.ek.bytes(), Some(&leaf), &[], &roots, now()).unwrap();
}

#[test]
fn genuine_ecc_certificates_pass() {
    let mut vendor = Vendor::new();
    vendor.ek = Public { kind: ECC, size: P256, unique: SoftTpm::new().ak.unique, ..ek() };
    vendor.leaf = ek_certificate("issuing", spki(&vendor.ek), KEY_AGREEMENT);
    assert_eq!(vendor.refused(), []);
    // Intel's say that their key enciphers.
    vendor.leaf.replace(key_usage(KEY_ENCIPHERMENT));
    assert_eq!(vendor.refused(), []);
    vendor.leaf.replace(key_usage(DIGITAL_SIGNATURE));
    assert_eq!(vendor.refused(), [Code::EkCertificateKeyUsage]);
    vendor.leaf.remove(KEY_USAGE);
    assert_eq!(vendor.refused(), [Code::EkCertificateKeyUsage]);
}

#[test]
fn n28_validity() {
    assert_eq!(after(|vendor| vendor.leaf.not_after = "210101000000Z"), [Code::EkCertificateExpired]);
    assert_eq!(after(|vendor| vendor.leaf.not_before = "450101000000Z"), [Code::EkCertificateNotYetValid]);
    let issuing = after(|vendor| vendor.issuing.certificate.not_after = "210101000000Z");
    assert_eq!(issuing, [Code::EkCertificateExpired]);
    let root = after(|vendor| vendor.root.certificate.not_before = "450101000000Z");
    assert_eq!(root, [Code::EkCertificateNotYetValid]);
}

#[test]
fn n28_what_the_certificate_is_for() {
    assert_eq!(after(|vendor| vendor.leaf.replace(authority(None))), [Code::EkCertificateCa]);
    for usage in [KEY_AGREEMENT, DIGITAL_SIGNATURE, KEY_CERT_SIGN] {
        assert_eq!(after(|vendor| vendor.leaf.replace(key_usage(usage))), [Code::EkCertificateKeyUsage]);
    }
    assert_eq!(after(|vendor| vendor.leaf.remove(KEY_USAGE)), [Code::EkCertificateKeyUsage]);
    // An AK certificate's usage, a TLS client's, and none.
    for usage in ["2.23.133.8.3", "1.3.6.1.5.5.7.3.2"] {
        let refused = after(|vendor| vendor.leaf.replace(extended_key_usage(usage)));
        assert_eq!(refused, [Code::EkCertificateExtendedKeyUsage]);
    }
    assert_eq!(after(|vendor| vendor.leaf.remove(EXTENDED_KEY_USAGE)), [Code::EkCertificateExtendedKeyUsage]);
}

#[test]
fn n28_a_name_that_binds() {
    assert_eq!(after(|vendor| vendor.leaf.replace(alternative_name(false))), [Code::EkCertificateSubject]);
    assert_eq!(after(|vendor| vendor.leaf.remove(ALTERNATIVE_NAME)), [Code::EkCertificateSubject]);
    let dns = Extension { oid: ALTERNATIVE_NAME, critical: true, value: seq(&[&tlv(0x82, &[b"tpm"])]) };
    assert_eq!(after(|vendor| vendor.leaf.replace(dns)), [Code::EkCertificateSubject]);
}

#[test]
fn n28_critical_extensions_that_are_not_understood() {
    let constraints = Extension { oid: NAME_CONSTRAINTS, critical: true, value: seq(&[]) };
    let leaf = after(|vendor| vendor.leaf.replace(constraints.clone()));
    assert_eq!(leaf, [Code::EkCertificateExtension]);
    let issuing = after(|vendor| vendor.issuing.certificate.replace(constraints));
    assert_eq!(issuing, [Code::EkCertificateExtension]);
}

#[test]
fn n29_another_key() {
    assert_eq!(after(|vendor| vendor.ek = ek()), [Code::EkCertificateKeyMismatch]);
    // The same modulus with another exponent is another key.
    assert_eq!(after(|vendor| vendor.ek.exponent = 65_539), [Code::EkCertificateKeyMismatch]);
}

#[test]
fn n30_chains_that_do_not_hold() {
    let vendor = Vendor::new();
    let (leaf, issuing) = (vendor.leaf.signed_by(&vendor.issuing), vendor.issuing.certificate.signed_by(&vendor.root));
    let check = |roots: &EkRoots, sent: &[&[u8]]| {
        EndorsementKey::check(&vendor.ek.bytes(), Some(&leaf), sent, roots, now())
            .map_or_else(|reasons| codes(&reasons), |_| Vec::new())
    };
    assert_eq!(check(&vendor.roots(), &[&issuing]), []);
    assert_eq!(check(&Vendor::new().roots(), &[&issuing]), [Code::EkChainInvalid], "a root of the same name");
    assert_eq!(check(&EkRoots::default(), &[&issuing]), [Code::EkRootUnknown]);
    assert_eq!(check(&vendor.roots(), &[]), [Code::EkRootUnknown], "the intermediate is missing");
    // A host cannot send its own root along.
    let root = vendor.root.self_signed();
    assert!(!check(&EkRoots::default(), &[&issuing, &root]).is_empty());
    // A loop of intermediates ends.
    let looping = vendor.issuing.certificate.signed_by(&vendor.issuing);
    assert!(!check(&vendor.roots(), &[&looping, &looping]).is_empty());
    assert_eq!(check(&vendor.roots(), &[issuing.as_slice(); 9]), [Code::EkChainInvalid]);

    // Signed by another key than the issuer's, and by someone who is no authority.
    let vendor = Vendor::new();
    assert_eq!(vendor.refused_der(&vendor.leaf.signed_by(&vendor.root)), [Code::EkChainInvalid]);
    let end_entity = after(|vendor| {
        vendor.issuing.certificate.replace(Extension { oid: BASIC_CONSTRAINTS, critical: true, value: seq(&[]) });
    });
    assert_eq!(end_entity, [Code::EkChainInvalid]);
    assert_eq!(after(|vendor| vendor.issuing.certificate.remove(BASIC_CONSTRAINTS)), [Code::EkChainInvalid]);
    let usage = after(|vendor| vendor.issuing.certificate.replace(key_usage(DIGITAL_SIGNATURE)));
    assert_eq!(usage, [Code::EkChainInvalid]);
    // The root allows no authority below itself.
    let length = after(|vendor| vendor.root.certificate.replace(authority(Some(0))));
    assert_eq!(length, [Code::EkChainInvalid]);
}

/// A chain of as many authorities as are followed, and of one more.
#[test]
fn n30_chains_without_end() {
    let ek = ek();
    let of_length = |length: usize| {
        let names: Vec<_> =
            (0..=length).map(|number| if number == 0 { "root".into() } else { number.to_string() }).collect();
        let mut all = vec![Authority::new("root", "root")];
        all.extend(names.windows(2).map(|names| Authority::new(&names[1], &names[0])));
        let sent: Vec<_> = all.windows(2).map(|pair| pair[1].certificate.signed_by(&pair[0])).collect();
        let leaf = ek_certificate(&names[length], spki(&ek), KEY_ENCIPHERMENT).signed_by(&all[length]);
        let roots = EkRoots::from_dir_files([("root.der", all[0].self_signed())]).unwrap();
        let sent: Vec<_> = sent.iter().map(Vec::as_slice).collect();
        EndorsementKey::check(&ek.bytes(), Some(&leaf), &sent, &roots, now()).map_err(|reasons| codes(&reasons))
    };
    of_length(5).unwrap();
    assert_eq!(of_length(6).unwrap_err(), [Code::EkChainInvalid]);
}

/// Authorities that certify one another in every order: thousands of ways up, of which none leads to a root.
#[test]
fn n30_the_search_for_a_root_ends() {
    let (ek, [one, other]) =
        (ek(), [("one", "other"), ("other", "one")].map(|(name, issuer)| Authority::new(name, issuer)));
    let leaf = ek_certificate("one", spki(&ek), KEY_ENCIPHERMENT).signed_by(&one);
    let sent: Vec<_> =
        (0..4).flat_map(|_| [one.certificate.signed_by(&other), other.certificate.signed_by(&one)]).collect();
    let sent: Vec<_> = sent.iter().map(Vec::as_slice).collect();
    let roots = EkRoots::from_dir_files([("root.der", Authority::new("root", "root").self_signed())]).unwrap();
    let reasons = EndorsementKey::check(&ek.bytes(), Some(&leaf), &sent, &roots, now()).unwrap_err();
    assert!(reasons.len() < 200, "{} reasons", reasons.len());
    assert!(reasons.iter().any(|reason| reason.found.as_deref() == Some("more than 64 signatures to check")));
}

#[test]
fn n30_a_missing_root_is_named_as_far_as_its_certificates_tell() {
    let mut vendor = Vendor::new();
    vendor.issuing.certificate.replace(authority_key(&[0xAB, 0xCD]));
    vendor.issuing.certificate.replace(published_at("http://tpm.example/root.crt"));
    let issuing = vendor.issuing.certificate.signed_by(&vendor.root);
    let leaf = vendor.leaf.signed_by(&vendor.issuing);
    let check = |roots: &EkRoots| EndorsementKey::check(&vendor.ek.bytes(), Some(&leaf), &[&issuing], roots, now());
    check(&vendor.roots()).unwrap();
    let reasons = check(&EkRoots::default()).unwrap_err();
    let expected = "a root or intermediate CN=root, key identifier abcd, published at http://tpm.example/root.crt";
    assert_eq!(reasons[0].expected.as_deref(), Some(expected));
    assert_eq!(reasons[0].found.as_deref(), Some("no such certificate for CN=issuing"));
}

#[test]
fn n30_sha1() {
    assert_eq!(after(|vendor| vendor.leaf.algorithm = ECDSA_SHA1), [Code::EkChainWeakSignature]);
    let issuing = after(|vendor| vendor.issuing.certificate.algorithm = ECDSA_SHA1);
    assert_eq!(issuing, [Code::EkChainWeakSignature]);
    assert_eq!(after(|vendor| vendor.leaf.algorithm = SHA1_RSA), [Code::EkChainWeakSignature]);
    // An algorithm that is sound but not that of the issuer's key.
    assert_eq!(after(|vendor| vendor.leaf.algorithm = SHA256_RSA), [Code::EkChainInvalid]);
}

#[test]
fn n28_what_is_missing_is_called_missing() {
    let found = |change: &dyn Fn(&mut Certificate)| {
        let mut vendor = Vendor::new();
        change(&mut vendor.leaf);
        let reasons = vendor.reasons(&vendor.leaf.signed_by(&vendor.issuing), &vendor.roots());
        reasons[0].found.clone().unwrap()
    };
    assert_eq!(found(&|leaf| leaf.remove(KEY_USAGE)), "missing");
    assert_eq!(found(&|leaf| leaf.replace(key_usage(DIGITAL_SIGNATURE))), "other usages");
    assert!(found(&|leaf| leaf.remove(EXTENDED_KEY_USAGE)).starts_with("missing; "));
    assert_eq!(found(&|leaf| leaf.replace(extended_key_usage("2.23.133.8.3"))), "1 other usages");
    let vendor = Vendor::new();
    for (foreign, words) in [(&b"<html>"[..], "neither DER nor PEM"), (b"0123", "a text"), (b"", "it is empty")] {
        let found = vendor.reasons(foreign, &vendor.roots())[0].found.clone().unwrap();
        assert!(found.starts_with("not a certificate: ") && found.contains(words), "{found}");
    }
}

/// GCP's certificates do not say that they are an endorsement key's: their root is to be named by the operator.
#[test]
fn n28_a_missing_extended_key_usage_is_for_the_operator_to_allow() {
    let mut vendor = Vendor::new();
    vendor.leaf.remove(EXTENDED_KEY_USAGE);
    let leaf = vendor.leaf.signed_by(&vendor.issuing);
    let (root, other) = (vendor.root.self_signed(), Authority::new("other", "other").self_signed());
    let roots = || EkRoots::from_dir_files([("root.der", &root), ("other.der", &other)]).unwrap();
    let allowing = |roots: EkRoots, der: &[u8]| roots.allow_missing_usage(&[fingerprint(der)]).unwrap();
    let refused = |leaf: &[u8], roots: &EkRoots| codes(&vendor.reasons(leaf, roots));
    assert_eq!(refused(&leaf, &roots()), [Code::EkCertificateExtendedKeyUsage]);
    assert_eq!(refused(&leaf, &allowing(roots(), &root)), []);
    // For this root and no other.
    assert_eq!(refused(&leaf, &allowing(roots(), &other)), [Code::EkCertificateExtendedKeyUsage]);
    // Missing is not another one, and nothing else may be missing.
    vendor_with(
        &vendor,
        |leaf| leaf.replace(extended_key_usage("2.23.133.8.3")),
        |leaf| {
            assert_eq!(refused(leaf, &allowing(roots(), &root)), [Code::EkCertificateExtendedKeyUsage]);
        },
    );
    vendor_with(
        &vendor,
        |leaf| leaf.remove(KEY_USAGE),
        |leaf| {
            assert_eq!(refused(leaf, &allowing(roots(), &root)), [Code::EkCertificateKeyUsage]);
        },
    );
    // A root that is not there was mistyped.
    let unknown = fingerprint(b"mistyped");
    assert_eq!(roots().allow_missing_usage(&[fingerprint(&root), unknown]).unwrap_err(), [unknown]);
}

fn vendor_with(vendor: &Vendor, change: impl FnOnce(&mut Certificate), then: impl FnOnce(&[u8])) {
    let mut leaf = vendor.leaf.clone();
    change(&mut leaf);
    then(&leaf.signed_by(&vendor.issuing));
}

/// An operator may trust one authority of a vendor and not its root.
#[test]
fn n30_an_intermediate_is_an_anchor_if_the_operator_says_so() {
    let vendor = Vendor::new();
    let (leaf, issuing) = (vendor.leaf.signed_by(&vendor.issuing), vendor.issuing.certificate.signed_by(&vendor.root));
    let file = |name: &str, der: &[u8]| (name.to_owned(), Ok(der.to_vec()));
    let check = |roots: &EkRoots, leaf: &[u8]| {
        EndorsementKey::check(&vendor.ek.bytes(), Some(leaf), &[], roots, now())
            .map(|ek| ek.root().map(str::to_owned))
            .map_err(|reasons| codes(&reasons))
    };
    let anchored = EkRoots::from_files([], [file("issuing.der", &issuing)]).unwrap();
    assert_eq!(anchored.root_count(), 1);
    assert_eq!(check(&anchored, &leaf), Ok(Some("CN=issuing".to_owned())));
    // Among the roots it proves nothing; nor does an anchor say anything of its vendor's other authorities.
    let among_roots = EkRoots::from_files([file("issuing.der", &issuing)], []).unwrap();
    assert_eq!((among_roots.root_count(), check(&among_roots, &leaf)), (0, Err(vec![Code::EkRootUnknown])));
    let other = Authority::new("other", "root");
    let by_other = Certificate { issuer: name("other"), ..vendor.leaf.clone() }.signed_by(&other);
    assert_eq!(check(&anchored, &by_other), Err(vec![Code::EkRootUnknown]));
    // It must be an authority all the same, and be valid.
    let no_authority: fn(&mut Certificate) = |issuing| issuing.remove(BASIC_CONSTRAINTS);
    let cases = [
        (no_authority, Code::EkChainInvalid),
        (|issuing: &mut Certificate| issuing.not_after = "210101000000Z", Code::EkCertificateExpired),
    ];
    for (change, code) in cases {
        let mut changed = vendor.issuing.certificate.clone();
        change(&mut changed);
        let roots = EkRoots::from_files([], [file("issuing.der", &changed.signed_by(&vendor.root))]).unwrap();
        assert_eq!(check(&roots, &leaf), Err(vec![code]));
    }
}

/// One bad file does not take away the roots of every other vendor.
#[test]
fn n30_a_file_that_is_no_certificate_is_skipped_and_named() {
    let vendor = Vendor::new();
    let (root, leaf) = (vendor.root.self_signed(), vendor.leaf.signed_by(&vendor.issuing));
    let other = pem("CERTIFICATE", &Authority::new("other", "other").self_signed());
    let cut = &other.as_bytes()[..other.len() - 40];
    let torn = root[..root.len() - 1].to_vec();
    for (name, bad) in [
        ("README", b"Roots of our vendors".as_slice()),
        ("empty.pem", b""),
        ("cut.pem", cut),
        ("torn.der", &torn),
        ("two.der", &[root.as_slice(), &root].concat()),
    ] {
        let roots = EkRoots::from_dir_files([("a.der", root.as_slice()), (name, bad)]).unwrap();
        assert_eq!(codes(&vendor.reasons(&leaf, &roots)), [], "{name}");
        assert_eq!(roots.skipped().len(), 1, "{name}");
        assert_eq!((roots.skipped()[0].file.as_str(), roots.skipped()[0].number), (name, 1));
        assert!(roots.warnings()[0].starts_with(&format!("skipped {name}: ")), "{:?}", roots.warnings());
        // Nothing is left.
        let error = EkRoots::from_dir_files([(name, bad)]).unwrap_err();
        assert_eq!(error.file, name);
    }
    // Of several in a file the good ones count.
    let both = [
        other.as_bytes(),
        b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
        pem("CERTIFICATE", &root).as_bytes(),
    ]
    .concat();
    let roots = EkRoots::from_dir_files([("chain.pem", &both)]).unwrap();
    assert_eq!((roots.root_count(), roots.skipped()[0].number), (2, 2));
    assert_eq!(codes(&vendor.reasons(&leaf, &roots)), []);
    // One that the system cannot read.
    let unreadable = |name: &str| (name.to_owned(), Err("permission denied".to_owned()));
    let root = ("root.der".to_owned(), Ok(root));
    let roots = EkRoots::from_files([root.clone(), unreadable("b.der")], []).unwrap();
    assert!(roots.warnings()[0].contains("b.der: number 1 in it: it cannot be read: permission denied"));
    assert!(EkRoots::from_files([root, unreadable("b.crl")], []).is_err(), "it may revoke something");
}

/// Nothing that may be a revocation list is skipped.
#[test]
fn n31_a_broken_revocation_list_among_the_roots_is_not_skipped() {
    let vendor = Vendor::new();
    let list = RevocationList::revoking("root").signed_by(&vendor.root);
    let old = RevocationList { version: None, ..RevocationList::revoking("root") }.signed_by(&vendor.root);
    let text = pem("X509 CRL", &list);
    let root = vendor.root.self_signed();
    let with = |name: &str, file: &[u8]| EkRoots::from_dir_files([("root.der", root.as_slice()), (name, file)]);
    for (name, good) in [("list", list.as_slice()), ("list", &old), ("list", text.as_bytes())] {
        assert_eq!(with(name, good).unwrap().revocations().crl_count(), 1);
        assert!(with(name, &good[..good.len() - 30]).is_err(), "{good:02x?}");
    }
    for name in ["root.crl", "ROOT.CRL", "root.crl.pem", "root.crl.gz"] {
        assert!(with(name, b"\x1f\x8b what was packed").is_err(), "{name}");
    }
}

/// An issuing authority's extended key usage says what it may certify. Intel's and Google's have the endorsement keys'.
#[test]
fn n100_an_issuing_authority_with_an_extended_key_usage() {
    for usage in ["2.23.133.8.1", "2.5.29.37.0"] {
        for critical in [true, false] {
            let usage = Extension { critical, ..extended_key_usage(usage) };
            assert_eq!(after(|vendor| vendor.issuing.certificate.replace(usage.clone())), []);
            assert_eq!(after(|vendor| vendor.root.certificate.replace(usage)), []);
        }
    }
    // One that certifies attestation keys, or TLS servers, does not certify endorsement keys.
    for usage in ["2.23.133.8.3", "1.3.6.1.5.5.7.3.1"] {
        let refused = after(|vendor| vendor.issuing.certificate.replace(extended_key_usage(usage)));
        assert_eq!(refused, [Code::EkChainInvalid]);
        assert_eq!(after(|vendor| vendor.root.certificate.replace(extended_key_usage(usage))), [Code::EkChainInvalid]);
    }
    let unreadable = Extension { value: vec![0x30, 0x01], ..extended_key_usage("2.23.133.8.1") };
    assert_eq!(after(|vendor| vendor.issuing.certificate.replace(unreadable)), [Code::EkChainInvalid]);
}

/// The usage makes no authority an endorsement key, nor an endorsement key an authority.
#[test]
fn n100_an_endorsement_keys_certificate_is_no_authoritys() {
    let vendor = Vendor::new();
    // Its own certificate, shown as an endorsement key's.
    let mut issuing = vendor.issuing.certificate.clone();
    issuing.replace(extended_key_usage("2.23.133.8.1"));
    issuing.replace(key_usage(KEY_CERT_SIGN | KEY_AGREEMENT));
    let refused = EkCertificate::check(&issuing.signed_by(&vendor.root), &[], &vendor.roots(), now());
    assert!(codes(&refused.unwrap_err()).contains(&Code::EkCertificateCa));
    // An endorsement key's, from which another is to follow.
    for without_constraints in [false, true] {
        let refused = after(|vendor| {
            let mut leaf =
                ek_certificate("root", vendor.issuing.certificate.key.clone(), KEY_ENCIPHERMENT | KEY_CERT_SIGN);
            leaf.subject = name("issuing");
            if without_constraints {
                leaf.remove(BASIC_CONSTRAINTS);
            }
            vendor.issuing.certificate = leaf;
        });
        assert_eq!(refused, [Code::EkChainInvalid]);
    }
}

#[test]
fn endorsement_keys_must_be_what_they_say() {
    let check = |ek: &Public| {
        EndorsementKey::check(&ek.bytes(), None, &[], &EkRoots::default(), now())
            .map_or_else(|reasons| codes(&reasons), |_| Vec::new())
    };
    assert_eq!(check(&ek()), []);
    for bit in [1, 4, 5, 16, 17] {
        let attributes = ek().attributes & !(1 << bit);
        assert_eq!(check(&Public { attributes, ..ek() }), [Code::EkAttributes], "bit {bit} clear");
    }
    assert_eq!(check(&Public { attributes: ek().attributes | 1 << 18, ..ek() }), [Code::EkAttributes]);
    for exponent in [3, 65_536, 65_538] {
        assert_eq!(check(&Public { exponent, ..ek() }), [Code::EkWeakKey], "exponent {exponent}");
    }
    assert_eq!(check(&Public { name_alg: 0x0010, ..ek() }), [Code::EkMalformed]);
    assert_eq!(check(&Public { name_alg: 0x0004, policy: vec![], ..ek() }), [Code::EkWeakKey]);
    let unprotected = Public { symmetric: software_tpm::NULL.to_be_bytes().to_vec(), ..ek() };
    assert_eq!(check(&unprotected), [Code::EkWeakKey]);

    // Also where only the certificate is there.
    let alone = |exponent| {
        let vendor = Vendor::new();
        let leaf = ek_certificate("issuing", spki(&Public { exponent, ..ek() }), KEY_ENCIPHERMENT);
        let issuing = vendor.issuing.certificate.signed_by(&vendor.root);
        EkCertificate::check(&leaf.signed_by(&vendor.issuing), &[&issuing], &vendor.roots(), now())
            .map_or_else(|reasons| codes(&reasons), |_| Vec::new())
    };
    assert_eq!((alone(65_537), alone(3)), (vec![], vec![Code::EkWeakKey]));
}

#[test]
fn credentials_are_made_only_for_names_and_keys_that_bind() {
    let ak = SoftTpm::new().ak.name();
    let tpm_key = ek().bytes();
    make_credential(&tpm_key, &ak, &[1; 32]).unwrap();
    assert!(matches!(make_credential(&tpm_key, &ak, &[]), Err(CredentialError::Secret { length: 0, .. })));
    assert!(matches!(make_credential(&tpm_key, &ak, &[1; 33]), Err(CredentialError::Secret { .. })));
    assert!(matches!(make_credential(&tpm_key, &[0x80, 0, 0, 1], &[1; 32]), Err(CredentialError::Name(4))));
    assert!(matches!(make_credential(&tpm_key[1..], &ak, &[1; 32]), Err(CredentialError::Key(_))));
    // A key that is no storage key.
    let unprotected = Public { symmetric: software_tpm::NULL.to_be_bytes().to_vec(), ..ek() }.bytes();
    assert!(matches!(make_credential(&unprotected, &ak, &[1; 32]), Err(CredentialError::Protect(_))));
}
