//! Enrolment statements, the anchor of offline verification: N84. `the_example_anchors_its_evidence` is the twin without
//! the defect.

mod software_tpm;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as URL;
use portcullis_attest::endorsement::{EnrolmentError, EnrolmentStatement, JwsError, VerifierKeys};
use portcullis_attest::evidence::Evidence;
use portcullis_attest::quote::VerifiedQuote;
use portcullis_attest::reason::ReasonCode as Code;
use serde_json::{Value, json};
use software_tpm::{SoftTpm, binding, codes, ek, pcrs};

const EXAMPLE: &str = include_str!("../schemas/examples/enrolment-1.jws");
const EXAMPLE_KEYS: &[u8] = include_bytes!("../schemas/examples/enrolment-1.jwks.json");

/// A verifier's signing key.
struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    fn jwk(&self, kid: &str) -> Value {
        let (x, y) = self.0.public_key().as_ref()[1..].split_at(32);
        json!({ "kty": "EC", "crv": "P-256", "x": URL.encode(x), "y": URL.encode(y), "kid": kid, "use": "sig" })
    }

    fn keys(&self) -> VerifierKeys {
        keys(&[self.jwk("one")]).unwrap()
    }

    fn sign(&self, header: &Value, payload: &Value) -> String {
        let signed = format!("{}.{}", URL.encode(header.to_string()), URL.encode(payload.to_string()));
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL.encode(signature))
    }
}

fn keys(jwks: &[Value]) -> Result<VerifierKeys, JwsError> {
    VerifierKeys::from_jwks(json!({ "keys": jwks }).to_string().as_bytes())
}

fn header() -> Value {
    json!({ "alg": "ES256", "typ": "portcullis-enrolment+jwt", "kid": "one" })
}

fn statement(tpm: &SoftTpm) -> EnrolmentStatement {
    EnrolmentStatement::new("verifier.example", "honest", &tpm.ek.bytes(), &tpm.ak.bytes(), 1_900_000_000).unwrap()
}

#[test]
fn the_example_anchors_its_evidence() {
    let keys = VerifierKeys::from_jwks(EXAMPLE_KEYS).unwrap();
    let statement = EnrolmentStatement::verify(EXAMPLE, &keys).unwrap();
    let evidence = Evidence::from_json(include_bytes!("../schemas/examples/evidence-1.json")).unwrap();
    assert_eq!(statement.host, evidence.binding.host);
    VerifiedQuote::verify(&evidence, &statement.ak().unwrap(), &evidence.binding).unwrap();

    // One that is made here is read here.
    let (signer, tpm) = (Signer::new(), SoftTpm::new());
    let made = statement_value(&tpm);
    let read = EnrolmentStatement::verify(&signer.sign(&header(), &made), &signer.keys()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), made);
    VerifiedQuote::verify(&tpm.evidence(&binding(), &pcrs()), &read.ak().unwrap(), &binding()).unwrap();
}

fn statement_value(tpm: &SoftTpm) -> Value {
    serde_json::to_value(statement(tpm)).unwrap()
}

#[test]
fn the_schema_names_what_a_statement_has() {
    let schema: Value = serde_json::from_str(include_str!("../schemas/enrolment-1.json")).unwrap();
    let payload = URL.decode(EXAMPLE.split('.').nth(1).unwrap()).unwrap();
    let payload: Value = serde_json::from_slice(&payload).unwrap();
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&payload), names(&schema["properties"]));
    let mut required: Vec<_> =
        schema["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    required.sort_unstable();
    assert_eq!(required, names(&payload));
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(payload["schema"], schema["properties"]["schema"]["const"]);
}

