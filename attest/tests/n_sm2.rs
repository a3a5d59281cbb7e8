//! SM2 with SM3: quotes made in software, for no TPM at hand signs so, beside the standards' own vectors. N26 and, with
//! these algorithms, N12, N13, N16 to N19; `genuine_sm2_quotes_pass` is the twin without the defect.

mod software_tpm;

use portcullis_attest::evidence::{Evidence, PcrValues};
use portcullis_attest::key::{Bank, EnrolledAk, PublicArea, QuotingKey, Signature, SignatureError};
use portcullis_attest::quote::{CheckedQuote, PcrFile, VerifiedQuote};
use portcullis_attest::reason::ReasonCode as Code;
use sm2::dsa::SigningKey;
use sm2::dsa::signature::hazmat::PrehashSigner as _;
use software_tpm::*;

const SM2: u16 = 0x001B;
const SM3: u16 = 0x0012;
const SM2_P256: u16 = 0x0020;

/// GB/T 32918.5-2017, A.2: the key pair, ZA of the signer "1234567812345678", and the signature of "message digest".
const SECRET: &str = "3945208f7b2144b13f36e38ac6d39f95889393692860b51a42fb81ef4df7c5b8";
const X: &str = "09f9df311e5421a150dd7d161e4bc5c672179fad1833fc076bb08ff356f35020";
const Y: &str = "ccea490ce26775a52dc6ea718cc1aa600aed05fbf35e084a6632f6072da9ad13";
const ZA: &str = "b2e14c5c79c6df5b85f4fe7ed8db7a262b9da7e07ccb0ea9f4747b8ccda8a4f3";
const R: &str = "f5a03b0648d2c4630eeac513e1bb81a15944da3827d5b74143ac7eaceee720b3";
const S: &str = "b1b6aa29df212fd8763182bc0d421ca1bb9038fd1f7f42d4840b69c485bbc1aa";

fn hex(text: &str) -> Vec<u8> {
    hex::decode(text).unwrap()
}

/// A TPM whose attestation key is the standard's. It signs with another one, so what it signs is signed again here.
fn tpm() -> SoftTpm {
    let mut tpm = SoftTpm::new();
    tpm.ak.scheme = (SM2, SM3);
    tpm.ak.size = SM2_P256;
    tpm.ak.unique = vec![hex(X), hex(Y)];
    tpm
}

fn sign_digest(digest: &[u8]) -> Vec<Vec<u8>> {
    let key = SigningKey::from_slice("1234567812345678", &hex(SECRET)).unwrap();
    let signature: sm2::dsa::Signature = key.sign_prehash(digest).unwrap();
    signature.to_bytes().chunks(32).map(<[u8]>::to_vec).collect()
}

/// As a TPM signs: the plain SM3 digest.
fn sign(message: &[u8]) -> Vec<u8> {
    signature((SM2, SM3), &sign_digest(&Bank::Sm3_256.hash(message)))
}

fn sm3_pcrs() -> PcrValues {
    [(Bank::Sm3_256, (0..=10).map(|pcr| (pcr, vec![pcr + 1; 32])).collect())].into()
}

/// A quote over banks of SHA-2 and SM3.
fn genuine(tpm: &SoftTpm) -> Evidence {
    let values: PcrValues = [pcrs(), sm3_pcrs()].into_iter().flatten().collect();
    signed(tpm, &tpm.attest(&binding(), &values), &values)
}

fn signed(tpm: &SoftTpm, attest: &Attest, values: &PcrValues) -> Evidence {
    let mut quote = tpm.quote(attest, values);
    quote.signature = sign(&quote.message);
    evidence(&binding(), vec![quote])
}

fn refused(ak: &Public) -> Vec<Code> {
    EnrolledAk::new(&ak.bytes(), &ek().bytes()).map_or_else(|reasons| codes(&reasons), |_| Vec::new())
}

