//! `portcullis ek check` with a vendor that OpenSSL plays, which shares no code with this project, and with the vendor of
//! software TPMs.

mod program;

use std::path::Path;
use std::process::Command;

use portcullis_firmware_fixtures::tpm::{Swtpm, VendorCa};
use program::{codes, json, run};
use serde_json::Value;

/// What a vendor's authorities and endorsement keys have.
const EXTENSIONS: &str = "\
[root]
basicConstraints=critical,CA:TRUE
keyUsage=critical,keyCertSign,cRLSign
subjectKeyIdentifier=hash
[issuing]
basicConstraints=critical,CA:TRUE,pathlen:0
keyUsage=critical,keyCertSign,cRLSign
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
authorityInfoAccess=caIssuers;URI:http://tpm.example/root.crt
[ek_rsa]
basicConstraints=critical,CA:FALSE
keyUsage=critical,keyEncipherment
extendedKeyUsage=2.23.133.8.1
authorityKeyIdentifier=keyid
subjectAltName=critical,dirName:tpm
[ek_ecc]
basicConstraints=critical,CA:FALSE
keyUsage=critical,keyAgreement
extendedKeyUsage=2.23.133.8.1
authorityKeyIdentifier=keyid
subjectAltName=critical,dirName:tpm
[ek_without_eku]
basicConstraints=critical,CA:FALSE
keyUsage=critical,keyEncipherment
subjectAltName=critical,dirName:tpm
[tpm]
0.2.23.133.2.1=id:4E544300
0.2.23.133.2.2=NPCT75x
0.2.23.133.2.3=id:00070002
[ca]
default_ca=lists
[lists]
database=index
default_md=sha384
default_crl_days=30
";

/// A vendor with its files in a directory: roots/, issuing.pem, ek-rsa.der, ek-ecc.der.
struct Vendor(tempfile::TempDir);

impl Vendor {
    fn new() -> Self {
        let vendor = Self(tempfile::tempdir().unwrap());
        std::fs::write(vendor.path("ext"), EXTENSIONS).unwrap();
        std::fs::create_dir(vendor.path("roots")).unwrap();
        vendor.openssl("ecparam -name secp384r1 -genkey -noout -out root.key");
        vendor.openssl("req -new -x509 -key root.key -sha384 -days 3650 -subj /O=Vendor/CN=Root -extensions root -config ext -out root.pem");
        vendor.openssl("genrsa -out issuing.key 2048");
        vendor.openssl("req -new -key issuing.key -subj /O=Vendor/CN=Issuing -out issuing.csr");
        vendor.sign("issuing", "root", "issuing");
        for (name, key) in [
            ("ek-rsa", "genrsa -out ek-rsa.key 2048"),
            ("ek-ecc", "ecparam -name secp384r1 -genkey -noout -out ek-ecc.key"),
        ] {
            vendor.openssl(key);
            vendor.openssl(&format!("req -new -key {name}.key -subj / -out {name}.csr"));
            vendor.sign(name, "issuing", &name.replace('-', "_"));
            vendor.openssl(&format!("x509 -in {name}.pem -outform DER -out {name}.der"));
        }
        vendor.openssl("x509 -in root.pem -outform DER -out roots/root.cer");
        vendor
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn sign(&self, name: &str, issuer: &str, extensions: &str) {
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA {issuer}.pem -CAkey {issuer}.key -CAcreateserial -sha256 -days 3650 -extfile ext \
             -extensions {extensions} -out {name}.pem"
        ));
    }

    /// A revocation list by the root of certificates with these serial numbers, into the directory `revocations`.
    fn revoke(&self, serial: &str) {
        let index = format!("R\t401231235959Z\t250101000000Z\t{serial}\tunknown\t/O=Vendor/CN=Issuing\n");
        std::fs::write(self.path("index"), if serial.is_empty() { String::new() } else { index }).unwrap();
        std::fs::create_dir_all(self.path("revocations")).unwrap();
        self.openssl("ca -gencrl -config ext -keyfile root.key -cert root.pem -out revocations/root.crl.pem");
    }

    fn check(&self, arguments: &[&str], code: i32) -> Value {
        check(self.0.path(), arguments, code)
    }
}

