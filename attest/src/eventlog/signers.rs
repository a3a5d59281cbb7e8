//! Names the keys in Secure Boot's variables, for people. Nothing is decided by these names.

use der::Decode as _;
use x509_cert::Certificate;

use super::{Signature, SignatureType, signature_lists};

/// Most certificates that are named one by one.
const MAX_NAMED: usize = 4;

/// Bytes of the owner in front of a signature.
const OWNER: usize = 16;

/// The signatures of a variable: the certificates by their subjects, the others counted.
pub(super) fn of_list(data: &[u8]) -> String {
    let Ok(signatures) = signature_lists(data) else { return "unreadable".to_owned() };
    if signatures.is_empty() {
        return "empty".to_owned();
    }
    let is_certificate = |signature: &&Signature<'_>| signature.kind == SignatureType::X509;
    let certificates = signatures.iter().filter(is_certificate).count();
    let mut parts: Vec<String> =
        signatures.iter().filter(is_certificate).take(MAX_NAMED).map(|signature| subject(signature.data)).collect();
    if certificates > MAX_NAMED {
        parts.push(format!("{} more certificates", certificates.saturating_sub(MAX_NAMED)));
    }
    let others = signatures.len().saturating_sub(certificates);
    if others > 0 {
        parts.push(format!("{others} hashes"));
    }
    parts.join("; ")
}

/// The signature by which an image was verified: the firmware measures it with its owner, shim measures a certificate
/// alone.
pub(super) fn of_entry(data: &[u8]) -> String {
    let behind_owner = data.get(OWNER..).unwrap_or_default();
    [behind_owner, data]
        .into_iter()
        .find_map(|bytes| Certificate::from_der(bytes).ok())
        .map_or_else(|| format!("{} bytes", data.len()), |certificate| name(&certificate))
}

fn subject(bytes: &[u8]) -> String {
    Certificate::from_der(bytes).map_or_else(|_| "unreadable certificate".to_owned(), |certificate| name(&certificate))
}

/// The common name where there is one: the rest of a subject says little more.
fn name(certificate: &Certificate) -> String {
    let subject = certificate.tbs_certificate().subject().to_string();
    let common_name = subject.split(',').find_map(|part| part.trim().strip_prefix("CN="));
    common_name.map_or_else(|| subject.clone(), str::to_owned)
}
