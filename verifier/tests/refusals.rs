//! What the service must refuse; each test is the good flow but for one thing. Numbers are those of the list of negative
//! cases.

mod support;

use std::time::Duration;

use portcullis_attest::binding::{Purpose, launch_body};
use portcullis_verifier::api::{self, OrderState, Trust};
use portcullis_verifier::client::{Client, Identity};
use portcullis_verifier::receipt::Event;
use support::boot::Boot;
use support::host::{Host, KEY, codes, launch_request, refusal};
use support::service::{Running, Setup};

fn trusted(service: &Running, host: &str) -> bool {
    service.person("olga").host(host).unwrap().trust == Trust::Trusted
}

#[test]
fn n37_evidence_is_accepted_once_and_a_replay_does_not_hurt_the_host() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    host.join(&service);
    let client = host.client(&service);
    let evidence = host.answer(&client, Purpose::Attest, &[]).unwrap();
    assert!(client.attest("h1", evidence.clone()).unwrap().trusted);
    assert_eq!(codes(client.attest("h1", evidence.clone())), ["nonce.unknown"]);
    // By someone else, over another key, with a challenge of their own only in the envelope (N36).
    let thief = service.client(Some(&Identity::new_for_host("h1").unwrap()));
    let fresh = thief.challenge("h1", Purpose::Attest).unwrap();
    let mut envelope = evidence;
    envelope.binding.nonce = hex::decode(fresh.nonce).unwrap();
    let found = codes(thief.attest("h1", envelope));
    assert!(found.iter().any(|code| code.starts_with("quote.")), "{found:?}");
    assert!(trusted(&service, "h1"), "anyone could close a host");
}

#[test]
fn n37_a_challenge_is_for_one_host_purpose_and_key_and_not_for_long() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let (mut host, mut other) = (Host::new("h1"), Host::new("h2"));
    host.join(&service);
    other.join(&service);
    let client = host.client(&service);
    // Issued to h2, answered by h1.
    let nonce = other.client(&service).challenge("h2", Purpose::Attest).unwrap().nonce;
    let evidence = host.evidence(&host.binding(Purpose::Attest, &nonce, &[]));
    let found = codes(client.attest("h1", evidence));
    assert!(found.contains(&"nonce.other-host".into()) && found.contains(&"nonce.other-tls-key".into()), "{found:?}");
    // Issued for a receipt, answered with an attestation.
    let nonce = client.challenge("h1", Purpose::Receipt).unwrap().nonce;
    let evidence = host.evidence(&host.binding(Purpose::Attest, &nonce, &[]));
    assert_eq!(codes(client.attest("h1", evidence)), ["nonce.other-purpose"]);
    // A quote of another purpose for an attestation's challenge (N81).
    let nonce = client.challenge("h1", Purpose::Attest).unwrap().nonce;
    let evidence = host.evidence(&host.binding(Purpose::Receipt, &nonce, &[]));
    let found = codes(client.attest("h1", evidence));
    assert!(found.contains(&"quote.purpose-mismatch".into()), "{found:?}");
    // Issued to another key.
    let nonce =
        service.client(Some(&Identity::new_for_host("h1").unwrap())).challenge("h1", Purpose::Attest).unwrap().nonce;
    let evidence = host.evidence(&host.binding(Purpose::Attest, &nonce, &[]));
    assert_eq!(codes(client.attest("h1", evidence)), ["nonce.other-tls-key"]);
    assert!(host.attest(&service).unwrap().trusted);
    // Too late, with a verifier of its own: on a busy machine some seconds are over before a quote is made.
    let setup = Setup::new(&["nonce_ttl_s = 6"]);
    let (service, mut host) = (setup.serve(), Host::new("h1"));
    let enrolled = host.enrol(&service).unwrap();
    service.person("olga").admit(&enrolled.ek_fingerprint, "h1", "a test").unwrap();
    let client = host.client(&service);
    let nonce = client.challenge("h1", Purpose::Attest).unwrap().nonce;
    let evidence = host.evidence(&host.binding(Purpose::Attest, &nonce, &[]));
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(codes(client.attest("h1", evidence)), ["nonce.expired"]);
}