fn check(dir: &Path, arguments: &[&str], code: i32) -> Value {
    json(dir, &[&["ek", "check"], arguments].concat(), code)
}

const SENT: [&str; 4] = ["--roots", "roots", "--intermediates", "issuing.pem"];

#[test]
fn certificates_of_both_kinds_lead_to_their_root() {
    let vendor = Vendor::new();
    for name in ["ek-rsa.der", "ek-ecc.der", "ek-rsa.pem"] {
        let value = vendor.check(&[&[name], &SENT[..]].concat(), 0);
        assert_eq!((value["root"].as_str(), value["model"].as_str()), (Some("CN=Root,O=Vendor"), Some("NPCT75x")));
        assert_eq!(value["manufacturer"], "id:4E544300");
    }
    // The padding of an NV index, and an intermediate that lies among the roots, in PEM beside the root's DER.
    let mut padded = std::fs::read(vendor.path("ek-rsa.der")).unwrap();
    padded.extend([0xFF; 700]);
    std::fs::write(vendor.path("nv"), padded).unwrap();
    std::fs::copy(vendor.path("issuing.pem"), vendor.path("roots/issuing.crt")).unwrap();
    let value = vendor.check(&["nv", "--roots", "roots"], 0);
    // The fingerprint is that of the key, however the certificate was written.
    vendor.openssl("rsa -in ek-rsa.key -pubout -outform DER -out spki");
    let spki = std::fs::read(vendor.path("spki")).unwrap();
    assert_eq!(value["fingerprint"], hex::encode(portcullis_attest::key::Bank::Sha256.hash(&spki)));
}

#[test]
fn a_missing_root_is_named() {
    let vendor = Vendor::new();
    let value = vendor.check(&["ek-rsa.der", "--roots", "roots"], 1);
    assert_eq!(codes(&value), ["ek.root-unknown"]);
    let expected = value["reasons"][0]["expected"].as_str().unwrap();
    assert!(expected.contains("CN=Issuing,O=Vendor, key identifier "), "{expected}");
    std::fs::remove_file(vendor.path("roots/root.cer")).unwrap();
    let value = vendor.check(&[&["ek-ecc.der"], &SENT[..]].concat(), 1);
    let expected = value["reasons"][0]["expected"].as_str().unwrap();
    assert!(expected.contains("CN=Root,O=Vendor, key identifier "), "{expected}");
    assert!(expected.ends_with("published at http://tpm.example/root.crt"), "{expected}");
    // It is the key's own identifier, so that the root can be told from others of its name.
    vendor.openssl("x509 -in root.pem -noout -ext subjectKeyIdentifier -out ski");
    let identifier = std::fs::read_to_string(vendor.path("ski")).unwrap();
    let identifier = identifier.lines().last().unwrap().trim().replace(':', "").to_lowercase();
    assert!(expected.contains(&identifier), "{expected} {identifier}");
}

#[test]
fn n31_revoked_by_the_vendor_or_the_operator() {
    let vendor = Vendor::new();
    let arguments = [&["ek-rsa.der"], &SENT[..], &["--revocations", "revocations"]].concat();
    vendor.revoke("");
    vendor.check(&arguments, 0);
    vendor.openssl("x509 -in issuing.pem -noout -serial -out serial");
    let serial = std::fs::read_to_string(vendor.path("serial")).unwrap();
    vendor.revoke(serial.trim().strip_prefix("serial=").unwrap());
    assert_eq!(codes(&vendor.check(&arguments, 1)), ["ek.revoked"]);
    std::fs::remove_file(vendor.path("revocations/root.crl.pem")).unwrap();
    vendor.openssl("x509 -in issuing.pem -noout -fingerprint -sha256 -out fingerprint");
    let line = std::fs::read_to_string(vendor.path("fingerprint")).unwrap();
    std::fs::write(vendor.path("revocations/ours"), line.split('=').next_back().unwrap()).unwrap();
    assert_eq!(codes(&vendor.check(&arguments, 1)), ["ek.revoked"]);
}

