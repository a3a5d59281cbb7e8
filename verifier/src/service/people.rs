//! What operators and tenants ask for, except for placement.

use axum::http::StatusCode;
use portcullis_attest::endorsement::{ENROLMENT_TYP, EnrolmentStatement};
use subtle::ConstantTimeEq;

use super::Service;
use super::appraisal::revoked;
use super::http::{Answer, Refusal};
use super::store::{Admitted, HostRow, SealedVolume, VolumePut};
use crate::api;
use crate::name;
use crate::order::is_hex;
use crate::reason::ServiceCode;

/// Longest note or reason of an operator, in bytes.
const MAX_NOTE: usize = 1024;

fn view(row: &HostRow, now: u64) -> Answer<api::HostView> {
    let reasons = row.why_closed(now);
    let trust = match row.trusted_until {
        _ if !row.admitted => api::Trust::Unknown,
        Some(until) if until > now => api::Trust::Trusted,
        Some(_) => api::Trust::Expired,
        None if row.reasons.is_empty() => api::Trust::Unknown,
        None => api::Trust::Untrusted,
    };
    let boot = row.boot.as_deref().map(serde_json::from_str).transpose();
    Ok(api::HostView {
        host: row.host.clone(),
        ek_fingerprint: row.ek.clone(),
        certificate: row.certificate.clone(),
        ak_name: row.ak_name.clone(),
        banks: row.banks.clone(),
        state: if row.admitted { api::Admission::Admitted } else { api::Admission::Pending },
        trust,
        reasons,
        boot: boot.map_err(|e| Refusal::Internal(e.to_string()))?,
        attested_at: row.attested_at,
        trusted_until: row.trusted_until,
        vms: row.vms,
    })
}

/// `GET /v1/hosts`.
pub fn hosts(service: &Service) -> Answer<api::HostsResponse> {
    let now = Service::now();
    let hosts = service.store.hosts(now)?.iter().map(|row| view(row, now)).collect::<Answer<_>>()?;
    Ok(api::HostsResponse { hosts })
}

/// `GET /v1/hosts/{host}`.
pub fn host(service: &Service, host: &str) -> Answer<api::HostView> {
    let now = Service::now();
    let row = service.store.host(host, now)?.ok_or_else(|| Refusal::not_found("no host of this name is enrolled"))?;
    view(&row, now)
}

/// `GET /v1/hosts/{host}/enrolment`: only of a host whose TPM an operator admitted, for only then its name is more than
/// what somebody called it.
pub fn enrolment(service: &Service, who: &str, host: &str) -> Answer<api::EnrolmentResponse> {
    let now = Service::now();
    let row = service.store.host(host, now)?.ok_or_else(|| Refusal::not_found("no host of this name is enrolled"))?;
    if !row.admitted {
        return Err(Refusal::code(ServiceCode::NotAdmitted));
    }
    let lifetime = service.config.enrolment_ttl_s;
    let mut statement = EnrolmentStatement::new(&service.id, &row.host, &row.ek_public, &row.ak_public, now, lifetime)
        .map_err(|e| Refusal::Internal(e.to_string()))?;
    statement.ek_certified = row.is_certified() && revoked(service, &row).is_empty();
    let enrolment =
        service.token_signer.sign(ENROLMENT_TYP, &statement).map_err(|e| Refusal::Internal(e.to_string()))?;
    tracing::info!(operator = who, host, "enrolment statement issued");
    Ok(api::EnrolmentResponse { enrolment })
}

/// `DELETE /v1/hosts/{host}`.
pub fn remove_host(service: &Service, who: &str, host: &str) -> Answer<api::Done> {
    match service.store.remove_host(host, Service::now())? {
        None => Err(Refusal::not_found("no host of this name is enrolled")),
        Some(false) => Err(Refusal::conflict("host.in-use", "the host still holds orders; end its VMs first")),
        Some(true) => {
            tracing::info!(operator = who, host, "host removed");
            Ok(api::Done {})
        }
    }
}

fn check_note(what: &str, note: &str) -> Answer<()> {
    if note.len() > MAX_NOTE {
        return Err(Refusal::malformed(format!("{what} must not be longer than {MAX_NOTE} bytes")));
    }
    Ok(())
}

/// `PUT /v1/hosts/{host}/cordon`.
pub fn cordon(service: &Service, who: &str, host: &str, request: &api::CordonRequest) -> Answer<api::Done> {
    let reason = request.reason.as_deref();
    check_note("reason", reason.unwrap_or_default())?;
    if !service.store.cordon(host, reason)? {
        return Err(Refusal::not_found("no host of this name is enrolled"));
    }
    tracing::info!(operator = who, host, reason, "cordon");
    Ok(api::Done {})
}

/// `DELETE /v1/hosts/{host}/banks`.
pub fn accept_banks(service: &Service, who: &str, host: &str) -> Answer<api::Done> {
    match service.store.forget_banks(host)? {
        None => return Err(Refusal::not_found("no host of this name is enrolled")),
        Some(false) => {
            let text = "another TPM is enrolled under this name than the admitted one: forget the host first";
            return Err(Refusal::conflict("host.conflict", text));
        }
        Some(true) => {}
    }
    tracing::warn!(operator = who, host, "the PCR banks of the next enrolment are accepted");
    Ok(api::Done {})
}

