//! Why the service refuses: what the appraisal found, or what the service itself knows.
//!
//! The JSON is that of `portcullis_attest::reason::Reason`, so a reader needs one schema for both.

use core::fmt;

use portcullis_attest::reason::{Reason as EvidenceReason, ReasonCode};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

portcullis_attest::reason_codes! {
    /// What only the service can find wrong, as a stable code. Evidence has its own codes.
    pub enum ServiceCode;

    // Enrolment.
    NotAdmitted = "endorsement.not-admitted", "No operator has admitted this TPM: a genuine TPM proves itself, not the host it sits in.";
    HostOtherName = "host.other-name", "An operator admitted this TPM under another host name: no host chooses the name, and with it the policy, that it is judged by.";
    HostConflict = "enrol.host-conflict", "A host of this name is enrolled with another endorsement or attestation key.";
    EkConflict = "enrol.ek-conflict", "This TPM is enrolled under another host name.";
    EnrolmentUnknown = "enrol.unknown", "There is no such pending enrolment: it was never begun, has expired or was used.";
    EnrolmentOtherKey = "enrol.other-tls-key", "The enrolment was begun with another TLS key.";
    EnrolmentWrongSecret = "enrol.wrong-secret", "The credential challenge was not solved: the attestation key is not in the TPM with that endorsement key.";
    EnrolmentBanksConflict = "enrol.banks-conflict", "The PCR banks that are active, or into which the firmware measures, are not those of the host's first enrolment. If its firmware setup was changed on purpose, an operator runs `portcullis host accept-banks`, and the host enrols again.";
    EnrolmentsFull = "enrol.too-many", "Too many enrolments of this host and TLS key are pending; answer them or wait until they expire.";

    // Hosts.
    HostUnknown = "host.unknown", "No host of this name is enrolled.";
    HostBanksUnknown = "host.banks-unknown", "The verifier does not know which PCR banks the host's firmware extends: the host has to enrol again, as its agent does when it is told so.";
    HostUntrusted = "host.untrusted", "The host's last evidence was denied.";
    HostNeverAttested = "host.never-attested", "The host has not attested yet.";
    HostExpired = "host.result-expired", "The host's last attestation result has expired.";
    HostOtherKey = "host.other-tls-key", "The call came with another TLS key than the one the host quoted last.";
    HostBusy = "host.busy", "The host runs as many VMs as it may.";
    HostCordoned = "host.cordoned", "An operator closed the host for new work.";
    HostNotChosen = "host.not-chosen", "The request asked for another host.";
    HostConcurrent = "host.concurrent-appraisal", "Other evidence of the same host was judged at the same time; attest again.";

    // Challenges.
    NonceUnknown = "nonce.unknown", "The evidence answers no open challenge: it was never issued, or was used before.";
    NonceExpired = "nonce.expired", "The challenge that the evidence answers has expired.";
    NonceOtherHost = "nonce.other-host", "The challenge was issued to another host.";
    NonceOtherPurpose = "nonce.other-purpose", "The challenge was issued for another purpose.";
    NonceOtherKey = "nonce.other-tls-key", "The challenge was issued to another TLS key.";
    HistoryMoved = "nonce.history-moved", "The evidence leaves out IMA entries that have to be judged: the host was reset, or other evidence of it was judged, or the rules changed since its challenge; attest again.";
    NoncesFull = "nonce.too-many", "Too many challenges are open for this host; answer them or wait until they expire.";

    // Orders, volumes and receipts.
    OrderUnknown = "order.unknown", "There is no such launch order.";
    OrderForged = "order.forged", "The launch order is not the one that this verifier signed.";
    OrderOtherHost = "order.other-host", "The launch order is for another host.";
    OrderOtherBoot = "order.other-boot", "The launch order is for another boot of this host.";
    OrderExpired = "order.expired", "The launch order has expired.";
    OrderUsed = "order.used", "The launch order was used before.";
    OrderOtherTpm = "order.other-tpm", "The launch order is for the TPM that had this host's name before.";
    VolumeUnknown = "volume.unknown", "The tenant has no volume of this name.";
    VolumeBusy = "volume.busy", "The volume may still be open elsewhere: one volume, one host.";
    ReceiptMalformed = "receipt.malformed", "The receipt cannot be read.";
    ReceiptMismatch = "receipt.mismatch", "The receipt is about another order, host or VM.";
    ReceiptOutOfOrder = "receipt.out-of-order", "The receipt does not follow from the state of its order.";
    PinnedPolicy = "release.pinned-policy", "The tenant releases the volume's key only to hosts that were judged by another policy.";
    PinnedTpm = "release.pinned-tpm", "The tenant releases the volume's key only to hosts with other TPMs.";
    PinnedSigner = "release.pinned-signer", "The tenant releases the volume's key only to hosts that match reference values of another signer.";
    KeyNotWrapped = "release.not-wrapped", "The volume key could not be wrapped for this TPM.";
}

