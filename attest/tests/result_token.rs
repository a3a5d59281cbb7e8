//! Results as tokens: what one key signed, another does not check, and nothing holds for ever.

mod software_tpm;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis_attest::appraise::{Appraisal, Context, Policy, STATIC_PCRS, appraise};
use portcullis_attest::endorsement::VerifierKeys;
use portcullis_attest::eventlog::{CertificateCache, EventLog, initial_value};
use portcullis_attest::evidence::Evidence;
use portcullis_attest::key::Bank;
use portcullis_attest::quote::VerifiedQuote;
use portcullis_attest::reference::ReferenceBuilder;
use portcullis_attest::result::{AttestationResult, ResultClaims, ResultContext, TokenError, TokenSigner};
use portcullis_firmware_fixtures::recorded::SECURE_BOOT;
use serde_json::{Value, json};
use software_tpm::{SoftTpm, binding};

const ISSUED: u64 = 1_000;
const EXPIRES: u64 = 1_300;

/// A recorded boot, found good.
fn appraisal() -> Appraisal {
    let log = EventLog::parse(SECURE_BOOT.event_log).unwrap();
    let mut builder = ReferenceBuilder::new("lab", "recorded");
    builder.recorded(&log, &[Bank::Sha256], &STATIC_PCRS);
    let policy = "schema = \"portcullis/policy/1\"\nname = \"lab\"\nbank = \"sha256\"\nsecure_boot = true\n\
                  references = [\"lab\"]\nhosts = [\"*\"]\nunsigned_references = true\n";
    let replayed = log.replay(Bank::Sha256);
    let value = |pcr| replayed.get(&pcr).cloned().unwrap_or_else(|| initial_value(Bank::Sha256, pcr, 0));
    let pcrs = (0..=15).filter(|pcr| *pcr != 10).map(|pcr| (pcr, value(pcr))).collect();
    let tpm = SoftTpm::new();
    let quotes = tpm.evidence(&binding(), &[(Bank::Sha256, pcrs)].into()).quotes;
    let evidence = Evidence::new(binding(), quotes, SECURE_BOOT.event_log.to_vec(), Vec::new());
    let quote = VerifiedQuote::verify(&evidence, &tpm.enrolled().unwrap(), &binding()).unwrap();
    let context = Context {
        references: &[builder.build().unwrap()],
        policy: &Policy::from_toml(policy).unwrap(),
        certificates: &CertificateCache::new(),
        previous: None,
        now: 0,
        abandoned: None,
    };
    appraise(quote, &evidence, &context).unwrap()
}

fn result(expires_at: u64) -> AttestationResult {
    let context = ResultContext { verifier: "verifier.example", host: "host-1", issued_at: ISSUED, expires_at };
    AttestationResult::new(&appraisal(), &context)
}

fn keys(jwk: &impl serde::Serialize) -> VerifierKeys {
    VerifierKeys::from_jwks(json!({ "keys": [jwk] }).to_string().as_bytes()).unwrap()
}

#[test]
fn n77_a_token_holds_for_its_key_and_its_time() {
    let signer = TokenSigner::generate().unwrap();
    let issued = result(EXPIRES);
    let token = signer.sign(&issued).unwrap();
    let read = ResultClaims::from_token(&format!("{token}\n"), &keys(signer.jwk())).unwrap();
    assert_eq!(read, *issued);
    for now in [ISSUED, EXPIRES - 1] {
        read.holds_at(now).unwrap();
    }
    for now in [ISSUED - 1, EXPIRES, u64::MAX] {
        assert!(matches!(read.holds_at(now), Err(TokenError::Expired { .. })), "{now}");
    }
    let other = TokenSigner::generate().unwrap();
    assert!(matches!(ResultClaims::from_token(&token, &keys(other.jwk())), Err(TokenError::Jws(_))));
    // Another payload under the same signature.
    let (_, signature) = token.rsplit_once('.').unwrap();
    let elsewhere = signer.sign(&result(EXPIRES + 3600)).unwrap();
    let (payload, _) = elsewhere.rsplit_once('.').unwrap();
    let forged = format!("{payload}.{signature}");
    assert!(matches!(ResultClaims::from_token(&forged, &keys(signer.jwk())), Err(TokenError::Jws(_))));
}

/// A key of somebody who does not use this library: it signs anything.
struct AnySigner(EcdsaKeyPair);

impl AnySigner {
    fn keys(&self) -> VerifierKeys {
        let point = self.0.public_key().as_ref();
        let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
        keys(&json!({ "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "any", "x": x, "y": y }))
    }

    fn sign(&self, claims: &Value) -> String {
        let header = json!({ "alg": "ES256", "typ": "JWT", "kid": "any" });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let input = format!("{}.{}", part(&header), part(claims));
        let signature = self.0.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
        format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

#[test]
fn a_token_is_about_one_host() {
    let signer = AnySigner(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap());
    let one = serde_json::to_value(result(EXPIRES)).unwrap();
    ResultClaims::from_token(&signer.sign(&one), &signer.keys()).unwrap();
    let mut two = one.clone();
    two["submods"]["host-2"] = one["submods"]["host-1"].clone();
    assert!(matches!(ResultClaims::from_token(&signer.sign(&two), &signer.keys()), Err(TokenError::Hosts(2))));
    let mut none = one;
    none["submods"] = json!({});
    assert!(matches!(ResultClaims::from_token(&signer.sign(&none), &signer.keys()), Err(TokenError::Hosts(0))));
}

#[test]
fn a_public_key_says_what_it_is_for_and_keys_of_other_kinds_sign_nothing() {
    let signer = TokenSigner::generate().unwrap();
    let jwk: Value = serde_json::to_value(signer.jwk()).unwrap();
    assert_eq!(
        (&jwk["kty"], &jwk["crv"], &jwk["alg"], &jwk["use"]),
        (&"EC".into(), &"P-256".into(), &"ES256".into(), &"sig".into())
    );
    let ed25519 = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIEC/TK4S4FFq68d2DxtQk0v9znR3a2bDc0bKiwVMqbDI\n\
                   -----END PRIVATE KEY-----\n";
    for pem in ["", ed25519] {
        assert!(matches!(TokenSigner::from_pem(pem), Err(TokenError::Key(_))), "{pem}");
    }
}
