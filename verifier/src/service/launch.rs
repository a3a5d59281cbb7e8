//! From a tenant's request to a running VM: placement, key release, receipt.

use std::sync::atomic::Ordering;

use portcullis_attest::appraise::BootInstance;
use portcullis_attest::binding::{Binding, Purpose, launch_body};
use portcullis_attest::release::{CertifiedParent, ReleaseError, wrap_key};

use super::Service;
use super::appraisal::{Caller, Judgment, Question, deny, enrolled, judge, judgement};
use super::http::{Answer, Refusal};
use super::store::{HostRow, NewOrder, OrderRow, Receipted, Release};
use crate::api::{self, OrderState};
use crate::order::{self, Order};
use crate::reason::{Reason, ServiceCode};
use crate::receipt::{Event, Receipt};

/// How often a placement is tried anew when hosts change under it.
const ATTEMPTS: usize = 4;

/// Why `host` does not get this VM; empty when it may.
fn why_not(service: &Service, host: &HostRow, wanted: Option<&str>, pins: &api::Pins, now: u64) -> Vec<Reason> {
    let mut reasons = host.why_closed_to_tenants(now);
    if reasons.is_empty() {
        // What the last good evidence was judged by; the release looks at its own.
        let policy = host.judged_policy.as_deref().unwrap_or("unknown: it has to attest again");
        let reference_signer = host.judged_signer.as_deref();
        reasons.extend(pins.reasons(&api::JudgedHost { ek: &host.ek, policy_sha256: policy, reference_signer }));
    }
    if host.vms >= service.config.max_vms {
        let most = service.config.max_vms.to_string();
        reasons.push(Reason::new(ServiceCode::HostBusy).values(format!("fewer than {most} VMs"), host.vms.to_string()));
    }
    if wanted.is_some_and(|wanted| wanted != host.host) {
        reasons.push(ServiceCode::HostNotChosen.into());
    }
    reasons
}

/// `POST /v1/vms`.
pub fn place(service: &Service, tenant: &str, request: &api::LaunchRequest) -> Answer<api::LaunchResponse> {
    let vm = request.vm();
    vm.check().map_err(|e| Refusal::malformed(e.to_string()))?;
    for _ in 0..ATTEMPTS {
        let now = Service::now();
        match service.store.volume_free(tenant, &request.volume, now)? {
            None => {}
            Some(ServiceCode::VolumeUnknown) => return Err(Refusal::not_found(ServiceCode::VolumeUnknown.sentence())),
            Some(code) => return Err(Refusal::conflict(code.as_str(), code.sentence())),
        }
        let pins = service.store.pins(tenant, &request.volume)?.unwrap_or_default();
        let hosts = service.store.hosts_for_placement(now)?;
        let wanted = request.host.as_deref();
        let judged: Vec<(&HostRow, Vec<Reason>)> =
            hosts.iter().map(|host| (host, why_not(service, host, wanted, &pins, now))).collect();
        let free = judged.iter().filter(|(host, reasons)| reasons.is_empty() && host.boot.is_some());
        // The emptiest host; by name where two are as empty.
        let Some((host, _)) = free.min_by_key(|(host, _)| (host.vms, host.host.as_str())) else {
            let why_not =
                judged.into_iter().map(|(host, reasons)| api::WhyNot { host: host.host.clone(), reasons }).collect();
            return Err(Refusal::NotPlaced(why_not));
        };
        let new = sign_order(service, tenant, request, host, now)?;
        match service.store.place(&new, now)? {
            None => {
                let order = new.row;
                tracing::info!(tenant, host = order.host, order = order.id, vm = order.vm, "VM placed");
                return Ok(api::LaunchResponse { order_id: order.id, host: order.host, order: order.jws });
            }
            Some(code) => tracing::info!(code = code.as_str(), "placement is tried again"),
        }
    }
    Err(Refusal::conflict("place.contended", "hosts changed faster than the VM could be placed; try again"))
}

