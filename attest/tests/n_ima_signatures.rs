//! N71: signatures of measured files, as signers and kernels write them, and each of their defects.

mod software_ca;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{self as aws, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _, RsaEncoding};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use der::pem::LineEnding;
use portcullis_attest::ima::{ImaList, Keyring, KeyringError, SignatureProblem as Problem};
use portcullis_attest::key::Bank;
use software_ca::{Authority, Certificate, Extension, name, oid, pem, seq, subject_key, tlv, two_in_one_part};

const CONTENT: &[u8] = b"#!/bin/sh\n";

/// The kernel's numbers of hashes.
const SHA256: u8 = 4;
const SHA384: u8 = 5;

/// Types of `security.ima`.
const FILE: u8 = 3;
const EVM: u8 = 5;
const VERITY: u8 = 6;

/// Somebody who signs files.
enum Signer {
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
}

impl Signer {
    fn ecdsa(algorithm: &'static EcdsaSigningAlgorithm) -> Self {
        Self::Ecdsa(EcdsaKeyPair::generate(algorithm).unwrap())
    }

    fn p256() -> Self {
        Self::ecdsa(&aws::ECDSA_P256_SHA256_ASN1_SIGNING)
    }

    fn rsa(encoding: &'static dyn RsaEncoding) -> Self {
        Self::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap(), encoding)
    }

    fn spki(&self) -> Vec<u8> {
        let der: PublicKeyX509Der<'_> = match self {
            Self::Ecdsa(key) => key.public_key().as_der().unwrap(),
            Self::Rsa(key, _) => key.public_key().as_der().unwrap(),
        };
        der.as_ref().to_vec()
    }

    /// The last four bytes of the SHA-1 of the key.
    fn id(&self) -> [u8; 4] {
        let key = match self {
            Self::Ecdsa(key) => key.public_key().as_ref().to_vec(),
            Self::Rsa(key, _) => key.public_key().as_ref().to_vec(),
        };
        *Bank::Sha1.hash(&key).last_chunk().unwrap()
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Ecdsa(key) => key.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
            Self::Rsa(key, encoding) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(*encoding, &SystemRandom::new(), message, &mut signature).unwrap();
                signature
            }
        }
    }

    /// `security.ima` of a file.
    fn attribute(&self, algorithm: u8, content: &[u8]) -> Vec<u8> {
        attribute(FILE, 2, algorithm, self.id(), &self.sign(content))
    }

    fn pem(&self) -> String {
        der::pem::encode_string("PUBLIC KEY", LineEnding::LF, &self.spki()).unwrap()
    }

    fn keyring(&self) -> Keyring {
        Keyring::from_pems([self.pem()]).unwrap()
    }

    /// A certificate for the key with this subject key identifier.
    fn certificate(&self, issuer: &str, key_id: &[u8]) -> String {
        self.certificate_by(name(issuer), key_id)
    }

    /// The same by an issuer whose name is these bytes.
    fn certificate_by(&self, issuer: Vec<u8>, key_id: &[u8]) -> String {
        let authority = Authority::new("issuer", "issuer");
        let identifier = Extension { oid: "2.5.29.14", critical: false, value: tlv(4, &[key_id]) };
        let certificate = Certificate {
            issuer,
            subject: name("signer"),
            key: self.spki(),
            extensions: vec![identifier],
            ..authority.certificate.clone()
        };
        der::pem::encode_string("CERTIFICATE", LineEnding::LF, &certificate.signed_by(&authority)).unwrap()
    }
}

fn attribute(kind: u8, version: u8, algorithm: u8, id: [u8; 4], signature: &[u8]) -> Vec<u8> {
    let size = u16::try_from(signature.len()).unwrap().to_be_bytes();
    [&[kind, version, algorithm][..], &id, &size, signature].concat()
}

fn sized(parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    [&u32::try_from(content.len()).unwrap().to_le_bytes()[..], &content].concat()
}

