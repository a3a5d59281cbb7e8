//! Attestation keys that must be refused: N19 to N22 and N24 to N26, and N83's storage parents. `genuine_keys_pass` is the
//! twin without the defect.

mod software_tpm;

use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING};
use der::{Decode as _, Encode as _};
use portcullis_attest::key::{Bank, EnrolledAk, KeyError, PublicArea, QuotingKey};
use portcullis_attest::reason::ReasonCode as Code;
use portcullis_attest::release::CertifiedParent;
use software_tpm::*;

fn refused(ak: &Public) -> Vec<Code> {
    EnrolledAk::new(&ak.bytes(), &ek().bytes()).map_or_else(|reasons| codes(&reasons), |_| Vec::new())
}

/// Refusal of a genuine P-256 key after one change.
fn ecc(change: impl FnOnce(&mut Public)) -> Vec<Code> {
    let mut ak = SoftTpm::new().ak;
    change(&mut ak);
    refused(&ak)
}

/// Refusal of a genuine RSA key after one change.
fn rsa(change: impl FnOnce(&mut Public)) -> Vec<Code> {
    let mut ak = SoftTpm::rsa(KeySize::Rsa2048, RSASSA, Bank::Sha256).ak;
    change(&mut ak);
    refused(&ak)
}

#[test]
fn genuine_keys_pass() {
    assert_eq!(ecc(|_| ()), []);
    assert_eq!(rsa(|_| ()), []);
    assert_eq!(rsa(|ak| ak.exponent = 65_537), []);
    for tpm in [
        SoftTpm::ecdsa(P384, Bank::Sha384, &ECDSA_P384_SHA384_FIXED_SIGNING),
        SoftTpm::ecdsa(P521, Bank::Sha512, &ECDSA_P521_SHA512_FIXED_SIGNING),
        SoftTpm::rsa(KeySize::Rsa3072, RSAPSS, Bank::Sha384),
        SoftTpm::rsa(KeySize::Rsa4096, RSASSA, Bank::Sha256),
    ] {
        assert_eq!(refused(&tpm.ak), []);
    }
    // A policy, noDA and a larger name algorithm change nothing.
    assert_eq!(ecc(|ak| ak.policy = vec![1; 32]), []);
    assert_eq!(ecc(|ak| ak.attributes |= 1 << 10), []);
    assert_eq!(ecc(|ak| ak.name_alg = 0x000C), []);
}

#[test]
fn n19_weak_keys() {
    for bits in [512_u16, 1024, 1536] {
        let weak = rsa(|ak| {
            ak.size = bits;
            ak.unique[0].truncate(usize::from(bits / 8));
            *ak.unique[0].last_mut().unwrap() |= 1;
        });
        assert!(weak.contains(&Code::AkWeakKey), "RSA-{bits}: {weak:?}");
    }
    for exponent in [1, 2, 3, 4, 65_536, 65_538] {
        let weak = rsa(|ak| ak.exponent = exponent);
        assert!(weak.contains(&Code::AkWeakKey), "exponent {exponent}: {weak:?}");
    }
    // P-192, P-224, BN-P256, and a curve that nobody knows.
    for curve in [0x0001, 0x0002, 0x0010, 0x7FFF] {
        let weak = ecc(|ak| ak.size = curve);
        assert!(weak.contains(&Code::AkWeakKey), "curve {curve:#06x}: {weak:?}");
    }
    // The same of a bare key, as `quote check` takes it.
    let bare = |exponent| {
        let key = Public { exponent, ..SoftTpm::rsa(KeySize::Rsa2048, RSASSA, Bank::Sha256).ak };
        let spki = PublicArea::parse(&key.bytes()).unwrap().spki_der().unwrap();
        let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, spki);
        QuotingKey::from_pem(&format!("-----BEGIN PUBLIC KEY-----\n{base64}\n-----END PUBLIC KEY-----\n"))
    };
    assert!(bare(0).is_ok() && bare(65_539).is_ok());
    assert_eq!(codes(&bare(3).unwrap_err().reasons), [Code::AkWeakKey]);
    // Not a point of the curve.
    assert_eq!(ecc(|ak| ak.unique[1][0] ^= 1), [Code::AkWeakKey]);
    assert_eq!(ecc(|ak| ak.unique = vec![vec![0; 32], vec![0; 32]]), [Code::AkWeakKey]);
    // Numbers that do not fit the key's size.
    assert_eq!(ecc(|ak| ak.unique[0].insert(0, 0)), [Code::AkMalformed]);
    assert_eq!(ecc(|ak| ak.unique[0].clear()), [Code::AkMalformed]);
    assert_eq!(rsa(|ak| ak.unique[0].clear()), [Code::AkMalformed]);
    assert_eq!(rsa(|ak| ak.unique[0][0] = 0), [Code::AkMalformed]);
    assert_eq!(rsa(|ak| *ak.unique[0].last_mut().unwrap() &= 0xFE), [Code::AkMalformed]);
    assert_eq!(rsa(|ak| ak.size = 0), [Code::AkMalformed]);
}