#[test]
fn genuine_sm2_quotes_pass() {
    let tpm = tpm();
    let evidence = genuine(&tpm);
    let ak = tpm.enrolled().unwrap();
    assert_eq!(ak.scheme_hash(), Bank::Sm3_256);
    let quote = VerifiedQuote::verify(&evidence, &ak, &binding()).unwrap();
    assert_eq!(quote.pcr(Bank::Sm3_256, 10), Some([11; 32].as_slice()));
    assert_eq!(quote.pcr(Bank::Sha384, 14), Some([15; 48].as_slice()));
    // By itself, with the key as a public area and as PEM.
    let quote = &evidence.quotes[0];
    let spki = ak.public().spki_der().unwrap();
    let pem = der::pem::encode_string("PUBLIC KEY", der::pem::LineEnding::LF, &spki).unwrap();
    for key in [tpm.ak.bytes(), sized(&tpm.ak.bytes()), pem.into_bytes()] {
        let key = QuotingKey::parse(&key).unwrap();
        let values = PcrFile::Named(quote.pcrs.clone());
        let nonce = binding().extra_data();
        let checked = CheckedQuote::check(&key, &quote.message, &quote.signature, &values, &nonce).unwrap();
        assert_eq!((checked.hash(), &checked.values()), (Bank::Sm3_256, &quote.pcrs));
    }
}

#[test]
fn n26_messages_hashed_with_za() {
    let tpm = tpm();
    let mut evidence = genuine(&tpm);
    assert_eq!(denied(&evidence, &tpm, &binding()), []);
    let message = &evidence.quotes[0].message;
    let with_za = Bank::Sm3_256.hash_parts(&[&hex(ZA), message]);
    evidence.quotes[0].signature = signature((SM2, SM3), &sign_digest(&with_za));
    assert_eq!(denied(&evidence, &tpm, &binding()), [Code::QuoteSignatureInvalid]);
}

#[test]
fn n12_n13_values_and_digests_of_another_hash() {
    let tpm = tpm();
    let mut short = genuine(&tpm);
    short.quotes[0].pcrs.get_mut(&Bank::Sm3_256).unwrap().insert(3, vec![4; 20]);
    assert_eq!(denied(&short, &tpm, &binding()), [Code::QuotePcrLength]);
    // pcrDigest made with SHA-256, where the signature is made with SM3.
    let values = sm3_pcrs();
    let mut attest = tpm.attest(&binding(), &values);
    let parts: Vec<&[u8]> = values[&Bank::Sm3_256].values().map(Vec::as_slice).collect();
    let at = attest.body.len() - 32;
    attest.body.splice(at.., Bank::Sha256.hash_parts(&parts));
    assert_eq!(denied(&signed(&tpm, &attest, &values), &tpm, &binding()), [Code::QuotePcrDigestMismatch]);
}

#[test]
fn n16_n17_signatures_of_another_kind_or_hash() {
    let tpm = tpm();
    let mut evidence = genuine(&tpm);
    let message = evidence.quotes[0].message.clone();
    let numbers = sign_digest(&Bank::Sm3_256.hash(&message));
    for scheme in [(ECDSA, SM3), (ECDSA, 0x000B), (SM2, 0x000B), (SM2, 0x0004)] {
        evidence.quotes[0].signature = signature(scheme, &numbers);
        assert_eq!(denied(&evidence, &tpm, &binding()), [Code::QuoteSignatureScheme], "{scheme:04x?}");
    }
    // A P-256 key's signature under SM2's name.
    evidence.quotes[0].signature = signature((SM2, SM3), &SoftTpm::new().sign_numbers(&message));
    assert_eq!(denied(&evidence, &tpm, &binding()), [Code::QuoteSignatureInvalid]);
}

