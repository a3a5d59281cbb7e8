//! Which reference values count: signed, in time, and of an edition that the policy takes.

use super::host::Host;
use super::policy::demand;
use crate::appraise::{Policy, PolicyError};
use crate::reason::ReasonCode as Code;
use crate::reference::ReferenceValues;
use crate::reference::signature::{ReferenceSigner, SignerKey};

pub(super) fn signer() -> ReferenceSigner {
    let key = aws_lc_rs::signature::Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
    let document = der::SecretDocument::try_from(key.as_ref()).unwrap();
    ReferenceSigner::from_pem(&document.to_pem("PRIVATE KEY", der::pem::LineEnding::LF).unwrap()).unwrap()
}

/// The host's reference values, signed.
pub(super) fn signed(host: &Host, signer: &ReferenceSigner) -> (ReferenceValues, SignerKey) {
    let text = host.reference().to_toml().unwrap();
    let key = SignerKey::from_pem(&signer.public_pem().unwrap()).unwrap();
    let jws = signer.sign(text.as_bytes()).unwrap();
    (ReferenceValues::from_signed(&text, &jws, std::slice::from_ref(&key)).unwrap(), key)
}

#[test]
fn reference_values_count_only_with_a_signature_that_the_policy_names() {
    let mut host = Host::good();
    host.policy.unsigned_references = false;
    assert_eq!(host.codes(), [Code::ReferenceUnsigned]);

    let (values, key) = signed(&host, &signer());
    host.references = vec![values];
    assert_eq!(host.codes(), [Code::ReferenceSignerUnknown]);
    assert_eq!(host.denied()[0].found.as_deref(), Some(key.id()));
    // That unsigned ones count makes no unknown signer a known one.
    host.policy.unsigned_references = true;
    assert_eq!(host.codes(), [Code::ReferenceSignerUnknown]);

    host.policy.unsigned_references = false;
    host.policy.reference_signers = vec![key];
    host.appraise().unwrap();
    // One that does not count does no harm beside one that does.
    host.references.insert(0, host.reference());
    host.appraise().unwrap();
}

/// A signature that says when it ends counts until then: what was signed once cannot be brought back for ever.
#[test]
fn n96_a_signature_of_reference_values_past_its_time() {
    let mut host = Host::good();
    let (signer, text) = (signer(), host.reference().to_toml().unwrap());
    let key = SignerKey::from_pem(&signer.public_pem().unwrap()).unwrap();
    let read = |jws: &str| ReferenceValues::from_signed(&text, jws, std::slice::from_ref(&key)).unwrap();
    let ends = read(&signer.sign_until(text.as_bytes(), 1_000).unwrap());
    let endless = read(&signer.sign(text.as_bytes()).unwrap());
    assert_eq!((ends.signature_expires(), endless.signature_expires()), (Some(1_000), None));
    host.policy.unsigned_references = false;
    host.policy.reference_signers = vec![key.clone()];
    for must_expire in [false, true] {
        host.policy.signatures_must_expire = must_expire;
        host.references = vec![ends.clone()];
        host.now = 999;
        host.appraise().unwrap();
        for now in [1_000, u64::MAX] {
            host.now = now;
            assert_eq!(host.codes(), [Code::ReferenceSignatureExpired]);
        }
        // One that does not end counts unless the policy wants an end.
        host.references = vec![endless.clone()];
        let expected = must_expire.then_some(Code::ReferenceSignatureEndless);
        assert_eq!(host.appraise().err().map(|reasons| reasons[0].code), expected);
        // One that has ended does no harm beside one that counts.
        host.now = 1_000;
        let later = read(&signer.sign_until(text.as_bytes(), 1_001).unwrap());
        host.references = vec![ends.clone(), later];
        host.appraise().unwrap();
    }
    // Its end is signed.
    let (header, signature) = signer
        .sign_until(text.as_bytes(), 1_000)
        .map(|jws| {
            let (header, signature) = jws.split_once("..").unwrap();
            (header.to_owned(), signature.to_owned())
        })
        .unwrap();
    let engine = &base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let decoded = String::from_utf8(base64::Engine::decode(engine, header).unwrap()).unwrap();
    let longer = base64::Engine::encode(engine, decoded.replace("1000", "9999"));
    assert!(ReferenceValues::from_signed(&text, &format!("{longer}..{signature}"), &[key]).is_err());
}

/// An older edition was good once and is signed all the same: only the policy says that it is withdrawn.
#[test]
fn an_older_edition_of_reference_values_is_refused_though_it_is_signed() {
    let mut host = Host::good();
    let (signer, text) = (signer(), host.reference().to_toml().unwrap());
    let key = SignerKey::from_pem(&signer.public_pem().unwrap()).unwrap();
    let edition = |version: u64| {
        let text = text.replacen("name =", &format!("version = {version}\nname ="), 1);
        let jws = signer.sign(text.as_bytes()).unwrap();
        ReferenceValues::from_signed(&text, &jws, std::slice::from_ref(&key)).unwrap()
    };
    demand(&mut host, "minimum_reference_versions = { good = 7 }");
    host.policy.unsigned_references = false;
    host.policy.reference_signers = vec![key.clone()];
    for version in [7, 8] {
        host.references = vec![edition(version)];
        assert_eq!(host.appraise().unwrap().reference().version, version);
    }
    for version in [0, 6] {
        host.references = vec![edition(version)];
        assert_eq!(host.codes(), [Code::ReferenceVersionTooOld]);
        let reason = &host.denied()[0];
        assert_eq!(reason.event.as_deref(), Some("good"));
        assert_eq!(reason.expected.as_deref(), Some("version 7 or later"));
        assert_eq!(reason.found, Some(format!("version {version}")));
    }
    // Beside the edition that counts it does no harm; without a limit it counts.
    host.references = vec![edition(6), edition(7)];
    assert_eq!(host.appraise().unwrap().reference().version, 7);
    host.references = vec![edition(6)];
    host.policy.minimum_reference_versions.clear();
    host.appraise().unwrap();
    // A limit for a name that the policy does not use would limit nothing.
    let other = format!("{}minimum_reference_versions = {{ goood = 7 }}\n", super::host::POLICY);
    assert!(matches!(Policy::from_toml(&other), Err(PolicyError::MinimumVersion(name)) if name == "goood"));
}

/// Tenants pin a policy by its digest: one that sets no limit keeps the digest that it had before there were limits.
#[test]
fn a_policy_without_limits_on_editions_keeps_its_digest() {
    let policy = Policy::from_toml(super::host::POLICY).unwrap();
    assert_eq!(hex::encode(policy.digest()), "2eeb5923d8ae508d72aafaaabdda26d4f4b08a82f20349cba15737cc1db0efd8");
    let text = format!("{}minimum_reference_versions = {{ good = 7 }}\n", super::host::POLICY);
    assert_ne!(Policy::from_toml(&text).unwrap().digest(), policy.digest());
}
