//! What somebody signed as a JWS: reference values and enrolment statements, and the keys that such signatures name.

use std::sync::LazyLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis_attest::endorsement::{ENROLMENT_TYP, EnrolmentStatement, VerifierKeys};
use portcullis_attest::key::Bank;
use portcullis_attest::reference::ReferenceValues;
use portcullis_attest::reference::signature::SignerKey;
use portcullis_attest::result::{ResultClaims, TYP};

use super::Target;
use super::documents::pem;
use super::keys::TPM;
use super::software_ca::{oid, seq, tlv};
use super::software_tpm::fixed_p256;

/// A verifier's, or a signer's of reference values.
static KEY: LazyLock<EcdsaKeyPair> = LazyLock::new(|| fixed_p256(9, &ECDSA_P256_SHA256_FIXED_SIGNING));

fn sign(message: &str) -> String {
    URL_SAFE_NO_PAD.encode(KEY.sign(&SystemRandom::new(), message.as_bytes()).expect("a signature"))
}

/// The key's SubjectPublicKeyInfo.
fn spki() -> Vec<u8> {
    let algorithm = seq(&[&oid("1.2.840.10045.2.1"), &oid("1.2.840.10045.3.1.7")]);
    seq(&[&algorithm, &tlv(3, &[&[0], KEY.public_key().as_ref()])])
}

static SIGNERS: LazyLock<[SignerKey; 1]> =
    LazyLock::new(|| [SignerKey::from_pem(&pem("PUBLIC KEY", &spki())).expect("a P-256 key")]);

const SIGNED: &str = "schema = \"portcullis/reference/1\"\nname = \"signed\"\n";

/// What stands in the file beside reference values: their signature.
pub const REFERENCE_SIGNATURE: Target =
    Target { name: "reference_signature", body: reference_signature, max_len: 512, seeds: |_| signatures() };

fn reference_signature(bytes: &[u8]) -> bool {
    let Ok(jws) = std::str::from_utf8(bytes) else { return false };
    let other = format!("{SIGNED}# \n");
    assert!(ReferenceValues::from_signed(&other, jws, &*SIGNERS).is_err(), "nobody signed that");
    ReferenceValues::from_signed(SIGNED, jws, &*SIGNERS).is_ok()
}

fn signatures() -> Vec<Vec<u8>> {
    let kid = hex::encode(Bank::Sha256.hash(&spki()));
    let header = format!("{{\"alg\":\"ES256\",\"typ\":\"portcullis-reference+jws\",\"kid\":\"{kid}\"}}");
    let header = URL_SAFE_NO_PAD.encode(header);
    let signature = sign(&format!("{header}.{}", URL_SAFE_NO_PAD.encode(SIGNED)));
    vec![format!("{header}..{signature}\n").into_bytes()]
}

static VERIFIER: LazyLock<VerifierKeys> =
    LazyLock::new(|| VerifierKeys::from_jwks(&key_set()).expect("a verifier's keys"));

fn key_set() -> Vec<u8> {
    let (x, y) = KEY.public_key().as_ref()[1..].split_at(32);
    let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
    format!("{{\"keys\":[{{\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":\"{x}\",\"y\":\"{y}\",\"kid\":\"1\"}}]}}")
        .into_bytes()
}

/// When the seeds were issued, and when what is read is judged.
const ISSUED: u64 = 1_796_083_200;

/// An enrolment statement's payload, which the verifier signs whatever it says; with a dot in it, a whole JWS.
pub const ENROLMENT: Target = Target { name: "enrolment", body: enrolment, max_len: 2048, seeds: |_| enrolments() };

fn enrolment(bytes: &[u8]) -> bool {
    if let Some(jws) = std::str::from_utf8(bytes).ok().filter(|text| text.starts_with("ey")) {
        return EnrolmentStatement::verify(jws, &VERIFIER, ISSUED).is_ok();
    }
    let jws = jws(ENROLMENT_TYP, bytes);
    let Ok(statement) = EnrolmentStatement::verify(&jws, &VERIFIER, ISSUED) else { return false };
    assert!(EnrolmentStatement::verify(&jws, &VERIFIER, statement.exp).is_err(), "a statement ends");
    assert!(statement.ak().is_ok(), "a statement names keys that can be enrolled");
    true
}

fn jws(typ: &str, payload: &[u8]) -> String {
    let header = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"ES256\",\"typ\":\"{typ}\",\"kid\":\"1\"}}"));
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(payload));
    format!("{signed}.{}", sign(&signed))
}

fn enrolments() -> Vec<Vec<u8>> {
    let statement =
        EnrolmentStatement::new("verifier.example", "honest", &TPM.ek.bytes(), &TPM.ak.bytes(), ISSUED, 3600);
    let payload = serde_json::to_vec(&statement.expect("a statement")).expect("JSON");
    vec![jws(ENROLMENT_TYP, &payload).into_bytes(), payload]
}

/// A verifier's public keys.
pub const VERIFIER_KEYS: Target = Target {
    name: "verifier_keys",
    body: |bytes| VerifierKeys::from_jwks(bytes).is_ok(),
    max_len: 1024,
    seeds: |_| vec![key_set()],
};

/// An attestation result, which the verifier signs whatever it says.
pub const RESULT_TOKEN: Target = Target {
    name: "result_token",
    body: |bytes| ResultClaims::from_token(&jws(TYP, bytes), &VERIFIER).is_ok(),
    max_len: 2048,
    seeds: |_| vec![include_bytes!("../../../attest/schemas/examples/result-1.json").to_vec()],
};
