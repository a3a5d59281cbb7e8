//! Keylime's runtime policies, as far as they say by content what is accepted.
//!
//! Of a policy's parts, the digests of files, of keyrings and of other buffers are lists of names and contents, as ours
//! are. What a policy accepts by name alone (`excludes`, `ignored_keyrings`) and what it leaves to rules of its own
//! (`dm_policy`) is no reference value: each such part is named, and nothing is imported unless the caller says that it
//! shall be left out. Leaving out makes the values accept less. Its keys (`verification-keys`) become a keyring, for a
//! policy of ours to name.
//!
//! A policy may be signed, in an envelope: [`KeylimePolicy::signature`] says by whom.

mod envelope;
mod verification_keys;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use super::ReferenceBuilder;
use crate::ima::Keyring;
pub use envelope::PolicySignature;

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
    /// A DSSE envelope that cannot be read.
    #[error("its envelope (DSSE) cannot be read: {0}")]
    Envelope(String),
    /// A DSSE envelope with something else in it.
    #[error("its envelope (DSSE) holds {0:?}, not application/vnd.keylime+json")]
    PayloadType(String),
    /// Signers were named, and the policy is in no envelope.
    #[error("the policy is not signed (no DSSE envelope), and a key was given that must have signed it")]
    Unsigned,
    /// Signers were named, and none of them signed it.
    #[error("none of the given keys signed it (DSSE with ECDSA or RSA, and SHA-256)")]
    Signature,
}

