//! IMA lists in both forms, with the signatures of files in them.

use std::sync::LazyLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use portcullis_attest::ima::{ExtendRule, ImaList, Keyring, after};
use portcullis_attest::key::Bank;

use super::Target;
use super::documents::pem;
use super::recordings::Recordings;
use super::software_ca::{Authority, ECDSA_SHA256, name, oid, seq, tlv};
use super::software_tpm::fixed_p256;

/// `binary_runtime_measurements`.
pub const IMA_BINARY: Target =
    Target { name: "ima_binary", body: |bytes| list(ImaList::parse_binary(bytes).ok()), max_len: 2048, seeds: binary };

/// `ascii_runtime_measurements`.
pub const IMA_ASCII: Target =
    Target { name: "ima_ascii", body: |bytes| list(ImaList::parse_ascii(bytes).ok()), max_len: 2048, seeds: ascii };

fn list(list: Option<ImaList<'_>>) -> bool {
    let Some(list) = list else { return false };
    let mut count = 0;
    for entry in list.entries() {
        count += 1;
        let digest = entry.digest();
        let _ = (entry.name_lossy(), digest.bank(), entry.template_digest_holds(), entry.is_boot_aggregate());
        if entry.signed_by(&SIGNER.keyring).is_ok() {
            let appended = entry.content().appended_digest;
            let signed = [Some(digest), appended].into_iter().flatten().any(|one| one.digest == SIGNER.digest);
            assert!(signed, "a digest that nobody signed counts as signed");
        }
    }
    assert_eq!(count, list.len());
    assert!(list.violations() <= count);
    let rules =
        [(Bank::Sha1, ExtendRule::Digest), (Bank::Sha256, ExtendRule::Digest), (Bank::Sha256, ExtendRule::PaddedSha1)];
    for (bank, rule) in rules {
        let pcr = list.replay(bank, rule);
        assert_eq!(list.position_of(bank, rule, &pcr), Some(count));
    }
    count > 0
}

/// Who signs files, and the only file that is signed.
struct Signer {
    keyring: Keyring,
    digest: Vec<u8>,
    /// What an inode's attribute `security.ima` holds.
    attribute: Vec<u8>,
    /// CMS, as it is appended to a file.
    appended: Vec<u8>,
}

const SIGNED: &[u8] = b"the only signed file";

static SIGNER: LazyLock<Signer> = LazyLock::new(|| {
    let key = || -> EcdsaKeyPair { fixed_p256(7, &ECDSA_P256_SHA256_ASN1_SIGNING) };
    let authority = Authority::with_key("signer", "signer", key());
    let keyring = Keyring::from_pems([pem("CERTIFICATE", &authority.self_signed())]).expect("a key that signs files");
    let signature = key().sign(&SystemRandom::new(), SIGNED).expect("a signature");
    let id = Bank::Sha1.hash(&authority.certificate.key[26..]);
    let length = u16::try_from(signature.as_ref().len()).unwrap().to_be_bytes();
    let attribute = [&[3, 2, 4], &id[16..], &length, signature.as_ref()].concat();
    let sha256 = seq(&[&oid("2.16.840.1.101.3.4.2.1")]);
    let who = seq(&[&name("signer"), &tlv(2, &[&[0x11]])]);
    let algorithm = seq(&[&oid(ECDSA_SHA256)]);
    let signer = seq(&[&tlv(2, &[&[1]]), &who, &sha256, &algorithm, &tlv(4, &[signature.as_ref()])]);
    let data = seq(&[&oid("1.2.840.113549.1.7.1")]);
    let signed = seq(&[&tlv(2, &[&[1]]), &tlv(0x31, &[&sha256]), &data, &tlv(0x31, &[&signer])]);
    let appended = seq(&[&oid("1.2.840.113549.1.7.2"), &tlv(0xA0, &[&signed])]);
    Signer { keyring, digest: Bank::Sha256.hash(SIGNED), attribute, appended }
});

/// A binary list, cut into its entries.
pub fn entries(mut list: &[u8]) -> Vec<Vec<u8>> {
    let mut entries = Vec::new();
    while let Ok(rest) = after(list, 1) {
        entries.push(list[..list.len() - rest.len()].to_vec());
        list = rest;
    }
    entries
}

