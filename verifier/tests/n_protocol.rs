//! Numbered cases of the protocol that need more than one refusal to show: each beside what is accepted.

mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use portcullis_attest::binding::{Binding, Purpose};
use portcullis_attest::reference::ReferenceValues;
use portcullis_attest::result::{Continuity, ResultClaims, Submodule};
use portcullis_verifier::api;
use portcullis_verifier::client::ClientError;
use support::boot::{Boot, references};
use support::host::{Host, KEY, launch_request};
use support::service::{Running, Setup, VERIFIER};

/// The codes of a denial, each once: there is a quote for each bank.
fn codes<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> Vec<String> {
    let mut found = support::host::codes(outcome);
    found.dedup();
    found
}

/// What a relying party reads of a token at `now`; nothing when it is no good then.
fn read(service: &Running, token: &str, now: u64) -> Option<ResultClaims> {
    let jwks: JwkSet = serde_json::from_value(service.client(None).jwks().unwrap()).unwrap();
    let kid = jsonwebtoken::decode_header(token).unwrap().kid.unwrap();
    let key = DecodingKey::from_jwk(jwks.find(&kid).unwrap()).unwrap();
    let mut validation = Validation::new(Algorithm::ES256);
    // The library knows no other clock than the machine's.
    validation.validate_exp = false;
    validation.set_issuer(&[VERIFIER]);
    let claims = jsonwebtoken::decode::<ResultClaims>(token, &key, &validation).ok()?.claims;
    (claims.iat <= now + 60 && now < claims.exp).then_some(claims)
}

fn of<'a>(result: &'a ResultClaims, host: &str) -> Option<&'a Submodule> {
    result.submods.get(host)
}

#[test]
fn n77_a_verdict_is_of_one_host_one_boot_and_some_minutes() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let (mut host, mut other) = (Host::new("h1"), Host::new("h2"));
    let token = host.join(&service).token;
    other.join(&service);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let first = read(&service, &token, now).unwrap();
    assert!(read(&service, &token, now + 301).is_none() && read(&service, &token, now - 3600).is_none());
    // It is about its host and no other, and names the only key on which that host speaks.
    assert_eq!(first.submods.len(), 1);
    assert!(of(&first, "h1").is_some() && of(&first, "h2").is_none());
    assert_eq!(of(&first, "h1").unwrap().tls_spki_sha256, hex::encode(host.identity.spki_sha256()));
    assert_eq!(codes(other.client(&service).orders("h1")), ["host.other-tls-key"]);
    let of_other = read(&service, &other.attest(&service).unwrap().token, now).unwrap();
    let between = |then: &ResultClaims, now: &ResultClaims, host: &str| {
        Continuity::between(of(then, "h1").unwrap(), of(now, host).unwrap())
    };
    assert_eq!(between(&first, &of_other, "h2"), Continuity::OtherTpm);
    // A later one of the same boot continues it; after a reset it is of the past, whatever its time says.
    let second = read(&service, &host.attest(&service).unwrap().token, now).unwrap();
    assert_eq!(between(&first, &second, "h1"), Continuity::SameBoot);
    host.reboot(Boot::good());
    assert!(codes(host.client(&service).orders("h1")).contains(&"host.other-tls-key".to_owned()));
    let third = read(&service, &host.attest(&service).unwrap().token, now).unwrap();
    assert_eq!(between(&second, &third, "h1"), Continuity::Reset { resets: 1 });
    assert_eq!(between(&third, &second, "h1"), Continuity::Backwards);
    let said = of(&third, "h1").unwrap();
    let values = ReferenceValues::from_toml(&references()).unwrap();
    assert_eq!((said.reference.as_str(), said.reference_version), ("good", values.version()));
    assert_eq!(said.reference_sha256, hex::encode(values.digest()));
}

#[test]
fn n81_each_part_of_what_a_quote_binds_counts() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    host.join(&service);
    let client = host.client(&service);
    let mut answer = |change: fn(&mut Binding)| {
        let challenge = client.challenge("h1", Purpose::Attest).unwrap();
        let mut binding = host.binding(Purpose::Attest, &challenge.nonce, &[]);
        change(&mut binding);
        let mut evidence = host.evidence(&binding);
        // What the evidence says of itself is only a diagnosis: saying the right thing does not help.
        let honest = codes(client.attest("h1", evidence.clone()));
        let challenge = client.challenge("h1", Purpose::Attest).unwrap();
        let mut binding = host.binding(Purpose::Attest, &challenge.nonce, &[]);
        change(&mut binding);
        evidence = host.evidence(&binding);
        evidence.binding = host.binding(Purpose::Attest, &challenge.nonce, &[]);
        let lying = codes(client.attest("h1", evidence));
        assert_eq!(lying, ["quote.binding-mismatch"]);
        honest
    };
    assert_eq!(answer(|binding| binding.verifier = "other.verifier".into()), ["quote.verifier-mismatch"]);
    assert_eq!(answer(|binding| binding.host = "h2".into()), ["quote.host-mismatch"]);
    assert_eq!(answer(|binding| binding.purpose = Purpose::Receipt), ["quote.purpose-mismatch"]);
    assert_eq!(answer(|binding| binding.body_sha256 = [7; 32]), ["quote.body-mismatch"]);
    assert_eq!(answer(|binding| binding.tls_spki_sha256 = [7; 32]), ["quote.tls-key-mismatch"]);
    assert!(host.attest(&service).unwrap().trusted, "what was bound to something else was held against the host");
    assert_eq!(service.person("olga").host("h1").unwrap().trust, api::Trust::Trusted);
}

#[test]
fn n82_a_key_does_not_open_after_a_static_pcr_changed() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let tenant = service.person("alice");
    let mut host = Host::new("h1");
    host.join(&service);
    for disk in ["a", "b"] {
        tenant.put_volume(disk, KEY).unwrap();
    }
    let mut wrapped = |disk: &str| {
        let placed = tenant.launch(&launch_request(disk)).unwrap();
        let client = host.client(&service);
        let (request, _) = host.release_request(&client, &placed.order).unwrap();
        client.release(&placed.order_id, &request).unwrap().wrapped
    };
    let (first, second) = (wrapped("a"), wrapped("b"));
    // A program that starts in between is IMA's affair and changes nothing about the key.
    host.program("/usr/bin/portcullis-vmm", b"the vmm");
    let parent = host.tpm().null_parent().unwrap();
    assert_eq!(host.tpm().import_unseal(parent, &first).unwrap().as_slice(), KEY);
    host.measure(9, b"a file that GRUB never read");
    let parent = host.tpm().null_parent().unwrap();
    assert!(host.tpm().import_unseal(parent, &second).is_err());
    assert!(codes(host.attest(&service)).contains(&"eventlog.pcr-mismatch".to_owned()));
}
