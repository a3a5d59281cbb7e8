//! A TPM in software, for what a real TPM would not sign: every field of what it says can be set, and its signatures are
//! valid all the same.
#![allow(dead_code, reason = "every test file uses some of it")]

use aws_lc_rs::agreement::{ECDH_P256, PrivateKey};
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    self as aws, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _, RsaEncoding, RsaSignatureEncoding,
};
use der::Decode as _;
use portcullis_attest::binding::{Binding, EMPTY_BODY, Purpose};
use portcullis_attest::evidence::{Evidence, PcrValues, SignedQuote};
use portcullis_attest::key::{Bank, EnrolledAk};
use portcullis_attest::quote::VerifiedQuote;
use portcullis_attest::reason::{Denial, Reason, ReasonCode};

pub const RSA: u16 = 0x0001;
pub const NULL: u16 = 0x0010;
pub const RSASSA: u16 = 0x0014;
pub const RSAPSS: u16 = 0x0016;
pub const ECDSA: u16 = 0x0018;
pub const ECC: u16 = 0x0023;
pub const P256: u16 = 0x0003;
pub const P384: u16 = 0x0004;
pub const P521: u16 = 0x0005;

/// fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign.
pub const AK_ATTRIBUTES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 16 | 1 << 18;
/// fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt.
pub const EK_ATTRIBUTES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 16 | 1 << 17;

pub fn sized(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// TPMT_PUBLIC, field by field.
#[derive(Clone)]
pub struct Public {
    pub kind: u16,
    pub name_alg: u16,
    pub attributes: u32,
    pub policy: Vec<u8>,
    /// Symmetric definition, marshalled.
    pub symmetric: Vec<u8>,
    /// Scheme and its hash; the hash is left out for TPM_ALG_NULL.
    pub scheme: (u16, u16),
    /// RSA: key bits. ECC: curve.
    pub size: u16,
    pub exponent: u32,
    /// RSA: modulus. ECC: x, y.
    pub unique: Vec<Vec<u8>>,
}

impl Public {
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.kind.to_be_bytes());
        out.extend(self.name_alg.to_be_bytes());
        out.extend(self.attributes.to_be_bytes());
        out.extend(sized(&self.policy));
        out.extend(&self.symmetric);
        out.extend(self.scheme.0.to_be_bytes());
        if self.scheme.0 != NULL {
            out.extend(self.scheme.1.to_be_bytes());
        }
        out.extend(self.size.to_be_bytes());
        if self.kind == RSA {
            out.extend(self.exponent.to_be_bytes());
        } else {
            out.extend(NULL.to_be_bytes());
        }
        for number in &self.unique {
            out.extend(sized(number));
        }
        out
    }

    pub fn name(&self) -> Vec<u8> {
        name(self.name_alg, &self.bytes())
    }

    pub fn qualified_name(&self, parent: &[u8]) -> Vec<u8> {
        name(self.name_alg, &[parent, &self.name()].concat())
    }
}

fn name(algorithm: u16, bytes: &[u8]) -> Vec<u8> {
    let digest = Bank::from_tpm_alg_id(algorithm).unwrap_or(Bank::Sha256).hash(bytes);
    [&algorithm.to_be_bytes()[..], &digest].concat()
}

/// An endorsement key of the RSA-2048 default template. Nobody has its private half, and no test needs it: making a true
/// one takes long.
pub fn ek() -> Public {
    let mut modulus = vec![0; 256];
    SystemRandom::new().fill(&mut modulus).unwrap();
    modulus[0] |= 0x80;
    modulus[255] |= 1;
    Public {
        kind: RSA,
        name_alg: 0x000B,
        attributes: EK_ATTRIBUTES,
        policy: vec![0x83; 32],
        symmetric: [6_u16.to_be_bytes(), 128_u16.to_be_bytes(), 0x43_u16.to_be_bytes()].concat(),
        scheme: (NULL, 0),
        size: 2048,
        exponent: 0,
        unique: vec![modulus],
    }
}

fn rsa_public(key: &RsaKeyPair, scheme: u16, hash: Bank) -> Public {
    let modulus = modulus(key);
    Public {
        kind: RSA,
        name_alg: 0x000B,
        attributes: AK_ATTRIBUTES,
        policy: Vec::new(),
        symmetric: NULL.to_be_bytes().to_vec(),
        scheme: (scheme, hash.tpm_alg_id()),
        size: u16::try_from(modulus.len() * 8).unwrap(),
        exponent: 0,
        unique: vec![modulus],
    }
}