/// A list of one entry.
fn list(template: &str, digest: &[&[u8]], more: &[&[u8]]) -> Vec<u8> {
    let mut data = [sized(digest), sized(&[b"/usr/bin/x\0"])].concat();
    for field in more {
        data.extend(sized(&[field]));
    }
    [&10_u32.to_le_bytes()[..], &Bank::Sha1.hash(&data), &sized(&[template.as_bytes()]), &sized(&[&data])].concat()
}

fn file(bank: Bank, content: &[u8], signature: &[u8]) -> Vec<u8> {
    list("ima-sig", &[bank.name().as_bytes(), b":\0", &bank.hash(content)], &[signature])
}

fn signed(list: &[u8], keyring: &Keyring) -> Result<(), Problem> {
    let list = ImaList::parse(list).unwrap();
    let entry = list.entries().next().unwrap();
    assert!(entry.template_digest_holds());
    entry.signed_by(keyring)
}

#[test]
fn n71_a_file_that_a_key_of_the_keyring_signed_is_signed() {
    for (signer, bank, number) in [
        (Signer::p256(), Bank::Sha256, SHA256),
        (Signer::ecdsa(&aws::ECDSA_P384_SHA384_ASN1_SIGNING), Bank::Sha384, SHA384),
        (Signer::ecdsa(&aws::ECDSA_P521_SHA512_ASN1_SIGNING), Bank::Sha512, 6),
        (Signer::ecdsa(&aws::ECDSA_P521_SHA256_ASN1_SIGNING), Bank::Sha256, SHA256),
        (Signer::rsa(&aws::RSA_PKCS1_SHA256), Bank::Sha256, SHA256),
        (Signer::rsa(&aws::RSA_PKCS1_SHA512), Bank::Sha512, 6),
    ] {
        let entry = file(bank, CONTENT, &signer.attribute(number, CONTENT));
        assert_eq!(signed(&entry, &signer.keyring()), Ok(()), "{bank}");
        let by_certificate = Keyring::from_pems([signer.certificate("any", &[1; 20])]).unwrap();
        assert_eq!(signed(&entry, &by_certificate), Ok(()), "{bank}");
    }
}

#[test]
fn n71_a_key_that_is_not_in_the_keyring_signs_nothing() {
    let (signer, other) = (Signer::p256(), Signer::p256());
    let entry = file(Bank::Sha256, CONTENT, &signer.attribute(SHA256, CONTENT));
    assert_eq!(signed(&entry, &signer.keyring()), Ok(()));
    let unknown = Problem::UnknownKey(hex::encode(signer.id()));
    assert_eq!(signed(&entry, &other.keyring()), Err(unknown.clone()));
    assert_eq!(signed(&entry, &Keyring::default()), Err(unknown));
    // It names a key of the keyring, which did not sign.
    let claimed = attribute(FILE, 2, SHA256, other.id(), &signer.sign(CONTENT));
    let invalid = Problem::Invalid(hex::encode(other.id()));
    assert_eq!(signed(&file(Bank::Sha256, CONTENT, &claimed), &other.keyring()), Err(invalid));
}

#[test]
fn n71_keys_with_the_same_id_are_all_tried_and_only_they() {
    let signers = [Signer::p256(), Signer::p256(), Signer::ecdsa(&aws::ECDSA_P384_SHA384_ASN1_SIGNING)];
    let id = [0xde, 0xad, 0xbe, 0xef];
    let certificates: Vec<_> =
        (1..).zip(&signers).map(|(n, s)| s.certificate("any", &[&[n; 16][..], &id].concat())).collect();
    let keyring = Keyring::from_pems(&certificates[..2]).unwrap();
    let by = |signer: &Signer| attribute(FILE, 2, SHA256, id, &signer.sign(CONTENT));
    for signer in &signers[..2] {
        assert_eq!(signed(&file(Bank::Sha256, CONTENT, &by(signer)), &keyring), Ok(()));
    }
    // Whoever makes a key with that id is still not in the keyring.
    let collision = Signer::p256();
    let entry = file(Bank::Sha256, CONTENT, &by(&collision));
    assert_eq!(signed(&entry, &keyring), Err(Problem::Invalid("deadbeef".to_owned())));
    // Keys of several kinds may share an id.
    let mixed = Keyring::from_pems([&certificates[2], &certificates[0]]).unwrap();
    assert_eq!(signed(&file(Bank::Sha256, CONTENT, &by(&signers[0])), &mixed), Ok(()));
    let of_p384 = attribute(FILE, 2, SHA384, id, &signers[2].sign(CONTENT));
    assert_eq!(signed(&file(Bank::Sha384, CONTENT, &of_p384), &mixed), Ok(()));
}

