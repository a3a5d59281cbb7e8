//! Results as tokens: what one key signed, another does not check, and nothing holds for ever.

use portcullis_attest::endorsement::VerifierKeys;
use portcullis_attest::result::{AttestationResult, TokenError, TokenSigner};
use serde_json::{Value, json};

fn result() -> AttestationResult {
    serde_json::from_str(include_str!("../schemas/examples/result-1.json")).unwrap()
}

fn keys(signer: &TokenSigner) -> VerifierKeys {
    VerifierKeys::from_jwks(json!({ "keys": [signer.jwk()] }).to_string().as_bytes()).unwrap()
}

#[test]
fn n77_a_token_holds_for_its_key_and_its_time() {
    let signer = TokenSigner::generate().unwrap();
    let token = signer.sign(&result()).unwrap();
    let read = AttestationResult::from_token(&format!("{token}\n"), &keys(&signer)).unwrap();
    assert_eq!(read, result());
    for now in [read.iat, read.exp - 1] {
        read.holds_at(now).unwrap();
    }
    for now in [read.iat - 1, read.exp, u64::MAX] {
        assert!(matches!(read.holds_at(now), Err(TokenError::Expired { .. })), "{now}");
    }
    let other = TokenSigner::generate().unwrap();
    assert!(matches!(AttestationResult::from_token(&token, &keys(&other)), Err(TokenError::Jws(_))));
    // Another payload under the same signature.
    let mut changed = result();
    changed.exp += 3600;
    let (_, signature) = token.rsplit_once('.').unwrap();
    let elsewhere = signer.sign(&changed).unwrap();
    let (payload, _) = elsewhere.rsplit_once('.').unwrap();
    let forged = format!("{payload}.{signature}");
    assert!(matches!(AttestationResult::from_token(&forged, &keys(&signer)), Err(TokenError::Jws(_))));
}

#[test]
fn a_token_is_about_one_host() {
    let signer = TokenSigner::generate().unwrap();
    let mut two = result();
    let submodule = two.submods["host-1"].clone();
    two.submods.insert("host-2".to_owned(), submodule);
    let token = signer.sign(&two).unwrap();
    assert!(matches!(AttestationResult::from_token(&token, &keys(&signer)), Err(TokenError::Hosts(2))));
    let mut none = result();
    none.submods.clear();
    let token = signer.sign(&none).unwrap();
    assert!(matches!(AttestationResult::from_token(&token, &keys(&signer)), Err(TokenError::Hosts(0))));
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
