//! Public areas, signatures and quotes.

use std::sync::LazyLock;

use portcullis_attest::binding::Binding;
use portcullis_attest::evidence::{PcrValues, SignedQuote};
use portcullis_attest::ima::Keyring;
use portcullis_attest::key::{Bank, EnrolledAk, PublicArea, QuotingKey, Signature};
use portcullis_attest::quote::{CheckedQuote, PcrFile, VerifiedQuote};
use portcullis_attest::reference::signature::SignerKey;
use portcullis_firmware_fixtures::recorded::NONCE;

use super::Target;
use super::boots::BOOTS;
use super::documents::pem;
use super::software_tpm::{self, SoftTpm, binding, pcrs};

/// The TPM whose attestation key is enrolled. It signs what a target wants signed.
pub(super) static TPM: LazyLock<SoftTpm> = LazyLock::new(SoftTpm::fixed);
/// Its attestation key, as enrolled.
pub(super) static AK: LazyLock<EnrolledAk> =
    LazyLock::new(|| TPM.enrolled().expect("an attestation key as it must be"));
/// What its quotes are to be bound to.
pub(super) static BINDING: LazyLock<Binding> = LazyLock::new(binding);

/// TPMT_PUBLIC and TPM2B_PUBLIC.
pub const PUBLIC_AREA: Target =
    Target { name: "public_area", body: public_area, max_len: 640, seeds: |_| public_areas() };

fn public_area(bytes: &[u8]) -> bool {
    let ek = TPM.ek.bytes();
    let _ = EnrolledAk::new(bytes, &ek);
    let bare = PublicArea::parse(bytes);
    let sized = PublicArea::parse_tpm2b(bytes);
    assert!(bare.is_err() || sized.is_err(), "the same bytes in both forms");
    let Ok(key) = bare.or(sized) else { return false };
    assert!(bytes.ends_with(key.bytes()), "a name is made of the bytes as received");
    assert_eq!(key.name().len(), key.name_alg().digest_size() + 2);
    let _ = key.spki_der();
    true
}

fn public_areas() -> Vec<Vec<u8>> {
    let mut seeds = vec![TPM.ak.bytes(), TPM.ek.bytes()];
    for boot in BOOTS {
        for tpm2b in [boot.ak_public, boot.ek_public] {
            seeds.extend([tpm2b.to_vec(), tpm2b[2..].to_vec()]);
        }
    }
    seeds
}

/// TPMT_SIGNATURE.
pub const SIGNATURE: Target = Target { name: "signature", body: signature, max_len: 600, seeds: |_| signatures() };

fn signature(bytes: &[u8]) -> bool {
    let Ok(signature) = Signature::parse(bytes) else { return false };
    // The message was never signed.
    assert!(signature.verify(AK.public(), b"never signed").is_err());
    assert!(AK.verify(b"never signed", bytes).is_err());
    true
}

fn signatures() -> Vec<Vec<u8>> {
    let numbers =
        |scheme, count: usize, size| software_tpm::signature((scheme, 0x000B), &vec![vec![0x5A; size]; count]);
    let mut seeds = vec![
        numbers(software_tpm::RSASSA, 1, 256),
        numbers(software_tpm::RSAPSS, 1, 512),
        numbers(software_tpm::ECDSA, 2, 32),
        numbers(software_tpm::ECDSA, 2, 66),
        numbers(0x001B, 2, 32),
    ];
    seeds.extend(BOOTS.iter().map(|boot| boot.quote_signature.to_vec()));
    seeds
}

/// TPMS_ATTEST of a quote, validly signed whatever it says, so that what stands behind the signature is read.
pub const QUOTE: Target = Target { name: "quote", body: quote, max_len: 512, seeds: |_| quotes() };

fn quote(bytes: &[u8]) -> bool {
    let quote = SignedQuote { message: bytes.to_vec(), signature: TPM.sign(bytes), pcrs: pcrs() };
    let evidence = software_tpm::evidence(&BINDING, vec![quote]);
    let Ok(quote) = VerifiedQuote::verify(&evidence, &AK, &BINDING) else { return false };
    assert_eq!(quote.values(), pcrs(), "the values are those that the digest covers");
    true
}

fn quotes() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = BOOTS.iter().map(|boot| boot.quote_message.to_vec()).collect();
    seeds.push(TPM.attest(&BINDING, &pcrs()).bytes());
    seeds
}

