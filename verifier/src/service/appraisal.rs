//! Challenges, and the judgement of the evidence that answers them.

use portcullis_attest::appraise::{Appraisal, BootInstance, Context, Judged, appraise};
use portcullis_attest::binding::{Binding, Purpose};
use portcullis_attest::endorsement::EndorsementKey;
use portcullis_attest::evidence::Evidence;
use portcullis_attest::key::EnrolledAk;
use portcullis_attest::quote::VerifiedQuote;
use portcullis_attest::reason::{Reason as EvidenceReason, ReasonCode};
use portcullis_attest::result::{AttestationResult, ResultContext, TYP};
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use super::Service;
use super::enrol::random;
use super::http::{Answer, Refusal};
use super::store::{HostRow, Judgement, Nonce};
use crate::api;
use crate::reason::{Reason, ServiceCode};

/// `POST /v1/challenges`.
pub fn challenge(service: &Service, key: [u8; 32], request: &api::ChallengeRequest) -> Answer<api::ChallengeResponse> {
    if !matches!(request.purpose, Purpose::Attest | Purpose::Launch | Purpose::Receipt) {
        return Err(Refusal::malformed("purpose must be attest, launch or receipt"));
    }
    let now = Service::now();
    let host = enrolled(service, &request.host, now)?;
    // Anybody can ask in the host's name: how far it was judged is for the key that it quoted.
    let ima_from = match host.tls_spki {
        Some(quoted) if quoted == key => service.rules.ima_from(&host.host, judged(&host)?.as_ref()),
        _ => 0,
    };
    let nonce = random::<32>()?;
    let ttl = service.config.nonce_ttl_s;
    let issued = Nonce {
        host: request.host.clone(),
        purpose: request.purpose.as_str().to_owned(),
        tls_spki: key,
        expires_at: now.saturating_add(ttl),
    };
    if !service.store.open_nonce(&nonce, &issued, now)? {
        return Err(Refusal::code(ServiceCode::NoncesFull));
    }
    let nonce = hex::encode(nonce);
    Ok(api::ChallengeResponse { nonce, verifier: service.id.clone(), ima_from, expires_in_s: ttl })
}

/// What was judged of the host before.
fn judged(host: &HostRow) -> Answer<Option<Judged>> {
    let read = |json: &String| serde_json::from_str(json).map_err(|e| Refusal::Internal(e.to_string()));
    host.judged.as_ref().map(read).transpose()
}

/// The host, if it is enrolled.
pub fn enrolled(service: &Service, host: &str, now: u64) -> Answer<HostRow> {
    service.store.host(host, now)?.ok_or_else(|| Refusal::code(ServiceCode::HostUnknown))
}

/// Who sends evidence.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// The TLS key of the connection that it came over.
    pub key: [u8; 32],
    /// Becomes true when nobody waits for the answer any more.
    pub gone: &'a AtomicBool,
}

/// What a piece of evidence must answer.
pub struct Question<'a> {
    /// The host that it is about.
    pub host: &'a HostRow,
    /// What for.
    pub purpose: Purpose,
    /// What it speaks of.
    pub body: &'a [u8],
    /// Who sent it.
    pub caller: Caller<'a>,
}

/// Evidence that was judged.
pub struct Judgment {
    /// The verdict, if the evidence itself is good.
    pub appraisal: Option<Appraisal>,
    /// What was judged of the host before.
    pub previous: Option<Judged>,
    /// The enrolled AK, if it is one.
    pub ak: Option<EnrolledAk>,
    /// What the quotes had to bind.
    pub binding: Binding,
    /// Everything that is wrong.
    pub reasons: Vec<Reason>,
    /// Whether it really is that host's TPM that answers an open challenge: only then does bad evidence tell something
    /// about the host. Else anyone could have a host closed by sending rubbish in its name.
    authentic: bool,
}

/// Takes the challenge that the evidence says it answers. It is gone afterwards, whatever comes of the evidence.
fn take_nonce(service: &Service, question: &Question<'_>, nonce: &[u8], now: u64) -> Answer<Vec<Reason>> {
    let Some(issued) = service.store.take_nonce(nonce)? else {
        return Ok(vec![ServiceCode::NonceUnknown.into()]);
    };
    let mut reasons = Vec::new();
    if issued.has_expired(service.config.nonce_ttl_s, now) {
        reasons.push(ServiceCode::NonceExpired.into());
    }
    if issued.host != question.host.host {
        reasons.push(Reason::new(ServiceCode::NonceOtherHost).values(&question.host.host, &issued.host));
    }
    if issued.purpose != question.purpose.as_str() {
        reasons.push(Reason::new(ServiceCode::NonceOtherPurpose).values(question.purpose.as_str(), &issued.purpose));
    }
    if issued.tls_spki != question.caller.key {
        reasons.push(ServiceCode::NonceOtherKey.into());
    }
    Ok(reasons)
}