#[test]
fn n71_a_signature_is_of_exactly_the_measured_digest() {
    let signer = Signer::p256();
    let keyring = signer.keyring();
    let good = signer.attribute(SHA256, CONTENT);
    assert_eq!(signed(&file(Bank::Sha256, CONTENT, &good), &keyring), Ok(()));
    let invalid = Err(Problem::Invalid(hex::encode(signer.id())));
    assert_eq!(signed(&file(Bank::Sha256, b"other", &good), &keyring), invalid);
    assert_eq!(signed(&file(Bank::Sha256, CONTENT, b""), &keyring), Err(Problem::Missing));
    assert_eq!(
        signed(&list("ima-ng", &[b"sha256:\0", &Bank::Sha256.hash(CONTENT)], &[]), &keyring),
        Err(Problem::Missing)
    );
    // Every bit of it counts.
    for at in 0..good.len() {
        let mut damaged = good.clone();
        damaged[at] ^= 1;
        assert!(signed(&file(Bank::Sha256, CONTENT, &damaged), &keyring).is_err(), "byte {at}");
        assert!(signed(&file(Bank::Sha256, CONTENT, &good[..at]), &keyring).is_err(), "{at} bytes");
    }
    let longer = [&good[..], &[0]].concat();
    assert!(matches!(signed(&file(Bank::Sha256, CONTENT, &longer), &keyring), Err(Problem::Malformed(_))));
}

#[test]
fn n71_hashes_and_kinds_that_prove_nothing_are_named() {
    let signer = Signer::p256();
    let keyring = signer.keyring();
    let unsupported = |list: &[u8]| matches!(signed(list, &keyring), Err(Problem::Unsupported(_)));
    assert!(unsupported(&file(Bank::Sha1, CONTENT, &signer.attribute(2, CONTENT))));
    let sm3 = list("ima-sig", &[b"sm3:\0", &Bank::Sm3_256.hash(CONTENT)], &[&signer.attribute(17, CONTENT)]);
    assert!(unsupported(&sm3));
    let signature = signer.sign(CONTENT);
    for (kind, version) in [(EVM, 2), (EVM, 3), (FILE, 1), (FILE, 4), (VERITY, 2), (VERITY, 3)] {
        let attribute = attribute(kind, version, SHA256, signer.id(), &signature);
        assert!(unsupported(&file(Bank::Sha256, CONTENT, &attribute)), "type {kind} version {version}");
    }
    let other_hash = attribute(FILE, 2, SHA384, signer.id(), &signature);
    assert!(matches!(signed(&file(Bank::Sha256, CONTENT, &other_hash), &keyring), Err(Problem::Malformed(_))));
}

