//! The host's TPM at work: enrols it, and makes evidence about this boot.

use std::path::{Path, PathBuf};

use portcullis_attest::appraise::BootInstance;
use portcullis_attest::binding::{Binding, EMPTY_BODY, Purpose};
use portcullis_attest::evidence::Evidence;
use portcullis_attest::key::{EnrolledAk, PublicArea};
use portcullis_attest::quote::VerifiedQuote;
use portcullis_attest::reason::{Denial, Reason};
use portcullis_attest::release::WrappedKey;
use portcullis_attest::tpm::{AkBlob, ParentHandle, Tpm, TpmError};
use portcullis_verifier::api::{ActivateResponse, ChallengeResponse, EnrolRequest, ReleaseRequest};
use portcullis_verifier::client::{Client, ClientError};
use portcullis_verifier::order::VerifiedOrder;
use portcullis_verifier::reason::{Code, Reason as WireReason, ServiceCode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::config::Config;
use crate::measurements::{self, MeasurementError};
use crate::store::{self, Store, StoreError};

/// The schema of the file that holds the attestation key.
const AK_SCHEMA: &str = "portcullis/ak/1";

/// Why the host cannot prove anything.
#[derive(Debug, thiserror::Error)]
pub enum ProverError {
    /// The TPM does not do what it is asked.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// A log cannot be read.
    #[error(transparent)]
    Measurement(#[from] MeasurementError),
    /// The attestation key's file cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The TPM's keys are not what they have to be.
    #[error("the TPM's keys cannot be used: {}", list(.0))]
    Keys(Denial),
    /// The TPM's own quote does not verify.
    #[error("the TPM's quote does not verify on this host: {}", list(.0))]
    Quote(Denial),
    /// The verifier refuses or cannot be reached.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The verifier that answered is not the one in the trust directory.
    #[error("the verifier calls itself {found:?}, this host quotes only for {expected:?} (see trust_dir)")]
    OtherVerifier {
        /// The id in the trust directory.
        expected: String,
        /// The id in the challenge.
        found: String,
    },
    /// The challenge is no challenge.
    #[error("the verifier's nonce is not 32 bytes in hex")]
    Nonce,
}

impl ProverError {
    /// Whether the verifier may well say something else to fresh evidence.
    pub fn is_temporary(&self) -> bool {
        use ServiceCode::{HistoryMoved, HostConcurrent, NonceExpired};
        let of_evidence =
            |reason: &WireReason| matches!(reason.code, Code::Service(HistoryMoved | HostConcurrent | NonceExpired));
        match self {
            Self::Client(ClientError::Denied { reasons }) => reasons.iter().all(of_evidence),
            Self::Client(error) => error.is_temporary(),
            _ => false,
        }
    }
}

fn list(reasons: &[Reason]) -> String {
    reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Who quotes for whom, over which connection.
#[derive(Debug, Clone)]
pub struct Party {
    /// This host's id.
    pub host: String,
    /// The verifier's id.
    pub verifier: String,
    /// SHA-256 of this agent's TLS key (SubjectPublicKeyInfo).
    pub tls_spki_sha256: [u8; 32],
}

/// The attestation key as it lies in the state directory. Only the TPM that made it can use it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredAk {
    schema: String,
    ek: String,
    blob: AkBlob,
}

/// A TPM with its attestation key, ready to quote.
pub struct Prover {
    /// `None` only after a failed [`Prover::reopen`].
    tpm: Option<Tpm>,
    tcti: String,
    ek_public: Vec<u8>,
    ek_certificate: Option<Vec<u8>>,
    ek: [u8; 32],
    ak_public: Vec<u8>,
    ak: EnrolledAk,
    eventlog: PathBuf,
    ima: PathBuf,
    /// The boot of the last quote: only in the same boot what was judged before may be left out.
    last_boot: Option<BootInstance>,
}

impl std::fmt::Debug for Prover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prover").field("ek", &hex::encode(self.ek)).finish_non_exhaustive()
    }
}