/// Why evidence leaves out other IMA entries than it may, if it does. That says nothing against the host: what it was asked
/// for may be no longer so.
fn history_moved(
    service: &Service,
    host: &HostRow,
    evidence: &Evidence,
    previous: Option<&Judged>,
    quote: &VerifiedQuote,
) -> Option<Reason> {
    let boot = BootInstance::of(quote);
    let previous = previous.filter(|previous| previous.boot == boot);
    let (left_out, judged) = (evidence.ima_from, service.rules.ima_from(&host.host, previous));
    let expected = || if judged == 0 { "0".to_owned() } else { format!("0 or {judged}") };
    (left_out != 0 && left_out != judged)
        .then(|| Reason::new(ServiceCode::HistoryMoved).values(expected(), left_out.to_string()))
}

/// What was revoked since the host enrolled: its endorsement key, its certificate, an authority of its chain. Without the
/// authorities nobody can tell, so a certificate that no longer leads to a configured one counts as revoked, too. Whatever
/// else the chain would not pass today (a certificate that has expired since, a list that should have been replaced) was
/// good when it enrolled, and an operator admitted it.
pub(super) fn revoked(service: &Service, host: &HostRow) -> Vec<Reason> {
    let certificate = host.ek_certificate.as_deref();
    let now = SystemTime::now();
    let checked = EndorsementKey::check(&host.ek_public, certificate, &[], service.rules.roots(), now);
    let reasons = checked.err().into_iter().flatten();
    let counts = |reason: &EvidenceReason| matches!(reason.code, ReasonCode::EkRevoked | ReasonCode::EkRootUnknown);
    reasons.filter(counts).map(Reason::from).collect()
}

/// Judges evidence in full: challenge, quote, banks, logs, reference values, policy, continuity. Collects every reason.
/// Stopped when the caller is gone: what comes of it then says nothing of the host.
pub fn judge(service: &Service, question: &Question<'_>, evidence: &Evidence, now: u64) -> Answer<Judgment> {
    let host = question.host;
    tracing::debug!(host = host.host, purpose = question.purpose.as_str(), "evidence is judged");
    if question.caller.gone.load(Ordering::Relaxed) {
        return Err(abandoned(question));
    }
    let nonce = evidence.binding.nonce.clone();
    let mut reasons = take_nonce(service, question, &nonce, now)?;
    let answered = reasons.is_empty();
    // With a nonce of ours the quote must bind it. Without one nothing can make the evidence good; it is judged all
    // the same, so that its sender sees everything that is wrong with it.
    let binding = Binding {
        purpose: question.purpose,
        verifier: service.id.clone(),
        host: host.host.clone(),
        nonce,
        tls_spki_sha256: question.caller.key,
        body_sha256: Sha256::digest(question.body).into(),
    };
    let ak = match EnrolledAk::new(&host.ak_public, &host.ek_public) {
        // Revocation is looked at each time; see `revoked`.
        Ok(ak) => ak.with_certified_ek(host.is_certified()),
        Err(found) => {
            reasons.extend(found.into_iter().map(Reason::from));
            return Ok(Judgment { appraisal: None, previous: None, ak: None, binding, reasons, authentic: false });
        }
    };
    let Some(banks) = &host.banks else {
        // Nothing can be said of the host before it has enrolled again, and nothing is held against it.
        reasons.push(ServiceCode::HostBanksUnknown.into());
        return Ok(Judgment { appraisal: None, previous: None, ak: Some(ak), binding, reasons, authentic: false });
    };
    let previous = judged(host)?;
    let quote = match VerifiedQuote::verify(evidence, &ak, &binding) {
        Ok(quote) => quote,
        Err(denial) => {
            reasons.extend(denial.into_iter().map(Reason::from));
            reasons.extend(revoked(service, host));
            return Ok(Judgment { appraisal: None, previous, ak: Some(ak), binding, reasons, authentic: false });
        }
    };
    if let Some(reason) = history_moved(service, host, evidence, previous.as_ref(), &quote) {
        reasons.push(reason);
        return Ok(Judgment { appraisal: None, previous, ak: Some(ak), binding, reasons, authentic: false });
    }
    let policy = service.rules.policy(&host.host);
    let other_banks = banks.check(&quote, policy.bank);
    let context = Context {
        references: service.rules.references(),
        policy,
        certificates: &service.certificates,
        previous: previous.as_ref(),
        now,
        abandoned: Some(question.caller.gone),
    };
    let revoked = revoked(service, host);
    let appraisal = match appraise(quote, evidence, &context) {
        Ok(appraisal) => Some(appraisal).filter(|_| revoked.is_empty() && other_banks.is_empty()),
        Err(denial) if denial.reasons.iter().any(|reason| reason.code == ReasonCode::EvidenceAbandoned) => {
            return Err(abandoned(question));
        }
        Err(denial) => {
            reasons.extend(denial.into_iter().map(Reason::from));
            None
        }
    };
    reasons.extend(other_banks.into_iter().map(Reason::from));
    reasons.extend(revoked);
    Ok(Judgment { appraisal, previous, ak: Some(ak), binding, reasons, authentic: answered })
}

