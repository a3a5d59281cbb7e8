//! The attester's side: speaks with a TPM 2.0 through tss-esapi and libtss2. Feature `tpm`.
//!
//! [`Tpm`] holds at most two transient objects between calls (the attestation key and one storage parent) and flushes
//! everything else before it returns, because small TPMs have room for three.
//!
//! libtss2 writes its own lines to standard error when the TPM refuses something; the environment variable
//! `TSS2_LOG=all+none`, set before the program starts, silences it. All it could say is in [`TpmError`].

mod attestation;
mod endorsement;
mod error;
mod pcr;
mod sealing;

use tss_esapi::attributes::SessionAttributesBuilder;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind;
use tss_esapi::constants::{CapabilityType, SessionType};
use tss_esapi::handles::{AuthHandle, KeyHandle, ObjectHandle, SessionHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{CapabilityData, Digest, Nonce, SymmetricDefinition};
use tss_esapi::tcti_ldr::TctiNameConf;
use tss_esapi::{Context, WrapperErrorKind};

use self::error::{Answer, answer, words};
use crate::wire::Reader;

pub use attestation::{AkBlob, Certification};
pub use error::TpmError;
pub use sealing::ParentHandle;

/// One connection to one TPM.
pub struct Tpm {
    context: Context,
    tcti: String,
    ek: Option<endorsement::Ek>,
    ak: Option<attestation::LoadedAk>,
    /// The storage parent that is loaded, with its number: a handle to an earlier one is refused.
    parent: Option<(u64, KeyHandle)>,
    parents_made: u64,
}

impl std::fmt::Debug for Tpm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tpm").field("tcti", &self.tcti).finish_non_exhaustive()
    }
}

impl Tpm {
    /// Connects to the TPM that `tcti` names, such as `device:/dev/tpmrm0` or `swtpm:host=127.0.0.1,port=2321`.
    pub fn open(tcti: &str) -> Result<Self, TpmError> {
        let name: TctiNameConf = tcti.parse().map_err(|_| TpmError::Tcti(tcti.to_owned()))?;
        let unavailable =
            |error: tss_esapi::Error| TpmError::Unavailable { tcti: tcti.to_owned(), problem: words(error) };
        let mut context = Context::new(name).map_err(unavailable)?;
        // A TPM that was not started, or failed its self-test, connects all the same.
        context.get_random(8).map_err(unavailable)?;
        Ok(Self { context, tcti: tcti.to_owned(), ek: None, ak: None, parent: None, parents_made: 0 })
    }

    /// Forgets every object that lies in the TPM at `tcti`, if nothing stands between programs and that TPM.
    ///
    /// A program that was killed leaves its objects there, and three of them fill a small TPM. Resource managers
    /// (`device:/dev/tpmrm0`, `tabrmd`) do this themselves and keep programs apart; without one, the caller has to be
    /// the TPM's only user.
    pub fn forget_leftovers(tcti: &str) -> Result<(), TpmError> {
        const FIRST_TRANSIENT: u32 = 0x8000_0000;
        const MOST: u32 = 64;
        if !is_unmanaged(tcti) {
            return Ok(());
        }
        let mut tpm = Self::open(tcti)?;
        let failed = tpm.failed("list its objects");
        let (found, _) = tpm.context.get_capability(CapabilityType::Handles, FIRST_TRANSIENT, MOST).map_err(failed)?;
        if let CapabilityData::Handles(handles) = found {
            for handle in handles.into_inner() {
                // One that is gone by now is what was wanted.
                if let Ok(object) = tpm.context.execute_without_session(|context| context.tr_from_tpm_public(handle)) {
                    tpm.flush(object);
                }
            }
        }
        Ok(())
    }

    /// What an error means for whoever asked the TPM to do `action`.
    fn failed(&self, action: &'static str) -> impl Fn(tss_esapi::Error) -> TpmError + use<> {
        let tcti = self.tcti.clone();
        move |source| match answer(source) {
            Answer::NoConnection
            | Answer::Tpm(Some(Tss2ResponseCodeKind::Initialize | Tss2ResponseCodeKind::Failure)) => {
                TpmError::Unavailable { tcti: tcti.clone(), problem: words(source) }
            }
            _ => TpmError::Failed { action, source },
        }
    }

