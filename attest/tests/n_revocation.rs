//! What was revoked: N31. `a_vendor_that_revoked_nothing_of_this` is the twin without the defect.

mod software_ca;
mod software_tpm;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portcullis_attest::endorsement::{CrlError, EkCertificate, EkRoots, EndorsementKey, Revocations};
use portcullis_attest::key::{Bank, PublicArea};
use portcullis_attest::reason::{Denial, ReasonCode as Code};
use software_ca::*;
use software_tpm::{Public, codes, ek};

/// 2030, within every certificate's validity.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_900_000_000)
}

/// A vendor: root, intermediate, and the endorsement key that it certifies.
struct Vendor {
    root: Authority,
    issuing: Authority,
    issuing_der: Vec<u8>,
    ek: Public,
    leaf: Vec<u8>,
}

impl Vendor {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut Certificate)) -> Self {
        let (root, mut issuing) = (Authority::new("root", "root"), Authority::new("issuing", "root"));
        change(&mut issuing.certificate);
        let ek = ek();
        let leaf = ek_certificate("issuing", spki(&ek), KEY_ENCIPHERMENT).signed_by(&issuing);
        let issuing_der = issuing.certificate.signed_by(&root);
        Self { root, issuing, issuing_der, ek, leaf }
    }

    /// The codes for which the key is refused, with its certificate and with the certificate alone.
    fn refused(&self, revocations: Revocations) -> Vec<Code> {
        self.refused_by(&self.roots().with_revocations(revocations))
    }

    fn roots(&self) -> EkRoots {
        EkRoots::from_dir_files([("root.der", self.root.self_signed())]).unwrap()
    }

    fn refused_by(&self, roots: &EkRoots) -> Vec<Code> {
        let issuing = &self.issuing_der;
        let key = EndorsementKey::check(&self.ek.bytes(), Some(&self.leaf), &[issuing], roots, now());
        let alone = EkCertificate::check(&self.leaf, &[issuing], roots, now());
        let codes_of = |denial: Option<Denial>| denial.map_or(Vec::new(), |denial| codes(&denial));
        let (key, mut alone) = (codes_of(key.err()), codes_of(alone.err()));
        alone.sort();
        let mut sorted = key.clone();
        sorted.sort();
        assert_eq!(sorted, alone);
        key
    }
}

fn spki(key: &Public) -> Vec<u8> {
    PublicArea::parse(&key.bytes()).unwrap().spki_der().unwrap()
}

fn listed(files: &[&[u8]]) -> Revocations {
    Revocations::from_dir_files(files.iter().map(|file| ("file", *file))).unwrap()
}

/// A list in PEM, with nothing beside it.
fn pem_list(der: &[u8]) -> String {
    pem("X509 CRL", der).replace("Vendor", "# Vendor")
}

/// SHA-256 as tools print it.
fn fingerprint(der: &[u8]) -> String {
    Bank::Sha256.hash(der).iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
}

#[test]
fn a_vendor_that_revoked_nothing_of_this() {
    let vendor = Vendor::new();
    assert_eq!(vendor.refused(Revocations::default()), []);
    let root = RevocationList::new("root").signed_by(&vendor.root);
    let issuing =
        RevocationList { serials: vec![1, 2, 3], ..RevocationList::new("issuing") }.signed_by(&vendor.issuing);
    let both = [pem_list(&root), pem_list(&issuing)].concat();
    for files in [vec![root.as_slice(), &issuing], vec![both.as_bytes()]] {
        let revocations = listed(&files);
        assert_eq!((revocations.crl_count(), revocations.fingerprint_count()), (2, 0));
        assert_eq!(vendor.refused(revocations), []);
    }
    // A list of version 1, which has neither version nor extensions.
    let old = RevocationList { version: None, ..RevocationList::new("root") }.signed_by(&vendor.root);
    assert_eq!(vendor.refused(listed(&[&old])), []);
    // Lists of other authorities and other keys' fingerprints say nothing here.
    let stranger = RevocationList::revoking("stranger").signed_by(&Authority::new("stranger", "stranger"));
    let others = format!("# our own\n\n{}  # a laptop that was stolen\n", fingerprint(&spki(&ek())));
    assert_eq!(vendor.refused(listed(&[&stranger, others.as_bytes()])), []);
}

