//! The service as a program and as a server: start and stop, roles, what requests may look like, what survives.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis_attest::binding::{Binding, EMPTY_BODY, Purpose};
use portcullis_attest::evidence::Evidence;
use portcullis_verifier::api::{AttestRequest, LaunchRequest, MAX_BODY, OrderState};
use portcullis_verifier::client::{Client, ClientError, Identity, IdentityError, Limits};
use portcullis_verifier::service::store::{Store, seconds};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use support::host::{Host, KEY, codes, launch_request, refusal};
use support::service::{Running, Setup, mode, refused, run};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

/// Evidence of nothing.
fn empty_evidence() -> Evidence {
    let binding = Binding {
        purpose: Purpose::Enrol,
        verifier: "verifier".into(),
        host: "h1".into(),
        nonce: vec![0; 32],
        tls_spki_sha256: [0; 32],
        body_sha256: EMPTY_BODY,
    };
    Evidence::new(binding, Vec::new(), Vec::new(), Vec::new())
}

/// A new key and its certificate, PEM.
fn key_pair() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap();
    (cert.pem(), key.serialize_pem())
}

/// A plain HTTPS client, to say what the real client never would.
fn raw(service: &Running, (cert, key): &(String, String)) -> ureq::Agent {
    let cert = Certificate::from_pem(cert.as_bytes()).unwrap();
    let key = PrivateKey::from_pem(key.as_bytes()).unwrap();
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&[Certificate::from_pem(&service.ca).unwrap()]))
        .client_cert(Some(ClientCert::new_with_certs(&[cert], key)))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .build();
    let config = ureq::Agent::config_builder().tls_config(tls).http_status_as_error(false);
    config.timeout_global(Some(Duration::from_mins(1))).build().new_agent()
}

/// GET over TLS by hand, with a certificate and a key that need not belong together.
fn tls_get(service: &Running, cert_pem: &[u8], key: &[u8], path: &str) -> std::io::Result<String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&service.ca).unwrap()).unwrap();
    let key = any_supported_type(&PrivateKeyDer::Pkcs8(key.to_vec().into())).unwrap();
    let pair = CertifiedKey::new(vec![CertificateDer::from_pem_slice(cert_pem).unwrap()], key);
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
    let connection = rustls::ClientConnection::new(Arc::new(config), "127.0.0.1".try_into().unwrap()).unwrap();
    let socket = TcpStream::connect(service.url.trim_start_matches("https://"))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut stream = rustls::StreamOwned::new(connection, socket);
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Status and error code of a raw POST.
fn post(service: &Running, path: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, String) {
    post_as(service, &key_pair(), path, headers, body)
}

