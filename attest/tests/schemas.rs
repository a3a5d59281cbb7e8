//! The schemas of reference values, policy and result, with the examples beside them: what the code reads and writes is
//! what the schemas say, no more and no less.

use std::path::PathBuf;

use portcullis_attest::appraise::Policy;
use portcullis_attest::key::Bank;
use portcullis_attest::reference::ReferenceValues;
use portcullis_attest::result::{PROFILE, ResultClaims};
use serde_json::Value;

fn read(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schemas").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn schema(name: &str) -> Value {
    serde_json::from_str(&read(name)).unwrap()
}

fn toml_example(name: &str) -> Value {
    serde_json::to_value(toml::from_str::<toml::Value>(&read(name)).unwrap()).unwrap()
}

/// What is wrong with `value`, by as much of JSON Schema as our schemas use. A keyword that is not known here fails.
fn problem(root: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
    for (keyword, rule) in schema.as_object().unwrap() {
        let text = || rule.as_str().unwrap();
        let good = match keyword.as_str() {
            "$schema" | "$id" | "title" | "description" | "$defs" => true,
            "type" => match rule {
                Value::Array(types) => types.iter().any(|name| is_of_type(value, name.as_str().unwrap())),
                name => is_of_type(value, name.as_str().unwrap()),
            },
            "const" => value == rule,
            "enum" => rule.as_array().unwrap().contains(value),
            "minimum" => value.as_i64() >= rule.as_i64(),
            "maximum" => value.as_i64() <= rule.as_i64(),
            "pattern" => value.as_str().is_none_or(|value| matches_pattern(text(), value)),
            "required" => rule.as_array().unwrap().iter().all(|key| value.get(key.as_str().unwrap()).is_some()),
            "$ref" => {
                let target = root.pointer(text().strip_prefix('#').unwrap()).unwrap();
                if let Some(problem) = problem(root, target, value, at) {
                    return Some(problem);
                }
                true
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    if let Some(problem) = problem(root, rule, item, &format!("{at}[{index}]")) {
                        return Some(problem);
                    }
                }
                true
            }
            "properties" | "additionalProperties" => {
                let known = schema.get("properties").and_then(Value::as_object);
                for (key, item) in value.as_object().into_iter().flatten() {
                    let rule = known.and_then(|known| known.get(key)).or_else(|| schema.get("additionalProperties"));
                    match rule {
                        Some(Value::Bool(false)) => return Some(format!("{at}: unknown key {key}")),
                        Some(rule) => {
                            if let Some(problem) = problem(root, rule, item, &format!("{at}.{key}")) {
                                return Some(problem);
                            }
                        }
                        None => panic!("{at}: the schema does not say whether it has other keys"),
                    }
                }
                true
            }
            other => panic!("keyword {other} is not known to this test"),
        };
        if !good {
            return Some(format!("{at}: {value} against {keyword} {rule}"));
        }
    }
    None
}

fn is_of_type(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "null" => value.is_null(),
        other => panic!("unknown type {other}"),
    }
}

fn matches_pattern(pattern: &str, text: &str) -> bool {
    let hex = |size| text.len() == size && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    match pattern {
        "^[0-9a-f]{64}$" => hex(64),
        "^[0-9a-f]{96}$" => hex(96),
        "^[0-9a-f]{128}$" => hex(128),
        "^[a-z0-9.-]{1,64}$" => {
            (1..=64).contains(&text.len()) && text.bytes().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'))
        }
        "^([a-z0-9.-]{1,64}\\*?|\\*)$" => {
            text == "*" || matches_pattern("^[a-z0-9.-]{1,64}$", text.strip_suffix('*').unwrap_or(text))
        }
        other => panic!("pattern {other} is not known to this test"),
    }
}

fn check(schema: &Value, value: &Value) -> Option<String> {
    problem(schema, schema, value, "$")
}