#[test]
fn n20_not_restricted() {
    assert_eq!(ecc(|ak| ak.attributes &= !(1 << 16)), [Code::AkNotRestricted]);
    assert_eq!(rsa(|ak| ak.attributes &= !(1 << 16)), [Code::AkNotRestricted]);
}

#[test]
fn n21_attributes_of_no_attestation_key() {
    for (bit, code) in
        [(1, Code::AkNotFixedTpm), (4, Code::AkNotFixedParent), (5, Code::AkForeignSecret), (18, Code::AkNotSigning)]
    {
        assert_eq!(ecc(|ak| ak.attributes &= !(1 << bit)), [code]);
    }
    assert_eq!(ecc(|ak| ak.attributes |= 1 << 17), [Code::AkDecrypts]);
    assert_eq!(ecc(|ak| ak.attributes |= 1 << 19), [Code::AkNotSigning], "signs certificates only");
    // All that is wrong is said at once.
    assert_eq!(ecc(|ak| ak.attributes = 0).len(), 5);
}

#[test]
fn n22_the_name_is_computed_from_the_public_area() {
    let tpm = SoftTpm::new();
    let ak = tpm.enrolled().unwrap();
    assert_eq!(ak.name(), [&[0, 0x0B][..], &Bank::Sha256.hash(&tpm.ak.bytes())].concat());
    assert_eq!(ak.qualified_name(), Some(&*tpm.qualified_name()));
    // Whatever changes in the public area changes the name, so no name can be kept for another key.
    for index in 0..tpm.ak.bytes().len() {
        let mut bytes = tpm.ak.bytes();
        bytes[index] ^= 1;
        if let Ok(other) = PublicArea::parse(&bytes) {
            assert_ne!(other.name(), ak.name(), "byte {index}");
        }
    }
}

/// The one place where somebody else says a key's name: the TPM's certification of a storage parent.
#[test]
fn n22_a_name_that_is_not_the_public_areas() {
    let (tpm, parent) = (SoftTpm::new(), parent());
    let denied = |name: &[u8]| certified_as(&tpm, &parent, name, TPM_RH_NULL);
    assert_eq!(denied(&parent.name()), []);
    let larger = Public { name_alg: 0x000C, ..parent.clone() };
    assert_eq!(certified(&tpm, &larger, TPM_RH_NULL), [], "a name of another algorithm is of that algorithm");
    let digest = &parent.name()[2..];
    let changed = Public { attributes: parent.attributes ^ 1 << 10, ..parent.clone() };
    for (what, name) in [
        ("another algorithm's number", [&[0, 0x0C], digest].concat()),
        ("the digest alone", digest.to_vec()),
        ("cut short", parent.name()[..33].to_vec()),
        ("made with another algorithm", larger.name()),
        ("of the public area with another attribute", changed.name()),
        ("of another key", SoftTpm::new().ak.name()),
        ("none", vec![]),
    ] {
        assert_eq!(denied(&name), [Code::ParentNotCertified], "{what}");
    }
}

#[test]
fn n24_name_algorithms() {
    for algorithm in [NULL, 0, 0x0005, 0x0027, 0xFFFF] {
        assert_eq!(ecc(|ak| ak.name_alg = algorithm), [Code::AkNameAlgorithm], "{algorithm:#06x}");
        let bytes = Public { name_alg: algorithm, ..SoftTpm::new().ak }.bytes();
        assert_eq!(PublicArea::parse(&bytes), Err(KeyError::NameAlgorithm(algorithm)));
    }
    assert_eq!(ecc(|ak| ak.name_alg = 0x0004), [Code::AkNameAlgorithm], "SHA-1");
    // A policy that has not the name algorithm's length.
    assert_eq!(ecc(|ak| ak.policy = vec![1; 20]), [Code::AkMalformed]);
}

