//! `verification-keys`: the keys whose signatures of files a runtime policy accepts. Keylime writes its `ImaKeyring` as JSON
//! into a text (keylime/ima/file_signatures.py): public keys as base64 of their DER, and the ids by which signatures name
//! them. Such keys are no reference values, but a keyring that a policy's rules can name.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use der::pem::LineEnding;
use serde::Deserialize;
use serde_json::Value;

use crate::ima::{Keyring, KeyringError};

/// Most keys of a policy.
const MAX_KEYS: usize = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImaKeyring {
    #[serde(default)]
    #[expect(dead_code, reason = "says which version of Keylime wrote it")]
    meta: Option<Value>,
    #[serde(default)]
    keyids: Vec<u32>,
    pubkeys: Vec<String>,
}

/// The keyring, and what of the keys is not in it, each in a sentence.
pub(super) fn keyring(value: Value) -> (Keyring, Vec<String>) {
    match pems(value) {
        Ok(keys) => {
            let mut problems = Vec::new();
            let mut good = Vec::new();
            for (key, number) in keys.into_iter().zip(1_usize..) {
                match key.and_then(NamedKey::checked) {
                    Ok(pem) => good.push(pem),
                    Err(problem) => problems.push(format!("verification-keys: key {number}: {problem}")),
                }
            }
            match Keyring::from_pems(good) {
                Ok(keyring) => (keyring, problems),
                Err(error) => (Keyring::default(), vec![format!("verification-keys: {error}")]),
            }
        }
        Err(problem) => (Keyring::default(), vec![format!("verification-keys: {problem}")]),
    }
}

/// A key, and the id by which signatures name it, if Keylime gives one.
struct NamedKey {
    pem: String,
    id: Option<u32>,
}

impl NamedKey {
    fn checked(self) -> Result<String, String> {
        let alone = Keyring::from_pems([&self.pem]).map_err(without_number)?;
        match self.id {
            // Ids are of the certificate; without it nobody can say to which key such a signature belongs.
            Some(id) if !alone.has_id(id.to_be_bytes()) => Err(format!(
                "signatures name it {id:08x}, after its certificate: put the certificate into the policy's keyring"
            )),
            _ => Ok(self.pem),
        }
    }
}

/// Keys are counted here.
fn without_number(error: KeyringError) -> String {
    match error {
        KeyringError::Pem { problem, .. } => format!("not a certificate or public key: {problem}"),
        KeyringError::Key { problem, .. } => problem,
        other => other.to_string(),
    }
}

type Keys = Vec<Result<NamedKey, String>>;

/// A text of JSON may be written as text once more, as Keylime's database has it.
fn pems(mut value: Value) -> Result<Keys, String> {
    for _ in 0..2 {
        let Value::String(text) = &value else { break };
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        if text.trim_start().starts_with("-----BEGIN") {
            return Ok(vec![Ok(NamedKey { pem: text.clone(), id: None })]);
        }
        value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    }
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) if list.len() > MAX_KEYS => Err(too_many(list.len())),
        Value::Array(list) => Ok(list.into_iter().map(pem_of).collect()),
        value @ Value::Object(_) => {
            let keys: ImaKeyring = serde_json::from_value(value).map_err(|error| error.to_string())?;
            if keys.pubkeys.len() > MAX_KEYS {
                return Err(too_many(keys.pubkeys.len()));
            }
            let ids = keys.keyids.into_iter().map(Some).chain(std::iter::repeat(None));
            Ok(keys.pubkeys.iter().zip(ids).map(|(key, id)| Ok(NamedKey { pem: pem_of_der(key)?, id })).collect())
        }
        _ => Err("neither a keyring of Keylime nor a list of PEMs".to_owned()),
    }
}

fn too_many(count: usize) -> String {
    format!("{count} keys are more than the {MAX_KEYS} that are read")
}

fn pem_of(value: Value) -> Result<NamedKey, String> {
    match value {
        Value::String(pem) => Ok(NamedKey { pem, id: None }),
        _ => Err("it is no PEM".to_owned()),
    }
}

fn pem_of_der(base64: &str) -> Result<String, String> {
    let der = STANDARD.decode(base64).map_err(|error| format!("not base64: {error}"))?;
    der::pem::encode_string("PUBLIC KEY", LineEnding::LF, &der).map_err(|error| error.to_string())
}
