//! Certificates of endorsement keys, and the directories of those that are trusted.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING;
use portcullis_attest::endorsement::{EkCertificate, EkRoots, EndorsementKey, Revocations};
use portcullis_attest::key::PublicArea;

use super::Target;
use super::boots::BOOTS;
use super::documents::pem;
use super::keys::TPM;
use super::software_ca::{
    Authority, Certificate, ECDSA_SHA256, KEY_CERT_SIGN, KEY_ENCIPHERMENT, ek_certificate, key_usage, name, oid, seq,
    tlv,
};
use super::software_tpm::fixed_p256;

/// When the recorded certificates are valid: in December 2026.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_hours(24 * 20_790)
}

/// The roots that the recorded endorsement keys lead to.
static RECORDED_ROOTS: LazyLock<EkRoots> =
    LazyLock::new(|| EkRoots::from_dir_files([("vendor.pem", BOOTS[0].vendor_pem)]).expect("the recorded roots"));

/// An endorsement key's certificate as a TPM's NV memory holds it.
pub const EK_CERTIFICATE: Target =
    Target { name: "ek_certificate", body: certificate, max_len: 1536, seeds: |_| certificates() };

fn certificate(bytes: &[u8]) -> bool {
    let boot = &BOOTS[0];
    let checked = EndorsementKey::check(&boot.ek_public[2..], Some(bytes), &[], &RECORDED_ROOTS, now());
    let alone = EkCertificate::check(bytes, &[], &RECORDED_ROOTS, now());
    assert!(checked.is_err() || alone.is_ok(), "a certificate that is good for a key only");
    let genuine = BOOTS.iter().any(|boot| bytes.starts_with(boot.ek_certificate));
    assert!(alone.is_err() || genuine, "a certificate that the vendor did not sign");
    checked.is_ok()
}

fn certificates() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = BOOTS.iter().map(|boot| boot.ek_certificate.to_vec()).collect();
    seeds.push([BOOTS[0].ek_certificate, &[0xFF; 64]].concat());
    seeds.push([BOOTS[0].ek_certificate, &[0; 64]].concat());
    seeds
}

/// The key usage cRLSign.
const CRL_SIGN: u8 = 0x02;

/// A vendor in software, the same in every run: a root and an issuer under it.
struct Vendor {
    root: Authority,
    issuer: Authority,
    roots: EkRoots,
}

static VENDOR: LazyLock<Vendor> = LazyLock::new(|| {
    let root = Authority::with_key("root", "root", fixed_p256(3, &ECDSA_P256_SHA256_ASN1_SIGNING));
    let mut issuer = Authority::with_key("issuer", "root", fixed_p256(5, &ECDSA_P256_SHA256_ASN1_SIGNING));
    issuer.certificate.replace(key_usage(KEY_CERT_SIGN | CRL_SIGN));
    let roots = EkRoots::from_dir_files([("root", root.self_signed())]).expect("a root as it must be");
    Vendor { root, issuer, roots }
});

/// The endorsement key's certificate, the TBSCertificate of which is what is looked for.
fn genuine() -> Certificate {
    let spki = PublicArea::parse(&TPM.ek.bytes()).ok().and_then(|key| key.spki_der().ok()).expect("the TPM's own key");
    ek_certificate("issuer", spki, KEY_ENCIPHERMENT)
}

/// A TBSCertificate, which the vendor signs whatever it says, so that what stands behind the signature is read; and
/// behind it, if there is one, the issuer's, which the root signs.
pub const EK_CHAIN: Target = Target { name: "ek_chain", body: chain, max_len: 1536, seeds: |_| chains() };

fn chain(bytes: &[u8]) -> bool {
    let vendor = &*VENDOR;
    let Some((length, rest)) = bytes.split_first_chunk() else { return false };
    let (leaf, issuer) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
    let leaf = vendor.issuer.sign_tbs(leaf, ECDSA_SHA256);
    let issuer = vendor.root.sign_tbs(issuer, ECDSA_SHA256);
    EndorsementKey::check(&TPM.ek.bytes(), Some(&leaf), &[&issuer], &vendor.roots, now()).is_ok()
}

fn chains() -> Vec<Vec<u8>> {
    let vendor = &*VENDOR;
    let leaf = genuine().tbs(&[]);
    let length = u16::try_from(leaf.len()).unwrap().to_be_bytes();
    vec![[&length[..], &leaf, &vendor.issuer.certificate.tbs(&[])].concat()]
}

/// A file among the trusted roots.
pub const EK_ROOTS: Target = Target { name: "ek_roots", body: roots, max_len: 4096, seeds: |_| root_files() };

fn roots(bytes: &[u8]) -> bool {
    EkRoots::from_dir_files([("file", bytes)]).is_ok_and(|roots| roots.root_count() > 0)
}

fn root_files() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = BOOTS.iter().map(|boot| boot.vendor_pem.as_bytes().to_vec()).collect();
    seeds.push(VENDOR.root.self_signed());
    seeds.push(tlv(0x30, &[&VENDOR.root.self_signed()]));
    seeds
}

/// A file among the revocations.
pub const REVOCATIONS: Target =
    Target { name: "revocations", body: revocations, max_len: 2048, seeds: |_| revocation_files() };

fn revocations(bytes: &[u8]) -> bool {
    let Ok(read) = Revocations::from_dir_files([("file", bytes)]) else { return false };
    read.crl_count() > 0 || read.fingerprint_count() > 0
}

fn revocation_files() -> Vec<Vec<u8>> {
    let list = VENDOR.issuer.sign_tbs(&revoked(&[0x2A]), ECDSA_SHA256);
    let text = "# lost\n5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5\n";
    vec![pem("X509 CRL", &list).into_bytes(), list, text.as_bytes().to_vec()]
}

/// A TBSCertList, which the issuer signs whatever it says, beside a genuine certificate.
pub const REVOCATION_LIST: Target =
    Target { name: "revocation_list", body: revocation_list, max_len: 512, seeds: |_| revocation_lists() };

fn revocation_list(bytes: &[u8]) -> bool {
    let vendor = &*VENDOR;
    let list = vendor.issuer.sign_tbs(bytes, ECDSA_SHA256);
    let Ok(revocations) = Revocations::from_dir_files([("list", list)]) else { return false };
    let roots = vendor.roots.clone().with_revocations(revocations);
    let leaf = vendor.issuer.sign_tbs(&genuine().tbs(&[]), ECDSA_SHA256);
    let issuer = vendor.root.sign_tbs(&vendor.issuer.certificate.tbs(&[]), ECDSA_SHA256);
    EndorsementKey::check(&TPM.ek.bytes(), Some(&leaf), &[&issuer], &roots, now()).is_ok()
}

fn revocation_lists() -> Vec<Vec<u8>> {
    vec![revoked(&[0x2A]), revoked(&[0x11]), revoked(&[])]
}

/// A list that revokes certificates of these serial numbers.
fn revoked(serials: &[u8]) -> Vec<u8> {
    let time = |text: &str| tlv(0x17, &[text.as_bytes()]);
    let entries: Vec<Vec<u8>> =
        serials.iter().map(|serial| seq(&[&tlv(2, &[&[*serial]]), &time("260101000000Z")])).collect();
    let entries = if entries.is_empty() { Vec::new() } else { seq(&[&entries.concat()]) };
    let algorithm = seq(&[&oid(ECDSA_SHA256)]);
    let (from, until) = (time("260101000000Z"), time("490101000000Z"));
    seq(&[&tlv(2, &[&[1]]), &algorithm, &name("issuer"), &from, &until, &entries])
}
