//! One line of metrics.

use serde_json::{Map, Value};

use super::firecracker;

/// Prefixes of groups of which there may be several: one more group has their sum.
const SUMMED: [&str; 2] = ["block", "net"];

/// The line of these groups, with the time, the sums and zeros for what Firecracker has beside, and with its end.
pub fn line(groups: impl IntoIterator<Item = (String, Value)>, unix_ms: u64) -> Vec<u8> {
    let mut object: Map<String, Value> = groups.into_iter().collect();
    for name in SUMMED {
        let prefix = format!("{name}_");
        let parts = object.iter().filter(|(group, _)| group.starts_with(&prefix)).map(|(_, value)| value);
        let sum = parts.fold(Value::Null, add);
        if !sum.is_null() {
            object.insert(name.to_owned(), sum);
        }
    }
    firecracker::fill(&mut object);
    object.insert("utc_timestamp_ms".to_owned(), unix_ms.into());
    let mut bytes = serde_json::to_vec(&object).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Adds numbers, and those in objects by their names.
fn add(sum: Value, part: &Value) -> Value {
    match (sum, part) {
        (Value::Null, part) => part.clone(),
        (Value::Object(mut sum), Value::Object(part)) => {
            for (name, value) in part {
                let old = sum.remove(name).unwrap_or_default();
                sum.insert(name.clone(), add(old, value));
            }
            Value::Object(sum)
        }
        (sum, part) => match (sum.as_u64(), part.as_u64()) {
            (Some(a), Some(b)) => a.saturating_add(b).into(),
            _ => sum,
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn disks_and_cards_have_a_sum() {
        let groups = [
            ("block_a".to_owned(), json!({"read_count": 2, "read_agg": {"sum_us": 5}})),
            ("block_b".to_owned(), json!({"read_count": 3, "read_agg": {"sum_us": 1}})),
            ("vcpu".to_owned(), json!({"failures": 0})),
        ];
        let bytes = line(groups, 17);
        assert_eq!(bytes.split(|byte| *byte == b'\n').map(<[u8]>::len).filter(|len| *len > 0).count(), 1);
        let object: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((&object["block"]["read_count"], &object["block"]["read_agg"]), (&json!(5), &json!({"sum_us": 6})));
        assert_eq!((&object["block_a"]["read_count"], &object["utc_timestamp_ms"]), (&json!(2), &json!(17)));
        assert_eq!(object["net"]["rx_count"], 0);
    }
}
