//! `vmm/openapi/portcullis-vmm.json`: what it says and what the server does are the same.
//!
//! Every answer that any of these tests gets is held against it ([`conforms`]); here are the other directions.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use portcullis_vmm::api::route::ROUTES;
use serde_json::{Map, Value, json};

use crate::client::Vmm;

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/portcullis-vmm.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
});

fn paths() -> &'static Map<String, Value> {
    DOCUMENT["paths"].as_object().unwrap()
}

/// What is wrong with `value`, by as much of JSON Schema as the document uses. A keyword that is not known here fails.
fn problem(schema: &Value, value: &Value, at: &str) -> Option<String> {
    let schema = schema.as_object().unwrap();
    for (keyword, rule) in schema {
        let good = match keyword.as_str() {
            "description" => true,
            "type" => types(rule).any(|name| is_of_type(value, name)),
            "enum" => rule.as_array().unwrap().contains(value),
            // These say nothing of a value of another type.
            "minimum" => value.as_u64().is_none_or(|value| value >= rule.as_u64().unwrap()),
            "maximum" => value.as_u64().is_none_or(|value| value <= rule.as_u64().unwrap()),
            "minLength" => value.as_str().is_none_or(|text| text.len() as u64 >= rule.as_u64().unwrap()),
            "maxLength" => value.as_str().is_none_or(|text| text.len() as u64 <= rule.as_u64().unwrap()),
            "maxItems" => value.as_array().map(Vec::len) <= rule.as_u64().map(|n| usize::try_from(n).unwrap()),
            "pattern" => matches_pattern(rule.as_str().unwrap(), value.as_str().unwrap()),
            "required" => rule.as_array().unwrap().iter().all(|key| value.get(key.as_str().unwrap()).is_some()),
            "$ref" => {
                if let Some(problem) = problem(referred(rule), value, at) {
                    return Some(problem);
                }
                true
            }
            "oneOf" => rule.as_array().unwrap().iter().filter(|one| problem(one, value, at).is_none()).count() == 1,
            "items" => {
                let items = value.as_array().into_iter().flatten().enumerate();
                let found = items.into_iter().find_map(|(i, item)| problem(rule, item, &format!("{at}[{i}]")));
                if found.is_some() {
                    return found;
                }
                true
            }
            "properties" => {
                let items = value.as_object().into_iter().flatten();
                let known = items.filter_map(|(key, item)| rule.get(key).map(|rule| (key, rule, item)));
                let found = known.into_iter().find_map(|(key, rule, item)| problem(rule, item, &format!("{at}.{key}")));
                if found.is_some() {
                    return found;
                }
                true
            }
            "additionalProperties" => {
                let known = schema.get("properties");
                let mut keys = value.as_object().into_iter().flatten().map(|(key, _)| key);
                rule == true || keys.all(|key| known.is_some_and(|known| known.get(key).is_some()))
            }
            other => panic!("{at}: keyword {other} is not known to this test"),
        };
        if !good {
            return Some(format!("{at}: {value} against {keyword} {rule}"));
        }
    }
    None
}

fn referred(reference: &Value) -> &'static Value {
    let target = reference.as_str().unwrap().strip_prefix('#').unwrap();
    DOCUMENT.pointer(target).unwrap_or_else(|| panic!("{target} is not in the document"))
}

/// The types that a rule allows: one, or a list of them.
fn types(rule: &Value) -> impl Iterator<Item = &str> {
    rule.as_array().map_or(std::slice::from_ref(rule), Vec::as_slice).iter().map(|name| name.as_str().unwrap())
}

fn is_of_type(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64(),
        "null" => value.is_null(),
        other => panic!("unknown type {other}"),
    }
}

fn matches_pattern(pattern: &str, text: &str) -> bool {
    let hyphen = match pattern {
        "^[A-Za-z0-9_]{1,64}$" => false,
        "^[A-Za-z0-9_-]{1,64}$" => true,
        other => panic!("pattern {other} is not known to this test"),
    };
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || (hyphen && b == b'-');
    (1..=64).contains(&text.len()) && text.bytes().all(allowed)
}

/// The document's operation for a request; `None` for what it does not have.
fn operation(method: &str, path: &str) -> Option<&'static Value> {
    let parts: Vec<_> = path.split('/').collect();
    let fits = |template: &str| {
        let wanted: Vec<_> = template.split('/').collect();
        wanted.len() == parts.len()
            && wanted.iter().zip(&parts).all(|(want, part)| want == part || want.starts_with('{'))
    };
    let (_, methods) = paths().iter().find(|(template, _)| fits(template))?;
    methods.get(method.to_lowercase())
}

/// Asserts that an answer is one that the document announces. Requests that it does not know are only ever refused.
pub fn conforms(method: &str, path: &str, status: u16, body: &Value) {
    let Some(operation) = operation(method, path) else {
        assert_eq!(status, 400, "{method} {path} is not in the document");
        return;
    };
    let response = &operation["responses"][status.to_string()];
    assert!(!response.is_null(), "{method} {path}: status {status} is not in the document: {body}");
    match response.pointer("/content/application~1json/schema") {
        None => assert!(body.is_null(), "{method} {path}: {body}"),
        Some(schema) => assert_eq!(problem(schema, body, &format!("{method} {path}")), None),
    }
}