/// What an operator admits: SHA-256 of the endorsement key's SubjectPublicKeyInfo; and whether a certificate is there.
pub fn endorsement(tcti: &str) -> Result<([u8; 32], bool), ProverError> {
    let mut tpm = Tpm::open(tcti)?;
    let public = tpm.ek_public()?;
    Ok((fingerprint(&public)?, tpm.ek_certificate()?.is_some()))
}

fn fingerprint(ek_public: &[u8]) -> Result<[u8; 32], ProverError> {
    use portcullis_attest::reason::ReasonCode;
    let unreadable = |error: &dyn std::fmt::Display| {
        ProverError::Keys(Reason::new(ReasonCode::EkMalformed).found(error.to_string()).into())
    };
    let area = PublicArea::parse(ek_public).map_err(|error| unreadable(&error))?;
    area.fingerprint().map_err(|error| unreadable(&error))
}

impl Prover {
    /// Opens the TPM and loads the attestation key; makes and stores a new one when there is none or when the
    /// stored one belongs to another TPM.
    pub fn open(config: &Config, store: &Store) -> Result<Self, ProverError> {
        let mut tpm = Tpm::open(&config.tcti)?;
        let ek_public = tpm.ek_public()?;
        let ek = fingerprint(&ek_public)?;
        let blob = match stored_ak(&store.ak_path(), &ek)? {
            Some(blob) if load(&mut tpm, &blob) => blob,
            _ => {
                let blob = tpm.create_ak()?;
                let stored = StoredAk { schema: AK_SCHEMA.to_owned(), ek: hex::encode(ek), blob };
                save_ak(&store.ak_path(), &stored)?;
                tpm.load_ak(&stored.blob)?;
                tracing::info!("made a new attestation key");
                stored.blob
            }
        };
        let ak = EnrolledAk::new(&blob.public, &ek_public).map_err(ProverError::Keys)?;
        Ok(Self {
            ek_certificate: tpm.ek_certificate()?,
            tpm: Some(tpm),
            tcti: config.tcti.clone(),
            ek_public,
            ek,
            ak_public: blob.public,
            ak,
            eventlog: config.eventlog.clone(),
            ima: config.ima.clone(),
            last_boot: None,
        })
    }

    /// Opens the TPM again after it failed. The old connection is closed first: without a resource manager there can be
    /// only one.
    pub fn reopen(&mut self, config: &Config, store: &Store) -> Result<(), ProverError> {
        self.tpm = None;
        *self = Self::open(config, store)?;
        Ok(())
    }

    fn tpm(&mut self) -> Result<&mut Tpm, TpmError> {
        let closed = || TpmError::Unavailable { tcti: self.tcti.clone(), problem: "it was closed".to_owned() };
        self.tpm.as_mut().ok_or_else(closed)
    }

    /// The endorsement key's fingerprint.
    pub fn ek(&self) -> [u8; 32] {
        self.ek
    }

    /// The endorsement key (TPMT_PUBLIC).
    pub fn ek_public(&self) -> &[u8] {
        &self.ek_public
    }

    /// The attestation key (TPMT_PUBLIC).
    pub fn ak_public(&self) -> &[u8] {
        &self.ak_public
    }

    /// Proves to the verifier that endorsement key and attestation key are in this TPM, and which PCR banks it has.
    pub fn enrol(&mut self, client: &Client, party: &Party) -> Result<ActivateResponse, ProverError> {
        let challenge = client.enrol(&EnrolRequest {
            host: party.host.clone(),
            ek_certificate: self.ek_certificate.clone(),
            ek_public: self.ek_public.clone(),
            ak_public: self.ak_public.clone(),
        })?;
        let secret = self.tpm()?.activate_credential(&challenge.credential_blob, &challenge.secret)?;
        let binding = Binding {
            purpose: Purpose::Enrol,
            verifier: party.verifier.clone(),
            host: party.host.clone(),
            nonce: Sha256::digest(&secret).to_vec(),
            tls_spki_sha256: party.tls_spki_sha256,
            body_sha256: EMPTY_BODY,
        };
        let quote = self.tpm()?.quote_active(&binding)?;
        let evidence = Evidence::new(binding, vec![quote], Vec::new(), Vec::new());
        Ok(client.activate(&challenge.enrolment, &secret, evidence)?)
    }