#[test]
fn the_policy_example_reads_and_is_what_the_schema_says() {
    let policy = Policy::from_toml(&read("examples/policy-1.toml")).unwrap();
    assert_eq!((policy.bank, policy.secure_boot, policy.ima), (Some(Bank::Sha256), true, true));
    assert_eq!(policy.references, ["debian-12-host"]);
    assert_eq!(policy.minimum_reference_versions.get("debian-12-host"), Some(&7));
    assert_eq!((policy.boot_signers.len(), policy.dbx.minimum.len(), policy.programs.rules().len()), (2, 1, 1));
    assert!(policy.is_for("row-1-host-3") && !policy.is_for("row-2-host-3"));
    let schema = schema("policy-1.json");
    assert_eq!(check(&schema, &toml_example("examples/policy-1.toml")), None);
    assert_eq!(check(&schema, &serde_json::to_value(&policy).unwrap()), None);
    // What the schema refuses, the code refuses, and the other way round.
    for (change, value) in [
        ("schema", Value::from("portcullis/policy/2")),
        ("bank", "sha1".into()),
        ("bank", "md5".into()),
        ("secure_boot", "yes".into()),
        ("references", "one".into()),
        ("hosts", serde_json::json!(["Host"])),
        ("hosts", serde_json::json!(["a*b"])),
        ("minimum_reference_versions", 7.into()),
        ("minimum_reference_versions", serde_json::json!({ "debian-12-host": -1 })),
        ("minimum_reference_versions", serde_json::json!({ "debian-12-host": "7" })),
        ("unsigned_references", "yes".into()),
        ("signatures_must_expire", "yes".into()),
        ("boot_signers", serde_json::json!(["ab"])),
        ("command_line", serde_json::json!({ "need": [] })),
        ("dbx", serde_json::json!({})),
        ("firmware", serde_json::json!({ "dma_protection": 1 })),
        ("more", 1.into()),
    ] {
        let mut wrong = toml_example("examples/policy-1.toml");
        wrong[change] = value;
        assert!(check(&schema, &wrong).is_some(), "{change}");
        let text = toml::to_string(&wrong).unwrap();
        assert!(Policy::from_toml(&text).is_err(), "{text}");
    }
}

#[test]
fn the_reference_example_reads_and_is_what_the_schema_says() {
    let values = ReferenceValues::from_toml(&read("examples/reference-1.toml")).unwrap();
    assert_eq!(values.name(), "debian-12-host");
    assert_eq!((values.slots(4).len(), values.slots(8).len(), values.slots(9).len()), (3, 3, 1));
    assert_eq!(values.ima(b"/usr/bin/portcullis-agent").map(std::collections::BTreeSet::len), Some(1));
    let schema = schema("reference-1.json");
    assert_eq!(check(&schema, &toml_example("examples/reference-1.toml")), None);
    // What is written is of the schema, too.
    let written = values.to_toml().unwrap();
    let value = serde_json::to_value(toml::from_str::<toml::Value>(&written).unwrap()).unwrap();
    assert_eq!(check(&schema, &value), None);
    for (pointer, value) in [
        ("/name", Value::from("Debian 12")),
        ("/event/0/pcr", 24.into()),
        ("/event/3/rule", "any".into()),
        ("/event/1/sha256/0", "DF".into()),
        ("/ima/0/sha256/0", "00".into()),
    ] {
        let mut wrong = toml_example("examples/reference-1.toml");
        *wrong.pointer_mut(pointer).unwrap() = value;
        assert!(check(&schema, &wrong).is_some(), "{pointer}");
        assert!(ReferenceValues::from_toml(&toml::to_string(&wrong).unwrap()).is_err(), "{pointer}");
    }
}

/// The policy's example names the key that signed the reference values' example.
#[test]
fn the_signature_example_is_of_the_reference_example() {
    let policy = Policy::from_toml(&read("examples/policy-1.toml")).unwrap();
    let (text, jws) = (read("examples/reference-1.toml"), read("examples/reference-1.toml.sig"));
    let values = ReferenceValues::from_signed(&text, &jws, &policy.reference_signers).unwrap();
    assert_eq!(values.signed_by(), Some(policy.reference_signers[0].id()));
    assert!(policy.references.iter().any(|name| name == values.name()));
    let (header, _) = jws.split_once("..").unwrap();
    let header = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, header).unwrap();
    assert_eq!(check(&schema("reference-signature-1.json"), &serde_json::from_slice(&header).unwrap()), None);
}

#[test]
fn the_result_example_reads_and_is_what_the_schema_says() {
    let text = read("examples/result-1.json");
    let result: ResultClaims = serde_json::from_str(&text).unwrap();
    assert_eq!(result.eat_profile, PROFILE);
    let schema = schema("result-1.json");
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(check(&schema, &value), None);
    // Nothing is lost and nothing added on the way through the code.
    assert_eq!(serde_json::to_value(&result).unwrap(), value);
    for (pointer, wrong_value) in [
        ("/eat_profile", Value::Null),
        ("/iat", "now".into()),
        ("/submods/host-1/ear.status", "trusted".into()),
        ("/submods/host-1/portcullis.boot/reset_count", (-1.5).into()),
    ] {
        let mut wrong = value.clone();
        *wrong.pointer_mut(pointer).unwrap() = wrong_value;
        assert!(check(&schema, &wrong).is_some(), "{pointer}");
        assert!(serde_json::from_value::<ResultClaims>(wrong).is_err(), "{pointer}");
    }
}
