//! A host: a TPM of its own that went through a boot, and what an agent does with it.

use portcullis_attest::binding::{Binding, Purpose, launch_body};
use portcullis_attest::evidence::Evidence;
use portcullis_attest::tpm::{AkBlob, ParentHandle, Tpm};
use portcullis_firmware_fixtures::tpm::Swtpm;
use portcullis_verifier::api;
use portcullis_verifier::client::{Client, ClientError, Identity};
use portcullis_verifier::receipt::{Event, Receipt, SCHEMA};
use sha2::{Digest, Sha256};

use super::boot::Boot;
use super::service::{Running, VERIFIER};

/// A host.
pub struct Host {
    pub name: String,
    pub swtpm: Swtpm,
    pub tpm: Option<Tpm>,
    pub boot: Boot,
    pub identity: Identity,
    pub ak: AkBlob,
}

/// The key that opens a volume in the tests.
pub const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";

impl Host {
    /// A host that went through the good boot.
    pub fn new(name: &str) -> Self {
        Self::booted(name, Boot::good())
    }

    /// A host that went through this boot.
    pub fn booted(name: &str, mut boot: Boot) -> Self {
        let swtpm = Swtpm::new().unwrap();
        boot.extend(&swtpm);
        let mut tpm = Tpm::open(&swtpm.tcti()).unwrap();
        let ak = tpm.create_ak().unwrap();
        tpm.load_ak(&ak).unwrap();
        let identity = Identity::new_for_host(name).unwrap();
        Self { name: name.to_owned(), swtpm, tpm: Some(tpm), boot, identity, ak }
    }

    /// Its TPM.
    pub fn tpm(&mut self) -> &mut Tpm {
        self.tpm.as_mut().unwrap()
    }

    /// Runs a program that IMA measures.
    pub fn program(&mut self, path: &str, content: &[u8]) {
        self.tpm = None;
        self.boot.program(path, content);
        self.boot.extend(&self.swtpm);
        self.open_tpm();
    }

    /// Extends a PCR with something that stands in no log.
    pub fn measure(&mut self, pcr: u32, content: &[u8]) {
        self.tpm = None;
        self.swtpm
            .transact("TPM2_PCR_Extend", &super::boot::extend_command(pcr, content, &super::boot::BANKS))
            .unwrap();
        self.open_tpm();
    }

    fn open_tpm(&mut self) {
        let mut tpm = Tpm::open(&self.swtpm.tcti()).unwrap();
        tpm.load_ak(&self.ak).unwrap();
        self.tpm = Some(tpm);
    }

    /// Restarts it through `boot`, with a new TLS key.
    pub fn reboot(&mut self, mut boot: Boot) {
        self.tpm = None;
        self.swtpm.power_cycle().unwrap();
        boot.extend(&self.swtpm);
        self.boot = boot;
        self.open_tpm();
        self.identity = Identity::new_for_host(&self.name).unwrap();
    }

    /// A client with its TLS key.
    pub fn client(&self, service: &Running) -> Client {
        service.client(Some(&self.identity))
    }

    /// What it enrols with.
    pub fn enrol_request(&mut self) -> api::EnrolRequest {
        let (host, ak_public) = (self.name.clone(), self.ak.public.clone());
        let ek_certificate = self.tpm().ek_certificate().unwrap();
        assert!(ek_certificate.is_some(), "the TPM has no EK certificate");
        api::EnrolRequest { host, ek_certificate, ek_public: self.tpm().ek_public().unwrap(), ak_public }
    }

    /// Enrols.
    pub fn enrol(&mut self, service: &Running) -> Result<api::ActivateResponse, ClientError> {
        let request = self.enrol_request();
        let client = self.client(service);
        let challenge = client.enrol(&request)?;
        let secret = self.tpm().activate_credential(&challenge.credential_blob, &challenge.secret).unwrap();
        let evidence = self.enrolment_evidence(&secret);
        client.activate(&challenge.enrolment, &secret, evidence)
    }

    /// What shows, for an enrolment with this secret, which banks the TPM has.
    pub fn enrolment_evidence(&mut self, secret: &[u8]) -> Evidence {
        let binding = self.binding(Purpose::Enrol, &hex::encode(Sha256::digest(secret)), &[]);
        let quote = self.tpm().quote_active(&binding).unwrap();
        Evidence::new(binding, vec![quote], Vec::new(), Vec::new())
    }

    /// Enrols, is admitted and attests.
    pub fn join(&mut self, service: &Running) -> api::AttestResponse {
        let enrolled = self.enrol(service).unwrap();
        service.person("olga").admit(&enrolled.ek_fingerprint, &self.name, "a test").unwrap();
        self.attest(service).unwrap()
    }

    /// What its quotes bind.
    pub fn binding(&self, purpose: Purpose, nonce: &str, body: &[u8]) -> Binding {
        Binding {
            purpose,
            verifier: VERIFIER.to_owned(),
            host: self.name.clone(),
            nonce: hex::decode(nonce).unwrap(),
            tls_spki_sha256: self.identity.spki_sha256(),
            body_sha256: Sha256::digest(body).into(),
        }
    }