/// The code of a reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Code {
    /// Found in the evidence.
    Evidence(ReasonCode),
    /// Known to the service.
    Service(ServiceCode),
    /// A code of a later version of the service: shown as it came, never taken for another.
    Other(String),
}

impl Code {
    /// The code as a string.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Evidence(code) => code.as_str(),
            Self::Service(code) => code.as_str(),
            Self::Other(code) => code,
        }
    }
}

impl From<ReasonCode> for Code {
    fn from(code: ReasonCode) -> Self {
        Self::Evidence(code)
    }
}

impl From<ServiceCode> for Code {
    fn from(code: ServiceCode) -> Self {
        Self::Service(code)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let code = String::deserialize(deserializer)?;
        if let Some(known) = ServiceCode::ALL.iter().find(|known| known.as_str() == code) {
            return Ok(Self::Service(*known));
        }
        match code.parse() {
            Ok(known) => Ok(Self::Evidence(known)),
            Err(_) if code.len() > 64 || !code.bytes().all(|b| b.is_ascii_lowercase() || b == b'.' || b == b'-') => {
                Err(serde::de::Error::custom("a reason's code is not a code"))
            }
            Err(_) => Ok(Self::Other(code)),
        }
    }
}

/// One reason for a refusal.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// What is wrong, as a stable code.
    pub code: Code,
    /// The PCR that it concerns, if it concerns one.
    pub pcr: Option<u32>,
    /// The event that it concerns, in words.
    pub event: Option<String>,
    /// What was expected.
    pub expected: Option<String>,
    /// What was found.
    pub found: Option<String>,
    /// One sentence for a person.
    pub text: String,
}

impl Reason {
    /// A reason of the service with the code's own sentence.
    pub fn new(code: ServiceCode) -> Self {
        Self {
            code: code.into(),
            pcr: None,
            event: None,
            expected: None,
            found: None,
            text: code.sentence().to_owned(),
        }
    }

    /// The same reason with what was expected and what was found.
    #[must_use]
    pub fn values(mut self, expected: impl Into<String>, found: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self.found = Some(found.into());
        self
    }
}

impl From<ServiceCode> for Reason {
    fn from(code: ServiceCode) -> Self {
        Self::new(code)
    }
}

impl From<EvidenceReason> for Reason {
    fn from(reason: EvidenceReason) -> Self {
        Self {
            code: reason.code.into(),
            pcr: reason.pcr,
            event: reason.event,
            expected: reason.expected,
            found: reason.found,
            text: reason.text,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.text)?;
        if let Some(pcr) = self.pcr {
            write!(f, " [PCR {pcr}]")?;
        }
        if let Some(event) = &self.event {
            write!(f, " [{event}]")?;
        }
        if let Some(expected) = &self.expected {
            write!(f, " expected: {expected};")?;
        }
        if let Some(found) = &self.found {
            write!(f, " found: {found}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_also_against_those_of_evidence() {
        let mut seen: std::collections::BTreeSet<&str> = ReasonCode::ALL.iter().map(|code| code.as_str()).collect();
        for code in ServiceCode::ALL {
            assert!(seen.insert(code.as_str()), "{} is there twice", code.as_str());
            assert!(code.as_str().contains('.') && code.sentence().ends_with('.'), "{}", code.as_str());
        }
    }

    #[test]
    fn a_reason_of_either_kind_comes_back_from_json() {
        for reason in [
            Reason::new(ServiceCode::OrderUsed).values("a", "b"),
            EvidenceReason::new(ReasonCode::SecureBootDisabled).pcr(7).into(),
        ] {
            let json = serde_json::to_string(&reason).unwrap();
            assert_eq!(serde_json::from_str::<Reason>(&json).unwrap(), reason);
        }
        let later: Code = serde_json::from_str("\"quote.of-tomorrow\"").unwrap();
        assert_eq!(later, Code::Other("quote.of-tomorrow".into()));
        assert!(serde_json::from_str::<Code>("\"\\u001b[2J\"").is_err());
    }
}