/// The same on a key of the caller's.
fn post_as(
    service: &Running,
    pair: &(String, String),
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> (u16, String) {
    let mut request = raw(service, pair).post(format!("{}{path}", service.url));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut answer = request.send(body).unwrap();
    let json: serde_json::Value = answer.body_mut().read_json().unwrap();
    (answer.status().as_u16(), json["error"]["code"].as_str().unwrap_or_default().to_owned())
}

const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn n103_a_host_chooses_no_nonce_and_no_kind_of_nonce() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    host.enrol(&service).unwrap();
    let nonce = "00".repeat(32);
    for more in [
        format!(r#", "nonce": "{nonce}""#),
        r#", "nonce_type": "counter""#.to_owned(),
        r#", "nonce_size": 1"#.to_owned(),
        r#", "expires_in_s": 1000000"#.to_owned(),
        format!(r#", "verifier": "other", "nonce": "{nonce}""#),
    ] {
        let body = format!(r#"{{"host": "h1", "purpose": "attest"{more}}}"#);
        let refused = post(&service, "/v1/challenges", &[JSON], body.as_bytes());
        assert_eq!(refused, (400, "request.malformed".to_owned()), "{body}");
    }
    let plain = post(&service, "/v1/challenges", &[JSON], br#"{"host": "h1", "purpose": "attest"}"#);
    assert_eq!(plain, (200, String::new()));
}

#[test]
fn init_makes_private_files_and_never_overwrites() {
    let setup = Setup::new(&[]);
    let state = setup.path("state");
    assert_eq!(mode(&state), 0o700);
    for file in ["ca.key.pem", "server.key.pem", "token.key.pem", "order.key.pem", "volume.kek", "lock"] {
        assert_eq!(mode(format!("{state}/{file}")), 0o600, "{file}");
    }
    for file in ["ca.pem", "order-keys.json", "verifier-id"] {
        assert_eq!(mode(format!("{state}/trust/{file}")), 0o644, "{file}");
    }
    assert_eq!(std::fs::read_to_string(format!("{state}/trust/verifier-id")).unwrap(), "verifier.test\n");
    assert_eq!(mode(setup.path("alice/key.pem")), 0o600);
    let kek = std::fs::read(format!("{state}/volume.kek")).unwrap();
    assert_eq!(kek.len(), 32);
    let again = run(&["init", "--state", &state, "--name", "other", "--san", "localhost"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&again.stderr).contains("never overwritten"), "{again:?}");
    assert_eq!(std::fs::read(format!("{state}/volume.kek")).unwrap(), kek);
    let args = ["certificate", "--state", &state, "--role", "tenant", "--name", "alice", "--out", &setup.path("alice")];
    let again = run(&args);
    assert_eq!(again.status.code(), Some(2), "{again:?}");
    for (name, san) in [("Bad Name", "localhost"), ("good", "not a name"), ("good", "")] {
        let path = setup.path("new");
        let made = run(&["--json", "init", "--state", &path, "--name", name, "--san", san]);
        assert_eq!(made.status.code(), Some(2), "{made:?}");
        assert!(!std::path::Path::new(&path).exists());
        let said: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
        assert_eq!(said["error"]["exit"], 2);
    }
    let left: Vec<_> = std::fs::read_dir(setup.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("init-")), "{left:?}");
}

#[test]
fn a_taken_port_a_taken_state_and_unreadable_input_are_clear_errors() {
    let setup = Setup::new(&[]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (code, said) = refused(&setup.serve_args(&taken.local_addr().unwrap().to_string()));
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("cannot listen on"), "{said}");

    let service = setup.serve();
    let (code, said) = refused(&setup.serve_args("127.0.0.1:0"));
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("in use by another portcullis-verifier"), "{said}");
    assert!(service.client(None).health().is_ok(), "the first one was disturbed");
    assert!(service.terminate().success());

    let broken = |file: &str, content: &str, expected: &str| {
        let path = setup.path(file);
        let before = std::fs::read(&path).unwrap();
        std::fs::write(&path, content).unwrap();
        let (code, said) = refused(&setup.serve_args("127.0.0.1:0"));
        std::fs::write(&path, before).unwrap();
        assert_eq!(code, 2, "{file}: {said}");
        assert!(said.contains(expected), "{file}: {said}");
    };
    broken("policy.toml", "nonsense = 1", "policy.toml");
    broken("reference.toml", "\u{0}", "reference.toml");
    broken("config.toml", "max_vms = 8\nmax_wms = 9", "max_wms");
    broken("config.toml", "nonce_ttl_s = 0", "nonce_ttl_s is out of bounds");
    broken("roots/root.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "root.pem");
    broken("state/volume.kek", "short", "must be 32 bytes");
    broken("state/order.key.pem", "no key", "ES256");
    broken("state/verifier.toml", "schema = \"x\"\nid = \"a\"\nsan = []\n", "schema");
    let mut args = setup.serve_args("127.0.0.1:0");
    *args.iter_mut().find(|arg| arg.ends_with("policy.toml")).unwrap() = "/nonexistent".into();
    let (code, said) = refused(&args);
    assert_eq!(code, 2);
    assert!(said.contains("/nonexistent"), "{said}");
    // A key that others could read is not used.
    let key = setup.path("state/order.key.pem");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let (code, said) = refused(&setup.serve_args("127.0.0.1:0"));
    assert_eq!(code, 2);
    assert!(said.contains("readable by others"), "{said}");
}

#[test]
fn it_stops_cleanly_and_gives_its_port_and_state_back() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let address = service.url.trim_start_matches("https://").to_owned();
    // An idle connection and one in the middle of nowhere do not keep it.
    let client = service.client(None);
    client.health().unwrap();
    let _half_open = TcpStream::connect(&address).unwrap();
    let began = Instant::now();
    assert!(service.terminate().success());
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(matches!(client.health(), Err(error @ ClientError::Unavailable { .. }) if error.exit_code() == 3));
    let health = setup.serve().client(None).health().unwrap();
    assert_eq!((health.status.as_str(), health.verifier.as_str()), ("ok", "verifier.test"));
    assert_eq!(mode(setup.path("state/verifier.db")), 0o600);
}

#[test]
fn a_log_that_cannot_be_written_ends_nothing_and_changes_no_exit_code() {
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let setup = Setup::new(&[]);
    let service = setup.serve_logging_to(&setup.serve_args("127.0.0.1:0"), full());
    let mut host = Host::new("h1");
    assert!(host.join(&service).trusted);
    assert!(service.terminate().success());
    let command = |out: std::process::Stdio| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_portcullis-verifier"));
        let args = ["--json", "init", "--state", &setup.path("state"), "--name", "other", "--san", "localhost"];
        command.args(args).stdout(out).stderr(full()).status().unwrap().code()
    };
    assert_eq!(command(std::process::Stdio::null()), Some(2));
    assert_eq!(command(full().into()), Some(2));
}

/// A call's name, and the call.
type Call = (&'static str, fn(&Client) -> Result<(), ClientError>);

#[test]
fn each_role_has_its_calls_and_no_others() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let key = Identity::new_for_host("h1").unwrap();
    let (operator, tenant) = (service.person("olga"), service.person("alice"));
    let callers = [("nobody", service.client(None)), ("a host", service.client(Some(&key)))];
    let of_operators: [Call; 9] = [
        ("enrolment", |client| client.enrolment("h1").map(drop)),
        ("cordon", |client| client.cordon("h1", None).map(drop)),
        ("fence", |client| client.fence("00", "x").map(drop)),
        ("hosts", |client| client.hosts().map(drop)),
        ("host", |client| client.host("h1").map(drop)),
        ("remove", |client| client.remove_host("h1").map(drop)),
        ("admissions", |client| client.admissions().map(drop)),
        ("admit", |client| client.admit(&"0".repeat(64), "h1", "").map(drop)),
        ("withdraw", |client| client.withdraw(&"0".repeat(64)).map(drop)),
    ];
    let of_tenants: [Call; 4] = [
        ("put", |client| client.put_volume("v", KEY).map(drop)),
        ("volumes", |client| client.volumes().map(drop)),
        ("launch", |client| client.launch(&launch_request("v")).map(drop)),
        ("vms", |client| client.vms().map(drop)),
    ];
    let of_hosts: [Call; 3] = [
        ("challenge", |client| client.challenge("h1", Purpose::Attest).map(drop)),
        ("orders", |client| client.orders("h1").map(drop)),
        ("activate", |client| client.activate("00", &[0; 32], empty_evidence()).map(drop)),
    ];
    let others = |mine: &[Call], more: &[(&str, &Client)]| {
        for (name, call) in mine {
            for (who, client) in more.iter().copied().chain(callers.iter().map(|(who, client)| (*who, client))) {
                assert_eq!(refusal(call(client)), (403, "peer.role".to_owned()), "{who}: {name}");
            }
        }
    };
    others(&of_operators, &[("a tenant", &tenant)]);
    others(&of_tenants, &[("an operator", &operator)]);
    for (name, call) in of_hosts {
        for (who, client) in [("a tenant", &tenant), ("an operator", &operator), ("nobody", &callers[0].1)] {
            assert_eq!(refusal(call(client)), (403, "peer.role".to_owned()), "{who}: {name}");
        }
        assert!(matches!(call(&callers[1].1), Err(ClientError::Denied { .. })), "{name}");
    }
    assert!(operator.hosts().unwrap().hosts.is_empty());
    assert_eq!(refusal(operator.host("h1")).0, 404);
    for wide in ["*", "", &"0".repeat(63), &"F".repeat(64)] {
        assert_eq!(refusal(operator.admit(wide, "h1", "")).0, 400, "{wide}");
    }
}

#[test]
fn a_certificate_by_another_ca_or_signed_by_itself_is_no_person() {
    let (setup, foreign) = (Setup::new(&[]), Setup::new(&[]));
    let service = setup.serve();
    let read = |file: &str| std::fs::read(foreign.path(file)).unwrap();
    let stranger = Identity::from_pem(&read("olga/cert.pem"), &read("olga/key.pem")).unwrap();
    assert_eq!(refusal(service.client(Some(&stranger)).hosts()).0, 403);
    // The same names, signed by itself.
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "olga");
    params.distinguished_name.push(rcgen::DnType::OrganizationalUnitName, "operator");
    let cert = params.self_signed(&key).unwrap();
    let forged = Identity::from_pem(cert.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    assert_eq!(refusal(service.client(Some(&forged)).hosts()).0, 403);
    // Her certificate without her key: the handshake fails.
    let cert = std::fs::read(setup.path("olga/cert.pem")).unwrap();
    let pair = Identity::from_pem(&cert, key.serialize_pem().as_bytes());
    assert!(matches!(pair, Err(IdentityError::Mismatch)), "{pair:?}");
    let stolen = tls_get(&service, &cert, &key.serialize_der(), "/v1/hosts");
    assert!(stolen.is_err(), "{stolen:?}");
    let her_key = PrivateKeyDer::from_pem_file(setup.path("olga/key.pem")).unwrap();
    let hers = tls_get(&service, &cert, her_key.secret_der(), "/v1/hosts").unwrap();
    assert!(hers.starts_with("HTTP/1.1 200"), "{hers}");
    // And a client believes only the pinned CA.
    let other_ca = std::fs::read(foreign.path("state/trust/ca.pem")).unwrap();
    let client = Client::new(&service.url, &other_ca, None, Limits::default()).unwrap();
    assert!(matches!(client.health(), Err(ClientError::Unavailable { .. })));
    assert!(matches!(
        Client::new("http://127.0.0.1:1", &service.ca, None, Limits::default()),
        Err(ClientError::Setup(_))
    ));
}

#[test]
fn a_tenant_has_only_its_own_volumes() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let (alice, bob) = (service.person("alice"), service.person("bob"));
    let mut host = Host::new("h1");
    host.join(&service);
    alice.put_volume("disk", KEY).unwrap();
    alice.put_volume("disk", KEY).unwrap();
    let other_key = [9u8; 32];
    assert_eq!(refusal(alice.put_volume("disk", &other_key)), (409, "volume.exists".into()));
    // Bob sees nothing of it, cannot start it, and has a volume of the same name.
    assert!(bob.volumes().unwrap().volumes.is_empty());
    assert_eq!(refusal(bob.launch(&launch_request("disk"))).0, 404);
    bob.put_volume("disk", &other_key).unwrap();
    let of_alice = alice.launch(&launch_request("disk")).unwrap();
    assert!(bob.vms().unwrap().vms.is_empty());
    let of_bob = bob.launch(&launch_request("disk")).unwrap();
    assert_eq!(host.release(&service, &of_alice).unwrap(), KEY);
    assert_eq!(host.release(&service, &of_bob).unwrap(), other_key);
    // One volume, one host: also twice for its own tenant.
    assert_eq!(refusal(alice.launch(&launch_request("disk"))), (409, "volume.busy".into()));
    for key in [&[1u8; 15][..], &[1; 129], &[]] {
        assert_eq!(refusal(alice.put_volume("short", key)), (422, "volume.key-size".into()));
    }
    assert_eq!(refusal(alice.put_volume("BAD", KEY)).0, 400);
    let bad = LaunchRequest { vcpus: 0, ..launch_request("disk") };
    assert_eq!(refusal(alice.launch(&bad)).0, 400);
}

