//! N85 and rule 6, on the host's side: an order counts only with the verifier's signature, for this host, in time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portcullis_verifier::order::{self, Order, OrderError, OrderKeys, VerifiedOrder};
use portcullis_verifier::service::{authority, signer::Signer};

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn order() -> Order {
    let schema: serde_json::Value = serde_json::from_str(include_str!("../schemas/order-1.json")).unwrap();
    serde_json::from_value(schema["examples"][0].clone()).unwrap()
}

fn signer() -> Signer {
    Signer::from_pem(&authority::make_key().unwrap()).unwrap()
}

fn keys(signer: &Signer) -> OrderKeys {
    OrderKeys::from_jwks(signer.jwks_json().unwrap().as_bytes()).unwrap()
}

#[test]
fn an_order_of_ours_is_accepted_in_time_on_its_host() {
    let (signer, order) = (signer(), order());
    let jws = signer.sign(order::TYP, &order).unwrap();
    for now in [order.iat - 30, order.iat, order.exp - 1] {
        let verified = VerifiedOrder::verify(&jws, &keys(&signer), &order.host, at(now)).unwrap();
        assert_eq!(verified.order(), &order);
        assert_eq!(verified.jws(), jws);
    }
}

#[test]
fn n85_late_early_or_on_another_host_it_is_not() {
    let (signer, order) = (signer(), order());
    let keys = keys(&signer);
    let jws = signer.sign(order::TYP, &order).unwrap();
    let verify = |host: &str, now| VerifiedOrder::verify(&jws, &keys, host, at(now)).unwrap_err();
    assert!(matches!(verify(&order.host, order.exp), OrderError::Expired(0)));
    assert!(matches!(verify(&order.host, order.exp + 9), OrderError::Expired(9)));
    assert!(matches!(verify(&order.host, order.iat - 61), OrderError::NotYetValid(61)));
    assert!(matches!(verify("host-1.rack-3", order.iat), OrderError::OtherHost { .. }));
}

#[test]
fn only_the_pinned_keys_sign_orders() {
    let (ours, theirs, order) = (signer(), signer(), order());
    let keys = keys(&ours);
    let verify = |jws: &str| VerifiedOrder::verify(jws, &keys, &order.host, at(order.iat));
    assert!(matches!(verify(&theirs.sign(order::TYP, &order).unwrap()), Err(OrderError::Signature(_))));
    let jws = ours.sign(order::TYP, &order).unwrap();
    let parts: Vec<&str> = jws.split('.').collect();
    // Their signature under our key's name.
    let forged = theirs.sign(order::TYP, &order).unwrap();
    let forged: Vec<&str> = forged.split('.').collect();
    assert!(matches!(verify(&format!("{}.{}.{}", parts[0], parts[1], forged[2])), Err(OrderError::Signature(_))));
    // No signature.
    assert!(verify(&format!("{}.{}.", parts[0], parts[1])).is_err());
    // Another type of token by the same key.
    assert!(matches!(verify(&ours.sign("JWT", &order).unwrap()), Err(OrderError::Malformed(_))));
    // Algorithm "none" and an HMAC with the public key as its secret.
    for header in [r#"{"alg":"none","typ":"portcullis-order+jwt"}"#, r#"{"alg":"HS256","typ":"portcullis-order+jwt"}"#]
    {
        let header = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, header);
        assert!(verify(&format!("{header}.{}.{}", parts[1], parts[2])).is_err());
        assert!(verify(&format!("{header}.{}.", parts[1])).is_err());
    }
    // Every single character of it counts.
    for i in (0..jws.len()).step_by(7) {
        let mut changed = jws.clone().into_bytes();
        changed[i] = if changed[i] == b'A' { b'B' } else { b'A' };
        assert!(verify(&String::from_utf8(changed).unwrap()).is_err(), "byte {i}");
    }
    assert!(matches!(verify(&"x".repeat(20_000)), Err(OrderError::TooLong(20_000))));
}

#[test]
fn a_signed_order_with_an_unknown_field_or_impossible_values_is_refused() {
    let (signer, order) = (signer(), order());
    let keys = keys(&signer);
    let verify = |claims: &serde_json::Value| {
        let jws = signer.sign(order::TYP, claims).unwrap();
        VerifiedOrder::verify(&jws, &keys, &order.host, at(order.iat))
    };
    let good = serde_json::to_value(&order).unwrap();
    assert!(verify(&good).is_ok());
    let mut more = good.clone();
    more["more"] = 1.into();
    assert!(matches!(verify(&more), Err(OrderError::Malformed(_))));
    let mut path = good;
    path["vm"]["kernel"]["path"] = "a/../../b".into();
    assert!(matches!(verify(&path), Err(OrderError::Field { field: "vm.kernel", .. })));
}

#[test]
fn key_sets_that_are_none_are_refused() {
    let good = signer().jwks_json().unwrap();
    assert!(OrderKeys::from_jwks(good.as_bytes()).is_ok());
    let value: serde_json::Value = serde_json::from_str(&good).unwrap();
    let key = value["keys"][0].clone();
    let mut nameless = key.clone();
    nameless.as_object_mut().unwrap().remove("kid");
    for keys in [vec![], vec![nameless], vec![key.clone(), key.clone()], vec![key; 17]] {
        let set = serde_json::json!({ "keys": keys }).to_string();
        assert!(matches!(OrderKeys::from_jwks(set.as_bytes()), Err(OrderError::Keys(_))));
    }
    let symmetric = r#"{"keys":[{"kty":"oct","kid":"a","k":"AAAA"}]}"#;
    assert!(OrderKeys::from_jwks(symmetric.as_bytes()).is_err());
    assert!(OrderKeys::from_jwks(b"no").is_err());
}