#[test]
fn n31_a_revoked_authority() {
    let vendor = Vendor::new();
    // By the root's list; by the operator, who names its certificate or its key, in any spelling; the root itself, too.
    let list = RevocationList::revoking("root").signed_by(&vendor.root);
    assert_eq!(vendor.refused(listed(&[&list])), [Code::EkRevoked]);
    let certificate = fingerprint(&vendor.issuing_der);
    let key = fingerprint(&vendor.issuing.certificate.key);
    let root = fingerprint(&vendor.root.certificate.key);
    for line in [certificate.to_lowercase().replace(':', ""), certificate, key, root] {
        assert_eq!(vendor.refused(listed(&[line.as_bytes()])), [Code::EkRevoked], "{line}");
    }
    let old = RevocationList { version: None, ..RevocationList::revoking("root") }.signed_by(&vendor.root);
    assert_eq!(vendor.refused(listed(&[&old])), [Code::EkRevoked]);
    // A list that lies among the roots counts as well.
    let roots = EkRoots::from_dir_files([("root.der", vendor.root.self_signed()), ("root.crl", list)]).unwrap();
    assert_eq!((roots.root_count(), roots.revocations().crl_count()), (1, 1));
    let denied = EkCertificate::check(&vendor.leaf, &[&vendor.issuing_der], &roots, now()).unwrap_err();
    assert_eq!(codes(&denied), [Code::EkRevoked]);
}

#[test]
fn n31_a_revoked_endorsement_key() {
    let vendor = Vendor::new();
    let list = RevocationList::revoking("issuing").signed_by(&vendor.issuing);
    assert_eq!(vendor.refused(listed(&[&list])), [Code::EkRevoked]);
    assert_eq!(vendor.refused(listed(&[fingerprint(&vendor.leaf).as_bytes()])), [Code::EkRevoked]);
    let by_key = listed(&[fingerprint(&spki(&vendor.ek)).as_bytes()]);
    assert_eq!(vendor.refused(by_key.clone()), [Code::EkRevoked]);
    // Without a certificate the key's own fingerprint is all that there is.
    let check = |roots: EkRoots| EndorsementKey::check(&vendor.ek.bytes(), None, &[], &roots, now());
    check(EkRoots::default()).unwrap();
    let denied = check(EkRoots::default().with_revocations(by_key)).unwrap_err();
    assert_eq!(codes(&denied), [Code::EkRevoked]);
}

#[test]
fn n31_lists_that_should_have_been_replaced() {
    let vendor = Vendor::new();
    let stale =
        RevocationList { next_update: Some("210101000000Z"), ..RevocationList::new("root") }.signed_by(&vendor.root);
    assert_eq!(vendor.refused(listed(&[&stale])), [Code::EkCrlExpired]);
    assert_eq!(vendor.refused(listed(&[&stale]).accept_stale()), []);
    let endless = RevocationList { next_update: None, ..RevocationList::new("root") }.signed_by(&vendor.root);
    assert_eq!(vendor.refused(listed(&[&endless])), [Code::EkCrlExpired]);
    assert_eq!(vendor.refused(listed(&[&endless]).accept_stale()), []);
    let revoking = RevocationList { next_update: Some("210101000000Z"), ..RevocationList::revoking("root") };
    let revoking = revoking.signed_by(&vendor.root);
    assert_eq!(vendor.refused(listed(&[&revoking]).accept_stale()), [Code::EkRevoked], "old, and yet it names it");
    let future = RevocationList { this_update: "450101000000Z", ..RevocationList::new("root") }.signed_by(&vendor.root);
    assert_eq!(vendor.refused(listed(&[&future])), [Code::EkCrlInvalid]);
}