#[test]
fn a_revocation_list_of_nobody_is_pointed_out() {
    let vendor = Vendor::new();
    let arguments = [&["ek-rsa.der"], &SENT[..], &["--revocations", "revocations"]].concat();
    vendor.revoke("");
    assert_eq!(vendor.check(&arguments, 0)["warnings"], serde_json::json!([]));
    vendor.openssl("genrsa -out other.key 2048");
    vendor.openssl("req -new -x509 -key other.key -subj /O=Other/CN=Else -extensions root -config ext -out other.pem");
    vendor.openssl("ca -gencrl -config ext -keyfile other.key -cert other.pem -out revocations/other.crl.pem");
    let warnings = vendor.check(&arguments, 0)["warnings"].clone();
    assert_eq!(warnings.as_array().unwrap().len(), 1, "{warnings}");
    assert!(warnings[0].as_str().unwrap().contains("CN=Else,O=Other"), "{warnings}");
}

#[test]
fn n30_a_file_that_is_no_certificate_is_named_and_the_others_count() {
    let vendor = Vendor::new();
    std::fs::write(vendor.path("roots/notes.txt"), "where the roots come from").unwrap();
    std::os::unix::fs::symlink("nowhere", vendor.path("roots/dangling.pem")).unwrap();
    let warnings = vendor.check(&[&["ek-rsa.der"], &SENT[..]].concat(), 0)["warnings"].to_string();
    assert!(warnings.contains("roots/notes.txt") && warnings.contains("not a certificate: "), "{warnings}");
    assert!(warnings.contains("roots/dangling.pem") && warnings.contains("cannot be read"), "{warnings}");
    // They are told also where something is refused.
    let (_, told) = run(vendor.0.path(), &["ek", "check", "ek-rsa.der", "--roots", "roots"], 1);
    assert!(told.contains("warning: skipped roots/notes.txt") && told.contains("ek.root-unknown"), "{told}");
    // Nothing is left, and what may revoke something is not skipped.
    std::fs::remove_file(vendor.path("roots/root.cer")).unwrap();
    vendor.check(&[&["ek-rsa.der"], &SENT[..]].concat(), 2);
    vendor.openssl("x509 -in root.pem -out roots/root.pem");
    vendor.check(&[&["ek-rsa.der"], &SENT[..]].concat(), 0);
    std::fs::write(vendor.path("roots/root.crl"), "not any more").unwrap();
    vendor.check(&[&["ek-rsa.der"], &SENT[..]].concat(), 2);
}

#[test]
fn n30_an_operator_can_anchor_at_an_intermediate() {
    let vendor = Vendor::new();
    std::fs::create_dir(vendor.path("empty")).unwrap();
    std::fs::create_dir_all(vendor.path("anchored/anchors")).unwrap();
    std::fs::copy(vendor.path("issuing.pem"), vendor.path("empty/issuing.pem")).unwrap();
    std::fs::copy(vendor.path("issuing.pem"), vendor.path("anchored/anchors/issuing.pem")).unwrap();
    assert_eq!(codes(&vendor.check(&["ek-rsa.der", "--roots", "empty"], 1)), ["ek.root-unknown"]);
    assert_eq!(vendor.check(&["ek-rsa.der", "--roots", "anchored"], 0)["root"], "CN=Issuing,O=Vendor");
}

#[test]
fn n28_a_missing_extended_key_usage_is_for_the_operator_to_allow() {
    let vendor = Vendor::new();
    vendor.openssl("req -new -key ek-rsa.key -subj / -out gcp.csr");
    std::fs::copy(vendor.path("gcp.csr"), vendor.path("ek_without_eku.csr")).unwrap();
    vendor.sign("ek_without_eku", "issuing", "ek_without_eku");
    let refused = vendor.check(&[&["ek_without_eku.pem"], &SENT[..]].concat(), 1);
    assert_eq!(codes(&refused), ["ek.certificate-extended-key-usage"]);
    // The refusal says by which fingerprint the operator would allow it.
    let fingerprint =
        hex::encode(portcullis_attest::key::Bank::Sha256.hash(&std::fs::read(vendor.path("roots/root.cer")).unwrap()));
    assert!(refused["reasons"][0]["found"].as_str().unwrap().contains(&fingerprint), "{refused}");
    let allowing = |root: &str, code| {
        vendor.check(&[&["ek_without_eku.pem"], &SENT[..], &["--allow-missing-eku", root]].concat(), code)
    };
    allowing(&fingerprint, 0);
    allowing(&"00".repeat(32), 2);
    let arguments = [&["ek", "check", "ek_without_eku.pem"], &SENT[..], &["--allow-missing-eku", "root.cer"]].concat();
    let (_, told) = run(vendor.0.path(), &arguments, 2);
    assert!(told.contains("64 hex digits"), "{told}");
}

