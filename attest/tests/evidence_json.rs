//! Evidence as JSON: N73, N76 and N78, and the example that stands beside the schema.
//!
//! The example is a quote of a software TPM. To make it anew, set PORTCULLIS_RECORD and run this test.

mod software_tpm;

use portcullis_attest::evidence::{Evidence, EvidenceError, MAX_JSON, MAX_QUOTES, SCHEMA};
use portcullis_attest::key::{Bank, EnrolledAk};
use portcullis_attest::quote::VerifiedQuote;
use serde_json::{Value, json};
use software_tpm::*;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/examples/evidence-1.json");
const EXAMPLE_KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/examples/evidence-1.keys.json");

fn genuine() -> Evidence {
    SoftTpm::new().evidence(&binding(), &pcrs())
}

/// Whether evidence is read after `change`.
fn reads_after(change: impl FnOnce(&mut Value)) -> bool {
    let mut value = serde_json::to_value(genuine()).unwrap();
    change(&mut value);
    Evidence::from_json(&serde_json::to_vec(&value).unwrap()).is_ok()
}

#[test]
fn genuine_evidence_reads_and_comes_back() {
    assert!(reads_after(|_| ()));
    let evidence = genuine();
    assert_eq!(Evidence::from_json(&evidence.to_json().unwrap()).unwrap(), evidence);
    assert_eq!(evidence.schema, SCHEMA);
}

#[test]
fn the_example_beside_the_schema_verifies() {
    if std::env::var_os("PORTCULLIS_RECORD").is_some() {
        let tpm = SoftTpm::new();
        let one: Evidence = {
            let pcrs = [(Bank::Sha256, (0..=9).map(|pcr| (pcr, vec![pcr; 32])).collect())].into();
            tpm.evidence(&binding(), &pcrs)
        };
        std::fs::write(EXAMPLE, serde_json::to_string_pretty(&one).unwrap() + "\n").unwrap();
        let keys = json!({"ak_public": hex::encode(tpm.ak.bytes()), "ek_public": hex::encode(tpm.ek.bytes())});
        std::fs::write(EXAMPLE_KEYS, serde_json::to_string_pretty(&keys).unwrap() + "\n").unwrap();
    }
    let evidence = Evidence::from_json(&std::fs::read(EXAMPLE).unwrap()).unwrap();
    let keys: Value = serde_json::from_slice(&std::fs::read(EXAMPLE_KEYS).unwrap()).unwrap();
    let key = |name: &str| hex::decode(keys[name].as_str().unwrap()).unwrap();
    let ak = EnrolledAk::new(&key("ak_public"), &key("ek_public")).unwrap();
    let quote = VerifiedQuote::verify(&evidence, &ak, &binding()).unwrap();
    assert_eq!(quote.pcr(Bank::Sha256, 9), Some([9; 32].as_slice()));
}

#[test]
fn the_schema_names_what_the_code_reads() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/evidence-1.json");
    let schema: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(schema["properties"]["schema"]["const"], SCHEMA);
    assert_eq!(schema["properties"]["quotes"]["maxItems"], MAX_QUOTES);
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    // Where a list is whole, that it leaves out nothing is not said.
    let whole = serde_json::to_value(genuine()).unwrap();
    assert_eq!(names(&whole).len(), schema["required"].as_array().unwrap().len());
    let evidence = serde_json::to_value(Evidence { ima_from: 1, ..genuine() }).unwrap();
    let properties = &schema["properties"];
    assert_eq!(names(&evidence), names(properties));
    assert_eq!(names(&evidence["binding"]), names(&properties["binding"]["properties"]));
    assert_eq!(names(&evidence["quotes"][0]), names(&properties["quotes"]["items"]["properties"]));
    assert_eq!(schema["additionalProperties"], false);
    for object in [&properties["binding"], &properties["quotes"]["items"]] {
        assert_eq!(object["additionalProperties"], false);
        assert_eq!(object["required"].as_array().unwrap().len(), names(&object["properties"]).len());
    }
}

