//! Judges a LUKS2 header before its volume is opened.
//!
//! The header lies on a disk that others can write. One that names the null cipher would make cryptsetup mount plain
//! data of an attacker's with any key, and one that asks for much memory or time would stop the host; so only headers
//! that encrypt really, with bounded key derivation, are opened.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The only cipher that volumes use.
const CIPHERS: [&str; 1] = ["aes-xts-plain64"];
/// Upper ends for key derivation: argon2's memory in KiB and PBKDF2's iterations.
const MAX_KDF_MEMORY_KIB: u64 = 1024 * 1024;
const MAX_KDF_ITERATIONS: u64 = 20_000_000;
const MAX_KDF_TIME: u64 = 64;
/// Upper end for argon2's lanes, each of which is a thread. cryptsetup itself makes at most four.
const MAX_KDF_CPUS: u64 = 16;

#[derive(Deserialize)]
struct Header {
    keyslots: BTreeMap<String, Keyslot>,
    segments: BTreeMap<String, Segment>,
}

#[derive(Deserialize)]
struct Keyslot {
    #[serde(rename = "type")]
    kind: String,
    key_size: u32,
    area: Area,
    kdf: Kdf,
}

#[derive(Deserialize)]
struct Area {
    encryption: Option<String>,
}

#[derive(Deserialize)]
struct Kdf {
    iterations: Option<u64>,
    memory: Option<u64>,
    time: Option<u64>,
    cpus: Option<u64>,
}

#[derive(Deserialize)]
struct Segment {
    #[serde(rename = "type")]
    kind: String,
    encryption: Option<String>,
}

/// Checks the header's JSON as `cryptsetup luksDump --dump-json-metadata` prints it.
pub fn check(json: &[u8]) -> Result<(), String> {
    let header: Header =
        serde_json::from_slice(json).map_err(|error| format!("its header is not understood: {error}"))?;
    if header.segments.len() != 1 {
        return Err(format!("it has {} segments, one is expected", header.segments.len()));
    }
    for segment in header.segments.values() {
        if segment.kind != "crypt" {
            return Err(format!("its segment is of type {:?}, \"crypt\" is expected", segment.kind));
        }
        cipher("its data", segment.encryption.as_deref())?;
    }
    if header.keyslots.is_empty() {
        return Err("it has no key slot".to_owned());
    }
    for (number, slot) in &header.keyslots {
        if slot.kind != "luks2" || slot.key_size < 32 {
            return Err(format!("key slot {number} is of type {:?} with {} bytes", slot.kind, slot.key_size));
        }
        cipher(&format!("key slot {number}"), slot.area.encryption.as_deref())?;
        if slot.kdf.memory.is_some_and(|kib| kib > MAX_KDF_MEMORY_KIB)
            || slot.kdf.iterations.is_some_and(|count| count > MAX_KDF_ITERATIONS)
            || slot.kdf.time.is_some_and(|count| count > MAX_KDF_TIME)
            || slot.kdf.cpus.is_some_and(|count| count > MAX_KDF_CPUS)
        {
            return Err(format!(
                "key slot {number} asks for more memory, time or threads than a host spends on one key"
            ));
        }
    }
    Ok(())
}

fn cipher(whose: &str, found: Option<&str>) -> Result<(), String> {
    match found {
        Some(name) if CIPHERS.contains(&name) => Ok(()),
        found => {
            Err(format!("{whose} is encrypted with {:?}, {:?} is expected", found.unwrap_or("nothing"), CIPHERS[0]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(data: &str, slot: &str, kdf: &str) -> String {
        format!(
            r#"{{"keyslots":{{"0":{{"type":"luks2","key_size":64,"area":{{"type":"raw","encryption":"{slot}"}},"kdf":{kdf}}}}},
            "segments":{{"0":{{"type":"crypt","encryption":"{data}"}}}},"tokens":{{}}}}"#
        )
    }

    const AES: &str = "aes-xts-plain64";
    const PBKDF2: &str = r#"{"type":"pbkdf2","iterations":1000}"#;

    #[test]
    fn an_ordinary_header_passes() {
        check(header(AES, AES, PBKDF2).as_bytes()).unwrap();
        check(header(AES, AES, r#"{"type":"argon2id","time":4,"memory":1048576,"cpus":2}"#).as_bytes()).unwrap();
    }

    #[test]
    fn null_ciphers_and_greedy_slots_are_refused() {
        for (bad, word) in [
            (header("cipher_null-ecb", AES, PBKDF2), "its data"),
            (header(AES, "cipher_null-ecb", PBKDF2), "key slot 0"),
            (header(AES, AES, r#"{"type":"argon2id","time":4,"memory":4194304}"#), "more memory"),
            (header(AES, AES, r#"{"type":"pbkdf2","iterations":4000000000}"#), "more memory"),
            (header(AES, AES, r#"{"type":"argon2id","time":4,"memory":1048576,"cpus":100000}"#), "threads"),
            (r#"{"keyslots":{},"segments":{}}"#.to_owned(), "0 segments"),
            (header(AES, AES, PBKDF2).replace("\"crypt\"", "\"linear\""), "linear"),
            ("{".to_owned(), "not understood"),
        ] {
            let text = check(bad.as_bytes()).unwrap_err();
            assert!(text.contains(word), "{text}");
        }
    }
}
