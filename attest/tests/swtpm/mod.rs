//! What the tests on software TPMs share: an enrolled TPM, and bindings.
#![allow(dead_code, reason = "every test file uses some of it")]

use portcullis_attest::appraise::{Appraisal, Context, Policy, QUOTED_PCRS, STATIC_PCRS, appraise};
use portcullis_attest::binding::{Binding, EMPTY_BODY, Purpose};
use portcullis_attest::eventlog::{CertificateCache, EventLog, EventType};
use portcullis_attest::evidence::{Evidence, SignedQuote};
use portcullis_attest::key::{Bank, EnrolledAk};
use portcullis_attest::quote::VerifiedQuote;
use portcullis_attest::reason::{Reason, ReasonCode};
use portcullis_attest::reference::ReferenceBuilder;
use portcullis_attest::tpm::{AkBlob, Tpm};
use portcullis_firmware_fixtures::tpm::Swtpm;

/// A software TPM with an attestation key loaded. Fields are dropped in this order: the connection before the TPM.
pub struct Host {
    pub tpm: Tpm,
    pub ak_blob: AkBlob,
    pub ak: EnrolledAk,
    pub ek_public: Vec<u8>,
    pub swtpm: Swtpm,
    /// What was measured since the TPM was reset, as a firmware event log.
    log: Vec<u8>,
    /// The banks into which the firmware measures.
    pub banks: Vec<Bank>,
}

impl Host {
    pub fn new() -> Self {
        let swtpm = Swtpm::new().expect("swtpm");
        let mut tpm = Tpm::open(&swtpm.tcti()).expect("open");
        let ek_public = tpm.ek_public().expect("EK");
        let ak_blob = tpm.create_ak().expect("AK");
        tpm.load_ak(&ak_blob).expect("load AK");
        let ak = EnrolledAk::new(&ak_blob.public, &ek_public).expect("AK as it must be");
        Self { tpm, ak_blob, ak, ek_public, swtpm, log: Vec::new(), banks: BANKS.to_vec() }
    }

    /// Turns the machine off and on, and loads the attestation key again.
    pub fn power_cycle(self) -> Self {
        let Self { tpm, ak_blob, ak, ek_public, mut swtpm, .. } = self;
        drop(tpm);
        swtpm.power_cycle().expect("power cycle");
        let mut tpm = Tpm::open(&swtpm.tcti()).expect("open");
        tpm.load_ak(&ak_blob).expect("load AK");
        Self { tpm, ak_blob, ak, ek_public, swtpm, log: Vec::new(), banks: BANKS.to_vec() }
    }

    pub fn evidence(&mut self, binding: &Binding, selection: &[(Bank, Vec<u8>)]) -> Evidence {
        let quote = self.tpm.quote(binding, selection).expect("quote");
        evidence(binding, vec![quote])
    }
}

impl Host {
    /// Extends a PCR, and logs that.
    pub fn measure(&mut self, pcr: u8, event_type: EventType, data: &[u8]) {
        let digests: Vec<_> = self.banks.iter().map(|bank| (*bank, bank.hash(data))).collect();
        self.tpm.extend(pcr, &digests).expect("extend");
        if self.log.is_empty() {
            let mut spec_id = b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02".to_vec();
            spec_id.extend(u32::try_from(self.banks.len()).unwrap().to_le_bytes());
            for bank in &self.banks {
                spec_id.extend(bank.tpm_alg_id().to_le_bytes());
                spec_id.extend(u16::try_from(bank.digest_size()).unwrap().to_le_bytes());
            }
            spec_id.push(0);
            let size = u32::try_from(spec_id.len()).unwrap().to_le_bytes();
            self.log = [&[0; 4][..], &EventType::NO_ACTION.0.to_le_bytes(), &[0; 20], &size, &spec_id].concat();
        }
        self.log.extend(u32::from(pcr).to_le_bytes());
        self.log.extend(event_type.0.to_le_bytes());
        self.log.extend(u32::try_from(digests.len()).unwrap().to_le_bytes());
        for (bank, digest) in digests {
            self.log.extend(bank.tpm_alg_id().to_le_bytes());
            self.log.extend(digest);
        }
        self.log.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        self.log.extend(data);
    }

    /// Boots the least that is judged: a firmware that measures its separators.
    pub fn boot(&mut self) {
        for pcr in 0..=7 {
            self.measure(pcr, EventType::SEPARATOR, &[0; 4]);
        }
    }

    /// The appraisal of this boot, quoted in `selection` and judged in `bank`, by reference values that were recorded of it.
    pub fn appraise(&mut self, bank: Bank, selection: &[(Bank, Vec<u8>)]) -> Appraisal {
        let asked = binding(Purpose::Launch);
        let mut evidence = self.evidence(&asked, selection);
        evidence.eventlog.clone_from(&self.log);
        let log = EventLog::parse(&self.log).expect("a log");
        let mut builder = ReferenceBuilder::new("recorded", "this boot");
        builder.recorded(&log, &self.banks, &STATIC_PCRS);
        let policy = format!(
            "schema = \"portcullis/policy/1\"\nname = \"test\"\nbank = \"{bank}\"\nreferences = [\"recorded\"]\n\
             hosts = [\"*\"]\nunsigned_references = true\n"
        );
        let context = Context {
            references: &[builder.build().expect("values of a boot")],
            policy: &Policy::from_toml(&policy).expect("a policy"),
            certificates: &CertificateCache::new(),
            previous: None,
            now: 0,
            abandoned: None,
        };
        let quote = VerifiedQuote::verify(&evidence, &self.ak, &asked).expect("a good quote");
        appraise(quote, &evidence, &context).expect("a good boot")
    }
}

/// The banks into which hosts measure.
const BANKS: [Bank; 2] = [Bank::Sha256, Bank::Sha384];

pub fn binding(purpose: Purpose) -> Binding {
    Binding {
        purpose,
        verifier: "verifier.example".into(),
        host: "honest".into(),
        nonce: vec![0x5a; 32],
        tls_spki_sha256: [7; 32],
        body_sha256: EMPTY_BODY,
    }
}

pub fn evidence(binding: &Binding, quotes: Vec<SignedQuote>) -> Evidence {
    Evidence::new(binding.clone(), quotes, Vec::new(), Vec::new())
}

/// What the project's hosts quote.
pub fn selection() -> Vec<(Bank, Vec<u8>)> {
    [Bank::Sha1, Bank::Sha256, Bank::Sha384].map(|bank| (bank, QUOTED_PCRS.collect())).to_vec()
}

pub fn codes(reasons: &[Reason]) -> Vec<ReasonCode> {
    reasons.iter().map(|reason| reason.code).collect()
}
