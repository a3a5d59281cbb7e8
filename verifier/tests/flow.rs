//! The main job against the real service with real (software) TPMs: enrol, attest, place, release, receipts.

mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use portcullis_attest::endorsement::{EnrolmentError, EnrolmentStatement, VerifierKeys};
use portcullis_verifier::api::{Admission, OrderState, Trust};
use portcullis_verifier::client::ClientError;
use portcullis_verifier::order::{OrderKeys, VerifiedOrder};
use portcullis_verifier::receipt::Event;
use support::boot::{Boot, references};
use support::host::{Host, KEY, codes, launch_request, refusal};
use support::service::{Setup, VERIFIER};

/// A result token, checked with the published keys and any JWT library.
fn claims(jwks: &serde_json::Value, token: &str) -> serde_json::Value {
    let set: JwkSet = serde_json::from_value(jwks.clone()).unwrap();
    let kid = jsonwebtoken::decode_header(token).unwrap().kid.unwrap();
    let key = DecodingKey::from_jwk(set.find(&kid).unwrap()).unwrap();
    let mut validation = Validation::new(Algorithm::ES256);
    validation.leeway = 0;
    jsonwebtoken::decode(token, &key, &validation).unwrap().claims
}

#[test]
fn from_enrolment_to_the_last_receipt() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let (operator, tenant) = (service.person("olga"), service.person("alice"));
    let mut host = Host::new("h1");

    // Enrolled, but pending: the evidence is good and yet no token is given.
    let enrolled = host.enrol(&service).unwrap();
    assert_eq!((enrolled.host.as_str(), enrolled.state), ("h1", Admission::Pending));
    assert_eq!(codes(host.attest(&service)), ["endorsement.not-admitted"]);
    let pending = operator.host("h1").unwrap();
    assert_eq!(
        (pending.state, pending.trust, pending.certificate.as_str()),
        (Admission::Pending, Trust::Unknown, "verified")
    );
    assert_eq!(pending.ek_fingerprint, enrolled.ek_fingerprint);

    // Admitted by its fingerprint: trusted as soon as it attests.
    operator.admit(&enrolled.ek_fingerprint, &enrolled.host, "rack 2").unwrap();
    let result = host.attest(&service).unwrap();
    assert!(result.trusted && result.reasons.is_empty());
    let claims = claims(&service.client(None).jwks().unwrap(), &result.token);
    assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 300);
    assert_eq!(claims["submods"]["h1"]["ear.status"], "affirming", "{claims}");
    let view = operator.host("h1").unwrap();
    assert_eq!(view.trust, Trust::Trusted, "{view:?}");
    assert_eq!(view.boot.as_ref().unwrap().ek.as_ref(), Some(&enrolled.ek_fingerprint));

    // A tenant's volume is placed there, and only the order's own host sees the order.
    tenant.put_volume("disk", KEY).unwrap();
    let placed = tenant.launch(&launch_request("disk")).unwrap();
    assert_eq!(placed.host, "h1");
    let keys = std::fs::read(setup.path("state/trust/order-keys.json")).unwrap();
    let keys = OrderKeys::from_jwks(&keys).unwrap();
    let order = VerifiedOrder::verify(&placed.order, &keys, "h1", std::time::SystemTime::now()).unwrap();
    assert_eq!(order.order().tenant, "alice");
    assert_eq!(order.order().verifier, VERIFIER);
    assert_eq!(&order.order().boot, view.boot.as_ref().unwrap());
    let client = host.client(&service);
    assert_eq!(client.orders("h1").unwrap().orders, std::slice::from_ref(&placed.order));

    // The key opens in that TPM.
    assert_eq!(host.release(&service, &placed).unwrap(), KEY);
    assert!(client.orders("h1").unwrap().orders.is_empty());
    let state = || tenant.vms().unwrap().vms[0].state;
    assert_eq!(state(), OrderState::Released);
    assert_eq!(tenant.volumes().unwrap().volumes[0].held_by.as_ref(), Some(&placed.order_id));

    // Receipts, each also twice: an answer may be lost.
    for (event, expected) in [(Event::Started, OrderState::Running), (Event::Ended, OrderState::Ended)] {
        for _ in 0..2 {
            host.receipt(&service, &placed, event).unwrap();
            assert_eq!(state(), expected);
        }
    }
    // A VM that ended does not start again, and its volume is free for the next one.
    assert_eq!(codes(host.receipt(&service, &placed, Event::Started)), ["receipt.out-of-order"]);
    let again = tenant.launch(&launch_request("disk")).unwrap();
    assert_ne!(again.order_id, placed.order_id);
    assert_eq!(host.release(&service, &again).unwrap(), KEY);
    assert!(service.terminate().success());
    let log = setup.log();
    assert!(log.contains("volume key released"), "{log}");
    assert!(!log.contains(&hex::encode(KEY)) && !log.contains("0123456789abcdef"), "the key is in the log");
}

