//! Whatever bytes come in, parsers answer: with a value or with an error. Random bytes find little; so genuine structures
//! with random changes are tried too.

mod software_ca;
mod software_tpm;

use std::sync::LazyLock;
use std::time::SystemTime;

use portcullis_attest::endorsement::{EkRoots, EndorsementKey, make_credential};
use portcullis_attest::evidence::{Evidence, SignedQuote};
use portcullis_attest::key::{EnrolledAk, PublicArea, Signature};
use portcullis_attest::quote::VerifiedQuote;
use portcullis_attest::release::CertifiedParent;
use proptest::prelude::*;
use software_tpm::*;

static TPM: LazyLock<SoftTpm> = LazyLock::new(SoftTpm::new);
static AK: LazyLock<EnrolledAk> = LazyLock::new(|| TPM.enrolled().unwrap());
static CERTIFICATE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let spki = PublicArea::parse(&TPM.ek.bytes()).unwrap().spki_der().unwrap();
    let issuer = software_ca::Authority::new("root", "root");
    software_ca::ek_certificate("root", spki, software_ca::KEY_ENCIPHERMENT).signed_by(&issuer)
});

/// Sets, inserts or removes a few bytes.
fn mangled(mut bytes: Vec<u8>, changes: &[(u16, u8, u8)]) -> Vec<u8> {
    for &(at, how, byte) in changes {
        let at = usize::from(at) % (bytes.len() + 1);
        match how % 4 {
            0 => bytes.insert(at, byte),
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 => bytes.truncate(at),
            _ if at < bytes.len() => bytes[at] = byte,
            _ => {}
        }
    }
    bytes
}

fn changes() -> impl Strategy<Value = Vec<(u16, u8, u8)>> {
    proptest::collection::vec(any::<(u16, u8, u8)>(), 1..6)
}

fn everything(bytes: &[u8]) {
    if let Ok(key) = PublicArea::parse(bytes) {
        assert_eq!(key.bytes(), bytes);
        assert!(key.name().len() > 2);
        let _ = key.spki_der();
    }
    let _ = PublicArea::parse_tpm2b(bytes);
    let _ = EnrolledAk::new(bytes, bytes);
    let _ = EndorsementKey::check(bytes, Some(bytes), &[bytes], &EkRoots::default(), SystemTime::now());
    let _ = EkRoots::from_dir_files([("file", bytes)]);
    let _ = make_credential(bytes, &[0; 34], &[0; 16]);
    if let Ok(signature) = Signature::parse(bytes) {
        let _ = signature.verify(AK.public(), b"message");
    }
    let _ = Evidence::from_json(bytes);
    // Validly signed, so that the structure itself is read.
    let signature = TPM.sign(bytes);
    let signed = CertifiedParent::verify(bytes, bytes, &signature, &AK, &binding());
    assert!(signed.is_err());
    let quote = SignedQuote { message: bytes.to_vec(), signature, pcrs: pcrs() };
    let _ = VerifiedQuote::verify(&evidence(&binding(), vec![quote]), &AK, &binding());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        everything(&bytes);
    }

    #[test]
    fn mangled_public_areas(changes in changes()) {
        everything(&mangled(TPM.ak.bytes(), &changes));
        everything(&mangled(TPM.ek.bytes(), &changes));
    }

    #[test]
    fn mangled_quotes(changes in changes()) {
        let genuine = TPM.evidence(&binding(), &pcrs());
        everything(&mangled(genuine.quotes[0].message.clone(), &changes));
        everything(&mangled(genuine.quotes[0].signature.clone(), &changes));
        everything(&mangled(genuine.to_json().unwrap(), &changes));
    }

    #[test]
    fn mangled_certificates(changes in changes()) {
        let bytes = mangled(CERTIFICATE.clone(), &changes);
        everything(&bytes);
        let _ = EndorsementKey::check(&TPM.ek.bytes(), Some(&bytes), &[], &EkRoots::default(), SystemTime::now());
    }

    /// No change of a signed quote passes: neither of the structure, nor of the values, nor of the signature (ECDSA has one
    /// other valid form of every signature, which random changes do not hit).
    #[test]
    fn a_changed_quote_is_denied(changes in changes(), which in 0..2) {
        let mut quoted = TPM.evidence(&binding(), &pcrs());
        let bytes = if which == 0 { &mut quoted.quotes[0].message } else { &mut quoted.quotes[0].signature };
        let before = bytes.clone();
        *bytes = mangled(before.clone(), &changes);
        prop_assume!(*bytes != before);
        prop_assert!(VerifiedQuote::verify(&quoted, &AK, &binding()).is_err());
    }
}
