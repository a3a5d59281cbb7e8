//! Enrolment statements: a verifier's signed word that an attestation key lives in the TPM with this endorsement key, and
//! that the TPM is this host's. With the verifier's public keys, given from outside, it anchors evidence that is judged
//! offline (protocol rule 10).

use serde::{Deserialize, Serialize};
use serde_with::base64::{Base64, Standard};
use serde_with::formats::Padded;
use serde_with::hex::Hex;
use serde_with::serde_as;
use thiserror::Error;

use super::fingerprint;
use super::verifier_keys::{JwsError, VerifierKeys};
use crate::binding::is_valid_id;
use crate::key::{EnrolledAk, PublicArea};
use crate::reason::{Denial, Reason, ReasonCode};

/// The `typ` of a statement's JWS header: nothing else that a verifier signs can be taken for one.
pub const ENROLMENT_TYP: &str = "portcullis-enrolment+jwt";
/// The schema that every statement names.
pub const ENROLMENT_SCHEMA: &str = "portcullis/enrolment/1";

/// Why an enrolment statement is refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EnrolmentError {
    /// Not a JWS that one of the keys signed, or not of the schema.
    #[error("the enrolment statement does not hold: {0}")]
    Jws(#[from] JwsError),
    /// A field has a value that it cannot have.
    #[error("the enrolment statement's {0}")]
    Field(&'static str),
    /// Not valid at this time: a host's enrolment can be withdrawn, and a statement cannot.
    #[error(
        "the enrolment statement held from {issued_at} to {expires_at}, and it is {now} (seconds since 1970); ask the verifier for a new one"
    )]
    Expired {
        /// From when it holds.
        issued_at: u64,
        /// Until when it holds.
        expires_at: u64,
        /// When it was asked.
        now: u64,
    },
    /// The keys that it names are no attestation key under an endorsement key.
    #[error("the enrolment statement's keys are refused: {}", codes(.0))]
    Keys(Denial),
}

fn codes(reasons: &[Reason]) -> String {
    reasons.iter().map(|reason| reason.code.as_str()).collect::<Vec<_>>().join(", ")
}

/// What a verifier says of an enrolled and admitted host. The payload of a JWS (ES256, `typ` [`ENROLMENT_TYP`]); schema in
/// `schemas/enrolment-1.json`.
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct EnrolmentStatement {
    /// Always [`ENROLMENT_SCHEMA`].
    pub schema: String,
    /// The verifier's id.
    pub verifier: String,
    /// The host's id.
    pub host: String,
    /// The endorsement key's fingerprint: SHA-256 of its DER SubjectPublicKeyInfo.
    #[serde_as(as = "Hex")]
    pub ek: [u8; 32],
    /// The endorsement key (TPMT_PUBLIC).
    #[serde_as(as = "Base64<Standard, Padded>")]
    pub ek_public: Vec<u8>,
    /// The attestation key (TPMT_PUBLIC).
    #[serde_as(as = "Base64<Standard, Padded>")]
    pub ak_public: Vec<u8>,
    /// Whether the endorsement key had a certificate that leads to a vendor's root of the verifier's when the host enrolled.
    /// A statement that does not say so is of an earlier version, and of a TPM that counts as one without certificate.
    #[serde(default)]
    pub ek_certified: bool,
    /// When it was issued, in seconds since 1970.
    pub iat: u64,
    /// From when on it anchors nothing, in seconds since 1970.
    pub exp: u64,
}

impl EnrolmentStatement {
    /// A statement to be signed, which holds from `issued_at` (seconds since 1970) for `lifetime` seconds, about an
    /// endorsement key without certificate unless [`Self::ek_certified`] is set then. Refuses ids and keys that no
    /// enrolment has.
    pub fn new(
        verifier: &str,
        host: &str,
        ek_public: &[u8],
        ak_public: &[u8],
        issued_at: u64,
        lifetime: u64,
    ) -> Result<Self, EnrolmentError> {
        let statement = Self {
            schema: ENROLMENT_SCHEMA.to_owned(),
            verifier: verifier.to_owned(),
            host: host.to_owned(),
            ek: endorsement_fingerprint(ek_public)?,
            ek_public: ek_public.to_vec(),
            ak_public: ak_public.to_vec(),
            ek_certified: false,
            iat: issued_at,
            exp: issued_at.saturating_add(lifetime),
        };
        statement.check()?;
        Ok(statement)
    }

    /// Reads a statement that one of `keys` signed and that holds at `now`, in seconds since 1970. Whoever judges old evidence
    /// gives the time at which it was made, if something else proves that.
    pub fn verify(jws: &str, keys: &VerifierKeys, now: u64) -> Result<Self, EnrolmentError> {
        let statement: Self = keys.read(ENROLMENT_TYP, jws)?;
        statement.check()?;
        let (issued_at, expires_at) = (statement.iat, statement.exp);
        if now < issued_at || now >= expires_at {
            return Err(EnrolmentError::Expired { issued_at, expires_at, now });
        }
        Ok(statement)
    }

    /// The attestation key that it anchors.
    pub fn ak(&self) -> Result<EnrolledAk, EnrolmentError> {
        let ak = EnrolledAk::new(&self.ak_public, &self.ek_public).map_err(EnrolmentError::Keys)?;
        Ok(ak.with_certified_ek(self.ek_certified))
    }

    fn check(&self) -> Result<(), EnrolmentError> {
        if self.schema != ENROLMENT_SCHEMA {
            return Err(EnrolmentError::Field("schema is another one"));
        }
        if !is_valid_id(&self.verifier) || !is_valid_id(&self.host) {
            return Err(EnrolmentError::Field("verifier and host are 1 to 64 characters of [a-z0-9.-]"));
        }
        if self.exp <= self.iat {
            return Err(EnrolmentError::Field("exp must be later than its iat"));
        }
        if endorsement_fingerprint(&self.ek_public)? != self.ek {
            return Err(EnrolmentError::Field("fingerprint is not that of its endorsement key"));
        }
        self.ak().map(|_| ())
    }
}

fn endorsement_fingerprint(ek_public: &[u8]) -> Result<[u8; 32], EnrolmentError> {
    let malformed = |error: crate::key::KeyError| Reason::new(ReasonCode::EkMalformed).found(error.to_string());
    PublicArea::parse(ek_public)
        .map_err(malformed)
        .and_then(|public| fingerprint(&public))
        .map_err(|reason| EnrolmentError::Keys(reason.into()))
}
