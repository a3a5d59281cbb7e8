//! Signatures of reference values: OpenSSL's are read, ours hold, and everything else is refused.

use portcullis_attest::reference::signature::{
    Algorithm, DetachedSignature, ReferenceSigner, SignatureError, SignerKey,
};
use portcullis_attest::reference::{ReferenceError, ReferenceValues};

const TEXT: &str = "schema = \"portcullis/reference/1\"\nname = \"lab\"\n";

// Made by `openssl genpkey`, the signatures by `openssl pkeyutl -sign -rawin` and `openssl dgst -sha256 -sign`.
/// A private key.
const ED25519: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEIEC/TK4S4FFq68d2DxtQk0v9znR3a2bDc0bKiwVMqbDI\n\
    -----END PRIVATE KEY-----\n";
/// Its public key.
const ED25519_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
    MCowBQYDK2VwAyEA8s917KSECxXd4qyyiHRJ3wO+yGTstAtDNBzEOCq6OMM=\n\
    -----END PUBLIC KEY-----\n";
/// A private key.
const P256: &str = "-----BEGIN PRIVATE KEY-----\n\
    MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgrYe2oteE01w0pflJ\n\
    HIVasn8RqG/tDZKy2BnxpUkdnSyhRANCAARkPUqp+PgusVKQcdOUlfk2DFDC0A66\n\
    is6JpLkEko/k0pcxe2McPWZglZhtdSzEtJXvr1kejscRFrZQBrDqtv9M\n\
    -----END PRIVATE KEY-----\n";
/// Its public key.
const P256_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEZD1Kqfj4LrFSkHHTlJX5NgxQwtAO\n\
    uorOiaS5BJKP5NKXMXtjHD1mYJWYbXUsxLSV769ZHo7HERa2UAaw6rb/TA==\n\
    -----END PUBLIC KEY-----\n";
/// `TEXT` signed with the first.
const ED25519_JWS: &str = "eyJhbGciOiAiRWREU0EiLCAidHlwIjogInBvcnRjdWxsaXMtcmVmZXJlbmNlK2p3cyIsICJraWQiOiAiMGNjNDhhMDZlNjg0YzVm\
    M2FiZjk1NTkyOTAyYzgxZWY5ZTNjNWI3OTZjODUwMzgzNTM2ZDE2NTBkN2MyNzhjZCJ9..I1t8c-vujpblw59cCu2nqIJl9SuCRd\
    a8LN6ToqVmSxrcSJEk0vTJql4Rg_avaY7wz1D345UXp9RZovCGiJrQAg";
/// `TEXT` signed with the second.
const P256_JWS: &str = "eyJhbGciOiAiRVMyNTYiLCAidHlwIjogInBvcnRjdWxsaXMtcmVmZXJlbmNlK2p3cyIsICJraWQiOiAiYjViYTBlMmIxZTBkZDM4\
    ZmIwMjVhNDA2NjM4ZGMzY2U4MTRmNmI1YzA4YTIwODMzNjU1Y2FlNDRlYTI1ZDhmNiJ9..kniqO4vCTw8ntzn4LZpmhrOPLXTmYK\
    GccS9UTwia_IEBwTsvXGLvBcCKezH1UFea02JqZDhfgL-HzHKEy7FIug";