#[test]
fn n73_n76_n78_requests_that_are_not_exactly_right_are_refused() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let good = br#"{"host":"h1","purpose":"attest"}"#;
    let challenges = "/v1/challenges";
    // It is understood: there is only no such host.
    assert_eq!(post(&service, challenges, &[JSON], good).0, 403);
    for body in [
        &br#"{"host":"h1","purpose":"attest","more":1}"#[..],
        br#"{"host":"h1","host":"h1","purpose":"attest"}"#,
        br#"{"host":"h1"}"#,
        br#"{"host":"h1","purpose":"Attest"}"#,
        br#"{"host":"h1","purpose":"attest"} x"#,
        br#"{"host":"h1","purpose":"attest""#,
        br#"["h1","attest"]x"#,
        b"",
        b"\xff",
    ] {
        let text = String::from_utf8_lossy(body).into_owned();
        assert_eq!(post(&service, challenges, &[JSON], body), (400, "request.malformed".into()), "{text}");
    }
    assert_eq!(post(&service, challenges, &[], good), (415, "request.type".into()));
    let gzip = [JSON, ("content-encoding", "gzip")];
    assert_eq!(post(&service, challenges, &gzip, good), (415, "request.encoding".into()));
    let large = vec![b' '; 65 * 1024];
    assert_eq!(post(&service, challenges, &[JSON], &large), (413, "request.too-large".into()));
    let deep = "[".repeat(200_000);
    assert_eq!(post(&service, "/v1/attest", &[JSON], deep.as_bytes()), (400, "request.malformed".into()));
    let body = br#"{"host":"h1","evidence":{"schema":"portcullis/evidence/1"}}"#;
    assert_eq!(post(&service, "/v1/attest", &[JSON], body), (400, "request.malformed".into()));
    for path in ["/v1/nothing", "/", "/v1/enrol/../hosts"] {
        assert_eq!(post(&service, path, &[JSON], b"{}").0, 404, "{path}");
    }
    assert_eq!(post(&service, "/healthz", &[JSON], b"{}"), (405, "request.method".into()));
    assert!(service.client(None).health().is_ok());
}