#[test]
fn n38_challenges_differ_and_are_bounded() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    host.enrol(&service).unwrap();
    let client = host.client(&service);
    let nonces: std::collections::BTreeSet<String> =
        (0..16).map(|_| client.challenge("h1", Purpose::Attest).unwrap().nonce).collect();
    assert_eq!(nonces.len(), 16);
    assert!(nonces.iter().all(|nonce| nonce.len() == 64));
    assert_eq!(codes(client.challenge("h1", Purpose::Attest)), ["nonce.too-many"]);
    // The bound is the asking key's: another one cannot use it up for the host.
    let other = service.client(Some(&Identity::new_for_host("h1").unwrap()));
    assert!(other.challenge("h1", Purpose::Attest).is_ok());
    assert_eq!(codes(client.challenge("h9", Purpose::Attest)), ["host.unknown"]);
    for purpose in [Purpose::Parent, Purpose::Offline] {
        assert_eq!(refusal(client.challenge("h1", purpose)).0, 400);
    }
}

#[test]
fn n79_n80_a_tpm_that_no_operator_admitted_and_a_relayed_quote() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let (mut honest, mut bench) = (Host::new("honest"), Host::new("bench"));
    honest.join(&service);
    bench.enrol(&service).unwrap();
    assert_eq!(codes(bench.attest(&service)), ["endorsement.not-admitted"]);
    // The honest host's TPM answers the other's challenge: its AK is not the one enrolled there.
    let client = bench.client(&service);
    let nonce = client.challenge("bench", Purpose::Attest).unwrap().nonce;
    let binding = bench.binding(Purpose::Attest, &nonce, &[]);
    let relayed = honest.evidence(&binding);
    let found = codes(client.attest("bench", relayed));
    assert!(found.iter().any(|code| code == "quote.signature-invalid" || code == "quote.signer-mismatch"), "{found:?}");
    assert!(trusted(&service, "honest"));
    // Even its view is denied everything else.
    let client = bench.client(&service);
    assert!(codes(client.orders("bench")).contains(&"endorsement.not-admitted".into()));
}

#[test]
fn n81_evidence_counts_only_over_the_connection_that_it_binds() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    host.join(&service);
    let thief = service.client(Some(&Identity::new_for_host("h1").unwrap()));
    let nonce = thief.challenge("h1", Purpose::Attest).unwrap().nonce;
    let evidence = host.evidence(&host.binding(Purpose::Attest, &nonce, &[]));
    let found = codes(thief.attest("h1", evidence));
    assert!(found.contains(&"quote.tls-key-mismatch".into()), "{found:?}");
    // And a key that was not quoted sees no orders.
    assert_eq!(codes(thief.orders("h1")), ["host.other-tls-key"]);
    assert!(trusted(&service, "h1"));
}

