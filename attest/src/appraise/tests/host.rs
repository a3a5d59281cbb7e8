//! A host whose TPM is software: its key signs whatever the test says, so that only the named thing is wrong.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

use crate::appraise::{Appraisal, Context, Judged, Policy, QUOTED_PCRS, STATIC_PCRS, judge};
use crate::binding::{Binding, Purpose};
use crate::eventlog::log_builder::LogBuilder;
use crate::eventlog::{CertificateCache, EventLog};
use crate::evidence::{Evidence, PcrValues, SignedQuote};
use crate::ima::list_builder::ListBuilder;
use crate::ima::{ExtendRule, ImaList};
use crate::key::{Bank, EnrolledAk, PublicArea};
use crate::reason::{Reason, ReasonCode};
use crate::reference::{ReferenceBuilder, ReferenceValues};
use crate::release::CertifiedParent;

pub const BANKS: [Bank; 3] = [Bank::Sha1, Bank::Sha256, Bank::Sha384];

pub const POLICY: &str = "schema = \"portcullis/policy/1\"\nname = \"test\"\nbank = \"sha256\"\nsecure_boot = true\nima = true\n\
                          references = [\"good\"]\nhosts = [\"*\"]\nunsigned_references = true\n";

/// A host, and what the verifier knows of it.
pub struct Host {
    key: EcdsaKeyPair,
    pub ak: EnrolledAk,
    pub log: LogBuilder,
    pub ima: ListBuilder,
    /// The log as bytes, if it is not what `log` builds.
    pub raw_log: Option<Vec<u8>>,
    /// What PCR 10 of the SHA-256 bank holds, if not what the list leads to.
    pub pcr10: Option<Vec<u8>>,
    /// When it is judged, in seconds since 1970.
    pub now: u64,
    /// The banks that the kernel extends with SHA-1 digests padded with zeros.
    pub padded: Vec<Bank>,
    pub clock_ms: u64,
    pub safe: bool,
    pub reset_count: u32,
    pub restart_count: u32,
    pub firmware_version: u64,
    pub policy: Policy,
    pub references: Vec<ReferenceValues>,
    /// Banks and PCRs that are quoted.
    pub selection: BTreeMap<Bank, Vec<u8>>,
    /// The last change to evidence before it is judged: not covered by the quote.
    pub tamper: Option<fn(&mut Evidence)>,
}

/// The endorsement key of all hosts here: they are one machine at different times.
static EK: LazyLock<EcdsaKeyPair> = LazyLock::new(|| EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap());