    /// Forgets an object; a failure is kept from hiding what went on before, and costs at most a slot.
    fn flush(&mut self, handle: impl Into<ObjectHandle>) {
        let _ = self.context.flush_context(handle.into());
    }

    /// Runs `work` with a policy session that `prepare` has satisfied, and ends the session whatever happens.
    fn with_policy<T>(
        &mut self,
        prepare: impl FnOnce(&mut Context, PolicySession) -> tss_esapi::Result<()>,
        work: impl FnOnce(&mut Context, AuthSession) -> tss_esapi::Result<T>,
    ) -> Result<T, tss_esapi::Error> {
        let session = self.context.execute_without_session(|context| {
            context.start_auth_session(
                None,
                None,
                None,
                SessionType::Policy,
                SymmetricDefinition::AES_128_CFB,
                HashingAlgorithm::Sha256,
            )
        })?;
        let session = session.ok_or(tss_esapi::Error::WrapperError(WrapperErrorKind::WrongValueFromTpm))?;
        let result = self.in_session(session, prepare, work);
        self.flush(SessionHandle::from(session));
        result
    }

    fn in_session<T>(
        &mut self,
        session: AuthSession,
        prepare: impl FnOnce(&mut Context, PolicySession) -> tss_esapi::Result<()>,
        work: impl FnOnce(&mut Context, AuthSession) -> tss_esapi::Result<T>,
    ) -> Result<T, tss_esapi::Error> {
        // The session outlives the command that uses it, so that it can be flushed in one place.
        let (attributes, mask) = SessionAttributesBuilder::new().with_continue_session(true).build();
        self.context.tr_sess_set_attributes(session, attributes, mask)?;
        prepare(&mut self.context, PolicySession::try_from(session)?)?;
        work(&mut self.context, session)
    }
}

/// Whether `tcti` leads to a TPM without a resource manager: a simulator, or a device that is not one of Linux's
/// `tpmrm` devices.
fn is_unmanaged(tcti: &str) -> bool {
    let (kind, path) = tcti.split_once(':').unwrap_or((tcti, ""));
    match kind {
        "swtpm" | "mssim" => true,
        // Without a path libtss2 takes the first device that it finds, the managed ones first.
        "device" => !path.is_empty() && !path.contains("tpmrm"),
        _ => false,
    }
}

/// Satisfies the default policy of endorsement keys: knowledge of the endorsement hierarchy's (empty) authorisation.
fn endorsement_policy(context: &mut Context, session: PolicySession) -> tss_esapi::Result<()> {
    context
        .execute_with_session(Some(AuthSession::Password), |context| {
            context.policy_secret(
                session,
                AuthHandle::Endorsement,
                Nonce::default(),
                Digest::default(),
                Nonce::default(),
                None,
            )
        })
        .map(drop)
}

/// The content of a TPM2B that fills `bytes` exactly.
fn unsized_bytes<'a>(bytes: &'a [u8], what: &'static str) -> Result<&'a [u8], TpmError> {
    let malformed = |error: crate::wire::WireError| TpmError::Malformed { what, problem: error.to_string() };
    let mut reader = Reader::new(bytes);
    let content = reader.sized(what).map_err(malformed)?;
    reader.finish().map_err(malformed)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_no_resource_manager_is_cleaned() {
        for tcti in ["swtpm:host=127.0.0.1,port=2321", "swtpm", "mssim:host=x", "device:/dev/tpm0"] {
            assert!(is_unmanaged(tcti), "{tcti}");
        }
        for tcti in
            ["device:/dev/tpmrm0", "device:/dev/tpmrm1", "device", "device:", "tabrmd", "tabrmd:bus_type=system"]
        {
            assert!(!is_unmanaged(tcti), "{tcti}");
        }
    }
}