#[test]
fn n32_the_credential_is_opened_once_by_the_tpm_that_has_both_keys() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    let request = host.enrol_request();
    let client = host.client(&service);
    // A wrong secret uses the enrolment up.
    let challenge = client.enrol(&request).unwrap();
    let secret = host.tpm().activate_credential(&challenge.credential_blob, &challenge.secret).unwrap();
    let evidence = host.enrolment_evidence(&secret);
    let activate =
        |client: &Client, enrolment: &str, secret: &[u8]| codes(client.activate(enrolment, secret, evidence.clone()));
    assert_eq!(activate(&client, &challenge.enrolment, &[0; 32]), ["enrol.wrong-secret"]);
    assert_eq!(activate(&client, &challenge.enrolment, &secret), ["enrol.unknown"]);
    // Over another key it does not count.
    let challenge = client.enrol(&request).unwrap();
    let secret = host.tpm().activate_credential(&challenge.credential_blob, &challenge.secret).unwrap();
    let other = service.client(Some(&Identity::new_for_host("h1").unwrap()));
    assert_eq!(activate(&other, &challenge.enrolment, &secret), ["enrol.other-tls-key"]);
    // A replayed secret opens nothing.
    assert_eq!(activate(&client, &challenge.enrolment, &secret), ["enrol.unknown"]);
    let challenge = client.enrol(&request).unwrap();
    assert_eq!(activate(&client, &challenge.enrolment, &secret), ["enrol.wrong-secret"]);
    // An AK of another TPM: the credential made for it opens in no TPM.
    let stranger = Host::new("h2");
    let mixed = api::EnrolRequest { ak_public: stranger.ak.public.clone(), ..request };
    let challenge = client.enrol(&mixed).unwrap();
    assert!(host.tpm().activate_credential(&challenge.credential_blob, &challenge.secret).is_err());
    assert!(host.enrol(&service).is_ok());
}

#[test]
fn n33_neither_a_host_nor_a_tpm_changes_its_identity() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let (mut host, mut other) = (Host::new("h1"), Host::new("h2"));
    host.enrol(&service).unwrap();
    // The same again changes nothing.
    host.enrol(&service).unwrap();
    // The same name with another TPM.
    other.name = "h1".into();
    assert_eq!(codes(other.enrol(&service)), ["enrol.host-conflict"]);
    // The same TPM with another name, and with another AK.
    host.name = "h3".into();
    assert_eq!(codes(host.enrol(&service)), ["enrol.ek-conflict"]);
    host.name = "h1".into();
    let first = host.ak.clone();
    host.ak = host.tpm().create_ak().unwrap();
    let second = host.ak.clone();
    host.tpm().load_ak(&second).unwrap();
    assert_eq!(codes(host.enrol(&service)), ["enrol.host-conflict"]);
    // An operator may forget the host; then it enrols anew.
    service.person("olga").remove_host("h1").unwrap();
    host.enrol(&service).unwrap();
    assert_ne!(first.public, second.public);
}

#[test]
fn n85_an_order_is_for_one_host_once_and_not_for_long() {
    let setup = Setup::new(&["order_ttl_s = 3"]);
    let service = setup.serve();
    let tenant = service.person("alice");
    let (mut host, mut other) = (Host::new("h1"), Host::new("h2"));
    host.join(&service);
    other.join(&service);
    tenant.put_volume("disk", KEY).unwrap();
    let request = api::LaunchRequest { host: Some("h1".into()), ..launch_request("disk") };
    let placed = tenant.launch(&request).unwrap();
    assert_eq!(codes(other.release(&service, &placed)), ["order.other-host", "order.other-boot"]);
    assert_eq!(host.release(&service, &placed).unwrap(), KEY);
    assert_eq!(codes(host.release(&service, &placed)), ["order.used"]);
    host.receipt(&service, &placed, Event::Ended).unwrap();
    assert_eq!(codes(host.release(&service, &placed)), ["order.used"]);

    let late = tenant.launch(&request).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(codes(host.release(&service, &late)), ["order.expired"]);
    assert!(host.client(&service).orders("h1").unwrap().orders.is_empty());
    assert_eq!(tenant.vms().unwrap().vms[0].state, OrderState::Expired);
    // What was never released is free again.
    let placed = tenant.launch(&request).unwrap();
    let mut unknown = placed.clone();
    unknown.order_id = "0".repeat(32);
    assert_eq!(codes(host.release(&service, &unknown)), ["order.unknown"]);
    // Another order under this one's id, and this one with one byte changed.
    let mut forged = placed.clone();
    forged.order = late.order;
    assert_eq!(codes(host.release(&service, &forged)), ["order.forged"]);
    forged.order = format!("{}x", placed.order);
    assert_eq!(codes(host.release(&service, &forged)), ["order.forged"]);
    assert_eq!(host.release(&service, &placed).unwrap(), KEY);
}