#[test]
fn n31_lists_that_their_authority_did_not_sign() {
    let vendor = Vendor::new();
    let forged = RevocationList::new("root").signed_by(&Authority::new("root", "root"));
    assert_eq!(vendor.refused(listed(&[&forged])), [Code::EkCrlInvalid]);
    // An authority whose key may not sign lists.
    let restricted = Vendor::with(|issuing| issuing.replace(key_usage(KEY_CERT_SIGN)));
    let list = RevocationList::new("issuing").signed_by(&restricted.issuing);
    assert_eq!(restricted.refused(listed(&[&list])), [Code::EkCrlInvalid]);
    let rekeyed = Vendor::with(|issuing| issuing.replace(subject_key(b"new")));
    let mut list = RevocationList::new("issuing");
    list.extensions = vec![authority_key(b"new")];
    let forged = listed(&[&list.signed_by(&Authority::new("issuing", "root"))]);
    assert_eq!(rekeyed.refused(forged), [Code::EkCrlInvalid]);
}

/// Two authorities of one name, each with a key of its own: each has its lists.
#[test]
fn n31_a_list_by_the_other_key_of_an_authority() {
    let vendor = Vendor::with(|issuing| issuing.replace(subject_key(b"new")));
    let mut old = Authority::new("issuing", "root");
    old.certificate.replace(subject_key(b"old"));
    let old_der = old.certificate.signed_by(&vendor.root);
    let mut list = RevocationList::revoking("issuing");
    list.extensions.push(authority_key(b"old"));
    let with = |list: &[u8], known: bool| {
        let old = known.then_some(("old.der", old_der.clone()));
        let roots = EkRoots::from_dir_files([("root.der", vendor.root.self_signed())].into_iter().chain(old)).unwrap();
        vendor.refused_by(&roots.with_revocations(listed(&[list])))
    };
    assert_eq!(with(&list.signed_by(&old), true), []);
    // Whose it is must be known, and its signature must hold.
    assert_eq!(with(&list.signed_by(&old), false), [Code::EkCrlInvalid]);
    assert!(with(&list.signed_by(&Authority::new("issuing", "root")), true).contains(&Code::EkCrlInvalid));
    // It is this authority's where its key signed it, whichever key it names.
    assert_eq!(with(&list.signed_by(&vendor.issuing), false), [Code::EkRevoked]);
    assert!(with(&list.signed_by(&vendor.issuing), true).contains(&Code::EkRevoked));
}

/// Authorities write their names with one string type here and with another there, and in other spellings.
#[test]
fn n31_a_list_counts_however_its_authoritys_name_is_written() {
    let vendor = Vendor::new();
    let with = |issuer: Vec<u8>, serials: &[u8]| {
        let list = RevocationList { issuer, serials: serials.to_vec(), ..RevocationList::new("") };
        vendor.refused(listed(&[&list.signed_by(&vendor.issuing)]))
    };
    for issuer in [name_as(PRINTABLE_STRING, "issuing"), name("Issuing"), name_as(PRINTABLE_STRING, " ISSUING ")] {
        assert_eq!(with(issuer.clone(), &[SERIAL]), [Code::EkRevoked], "{issuer:02x?}");
        assert_eq!(with(issuer.clone(), &[]), [], "{issuer:02x?}");
        let list = RevocationList { issuer, ..RevocationList::new("") }.signed_by(&Authority::new("issuing", "root"));
        assert_eq!(vendor.refused(listed(&[&list])), [Code::EkCrlInvalid], "by another's key");
    }
    // A certificate names its issuer with one type, the issuer itself with another.
    let renamed = Vendor::with(|issuing| issuing.subject = name_as(PRINTABLE_STRING, "Issuing"));
    assert_eq!(renamed.refused(Revocations::default()), []);
    let list = RevocationList::revoking("issuing").signed_by(&renamed.issuing);
    assert_eq!(renamed.refused(listed(&[&list])), [Code::EkRevoked]);
    // By the key that it names, too, under whatever name.
    let keyed = Vendor::with(|issuing| issuing.replace(subject_key(b"key")));
    let mut list = RevocationList::revoking("formerly issuing");
    assert_eq!(keyed.refused(listed(&[&list.signed_by(&keyed.issuing)])), []);
    list.extensions.push(authority_key(b"key"));
    assert_eq!(keyed.refused(listed(&[&list.signed_by(&keyed.issuing)])), [Code::EkRevoked]);
}

