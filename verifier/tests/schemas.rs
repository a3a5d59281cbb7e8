//! The schemas' own examples are read by the code, and what the code writes has the schemas' fields.

use std::collections::BTreeSet;
use std::path::Path;

use portcullis_verifier::order::Order;
use portcullis_verifier::receipt::Receipt;
use serde_json::Value;

fn schema(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Every object in the schema: what it requires is what it has, and the example has exactly that.
fn same_fields(schema: &Value, example: &Value) {
    let required: BTreeSet<&str> =
        schema["required"].as_array().unwrap().iter().map(|field| field.as_str().unwrap()).collect();
    assert_eq!(required, keys(&schema["properties"]));
    assert_eq!(required, keys(example));
    assert_eq!(schema["additionalProperties"], false);
}

#[test]
fn order_examples() {
    let schema = schema("order-1.json");
    for example in schema["examples"].as_array().unwrap() {
        let order: Order = serde_json::from_value(example.clone()).unwrap();
        order.check().unwrap();
        let written = serde_json::to_value(&order).unwrap();
        assert_eq!(&written, example);
        same_fields(&schema, &written);
        same_fields(&schema["properties"]["boot"], &written["boot"]);
        same_fields(&schema["properties"]["vm"], &written["vm"]);
        same_fields(&schema["$defs"]["file"], &written["vm"]["kernel"]);
    }
}

#[test]
fn order_fields_out_of_bounds_are_refused() {
    let example = schema("order-1.json")["examples"][0].clone();
    let broken: [(&str, Value); 16] = [
        ("/schema", "portcullis/order/2".into()),
        ("/id", "0F1E2D3C4B5A69788796A5B4C3D2E1F0".into()),
        ("/id", "0f".into()),
        ("/host", "Host".into()),
        ("/verifier", "".into()),
        ("/tenant", "a/b".into()),
        ("/volume", "..\u{0}".into()),
        ("/exp", 1.into()),
        ("/vm/vcpus", 0.into()),
        ("/vm/vcpus", 65.into()),
        ("/vm/mem_mib", 15.into()),
        ("/vm/cmdline", "a\nb".into()),
        ("/vm/kernel/path", "../k".into()),
        ("/vm/kernel/path", "/etc/passwd".into()),
        ("/vm/kernel/sha256", "00".into()),
        ("/vm/initrd/path", "a//b".into()),
    ];
    for (pointer, value) in broken {
        let mut order = example.clone();
        *order.pointer_mut(pointer).unwrap() = value;
        let order: Order = serde_json::from_value(order).unwrap();
        assert!(order.check().is_err(), "{pointer}");
    }
    for pointer in ["", "/boot", "/vm", "/vm/kernel"] {
        let mut order = example.clone();
        order.pointer_mut(pointer).unwrap()["more"] = true.into();
        assert!(serde_json::from_value::<Order>(order).is_err(), "{pointer}");
    }
}

#[test]
fn receipt_examples() {
    let schema = schema("receipt-1.json");
    for example in schema["examples"].as_array().unwrap() {
        let receipt = Receipt::parse(&example.to_string()).unwrap();
        let written = serde_json::to_value(&receipt).unwrap();
        assert_eq!(&written, example);
        same_fields(&schema, &written);
    }
}

#[test]
fn n76_receipts_with_unknown_repeated_or_impossible_fields_are_refused() {
    let example = schema("receipt-1.json")["examples"][0].clone();
    let good = example.to_string();
    assert!(Receipt::parse(&good).is_ok());
    for (from, to) in [
        ("{", "{\"more\":1,"),
        ("{", "{\"event\":\"ended\","),
        ("started", "paused"),
        ("receipt/1", "receipt/2"),
        ("\"web\"", "\"Web\""),
        ("0f1e", "0F1E"),
        ("pid 412", &"x".repeat(5000)),
        ("pid 412", &"x".repeat(20_000)),
    ] {
        assert!(Receipt::parse(&good.replacen(from, to, 1)).is_err(), "{from} -> {to:.20}");
    }
    assert!(Receipt::parse(&format!("{good} x")).is_err());
    assert!(Receipt::parse("").is_err());
}