/// PCR values in the forms of `tpm2_quote -o`, beside a genuine quote.
pub const PCR_FILE: Target = Target { name: "pcr_file", body: pcr_file, max_len: 2048, seeds: |_| pcr_files() };

static QUOTING_KEY: LazyLock<QuotingKey> =
    LazyLock::new(|| QuotingKey::parse(BOOTS[0].ak_public).expect("a recorded key"));

fn pcr_file(bytes: &[u8]) -> bool {
    let Ok(file) = PcrFile::parse(bytes) else { return false };
    let boot = &BOOTS[0];
    let checked = CheckedQuote::check(&QUOTING_KEY, boot.quote_message, boot.quote_signature, &file, NONCE);
    let Ok(quote) = checked else { return false };
    assert_eq!(quote.values(), recorded_pcrs(), "other values than those that were quoted");
    true
}

/// The values that the first recorded quote covers.
fn recorded_pcrs() -> PcrValues {
    type Json = std::collections::BTreeMap<Bank, std::collections::BTreeMap<u8, String>>;
    let all: Json = serde_json::from_str(BOOTS[0].pcrs_json).expect("recorded values");
    let quoted = |bank: Bank, pcr: u8| pcr <= 9 || pcr == 14 || pcr == 10 && bank == Bank::Sha256;
    let mut values = PcrValues::new();
    for (bank, pcrs) in all.into_iter().filter(|(bank, _)| matches!(bank, Bank::Sha256 | Bank::Sha384)) {
        let pcrs = pcrs.into_iter().filter(|(pcr, _)| quoted(bank, *pcr));
        values.insert(bank, pcrs.map(|(pcr, value)| (pcr, hex::decode(value).expect("hex"))).collect());
    }
    values
}

/// The values one after the other, and as C structures.
fn pcr_files() -> Vec<Vec<u8>> {
    let pcrs = recorded_pcrs();
    let values: Vec<&[u8]> = pcrs.values().flat_map(|bank| bank.values().map(Vec::as_slice)).collect();
    let mut selections = u32::try_from(pcrs.len()).unwrap().to_le_bytes().to_vec();
    for (bank, pcrs) in &pcrs {
        let bits = pcrs.keys().fold(0_u32, |bits, pcr| bits | 1 << pcr);
        selections.extend(bank.tpm_alg_id().to_le_bytes());
        selections.extend([&[3][..], &bits.to_le_bytes(), &[0]].concat());
    }
    selections.resize(4 + 16 * 8, 0);
    let mut lists = u32::try_from(values.chunks(8).len()).unwrap().to_le_bytes().to_vec();
    for chunk in values.chunks(8) {
        let mut list = u32::try_from(chunk.len()).unwrap().to_le_bytes().to_vec();
        for value in chunk {
            let mut digest = u16::try_from(value.len()).unwrap().to_le_bytes().to_vec();
            digest.extend(*value);
            digest.resize(66, 0);
            list.extend(digest);
        }
        list.resize(4 + 8 * 66, 0);
        lists.extend(list);
    }
    vec![values.concat(), [selections, lists].concat()]
}

/// Keys in PEM: of quotes, of signed reference values and of signed files.
pub const PEM_KEYS: Target = Target { name: "pem_keys", body: pem_keys, max_len: 2048, seeds: |_| pems() };

fn pem_keys(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let quoting = QuotingKey::from_pem(text);
    if let Ok(key) = &quoting {
        assert!(key.verify(b"never signed", &TPM.sign(b"signed")).is_err());
    }
    let signer = SignerKey::from_pem(text);
    let keyring = Keyring::from_pems([text]);
    quoting.is_ok() || signer.is_ok() || keyring.is_ok()
}

fn pems() -> Vec<Vec<u8>> {
    let spki = |public: &[u8]| PublicArea::parse(public).ok().and_then(|key| key.spki_der().ok());
    let keys = [TPM.ak.bytes(), BOOTS[0].ek_public[2..].to_vec()];
    let mut seeds: Vec<Vec<u8>> =
        keys.iter().filter_map(|key| spki(key)).map(|der| pem("PUBLIC KEY", &der).into_bytes()).collect();
    seeds.push(pem("CERTIFICATE", BOOTS[0].ek_certificate).into_bytes());
    // The public key of RFC 8032, 7.1, test 1.
    let ed25519 = "302a300506032b6570032100d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    seeds.push(pem("PUBLIC KEY", &hex::decode(ed25519).expect("hex")).into_bytes());
    seeds
}
