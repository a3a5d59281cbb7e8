//! Endorsement keys, their certificates and chains: N28 to N30 and N34 (N31 is in n_revocation.rs, N32 in the verifier). `genuine_certificates_pass` is the twin without the
//! defect.

mod software_ca;
mod software_tpm;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portcullis_attest::endorsement::{CredentialError, EkRoots, EndorsementKey, make_credential};
use portcullis_attest::key::PublicArea;
use portcullis_attest::reason::ReasonCode as Code;
use software_ca::*;
use software_tpm::{ECC, P256, Public, SoftTpm, codes, ek};

/// 2030, within every certificate's validity.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_900_000_000)
}

/// A vendor: root, intermediate, and the endorsement key that it certifies.
struct Vendor {
    root: Authority,
    issuing: Authority,
    ek: Public,
    leaf: Certificate,
}

impl Vendor {
    fn new() -> Self {
        let ek = ek();
        let leaf = ek_certificate("issuing", spki(&ek), KEY_ENCIPHERMENT);
        Self { root: Authority::new("root", "root"), issuing: Authority::new("issuing", "root"), ek, leaf }
    }

    fn roots(&self) -> EkRoots {
        EkRoots::from_dir_files([("root.der", self.root.self_signed())]).unwrap()
    }

    /// The codes for which this vendor's certificate is refused.
    fn refused(&self) -> Vec<Code> {
        self.refused_der(&self.leaf.signed_by(&self.issuing))
    }

    fn refused_der(&self, leaf: &[u8]) -> Vec<Code> {
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

fn spki(key: &Public) -> Vec<u8> {
    PublicArea::parse(&key.bytes()).unwrap().spki_der().unwrap()
}

fn after(change: impl FnOnce(&mut Vendor)) -> Vec<Code> {
    let mut vendor = Vendor::new();
    change(&mut vendor);
    vendor.refused()
}

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
    vendor.leaf.replace(key_usage(KEY_ENCIPHERMENT));
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
fn n34_der_has_one_form() {
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
    assert_eq!(vendor.refused_der(&[0; 9000]), malformed);
    assert_eq!(vendor.refused_der(&[]), malformed);
    for length in (0..leaf.len()).step_by(7) {
        assert_eq!(vendor.refused_der(&leaf[..length]), malformed, "cut to {length} bytes");
    }
    // The outer length written with one byte more than it needs.
    let mut longer = leaf.clone();
    longer.splice(1..2, [0x83, 0x00]);
    assert_eq!(vendor.refused_der(&longer), malformed);
    // A default that DER leaves out: critical FALSE, written although it is the default.
    let mut explicit = Vendor::new();
    explicit.leaf.remove(EXTENDED_KEY_USAGE);
    let usage = tlv(0x04, &[&seq(&[&oid("2.23.133.8.1")])]);
    let written = seq(&[&oid(EXTENDED_KEY_USAGE), &[0x01, 0x01, 0x00], &usage]);
    let hidden = explicit.leaf.signed_with_extra(&explicit.issuing, &written);
    assert_eq!(explicit.refused_der(&hidden), malformed);
    // Twice the same extension.
    let twice = after(|vendor| {
        let again = extended_key_usage("2.23.133.8.1");
        vendor.leaf.extensions.push(again);
    });
    assert_eq!(twice, malformed);
    // An old version has no extensions to rely on.
    assert_eq!(after(|vendor| vendor.leaf.version = 0), malformed);
    assert_eq!(after(|vendor| vendor.leaf.version = 1), malformed);
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
    assert_eq!(check(&Public { exponent: 3, ..ek() }), [Code::EkWeakKey]);
    assert_eq!(check(&Public { name_alg: 0x0010, ..ek() }), [Code::EkMalformed]);
    assert_eq!(check(&Public { name_alg: 0x0004, policy: vec![], ..ek() }), [Code::EkWeakKey]);
    let unprotected = Public { symmetric: software_tpm::NULL.to_be_bytes().to_vec(), ..ek() };
    assert_eq!(check(&unprotected), [Code::EkWeakKey]);
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