#[test]
fn n73_compressed_evidence_is_refused_and_the_same_in_plain_is_accepted() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    let pair = key_pair();
    host.identity = Identity::from_pem(pair.0.as_bytes(), pair.1.as_bytes()).unwrap();
    host.join(&service);
    let client = host.client(&service);
    let evidence = host.answer(&client, Purpose::Attest, &[]).unwrap();
    let plain = serde_json::to_vec(&AttestRequest { host: "h1".into(), evidence }).unwrap();
    let file = setup.path("evidence.json");
    std::fs::write(&file, &plain).unwrap();
    let packed = std::process::Command::new("gzip").args(["--stdout", &file]).output().unwrap().stdout;
    assert!(packed.len() < plain.len());
    let attest = |headers: &[(&str, &str)], body: &[u8]| post_as(&service, &pair, "/v1/attest", headers, body);
    for encoding in ["gzip", "deflate", "br", "zstd", "identity, gzip"] {
        let answer = attest(&[JSON, ("content-encoding", encoding)], &packed);
        assert_eq!(answer, (415, "request.encoding".into()), "{encoding}");
    }
    assert_eq!(attest(&[JSON], &packed), (400, "request.malformed".into()));
    assert_eq!(attest(&[JSON], &plain), (200, String::new()));
}