    /// Evidence about this boot, bound as `binding` says, and the boot that it is about. The first `ima_from` entries of
    /// IMA's list are left out, unless this is another boot than that of the evidence before.
    pub fn evidence(&mut self, binding: &Binding, ima_from: u64) -> Result<(Evidence, BootInstance), ProverError> {
        let eventlog = measurements::eventlog(&self.eventlog)?;
        let quote = self.tpm()?.quote_active(binding)?;
        let mut evidence = Evidence::new(binding.clone(), vec![quote], eventlog, Vec::new());
        let quote = VerifiedQuote::verify(&evidence, &self.ak, binding).map_err(ProverError::Quote)?;
        let boot = BootInstance::of(&quote);
        let ima_from = left_out(self.last_boot.as_ref(), &boot, ima_from);
        // After the quote: the list then covers at least what it covers.
        (evidence.ima_from, evidence.ima) = measurements::ima(&self.ima, ima_from)?;
        self.last_boot = Some(boot.clone());
        Ok((evidence, boot))
    }

    /// Evidence that answers a fresh challenge of the verifier.
    pub fn answer(
        &mut self,
        client: &Client,
        party: &Party,
        purpose: Purpose,
        body_sha256: [u8; 32],
    ) -> Result<(Evidence, BootInstance), ProverError> {
        let (binding, ima_from) = challenge(client, party, purpose, body_sha256)?;
        self.evidence(&binding, ima_from)
    }

    /// Everything that the verifier wants to see before it releases an order's key, and the parent for that key.
    pub fn release_request(
        &mut self,
        client: &Client,
        party: &Party,
        order: &VerifiedOrder,
    ) -> Result<(ReleaseRequest, ParentHandle), ProverError> {
        let parent = self.tpm()?.null_parent()?;
        let body = portcullis_attest::binding::launch_body(order.jws().as_bytes(), parent.public());
        let (launch, ima_from) = challenge(client, party, Purpose::Launch, Sha256::digest(body).into())?;
        let certify = self.tpm()?.certify_parent(&parent, &Binding { purpose: Purpose::Parent, ..launch.clone() })?;
        let (evidence, _) = self.evidence(&launch, ima_from)?;
        let request = ReleaseRequest {
            host: party.host.clone(),
            order: order.jws().to_owned(),
            evidence,
            parent_public: parent.public().to_vec(),
            certify_attest: certify.message,
            certify_signature: certify.signature,
        };
        Ok((request, parent))
    }

    /// Opens a released key; possible only in this TPM, in this boot, in the state that was quoted.
    pub fn unseal(&mut self, parent: ParentHandle, wrapped: &WrappedKey) -> Result<Zeroizing<Vec<u8>>, ProverError> {
        Ok(self.tpm()?.import_unseal(parent, wrapped)?)
    }
}

/// Asks for a nonce and binds it to this host, this connection and the one verifier that this host quotes for. Gives also how
/// many entries of IMA's list the verifier does not need to see again.
fn challenge(
    client: &Client,
    party: &Party,
    purpose: Purpose,
    body_sha256: [u8; 32],
) -> Result<(Binding, u64), ProverError> {
    answer_to(client.challenge(&party.host, purpose)?, party, purpose, body_sha256)
}

/// What the answer to a challenge is bound to.
fn answer_to(
    challenge: ChallengeResponse,
    party: &Party,
    purpose: Purpose,
    body_sha256: [u8; 32],
) -> Result<(Binding, u64), ProverError> {
    if challenge.verifier != party.verifier {
        return Err(ProverError::OtherVerifier { expected: party.verifier.clone(), found: challenge.verifier });
    }
    let nonce = hex::decode(&challenge.nonce).ok().filter(|nonce| nonce.len() == 32).ok_or(ProverError::Nonce)?;
    let binding = Binding {
        purpose,
        verifier: party.verifier.clone(),
        host: party.host.clone(),
        nonce,
        tls_spki_sha256: party.tls_spki_sha256,
        body_sha256,
    };
    Ok((binding, challenge.ima_from))
}