#[test]
fn n41_n85_after_a_restart_the_verdict_and_the_order_are_dead() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let tenant = service.person("alice");
    let mut host = Host::new("h1");
    host.join(&service);
    tenant.put_volume("disk", KEY).unwrap();
    let placed = tenant.launch(&launch_request("disk")).unwrap();
    host.reboot(Boot::good());
    // The new boot's key was never quoted, and its boot never judged.
    let found = codes(host.release(&service, &placed));
    for code in ["host.other-tls-key", "boot.changed", "order.other-boot"] {
        assert!(found.contains(&code.to_owned()), "{found:?}");
    }
    assert!(codes(host.client(&service).orders("h1")).contains(&"host.other-tls-key".into()));
    // Judged anew the host is trusted, but the order was for the other boot.
    assert!(host.attest(&service).unwrap().trusted);
    assert!(host.client(&service).orders("h1").unwrap().orders.is_empty());
    assert_eq!(codes(host.release(&service, &placed)), ["order.other-boot"]);
}

#[test]
fn n82_a_key_released_before_a_restart_does_not_open_afterwards_nor_elsewhere() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let tenant = service.person("alice");
    let (mut host, mut other) = (Host::new("h1"), Host::new("h2"));
    host.join(&service);
    tenant.put_volume("disk", KEY).unwrap();
    let placed = tenant.launch(&launch_request("disk")).unwrap();
    let client = host.client(&service);
    let (request, _) = host.release_request(&client, &placed.order).unwrap();
    let wrapped = client.release(&placed.order_id, &request).unwrap().wrapped;
    let foreign = other.tpm().null_parent().unwrap();
    assert!(other.tpm().import_unseal(foreign, &wrapped).is_err());
    host.reboot(Boot::good());
    let parent = host.tpm().null_parent().unwrap();
    assert!(host.tpm().import_unseal(parent, &wrapped).is_err());
    // The volume stays with the boot that got it until a receipt says that this is over.
    assert!(host.attest(&service).unwrap().trusted);
    assert_eq!(refusal(tenant.launch(&launch_request("disk"))), (409, "volume.busy".into()));
    assert_eq!(refusal(service.person("olga").remove_host("h1")).0, 409);
    host.receipt(&service, &placed, Event::Ended).unwrap();
    tenant.launch(&launch_request("disk")).unwrap();
}

#[test]
fn n83_a_storage_parent_that_this_order_and_challenge_did_not_certify() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let tenant = service.person("alice");
    let (mut host, mut other) = (Host::new("h1"), Host::new("h2"));
    host.join(&service);
    tenant.put_volume("disk", KEY).unwrap();
    let placed = tenant.launch(&launch_request("disk")).unwrap();
    let client = host.client(&service);
    let (first, _) = host.release_request(&client, &placed.order).unwrap();
    // Certified for an earlier challenge.
    let (mut mixed, _) = host.release_request(&client, &placed.order).unwrap();
    mixed.certify_attest.clone_from(&first.certify_attest);
    mixed.certify_signature.clone_from(&first.certify_signature);
    let found = codes(client.release(&placed.order_id, &mixed));
    assert!(found.iter().all(|code| code.starts_with("parent.")), "{found:?}");
    // A quote where a certification should be.
    let (mut quoted, _) = host.release_request(&client, &placed.order).unwrap();
    quoted.certify_attest.clone_from(&quoted.evidence.quotes[0].message);
    quoted.certify_signature.clone_from(&quoted.evidence.quotes[0].signature);
    let found = codes(client.release(&placed.order_id, &quoted));
    assert!(found.iter().all(|code| code.starts_with("parent.")), "{found:?}");
    // Another TPM's parent: neither the quote's body nor the certification is about it.
    let (mut foreign, _) = host.release_request(&client, &placed.order).unwrap();
    foreign.parent_public = other.tpm().null_parent().unwrap().public().to_vec();
    let found = codes(client.release(&placed.order_id, &foreign));
    assert!(found.contains(&"quote.body-mismatch".into()), "{found:?}");
    // Even when the quote is about it.
    let nonce = client.challenge("h1", Purpose::Launch).unwrap().nonce;
    let body = launch_body(placed.order.as_bytes(), &foreign.parent_public);
    foreign.evidence = host.evidence(&host.binding(Purpose::Launch, &nonce, &body));
    let found = codes(client.release(&placed.order_id, &foreign));
    assert!(found.iter().all(|code| code.starts_with("parent.")), "{found:?}");
    assert_eq!(host.release(&service, &placed).unwrap(), KEY);
}

