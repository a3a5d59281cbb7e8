//! By what the service judges: who signed the reference values, and which policy is for which host.

mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use portcullis_attest::endorsement::{EnrolmentStatement, VerifierKeys};
use portcullis_attest::reference::signature::ReferenceSigner;
use portcullis_verifier::service::authority;
use support::boot::{POLICY, references};
use support::host::{Host, codes};
use support::service::{Running, Setup, refused};

fn signer() -> ReferenceSigner {
    ReferenceSigner::from_pem(&authority::make_key().unwrap()).unwrap()
}

/// The tests' policy, which believes these signers only.
fn policy(signers: &[&ReferenceSigner]) -> String {
    let keys: Vec<String> =
        signers.iter().map(|signer| format!("\"\"\"{}\"\"\"", signer.public_pem().unwrap())).collect();
    POLICY.replace("unsigned_references = true", &format!("reference_signers = [{}]", keys.join(", ")))
}

#[test]
fn reference_values_count_with_the_signature_of_whom_the_policy_names() {
    let setup = Setup::new(&[]);
    let (good, other) = (signer(), signer());
    setup.write("policy.toml", &policy(&[&other, &good]));
    setup.write("reference.toml.sig", &good.sign(references().as_bytes()).unwrap());
    let service = setup.serve();
    let mut host = Host::new("h1");
    assert!(host.join(&service).trusted);
    assert!(service.terminate().success());
    assert!(!setup.log().contains("count under no policy"), "{}", setup.log());

    // Without its signature the same file is anybody's.
    std::fs::remove_file(setup.path("reference.toml.sig")).unwrap();
    let service = setup.serve();
    assert_eq!(codes(host.attest(&service)), ["reference.unsigned"]);
    assert!(service.terminate().success());
    assert!(setup.log().contains("signed by nobody, count under no policy"), "{}", setup.log());

    // A signature that does not hold is no mere absence: the service does not start.
    for (jws, expected) in [
        (signer().sign(references().as_bytes()).unwrap(), "none of those that may sign"),
        (good.sign(b"something else").unwrap(), "not of this content"),
        ("no signature".to_owned(), "not a detached signature"),
    ] {
        setup.write("reference.toml.sig", &jws);
        let (code, said) = refused(&setup.serve_args("127.0.0.1:0"));
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("reference.toml.sig") && said.contains(expected), "{said}");
    }
}

#[test]
fn a_signer_that_the_policy_names_no_more_vouches_for_nothing() {
    let setup = Setup::new(&[]);
    let (before, now) = (signer(), signer());
    // Two policies: the file is read with the keys of both, and counts under the one that names its signer.
    setup.write("policy.toml", &policy(&[&now]).replace("hosts = [\"*\"]", "hosts = [\"new-*\"]"));
    setup.write("second.toml", &policy(&[&before]).replace("hosts = [\"*\"]", "hosts = [\"old-*\"]"));
    setup.write("reference.toml.sig", &before.sign(references().as_bytes()).unwrap());
    let mut args = setup.serve_args("127.0.0.1:0");
    args.extend(["--policy".to_owned(), setup.path("second.toml")]);
    let service = setup.serve_with(&args);
    assert!(Host::new("old-1").join(&service).trusted);
    let mut new = Host::new("new-1");
    let enrolled = new.enrol(&service).unwrap();
    service.person("olga").admit(&enrolled.ek_fingerprint, &enrolled.host, "").unwrap();
    assert_eq!(codes(new.attest(&service)), ["reference.signer-unknown"]);
    // A host that no policy is for gets nothing.
    let mut stray = Host::new("stray");
    let enrolled = stray.enrol(&service).unwrap();
    service.person("olga").admit(&enrolled.ek_fingerprint, &enrolled.host, "").unwrap();
    assert!(codes(stray.attest(&service)).contains(&"policy.host".to_owned()));
}

#[test]
fn an_older_edition_of_reference_values_does_not_come_back() {
    let setup = Setup::new(&[]);
    let signer = signer();
    setup.write("policy.toml", &format!("{}minimum_reference_versions = {{ good = 2 }}\n", policy(&[&signer])));
    let put = |version: u32| {
        let text = references().replacen("name =", &format!("version = {version}\nname ="), 1);
        setup.write("reference.toml", &text);
        setup.write("reference.toml.sig", &signer.sign(text.as_bytes()).unwrap());
    };
    let mut host = Host::new("h1");
    put(2);
    let service = setup.serve();
    assert!(host.join(&service).trusted);
    assert!(service.terminate().success());
    assert!(!setup.log().contains("count under no policy"), "{}", setup.log());
    put(1);
    let service = setup.serve();
    assert_eq!(codes(host.attest(&service)), ["reference.version-too-old"]);
    assert!(service.terminate().success());
    assert!(setup.log().contains("version 1, signed by the key"), "{}", setup.log());
}

#[test]
fn the_first_policy_for_a_host_counts() {
    let setup = Setup::new(&[]);
    // For h1 stricter than for the rest: it may not run what the others may.
    setup.write("policy.toml", &POLICY.replace("hosts = [\"*\"]", "hosts = [\"h1\"]").replace("\"good\"", "\"other\""));
    setup.write("second.toml", POLICY);
    let mut args = setup.serve_args("127.0.0.1:0");
    args.extend(["--policy".to_owned(), setup.path("second.toml")]);
    let service = setup.serve_with(&args);
    assert!(Host::new("h2").join(&service).trusted);
    let mut first = Host::new("h1");
    let enrolled = first.enrol(&service).unwrap();
    service.person("olga").admit(&enrolled.ek_fingerprint, &enrolled.host, "").unwrap();
    assert_eq!(codes(first.attest(&service)), ["reference.missing"]);
}

