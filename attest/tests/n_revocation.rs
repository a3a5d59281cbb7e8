//! What was revoked: N31, and N96 of old lists. `a_vendor_that_revoked_nothing_of_this` is the twin without the defect.

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
    // Some vendors write what the key is for (id-RSAES-OAEP) in its certificate: it is the same key.
    let mut spelled = Vendor::new();
    let (rsa, oaep) = (oid("1.2.840.113549.1.1.1"), oid("1.2.840.113549.1.1.7"));
    let key = spki(&spelled.ek);
    let at = key.windows(rsa.len()).position(|bytes| bytes == rsa).unwrap();
    let key = [&key[..at], &oaep, &key[at + rsa.len()..]].concat();
    spelled.leaf = ek_certificate("issuing", key, KEY_ENCIPHERMENT).signed_by(&spelled.issuing);
    assert_eq!(spelled.refused(Revocations::default()), []);
    assert_eq!(spelled.refused(listed(&[fingerprint(&spki(&spelled.ek)).as_bytes()])), [Code::EkRevoked]);
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

/// A list that an operator forgot to remove when its successor came, in either order of the files.
#[test]
fn n96_an_old_list_beside_its_successor_does_not_count() {
    let vendor = Vendor::new();
    let old = || RevocationList { next_update: Some("210101000000Z"), ..RevocationList::new("root") };
    let new = || RevocationList { this_update: "250101000000Z", ..RevocationList::new("root") };
    let numbered = |mut list: RevocationList, number: u16| {
        list.extensions.push(crl_number(number));
        list
    };
    let sign = |list: &RevocationList| list.signed_by(&vendor.root);
    let refused = |one: &[u8], other: &[u8]| {
        let both = [vendor.refused(listed(&[one, other])), vendor.refused(listed(&[other, one]))];
        assert_eq!(both[0], both[1]);
        both[0].clone()
    };
    for (old, new) in [
        (old(), new()),
        (numbered(old(), 5), numbered(new(), 6)),
        (numbered(old(), 255), numbered(RevocationList { this_update: "200101000000Z", ..new() }, 256)),
        (old(), numbered(new(), 1)),
    ] {
        assert_eq!(vendor.refused(listed(&[&sign(&old)])), [Code::EkCrlExpired]);
        assert_eq!(refused(&sign(&old), &sign(&new)), []);
        // It is told.
        let roots = EkRoots::from_dir_files([("root.der", vendor.root.self_signed())]).unwrap();
        let files = [("old.crl", sign(&old)), ("new.crl", sign(&new))];
        let roots = roots.with_revocations(Revocations::from_dir_files(files).unwrap());
        let [warning] = roots.warnings().try_into().unwrap();
        assert!(warning.starts_with("old.crl: ") && warning.contains("new.crl has a newer one"), "{warning}");
        // The newest counts for what it names, and not for what it no longer names.
        let serials = vec![SERIAL];
        assert_eq!(refused(&sign(&old), &sign(&RevocationList { serials: serials.clone(), ..new })), [Code::EkRevoked]);
    }
    let released = numbered(RevocationList { serials: vec![SERIAL], ..old() }, 5);
    assert_eq!(refused(&sign(&released), &sign(&numbered(new(), 6))), []);
    // A newest list that is too old denies, whatever is beside it; unless the operator accepts that.
    let newer = numbered(RevocationList { this_update: "200601000000Z", ..old() }, 6);
    assert_eq!(refused(&sign(&numbered(old(), 5)), &sign(&newer)), [Code::EkCrlExpired]);
    let both = listed(&[&sign(&numbered(old(), 5)), &sign(&newer)]);
    assert_eq!(vendor.refused(both.accept_stale()), []);
}

