//! What the tests on software TPMs share: an enrolled TPM, and bindings.
#![allow(dead_code, reason = "every test file uses some of it")]

use portcullis_attest::binding::{Binding, EMPTY_BODY, Purpose};
use portcullis_attest::evidence::{Evidence, SignedQuote};
use portcullis_attest::key::{Bank, EnrolledAk};
use portcullis_attest::reason::{Reason, ReasonCode};
use portcullis_attest::tpm::{AkBlob, Tpm};
use portcullis_firmware_fixtures::tpm::Swtpm;

/// A software TPM with an attestation key loaded. Fields are dropped in this order: the connection before the TPM.
pub struct Host {
    pub tpm: Tpm,
    pub ak_blob: AkBlob,
    pub ak: EnrolledAk,
    pub ek_public: Vec<u8>,
    pub swtpm: Swtpm,
}

impl Host {
    pub fn new() -> Self {
        let swtpm = Swtpm::new().expect("swtpm");
        let mut tpm = Tpm::open(&swtpm.tcti()).expect("open");
        let ek_public = tpm.ek_public().expect("EK");
        let ak_blob = tpm.create_ak().expect("AK");
        tpm.load_ak(&ak_blob).expect("load AK");
        let ak = EnrolledAk::new(&ak_blob.public, &ek_public).expect("AK as it must be");
        Self { tpm, ak_blob, ak, ek_public, swtpm }
    }

    /// Turns the machine off and on, and loads the attestation key again.
    pub fn power_cycle(self) -> Self {
        let Self { tpm, ak_blob, ak, ek_public, mut swtpm } = self;
        drop(tpm);
        swtpm.power_cycle().expect("power cycle");
        let mut tpm = Tpm::open(&swtpm.tcti()).expect("open");
        tpm.load_ak(&ak_blob).expect("load AK");
        Self { tpm, ak_blob, ak, ek_public, swtpm }
    }

    pub fn evidence(&mut self, binding: &Binding, selection: &[(Bank, Vec<u8>)]) -> Evidence {
        let quote = self.tpm.quote(binding, selection).expect("quote");
        evidence(binding, vec![quote])
    }
}

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
    vec![(Bank::Sha256, (0..=10).chain([14]).collect()), (Bank::Sha384, (0..=9).chain([14]).collect())]
}

pub fn codes(reasons: &[Reason]) -> Vec<ReasonCode> {
    reasons.iter().map(|reason| reason.code).collect()
}
