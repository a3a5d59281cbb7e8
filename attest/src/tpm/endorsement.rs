//! The TPM's endorsement key and its certificate.

use tss_esapi::abstraction::{AsymmetricAlgorithmSelection, ek};
use tss_esapi::constants::CapabilityType;
use tss_esapi::handles::{KeyHandle, PersistentTpmHandle, TpmHandle};
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{CapabilityData, Public};
use tss_esapi::traits::Marshall as _;

use super::{Tpm, TpmError};
use crate::endorsement::is_certificate_for;
use crate::key::PublicArea;

/// Where vendors put the certificate of the RSA-2048 endorsement key (TCG EK Credential Profile, 2.2.1.4).
const CERTIFICATE_INDEX: u32 = 0x01C0_0002;
/// Where whoever provisions a TPM puts the RSA-2048 endorsement key (TCG TPM v2.0 Provisioning Guidance, 7.8).
const PERSISTENT_EK: u32 = 0x8101_0001;
const RSA_2048: AsymmetricAlgorithmSelection = AsymmetricAlgorithmSelection::Rsa(RsaKeyBits::Rsa2048);

/// The endorsement key that is used: as it lies in the TPM, or made anew from the default template whenever it is needed.
pub(super) struct Ek {
    public: PublicArea,
    persistent: Option<KeyHandle>,
}

impl Tpm {
    /// The endorsement key's certificate as the TPM's vendor left it in NV memory; `None` if there is none. May end in padding.
    pub fn ek_certificate(&mut self) -> Result<Option<Vec<u8>>, TpmError> {
        if !self.has_handle(CERTIFICATE_INDEX)? {
            return Ok(None);
        }
        let failed = self.failed("read the endorsement key's certificate");
        ek::retrieve_ek_pubcert(&mut self.context, RSA_2048).map(Some).map_err(failed)
    }

    /// The endorsement key's public area (TPMT_PUBLIC): RSA-2048, from the default template.
    pub fn ek_public(&mut self) -> Result<Vec<u8>, TpmError> {
        let (handle, persistent) = self.load_ek()?;
        if !persistent {
            self.flush(handle);
        }
        match &self.ek {
            Some(ek) => Ok(ek.public.bytes().to_vec()),
            None => Err(TpmError::EkMismatch),
        }
    }

    /// Runs `work` with the endorsement key loaded.
    pub(super) fn with_ek<T>(
        &mut self,
        work: impl FnOnce(&mut Self, KeyHandle) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let (handle, persistent) = self.load_ek()?;
        let result = work(self, handle);
        if !persistent {
            self.flush(handle);
        }
        result
    }

    /// The endorsement key's handle, and whether it stays when flushed.
    fn load_ek(&mut self) -> Result<(KeyHandle, bool), TpmError> {
        if let Some(handle) = self.ek.as_ref().and_then(|ek| ek.persistent) {
            return Ok((handle, true));
        }
        if self.ek.is_none() {
            let certificate = self.ek_certificate()?;
            if let Some((handle, public)) = self.persistent_ek()?
                && matches_certificate(&public, certificate.as_deref())
            {
                self.ek = Some(Ek { public, persistent: Some(handle) });
                return Ok((handle, true));
            }
            let (handle, public) = self.make_ek()?;
            if !matches_certificate(&public, certificate.as_deref()) {
                self.flush(handle);
                return Err(TpmError::EkMismatch);
            }
            self.ek = Some(Ek { public, persistent: None });
            return Ok((handle, false));
        }
        self.make_ek().map(|(handle, _)| (handle, false))
    }

    /// The provisioned endorsement key, if it is one of the default template: making one takes a discrete TPM seconds.
    fn persistent_ek(&mut self) -> Result<Option<(KeyHandle, PublicArea)>, TpmError> {
        if !self.has_handle(PERSISTENT_EK)? {
            return Ok(None);
        }
        let failed = self.failed("read the provisioned endorsement key");
        let handle = PersistentTpmHandle::new(PERSISTENT_EK).map_err(&failed)?;
        let handle: KeyHandle = self.context.tr_from_tpm_public(TpmHandle::Persistent(handle)).map_err(&failed)?.into();
        let (public, _, _) = self.context.read_public(handle).map_err(&failed)?;
        let template = public_area(&ek::create_ek_public_from_default_template_2(RSA_2048, None).map_err(&failed)?);
        Ok(match (public_area(&public), template) {
            (Ok(public), Ok(template))
                if (public.attributes(), public.policy(), public.symmetric())
                    == (template.attributes(), template.policy(), template.symmetric()) =>
            {
                Some((handle, public))
            }
            _ => None,
        })
    }

    fn make_ek(&mut self) -> Result<(KeyHandle, PublicArea), TpmError> {
        let failed = self.failed("make the endorsement key");
        let template = ek::create_ek_public_from_default_template_2(RSA_2048, None).map_err(&failed)?;
        let made = self.context.execute_with_session(Some(AuthSession::Password), |context| {
            context.create_primary(Hierarchy::Endorsement, template, None, None, None, None)
        });
        let made = made.map_err(&failed)?;
        match public_area(&made.out_public) {
            Ok(public) => Ok((made.key_handle, public)),
            Err(error) => {
                self.flush(made.key_handle);
                Err(error)
            }
        }
    }

    /// Whether the TPM has something at this NV index or persistent handle. Asking first keeps libtss2 from complaining.
    fn has_handle(&mut self, wanted: u32) -> Result<bool, TpmError> {
        let failed = self.failed("list its handles");
        let (data, _) = self
            .context
            .execute_without_session(|context| context.get_capability(CapabilityType::Handles, wanted, 1))
            .map_err(failed)?;
        let CapabilityData::Handles(handles) = data else { return Ok(false) };
        Ok(handles.iter().any(|handle| u32::from(*handle) == wanted))
    }
}

/// Whether the certificate, if there is one that can be read, is for this key. One that cannot be read is for the verifier to
/// refuse or to do without; here it only fails to help in choosing the key.
fn matches_certificate(public: &PublicArea, certificate: Option<&[u8]>) -> bool {
    certificate.is_none_or(|der| is_certificate_for(der, public).unwrap_or(true))
}

/// A public area of the TPM, as this crate reads them.
pub(super) fn public_area(public: &Public) -> Result<PublicArea, TpmError> {
    let malformed = |problem: String| TpmError::Malformed { what: "a public area", problem };
    let bytes = public.marshall().map_err(|error| malformed(error.to_string()))?;
    PublicArea::parse(&bytes).map_err(|error| malformed(error.to_string()))
}
