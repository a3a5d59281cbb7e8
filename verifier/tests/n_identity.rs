//! Who a host is, and by whose rules: N97, N98 and N99. Each case beside what is accepted.

mod support;

use portcullis_attest::appraise::Policy;
use portcullis_attest::binding::Purpose;
use portcullis_attest::reference::signature::ReferenceSigner;
use portcullis_verifier::api::{self, Admission, Pins, Trust};
use portcullis_verifier::client::ClientError;
use portcullis_verifier::service::authority;
use support::boot::{Boot, POLICY, references, references_named};
use support::host::{Host, KEY, codes, launch_request, refusal};
use support::service::{Running, Setup};

/// A second policy beside that of the tests, with reference values of its own.
fn serve_with_second(setup: &Setup, policy: &str, references: &str) -> Running {
    setup.write("second-policy.toml", policy);
    setup.write("second-reference.toml", references);
    let mut args = setup.serve_args("127.0.0.1:0");
    for (option, file) in [("--policy", "second-policy.toml"), ("--reference", "second-reference.toml")] {
        args.extend([option.to_owned(), setup.path(file)]);
    }
    setup.serve_with(&args)
}

/// Why each host gets no VM of this volume.
fn why_not(service: &Running, tenant: &str, volume: &str) -> Vec<(String, Vec<String>)> {
    match service.person(tenant).launch(&launch_request(volume)) {
        Err(ClientError::NotPlaced { why_not }) => {
            let codes = |host: &api::WhyNot| host.reasons.iter().map(|reason| reason.code.to_string()).collect();
            why_not.iter().map(|host| (host.host.clone(), codes(host))).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// A service with a strict policy for `prod-*` and one for `lab-*` that accepts [`insecure`].
fn lax() -> (Setup, Running) {
    let setup = Setup::new(&[]);
    setup.write("policy.toml", &POLICY.replace("[\"*\"]", "[\"prod-*\"]"));
    let policy = POLICY.replace("[\"*\"]", "[\"lab-*\"]").replace("[\"good\"]", "[\"lab\"]");
    let policy = policy.replace("secure_boot = true", "secure_boot = false");
    let service = serve_with_second(&setup, &policy, &references_named("lab", &[insecure()]));
    (setup, service)
}

fn insecure() -> Boot {
    Boot::with(false, "console=ttyS0 quiet")
}

#[test]
fn n97_a_host_does_not_choose_the_policy_that_it_is_judged_by() {
    let (_setup, service) = lax();
    let operator = service.person("olga");
    let mut host = Host::booted("prod-7", insecure());
    let ek = host.enrol(&service).unwrap().ek_fingerprint;
    operator.admit(&ek, "prod-7", "rack 4").unwrap();
    assert!(codes(host.attest(&service)).contains(&"secure-boot.disabled".to_owned()));
    // Forgotten, so that its name is free, it comes back under a name for which the other policy is.
    operator.remove_host("prod-7").unwrap();
    host.name = "lab-7".into();
    assert_eq!(codes(host.enrol(&service)), ["host.other-name"]);
    assert_eq!(codes(host.attest(&service)), ["host.unknown"]);
    service.person("alice").put_volume("disk", KEY).unwrap();
    assert_eq!(why_not(&service, "alice", "disk"), []);
    // The other policy does accept it, of a TPM that an operator admitted under such a name.
    assert!(Host::booted("lab-8", insecure()).join(&service).trusted);
    // And under the name that it was admitted as a good boot passes.
    host.name = "prod-7".into();
    host.reboot(Boot::good());
    assert_eq!(host.enrol(&service).unwrap().state, Admission::Admitted);
    assert!(host.attest(&service).unwrap().trusted);
}

#[test]
fn n97_a_host_that_waits_under_another_name_than_the_admitted_one_gets_nothing() {
    let (_setup, service) = lax();
    let operator = service.person("olga");
    let mut host = Host::booted("lab-7", insecure());
    // The operator read the fingerprint off prod-7, which calls itself lab-7.
    let ek = host.enrol(&service).unwrap().ek_fingerprint;
    operator.admit(&ek, "prod-7", "rack 4").unwrap();
    assert_eq!(codes(host.attest(&service)), ["endorsement.not-admitted", "host.other-name"]);
    let seen = operator.host("lab-7").unwrap();
    assert_eq!((seen.state, seen.trust), (Admission::Pending, Trust::Unknown));
    let reason = seen.reasons.iter().find(|reason| reason.code.as_str() == "host.other-name").unwrap();
    assert_eq!((reason.expected.as_deref(), reason.found.as_deref()), (Some("prod-7"), Some("lab-7")));
    assert_eq!(codes(operator.enrolment("lab-7")), ["endorsement.not-admitted"]);
    service.person("alice").put_volume("disk", KEY).unwrap();
    let expected = vec![("lab-7".to_owned(), vec!["endorsement.not-admitted".to_owned()])];
    assert_eq!(why_not(&service, "alice", "disk"), expected);
    // Another name needs the first admission withdrawn, and one name is one TPM's.
    assert_eq!(refusal(operator.admit(&ek, "lab-7", "")), (409, "admission.other-name".into()));
    assert_eq!(refusal(operator.admit(&"0".repeat(64), "prod-7", "")), (409, "admission.name-taken".into()));
    for name in ["", "lab 7", "LAB-7", "lab-*"] {
        assert_eq!(refusal(operator.admit(&ek, name, "")).0, 400, "{name:?}");
    }
    // Under the right name it takes the place of what waited, and is judged by that name's policy.
    host.name = "prod-7".into();
    host.enrol(&service).unwrap();
    assert!(codes(host.attest(&service)).contains(&"secure-boot.disabled".to_owned()));
    host.reboot(Boot::good());
    assert!(host.attest(&service).unwrap().trusted);
    assert_eq!(refusal(operator.host("lab-7")).0, 404);
}

#[test]
fn n98_a_tpm_without_certificate_where_the_policy_requires_one() {
    let setup = Setup::new(&[]);
    setup.write("policy.toml", &POLICY.replace("ima = true", "ima = true\ncertified_ek = true"));
    let service = setup.serve();
    let mut host = Host::new("h1");
    let whole = host.enrol_request();
    let enrol = |host: &mut Host, request: &api::EnrolRequest| {
        let client = host.client(&service);
        let challenge = client.enrol(request).unwrap();
        let secret = host.tpm().activate_credential(&challenge.credential_blob, &challenge.secret).unwrap();
        let evidence = host.enrolment_evidence(&secret);
        client.activate(&challenge.enrolment, &secret, evidence).unwrap()
    };
    let ek = enrol(&mut host, &api::EnrolRequest { ek_certificate: None, ..whole.clone() }).ek_fingerprint;
    service.person("olga").admit(&ek, "h1", "an operator's word alone").unwrap();
    assert_eq!(codes(host.attest(&service)), ["endorsement.not-certified"]);
    // The same TPM with its certificate.
    enrol(&mut host, &whole);
    assert!(host.attest(&service).unwrap().trusted);
}

fn signer() -> ReferenceSigner {
    ReferenceSigner::from_pem(&authority::make_key().unwrap()).unwrap()
}

#[test]
fn n98_an_operators_own_tpm_and_policy_get_no_key_that_a_tenant_pinned() {
    let setup = Setup::new(&[]);
    // The tenant's idea of a good host: this policy, reference values signed by this key.
    let signer = signer();
    let trusted = format!("reference_signers = [\"\"\"{}\"\"\"]", signer.public_pem().unwrap());
    let policy = POLICY.replace("unsigned_references = true", &trusted).replace("[\"*\"]", "[\"prod-*\"]");
    setup.write("policy.toml", &policy);
    setup.write("reference.toml.sig", &signer.sign(references().as_bytes()).unwrap());
    let pins = Pins {
        policies: vec![hex::encode(Policy::from_toml(&policy).unwrap().digest())],
        signers: vec![signer.id().to_owned()],
        tpms: Vec::new(),
    };
    // The operator's own: a policy that believes reference values of nobody, about whatever his host does.
    let own = POLICY.replace("[\"*\"]", "[\"own-*\"]").replace("[\"good\"]", "[\"own\"]");
    let own = own.replace("secure_boot = true", "secure_boot = false");
    let service = serve_with_second(&setup, &own, &references_named("own", &[insecure()]));
    let (operator, tenant) = (service.person("olga"), service.person("alice"));
    let mut evil = Host::booted("own-1", insecure());
    assert!(evil.join(&service).trusted);
    for volume in ["pinned", "free"] {
        tenant.put_volume(volume, KEY).unwrap();
    }
    // Placed before it was pinned: the release looks at the pins of now.
    let placed = tenant.launch(&launch_request("pinned")).unwrap();
    tenant.put_pinned_volume("pinned", KEY, Some(pins.clone())).unwrap();
    assert_eq!(tenant.volumes().unwrap().volumes[1].pins, pins);
    let expected = ["release.pinned-policy", "release.pinned-signer"];
    assert_eq!(codes(evil.release(&service, &placed)), expected);
    assert_eq!(operator.host("own-1").unwrap().trust, Trust::Trusted, "a tenant's pins say nothing against a host");
    // Each of the two counts by itself.
    for (pins, expected) in [
        (Pins { signers: Vec::new(), ..pins.clone() }, expected[0]),
        (Pins { policies: Vec::new(), ..pins.clone() }, expected[1]),
    ] {
        tenant.put_pinned_volume("pinned", KEY, Some(pins)).unwrap();
        assert_eq!(codes(evil.release(&service, &placed)), [expected]);
    }
    // Neither an operator nor another tenant changes them, nor whoever does not know the key; none given change none.
    tenant.put_pinned_volume("pinned", KEY, Some(pins.clone())).unwrap();
    let none = Some(Pins::default());
    assert_eq!(refusal(operator.put_pinned_volume("pinned", KEY, none.clone())), (403, "peer.role".into()));
    service.person("bob").put_pinned_volume("pinned", KEY, none.clone()).unwrap();
    let other_key = tenant.put_pinned_volume("pinned", &[7; 32], none.clone());
    assert_eq!(refusal(other_key), (409, "volume.exists".into()));
    tenant.put_volume("pinned", KEY).unwrap();
    assert_eq!(codes(evil.release(&service, &placed)), expected);
    for bad in ["", "zz", &"A".repeat(64)] {
        let bad = Pins { policies: vec![bad.to_owned()], ..Pins::default() };
        assert_eq!(refusal(tenant.put_pinned_volume("pinned", KEY, Some(bad))).0, 400);
    }
    // A placement says so beforehand.
    tenant.put_pinned_volume("more", KEY, Some(pins.clone())).unwrap();
    let expected: Vec<String> = expected.map(str::to_owned).to_vec();
    assert_eq!(why_not(&service, "alice", "more"), [("own-1".to_owned(), expected)]);
    // The twins: what was not pinned goes there; what was goes to a host that was judged so; and the tenant may change it.
    let free = tenant.launch(&launch_request("free")).unwrap();
    assert_eq!(evil.release(&service, &free).unwrap(), KEY);
    let mut good = Host::new("prod-1");
    good.join(&service);
    let more = tenant.launch(&launch_request("more")).unwrap();
    // An operator's own TPM that shows an honest host's state looks like any good host. Only a pin of TPMs tells it apart.
    let bench = operator.host("prod-1").unwrap().ek_fingerprint;
    let another = if bench.starts_with('0') { "1".repeat(64) } else { "0".repeat(64) };
    tenant.put_pinned_volume("more", KEY, Some(Pins { tpms: vec![another], ..pins.clone() })).unwrap();
    assert_eq!(codes(good.release(&service, &more)), ["release.pinned-tpm"]);
    tenant.put_pinned_volume("more", KEY, Some(Pins { tpms: vec![bench], ..pins.clone() })).unwrap();
    assert_eq!((more.host.as_str(), good.release(&service, &more).unwrap().as_slice()), ("prod-1", KEY));
    tenant.put_pinned_volume("pinned", KEY, none).unwrap();
    assert_eq!(evil.release(&service, &placed).unwrap(), KEY);
}

/// Bits of TPMA_OBJECT (TPM 2.0 part 2, 8.3).
const FIXED_TPM: u32 = 1 << 1;
const FIXED_PARENT: u32 = 1 << 4;
const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
const RESTRICTED: u32 = 1 << 16;
const DECRYPT: u32 = 1 << 17;
const SIGN: u32 = 1 << 18;

/// The public area with some attributes changed to their opposites.
fn with_other_attributes(public: &[u8], changed: u32) -> Vec<u8> {
    let mut public = public.to_vec();
    let attributes = u32::from_be_bytes(public[4..8].try_into().unwrap());
    public[4..8].copy_from_slice(&(attributes ^ changed).to_be_bytes());
    public
}

#[test]
fn n99_an_ak_that_takes_the_place_of_the_enrolled_one() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    host.join(&service);
    let client = host.client(&service);
    let request = host.enrol_request();
    // With other attributes no key is an attestation key: neither for a host that is known nor for a new one.
    for (changed, expected) in [
        (RESTRICTED, "ak.not-restricted"),
        (FIXED_TPM, "ak.not-fixed-tpm"),
        (FIXED_PARENT, "ak.not-fixed-parent"),
        (SENSITIVE_DATA_ORIGIN, "ak.foreign-secret"),
        (SIGN, "ak.not-signing"),
        (DECRYPT, "ak.decrypts"),
    ] {
        for name in ["h1", "h2"] {
            let ak_public = with_other_attributes(&request.ak_public, changed);
            let other = api::EnrolRequest { host: name.into(), ak_public, ..request.clone() };
            assert_eq!(codes(client.enrol(&other)), [expected]);
        }
    }
    // A new key with the right attributes, after the owner evicted the first, is refused when it is announced …
    let first = host.ak.clone();
    let second = host.tpm().create_ak().unwrap();
    let announced = api::EnrolRequest { ak_public: second.public.clone(), ..request.clone() };
    assert_eq!(codes(client.enrol(&announced)), ["enrol.host-conflict"]);
    // … its quotes are not the host's …
    host.tpm().load_ak(&second).unwrap();
    let found = codes(host.attest(&service));
    assert!(found.iter().all(|code| code == "quote.signature-invalid"), "{found:?}");
    let (operator, trusted) = (service.person("olga"), |trust| trust == Trust::Trusted);
    assert!(trusted(operator.host("h1").unwrap().trust), "what another key signed was held against the host");
    // … and it opens no credential that was made for the first.
    let challenge = client.enrol(&request).unwrap();
    assert!(host.tpm().activate_credential(&challenge.credential_blob, &challenge.secret).is_err());
    host.tpm().load_ak(&first).unwrap();
    let secret = host.tpm().activate_credential(&challenge.credential_blob, &challenge.secret).unwrap();
    let evidence = host.enrolment_evidence(&secret);
    client.activate(&challenge.enrolment, &secret, evidence).unwrap();
    // Announced while nothing stood against it, it is refused when it is proved.
    operator.remove_host("h1").unwrap();
    let (one, two) = (client.enrol(&request).unwrap(), client.enrol(&announced).unwrap());
    let secret = host.tpm().activate_credential(&one.credential_blob, &one.secret).unwrap();
    let evidence = host.enrolment_evidence(&secret);
    client.activate(&one.enrolment, &secret, evidence).unwrap();
    host.tpm().load_ak(&second).unwrap();
    let secret = host.tpm().activate_credential(&two.credential_blob, &two.secret).unwrap();
    let evidence = host.enrolment_evidence(&secret);
    assert_eq!(codes(client.activate(&two.enrolment, &secret, evidence)), ["enrol.host-conflict"]);
    host.tpm().load_ak(&first).unwrap();
    assert!(host.attest(&service).unwrap().trusted);
    assert!(host.answer(&client, Purpose::Attest, &[]).is_ok());
}