#[test]
fn n31_lists_of_no_authority_are_told() {
    let vendor = Vendor::new();
    let stranger = RevocationList::revoking("stranger").signed_by(&Authority::new("stranger", "stranger"));
    let own = RevocationList { issuer: name_as(PRINTABLE_STRING, "ROOT"), ..RevocationList::new("") };
    let own = own.signed_by(&vendor.root);
    let unmatched = |files: &[&[u8]]| vendor.roots().with_revocations(listed(files)).unmatched_lists();
    assert_eq!(unmatched(&[&own]), [""; 0]);
    assert_eq!(unmatched(&[&own, &stranger]), ["CN=stranger"]);
}

/// Nothing in a file of revocations is passed over: neither beside lists in PEM nor in other blocks.
#[test]
fn n31_lists_and_fingerprints_in_one_file() {
    let vendor = Vendor::new();
    let list = pem_list(&RevocationList::new("root").signed_by(&vendor.root));
    let print = fingerprint(&spki(&vendor.ek));
    for file in [format!("{print}\n{list}"), format!("{list}{print} # stolen\n"), format!("{list}\n{print}\n{list}")] {
        let revocations = listed(&[file.as_bytes()]);
        assert_eq!(revocations.fingerprint_count(), 1, "{file}");
        assert_eq!(vendor.refused(revocations), [Code::EkRevoked], "{file}");
    }
    let read = |file: String| Revocations::from_dir_files([("list", file)]).map_err(|error| error.problem);
    let lines = list.lines().count();
    assert_eq!(read(format!("{list}{}\n", &print[..94])).unwrap_err(), CrlError::Line(lines + 1));
    assert_eq!(read(format!("{list}remark without its sign\n")).unwrap_err(), CrlError::Line(lines + 1));
    let certificate = pem("CERTIFICATE", &vendor.leaf).replace("Vendor", "#");
    assert_eq!(read(format!("{list}{certificate}")).unwrap_err(), CrlError::Line(lines + 2));
}

#[test]
fn n31_lists_that_are_only_a_part() {
    const POINT: &str = "2.5.29.28";
    const DELTA: &str = "2.5.29.27";
    let vendor = Vendor::new();
    let with = |oid: &'static str, value: Vec<u8>| {
        let mut list = RevocationList::revoking("issuing");
        list.extensions.push(Extension { oid, critical: true, value });
        list.signed_by(&vendor.issuing)
    };
    let read = |list: &[u8]| Revocations::from_dir_files([("list", list)]).map_err(|error| error.problem);
    // Of end entities alone, which is what an endorsement key's certificate is; and of authorities alone.
    assert_eq!(vendor.refused(read(&with(POINT, seq(&[&tlv(0x81, &[&[0xFF]])]))).unwrap()), [Code::EkRevoked]);
    assert_eq!(vendor.refused(read(&with(POINT, seq(&[&tlv(0x82, &[&[0xFF]])]))).unwrap()), []);
    assert_eq!(vendor.refused(read(&with(POINT, seq(&[]))).unwrap()), [Code::EkRevoked]);
    // Indirect, of some reasons, of attribute certificates, changes since another list.
    for part in [
        with(POINT, seq(&[&tlv(0x84, &[&[0xFF]])])),
        with(POINT, seq(&[&tlv(0x83, &[&[0x06, 0x40]])])),
        with(POINT, seq(&[&tlv(0x85, &[&[0xFF]])])),
        with(DELTA, tlv(0x02, &[&[1]])),
    ] {
        assert!(matches!(read(&part), Err(CrlError::Partial(_))), "{part:02x?}");
    }
    // What is no list at all is not passed over.
    let whole = RevocationList::new("issuing").signed_by(&vendor.issuing);
    assert!(matches!(read(&whole[..whole.len() - 1]), Err(CrlError::Der(_))));
    assert!(matches!(read(&[whole.as_slice(), &[0]].concat()), Err(CrlError::Der(_))));
    assert!(matches!(read(b"# fingerprints\nabcd\n"), Err(CrlError::Line(2))));
    assert!(matches!(read(b"-----BEGIN X509 CRL-----\nAAAA"), Err(CrlError::Pem)));
    assert!(matches!(read(&vec![0x80; 9 * 1024 * 1024]), Err(CrlError::TooLong(_))));
}