/// How many entries of IMA's list are not sent again, of those that the verifier has judged: none after a reset, when the
/// list is another one.
fn left_out(last: Option<&BootInstance>, now: &BootInstance, judged: u64) -> u64 {
    if last == Some(now) { judged } else { 0 }
}

/// A binding for evidence that goes into a file: no connection, no body.
pub fn offline_binding(party: &Party, nonce: Vec<u8>) -> Binding {
    Binding {
        purpose: Purpose::Offline,
        verifier: party.verifier.clone(),
        host: party.host.clone(),
        nonce,
        tls_spki_sha256: party.tls_spki_sha256,
        body_sha256: EMPTY_BODY,
    }
}

/// The stored key, if it is one and belongs to this TPM.
fn stored_ak(path: &Path, ek: &[u8; 32]) -> Result<Option<AkBlob>, StoreError> {
    let Some(bytes) = store::read(path)? else { return Ok(None) };
    match serde_json::from_slice::<StoredAk>(&bytes) {
        Ok(stored) if stored.schema == AK_SCHEMA && stored.ek == hex::encode(ek) => Ok(Some(stored.blob)),
        Ok(_) => {
            tracing::warn!(path = %path.display(), "the stored attestation key belongs to another TPM");
            Ok(None)
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the stored attestation key is damaged");
            Ok(None)
        }
    }
}

fn save_ak(path: &Path, stored: &StoredAk) -> Result<(), StoreError> {
    let json = serde_json::to_vec_pretty(stored).map_err(|error| StoreError::Io {
        action: "write",
        path: path.to_owned(),
        source: error.into(),
    })?;
    store::write(path, &json)
}

/// Whether the TPM takes the stored key; one that was cleared does not.
fn load(tpm: &mut Tpm, blob: &AkBlob) -> bool {
    match tpm.load_ak(blob) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "the TPM does not take the stored attestation key");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_verifier_of_this_host_is_answered_and_only_a_whole_nonce() {
        let party = Party { host: "h1".to_owned(), verifier: "v1".to_owned(), tls_spki_sha256: [7; 32] };
        let answer = |verifier: &str, nonce: &str| {
            let (verifier, nonce) = (verifier.to_owned(), nonce.to_owned());
            let challenge = ChallengeResponse { nonce, verifier, ima_from: 3, expires_in_s: 60 };
            answer_to(challenge, &party, Purpose::Attest, EMPTY_BODY)
        };
        let whole = "5a".repeat(32);
        let (binding, ima_from) = answer("v1", &whole).unwrap();
        assert_eq!((binding.nonce, binding.verifier.as_str(), binding.host.as_str()), (vec![0x5a; 32], "v1", "h1"));
        assert_eq!((binding.tls_spki_sha256, ima_from), ([7; 32], 3));
        assert!(matches!(answer("v2", &whole), Err(ProverError::OtherVerifier { .. })));
        for nonce in ["", &whole[2..], &format!("{whole}5a"), &whole.replace('5', "x")] {
            assert!(matches!(answer("v1", nonce), Err(ProverError::Nonce)), "{nonce}");
        }
    }

    #[test]
    fn a_stored_key_is_of_this_tpm_and_of_this_schema() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ak.json");
        let stored = |schema: &str, ek: &[u8; 32]| {
            let blob = AkBlob { public: vec![1], private: vec![2] };
            save_ak(&path, &StoredAk { schema: schema.to_owned(), ek: hex::encode(ek), blob }).unwrap();
            stored_ak(&path, &[7; 32]).unwrap().is_some()
        };
        assert!(stored_ak(&path, &[7; 32]).unwrap().is_none());
        assert!(stored(AK_SCHEMA, &[7; 32]));
        assert!(!stored(AK_SCHEMA, &[8; 32]) && !stored("portcullis/ak/0", &[7; 32]));
    }

    #[test]
    fn nothing_is_left_out_after_a_reset() {
        let boot = |reset_count| BootInstance { ek: Some("00".repeat(32)), reset_count, restart_count: 0 };
        assert_eq!(left_out(Some(&boot(1)), &boot(1), 9), 9);
        assert_eq!(left_out(Some(&boot(1)), &boot(2), 9), 0);
        assert_eq!(left_out(None, &boot(1), 9), 0);
    }
}