#[test]
fn an_enrolment_statement_anchors_evidence_for_whoever_has_the_verifiers_keys() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let operator = service.person("olga");
    let mut host = Host::new("h1");
    assert_eq!(refusal(operator.enrolment("h1")).0, 404);
    let enrolled = host.enrol(&service).unwrap();
    assert_eq!(codes(operator.enrolment("h1")), ["endorsement.not-admitted"]);
    operator.admit(&enrolled.ek_fingerprint, &enrolled.host, "rack 2").unwrap();
    let jws = operator.enrolment("h1").unwrap().enrolment;
    let published = serde_json::to_vec(&service.client(None).jwks().unwrap()).unwrap();
    let keys = VerifierKeys::from_jwks(&published).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let statement = EnrolmentStatement::verify(&jws, &keys, now).unwrap();
    // It ends, as the configuration says.
    assert_eq!(statement.exp - statement.iat, 30 * 86_400);
    assert!(matches!(EnrolmentStatement::verify(&jws, &keys, statement.exp), Err(EnrolmentError::Expired { .. })));
    assert_eq!((statement.verifier.as_str(), statement.host.as_str()), (VERIFIER, "h1"));
    assert_eq!((hex::encode(statement.ek), &statement.ak_public), (enrolled.ek_fingerprint, &host.ak.public));
    // It says whether the TPM's certificate leads to a vendor; one that showed none is not certified.
    assert!(statement.ek_certified);
    let mut plain = Host::new("h2");
    let (mut request, client) = (plain.enrol_request(), plain.client(&service));
    request.ek_certificate = None;
    let challenge = client.enrol(&request).unwrap();
    let secret = plain.tpm().activate_credential(&challenge.credential_blob, &challenge.secret).unwrap();
    let evidence = plain.enrolment_evidence(&secret);
    let ek = client.activate(&challenge.enrolment, &secret, evidence).unwrap().ek_fingerprint;
    operator.admit(&ek, "h2", "rack 3").unwrap();
    let uncertified =
        EnrolmentStatement::verify(&operator.enrolment("h2").unwrap().enrolment, &keys, now + 60).unwrap();
    assert!(!uncertified.ek_certified);
    // Nothing else that the verifier signs is one, and it is nothing else.
    operator.admit(&hex::encode(statement.ek), "h1", "again").unwrap();
    let token = host.attest(&service).unwrap().token;
    assert!(matches!(EnrolmentStatement::verify(&token, &keys, now), Err(EnrolmentError::Jws(_))));
    let order_keys = OrderKeys::from_jwks(&std::fs::read(setup.path("state/trust/order-keys.json")).unwrap()).unwrap();
    assert!(VerifiedOrder::verify(&jws, &order_keys, "h1", std::time::SystemTime::now()).is_err());
    // A host whose admission was taken back is nobody's word any more.
    operator.withdraw(&hex::encode(statement.ek)).unwrap();
    assert_eq!(codes(operator.enrolment("h1")), ["endorsement.not-admitted"]);
}