#[test]
fn n77_a_result_that_expired_is_worth_nothing() {
    let setup = Setup::new(&["result_ttl_s = 2"]);
    let service = setup.serve();
    let tenant = service.person("alice");
    let mut host = Host::new("h1");
    assert_eq!(host.join(&service).expires_in_s, 2);
    tenant.put_volume("disk", KEY).unwrap();
    let placed = tenant.launch(&launch_request("disk")).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(service.person("olga").host("h1").unwrap().trust, Trust::Expired);
    assert_eq!(codes(host.client(&service).orders("h1")), ["host.result-expired"]);
    assert_eq!(codes(host.release(&service, &placed)), ["host.result-expired"]);
    assert!(host.attest(&service).unwrap().trusted);
    assert_eq!(host.release(&service, &placed).unwrap(), KEY);
}

#[test]
fn n86_a_shorter_or_other_list_of_programs_in_the_same_boot() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    host.program("/usr/bin/portcullis-vmm", b"the vmm");
    host.join(&service);
    let client = host.client(&service);
    let mut evidence = host.answer(&client, Purpose::Attest, &[]).unwrap();
    // A whole list, but not that of before.
    (evidence.ima_from, evidence.ima) = (0, Boot::good().ima());
    let found = codes(client.attest("h1", evidence));
    assert!(found.iter().any(|code| code.starts_with("ima.")), "{found:?}");
    // It was the host's own TPM that signed: the trust is gone until it shows a good state.
    assert!(!trusted(&service, "h1"));
    assert!(host.attest(&service).unwrap().trusted);
}

#[test]
fn receipts_of_others_about_others_or_for_other_bytes() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let tenant = service.person("alice");
    let (mut host, mut other) = (Host::new("h1"), Host::new("h2"));
    host.join(&service);
    other.join(&service);
    tenant.put_volume("disk", KEY).unwrap();
    let request = api::LaunchRequest { host: Some("h1".into()), ..launch_request("disk") };
    let placed = tenant.launch(&request).unwrap();
    assert_eq!(codes(host.receipt(&service, &placed, Event::Started)), ["receipt.out-of-order"]);
    assert_eq!(host.release(&service, &placed).unwrap(), KEY);
    assert!(codes(other.receipt(&service, &placed, Event::Ended)).contains(&"receipt.mismatch".into()));
    // The quote is over other bytes than the receipt sent.
    let client = host.client(&service);
    let started = host.receipt_json(&placed, Event::Started);
    let evidence = host.answer(&client, Purpose::Receipt, started.as_bytes()).unwrap();
    let ended = host.receipt_json(&placed, Event::Ended);
    let forged = api::ReceiptRequest { host: "h1".into(), receipt: ended, evidence };
    let found = codes(client.receipt(&placed.order_id, &forged));
    assert!(found.contains(&"quote.body-mismatch".into()), "{found:?}");
    // No receipt at all.
    let evidence = host.answer(&client, Purpose::Receipt, b"{}").unwrap();
    let empty = api::ReceiptRequest { host: "h1".into(), receipt: "{}".into(), evidence };
    assert_eq!(codes(client.receipt(&placed.order_id, &empty)), ["receipt.malformed"]);
    assert_eq!(tenant.vms().unwrap().vms[0].state, OrderState::Released);
    host.receipt(&service, &placed, Event::Ended).unwrap();
}