    /// Evidence with this binding, its IMA list whole.
    pub fn evidence(&mut self, binding: &Binding) -> Evidence {
        self.evidence_after(binding, 0)
    }

    /// Evidence with this binding that leaves out so many IMA entries.
    pub fn evidence_after(&mut self, binding: &Binding, left_out: u64) -> Evidence {
        let quotes = vec![self.tpm().quote_active(binding).unwrap()];
        let mut evidence = Evidence::new(binding.clone(), quotes, self.boot.eventlog(), self.boot.ima_after(left_out));
        evidence.ima_from = left_out;
        evidence
    }

    /// Evidence for a new challenge of `purpose`.
    pub fn answer(&mut self, client: &Client, purpose: Purpose, body: &[u8]) -> Result<Evidence, ClientError> {
        let challenge = client.challenge(&self.name, purpose)?;
        assert_eq!(challenge.verifier, VERIFIER);
        let binding = self.binding(purpose, &challenge.nonce, body);
        Ok(self.evidence_after(&binding, challenge.ima_from))
    }

    /// Attests.
    pub fn attest(&mut self, service: &Running) -> Result<api::AttestResponse, ClientError> {
        let client = self.client(service);
        let evidence = self.answer(&client, Purpose::Attest, &[])?;
        client.attest(&self.name, evidence)
    }

    /// Everything that asks for an order's key, with the parent that will open it.
    pub fn release_request(
        &mut self,
        client: &Client,
        order: &str,
    ) -> Result<(api::ReleaseRequest, ParentHandle), ClientError> {
        let challenge = client.challenge(&self.name, Purpose::Launch)?;
        let parent = self.tpm().null_parent().unwrap();
        let body = launch_body(order.as_bytes(), parent.public());
        let binding = self.binding(Purpose::Launch, &challenge.nonce, &body);
        let evidence = self.evidence_after(&binding, challenge.ima_from);
        let certify = Binding { purpose: Purpose::Parent, ..binding };
        let certified = self.tpm().certify_parent(&parent, &certify).unwrap();
        let request = api::ReleaseRequest {
            host: self.name.clone(),
            order: order.to_owned(),
            evidence,
            parent_public: parent.public().to_vec(),
            certify_attest: certified.message,
            certify_signature: certified.signature,
        };
        Ok((request, parent))
    }

    /// Asks for an order's key and opens it.
    pub fn release(&mut self, service: &Running, placed: &api::LaunchResponse) -> Result<Vec<u8>, ClientError> {
        let client = self.client(service);
        let (request, parent) = self.release_request(&client, &placed.order)?;
        let released = client.release(&placed.order_id, &request)?;
        Ok(self.tpm().import_unseal(parent, &released.wrapped).unwrap().to_vec())
    }

    /// The receipt's JSON.
    pub fn receipt_json(&self, placed: &api::LaunchResponse, event: Event) -> String {
        let receipt = Receipt {
            schema: SCHEMA.to_owned(),
            order: placed.order_id.clone(),
            host: self.name.clone(),
            vm: "web".to_owned(),
            event,
            detail: "a test".to_owned(),
        };
        serde_json::to_string(&receipt).unwrap()
    }

    /// Reports what became of an order.
    pub fn receipt(
        &mut self,
        service: &Running,
        placed: &api::LaunchResponse,
        event: Event,
    ) -> Result<(), ClientError> {
        let client = self.client(service);
        let receipt = self.receipt_json(placed, event);
        let evidence = self.answer(&client, Purpose::Receipt, receipt.as_bytes())?;
        client.receipt(&placed.order_id, &api::ReceiptRequest { host: self.name.clone(), receipt, evidence }).map(drop)
    }
}

/// What a tenant asks for in the tests.
pub fn launch_request(volume: &str) -> api::LaunchRequest {
    let file = |path: &str| portcullis_verifier::order::VolumeFile { path: path.into(), sha256: "00".repeat(32) };
    api::LaunchRequest {
        name: "web".into(),
        vcpus: 1,
        mem_mib: 128,
        cmdline: "console=ttyS0".into(),
        kernel: file("vmlinuz"),
        initrd: Some(file("initrd")),
        volume: volume.into(),
        host: None,
    }
}

/// The codes of a denial; anything else fails the test.
pub fn codes<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> Vec<String> {
    match outcome {
        Err(ClientError::Denied { reasons }) => {
            assert!(!reasons.is_empty(), "a denial without a reason");
            reasons.iter().map(|reason| reason.code.to_string()).collect()
        }
        other => panic!("expected a denial, got {other:?}"),
    }
}

/// The status and code of a refused call; anything else fails the test.
pub fn refusal<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> (u16, String) {
    match outcome {
        Err(ClientError::Refused { status, code, .. }) => (status, code),
        other => panic!("expected a refused call, got {other:?}"),
    }
}
