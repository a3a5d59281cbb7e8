//! Keylime's runtime policies, as far as they say by content what is accepted.
//!
//! Of a policy's parts, the digests of files, of keyrings and of other buffers are lists of names and contents, as ours
//! are. What a policy accepts by name alone (`excludes`, `ignored_keyrings`) and what it leaves to keys or to rules of
//! its own (`verification-keys`, `dm_policy`) is no reference value: each such part is named, and nothing is imported
//! unless the caller says that it shall be left out. Leaving out makes the values accept less.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use super::ReferenceBuilder;

/// Why a runtime policy cannot be imported.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeylimeError {
    /// Longer than any that is read.
    #[error("the runtime policy has {0} bytes, {max} are the most that is read", max = super::MAX_BYTES)]
    TooLarge(usize),
    /// Not JSON with the parts of a runtime policy.
    #[error("not a Keylime runtime policy: {0}")]
    Json(#[from] serde_json::Error),
    /// Of a version that is not known.
    #[error("runtime policies of version {0} are not known here")]
    Version(u64),
}

/// A runtime policy that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeylimePolicy {
    digests: Vec<(String, [u8; 32])>,
    /// What of it cannot be said in reference values, each in a sentence.
    pub not_imported: Vec<String>,
}

/// Its parts. Digests stand in lower-case hexadecimal.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    meta: Meta,
    #[serde(default)]
    #[expect(dead_code, reason = "says which system it is of: nothing that can be judged")]
    release: Option<Value>,
    #[serde(default)]
    digests: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    excludes: Vec<String>,
    #[serde(default)]
    keyrings: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    ima: Ima,
    #[serde(default, rename = "ima-buf")]
    buffers: BTreeMap<String, Vec<String>>,
    #[serde(default, rename = "verification-keys")]
    verification_keys: Value,
}

#[derive(Deserialize)]
struct Meta {
    version: u64,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Ima {
    #[serde(default)]
    ignored_keyrings: Vec<String>,
    #[serde(default)]
    #[expect(dead_code, reason = "the template's hash: every bank is replayed with its own")]
    log_hash_alg: Option<Value>,
    #[serde(default)]
    dm_policy: Value,
}

impl KeylimePolicy {
    /// Reads a runtime policy (JSON).
    ///
    /// # Errors
    /// If it is none of a known version.
    pub fn from_json(json: &str) -> Result<Self, KeylimeError> {
        if json.len() > super::MAX_BYTES {
            return Err(KeylimeError::TooLarge(json.len()));
        }
        let document: Document = serde_json::from_str(json)?;
        if !(1..=5).contains(&document.meta.version) {
            return Err(KeylimeError::Version(document.meta.version));
        }
        let mut policy = Self { digests: Vec::new(), not_imported: Vec::new() };
        for (part, listed) in
            [("digests", document.digests), ("keyrings", document.keyrings), ("ima-buf", document.buffers)]
        {
            for (name, digests) in listed {
                policy.take(part, &name, &digests);
            }
        }
        let not_imported = &mut policy.not_imported;
        not_imported.extend(document.excludes.iter().map(|regex| excluded(regex)));
        not_imported.extend(
            document
                .ima
                .ignored_keyrings
                .iter()
                .map(|name| format!("ima.ignored_keyrings: {name:?} accepts any key by the name of its keyring")),
        );
        for (part, value) in
            [("ima.dm_policy", document.ima.dm_policy), ("verification-keys", document.verification_keys)]
        {
            if !is_nothing(&value) {
                let place = if part == "verification-keys" { "; keyrings are part of the policy" } else { "" };
                not_imported.push(format!("{part}: not said in reference values{place}"));
            }
        }
        Ok(policy)
    }

    fn take(&mut self, part: &str, name: &str, digests: &[String]) {
        let sha256 = |digest: &String| {
            let bytes = hex::decode(digest).ok().filter(|_| !digest.contains(|c: char| c.is_ascii_uppercase()))?;
            <[u8; 32]>::try_from(bytes).ok()
        };
        let problem = if name == "boot_aggregate" {
            // Ours is computed from the quoted PCRs.
            return;
        } else if name.is_empty() || name.chars().any(char::is_control) {
            Some("its name is not plain text")
        } else if digests.is_empty() || digests.iter().any(|digest| sha256(digest).is_none()) {
            Some("it has digests that are not SHA-256")
        } else {
            None
        };
        if let Some(problem) = problem {
            self.not_imported.push(format!("{part}: {name:?}: {problem}"));
        }
        self.digests.extend(digests.iter().filter_map(sha256).map(|digest| (name.to_owned(), digest)));
    }