/// An entry as the binary list has it.
pub fn encode(pcr: u32, template_digest: &[u8], template: &str, data: &[u8]) -> Vec<u8> {
    [&pcr.to_le_bytes()[..], template_digest, &sized(template.as_bytes()), &sized(data)].concat()
}

/// Bytes behind their length, as fields of template data are.
pub fn sized(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_le_bytes(), bytes].concat()
}

/// An entry of each template, with the digest of the signed file.
fn of_each_template() -> Vec<Vec<u8>> {
    let signer = &*SIGNER;
    let digest = |prefix: &str| sized(&[prefix.as_bytes(), b"\0", &signer.digest].concat());
    let (sha256, name) = (digest("sha256:"), sized(b"/usr/bin/signed\0"));
    let (attribute, appended, none) = (sized(&signer.attribute), sized(&signer.appended), sized(b""));
    let entry = |template: &str, fields: &[&[u8]]| {
        let data = fields.concat();
        encode(10, &Bank::Sha1.hash(&data), template, &data)
    };
    let mut old = [&[0x11; 20][..], b"/init"].concat();
    old.resize(20 + 256, 0);
    vec![
        [&10_u32.to_le_bytes()[..], &Bank::Sha1.hash(&old), &sized(b"ima"), &old[..20], &sized(b"/init")].concat(),
        entry("ima-ng", &[&sha256, &name]),
        entry("ima-sig", &[&sha256, &name, &attribute]),
        entry("ima-sig", &[&sha256, &name, &none]),
        entry("ima-buf", &[&sha256, &name, &sized(b"6.1.0-37-amd64")]),
        entry("ima-modsig", &[&sha256, &name, &none, &sha256, &appended]),
        entry("ima-ngv2", &[&digest("ima:sha256:"), &name]),
        entry("ima-sigv2", &[&digest("verity:sha256:"), &name, &attribute]),
        encode(10, &[0; 20], "ima-ng", &[sized(&[b"sha1:\0".as_slice(), &[0; 20]].concat()), name].concat()),
    ]
}

/// Each entry alone, and some together.
fn binary(recordings: &Recordings) -> Vec<Vec<u8>> {
    let mut seeds = of_each_template();
    for list in &recordings.ima_binary {
        let entries = entries(list);
        seeds.extend(entries.chunks(4).map(<[_]>::concat));
        seeds.extend(entries);
    }
    for text in &recordings.ima_ascii {
        let Ok(list) = ImaList::parse_ascii(text) else { continue };
        let entry = |entry: portcullis_attest::ima::Entry<'_>| {
            encode(entry.pcr, entry.template_digest, entry.template.name(), &entry.template_data())
        };
        seeds.extend(list.entries().map(entry));
    }
    seeds
}

fn ascii(recordings: &Recordings) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for text in &recordings.ima_ascii {
        let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
        seeds.extend(lines.iter().map(|line| line.to_vec()));
        seeds.extend(lines.chunks(4).map(<[_]>::concat));
    }
    let binary = recordings.ima_binary.iter().flat_map(|list| entries(list)).chain(of_each_template());
    for bytes in binary {
        let list = ImaList::parse_binary(&bytes).ok();
        seeds.extend(list.iter().flat_map(ImaList::entries).map(|entry| line(&entry)));
    }
    seeds
}

/// An entry as the ASCII list shows it.
fn line(entry: &portcullis_attest::ima::Entry<'_>) -> Vec<u8> {
    let (digest, content) = (entry.digest(), entry.content());
    let template = entry.template.name();
    let algorithm = if template == "ima" { String::new() } else { format!("{}:", digest.algorithm) };
    let (digest, name) = (hex::encode(digest.digest), entry.name_lossy());
    let more = match template {
        "ima-sig" | "ima-sigv2" => format!(" {}", hex::encode(content.signature)),
        "ima-modsig" => format!("  {algorithm}{digest} {}", hex::encode(content.appended_signature)),
        "ima-buf" => format!(" {}", hex::encode(content.buffer.unwrap_or_default())),
        _ => String::new(),
    };
    let template_digest = hex::encode(entry.template_digest);
    format!("{} {template_digest} {template} {algorithm}{digest} {name}{more}\n", entry.pcr).into_bytes()
}