#[test]
fn n18_impossible_numbers() {
    // The order of SM2's curve.
    let order = hex("fffffffeffffffffffffffffffffffff7203df6b21c6052b53bbf40939d54123");
    let tpm = tpm();
    let mut evidence = genuine(&tpm);
    let numbers = sign_digest(&Bank::Sm3_256.hash(&evidence.quotes[0].message));
    let (r, s) = (numbers[0].clone(), numbers[1].clone());
    let mut with = |r: Vec<u8>, s: Vec<u8>| {
        evidence.quotes[0].signature = signature((SM2, SM3), &[r, s]);
        denied(&evidence, &tpm, &binding())
    };
    assert_eq!(with(r.clone(), s.clone()), []);
    // r + s = n: t would be zero.
    let negative: Vec<u8> = subtract(&order, &s);
    for bad in [vec![0; 32], order, vec![0xFF; 32], negative] {
        assert_eq!(with(bad.clone(), s.clone()), [Code::QuoteSignatureInvalid]);
        assert_eq!(with(r.clone(), bad), [Code::QuoteSignatureInvalid]);
    }
    // Longer than any number of this curve, and longer than any at all.
    for (long, code) in [
        ([vec![0], r.clone()].concat(), Code::QuoteSignatureInvalid),
        (vec![1; 66], Code::QuoteSignatureInvalid),
        (vec![1; 513], Code::QuoteSignatureMalformed),
        (vec![], Code::QuoteSignatureMalformed),
    ] {
        assert_eq!(with(long.clone(), s.clone()), [code]);
        assert_eq!(with(r.clone(), long), [code]);
    }
}

/// a - b of two numbers of the same length, a > b.
fn subtract(a: &[u8], b: &[u8]) -> Vec<u8> {
    let mut borrow = 0_i32;
    let mut out: Vec<u8> = Vec::new();
    for (a, b) in a.iter().rev().zip(b.iter().rev()) {
        let difference = i32::from(*a) - i32::from(*b) - borrow;
        borrow = i32::from(difference < 0);
        out.push(u8::try_from(difference.rem_euclid(256)).unwrap());
    }
    out.reverse();
    out
}

#[test]
fn n19_keys_that_are_no_points_or_sign_otherwise() {
    let with = |change: &dyn Fn(&mut Public)| {
        let mut ak = tpm().ak;
        change(&mut ak);
        refused(&ak)
    };
    assert_eq!(with(&|_| ()), []);
    assert_eq!(with(&|ak| ak.name_alg = SM3), []);
    assert_eq!(with(&|ak| ak.unique[1][0] ^= 1), [Code::AkWeakKey]);
    assert_eq!(with(&|ak| ak.unique = vec![vec![0; 32], vec![0; 32]]), [Code::AkWeakKey]);
    // SM2 with another hash; ECDSA on SM2's curve; SM2 on P-256.
    assert_eq!(with(&|ak| ak.scheme = (SM2, 0x000B)), [Code::AkScheme]);
    assert_eq!(with(&|ak| ak.scheme = (SM2, 0x0027)), [Code::AkScheme]);
    assert_eq!(with(&|ak| ak.scheme = (ECDSA, 0x000B)), [Code::AkScheme]);
    assert_eq!(with(&|ak| ak.scheme = (ECDSA, SM3)), [Code::AkScheme]);
    assert_eq!(refused(&Public { scheme: (SM2, SM3), ..SoftTpm::new().ak }), [Code::AkScheme]);
}

#[test]
fn the_standards_vectors_hold() {
    let area = PublicArea::parse(&tpm().ak.bytes()).unwrap();
    let vector = Signature::parse(&signature((SM2, SM3), &[hex(R), hex(S)])).unwrap();
    // What the standard hashes is ZA and then the message: over these bytes together the plain digest is the standard's.
    let with_za = [hex(ZA), b"message digest".to_vec()].concat();
    let e = Bank::Sm3_256.hash(&with_za);
    assert_eq!(hex::encode(&e), "f0b43e94ba45accaace692ed534382eb17e6ab5a19ce7b31f4486fdfc0d28640");
    vector.verify(&area, &with_za).unwrap();
    assert_eq!(vector.verify(&area, b"message digest"), Err(SignatureError::Invalid));
    assert_eq!(vector.verify(&area, &[with_za.as_slice(), &[0]].concat()), Err(SignatureError::Invalid));
    // GB/T 32905-2016, A.2: SM3 of 64 bytes.
    let sm3 = Bank::Sm3_256.hash("abcd".repeat(16).as_bytes());
    assert_eq!(hex::encode(sm3), "debe9ff92275b8a138604889c18e5a4d6fdb70e5387e5765293dcba39c0c5732");
}