#[test]
fn n84_statements_that_the_verifier_did_not_sign() {
    let (signer, tpm) = (Signer::new(), SoftTpm::new());
    let made = statement_value(&tpm);
    let refused = |jws: &str, keys: &VerifierKeys| match EnrolmentStatement::verify(jws, keys).unwrap_err() {
        EnrolmentError::Jws(error) => error,
        other => panic!("{other}"),
    };
    // By somebody else under the same key id, and under an id of their own.
    let forged = Signer::new().sign(&header(), &made);
    assert!(matches!(refused(&forged, &signer.keys()), JwsError::Invalid));
    let other = keys(&[signer.jwk("two")]).unwrap();
    assert!(matches!(refused(&signer.sign(&header(), &made), &other), JwsError::UnknownKey(_)));
    // What the verifier signed for something else, or without saying so, or not at all.
    for (field, value) in [
        ("typ", json!("portcullis-order+jwt")),
        ("typ", json!("JWT")),
        ("alg", json!("none")),
        ("alg", json!("HS256")),
        ("crit", json!(["exp"])),
        ("jwk", signer.jwk("one")),
        ("kid", Value::Null),
    ] {
        let mut header = header();
        header[field] = value;
        let jws = signer.sign(&header, &made);
        assert!(matches!(refused(&jws, &signer.keys()), JwsError::Malformed { .. }), "{header}");
    }
    let genuine = signer.sign(&header(), &made);
    let unsigned = &genuine[..=genuine.rfind('.').unwrap()];
    assert!(matches!(refused(unsigned, &signer.keys()), JwsError::Invalid));
    for jws in ["", ".", "..", "a.b.c", &format!("{genuine}.x"), &format!("{genuine}="), &"a".repeat(70_000)] {
        assert!(matches!(refused(jws, &signer.keys()), JwsError::Malformed { .. }), "{jws:.40}");
    }
    // Another payload under the genuine signature.
    let parts: Vec<_> = genuine.split('.').collect();
    let mut changed = made;
    changed["host"] = json!("tampered");
    let swapped = format!("{}.{}.{}", parts[0], URL.encode(changed.to_string()), parts[2]);
    assert!(matches!(refused(&swapped, &signer.keys()), JwsError::Invalid));
}

#[test]
fn n84_statements_that_anchor_nothing() {
    let (signer, tpm) = (Signer::new(), SoftTpm::new());
    let outcome = |change: &dyn Fn(&mut Value)| {
        let mut value = statement_value(&tpm);
        change(&mut value);
        EnrolmentStatement::verify(&signer.sign(&header(), &value), &signer.keys()).map(|_| ())
    };
    outcome(&|_| ()).unwrap();
    for (field, value) in
        [("schema", json!("portcullis/enrolment/2")), ("host", json!("A b")), ("ek", json!("00".repeat(32)))]
    {
        let error = outcome(&|statement| statement[field] = value.clone()).unwrap_err();
        assert!(matches!(error, EnrolmentError::Field(_)), "{field}: {error}");
    }
    for change in
        [&|statement: &mut Value| statement["more"] = json!(1), &|statement: &mut Value| statement["iat"] = json!(-1)]
            as [&dyn Fn(&mut Value); 2]
    {
        assert!(matches!(outcome(change), Err(EnrolmentError::Jws(JwsError::Content { .. }))));
    }
    // Keys that no enrolment has.
    let mut unrestricted = tpm.ak.clone();
    unrestricted.attributes &= !(1 << 16);
    let refused = EnrolmentStatement::new("verifier", "honest", &ek().bytes(), &unrestricted.bytes(), 0).unwrap_err();
    let EnrolmentError::Keys(reasons) = refused else { panic!("{refused}") };
    assert_eq!(codes(&reasons), [Code::AkNotRestricted]);
}

#[test]
fn key_sets_must_be_what_they_say() {
    let one = Signer::new().jwk("one");
    assert!(keys(&[one.clone(), Signer::new().jwk("two")]).is_ok());
    assert!(keys(&[]).is_err());
    assert!(keys(&[one.clone(), Signer::new().jwk("one")]).is_err(), "one id for two keys");
    assert!(keys(&vec![one.clone(); 17]).is_err());
    for (field, value) in [
        ("kty", json!("RSA")),
        ("crv", json!("P-384")),
        ("x", json!("AAAA")),
        ("y", one["x"].clone()),
        ("x", json!("not base64!")),
        ("kid", Value::Null),
    ] {
        let mut bad = one.clone();
        bad[field] = value;
        assert!(keys(&[bad]).is_err(), "{field}");
    }
    assert!(VerifierKeys::from_jwks(b"{}").is_err());
    assert!(VerifierKeys::from_jwks(&vec![b' '; 70_000]).is_err());
}