    /// Adds what can be said to the values.
    pub fn add_to(&self, builder: &mut ReferenceBuilder) {
        for (name, digest) in
            self.digests.iter().filter(|(name, _)| !name.is_empty() && !name.chars().any(char::is_control))
        {
            builder.ima_digest(name, digest.to_vec());
        }
    }

    /// How many names with their contents it lists, in the hash that counts here.
    pub fn len(&self) -> usize {
        self.digests.len()
    }

    /// Whether it lists nothing.
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }
}

/// An excluded name, with the rule of ours that comes nearest where the expression is a plain directory.
fn excluded(regex: &str) -> String {
    let told = format!("excludes: {regex:?} accepts any content by its name alone");
    let directory = regex.trim_start_matches('^').trim_end_matches('$').trim_end_matches(".*").trim_end_matches("(/)?");
    let plain = directory.starts_with('/') && directory.chars().all(|c| c.is_ascii_alphanumeric() || "/_-".contains(c));
    if !plain {
        return told;
    }
    let directory = directory.trim_end_matches('/');
    format!("{told}; a policy can say so with its reason: names = \"{directory}/**\", accept = \"any\"")
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "5f4b0c4de1d3b7a6b0a7b6ad7c7e7e4a53b0ae6b5d6c2b6aeb1d9a60ff7a7c01";

    fn read(parts: &str) -> KeylimePolicy {
        let comma = if parts.is_empty() { "" } else { "," };
        KeylimePolicy::from_json(&format!("{{\"meta\": {{\"version\": 1, \"generator\": 3}}{comma}{parts}}}")).unwrap()
    }

    #[test]
    fn what_is_listed_by_content_is_imported_whole() {
        let other = DIGEST.replace('5', "6");
        let policy = read(&format!(
            "\"release\": 0, \"digests\": {{\"/usr/bin/ls\": [\"{DIGEST}\", \"{other}\"], \"boot_aggregate\": [\"00\"]}}, \
             \"excludes\": [], \"keyrings\": {{\".ima\": [\"{DIGEST}\"]}}, \"ima-buf\": {{\"dm_table_load\": [\"{other}\"]}}, \
             \"ima\": {{\"ignored_keyrings\": [], \"log_hash_alg\": \"sha1\", \"dm_policy\": null}}, \"verification-keys\": \"\""
        ));
        assert_eq!(policy.not_imported, [""; 0]);
        let mut builder = ReferenceBuilder::new("imported", "");
        policy.add_to(&mut builder);
        let values = builder.build().unwrap();
        assert_eq!(policy.len(), 4);
        assert_eq!(values.ima(b"/usr/bin/ls").unwrap().len(), 2);
        assert_eq!(values.ima(b".ima").unwrap().len(), 1);
        assert_eq!(values.ima(b"dm_table_load").unwrap().len(), 1);
        assert_eq!(values.ima(b"boot_aggregate"), None);
    }

    #[test]
    fn what_is_accepted_by_name_alone_is_named_and_left_out() {
        for (parts, said) in [
            ("\"excludes\": [\"/tmp/.*\"]", "names = \"/tmp/**\""),
            ("\"excludes\": [\"^(/var)?/lib.*\"]", "by its name alone"),
            ("\"ima\": {\"ignored_keyrings\": [\"*\"]}", "ignored_keyrings"),
            ("\"ima\": {\"dm_policy\": {\"a\": 1}}", "dm_policy"),
            ("\"verification-keys\": \"[{}]\"", "verification-keys"),
            ("\"digests\": {\"/x\": [\"da39a3ee5e6b4b0d3255bfef95601890afd80709\"]}", "not SHA-256"),
            ("\"digests\": {\"/x\": []}", "not SHA-256"),
            ("\"digests\": {\"/x\\n\": []}", "not plain text"),
        ] {
            let policy = read(parts);
            assert_eq!((policy.not_imported.len(), policy.len()), (1, 0), "{parts}");
            assert!(policy.not_imported[0].contains(said), "{:?}", policy.not_imported);
        }
    }

    #[test]
    fn other_files_are_no_runtime_policies() {
        for json in ["", "{}", "{\"meta\": {\"version\": 9}}", "{\"meta\": {\"version\": 1}, \"hashes\": {}}"] {
            assert!(KeylimePolicy::from_json(json).is_err(), "{json}");
        }
        assert_eq!(read("").len(), 0);
    }
}
