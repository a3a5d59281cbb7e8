//! Enrolment: a TPM proves that the attestation key lives in it, and waits for an operator to let it in.

use aws_lc_rs::rand;
use portcullis_attest::appraise::PinnedBanks;
use portcullis_attest::binding::{Binding, EMPTY_BODY, Purpose};
use portcullis_attest::endorsement::{EndorsementKey, make_credential};
use portcullis_attest::key::EnrolledAk;
use portcullis_attest::quote::VerifiedQuote;
use portcullis_attest::reason::Denial;
use sha2::{Digest, Sha256};
use std::time::SystemTime;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::Service;
use super::http::{Answer, Refusal};
use super::store::{Enrolment, Pending};
use crate::api;
use crate::name;
use crate::reason::{Reason, ServiceCode};

/// Fills an array with random bytes of the system.
pub fn random<const N: usize>() -> Answer<[u8; N]> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| Refusal::Internal("the system gives no random bytes".into()))?;
    Ok(bytes)
}

/// What stands against an enrolment, as a denial.
fn refuse(codes: Vec<ServiceCode>) -> Answer<()> {
    if codes.is_empty() {
        return Ok(());
    }
    Err(Refusal::Denied(codes.into_iter().map(Reason::new).collect()))
}

/// `POST /v1/enrol`.
pub fn begin(service: &Service, key: [u8; 32], request: &api::EnrolRequest) -> Answer<api::EnrolResponse> {
    name::check("host", &request.host).map_err(|e| Refusal::malformed(e.to_string()))?;
    let certificate = request.ek_certificate.as_deref();
    let ek = EndorsementKey::check(&request.ek_public, certificate, &[], service.rules.roots(), SystemTime::now());
    let ak = EnrolledAk::new(&request.ak_public, &request.ek_public);
    let (ek, ak) = match (ek, ak) {
        (Ok(ek), Ok(ak)) => (ek, ak),
        (ek, ak) => {
            let reasons = [ek.err(), ak.err()].into_iter().flatten().flatten().collect::<Vec<_>>();
            tracing::info!(host = request.host, "enrolment refused");
            return Err(Denial::from(reasons).into());
        }
    };
    let secret = Zeroizing::new(random::<32>()?);
    let credential = make_credential(&request.ek_public, ak.name(), secret.as_slice())
        .map_err(|e| Refusal::malformed(format!("no credential can be made for this endorsement key: {e}")))?;
    let id = hex::encode(random::<16>()?);
    let now = Service::now();
    let pending = Pending {
        enrolment: Enrolment {
            host: request.host.clone(),
            ek: hex::encode(ek.fingerprint()),
            ek_public: request.ek_public.clone(),
            certificate: if ek.is_certified() { "verified" } else { "none" }.to_owned(),
            ek_certificate: request.ek_certificate.clone(),
            ak_public: request.ak_public.clone(),
            ak_name: hex::encode(ak.name()),
        },
        secret_sha256: Sha256::digest(secret.as_slice()).into(),
        tls_spki: key,
        expires_at: now.saturating_add(service.config.nonce_ttl_s),
    };
    refuse(service.store.begin_enrolment(&id, &pending, now)?)?;
    tracing::info!(host = request.host, ek = pending.enrolment.ek, "enrolment begun");
    Ok(api::EnrolResponse { enrolment: id, credential_blob: credential.blob, secret: credential.secret })
}

/// `POST /v1/enrol/{enrolment}/activate`.
pub fn activate(
    service: &Service,
    key: [u8; 32],
    id: &str,
    request: &api::ActivateRequest,
) -> Answer<api::ActivateResponse> {
    let now = Service::now();
    // Taken out before anything is compared: a wrong answer is the last one.
    let pending = service.store.take_enrolment(id)?.filter(|pending| pending.expires_at > now);
    let pending = pending.ok_or_else(|| Refusal::code(ServiceCode::EnrolmentUnknown))?;
    if pending.tls_spki != key {
        return Err(Refusal::code(ServiceCode::EnrolmentOtherKey));
    }
    // Digests of 32 random bytes are compared, and in constant time, so that nothing is learnt from how long it takes.
    let answer: [u8; 32] = Sha256::digest(&request.secret).into();
    if !bool::from(answer.ct_eq(&pending.secret_sha256)) {
        tracing::warn!(host = pending.enrolment.host, "credential challenge not solved");
        return Err(Refusal::code(ServiceCode::EnrolmentWrongSecret));
    }
    let new = &pending.enrolment;
    let banks =
        banks(service, &pending, request).inspect_err(|_| tracing::warn!(host = new.host, "banks not proved"))?;
    refuse(service.store.enrol(new, &banks, now)?)?;
    let admitted = service.store.host(&new.host, now)?.is_some_and(|host| host.admitted);
    let state = if admitted { api::Admission::Admitted } else { api::Admission::Pending };
    tracing::info!(host = new.host, ek = new.ek, certificate = new.certificate, %banks, ?state, "host enrolled");
    Ok(api::ActivateResponse { host: new.host.clone(), state, ek_fingerprint: new.ek.clone() })
}

/// The PCR banks that the TPM has now: what later quotes are held against. The quote answers this enrolment, whose secret
/// only the TPM that made it could open.
fn banks(service: &Service, pending: &Pending, request: &api::ActivateRequest) -> Answer<PinnedBanks> {
    let enrolment = &pending.enrolment;
    let ak = EnrolledAk::new(&enrolment.ak_public, &enrolment.ek_public)?;
    let binding = Binding {
        purpose: Purpose::Enrol,
        verifier: service.id.clone(),
        host: enrolment.host.clone(),
        nonce: pending.secret_sha256.to_vec(),
        tls_spki_sha256: pending.tls_spki,
        body_sha256: EMPTY_BODY,
    };
    let quote = VerifiedQuote::verify(&request.evidence, &ak, &binding)?;
    Ok(PinnedBanks::of(&quote)?)
}