impl Host {
    /// A host that is as it should be.
    pub fn good() -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let ak = EnrolledAk::new(&ak_public(&key), &ek_public(&EK)).unwrap();
        let log = LogBuilder::good_boot(&BANKS);
        let mut host = Self {
            key,
            ak,
            references: Vec::new(),
            log,
            ima: ListBuilder::default(),
            raw_log: None,
            pcr10: None,
            now: 0,
            padded: Vec::new(),
            clock_ms: 60_000,
            safe: true,
            reset_count: 7,
            restart_count: 0,
            firmware_version: 0x2019_1023_0016_3636,
            policy: Policy::from_toml(POLICY).unwrap(),
            selection: BANKS.into_iter().map(|bank| (bank, QUOTED_PCRS.collect())).collect(),
            tamper: None,
        };
        host.references = vec![host.reference()];
        host.boot_aggregate(10);
        host.ima.file("/usr/bin/portcullis-agent", b"agent").file("/usr/bin/portcullis-vmm", b"vmm");
        host
    }

    /// Reference values for what this host's log says now, and for the two programs.
    pub fn reference(&self) -> ReferenceValues {
        let bytes = self.log.bytes();
        let log = EventLog::parse(&bytes).unwrap();
        let mut builder = Self::programs(ReferenceBuilder::new("good", ""));
        builder.recorded(&log, &[Bank::Sha256], &STATIC_PCRS);
        builder.build().unwrap()
    }

    /// The same with the two programs.
    pub fn programs(mut builder: ReferenceBuilder) -> ReferenceBuilder {
        for (path, content) in [("/usr/bin/portcullis-agent", &b"agent"[..]), ("/usr/bin/portcullis-vmm", b"vmm")] {
            builder.ima(path, Bank::Sha256.hash(content).as_slice().try_into().unwrap());
        }
        builder
    }

    /// Puts the boot's entry at the beginning of the IMA list, over so many PCRs.
    pub fn boot_aggregate(&mut self, pcrs: u8) {
        let static_pcrs = self.log_pcrs(Bank::Sha256);
        let zero = vec![0; 32];
        let values: Vec<_> = (0..pcrs).map(|pcr| static_pcrs.get(&pcr).unwrap_or(&zero).as_slice()).collect();
        let digest = Bank::Sha256.hash_parts(&values);
        let mut list = ListBuilder::default();
        list.entry("ima-sig", Bank::Sha256, &digest, b"boot_aggregate", &[b""]);
        if self.ima.entries.is_empty() {
            self.ima = list;
        } else {
            self.ima.entries[0] = list.entries.remove(0);
        }
    }

    /// Makes the log's change look as if the reference values foresaw it, so that only the change itself is judged.
    pub fn accept_log(&mut self) -> &mut Self {
        self.references = vec![self.reference()];
        self.boot_aggregate(10);
        self
    }

    /// TPMT_PUBLIC of its attestation key.
    pub fn ak_public(&self) -> Vec<u8> {
        ak_public(&self.key)
    }

    fn log_bytes(&self) -> Vec<u8> {
        self.raw_log.clone().unwrap_or_else(|| self.log.bytes())
    }

    fn log_pcrs(&self, bank: Bank) -> BTreeMap<u8, Vec<u8>> {
        let bytes = self.log_bytes();
        EventLog::parse(&bytes).map(|log| log.replay(bank)).unwrap_or_default()
    }

    /// The PCRs that the host's TPM has: those to which its logs lead.
    pub fn pcrs(&self) -> PcrValues {
        let ima = self.ima.bytes();
        let ima = ImaList::parse_binary(&ima).unwrap_or_else(|_| ImaList::parse_binary(&[]).unwrap());
        let values = |(&bank, pcrs): (&Bank, &Vec<u8>)| {
            let log = self.log_pcrs(bank);
            let value = |&pcr: &u8| {
                let value = match (pcr, &self.pcr10) {
                    (10, Some(value)) if bank == Bank::Sha256 => value.clone(),
                    (10, _) if self.padded.contains(&bank) => ima.replay(bank, ExtendRule::PaddedSha1),
                    (10, _) => ima.replay(bank, ExtendRule::Digest),
                    _ => log.get(&pcr).cloned().unwrap_or_else(|| vec![0; bank.digest_size()]),
                };
                (pcr, value)
            };
            (bank, pcrs.iter().map(value).collect())
        };
        self.selection.iter().map(values).collect()
    }

    pub fn binding() -> Binding {
        Binding {
            purpose: Purpose::Offline,
            verifier: "verifier".to_owned(),
            host: "host".to_owned(),
            nonce: vec![0x5a; 32],
            tls_spki_sha256: [3; 32],
            body_sha256: Bank::Sha256.hash(b"").try_into().unwrap(),
        }
    }

    /// Evidence for these PCR values.
    pub fn evidence_of(&self, pcrs: PcrValues) -> Evidence {
        let message = self.attest(&pcrs);
        let signature = self.sign(&message);
        let quote = SignedQuote { message, signature, pcrs };
        let mut evidence = Evidence::new(Self::binding(), vec![quote], self.log_bytes(), self.ima.bytes());
        if let Some(tamper) = self.tamper {
            tamper(&mut evidence);
        }
        evidence
    }

    /// Signs as its attestation key: TPMT_SIGNATURE.
    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature = self.key.sign(&SystemRandom::new(), message).unwrap();
        let (r, s) = signature.as_ref().split_at(32);
        [&[0, 0x18, 0, 0x0b][..], &tpm2b(r), &tpm2b(s)].concat()
    }

    /// What TPMS_ATTEST begins with.
    fn attest_header(&self, kind: [u8; 2]) -> Vec<u8> {
        let mut out = [&b"\xffTCG"[..], &kind].concat();
        out.extend(tpm2b(self.ak.qualified_name().unwrap_or(&[0; 34])));
        out.extend(tpm2b(&Self::binding().extra_data()));
        out.extend(self.clock_ms.to_be_bytes());
        out.extend(self.reset_count.to_be_bytes());
        out.extend(self.restart_count.to_be_bytes());
        out.push(u8::from(self.safe));
        out.extend(self.firmware_version.to_be_bytes());
        out
    }

    /// A storage parent in its NULL hierarchy, certified now.
    pub fn certified_parent(&self) -> CertifiedParent {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        // fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, decrypt; AES-128-CFB.
        let public = ecc_public(&key, 0x0003_0472, &[], &[0, 6, 0, 128, 0, 0x43, 0, 0x10]);
        let area = PublicArea::parse(&public).unwrap();
        let mut message = self.attest_header([0x80, 0x17]);
        message.extend(tpm2b(&area.name()));
        let null_hierarchy = 0x4000_0007;
        message.extend(tpm2b(&area.qualified_name_in_hierarchy(null_hierarchy)));
        CertifiedParent::verify(&public, &message, &self.sign(&message), &self.ak, &Self::binding()).unwrap()
    }

    /// TPMS_ATTEST of a quote.
    fn attest(&self, pcrs: &PcrValues) -> Vec<u8> {
        let mut out = self.attest_header([0x80, 0x18]);
        out.extend(u32::try_from(pcrs.len()).unwrap().to_be_bytes());
        let mut values = Vec::new();
        for (bank, of_bank) in pcrs {
            out.extend(bank.tpm_alg_id().to_be_bytes());
            let bits = of_bank.keys().fold(0_u32, |bits, pcr| bits | 1 << pcr);
            out.push(3);
            out.extend(&bits.to_le_bytes()[..3]);
            values.extend(of_bank.values().flatten());
        }
        out.extend(tpm2b(&Bank::Sha256.hash(&values)));
        out
    }

    pub fn appraise_with(&self, evidence: &Evidence, previous: Option<&Judged>) -> Result<Appraisal, Vec<Reason>> {
        self.appraise_by(&self.ak, evidence, previous)
    }

    /// With an attestation key that need not be the enrolled one.
    pub fn appraise_by(
        &self,
        ak: &EnrolledAk,
        evidence: &Evidence,
        previous: Option<&Judged>,
    ) -> Result<Appraisal, Vec<Reason>> {
        let (references, policy) = (self.references.as_slice(), &self.policy);
        let certificates = &CertificateCache::new();
        let context = Context { references, policy, certificates, previous, now: self.now, abandoned: None };
        Ok(judge(evidence, ak, &Self::binding(), &context)?)
    }

    pub fn appraise(&self) -> Result<Appraisal, Vec<Reason>> {
        self.appraise_with(&self.evidence_of(self.pcrs()), None)
    }

    /// The reasons against this host.
    pub fn denied(&self) -> Vec<Reason> {
        self.appraise().expect_err("the host should have been denied")
    }

    /// The codes of the reasons against this host, each once.
    pub fn codes(&self) -> Vec<ReasonCode> {
        codes(&self.denied())
    }
}