/// Only what its authority signed, for the same scope, and by number and time, takes a list's place.
#[test]
fn n96_what_is_no_successor_takes_no_lists_place() {
    const POINT: &str = "2.5.29.28";
    let vendor = Vendor::new();
    let revoking = || RevocationList::revoking("issuing");
    let later = || RevocationList { this_update: "250101000000Z", ..RevocationList::new("issuing") };
    let refused = |one: &[u8], other: &[u8]| vendor.refused(listed(&[one, other]));
    let by_authority = |list: RevocationList| list.signed_by(&vendor.issuing);
    assert_eq!(refused(&by_authority(revoking()), &by_authority(later())), []);
    // A forged one does not displace it, and does not deny where it stands beside it: it is told.
    let forger = Authority::new("issuing", "root");
    assert_eq!(refused(&by_authority(revoking()), &later().signed_by(&forger)), [Code::EkRevoked]);
    assert_eq!(refused(&by_authority(RevocationList::new("issuing")), &later().signed_by(&forger)), []);
    assert_eq!(vendor.refused(listed(&[&later().signed_by(&forger)])), [Code::EkCrlInvalid]);
    let list = RevocationList::new("root").signed_by(&vendor.root);
    let impostors = RevocationList::new("root").signed_by(&Authority::new("root", "root"));
    let files = [("good.crl", list), ("forged.crl", impostors)];
    let roots = vendor.roots().with_revocations(Revocations::from_dir_files(files).unwrap());
    let [warning] = roots.warnings().try_into().unwrap();
    assert!(warning.starts_with("forged.crl: ") && warning.contains("signature does not verify"), "{warning}");
    // One for a part of the certificates says nothing of the others; nor does that of another distribution point.
    let point = |value: Vec<u8>| {
        let extension = Extension { oid: POINT, critical: true, value };
        RevocationList { extensions: vec![extension], ..later() }
    };
    let leaves = || seq(&[&tlv(0x81, &[&[0xFF]])]);
    let published = seq(&[&tlv(0xA0, &[&tlv(0xA0, &[&tlv(0x86, &[b"http://tpm.example/2"])])])]);
    for value in [leaves(), published] {
        assert_eq!(refused(&by_authority(revoking()), &by_authority(point(value))), [Code::EkRevoked]);
    }
    let part = RevocationList { serials: vec![SERIAL], this_update: "200101000000Z", ..point(leaves()) };
    assert_eq!(refused(&by_authority(part), &by_authority(point(leaves()))), []);
    // Numbers and times that contradict each other: both count.
    let numbered = |mut list: RevocationList, number: u16| {
        list.extensions.push(crl_number(number));
        by_authority(list)
    };
    assert_eq!(refused(&numbered(revoking(), 9), &numbered(later(), 8)), [Code::EkRevoked]);
    assert_eq!(refused(&numbered(revoking(), 9), &numbered(later(), 9)), []);
    // One that is not in force yet.
    let future = by_authority(RevocationList { this_update: "450101000000Z", ..later() });
    assert!(refused(&by_authority(revoking()), &future).contains(&Code::EkRevoked));
}

/// A vendor's list revokes an authority also where the operator trusts that authority by itself.
#[test]
fn n31_a_revoked_authority_that_is_an_anchor() {
    let vendor = Vendor::new();
    let file = |name: &str, der: &[u8]| (name.to_owned(), Ok(der.to_vec()));
    let refused = |list: &RevocationList, root: bool| {
        let root = root.then(|| file("root.der", &vendor.root.self_signed()));
        let files = [file("root.crl", &list.signed_by(&vendor.root))].into_iter().chain(root);
        vendor.refused_by(&EkRoots::from_files(files, [file("issuing.der", &vendor.issuing_der)]).unwrap())
    };
    assert_eq!(refused(&RevocationList::new("root"), true), []);
    assert!(refused(&RevocationList::revoking("root"), true).contains(&Code::EkRevoked));
    // Whoever signed the list is not known.
    assert_eq!(refused(&RevocationList::revoking("root"), false), []);
    let ours = listed(&[fingerprint(&vendor.issuing_der).as_bytes()]);
    let anchored = EkRoots::from_files([], [file("issuing.der", &vendor.issuing_der)]).unwrap();
    assert_eq!(vendor.refused_by(&anchored.with_revocations(ours)), [Code::EkRevoked]);
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
    // An entry that says more of what it revokes than is understood here, such as whose certificate it is.
    let entry = |critical| {
        let extension = Extension { oid: "2.5.29.21", critical, value: tlv(0x0A, &[&[1]]) };
        RevocationList { entry_extensions: vec![extension], ..RevocationList::revoking("issuing") }
    };
    assert_eq!(vendor.refused(read(&entry(false).signed_by(&vendor.issuing)).unwrap()), [Code::EkRevoked]);
    assert!(matches!(read(&entry(true).signed_by(&vendor.issuing)), Err(CrlError::Partial(_))));
    // Another version, and two signature algorithms: one reader would go by this, another by that.
    let of_version = |version| RevocationList { version, ..RevocationList::new("issuing") }.signed_by(&vendor.issuing);
    assert!(matches!(read(&of_version(Some(2))), Err(CrlError::Der(_))));
    let mut two = of_version(Some(1));
    let algorithm = oid(ECDSA_SHA256);
    let outer = two.windows(algorithm.len()).rposition(|bytes| bytes == algorithm).unwrap();
    two[outer + algorithm.len() - 1] += 1;
    assert!(matches!(read(&two), Err(CrlError::Der(_))));
    // What is no list at all is not passed over.
    let whole = RevocationList::new("issuing").signed_by(&vendor.issuing);
    assert!(matches!(read(&whole[..whole.len() - 1]), Err(CrlError::Der(_))));
    assert!(matches!(read(&[whole.as_slice(), &[0]].concat()), Err(CrlError::Der(_))));
    assert!(matches!(read(b"# fingerprints\nabcd\n"), Err(CrlError::Line(2))));
    assert!(matches!(read(b"-----BEGIN X509 CRL-----\nAAAA"), Err(CrlError::Pem)));
    assert!(matches!(read(&vec![0x80; 9 * 1024 * 1024]), Err(CrlError::TooLong(_))));
}