#[test]
fn n71_version_3_tells_the_digest_of_a_file_from_that_of_a_tree() {
    let signer = Signer::p256();
    let keyring = signer.keyring();
    let digest = Bank::Sha256.hash(CONTENT);
    let by = |kind: u8| {
        let signature = signer.sign(&[&[kind, SHA256][..], &digest].concat());
        attribute(kind, 3, SHA256, signer.id(), &signature)
    };
    let entry = |of: &str, attribute: &[u8]| list("ima-sigv2", &[of.as_bytes(), b":sha256:\0", &digest], &[attribute]);
    assert_eq!(signed(&entry("verity", &by(VERITY)), &keyring), Ok(()));
    assert_eq!(signed(&entry("ima", &by(FILE)), &keyring), Ok(()));
    assert_eq!(signed(&entry("ima", &signer.attribute(SHA256, CONTENT)), &keyring), Ok(()));
    assert!(matches!(signed(&entry("ima", &by(VERITY)), &keyring), Err(Problem::Unsupported(_))));
    assert!(matches!(signed(&entry("verity", &by(FILE)), &keyring), Err(Problem::Unsupported(_))));
    // What was signed for one is not good for the other.
    let mut relabelled = by(VERITY);
    relabelled[0] = FILE;
    assert!(matches!(signed(&entry("ima", &relabelled), &keyring), Err(Problem::Invalid(_))));
    // Version 2 signs the bare digest, which version 3 does not.
    let mut downgraded = by(FILE);
    downgraded[1] = 2;
    assert!(matches!(signed(&entry("ima", &downgraded), &keyring), Err(Problem::Invalid(_))));
}

/// An entry of a module with an appended signature.
fn module(bank: Bank, digest: &[u8], cms: &[u8]) -> Vec<u8> {
    let of_file = Bank::Sha256.hash(b"module and signature");
    let of_content = [bank.name().as_bytes(), b":\0", digest].concat();
    list("ima-modsig", &[b"sha256:\0", &of_file], &[b"", &of_content, cms])
}

#[test]
fn n71_appended_signatures_as_openssl_and_the_kernels_tool_make_them() {
    let content = include_bytes!("fixtures/ima/module");
    let signer = Keyring::from_pems([include_str!("fixtures/ima/signer.pem")]).unwrap();
    for (bank, cms) in [
        (Bank::Sha256, &include_bytes!("fixtures/ima/by-issuer.der")[..]),
        (Bank::Sha512, include_bytes!("fixtures/ima/by-key-id-with-attributes.der")),
    ] {
        let digest = bank.hash(content);
        assert_eq!(signed(&module(bank, &digest, cms), &signer), Ok(()), "{bank}");
        // Another content, nothing, another keyring, and each byte of it damaged.
        let denied =
            |digest: &[u8], cms: &[u8], keyring: &Keyring| signed(&module(bank, digest, cms), keyring).unwrap_err();
        let other = denied(&bank.hash(b"other"), cms, &signer);
        assert!(matches!(other, Problem::Invalid(_) | Problem::Malformed(_)), "{other}");
        assert_eq!(denied(&digest, b"", &signer), Problem::Missing);
        assert!(matches!(denied(&digest, cms, &Signer::p256().keyring()), Problem::UnknownKey(_)));
        // The attributes, where there are any, and the signature; what else it says is checked or passed over.
        let attributes = cms.windows(9).position(|bytes| bytes == &oid("1.2.840.113549.1.9.3")[2..]);
        let signature = cms.len() - 256..cms.len();
        let covered = attributes.map_or(signature.clone(), |from| from..from + 120).chain(signature);
        for at in covered {
            let mut damaged = cms.to_vec();
            damaged[at] ^= 1;
            assert!(signed(&module(bank, &digest, &damaged), &signer).is_err(), "{bank} byte {at}");
        }
        for at in 0..cms.len() {
            let cut = signed(&module(bank, &digest, &cms[..at]), &signer);
            assert!(cut.is_err(), "{bank} {at} bytes");
        }
    }
}

/// CMS SignedData by one signer without attributes, or with these.
fn cms(signer: &Signer, issuer: &str, attributes: Option<&[u8]>) -> Vec<u8> {
    signed_data(&[&signer_info(signer, issuer, attributes)])
}

fn signer_info(signer: &Signer, issuer: &str, attributes: Option<&[u8]>) -> Vec<u8> {
    signer_info_of(signer, &name(issuer), attributes)
}

