//! The anchor of offline verification (protocol rule 10): the attestation key, given from outside. Evidence that brings
//! its own proves nothing.

use std::path::{Path, PathBuf};

use clap::Args;
use portcullis_attest::endorsement::{EnrolmentError, EnrolmentStatement, VerifierKeys};
use portcullis_attest::key::{EnrolledAk, PublicArea};

use crate::failure::Failure;
use crate::files::{self, SMALL};
use crate::verify::{content, denied, reason};

/// The arguments that give it.
#[derive(Args, Debug)]
pub struct AnchorArguments {
    /// The host's attestation key (TPMT_PUBLIC or TPM2B_PUBLIC): not from the evidence's sender. Without --ek it is proved
    /// that one TPM made the evidence, and not in which boot
    #[arg(long, value_name = "FILE", conflicts_with = "enrolment")]
    ak: Option<PathBuf>,
    /// The host's endorsement key (TPMT_PUBLIC or TPM2B_PUBLIC), the attestation key's parent
    #[arg(long, value_name = "FILE", requires = "ak")]
    ek: Option<PathBuf>,
    /// The verifier's statement of the host's enrolment (`portcullis host enrolment`), instead of keys
    #[arg(long, value_name = "FILE")]
    enrolment: Option<PathBuf>,
    /// The keys (JWKS) of the verifier that signed the statement: not from the evidence's sender
    #[arg(long, value_name = "JWKS", requires = "enrolment")]
    verifier_keys: Option<PathBuf>,
}

/// An attestation key that something outside the evidence vouches for.
pub struct Anchor {
    /// The key.
    pub ak: EnrolledAk,
    /// The host and the verifier that the enrolment is about.
    pub enrolled: Option<(String, String)>,
}

impl AnchorArguments {
    /// Reads it, as it is good at `now`, in seconds since 1970.
    pub fn read(&self, now: u64) -> Result<Anchor, Failure> {
        match (&self.enrolment, &self.verifier_keys, &self.ak) {
            (Some(statement), Some(keys), _) => enrolment(statement, keys, now),
            (Some(_), None, _) => Err(Failure::NotTrusted(vec![reason(
                "ak.unanchored",
                "Whoever signed the enrolment statement is unknown: give the verifier's keys with --verifier-keys.".to_owned(),
            )])),
            (_, _, Some(ak)) => keys(ak, self.ek.as_deref()),
            _ => Err(Failure::NotTrusted(vec![reason(
                "ak.unanchored",
                "No attestation key was given with --ak, nor an enrolment with --enrolment: evidence that brings its own key \
                 proves nothing."
                    .to_owned(),
            )])),
        }
    }
}

fn enrolment(path: &Path, keys: &Path, now: u64) -> Result<Anchor, Failure> {
    let keys_json = files::read(keys, SMALL)?;
    let verifier_keys = VerifierKeys::from_jwks(&keys_json).map_err(|error| content(keys, &error))?;
    let jws = files::read_text(path, SMALL)?;
    let unanchored = |error: &EnrolmentError| {
        let code =
            if matches!(error, EnrolmentError::Expired { .. }) { "ak.enrolment-expired" } else { "ak.unanchored" };
        Failure::NotTrusted(vec![reason(code, format!("The enrolment statement anchors nothing: {error}"))])
    };
    let statement = EnrolmentStatement::verify(&jws, &verifier_keys, now).map_err(|error| unanchored(&error))?;
    let ak = statement.ak().map_err(|error| unanchored(&error))?;
    Ok(Anchor { ak, enrolled: Some((statement.host, statement.verifier)) })
}

fn keys(ak: &Path, ek: Option<&Path>) -> Result<Anchor, Failure> {
    let ak_bytes = files::read(ak, SMALL)?;
    if ak_bytes.trim_ascii_start().starts_with(b"-----BEGIN") {
        return Err(Failure::NotTrusted(vec![reason(
            "ak.attributes-unknown",
            "The attestation key is a PEM, which does not say what the key may sign: give its TPM2B_PUBLIC or TPMT_PUBLIC."
                .to_owned(),
        )]));
    }
    let ak = public_area(ak, ak_bytes)?;
    let Some(path) = ek else {
        return Ok(Anchor { ak: EnrolledAk::without_parent(&ak).map_err(denied)?, enrolled: None });
    };
    let ek_public = public_area(path, files::read(path, SMALL)?)?;
    let ak = EnrolledAk::new(&ak, &ek_public).map_err(denied)?;
    Ok(Anchor { ak, enrolled: None })
}

/// A public area, without the length that TPM2B_PUBLIC puts before it.
fn public_area(path: &Path, bytes: Vec<u8>) -> Result<Vec<u8>, Failure> {
    let area = match bytes.split_first_chunk::<2>() {
        Some((length, rest)) if usize::from(u16::from_be_bytes(*length)) == rest.len() => rest.to_vec(),
        _ => bytes,
    };
    PublicArea::parse(&area).map_err(|error| content(path, &format!("no TPMT_PUBLIC or TPM2B_PUBLIC: {error}")))?;
    Ok(area)
}