/// The answer that nobody reads.
fn abandoned(question: &Question<'_>) -> Refusal {
    tracing::info!(host = question.host.host, "the sender of evidence hung up; its judgement was stopped");
    Refusal::Denied(vec![EvidenceReason::new(ReasonCode::EvidenceAbandoned).into()])
}

/// Turns a judgement with reasons into a denial. What a host's own TPM says against it closes the host at once.
pub fn deny<T>(service: &Service, question: &Question<'_>, judgment: &Judgment, now: u64) -> Answer<T> {
    let mut reasons = judgment.reasons.clone();
    let host = question.host;
    // A good state that fails for another cause (not admitted, an order that was used) says nothing against the host.
    if judgment.authentic && (judgment.appraisal.is_none() || !host.admitted) {
        let of_evidence = if judgment.appraisal.is_none() { reasons.as_slice() } else { &[] };
        service.store.record_denied(&host.host, &host.ak_name, of_evidence, now)?;
    }
    reasons.splice(0..0, host.why_not_admitted());
    tracing::warn!(
        host = host.host,
        purpose = question.purpose.as_str(),
        authentic = judgment.authentic,
        "evidence denied"
    );
    Err(Refusal::Denied(reasons))
}

/// What a good appraisal changes in the store.
pub fn judgement(question: &Question<'_>, appraisal: &Appraisal) -> Answer<Judgement> {
    let json = |e: serde_json::Error| Refusal::Internal(e.to_string());
    Ok(Judgement {
        tls_spki: question.caller.key,
        judged: serde_json::to_string(&appraisal.judged()).map_err(json)?,
        boot: serde_json::to_string(&appraisal.boot()).map_err(json)?,
        generation: question.host.generation,
        ak_name: question.host.ak_name.clone(),
        policy_sha256: hex::encode(appraisal.policy_digest()),
        reference_signer: appraisal.reference().signed_by.clone(),
    })
}

/// `POST /v1/attest`.
pub fn attest(service: &Service, caller: Caller<'_>, request: &api::AttestRequest) -> Answer<api::AttestResponse> {
    let now = Service::now();
    let host = enrolled(service, &request.host, now)?;
    let question = Question { host: &host, purpose: Purpose::Attest, body: &[], caller };
    let judgment = judge(service, &question, &request.evidence, now)?;
    let (Some(appraisal), true, true) = (&judgment.appraisal, judgment.reasons.is_empty(), host.admitted) else {
        return deny(service, &question, &judgment, now);
    };
    let ttl = service.config.result_ttl_s;
    let until = now.saturating_add(ttl);
    let context = ResultContext { verifier: &service.id, host: &host.host, issued_at: now, expires_at: until };
    let result = AttestationResult::new(appraisal, &context);
    let token = service.token_signer.sign(TYP, &result).map_err(|e| Refusal::Internal(e.to_string()))?;
    if !service.store.record_trusted(&host.host, &judgement(&question, appraisal)?, until, now)? {
        return Err(Refusal::code(ServiceCode::HostConcurrent));
    }
    tracing::info!(host = host.host, "host trusted");
    Ok(api::AttestResponse { trusted: true, token, expires_in_s: ttl, reasons: Vec::new() })
}