#[test]
fn n73_evidence_beyond_the_limit_is_refused_before_it_is_read() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let began = Instant::now();
    let answer = raw(&service, &key_pair())
        .post(format!("{}/v1/attest", service.url))
        .header("content-type", "application/json")
        .header("content-length", (MAX_BODY + 1).to_string())
        .send(ureq::SendBody::from_reader(&mut std::io::repeat(b' ')))
        .map(|answer| answer.status().as_u16());
    // The service answers and closes; whether the answer is read before the pipe breaks is the kernel's choice.
    assert!(matches!(answer, Ok(413) | Err(ureq::Error::Io(_) | ureq::Error::Protocol(_))), "{answer:?}");
    assert!(began.elapsed() < Duration::from_secs(20));
    assert!(service.client(None).health().is_ok());
}

#[test]
fn clients_that_say_nothing_do_not_keep_others_out() {
    let setup = Setup::new(&["handshake_timeout_s = 2", "request_timeout_s = 2", "max_connections = 8"]);
    let service = setup.serve();
    let address = service.url.trim_start_matches("https://").to_owned();
    // Plain HTTP is no TLS handshake.
    TcpStream::connect(&address).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let _silent: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let until = Instant::now() + Duration::from_secs(10);
    while service.client(None).health().is_err() {
        assert!(Instant::now() < until, "silent connections keep the service busy");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn kill_in_the_middle_of_a_release_leaves_it_done_or_undone() {
    let setup = Setup::new(&["max_vms = 1000"]);
    let mut service = setup.serve();
    let mut host = Host::new("h1");
    host.join(&service);
    let (mut done, mut undone) = (0, 0);
    for round in 0..8u64 {
        let disk = format!("disk-{round}");
        let tenant = service.person("alice");
        tenant.put_volume(&disk, KEY).unwrap();
        let placed = tenant.launch(&launch_request(&disk)).unwrap();
        let client = host.client(&service);
        let (request, _) = host.release_request(&client, &placed.order).unwrap();
        let order = placed.order_id.clone();
        let asking = std::thread::spawn(move || client.release(&order, &request).is_ok());
        std::thread::sleep(Duration::from_micros(round * 700));
        service.kill9();
        let answered = asking.join().unwrap();
        service = setup.serve();
        let vms = service.person("alice").vms().unwrap().vms;
        let state = vms.iter().find(|vm| vm.order_id == placed.order_id).unwrap().state;
        match state {
            OrderState::Placed => {
                undone += 1;
                assert!(!answered, "a key was given out and forgotten");
                assert_eq!(host.release(&service, &placed).unwrap(), KEY);
            }
            OrderState::Released => {
                done += 1;
                assert_eq!(codes(host.release(&service, &placed)), ["order.used"]);
            }
            other => panic!("{other:?}"),
        }
    }
    println!("released before the kill: {done}, not: {undone}");
    assert!(service.terminate().success());
    // Every released order has its release, and the database is whole.
    let store = Store::open(std::path::Path::new(&setup.path("state/verifier.db"))).unwrap();
    let orders = store.orders_of_tenant("alice").unwrap();
    assert_eq!(orders.len(), 8);
    let now = seconds(std::time::SystemTime::now());
    assert!(orders.iter().all(|order| order.state_at(now) == OrderState::Released));
    assert_eq!(store.check().unwrap(), 8);
}

#[test]
fn two_who_ask_for_the_same_order_at_once_get_one_key() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let tenant = service.person("alice");
    let mut host = Host::new("h1");
    host.join(&service);
    tenant.put_volume("disk", KEY).unwrap();
    let placed = tenant.launch(&launch_request("disk")).unwrap();
    let client = host.client(&service);
    let requests: Vec<_> = (0..4).map(|_| host.release_request(&client, &placed.order).unwrap().0).collect();
    let asking: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let (client, order) = (client.clone(), placed.order_id.clone());
            std::thread::spawn(move || client.release(&order, &request).is_ok())
        })
        .collect();
    let given = asking.into_iter().map(|asking| asking.join().unwrap()).filter(|given| *given).count();
    assert_eq!(given, 1);
}