/// Method, path, schema and example of every request with a body.
fn requests() -> impl Iterator<Item = (String, &'static String, &'static Value, &'static Value)> {
    paths().iter().flat_map(|(path, methods)| {
        methods.as_object().unwrap().iter().filter_map(move |(method, operation)| {
            let content = operation.pointer("/requestBody/content/application~1json")?;
            Some((method.to_uppercase(), path, referred(&content["schema"]["$ref"]), &content["example"]))
        })
    })
}

/// The path of a template, for the thing that `body` names.
fn filled(path: &str, body: &Value) -> String {
    let name = ["drive_id", "iface_id"].iter().find_map(|key| body[*key].as_str());
    path.replace("{id}", name.unwrap_or_default())
}

#[test]
fn paths_and_methods_are_those_that_are_served() {
    let described: BTreeSet<(String, &str)> = paths()
        .iter()
        .flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(|m| (m.to_uppercase(), path.as_str())))
        .collect();
    let served = ROUTES.iter().map(|(method, path, _)| (method.to_string(), *path)).collect();
    assert_eq!(described, served);
    let names: Vec<_> = paths()
        .values()
        .flat_map(|m| m.as_object().unwrap().values())
        .map(|o| o["operationId"].as_str().unwrap())
        .collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
}

#[test]
fn examples_show_every_field_and_are_what_their_schemas_say() {
    for (method, path, schema, example) in requests() {
        let at = format!("{method} {path}");
        assert_eq!(problem(schema, example, &at), None);
        for field in schema["properties"].as_object().into_iter().flatten().map(|(field, _)| field) {
            // Two ways to say the same, of which a request has one.
            let alternative = field == "mem_file_path" && example.get("mem_backend").is_some();
            assert!(example.get(field).is_some() || alternative, "{at}: the example has no {field}");
        }
    }
}

/// Fields that examples name and that the server would look for: files and taps.
fn is_understood(status: u16, answer: &Value) -> bool {
    let fault = answer["fault_message"].as_str().unwrap_or_default();
    status == 204 || !fault.contains("body is not valid")
}

#[test]
fn what_the_schemas_accept_the_server_understands() {
    for (method, path, _, example) in requests() {
        // A server for each: what one example sets up must not decide about the next.
        let vmm = Vmm::new();
        let (status, answer) = vmm.send(&method, &filled(path, example), Some(example));
        assert!(is_understood(status, &answer), "{method} {path}: {answer}");
    }
}

#[test]
fn what_the_schemas_refuse_the_server_refuses() {
    let vmm = Vmm::new();
    for (method, path, schema, example) in requests().filter(|(.., schema, _)| schema["additionalProperties"] == false)
    {
        let at = filled(path, example);
        let refuse = |body: &Value| {
            let (status, answer) = vmm.send(&method, &at, Some(body));
            assert!(status == 400 && answer["fault_message"].is_string(), "{method} {at} {body}: {status} {answer}");
            answer["fault_message"].as_str().unwrap().to_owned()
        };
        let mut unknown = example.clone();
        unknown["no_such_field"] = json!(1);
        let fault = refuse(&unknown);
        assert!(fault.contains("no_such_field") || method == "PATCH" && fault.contains("unknown"), "{at}: {fault}");
        for field in schema["required"].as_array().into_iter().flatten().map(|field| field.as_str().unwrap()) {
            let mut without = example.clone();
            without.as_object_mut().unwrap().remove(field);
            let fault = refuse(&without);
            assert!(fault.contains(field), "{at} without {field}: {fault}");
        }
        for (field, rule) in schema["properties"].as_object().into_iter().flatten() {
            let wrong = match rule.get("type").and_then(|rule| types(rule).next()) {
                Some("integer" | "boolean") => json!("text"),
                _ => json!(17),
            };
            let mut body = example.clone();
            body[field] = wrong;
            refuse(&body);
            let over = rule["maximum"].as_u64().map(|most| json!(most + 1));
            let under = rule["minimum"].as_u64().filter(|least| *least > 0).map(|least| json!(least - 1));
            let other =
                rule["enum"].as_array().map(|values| if values[0].is_boolean() { json!(true) } else { json!("x") });
            for wrong in [over, under, other].into_iter().flatten() {
                let mut body = example.clone();
                body[field] = wrong;
                refuse(&body);
            }
        }
        for body in [json!(null), json!([]), json!("text")] {
            refuse(&body);
        }
    }
    // None of it has left a trace.
    let (_, config) = vmm.get("/vm/config");
    assert!(
        config["drives"] == json!([])
            && config["boot-source"]["kernel_image_path"] == ""
            && config["balloon"].is_null(),
        "{config}"
    );
}