#[test]
fn n25_public_areas_must_end_where_they_end() {
    for public in [SoftTpm::new().ak.bytes(), ek().bytes()] {
        PublicArea::parse(&public).unwrap();
        for length in 0..public.len() {
            assert!(PublicArea::parse(&public[..length]).is_err(), "cut to {length} bytes");
        }
        assert!(PublicArea::parse(&[public.as_slice(), &[0]].concat()).is_err());
        let whole = sized(&public);
        assert_eq!(PublicArea::parse_tpm2b(&whole).unwrap().to_tpm2b(), whole);
        assert!(PublicArea::parse_tpm2b(&[whole.as_slice(), &[0]].concat()).is_err());
        assert!(PublicArea::parse_tpm2b(&whole[..whole.len() - 1]).is_err());
        assert!(PublicArea::parse_tpm2b(&public).is_err());
        for bytes in [&public, &whole] {
            assert_eq!(PublicArea::parse_either(bytes).unwrap().bytes(), public);
            assert!(PublicArea::parse_either(&bytes[..bytes.len() - 1]).is_err());
            assert!(PublicArea::parse_either(&[bytes.as_slice(), &[0]].concat()).is_err());
        }
    }
    let huge = Public { size: 9000, unique: vec![vec![0xFF; 1125]], ..ek() }.bytes();
    assert_eq!(PublicArea::parse(&huge), Err(KeyError::TooLong(huge.len())));
    // A key that is no key pair, and a key derivation function, which no key that signs or wraps has.
    let kind = Public { kind: 0x0008, ..SoftTpm::new().ak }.bytes();
    assert_eq!(PublicArea::parse(&kind), Err(KeyError::Kind(8)));
    let mut kdf = SoftTpm::new().ak.bytes();
    assert_eq!(kdf[18..20], NULL.to_be_bytes());
    kdf[18..20].copy_from_slice(&[0, 0x20]);
    assert_eq!(PublicArea::parse(&kdf), Err(KeyError::Scheme { what: "kdf", id: 0x20 }));
    let (ak, ek) = (SoftTpm::new().ak.bytes(), ek().bytes());
    let longer = [ak.as_slice(), &[0]].concat();
    assert_eq!(codes(&EnrolledAk::new(&longer, &ek).unwrap_err()), [Code::AkMalformed]);
    let longer = [ek.as_slice(), &[0]].concat();
    assert_eq!(codes(&EnrolledAk::new(&ak, &longer).unwrap_err()), [Code::EkMalformed]);
}

/// A key in PEM is in the one form that DER has for it, so that its fingerprint is that of the key.
#[test]
fn n25_a_pem_in_another_form() {
    let ak = SoftTpm::rsa(KeySize::Rsa2048, RSASSA, Bank::Sha256).ak.bytes();
    let der = PublicArea::parse(&ak).unwrap().spki_der().unwrap();
    let read = |der: &[u8]| {
        let pem = der::pem::encode_string("PUBLIC KEY", der::pem::LineEnding::LF, der).unwrap();
        QuotingKey::from_pem(&pem).map(|_| ()).map_err(|reasons| codes(&reasons))
    };
    assert_eq!(read(&der), Ok(()));
    // Without the NULL that RSA's algorithm has for parameters.
    let mut info = spki::SubjectPublicKeyInfoRef::from_der(&der).unwrap();
    info.algorithm.parameters = None;
    assert_eq!(read(&info.to_der().unwrap()), Err(vec![Code::AkMalformed]));
}

#[test]
fn n17_n26_schemes_that_prove_nothing_here() {
    // SHA-1, an unknown hash, no scheme at all, SM2 on another curve than its own.
    assert_eq!(ecc(|ak| ak.scheme = (ECDSA, 0x0004)), [Code::AkScheme]);
    assert_eq!(rsa(|ak| ak.scheme = (RSASSA, 0x0004)), [Code::AkScheme]);
    assert_eq!(ecc(|ak| ak.scheme = (ECDSA, 0x0027)), [Code::AkScheme]);
    assert_eq!(ecc(|ak| ak.scheme = (NULL, 0)), [Code::AkScheme]);
    assert_eq!(ecc(|ak| ak.scheme = (0x001B, 0x0012)), [Code::AkScheme]);
    assert_eq!(rsa(|ak| ak.scheme = (0x0017, 0x000B)), [Code::AkScheme], "OAEP does not sign");
    // Schemes of the other kind of key do not parse.
    assert_eq!(ecc(|ak| ak.scheme = (RSASSA, 0x000B)), [Code::AkMalformed]);
    assert_eq!(rsa(|ak| ak.scheme = (ECDSA, 0x000B)), [Code::AkMalformed]);
}