#[test]
fn a_tpm_without_certificate_waits_for_an_operator_like_any_other() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    let request = portcullis_verifier::api::EnrolRequest { ek_certificate: None, ..host.enrol_request() };
    let client = host.client(&service);
    let challenge = client.enrol(&request).unwrap();
    let secret = host.tpm().activate_credential(&challenge.credential_blob, &challenge.secret).unwrap();
    let evidence = host.enrolment_evidence(&secret);
    let enrolled = client.activate(&challenge.enrolment, &secret, evidence).unwrap();
    assert_eq!(enrolled.state, Admission::Pending);
    let operator = service.person("olga");
    assert_eq!(operator.host("h1").unwrap().certificate, "none");
    operator.admit(&enrolled.ek_fingerprint, &enrolled.host, "seen on its own console").unwrap();
    assert!(host.attest(&service).unwrap().trusted);
}

#[test]
fn bad_evidence_of_a_trusted_host_ends_its_trust_at_once() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let (operator, tenant) = (service.person("olga"), service.person("alice"));
    let mut host = Host::new("h1");
    host.join(&service);
    tenant.put_volume("disk", KEY).unwrap();
    let placed = tenant.launch(&launch_request("disk")).unwrap();

    host.program("/usr/bin/portcullis-vmm", b"the vmm");
    assert!(host.attest(&service).unwrap().trusted, "a listed program changes nothing");
    host.program("/tmp/tool", b"not listed anywhere");
    let found = codes(host.attest(&service));
    assert!(found.contains(&"ima.unlisted".to_owned()), "{found:?}");
    let view = operator.host("h1").unwrap();
    assert_eq!(view.trust, Trust::Untrusted);
    assert!(view.reasons.iter().any(|reason| reason.code.as_str() == "ima.unlisted"), "{view:?}");

    // No work, no orders and no keys any more.
    assert!(codes(host.client(&service).orders("h1")).contains(&"host.untrusted".to_owned()));
    assert!(codes(host.release(&service, &placed)).contains(&"ima.unlisted".to_owned()));
    tenant.put_volume("other", KEY).unwrap();
    match tenant.launch(&launch_request("other")) {
        Err(ClientError::NotPlaced { why_not }) => {
            assert_eq!(why_not[0].host, "h1");
            assert_eq!(why_not[0].reasons[0].code.as_str(), "host.untrusted");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_host_with_secure_boot_off_or_another_command_line_gets_nothing() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let operator = service.person("olga");
    for (name, boot, expected, event) in [
        ("insecure", Boot::with(false, "console=ttyS0 quiet"), "secure-boot.disabled", None),
        ("tampered", Boot::with(true, "console=ttyS0 init=/bin/sh"), "eventlog.command-line", Some("init=/bin/sh")),
    ] {
        let mut host = Host::booted(name, boot);
        let enrolled = host.enrol(&service).unwrap();
        operator.admit(&enrolled.ek_fingerprint, &enrolled.host, "").unwrap();
        match host.attest(&service) {
            Err(ClientError::Denied { reasons }) => {
                let reason = reasons.iter().find(|reason| reason.code.as_str() == expected);
                let reason = reason.unwrap_or_else(|| panic!("{name}: {reasons:?}"));
                if let Some(event) = event {
                    assert!(reason.found.as_ref().unwrap().contains(event), "{reason:?}");
                }
            }
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(operator.host(name).unwrap().trust, Trust::Untrusted);
    }
    let tenant = service.person("alice");
    tenant.put_volume("disk", KEY).unwrap();
    assert!(
        matches!(tenant.launch(&launch_request("disk")), Err(ClientError::NotPlaced { why_not }) if why_not.len() == 2)
    );
}

#[test]
fn placement_takes_the_emptiest_host_and_respects_the_limit() {
    let setup = Setup::new(&["max_vms = 1"]);
    let service = setup.serve();
    let tenant = service.person("alice");
    assert!(matches!(tenant.launch(&launch_request("disk")), Err(ClientError::Refused { status: 404, .. })));
    for disk in ["a", "b", "c"] {
        tenant.put_volume(disk, KEY).unwrap();
    }
    assert!(
        matches!(tenant.launch(&launch_request("a")), Err(ClientError::NotPlaced { why_not }) if why_not.is_empty())
    );
    let (mut first, mut second) = (Host::new("h1"), Host::new("h2"));
    first.join(&service);
    second.join(&service);
    let chosen: Vec<String> =
        ["a", "b"].iter().map(|disk| tenant.launch(&launch_request(disk)).unwrap().host).collect();
    assert_eq!(chosen, ["h1", "h2"]);
    match tenant.launch(&launch_request("c")) {
        Err(ClientError::NotPlaced { why_not }) => {
            assert!(why_not.iter().all(|host| host.reasons[0].code.as_str() == "host.busy"), "{why_not:?}");
        }
        other => panic!("{other:?}"),
    }
    let wanted = portcullis_verifier::api::LaunchRequest { host: Some("h3".into()), ..launch_request("c") };
    match tenant.launch(&wanted) {
        Err(ClientError::NotPlaced { why_not }) => {
            let last = why_not[0].reasons.last().unwrap();
            assert_eq!(last.code.as_str(), "host.not-chosen");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn trust_survives_a_restart_of_the_service_and_no_policy_trusts_nobody() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    host.join(&service);
    service.kill9();
    let service = setup.serve();
    assert_eq!(service.person("olga").host("h1").unwrap().trust, Trust::Trusted);
    assert!(host.attest(&service).unwrap().trusted);
    assert!(service.terminate().success());
    setup.write("policy.toml", "");
    let service = setup.serve();
    assert_eq!(codes(host.attest(&service)), ["policy.empty"]);
    assert!(service.terminate().success());
    assert!(references().contains("portcullis/reference/1"));
}

#[test]
fn an_operator_closes_a_host_and_frees_a_volume_whose_host_was_fenced() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let (operator, tenant) = (service.person("olga"), service.person("alice"));
    let mut host = Host::new("h1");
    host.join(&service);
    tenant.put_volume("disk", KEY).unwrap();
    operator.cordon("h1", Some("disk is failing")).unwrap();
    match tenant.launch(&launch_request("disk")) {
        Err(ClientError::NotPlaced { why_not }) => {
            assert_eq!(why_not[0].reasons[0].code.as_str(), "host.cordoned");
            assert_eq!(why_not[0].reasons[0].found.as_deref(), Some("disk is failing"));
        }
        other => panic!("{other:?}"),
    }
    operator.cordon("h1", None).unwrap();
    let placed = tenant.launch(&launch_request("disk")).unwrap();
    // Nothing is fenced that does not hold the volume, and nothing without saying what was done.
    assert_eq!(refusal(operator.fence(&placed.order_id, "power off")), (409, "order.not-open".into()));
    assert_eq!(host.release(&service, &placed).unwrap(), KEY);
    assert_eq!(refusal(operator.fence(&placed.order_id, "")).0, 400);
    assert_eq!(refusal(operator.fence(&"0".repeat(32), "power off")).0, 404);
    operator.fence(&placed.order_id, "power off at the PDU").unwrap();
    let vm = tenant.vms().unwrap().vms.remove(0);
    assert_eq!((vm.state, vm.detail.as_str()), (OrderState::Ended, "fenced by olga: power off at the PDU"));
    assert_eq!(codes(host.receipt(&service, &placed, Event::Started)), ["receipt.out-of-order"]);
    tenant.launch(&launch_request("disk")).unwrap();
}