fn sign_order(
    service: &Service,
    tenant: &str,
    request: &api::LaunchRequest,
    host: &HostRow,
    now: u64,
) -> Answer<NewOrder> {
    let internal = |e: &dyn std::fmt::Display| Refusal::Internal(e.to_string());
    let boot = host.boot.clone().ok_or_else(|| Refusal::Internal("a trusted host without a boot".into()))?;
    let order = Order {
        schema: order::SCHEMA.to_owned(),
        id: hex::encode(super::enrol::random::<16>()?),
        verifier: service.id.clone(),
        host: host.host.clone(),
        boot: serde_json::from_str(&boot).map_err(|e| internal(&e))?,
        tenant: tenant.to_owned(),
        vm: request.vm(),
        volume: request.volume.clone(),
        iat: now,
        exp: now.saturating_add(service.config.order_ttl_s),
    };
    order.check().map_err(|e| Refusal::malformed(e.to_string()))?;
    let jws = service.order_signer.sign(order::TYP, &order).map_err(|e| internal(&e))?;
    let row = OrderRow {
        id: order.id,
        host: order.host,
        tenant: order.tenant,
        volume: order.volume,
        vm: order.vm.name,
        boot,
        jws,
        state: "placed".to_owned(),
        placed_at: order.iat,
        expires_at: order.exp,
        detail: String::new(),
    };
    Ok(NewOrder { row, max_vms: service.config.max_vms })
}

/// Why a call in this host's name does not count; empty when it does.
///
/// Anybody can call in any host's name. Only the key that the host quoted learns what is known of it: why it is not
/// trusted repeats its command line and the programs that it ran.
fn why_not_now(host: &HostRow, key: [u8; 32], now: u64) -> Vec<Reason> {
    match host.tls_spki {
        Some(quoted) if quoted == key => host.why_untrusted(now),
        _ if !host.admitted => vec![ServiceCode::NotAdmitted.into(), ServiceCode::HostOtherKey.into()],
        Some(_) => vec![ServiceCode::HostOtherKey.into()],
        None if host.reasons.is_empty() => {
            vec![ServiceCode::HostNeverAttested.into(), ServiceCode::HostOtherKey.into()]
        }
        None => vec![ServiceCode::HostUntrusted.into(), ServiceCode::HostOtherKey.into()],
    }
}

/// `GET /v1/hosts/{host}/orders`.
pub fn waiting(service: &Service, key: [u8; 32], host: &str) -> Answer<api::OrdersResponse> {
    let now = Service::now();
    let host = enrolled(service, host, now)?;
    let reasons = why_not_now(&host, key, now);
    if !reasons.is_empty() {
        return Err(Refusal::Denied(reasons));
    }
    let boot = host.boot.as_ref().ok_or_else(|| Refusal::code(ServiceCode::HostNeverAttested))?;
    Ok(api::OrdersResponse { orders: service.store.orders_waiting(&host.host, boot, now)? })
}

/// What is wrong with the order itself, for this host at this time.
fn order_reasons(order: &OrderRow, jws: &str, host: &str, now: u64) -> Vec<Reason> {
    let mut reasons: Vec<Reason> = Vec::new();
    // What was signed is what was kept, byte for byte; anything else is not ours.
    if order.jws != jws {
        reasons.push(ServiceCode::OrderForged.into());
    }
    if order.host != host {
        reasons.push(ServiceCode::OrderOtherHost.into());
    }
    match order.state_at(now) {
        OrderState::Placed => {}
        OrderState::Expired => reasons.push(ServiceCode::OrderExpired.into()),
        OrderState::Released | OrderState::Running | OrderState::Ended => reasons.push(ServiceCode::OrderUsed.into()),
    }
    reasons
}