#[test]
fn n73_oversized_evidence() {
    let long = vec![b' '; MAX_JSON + 1];
    assert!(matches!(Evidence::from_json(&long), Err(EvidenceError::TooLarge(_))));
    let quote = serde_json::to_value(&genuine().quotes[0]).unwrap();
    assert!(reads_after(|evidence| evidence["quotes"] = Value::Array(vec![quote.clone(); MAX_QUOTES])));
    assert!(!reads_after(|evidence| evidence["quotes"] = Value::Array(vec![quote; MAX_QUOTES + 1])));
    let long = "A".repeat(8192);
    assert!(!reads_after(|evidence| evidence["quotes"][0]["message"] = json!(long)));
    assert!(!reads_after(|evidence| evidence["quotes"][0]["signature"] = json!(long)));
    assert!(!reads_after(|evidence| evidence["quotes"][0]["pcrs"]["sha256"]["0"] = json!("00".repeat(65))));
    assert!(!reads_after(|evidence| evidence["binding"]["nonce"] = json!("00".repeat(65))));
    assert!(!reads_after(|evidence| evidence["binding"]["host"] = json!("h".repeat(65))));
    // gzip of anything is no JSON.
    assert!(Evidence::from_json(&[0x1F, 0x8B, 8, 0, 0, 0, 0, 0]).is_err());
    // Nested deeper than any reader should follow.
    assert!(Evidence::from_json("[".repeat(1_000_000).as_bytes()).is_err());
}

#[test]
fn n76_unknown_fields() {
    assert!(!reads_after(|evidence| evidence["more"] = json!(1)));
    assert!(!reads_after(|evidence| evidence["binding"]["more"] = json!(1)));
    assert!(!reads_after(|evidence| evidence["quotes"][0]["more"] = json!(1)));
    assert!(!reads_after(|evidence| evidence["quotes"][0]["pcrs"]["md5"] = json!({})));
    assert!(!reads_after(|evidence| evidence["quotes"][0]["pcrs"]["SHA256"] = json!({})));
    assert!(!reads_after(|evidence| evidence["quotes"][0]["pcrs"]["sha256"]["24"] = json!("00")));
    assert!(!reads_after(|evidence| evidence["quotes"][0]["pcrs"]["sha256"]["-1"] = json!("00")));
    assert!(!reads_after(|evidence| evidence["quotes"][0]["pcrs"]["sha256"]["256"] = json!("00")));
}

#[test]
fn n76_repeated_keys_at_every_depth() {
    let json = String::from_utf8(genuine().to_json().unwrap()).unwrap();
    for key in ["schema", "binding", "purpose", "nonce", "quotes", "message", "pcrs", "sha256", "0", "eventlog", "ima"]
    {
        let start = json.find(&format!("\"{key}\":")).unwrap();
        let value = start + key.len() + 3;
        let mut stream = serde_json::Deserializer::from_str(&json[value..]).into_iter::<Value>();
        stream.next().unwrap().unwrap();
        let member = &json[start..value + stream.byte_offset()];
        let twice = format!("{}{member},{}", &json[..start], &json[start..]);
        let error = Evidence::from_json(twice.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("duplicate"), "{key}: {error}");
    }
}

#[test]
fn n78_what_cannot_be_read_is_an_error() {
    for field in ["schema", "binding", "quotes", "eventlog", "ima"] {
        assert!(!reads_after(|evidence| drop(evidence.as_object_mut().unwrap().remove(field))), "{field}");
        assert!(!reads_after(|evidence| evidence[field] = Value::Null), "{field}");
    }
    assert!(!reads_after(|evidence| evidence["schema"] = json!("portcullis/evidence/2")));
    assert!(!reads_after(|evidence| evidence["binding"]["purpose"] = json!("Attest")));
    assert!(!reads_after(|evidence| evidence["binding"]["host"] = json!("../other")));
    assert!(!reads_after(|evidence| evidence["binding"]["tls_spki_sha256"] = json!("00")));
    assert!(!reads_after(|evidence| evidence["binding"]["nonce"] = json!("0")));
    assert!(!reads_after(|evidence| evidence["eventlog"] = json!("not base64!")));
    let json = genuine().to_json().unwrap();
    assert!(Evidence::from_json(&[json.as_slice(), b" "].concat()).is_ok());
    assert!(Evidence::from_json(&[json.as_slice(), b"{}"].concat()).is_err(), "something follows");
    for length in 0..json.len() {
        assert!(Evidence::from_json(&json[..length]).is_err(), "cut to {length} bytes");
    }
}