fn signer_info_of(signer: &Signer, issuer: &[u8], attributes: Option<&[u8]>) -> Vec<u8> {
    let sha256 = seq(&[&oid("2.16.840.1.101.3.4.2.1")]);
    let id = seq(&[issuer, &tlv(2, &[&[0x11]])]);
    let signature = match attributes {
        Some(attributes) => signer.sign(&tlv(0x31, &[attributes])),
        None => signer.sign(CONTENT),
    };
    let attributes = attributes.map_or(Vec::new(), |attributes| tlv(0xA0, &[attributes]));
    let ecdsa = seq(&[&oid("1.2.840.10045.4.3.2")]);
    seq(&[&tlv(2, &[&[1]]), &id, &sha256, &attributes, &ecdsa, &tlv(4, &[&signature])])
}

fn signed_data(signers: &[&[u8]]) -> Vec<u8> {
    signed_data_about(&seq(&[&oid("1.2.840.113549.1.7.1")]), signers)
}

fn signed_data_about(no_content: &[u8], signers: &[&[u8]]) -> Vec<u8> {
    let sha256 = seq(&[&oid("2.16.840.1.101.3.4.2.1")]);
    let data = seq(&[&tlv(2, &[&[1]]), &tlv(0x31, &[&sha256]), no_content, &tlv(0x31, signers)]);
    seq(&[&oid("1.2.840.113549.1.7.2"), &tlv(0xA0, &[&data])])
}

/// A signature names its signer by the bytes of the certificate's issuer, which need not be in the order that DER has.
#[test]
fn n34_a_signer_is_named_by_its_certificate_as_received() {
    let signer = Signer::p256();
    let authority = Authority::new("any", "any");
    let digest = Bank::Sha256.hash(CONTENT);
    for in_order in [true, false] {
        let issuer = two_in_one_part("any", in_order);
        let certificate = Certificate {
            issuer: issuer.clone(),
            subject: name("signer"),
            key: signer.spki(),
            extensions: vec![subject_key(&[1; 20])],
            ..authority.certificate.clone()
        };
        let keyring =
            Keyring::from_pems([pem("CERTIFICATE", &certificate.signed_by(&authority)).replace("Vendor", "")]);
        let keyring = keyring.unwrap();
        let result = |issuer: &[u8]| {
            let cms = signed_data(&[&signer_info_of(&signer, issuer, None)]);
            signed(&module(Bank::Sha256, &digest, &cms), &keyring)
        };
        assert_eq!(result(&issuer), Ok(()));
        assert!(matches!(result(&two_in_one_part("any", !in_order)), Err(Problem::UnknownKey(_))));
    }
}