fn signature_error(text: &str, jws: &str, keys: &[SignerKey]) -> SignatureError {
    match ReferenceValues::from_signed(text, jws, keys) {
        Err(ReferenceError::Signature(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_openssl_signed_is_read() {
    for (public, jws, algorithm) in
        [(ED25519_PUBLIC, ED25519_JWS, Algorithm::EdDsa), (P256_PUBLIC, P256_JWS, Algorithm::Es256)]
    {
        let key = SignerKey::from_pem(public).unwrap();
        assert_eq!(key.algorithm(), algorithm);
        let values = ReferenceValues::from_signed(TEXT, &format!("{jws}\n"), std::slice::from_ref(&key)).unwrap();
        assert_eq!(values.signed_by(), Some(key.id()));
        assert_eq!(DetachedSignature::parse(jws).unwrap().key_id(), key.id());
        // One byte more, and it is another text.
        assert_eq!(signature_error(&format!("{TEXT}\n"), jws, std::slice::from_ref(&key)), SignatureError::Invalid);
    }
    assert_eq!(ReferenceValues::from_toml(TEXT).unwrap().signed_by(), None);
}

#[test]
fn what_is_signed_here_holds_for_the_public_key_alone() {
    for (private, public) in [(ED25519, ED25519_PUBLIC), (P256, P256_PUBLIC)] {
        let signer = ReferenceSigner::from_pem(private).unwrap();
        assert_eq!(signer.public_pem().unwrap(), public);
        let key = SignerKey::from_pem(public).unwrap();
        assert_eq!(signer.id(), key.id());
        let jws = signer.sign(TEXT.as_bytes()).unwrap();
        assert_eq!(
            ReferenceValues::from_signed(TEXT, &jws, std::slice::from_ref(&key)).unwrap().signed_by(),
            Some(key.id())
        );
    }
}

#[test]
fn a_signature_by_another_key_or_with_another_header_is_refused() {
    let (ed25519, p256) = (SignerKey::from_pem(ED25519_PUBLIC).unwrap(), SignerKey::from_pem(P256_PUBLIC).unwrap());
    let unknown = signature_error(TEXT, P256_JWS, std::slice::from_ref(&ed25519));
    assert_eq!(unknown, SignatureError::UnknownSigner(p256.id().to_owned()));
    assert_eq!(signature_error(TEXT, P256_JWS, &[]), SignatureError::UnknownSigner(p256.id().to_owned()));
    // The header of one with the signature of the other.
    let (header, _) = ED25519_JWS.split_once("..").unwrap();
    let (_, signature) = P256_JWS.split_once("..").unwrap();
    let keys = [ed25519, p256];
    assert_eq!(signature_error(TEXT, &format!("{header}..{signature}"), &keys), SignatureError::Invalid);
    for header in [
        r#"{"alg":"none","typ":"portcullis-reference+jws","kid":""}"#,
        r#"{"alg":"EdDSA","typ":"JWT","kid":""}"#,
        r#"{"alg":"EdDSA","kid":""}"#,
        r#"{"alg":"EdDSA","typ":"portcullis-reference+jws","kid":"","crit":["b64"],"b64":false}"#,
        r#"{"alg":"EdDSA","alg":"EdDSA","typ":"portcullis-reference+jws","kid":""}"#,
        "",
    ] {
        use base64::Engine as _;
        let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(header);
        let error = signature_error(TEXT, &format!("{header}..{signature}"), &keys);
        assert!(matches!(error, SignatureError::Malformed(_)), "{error}");
    }
    let attached = P256_JWS.replacen("..", ".e30.", 1);
    let long = format!("{P256_JWS}{}", "A".repeat(2000));
    for jws in ["", "..", ED25519, attached.as_str(), long.as_str()] {
        let error = signature_error(TEXT, jws, &keys);
        assert!(matches!(error, SignatureError::Malformed(_)), "{jws}: {error}");
    }
}

#[test]
fn keys_of_other_kinds_are_refused() {
    for pem in [ED25519, "", "-----BEGIN PUBLIC KEY-----\nMCowBQ==\n-----END PUBLIC KEY-----\n"] {
        assert!(matches!(SignerKey::from_pem(pem), Err(SignatureError::PublicKey(_))), "{pem}");
    }
    // P-384.
    let p384 = "-----BEGIN PUBLIC KEY-----\nMHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEtdpmGi0WQd+TGOZ7INfSaKoG13XUo9SP\n\
                M6fiPh4QkWVd6uYpB6pkjEk4KnHO3JmbMSBiCAWcbTG4D0N4hHXWzPSXCB6nUIYP\nh205v8PGPkrvulZ00Z1VyCOGfYDyAqoM\n\
                -----END PUBLIC KEY-----\n";
    assert!(SignerKey::from_pem(p384).is_err());
    assert!(matches!(ReferenceSigner::from_pem(P256_PUBLIC), Err(SignatureError::PrivateKey(_))));
}
