//! JSON and TOML: evidence, policies, reference values, and what a verifier stores and signs.

use std::str::FromStr as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portcullis_attest::appraise::{CommandLineRules, Judged, MAX_REASONS, NamePattern, Policy, arguments};
use portcullis_attest::evidence::Evidence;
use portcullis_attest::reference::{KeylimePolicy, PolicySignature, ReferenceBuilder, ReferenceValues};
use portcullis_attest::release::WrappedKey;
use portcullis_attest::result::ResultClaims;

use super::Target;
use super::appraisal;
use super::keys::{BINDING, TPM};
use super::recordings::Recordings;
use super::software_tpm::pcrs;

/// Evidence as an agent sends it.
pub const EVIDENCE: Target = Target { name: "evidence", body: evidence, max_len: 4096, seeds: |_| evidences() };

fn evidence(bytes: &[u8]) -> bool {
    let Ok(evidence) = Evidence::from_json(bytes) else { return false };
    let again = evidence.to_json().ok().and_then(|json| Evidence::from_json(&json).ok());
    assert_eq!(again.as_ref(), Some(&evidence), "what was read can be written and read again");
    true
}

fn evidences() -> Vec<Vec<u8>> {
    let mut small = TPM.evidence(&BINDING, &pcrs());
    small.eventlog = vec![0; 40];
    small.ima = vec![0; 40];
    let example = include_bytes!("../../../attest/schemas/examples/evidence-1.json").to_vec();
    vec![example, small.to_json().expect("evidence can be written")]
}

/// A policy.
pub const POLICY: Target = Target { name: "policy", body: policy, max_len: 2048, seeds: |_| policies() };

fn policy(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| Policy::from_toml(text).is_ok())
}

fn policies() -> Vec<Vec<u8>> {
    let mut seeds = vec![Vec::new(), include_bytes!("../../../attest/schemas/examples/policy-1.toml").to_vec()];
    seeds.extend(appraisal::POLICIES.iter().map(|policy| policy.as_bytes().to_vec()));
    seeds
}

/// The kernel's command line.
pub const COMMAND_LINE: Target =
    Target { name: "command_line", body: command_line, max_len: 512, seeds: |_| command_lines() };

fn command_line(bytes: &[u8]) -> bool {
    let Ok(line) = std::str::from_utf8(bytes) else { return false };
    let rules = CommandLineRules { allow: Some(Vec::new()), ..CommandLineRules::default() };
    let reasons = rules.check(line);
    let Ok(arguments) = arguments(line) else {
        assert_eq!(reasons.len(), 1, "a line that nobody can be sure of is refused whole");
        return false;
    };
    let refused = arguments.len().min(MAX_REASONS);
    assert_eq!(reasons.len(), refused, "where nothing is allowed, every argument is refused, as far as that is told");
    assert!(arguments.iter().all(|argument| line.contains(&argument.name)));
    // What only this reader made up could hide what the kernel does.
    let words = line.split_ascii_whitespace().count();
    assert_eq!(arguments.len(), words);
    true
}

fn command_lines() -> Vec<Vec<u8>> {
    let lines = [
        "console=ttyS0 quiet lockdown=integrity root=/dev/vda1 ro",
        "dm-mod.create=\"root,,,ro,0 1 verity\" ima_policy=tcb  module.sig_enforce",
        "quiet -- single \"a b\"=c \"d=e f\" =x",
    ];
    lines.iter().map(|line| line.as_bytes().to_vec()).collect()
}

/// A pattern of names, a line's end, and a name.
pub const NAME_PATTERN: Target =
    Target { name: "name_pattern", body: name_pattern, max_len: 96, seeds: |_| patterns() };

fn name_pattern(bytes: &[u8]) -> bool {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return false };
    let (pattern, name) = (&bytes[..end], &bytes[end + 1..]);
    let Some(pattern) = std::str::from_utf8(pattern).ok().and_then(|text| NamePattern::from_str(text).ok()) else {
        return false;
    };
    let matches = pattern.matches(name);
    if !pattern.as_str().contains('*') {
        assert_eq!(matches, pattern.as_str().as_bytes() == name, "without wildcards it is a name");
    }
    matches
}