/// A runtime policy that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeylimePolicy {
    digests: Vec<(String, [u8; 32])>,
    signature: PolicySignature,
    verification_keys: Keyring,
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
    /// Reads a runtime policy (JSON), by itself or in a DSSE envelope. Whoever signed it is not asked.
    ///
    /// # Errors
    /// If it is none of a known version.
    pub fn from_json(json: &str) -> Result<Self, KeylimeError> {
        Self::signed_by(json, &Keyring::default())
    }

    /// Reads a runtime policy that one of these keys signed. With none, no signature is checked.
    ///
    /// # Errors
    /// If none of the keys signed it, or it is no policy of a known version.
    pub fn signed_by(json: &str, signers: &Keyring) -> Result<Self, KeylimeError> {
        if json.len() > super::MAX_BYTES {
            return Err(KeylimeError::TooLarge(json.len()));
        }
        let (inner, signature) = envelope::open(json, signers)?;
        let document: Document = serde_json::from_str(inner.as_deref().unwrap_or(json))?;
        if !(1..=5).contains(&document.meta.version) {
            return Err(KeylimeError::Version(document.meta.version));
        }
        let (verification_keys, not_imported) = verification_keys::keyring(document.verification_keys);
        let mut policy = Self { digests: Vec::new(), signature, verification_keys, not_imported };
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
        if !is_nothing(&document.ima.dm_policy) {
            not_imported.push("ima.dm_policy: not said in reference values".to_owned());
        }
        Ok(policy)
    }

    /// By whom the policy is signed, as far as that was checked.
    pub const fn signature(&self) -> &PolicySignature {
        &self.signature
    }

    /// The keys whose signatures of files it accepts (`verification-keys`), as a keyring for the policy's rules: no part of
    /// reference values.
    pub const fn verification_keys(&self) -> &Keyring {
        &self.verification_keys
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
            ("\"verification-keys\": \"[{}]\"", "verification-keys: key 1: it is no PEM"),
            ("\"verification-keys\": \"[\"", "verification-keys: not JSON"),
            ("\"verification-keys\": 7", "neither a keyring of Keylime nor a list of PEMs"),
            ("\"verification-keys\": {\"pubkeys\": [\"!\"]}", "key 1: not base64"),
            ("\"verification-keys\": {\"pubkeys\": [\"AAAA\"]}", "verification-keys: key 1: unknown/unsupported ASN.1"),
            ("\"verification-keys\": {\"keys\": []}", "unknown field"),
            ("\"digests\": {\"/x\": [\"da39a3ee5e6b4b0d3255bfef95601890afd80709\"]}", "not SHA-256"),
            ("\"digests\": {\"/x\": []}", "not SHA-256"),
            ("\"digests\": {\"/x\\n\": []}", "not plain text"),
        ] {
            let policy = read(parts);
            assert_eq!((policy.not_imported.len(), policy.len()), (1, 0), "{parts}");
            assert!(policy.not_imported[0].contains(said), "{:?}", policy.not_imported);
        }
    }

    const BY_ECDSA: &str = include_str!("../../../tests/fixtures/keylime/ecdsa.json");
    const BY_X509: &str = include_str!("../../../tests/fixtures/keylime/x509.json");
    const ECDSA_KEY: &str = include_str!("../../../tests/fixtures/keylime/ecdsa.pem");
    const X509_CERTIFICATE: &str = include_str!("../../../tests/fixtures/keylime/x509.pem");

    fn ring(pem: &str) -> Keyring {
        Keyring::from_pems([pem]).unwrap()
    }

    #[test]
    fn policies_that_keylime_signed_open_and_say_by_whom_they_are_signed() {
        for (json, own, other) in [(BY_ECDSA, ECDSA_KEY, X509_CERTIFICATE), (BY_X509, X509_CERTIFICATE, ECDSA_KEY)] {
            let policy = KeylimePolicy::signed_by(json, &ring(own)).unwrap();
            assert!(matches!(policy.signature(), PolicySignature::Good(id) if id.len() == 64));
            assert_eq!((policy.len(), policy.not_imported.as_slice()), (1, &[][..]));
            // Nobody was named, so nothing was checked.
            let unchecked = KeylimePolicy::from_json(json).unwrap();
            assert_eq!((unchecked.signature(), unchecked.len()), (&PolicySignature::Unchecked, 1));
            assert!(matches!(KeylimePolicy::signed_by(json, &ring(other)), Err(KeylimeError::Signature)));
            let both = Keyring::from_pems([other, own]).unwrap();
            assert_eq!(KeylimePolicy::signed_by(json, &both).unwrap(), policy);
        }
        let plain = "{\"meta\": {\"version\": 1}}";
        assert_eq!(KeylimePolicy::from_json(plain).unwrap().signature(), &PolicySignature::None);
        assert!(matches!(KeylimePolicy::signed_by(plain, &ring(ECDSA_KEY)), Err(KeylimeError::Unsigned)));
    }

    #[test]
    fn an_envelope_that_was_changed_is_signed_by_nobody() {
        let value: Value = serde_json::from_str(BY_ECDSA).unwrap();
        let with = |change: &dyn Fn(&mut Value)| {
            let mut value = value.clone();
            change(&mut value);
            KeylimePolicy::signed_by(&value.to_string(), &ring(ECDSA_KEY)).map(|policy| policy.len())
        };
        assert_eq!(with(&|_| ()).unwrap(), 1);
        // The key's id is only a hint, and what nobody signed is passed over.
        assert_eq!(with(&|value| value["signatures"][0]["keyid"] = "other".into()).unwrap(), 1);
        assert_eq!(with(&|value| value["more"] = 1.into()).unwrap(), 1);
        let payload = value["payload"].as_str().unwrap();
        let other = payload.replacen("MSwg", "Miwg", 1);
        assert_ne!(other, payload);
        assert!(matches!(with(&|value| value["payload"] = other.clone().into()), Err(KeylimeError::Signature)));
        let signature = serde_json::from_str::<Value>(BY_X509).unwrap()["signatures"].clone();
        assert!(matches!(with(&|value| value["signatures"] = signature.clone()), Err(KeylimeError::Signature)));
        let error = with(&|value| value["payload"] = "/w==".into()).unwrap_err();
        assert!(matches!(error, KeylimeError::Signature), "a signature is checked before anything is read: {error}");
        for change in [
            &(|value: &mut Value| value["payloadType"] = "application/vnd.in-toto+json".into()) as &dyn Fn(&mut Value),
            &|value| value["signatures"] = Value::Array(Vec::new()),
            &|value| value["signatures"] = vec![value["signatures"][0].clone(); 17].into(),
            &|value| value["signatures"][0]["sig"] = "!".into(),
            &|value| value["payload"] = "!".into(),
            &|value| value["payload"] = 1.into(),
        ] {
            let error = with(change).unwrap_err();
            assert!(matches!(error, KeylimeError::Envelope(_) | KeylimeError::PayloadType(_)), "{error}");
            let mut value = value.clone();
            change(&mut value);
            assert!(KeylimePolicy::from_json(&value.to_string()).is_err(), "{value}");
        }
    }

    #[test]
    fn verification_keys_become_a_keyring() {
        let policy = KeylimePolicy::from_json(BY_ECDSA).unwrap();
        assert_eq!(policy.verification_keys().len(), 2);
        assert_eq!(read("\"verification-keys\": \"\"").verification_keys().len(), 0);
        let pems: Vec<_> = policy.verification_keys().pems().map(str::to_owned).collect();
        let list = read(&format!("\"verification-keys\": {}", serde_json::to_string(&pems).unwrap()));
        assert_eq!((list.verification_keys(), list.not_imported.len()), (policy.verification_keys(), 0));
        // Keylime's database has the text written as text once more.
        let ring = |keyids: &str| {
            let keys: Vec<_> = pems.iter().map(|pem| crate::pem::single(pem).unwrap().1).collect();
            let keys: Vec<_> = keys
                .iter()
                .map(|der| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der))
                .collect();
            let text = format!("{{\"pubkeys\": {}, \"keyids\": {keyids}}}", serde_json::to_string(&keys).unwrap());
            let twice = serde_json::to_string(&serde_json::to_string(&text).unwrap()).unwrap();
            read(&format!("\"verification-keys\": {twice}"))
        };
        assert_eq!(ring("[]").verification_keys(), policy.verification_keys());
        // A key that signatures name otherwise than by its own digest is of no use without its certificate.
        let named = ring("[1]");
        assert_eq!((named.verification_keys().len(), named.not_imported.len()), (1, 1));
        assert!(named.not_imported[0].contains("signatures name it 00000001, after its certificate"));
        let many = vec!["x"; 257];
        let many = read(&format!("\"verification-keys\": {}", serde_json::to_string(&many).unwrap()));
        assert_eq!(many.not_imported, ["verification-keys: 257 keys are more than the 256 that are read"]);
    }

    #[test]
    fn other_files_are_no_runtime_policies() {
        for json in ["", "{}", "{\"meta\": {\"version\": 9}}", "{\"meta\": {\"version\": 1}, \"hashes\": {}}"] {
            assert!(KeylimePolicy::from_json(json).is_err(), "{json}");
        }
        assert_eq!(read("").len(), 0);
    }
}
