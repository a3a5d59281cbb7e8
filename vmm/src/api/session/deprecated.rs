//! What Firecracker's API has only for older clients. Its answers say so in a header.

use serde_json::Value;

use crate::api::route::Operation;

/// Whether a request uses what Firecracker is going to drop.
pub(super) fn is_used(operation: Operation, body: &[u8]) -> bool {
    let Ok(Value::Object(body)) = serde_json::from_slice(body) else {
        return false;
    };
    let given = |field: &str| body.get(field).is_some_and(|value| !value.is_null());
    match operation {
        Operation::PutMachineConfig | Operation::PatchMachineConfig => given("cpu_template"),
        Operation::PutVsock => given("vsock_id"),
        // The default is version 1.
        Operation::PutMetadataService => body.get("version").is_none_or(|version| version == "V1"),
        Operation::LoadSnapshot => {
            // With both files, or none, it is no request at all.
            let old = given("mem_file_path") || body.get("enable_diff_snapshots").is_some_and(|value| value == true);
            old && given("mem_file_path") != given("mem_backend")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_firecracker_calls_deprecated_is_found_and_nothing_else() {
        for (operation, body, expected) in [
            (Operation::PutMachineConfig, r#"{"vcpu_count": 1, "mem_size_mib": 8}"#, false),
            (Operation::PutMachineConfig, r#"{"cpu_template": null}"#, false),
            (Operation::PutMachineConfig, r#"{"cpu_template": "None"}"#, true),
            (Operation::PatchMachineConfig, r#"{"cpu_template": "T2"}"#, true),
            (Operation::PutVsock, r#"{"guest_cid": 3, "uds_path": "v"}"#, false),
            (Operation::PutVsock, r#"{"vsock_id": "1"}"#, true),
            (Operation::PutMetadataService, r#"{"version": "V2"}"#, false),
            (Operation::PutMetadataService, r#"{"version": "V1"}"#, true),
            (Operation::PutMetadataService, r#"{"network_interfaces": []}"#, true),
            (Operation::LoadSnapshot, r#"{"mem_backend": {}, "enable_diff_snapshots": false}"#, false),
            (Operation::LoadSnapshot, r#"{"mem_file_path": "m"}"#, true),
            (Operation::LoadSnapshot, r#"{"mem_file_path": "m", "mem_backend": {}}"#, false),
            (Operation::LoadSnapshot, r#"{"mem_backend": {}, "enable_diff_snapshots": true}"#, true),
            (Operation::PutMetadata, r#"{"vsock_id": "1", "cpu_template": "T2", "mem_file_path": "m"}"#, false),
            (Operation::PutVsock, "", false),
            (Operation::PutVsock, r#"["vsock_id"]"#, false),
        ] {
            assert_eq!(is_used(operation, body.as_bytes()), expected, "{operation:?} {body}");
        }
    }
}