#[test]
fn n71_attributes_of_an_appended_signature_must_tell_the_digest_once() {
    let signer = Signer::p256();
    let keyring = Keyring::from_pems([signer.certificate("any", &[1; 20])]).unwrap();
    let digest = Bank::Sha256.hash(CONTENT);
    let result = |cms: &[u8]| signed(&module(Bank::Sha256, &digest, cms), &keyring);
    let attribute = |digest: &[u8]| seq(&[&oid("1.2.840.113549.1.9.4"), &tlv(0x31, &[&tlv(4, &[digest])])]);
    let time = seq(&[&oid("1.2.840.113549.1.9.5"), &tlv(0x31, &[&tlv(0x17, &[b"200101000000Z"])])]);
    assert_eq!(result(&cms(&signer, "any", None)), Ok(()));
    assert_eq!(result(&cms(&signer, "any", Some(&[&time[..], &attribute(&digest)].concat()))), Ok(()));
    for wrong in [
        time.clone(),
        attribute(&[0; 32]),
        [attribute(&[0; 32]), attribute(&digest)].concat(),
        [attribute(&digest), attribute(&digest)].concat(),
        b"junk".to_vec(),
        Vec::new(),
    ] {
        assert!(matches!(result(&cms(&signer, "any", Some(&wrong))), Err(Problem::Malformed(_))), "{wrong:?}");
    }
    assert!(matches!(result(&cms(&signer, "other", None)), Err(Problem::UnknownKey(_))));
    // It says that it is of another hash than the one that was measured.
    let [sha256, sha512] = ["2.16.840.1.101.3.4.2.1", "2.16.840.1.101.3.4.2.3"].map(oid);
    let mut of_sha512 = cms(&signer, "any", None);
    let at = of_sha512.windows(sha256.len()).rposition(|bytes| bytes == sha256).unwrap();
    of_sha512[at..at + sha512.len()].copy_from_slice(&sha512);
    assert!(matches!(result(&of_sha512), Err(Problem::Malformed(_))));
    // What stands in the structure itself, or is no data, is not the file.
    let info = signer_info(&signer, "any", None);
    let (data, signed_data_oid) = (oid("1.2.840.113549.1.7.1"), oid("1.2.840.113549.1.7.2"));
    assert_eq!(result(&signed_data_about(&seq(&[&data]), &[&info])), Ok(()));
    for content in [seq(&[&signed_data_oid]), seq(&[&data, &tlv(0xA0, &[&tlv(4, &[CONTENT])])]), seq(&[])] {
        assert!(matches!(result(&signed_data_about(&content, &[&info])), Err(Problem::Malformed(_))));
    }
    // One of several signers is enough, if the key that he names made it.
    let other = signer_info(&Signer::p256(), "other", None);
    assert_eq!(result(&signed_data(&[&other, &info])), Ok(()));
    assert!(matches!(result(&signed_data(&[&other, &other])), Err(Problem::UnknownKey(_))));
    assert!(matches!(result(&signed_data(&[])), Err(Problem::Malformed(_))));
    assert_eq!(result(&signed_data(&[&info[..]; 8])), Ok(()));
    assert!(matches!(result(&signed_data(&[&info[..]; 9])), Err(Problem::Malformed(_))));
    // Another structure, and one that goes on.
    let sha256 = tlv(0x31, &[&seq(&[&oid("2.16.840.1.101.3.4.2.1")])]);
    let structure = |kind: &[u8], more: &[u8]| {
        let parts = seq(&[&tlv(2, &[&[1]]), &sha256, &seq(&[&data]), &tlv(0x31, &[&info]), more]);
        result(&seq(&[kind, &tlv(0xA0, &[&parts])]))
    };
    assert_eq!(structure(&signed_data_oid, &[]), Ok(()));
    assert!(matches!(structure(&data, &[]), Err(Problem::Malformed(_))));
    assert!(matches!(structure(&signed_data_oid, &[5, 0]), Err(Problem::Malformed(_))));
    // With certificates that nobody reads it may be as long as an entry's field is, and no longer.
    let with_certificates = |size: usize| {
        let certificates = tlv(0xA0, &[&tlv(4, &[&vec![0; size]])]);
        let parts = seq(&[&tlv(2, &[&[1]]), &sha256, &seq(&[&data]), &certificates, &tlv(0x31, &[&info])]);
        seq(&[&signed_data_oid, &tlv(0xA0, &[&parts])])
    };
    let most = (64_000..65_536).take_while(|size| with_certificates(*size).len() <= 64 << 10).last().unwrap();
    assert_eq!(result(&with_certificates(most)), Ok(()));
    assert!(matches!(result(&with_certificates(most + 1)), Err(Problem::Malformed(_))));
}