#[test]
fn certificates_in_pem_may_have_lines_of_any_length() {
    let vendor = Vendor::new();
    let text = std::fs::read_to_string(vendor.path("ek-rsa.pem")).unwrap();
    let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    for columns in [76, 20, 10_000] {
        let lines: Vec<_> = body.as_bytes().chunks(columns).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let pem = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"));
        std::fs::write(vendor.path("wide.pem"), pem).unwrap();
        vendor.check(&[&["wide.pem"], &SENT[..]].concat(), 0);
    }
}

#[test]
fn n96_an_old_revocation_list_beside_its_successor() {
    let vendor = Vendor::new();
    let arguments = [&["ek-rsa.der"], &SENT[..], &["--revocations", "revocations"]].concat();
    vendor.revoke("");
    std::fs::rename(vendor.path("revocations/root.crl.pem"), vendor.path("current.pem")).unwrap();
    vendor.openssl(
        "ca -gencrl -config ext -keyfile root.key -cert root.pem -crl_lastupdate 240101000000Z -crl_nextupdate 240201000000Z \
         -out revocations/old.crl.pem",
    );
    assert_eq!(codes(&vendor.check(&arguments, 1)), ["ek.crl-expired"]);
    std::fs::rename(vendor.path("current.pem"), vendor.path("revocations/new.crl.pem")).unwrap();
    let warnings = vendor.check(&arguments, 0)["warnings"].clone();
    assert_eq!(warnings.as_array().unwrap().len(), 1, "{warnings}");
    assert!(warnings[0].as_str().unwrap().contains("revocations/old.crl.pem"), "{warnings}");
}

#[test]
fn software_tpms_have_certificates_like_any_others() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::new().unwrap();
    std::fs::write(dir.path().join("own"), swtpm.ek_certificate_der().unwrap()).unwrap();
    for (name, vendor) in [("roots", swtpm.vendor()), ("others", &VendorCa::new().unwrap())] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(name).join("vendor.pem"), vendor.chain_pem().unwrap()).unwrap();
    }
    let value = check(dir.path(), &["own", "--roots", "roots"], 0);
    assert!(value["root"].as_str().unwrap().contains("swtpm-localca-rootca"), "{value}");
    // Another vendor with the same names.
    let value = check(dir.path(), &["own", "--roots", "others"], 1);
    assert!(codes(&value).contains(&"ek.chain-invalid"), "{value}");
}

#[test]
fn files_that_are_none_of_theirs() {
    let vendor = Vendor::new();
    std::fs::create_dir(vendor.path("junk-alone")).unwrap();
    std::fs::write(vendor.path("junk-alone/junk"), b"junk").unwrap();
    for arguments in [
        &["missing", "--roots", "roots"][..],
        &["ek-rsa.der", "--roots", "missing"],
        &["ek-rsa.der", "--roots", "roots", "--intermediates", "missing"],
        &["ek-rsa.der", "--roots", "junk-alone"],
        &["both", "--roots", "roots"],
    ] {
        let both =
            [std::fs::read(vendor.path("ek-rsa.pem")).unwrap(), std::fs::read(vendor.path("ek-ecc.pem")).unwrap()];
        std::fs::write(vendor.path("both"), both.concat()).unwrap();
        vendor.check(arguments, 2);
    }
    // What should be the certificate and is none is refused for what it is.
    std::fs::write(vendor.path("junk"), b"junk").unwrap();
    let refused = vendor.check(&["junk", "--roots", "roots"], 1);
    assert_eq!(codes(&refused), ["ek.certificate-malformed"]);
    assert!(refused["reasons"][0]["found"].as_str().unwrap().starts_with("not a certificate: "), "{refused}");
    assert!(codes(&vendor.check(&["root.pem", "--roots", "roots"], 1)).contains(&"ek.certificate-ca"));
}