fn modulus(key: &RsaKeyPair) -> Vec<u8> {
    // RSAPublicKey ::= SEQUENCE { modulus INTEGER, publicExponent INTEGER }
    let numbers = Vec::<der::asn1::Int>::from_der(key.public_key().as_ref()).unwrap();
    let modulus = numbers[0].as_bytes();
    modulus.strip_prefix(&[0]).unwrap_or(modulus).to_vec()
}

/// A P-256 key that is the same in every run: its secret is this number in every byte.
pub fn fixed_p256(number: u8, algorithm: &'static EcdsaSigningAlgorithm) -> EcdsaKeyPair {
    let secret = [number; 32];
    let public = PrivateKey::from_private_key(&ECDH_P256, &secret).unwrap().compute_public_key().unwrap();
    EcdsaKeyPair::from_private_key_and_public_key(algorithm, &secret, public.as_ref()).unwrap()
}

enum Secret {
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair, &'static RsaSignatureEncoding),
}

/// A TPM with an endorsement key and an attestation key.
pub struct SoftTpm {
    pub ek: Public,
    pub ak: Public,
    secret: Secret,
}

impl SoftTpm {
    /// ECDSA P-256 with SHA-256, as the project's hosts have.
    pub fn new() -> Self {
        Self::ecdsa(P256, Bank::Sha256, &aws::ECDSA_P256_SHA256_FIXED_SIGNING)
    }

    /// The same TPM in every run, so that stored bytes keep their meaning.
    pub fn fixed() -> Self {
        let mut tpm = Self::of_key(P256, Bank::Sha256, fixed_p256(1, &aws::ECDSA_P256_SHA256_FIXED_SIGNING));
        tpm.ek.unique = vec![vec![0xA5; 256]];
        tpm
    }

    pub fn ecdsa(curve: u16, hash: Bank, algorithm: &'static EcdsaSigningAlgorithm) -> Self {
        Self::of_key(curve, hash, EcdsaKeyPair::generate(algorithm).unwrap())
    }

    fn of_key(curve: u16, hash: Bank, key: EcdsaKeyPair) -> Self {
        let point = &key.public_key().as_ref()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        let ak = Public {
            kind: ECC,
            name_alg: 0x000B,
            attributes: AK_ATTRIBUTES,
            policy: Vec::new(),
            symmetric: NULL.to_be_bytes().to_vec(),
            scheme: (ECDSA, hash.tpm_alg_id()),
            size: curve,
            exponent: 0,
            unique: vec![x.to_vec(), y.to_vec()],
        };
        Self { ek: ek(), ak, secret: Secret::Ecdsa(key) }
    }

    pub fn rsa(size: KeySize, scheme: u16, hash: Bank) -> Self {
        let encoding: &'static RsaSignatureEncoding = match (scheme, hash) {
            (RSASSA, Bank::Sha256) => &aws::RSA_PKCS1_SHA256,
            (RSASSA, Bank::Sha384) => &aws::RSA_PKCS1_SHA384,
            (RSAPSS, Bank::Sha256) => &aws::RSA_PSS_SHA256,
            (RSAPSS, Bank::Sha384) => &aws::RSA_PSS_SHA384,
            other => panic!("no such scheme here: {other:?}"),
        };
        let key = RsaKeyPair::generate(size).unwrap();
        Self { ek: ek(), ak: rsa_public(&key, scheme, hash), secret: Secret::Rsa(key, encoding) }
    }

    pub fn enrolled(&self) -> Result<EnrolledAk, Denial> {
        EnrolledAk::new(&self.ak.bytes(), &self.ek.bytes())
    }

    pub fn qualified_name(&self) -> Vec<u8> {
        self.ak.qualified_name(&self.ek.qualified_name(&0x4000_000B_u32.to_be_bytes()))
    }

    /// The bare signature: RSA one number, ECDSA r and s.
    pub fn sign_numbers(&self, message: &[u8]) -> Vec<Vec<u8>> {
        let rng = SystemRandom::new();
        match &self.secret {
            Secret::Ecdsa(key) => {
                let signature = key.sign(&rng, message).unwrap();
                let (r, s) = signature.as_ref().split_at(signature.as_ref().len() / 2);
                vec![r.to_vec(), s.to_vec()]
            }
            Secret::Rsa(key, encoding) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(*encoding as &'static dyn RsaEncoding, &rng, message, &mut signature).unwrap();
                vec![signature]
            }
        }
    }

    /// TPMT_SIGNATURE in the attestation key's scheme.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        signature(self.ak.scheme, &self.sign_numbers(message))
    }

    /// What a quote over `pcrs` says.
    pub fn attest(&self, binding: &Binding, pcrs: &PcrValues) -> Attest {
        let hash = Bank::from_tpm_alg_id(self.ak.scheme.1).unwrap();
        let values: Vec<&[u8]> = pcrs.values().flat_map(|bank| bank.values().map(Vec::as_slice)).collect();
        let mut body = u32::try_from(pcrs.len()).unwrap().to_be_bytes().to_vec();
        for (bank, values) in pcrs {
            body.extend(select(bank.tpm_alg_id(), &values.keys().copied().collect::<Vec<_>>()));
        }
        body.extend(sized(&hash.hash_parts(&values)));
        Attest {
            magic: 0xFF54_4347,
            kind: 0x8018,
            qualified_signer: self.qualified_name(),
            extra_data: binding.extra_data().to_vec(),
            clock_ms: 123_456,
            reset_count: 3,
            restart_count: 0,
            safe: 1,
            firmware_version: 0x2019_1023_0016_3636,
            body,
        }
    }

    /// The quote that says `attest` and comes with `pcrs`.
    pub fn quote(&self, attest: &Attest, pcrs: &PcrValues) -> SignedQuote {
        let message = attest.bytes();
        let signature = self.sign(&message);
        SignedQuote { message, signature, pcrs: pcrs.clone() }
    }

    /// Good evidence.
    pub fn evidence(&self, binding: &Binding, pcrs: &PcrValues) -> Evidence {
        evidence(binding, vec![self.quote(&self.attest(binding, pcrs), pcrs)])
    }
}