/// `POST /v1/orders/{id}/release`.
pub fn release(
    service: &Service,
    caller: Caller<'_>,
    id: &str,
    request: &api::ReleaseRequest,
) -> Answer<api::ReleaseResponse> {
    let now = Service::now();
    let host = enrolled(service, &request.host, now)?;
    let order = service.store.order(id)?.ok_or_else(|| Refusal::code(ServiceCode::OrderUnknown))?;
    let body = launch_body(request.order.as_bytes(), &request.parent_public);
    let question = Question { host: &host, purpose: Purpose::Launch, body: &body, caller };
    // The evidence is judged even when the order is no good: bad evidence closes the host in any case.
    let mut judgment = judge(service, &question, &request.evidence, now)?;
    judgment.reasons.extend(order_reasons(&order, &request.order, &host.host, now));
    judgment.reasons.extend(why_not_now(&host, caller.key, now));
    judgment.reasons.extend(boot_reasons(&judgment, &order)?);
    let parent = certified_parent(&mut judgment, request);
    let volume = service.store.volume(&order.tenant, &order.volume)?;
    let pinned = volume.as_ref().map(|volume| pin_reasons(&judgment, &host.ek, &volume.pins));
    judgment.reasons.extend(pinned.unwrap_or_else(|| vec![ServiceCode::VolumeUnknown.into()]));
    let (Some(appraisal), Some(parent), Some(volume), true) =
        (&judgment.appraisal, parent, volume, judgment.reasons.is_empty())
    else {
        return deny(service, &question, &judgment, now);
    };
    let internal = |e: &dyn std::fmt::Display| Refusal::Internal(e.to_string());
    let volume_key = service.vault.open(&order.tenant, &order.volume, &volume.sealed_key).map_err(|e| internal(&e))?;
    let wrapped = wrap_key(&volume_key, &parent, appraisal).map_err(|e| not_wrapped(&e))?;
    drop(volume_key);
    let record =
        Release { order: order.id.clone(), host: host.host.clone(), judgement: judgement(&question, appraisal)? };
    // Nobody would get the key that the order is used up for.
    if caller.gone.load(Ordering::Relaxed) {
        return Err(Refusal::Internal("the caller hung up before the key was released".to_owned()));
    }
    if let Some(code) = service.store.release(&record, now)? {
        return Err(Refusal::code(code));
    }
    tracing::info!(host = host.host, order = order.id, tenant = order.tenant, "volume key released");
    Ok(api::ReleaseResponse { wrapped })
}

/// Who was judged, and by what, must be as the tenant pinned.
fn pin_reasons(judgment: &Judgment, ek: &str, pins: &api::Pins) -> Vec<Reason> {
    let Some(appraisal) = &judgment.appraisal else { return Vec::new() };
    let policy_sha256 = hex::encode(appraisal.policy_digest());
    let reference_signer = appraisal.reference().signed_by.as_deref();
    pins.reasons(&api::JudgedHost { ek, policy_sha256: &policy_sha256, reference_signer })
}

/// What the host sent is at fault, and it is told so, unless the fault is the deposited key's or the machine's.
fn not_wrapped(error: &ReleaseError) -> Refusal {
    use portcullis_attest::release::ProtectError::{Key, Unsupported};
    match error {
        ReleaseError::PcrMissing(_)
        | ReleaseError::Bank(_)
        | ReleaseError::OtherTpm
        | ReleaseError::OtherBoot
        | ReleaseError::Protect(Key | Unsupported(_)) => {
            Refusal::Denied(vec![Reason { text: error.to_string(), ..ServiceCode::KeyNotWrapped.into() }])
        }
        _ => Refusal::Internal(error.to_string()),
    }
}

/// What is quoted must continue what was judged, in the boot that the order is for.
fn boot_reasons(judgment: &Judgment, order: &OrderRow) -> Answer<Vec<Reason>> {
    let Some(appraisal) = &judgment.appraisal else { return Ok(Vec::new()) };
    let mut reasons: Vec<Reason> = match &judgment.previous {
        Some(previous) => appraisal.continues(previous).err().into_iter().flatten().map(Into::into).collect(),
        None => vec![ServiceCode::HostNeverAttested.into()],
    };
    let quoted = appraisal.boot();
    let ordered: BootInstance = serde_json::from_str(&order.boot).map_err(|e| Refusal::Internal(e.to_string()))?;
    if ordered != quoted {
        reasons.push(Reason::new(ServiceCode::OrderOtherBoot).values(ordered.to_string(), quoted.to_string()));
    }
    Ok(reasons)
}