fn patterns() -> Vec<Vec<u8>> {
    ["/var/lib/**\n/var/lib/a/b", "memfd:*\nmemfd:x", "/usr/lib/*/lib*.so\n/usr/lib/x/liba.so", "/bin/sh\n/bin/sh"]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}

/// Reference values.
pub const REFERENCE: Target =
    Target { name: "reference", body: reference, max_len: 4096, seeds: |recordings| references(recordings) };

fn reference(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(values) = ReferenceValues::from_toml(text) else { return false };
    let again = values.to_toml().ok().and_then(|text| ReferenceValues::from_toml(&text).ok());
    assert_eq!(again, Some(values), "what was read can be written and read again");
    true
}

/// The example, and the first tables of what is made from each recorded log.
fn references(recordings: &Recordings) -> Vec<Vec<u8>> {
    let mut seeds = vec![include_bytes!("../../../attest/schemas/examples/reference-1.toml").to_vec()];
    for log in &recordings.event_logs {
        let Some(text) = appraisal::reference_of(log).and_then(|values| values.to_toml().ok()) else { continue };
        let tables: Vec<&str> = text.split("\n\n").collect();
        let Some((head, tables)) = tables.split_first() else { continue };
        seeds.extend(tables.chunks(6).map(|tables| [&[*head][..], tables].concat().join("\n\n").into_bytes()));
    }
    seeds
}

/// A runtime policy of Keylime.
pub const KEYLIME: Target = Target { name: "keylime", body: keylime, max_len: 2048, seeds: |_| keylime_policies() };

fn keylime(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(policy) = KeylimePolicy::from_json(text) else { return false };
    assert!(!matches!(policy.signature(), PolicySignature::Good(_)), "signed by nobody who was named");
    let mut builder = ReferenceBuilder::new("keylime", "imported");
    policy.add_to(&mut builder);
    if let Ok(values) = builder.build() {
        assert!(values.ima_len() <= policy.len(), "more was imported than the policy has");
    }
    !policy.is_empty()
}

fn keylime_policies() -> Vec<Vec<u8>> {
    let digest = "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5";
    let policy = format!(
        "{{\"meta\":{{\"version\":1}},\"release\":0,\"digests\":{{\"/bin/sh\":[\"{digest}\"]}},\"excludes\":[\"/tmp/.*\"],\
         \"keyrings\":{{\".ima\":[\"{digest}\"]}},\"ima\":{{\"ignored_keyrings\":[],\"log_hash_alg\":\"sha1\"}},\
         \"ima-buf\":{{\"dm_table_load\":[\"{digest}\"]}},\"verification-keys\":\"\"}}"
    );
    let envelope = format!(
        "{{\"payload\":\"{}\",\"payloadType\":\"application/vnd.keylime+json\",\"signatures\":[{{\"sig\":\"MAA=\"}}]}}",
        STANDARD.encode(
            policy
                .replace("\"verification-keys\":\"\"", "\"verification-keys\":{\"keyids\":[1],\"pubkeys\":[\"MAA=\"]}")
        )
    );
    vec![policy.into_bytes(), envelope.into_bytes()]
}

/// What a verifier stores of a host, what relying parties read, and what an agent gets: JSON.
pub const STORED: Target = Target { name: "stored", body: stored, max_len: 2048, seeds: |_| stored_documents() };

fn stored(bytes: &[u8]) -> bool {
    let Some((kind, json)) = bytes.split_first() else { return false };
    match kind % 3 {
        0 => serde_json::from_slice::<Judged>(json).is_ok(),
        1 => serde_json::from_slice::<ResultClaims>(json).is_ok(),
        _ => serde_json::from_slice::<WrappedKey>(json).is_ok(),
    }
}

fn stored_documents() -> Vec<Vec<u8>> {
    let judged = appraisal::judged();
    let result = include_bytes!("../../../attest/schemas/examples/result-1.json");
    let key = br#"{"public":"AAECAw==","duplicate":"AAECAw==","seed":"AAECAw=="}"#;
    vec![
        [&[0], serde_json::to_vec(&judged).expect("what was judged can be written").as_slice()].concat(),
        [&[1], result.as_slice()].concat(),
        [&[2], key.as_slice()].concat(),
    ]
}

/// Bytes in PEM (RFC 7468).
pub fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<String> =
        text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