/// A certificate whose issuer's name is a set in the wrong order, as genuine vendors write it: nothing is encoded anew.
#[test]
fn n71_a_keyrings_certificate_counts_as_it_was_received() {
    let attribute = |kind: &str, text: &[u8]| seq(&[&oid(kind), &tlv(0x13, &[text])]);
    let (country, common) = (attribute("2.5.4.6", b"TW"), attribute("2.5.4.3", b"some vendor's"));
    let issuer = |first: &[u8], second: &[u8]| seq(&[&tlv(0x31, &[first, second])]);
    let (sorted, unsorted) = (issuer(&country, &common), issuer(&common, &country));
    let digest = Bank::Sha256.hash(CONTENT);
    let signer = Signer::p256();
    for (received, other) in [(&unsorted, &sorted), (&sorted, &unsorted)] {
        let keyring = Keyring::from_pems([signer.certificate_by(received.clone(), &[1; 20])]).unwrap();
        let result = |issuer: &[u8]| {
            let cms = signed_data(&[&signer_info_of(&signer, issuer, None)]);
            signed(&module(Bank::Sha256, &digest, &cms), &keyring)
        };
        assert_eq!(result(received), Ok(()));
        assert!(matches!(result(other), Err(Problem::UnknownKey(_))));
        // By its identifiers, too.
        for id in [signer.id(), [1; 4]] {
            let entry = file(Bank::Sha256, CONTENT, &attribute_of(id, &signer));
            assert_eq!(signed(&entry, &keyring), Ok(()));
        }
    }
}

/// A certificate of four parts, which strict and loose readers would read as different things.
fn with_one_part_more(certificate: &[u8]) -> Vec<u8> {
    let parts = der::asn1::AnyRef::try_from(certificate).unwrap();
    seq(&[parts.value(), &[5, 0]])
}

fn der_of(pem: &str) -> Vec<u8> {
    der::Document::from_pem(pem).unwrap().1.as_bytes().to_vec()
}

fn attribute_of(id: [u8; 4], signer: &Signer) -> Vec<u8> {
    attribute(FILE, 2, SHA256, id, &signer.sign(CONTENT))
}

#[test]
fn keyrings_take_certificates_and_keys_and_nothing_else() {
    let signer = Signer::p256();
    let keyring = Keyring::from_pems([signer.pem(), signer.certificate("any", &[1; 20])]).unwrap();
    assert_eq!(keyring.len(), 2);
    let json = serde_json::to_string(&keyring).unwrap();
    assert_eq!(serde_json::from_str::<Keyring>(&json).unwrap(), keyring);
    // Lines may be longer than the 64 characters that openssl writes.
    for pem in keyring.pems() {
        let (label, der) = der::Document::from_pem(pem).unwrap();
        let base64 = STANDARD.encode(der.as_bytes());
        let lines: Vec<_> = base64.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let wide = format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"));
        assert!(der::Document::from_pem(&wide).is_err());
        assert_eq!(Keyring::from_pems([&wide]).unwrap().len(), 1);
    }
    let labelled = |label: &str, der: &[u8]| der::pem::encode_string(label, LineEnding::LF, der).unwrap();
    let p256k1 = Signer::ecdsa(&aws::ECDSA_P256K1_SHA256_ASN1_SIGNING);
    let small = seq(&[
        &seq(&[&oid("1.2.840.113549.1.1.1"), &[5, 0]]),
        &tlv(3, &[&[0], &seq(&[&tlv(2, &[&[3; 128]]), &tlv(2, &[&[3]])])]),
    ]);
    for wrong in [
        String::new(),
        "key".to_owned(),
        labelled("PRIVATE KEY", &signer.spki()),
        labelled("CERTIFICATE", &signer.spki()),
        signer.pem().repeat(2),
        labelled("CERTIFICATE", &with_one_part_more(&der_of(&signer.certificate("any", &[1; 20])))),
        labelled("CERTIFICATE", &[der_of(&signer.certificate("any", &[1; 20])), vec![0]].concat()),
        labelled("PUBLIC KEY", b"key"),
        labelled("PUBLIC KEY", &[signer.spki(), vec![0]].concat()),
        p256k1.pem(),
        labelled("PUBLIC KEY", &small),
    ] {
        assert!(Keyring::from_pems([&wrong]).is_err(), "{wrong}");
    }
    assert!(Keyring::from_pems(std::iter::repeat_n(signer.pem(), 257)).is_err());
    let long = "a".repeat((32 << 10) + 1);
    assert!(matches!(Keyring::from_pems([long.as_str()]), Err(KeyringError::TooLong(1))));
    assert!(matches!(Keyring::from_pems([&long[1..]]), Err(KeyringError::Pem { number: 1, .. })));
}