/// TPMT_SIGNATURE.
pub fn signature(scheme: (u16, u16), numbers: &[Vec<u8>]) -> Vec<u8> {
    let mut out = [scheme.0.to_be_bytes(), scheme.1.to_be_bytes()].concat();
    for number in numbers {
        out.extend(sized(number));
    }
    out
}

/// TPMS_PCR_SELECTION.
pub fn select(bank: u16, pcrs: &[u8]) -> Vec<u8> {
    let mut bits = [0_u8; 3];
    for pcr in pcrs {
        bits[usize::from(pcr / 8)] |= 1 << (pcr % 8);
    }
    [&bank.to_be_bytes()[..], &[3], &bits].concat()
}

/// TPMS_ATTEST, field by field.
#[derive(Clone)]
pub struct Attest {
    pub magic: u32,
    pub kind: u16,
    pub qualified_signer: Vec<u8>,
    pub extra_data: Vec<u8>,
    pub clock_ms: u64,
    pub reset_count: u32,
    pub restart_count: u32,
    pub safe: u8,
    pub firmware_version: u64,
    /// Quote: TPML_PCR_SELECTION and the digest.
    pub body: Vec<u8>,
}

impl Attest {
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.magic.to_be_bytes());
        out.extend(self.kind.to_be_bytes());
        out.extend(sized(&self.qualified_signer));
        out.extend(sized(&self.extra_data));
        out.extend(self.clock_ms.to_be_bytes());
        out.extend(self.reset_count.to_be_bytes());
        out.extend(self.restart_count.to_be_bytes());
        out.push(self.safe);
        out.extend(self.firmware_version.to_be_bytes());
        out.extend(&self.body);
        out
    }
}

pub fn binding() -> Binding {
    Binding {
        purpose: Purpose::Attest,
        verifier: "verifier.example".into(),
        host: "honest".into(),
        nonce: (0..32).collect(),
        tls_spki_sha256: [7; 32],
        body_sha256: EMPTY_BODY,
    }
}

/// Values of two banks, every one another.
pub fn pcrs() -> PcrValues {
    [Bank::Sha256, Bank::Sha384]
        .into_iter()
        .map(|bank| (bank, (0..=10).chain([14]).map(|pcr| (pcr, vec![pcr + 1; bank.digest_size()])).collect()))
        .collect()
}

pub fn evidence(binding: &Binding, quotes: Vec<SignedQuote>) -> Evidence {
    Evidence::new(binding.clone(), quotes, Vec::new(), Vec::new())
}

/// The codes for which `evidence` is denied; none if it is not.
pub fn denied(evidence: &Evidence, tpm: &SoftTpm, expected: &Binding) -> Vec<ReasonCode> {
    let ak = tpm.enrolled().expect("an attestation key as it must be");
    VerifiedQuote::verify(evidence, &ak, expected).map_or_else(|reasons| codes(&reasons), |_| Vec::new())
}

pub fn codes(reasons: &[Reason]) -> Vec<ReasonCode> {
    reasons.iter().map(|reason| reason.code).collect()
}
