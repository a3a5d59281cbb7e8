//! Writes the example of an enrolment statement, `schemas/examples/enrolment-1.jws`, with a key that is made for it:
//!
//!     cargo run -p portcullis-attest --example enrolment_statement

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as URL;
use portcullis_attest::endorsement::{ENROLMENT_TYP, EnrolmentStatement};
use portcullis_attest::evidence::Evidence;
use serde_json::{Value, json};

/// 2026-12-01, and 30 days, in seconds.
const ISSUED: u64 = 1_796_083_200;
const LIFETIME: u64 = 30 * 86_400;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/examples");
    let evidence = Evidence::from_json(&std::fs::read(examples.join("evidence-1.json"))?)?;
    let public: Value = serde_json::from_slice(&std::fs::read(examples.join("evidence-1.keys.json"))?)?;
    let public = |name: &str| hex::decode(public[name].as_str().unwrap_or_default());
    let (ek, ak) = (public("ek_public")?, public("ak_public")?);
    let binding = &evidence.binding;
    let made = EnrolmentStatement::new(&binding.verifier, &binding.host, &ek, &ak, ISSUED, LIFETIME)?;

    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
    let header = json!({ "alg": "ES256", "typ": ENROLMENT_TYP, "kid": "one" });
    let signed = format!("{}.{}", URL.encode(header.to_string()), URL.encode(serde_json::to_vec(&made)?));
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes())?;
    std::fs::write(examples.join("enrolment-1.jws"), format!("{signed}.{}\n", URL.encode(signature)))?;
    let (x, y) = key.public_key().as_ref()[1..].split_at(32);
    let key =
        json!({ "kty": "EC", "crv": "P-256", "x": URL.encode(x), "y": URL.encode(y), "kid": "one", "use": "sig" });
    let keys = json!({ "keys": [key] });
    std::fs::write(examples.join("enrolment-1.jwks.json"), format!("{keys:#}\n"))?;
    Ok(())
}