/// Whether the enrolment statement of the host `h1` says that its TPM has a vendor's certificate.
fn is_called_certified(service: &Running) -> bool {
    let published = serde_json::to_vec(&service.client(None).jwks().unwrap()).unwrap();
    let statement = service.person("olga").enrolment("h1").unwrap().enrolment;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    EnrolmentStatement::verify(&statement, &VerifierKeys::from_jwks(&published).unwrap(), now).unwrap().ek_certified
}

#[test]
fn n31_what_is_revoked_is_refused_also_when_it_is_enrolled_already() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    host.join(&service);
    let ek = service.person("olga").host("h1").unwrap().ek_fingerprint;
    assert!(service.terminate().success());

    std::fs::create_dir(setup.path("revoked")).unwrap();
    let mut args = setup.serve_args("127.0.0.1:0");
    args.extend(["--revocations".to_owned(), setup.path("revoked")]);
    let issuer = std::fs::read_to_string(setup.path("roots/issuer.pem")).unwrap();
    let issuer = pem_der(&issuer);
    let of_issuer = hex::encode(portcullis_attest::key::Bank::Sha256.hash(&issuer));
    for (what, fingerprint) in [("its own key", ek.as_str()), ("its vendor's authority", of_issuer.as_str())] {
        setup.write("revoked/list.txt", &format!("# {}\n{}\n", "another TPM", "0".repeat(64)));
        let service = setup.serve_with(&args);
        assert!(host.attest(&service).unwrap().trusted, "nothing of it is revoked yet");
        assert!(is_called_certified(&service), "nothing of it is revoked yet");
        assert!(service.terminate().success());
        setup.write("revoked/list.txt", &format!("# {what}\n{fingerprint}\n"));
        let service = setup.serve_with(&args);
        assert_eq!(codes(host.attest(&service)), ["ek.revoked"], "{what}");
        let view = service.person("olga").host("h1").unwrap();
        assert_eq!(view.trust, portcullis_verifier::api::Trust::Untrusted, "{what}");
        // Nor does an enrolment statement that is made now vouch for the certificate.
        assert!(!is_called_certified(&service), "{what}");
        let mut new = Host::new("h2");
        match what {
            "its own key" => assert!(new.enrol(&service).is_ok()),
            _ => assert_eq!(codes(new.enrol(&service)), ["ek.revoked"]),
        }
        assert!(service.terminate().success());
    }
    setup.write("revoked/list.txt", "no fingerprint\n");
    let (code, said) = refused(&args);
    assert_eq!(code, 2);
    assert!(said.contains("revoked/list.txt") && said.contains("line 1"), "{said}");
}

/// Without the authority's certificate nobody can tell whether it revoked the host's, or was revoked itself.
#[test]
fn n31_a_host_whose_certificate_leads_to_no_root_any_more_is_denied() {
    let setup = Setup::new(&[]);
    let service = setup.serve();
    let mut host = Host::new("h1");
    host.join(&service);
    assert!(service.terminate().success());
    // Torn, as by a copy that broke off: it is skipped with a warning.
    let issuer = std::fs::read_to_string(setup.path("roots/issuer.pem")).unwrap();
    setup.write("roots/issuer.pem", &issuer[..200]);
    let service = setup.serve();
    assert_eq!(codes(host.attest(&service)), ["ek.root-unknown"]);
    assert!(service.terminate().success());
    setup.write("roots/issuer.pem", &issuer);
    assert!(host.attest(&setup.serve()).unwrap().trusted);
}

/// A list of a vendor whose certificates are not among the roots: made with `openssl ca -gencrl`.
const STRANGERS_LIST: &str = "\
-----BEGIN X509 CRL-----
MIGxMFoCAQEwCgYIKoZIzj0EAwIwGTEXMBUGA1UEAwwOQW5vdGhlciB2ZW5kb3IX
DTI2MTEyMjAzMjU1MVoYDzIxMjYxMDI5MDMyNTUxWqAOMAwwCgYDVR0UBAMCAQEw
CgYIKoZIzj0EAwIDRwAwRAIgQWlyp3xqatFvg/fIuQ6cGDecgbXKvL+eiSktD6Z0
pXECIAwBTbshUEQw1vGvHc7fod4ieQptCm0aS3LUfXcimnw4
-----END X509 CRL-----
";

#[test]
fn n31_a_list_of_no_configured_authority_is_told() {
    let setup = Setup::new(&[]);
    std::fs::create_dir(setup.path("revoked")).unwrap();
    let mut args = setup.serve_args("127.0.0.1:0");
    args.extend(["--revocations".to_owned(), setup.path("revoked")]);
    let warning = "revocation list of \\\"CN=Another vendor\\\" was not issued by a configured authority";
    assert!(setup.serve_with(&args).terminate().success());
    assert!(!setup.log().contains("revocation list of"), "{}", setup.log());
    setup.write("revoked/vendor.pem", STRANGERS_LIST);
    assert!(setup.serve_with(&args).terminate().success());
    assert!(setup.log().contains(warning), "{}", setup.log());
}

fn pem_der(pem: &str) -> Vec<u8> {
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    base64::Engine::decode(&base64::engine::general_purpose::STANDARD, body).unwrap()
}