#[test]
fn a_withdrawn_admission_ends_trust_and_release() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let (operator, tenant) = (service.person("olga"), service.person("alice"));
    let mut host = Host::new("h1");
    host.join(&service);
    tenant.put_volume("disk", KEY).unwrap();
    let placed = tenant.launch(&launch_request("disk")).unwrap();
    let ek = operator.host("h1").unwrap().ek_fingerprint;
    operator.withdraw(&ek).unwrap();
    assert_eq!(refusal(operator.withdraw(&ek)).0, 404);
    assert!(codes(host.release(&service, &placed)).contains(&"endorsement.not-admitted".into()));
    assert_eq!(codes(host.attest(&service)), ["endorsement.not-admitted"]);
    // Admitted again it is not trusted by what was judged before.
    operator.admit(&ek, "h1", "again").unwrap();
    assert!(!trusted(&service, "h1"));
    assert!(host.attest(&service).unwrap().trusted);
    assert_eq!(host.release(&service, &placed).unwrap(), KEY);
}

#[test]
fn what_is_known_of_a_host_is_told_to_the_key_that_it_quoted_and_to_nobody_else() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    host.join(&service);
    host.program("/usr/bin/private-tool", b"a program that the reference values do not list");
    assert_eq!(codes(host.attest(&service)), ["ima.unlisted"]);
    // The host itself reads why it gets no work.
    let own = format!("{:?}", host.client(&service).orders("h1").unwrap_err());
    assert!(own.contains("private-tool"), "{own}");
    // Whoever else calls in its name learns nothing of it; neither does a tenant of a host that nobody admitted.
    let thief = service.client(Some(&Identity::new_for_host("h1").unwrap()));
    assert_eq!(codes(thief.orders("h1")), ["host.other-tls-key"]);
    let mut stranger = Host::booted("stranger", Boot::with(true, "quiet made-up=text"));
    stranger.enrol(&service).unwrap();
    assert!(codes(stranger.attest(&service)).contains(&"endorsement.not-admitted".into()));
    let alice = service.person("alice");
    alice.put_volume("disk", KEY).unwrap();
    match alice.launch(&launch_request("disk")) {
        Err(portcullis_verifier::client::ClientError::NotPlaced { why_not }) => {
            let of_stranger = why_not.iter().find(|host| host.host == "stranger").unwrap();
            let found: Vec<_> = of_stranger.reasons.iter().map(|reason| reason.code.as_str()).collect();
            assert_eq!(found, ["endorsement.not-admitted"]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_name_taken_by_a_stranger_does_not_keep_the_admitted_host_out() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let (mut squatter, mut honest) = (Host::new("h1"), Host::new("h1"));
    squatter.enrol(&service).unwrap();
    assert_eq!(codes(honest.enrol(&service)), ["enrol.host-conflict"]);
    let ek = honest.tpm().ek_public().unwrap();
    let spki = portcullis_attest::key::PublicArea::parse(&ek).unwrap().spki_der().unwrap();
    let fingerprint = hex::encode(portcullis_attest::key::Bank::Sha256.hash(&spki));
    service.person("olga").admit(&fingerprint, "h1", "a test").unwrap();
    assert_eq!(honest.enrol(&service).unwrap().state, api::Admission::Admitted);
    assert!(honest.attest(&service).unwrap().trusted);
    // What the stranger was asked before counts no more, and it cannot come back.
    assert!(!codes(squatter.attest(&service)).is_empty());
    assert_eq!(codes(squatter.enrol(&service)), ["enrol.host-conflict"]);
    assert!(trusted(&service, "h1"));
}