/// The storage parent, if the AK certified it for this very order; else the reasons are added.
fn certified_parent(judgment: &mut Judgment, request: &api::ReleaseRequest) -> Option<CertifiedParent> {
    let ak = judgment.ak.as_ref()?;
    let expected = Binding { purpose: Purpose::Parent, ..judgment.binding.clone() };
    let (public, attest, signature) = (&request.parent_public, &request.certify_attest, &request.certify_signature);
    match CertifiedParent::verify(public, attest, signature, ak, &expected) {
        Ok(parent) => Some(parent),
        Err(reasons) => {
            judgment.reasons.extend(reasons.into_iter().map(Reason::from));
            None
        }
    }
}

/// `POST /v1/orders/{id}/receipt`.
pub fn receipt(service: &Service, caller: Caller<'_>, id: &str, request: &api::ReceiptRequest) -> Answer<api::Done> {
    let now = Service::now();
    let host = enrolled(service, &request.host, now)?;
    let order = service.store.order(id)?.ok_or_else(|| Refusal::code(ServiceCode::OrderUnknown))?;
    let question = Question { host: &host, purpose: Purpose::Receipt, body: request.receipt.as_bytes(), caller };
    let mut judgment = judge(service, &question, &request.evidence, now)?;
    if host.tls_spki != Some(caller.key) {
        judgment.reasons.push(ServiceCode::HostOtherKey.into());
    }
    let receipt = Receipt::parse(&request.receipt);
    match &receipt {
        Ok(receipt) => judgment.reasons.extend(receipt_reasons(receipt, &order, &host, &judgment)?),
        Err(e) => judgment.reasons.push(Reason { text: e.to_string(), ..ServiceCode::ReceiptMalformed.into() }),
    }
    let (Some(_), Ok(receipt), true, true) = (&judgment.appraisal, receipt, judgment.reasons.is_empty(), host.admitted)
    else {
        return deny(service, &question, &judgment, now);
    };
    let quotes = serde_json::to_string(&request.evidence.quotes).map_err(|e| Refusal::Internal(e.to_string()))?;
    let record = Receipted {
        order: order.id.clone(),
        host: host.host.clone(),
        generation: host.generation,
        event: receipt.event,
        receipt: request.receipt.clone(),
        quotes,
        detail: receipt.detail,
    };
    if let Some(code) = service.store.record_receipt(&record, now)? {
        return Err(Refusal::code(code));
    }
    tracing::info!(host = host.host, order = order.id, event = ?record.event, "receipt");
    Ok(api::Done {})
}

/// A receipt must be about this order on this host. That a VM started can be said only in the boot that got the key;
/// that it ended also later, for no VM outlives its host's boot.
fn receipt_reasons(receipt: &Receipt, order: &OrderRow, host: &HostRow, judgment: &Judgment) -> Answer<Vec<Reason>> {
    let mut reasons = Vec::new();
    if receipt.order != order.id || receipt.host != host.host || receipt.vm != order.vm || order.host != host.host {
        reasons.push(ServiceCode::ReceiptMismatch.into());
    }
    let ordered: BootInstance = serde_json::from_str(&order.boot).map_err(|e| Refusal::Internal(e.to_string()))?;
    if ordered.ek.as_ref() != Some(&host.ek) {
        reasons.push(ServiceCode::OrderOtherTpm.into());
    }
    if receipt.event == Event::Started {
        reasons.extend(boot_reasons(judgment, order)?);
    }
    Ok(reasons)
}

#[cfg(test)]
mod tests {
    use portcullis_attest::release::ProtectError;

    use super::*;

    #[test]
    fn a_host_is_told_why_no_key_can_be_wrapped_for_it() {
        for fault in [
            ReleaseError::PcrMissing(7),
            ReleaseError::OtherTpm,
            ReleaseError::OtherBoot,
            ReleaseError::Protect(ProtectError::Key),
        ] {
            let Refusal::Denied(reasons) = not_wrapped(&fault) else { panic!("{fault} is no denial") };
            assert_eq!((reasons[0].code.as_str(), &reasons[0].text), ("release.not-wrapped", &fault.to_string()));
        }
        assert!(matches!(not_wrapped(&ReleaseError::KeyLength(0)), Refusal::Internal(_)));
    }
}
