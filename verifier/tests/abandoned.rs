//! N95: work for a request that is gone stops.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis_attest::binding::Purpose;
use portcullis_attest::key::Bank;
use portcullis_verifier::api::AttestRequest;
use portcullis_verifier::client::Identity;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConnection, StreamOwned};
use support::host::Host;
use support::service::{Running, Setup};

/// The line that the service logs when it begins to judge, and the one when it stopped.
const JUDGED: &str = "evidence is judged";
const STOPPED: &str = "its judgement was stopped";

/// A connection on which the test can hang up whenever it wants, with the host's own key.
fn connect(service: &Running, (cert, key): &(String, String)) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&service.ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![cert], PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
        .unwrap();
    let connection = ClientConnection::new(Arc::new(config), "127.0.0.1".try_into().unwrap()).unwrap();
    StreamOwned::new(connection, TcpStream::connect(service.url.trim_start_matches("https://")).unwrap())
}

/// A genuine quote with as many entries in the IMA list as a request can hold, of which none leads to it.
fn endless_evidence(host: &mut Host, service: &Running) -> Vec<u8> {
    let client = host.client(service);
    let mut evidence = host.answer(&client, Purpose::Attest, &[]).unwrap();
    let data = [&3_u32.to_le_bytes()[..], b"a:\0", &2_u32.to_le_bytes(), b"b\0"].concat();
    let size = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap().to_le_bytes();
    let digest = Bank::Sha1.hash(&data);
    let entry = [&10_u32.to_le_bytes()[..], &digest, &size(b"ima-ng"), b"ima-ng", &size(&data), &data].concat();
    evidence.ima = entry.repeat((11 << 20) / entry.len());
    evidence.ima_from = 0;
    serde_json::to_vec(&AttestRequest { host: host.name.clone(), evidence }).unwrap()
}

fn post(stream: &mut impl Write, body: &[u8]) {
    let head = "POST /v1/attest HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n";
    write!(stream, "{head}content-length: {}\r\n\r\n", body.len()).unwrap();
    stream.write_all(body).unwrap();
    stream.flush().unwrap();
}

/// Waits until the service has logged this so often.
fn wait_for(setup: &Setup, line: &str, times: usize) {
    let began = Instant::now();
    while setup.log().matches(line).count() < times {
        assert!(began.elapsed() < Duration::from_mins(2), "{line:?} was not logged {times} times: {}", setup.log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn n95_the_judgement_of_evidence_stops_when_its_sender_hangs_up() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap();
    let pair = (cert.pem(), key.serialize_pem());
    host.identity = Identity::from_pem(pair.0.as_bytes(), pair.1.as_bytes()).unwrap();
    assert!(host.join(&service).trusted);

    let body = endless_evidence(&mut host, &service);
    let judged = setup.log().matches(JUDGED).count();
    let mut stream = connect(&service, &pair);
    post(&mut stream, &body);
    wait_for(&setup, JUDGED, judged + 1);
    assert!(!setup.log().contains(STOPPED));
    drop(stream);
    wait_for(&setup, STOPPED, 1);
    // What was not judged to its end says nothing against the host.
    let state = service.person("olga").host("h1").unwrap();
    assert!(state.reasons.is_empty(), "{:?}", state.reasons);

    // The same is judged to its end, and denied, for a sender who waits.
    let body = endless_evidence(&mut host, &service);
    let mut stream = connect(&service, &pair);
    post(&mut stream, &body);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("ima.pcr-mismatch"), "{answer}");
    assert_eq!(setup.log().matches(STOPPED).count(), 1);
    assert!(!service.person("olga").host("h1").unwrap().reasons.is_empty());
}
