//! Enrolment statements, the anchor of offline verification: N84, and N96 of old ones. `the_example_anchors_its_evidence` is the twin without
//! the defect.

mod software_tpm;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as URL;
use portcullis_attest::endorsement::{EnrolmentError, EnrolmentStatement, JwsError, VerifierKeys};
use portcullis_attest::evidence::Evidence;
use portcullis_attest::key::EnrolledAk;
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

/// When statements are issued here, the example's among them (`examples/enrolment_statement.rs` writes it): 2026-12-01, for 30
/// days.
const ISSUED: u64 = 1_796_083_200;
const LIFETIME: u64 = 30 * 86_400;
/// When they are read.
const NOW: u64 = ISSUED + 86_400;

fn statement(tpm: &SoftTpm) -> EnrolmentStatement {
    let (ek, ak) = (tpm.ek.bytes(), tpm.ak.bytes());
    EnrolmentStatement::new("verifier.example", "honest", &ek, &ak, ISSUED, LIFETIME).unwrap()
}

#[test]
fn the_example_anchors_its_evidence() {
    let keys = VerifierKeys::from_jwks(EXAMPLE_KEYS).unwrap();
    let statement = EnrolmentStatement::verify(EXAMPLE, &keys, NOW).unwrap();
    let evidence = Evidence::from_json(include_bytes!("../schemas/examples/evidence-1.json")).unwrap();
    assert_eq!(statement.host, evidence.binding.host);
    VerifiedQuote::verify(&evidence, &statement.ak().unwrap(), &evidence.binding).unwrap();

    // One that is made here is read here.
    let (signer, tpm) = (Signer::new(), SoftTpm::new());
    let made = statement_value(&tpm);
    let read = EnrolmentStatement::verify(&signer.sign(&header(), &made), &signer.keys(), NOW).unwrap();
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
    // Statements from before it was said do not say whether the endorsement key was certified.
    let mut properties = names(&schema["properties"]);
    properties.retain(|name| name != "ek_certified");
    assert_eq!(names(&payload), properties);
    let made = statement_value(&SoftTpm::new());
    assert_eq!(names(&made), names(&schema["properties"]));
    let mut required: Vec<_> =
        schema["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    required.sort_unstable();
    assert_eq!(required, names(&payload));
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(payload["schema"], schema["properties"]["schema"]["const"]);
}

#[test]
fn n98_a_statement_says_whether_the_endorsement_key_was_certified() {
    let (signer, tpm) = (Signer::new(), SoftTpm::new());
    let certified = |change: &dyn Fn(&mut Value)| {
        let mut value = statement_value(&tpm);
        change(&mut value);
        let ak =
            EnrolmentStatement::verify(&signer.sign(&header(), &value), &signer.keys(), NOW).unwrap().ak().unwrap();
        let quote = VerifiedQuote::verify(&tpm.evidence(&binding(), &pcrs()), &ak, &binding()).unwrap();
        assert_eq!(quote.is_ek_certified(), ak.is_ek_certified());
        ak.is_ek_certified()
    };
    assert!(certified(&|statement| statement["ek_certified"] = json!(true)));
    assert!(!certified(&|statement| statement["ek_certified"] = json!(false)));
    assert!(!certified(&|statement| drop(statement.as_object_mut().unwrap().remove("ek_certified"))));
    // A key whose parent is unknown has no certified one.
    let alone = EnrolledAk::without_parent(&tpm.ak.bytes()).unwrap();
    assert!(!alone.with_certified_ek(true).is_ek_certified());
}

#[test]
fn n84_statements_that_the_verifier_did_not_sign() {
    let (signer, tpm) = (Signer::new(), SoftTpm::new());
    let made = statement_value(&tpm);
    let refused = |jws: &str, keys: &VerifierKeys| match EnrolmentStatement::verify(jws, keys, NOW).unwrap_err() {
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
    let long = signer.sign(&header(), &json!({ "host": "a".repeat(70_000) }));
    assert!(matches!(refused(&long, &signer.keys()), JwsError::Malformed { .. }));
    // Another payload under the genuine signature.
    let parts: Vec<_> = genuine.split('.').collect();
    let mut changed = made;
    changed["host"] = json!("tampered");
    let swapped = format!("{}.{}.{}", parts[0], URL.encode(changed.to_string()), parts[2]);
    assert!(matches!(refused(&swapped, &signer.keys()), JwsError::Invalid));
}

#[test]
fn n96_a_statement_past_its_time_anchors_nothing() {
    let (signer, tpm) = (Signer::new(), SoftTpm::new());
    let jws = signer.sign(&header(), &statement_value(&tpm));
    let at = |now| EnrolmentStatement::verify(&jws, &signer.keys(), now);
    for now in [ISSUED, NOW, ISSUED + LIFETIME - 1] {
        at(now).unwrap();
    }
    for now in [0, ISSUED - 1, ISSUED + LIFETIME, u64::MAX] {
        let expected = (ISSUED, ISSUED + LIFETIME, now);
        match at(now).unwrap_err() {
            EnrolmentError::Expired { issued_at, expires_at, now } => {
                assert_eq!((issued_at, expires_at, now), expected);
            }
            other => panic!("{other}"),
        }
    }
    // One that does not end is none; nor is one that ends before it begins.
    let outcome = |change: &dyn Fn(&mut Value)| {
        let mut value = statement_value(&tpm);
        change(&mut value);
        EnrolmentStatement::verify(&signer.sign(&header(), &value), &signer.keys(), NOW).map(|_| ())
    };
    let endless = outcome(&|statement| {
        statement.as_object_mut().unwrap().remove("exp");
    });
    assert!(matches!(endless, Err(EnrolmentError::Jws(JwsError::Content { .. }))));
    assert!(matches!(outcome(&|statement| statement["exp"] = ISSUED.into()), Err(EnrolmentError::Field(_))));
    assert!(EnrolmentStatement::new("verifier", "honest", &tpm.ek.bytes(), &tpm.ak.bytes(), ISSUED, 0).is_err());
    // Its end is signed.
    outcome(&|_| ()).unwrap();
    let parts: Vec<_> = jws.split('.').collect();
    let mut longer = statement_value(&tpm);
    longer["exp"] = u64::MAX.into();
    let swapped = format!("{}.{}.{}", parts[0], URL.encode(longer.to_string()), parts[2]);
    let refused = EnrolmentStatement::verify(&swapped, &signer.keys(), ISSUED + LIFETIME);
    assert!(matches!(refused, Err(EnrolmentError::Jws(JwsError::Invalid))));
}

#[test]
fn n84_statements_that_anchor_nothing() {
    let (signer, tpm) = (Signer::new(), SoftTpm::new());
    let outcome = |change: &dyn Fn(&mut Value)| {
        let mut value = statement_value(&tpm);
        change(&mut value);
        EnrolmentStatement::verify(&signer.sign(&header(), &value), &signer.keys(), NOW).map(|_| ())
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
    let refused =
        EnrolmentStatement::new("verifier", "honest", &ek().bytes(), &unrestricted.bytes(), 0, 1).unwrap_err();
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
    // The bytes of a point, but not each coordinate's.
    let [x, y] = ["x", "y"].map(|name| URL.decode(one[name].as_str().unwrap()).unwrap());
    let mut moved = one.clone();
    moved["x"] = json!(URL.encode(&x[..31]));
    moved["y"] = json!(URL.encode([&x[31..], &y].concat()));
    assert!(keys(&[moved]).is_err());
    assert!(VerifierKeys::from_jwks(b"{}").is_err());
    let padded =
        |blanks| VerifierKeys::from_jwks(format!("{}{}", json!({ "keys": [one] }), " ".repeat(blanks)).as_bytes());
    assert!(padded(1000).is_ok());
    assert!(padded(70_000).is_err());
}
