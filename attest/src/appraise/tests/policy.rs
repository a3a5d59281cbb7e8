//! What a policy demands beside the reference values.

use super::host::Host;
use crate::appraise::Policy;
use crate::reason::ReasonCode as Code;
use crate::reference::ReferenceValues;
use crate::reference::signature::{ReferenceSigner, SignerKey};

fn signer() -> ReferenceSigner {
    let key = aws_lc_rs::signature::Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
    let document = der::SecretDocument::try_from(key.as_ref()).unwrap();
    ReferenceSigner::from_pem(&document.to_pem("PRIVATE KEY", der::pem::LineEnding::LF).unwrap()).unwrap()
}

/// The host's reference values, signed.
fn signed(host: &Host, signer: &ReferenceSigner) -> (ReferenceValues, SignerKey) {
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

#[test]
fn a_policy_is_for_the_hosts_that_it_names() {
    let mut host = Host::good();
    let mut with = |hosts: &[&str]| {
        host.policy.hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        host.appraise().map_err(|reasons| super::host::codes(&reasons))
    };
    for hosts in [&["host"][..], &["*"], &["ho*"], &["other", "host"]] {
        with(hosts).unwrap();
    }
    for hosts in [&[][..], &["other"], &["hos"], &["host-*"], &["hostt"]] {
        assert_eq!(with(hosts).unwrap_err(), [Code::PolicyHost], "{hosts:?}");
    }
    let text = super::host::POLICY;
    for wrong in ["**", "a*b", "*a", "", "Host"] {
        assert!(Policy::from_toml(&text.replace("[\"*\"]", &format!("[{wrong:?}]"))).is_err(), "{wrong}");
    }
}

#[test]
fn a_digest_is_of_what_is_said_and_not_of_how_it_is_written() {
    let text = super::host::POLICY;
    let policy = Policy::from_toml(text).unwrap();
    let same = Policy::from_toml(&format!("# the same\nima = true\n{}", text.replace("ima = true\n", ""))).unwrap();
    assert_eq!(policy.digest(), same.digest());
    let other = Policy::from_toml(&text.replace("ima = true", "ima = false")).unwrap();
    assert_ne!(policy.digest(), other.digest());

    let host = Host::good();
    let values = host.reference();
    let (signed, _) = signed(&host, &signer());
    assert_eq!(values.digest(), signed.digest());
    let text = values.to_toml().unwrap();
    let later = ReferenceValues::from_toml(&text.replacen("name =", "version = 1\nname =", 1)).unwrap();
    assert_ne!(values.digest(), later.digest());
    assert_eq!((values.version(), later.version()), (0, 1));
}