pub fn codes(reasons: &[Reason]) -> Vec<ReasonCode> {
    let mut codes: Vec<_> = reasons.iter().map(|reason| reason.code).collect();
    codes.sort_unstable();
    codes.dedup();
    codes
}

fn tpm2b(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// TPMT_PUBLIC of an ECDSA P-256 key: attributes, policy, symmetric cipher and scheme as given.
fn ecc_public(key: &EcdsaKeyPair, attributes: u32, policy: &[u8], middle: &[u8]) -> Vec<u8> {
    let point = key.public_key().as_ref();
    let mut out = vec![0, 0x23, 0, 0x0b];
    out.extend(attributes.to_be_bytes());
    out.extend(tpm2b(policy));
    out.extend(middle);
    // Curve P-256, no key derivation.
    out.extend([0, 3, 0, 0x10]);
    out.extend(tpm2b(&point[1..33]));
    out.extend(tpm2b(&point[33..]));
    out
}

fn ak_public(key: &EcdsaKeyPair) -> Vec<u8> {
    // fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign; ECDSA with SHA-256.
    ecc_public(key, 0x0005_0072, &[], &[0, 0x10, 0, 0x18, 0, 0x0b])
}

fn ek_public(key: &EcdsaKeyPair) -> Vec<u8> {
    // As the TCG's template L-2: AES-128-CFB, no scheme.
    ecc_public(key, 0x0003_00b2, &[1; 32], &[0, 6, 0, 128, 0, 0x43, 0, 0x10])
}