const TPM_RH_NULL: u32 = 0x4000_0007;

/// A storage parent as hosts make them, in software.
fn parent() -> Public {
    Public {
        attributes: 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10 | 1 << 16 | 1 << 17,
        symmetric: [6_u16.to_be_bytes(), 128_u16.to_be_bytes(), 0x43_u16.to_be_bytes()].concat(),
        scheme: (NULL, 0),
        ..SoftTpm::new().ak
    }
}

/// Refusal of a certified parent whose certification `tpm` signed for a primary of `hierarchy`.
fn certified(tpm: &SoftTpm, parent: &Public, hierarchy: u32) -> Vec<Code> {
    certified_as(tpm, parent, &parent.name(), hierarchy)
}

/// The same with a certification of another name.
fn certified_as(tpm: &SoftTpm, parent: &Public, name: &[u8], hierarchy: u32) -> Vec<Code> {
    let mut attest = tpm.attest(&binding(), &pcrs());
    attest.kind = 0x8017;
    attest.body = [sized(name), sized(&parent.qualified_name(&hierarchy.to_be_bytes()))].concat();
    let message = attest.bytes();
    let verified =
        CertifiedParent::verify(&parent.bytes(), &message, &tpm.sign(&message), &tpm.enrolled().unwrap(), &binding());
    verified.map_or_else(|reasons| codes(&reasons), |_| Vec::new())
}

#[test]
fn n83_storage_parents_that_could_leave_or_outlive_the_boot() {
    let tpm = SoftTpm::new();
    assert_eq!(certified(&tpm, &parent(), TPM_RH_NULL), []);
    // Owner, endorsement and platform hierarchies outlive a reset.
    for hierarchy in [0x4000_0001, 0x4000_000B, 0x4000_000C] {
        assert_eq!(certified(&tpm, &parent(), hierarchy), [Code::ParentHierarchy], "{hierarchy:#010x}");
    }
    for bit in [1, 4, 5, 16, 17] {
        let parent = Public { attributes: parent().attributes & !(1 << bit), ..parent() };
        assert_eq!(certified(&tpm, &parent, TPM_RH_NULL), [Code::ParentAttributes], "bit {bit} clear");
    }
    let signing = Public { attributes: parent().attributes | 1 << 18, ..parent() };
    assert_eq!(certified(&tpm, &signing, TPM_RH_NULL), [Code::ParentAttributes]);
    let unprotected = Public { symmetric: NULL.to_be_bytes().to_vec(), ..parent() };
    assert_eq!(certified(&tpm, &unprotected, TPM_RH_NULL), [Code::ParentWeakKey]);
    let sha1 = Public { name_alg: 0x0004, ..parent() };
    assert_eq!(certified(&tpm, &sha1, TPM_RH_NULL), [Code::ParentWeakKey]);
    let with_scheme = Public { scheme: (ECDSA, 0x000B), ..parent() };
    assert_eq!(certified(&tpm, &with_scheme, TPM_RH_NULL), [Code::ParentWeakKey]);
    let another_curve = Public { size: 0x0010, ..parent() };
    assert_eq!(certified(&tpm, &another_curve, TPM_RH_NULL), [Code::ParentWeakKey]);
    assert_eq!(certified(&tpm, &ek(), TPM_RH_NULL), [], "RSA");
    // Bytes after the certification, which its signature covers, too.
    let parent = parent();
    let mut attest = tpm.attest(&binding(), &pcrs());
    attest.kind = 0x8017;
    attest.body = [sized(&parent.name()), sized(&parent.qualified_name(&TPM_RH_NULL.to_be_bytes())), vec![0]].concat();
    let message = attest.bytes();
    let verified =
        CertifiedParent::verify(&parent.bytes(), &message, &tpm.sign(&message), &tpm.enrolled().unwrap(), &binding());
    assert_eq!(codes(&verified.err().unwrap()), [Code::ParentMalformed]);
    assert_eq!(certified(&tpm, &Public { exponent: 3, ..ek() }, TPM_RH_NULL), [Code::ParentWeakKey]);
}