/// `POST /v1/orders/{id}/fence`.
pub fn fence(service: &Service, who: &str, id: &str, request: &api::FenceRequest) -> Answer<api::Done> {
    check_note("note", &request.note)?;
    if request.note.is_empty() {
        return Err(Refusal::malformed("note must say what was done to keep the host from the volume"));
    }
    let detail = format!("fenced by {who}: {}", request.note);
    match service.store.fence(id, &detail)? {
        None => {
            tracing::warn!(operator = who, order = id, note = request.note, "order fenced");
            Ok(api::Done {})
        }
        Some(ServiceCode::OrderUnknown) => Err(Refusal::not_found(ServiceCode::OrderUnknown.sentence())),
        Some(_) => Err(Refusal::conflict("order.not-open", "the order holds no volume: it was not released, or ended")),
    }
}

/// `GET /v1/admissions`.
pub fn admissions(service: &Service) -> Answer<api::AdmissionsResponse> {
    Ok(api::AdmissionsResponse { admissions: service.store.admissions()? })
}

/// `POST /v1/admissions`.
pub fn admit(service: &Service, who: &str, request: &api::AdmissionRequest) -> Answer<api::Done> {
    if !is_hex(&request.ek_fingerprint, 64) {
        return Err(Refusal::malformed("ek_fingerprint must be 64 lower-case hex digits: one TPM, nothing wider"));
    }
    name::check("host", &request.host).map_err(|e| Refusal::malformed(e.to_string()))?;
    check_note("note", &request.note)?;
    let admitted = service.store.admit(&api::AdmissionView {
        ek_fingerprint: request.ek_fingerprint.clone(),
        host: Some(request.host.clone()),
        note: request.note.clone(),
        by: who.to_owned(),
        at: Service::now(),
    })?;
    match admitted {
        Admitted::Yes => {
            tracing::info!(operator = who, ek = request.ek_fingerprint, host = request.host, "TPM admitted");
            Ok(api::Done {})
        }
        Admitted::OtherName(name) => {
            let text = format!("this TPM is admitted as {name}; withdraw that admission first");
            Err(Refusal::conflict("admission.other-name", &text))
        }
        Admitted::NameTaken(ek) => {
            let text = format!("the TPM {ek} is admitted as {}; withdraw that admission first", request.host);
            Err(Refusal::conflict("admission.name-taken", &text))
        }
    }
}

/// `DELETE /v1/admissions/{ek_fingerprint}`.
pub fn withdraw(service: &Service, who: &str, ek: &str) -> Answer<api::Done> {
    if !service.store.withdraw(ek)? {
        return Err(Refusal::not_found("no TPM with this fingerprint is admitted"));
    }
    tracing::info!(operator = who, ek, "admission withdrawn");
    Ok(api::Done {})
}

/// `GET /v1/volumes`.
pub fn volumes(service: &Service, tenant: &str) -> Answer<api::VolumesResponse> {
    Ok(api::VolumesResponse { volumes: service.store.volumes(tenant)? })
}

/// `PUT /v1/volumes/{name}`.
pub fn put_volume(service: &Service, tenant: &str, volume: &str, request: &api::VolumeRequest) -> Answer<api::Done> {
    name::check("volume", volume).map_err(|e| Refusal::malformed(e.to_string()))?;
    if !(16..=portcullis_attest::release::MAX_KEY).contains(&request.key.len()) {
        return Err(Refusal::Call(
            StatusCode::UNPROCESSABLE_ENTITY,
            "volume.key-size",
            format!("a volume key must have 16 to {} bytes", portcullis_attest::release::MAX_KEY),
        ));
    }
    if request.pins.as_ref().is_some_and(|pins| !pins.is_valid()) {
        let most = api::MAX_PINS;
        return Err(Refusal::malformed(format!("pins must be at most {most} SHA-256 of each kind, in lower-case hex")));
    }
    let broken = |e: super::vault::VaultError| Refusal::Internal(e.to_string());
    let sealed_key = service.vault.seal(tenant, volume, &request.key).map_err(broken)?;
    let new = SealedVolume { sealed_key, pins: request.pins.clone().unwrap_or_default() };
    match service.store.put_volume(tenant, volume, &new, Service::now())? {
        VolumePut::New => tracing::info!(tenant, volume, pinned = !new.pins.is_empty(), "volume key deposited"),
        VolumePut::There(sealed) => {
            let there = service.vault.open(tenant, volume, &sealed).map_err(broken)?;
            if !bool::from(there.as_slice().ct_eq(&request.key)) {
                // Another key would lock the tenant out of what the volume holds.
                return Err(Refusal::conflict("volume.exists", "there is a volume of this name with another key"));
            }
            if let Some(pins) = &request.pins {
                service.store.pin_volume(tenant, volume, pins)?;
                tracing::info!(tenant, volume, pinned = !pins.is_empty(), "volume's pins replaced");
            }
        }
    }
    Ok(api::Done {})
}

/// `GET /v1/vms`.
pub fn vms(service: &Service, tenant: &str) -> Answer<api::VmsResponse> {
    let now = Service::now();
    let vms = service.store.orders_of_tenant(tenant)?.iter().map(|order| order.view(now)).collect();
    Ok(api::VmsResponse { vms })
}
