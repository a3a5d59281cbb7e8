//! The storage parent that dies with the boot, and keys wrapped for it (protocol rule 4).

use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind;
use tss_esapi::handles::{KeyHandle, ObjectHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Digest, EccPoint, EccScheme, EncryptedSecret, KeyDerivationFunctionScheme, Private, Public, PublicBuilder,
    PublicEccParametersBuilder, SymmetricDefinitionObject,
};
use tss_esapi::traits::UnMarshall as _;
use zeroize::Zeroizing;

use super::endorsement::public_area;
use super::error::{Answer, answer};
use super::pcr::selection_list;
use super::{Tpm, TpmError, unsized_bytes};
use crate::key::Bank;
use crate::release::{RELEASE_PCRS, WrappedKey};

/// A storage parent that a [`Tpm`] holds, until the next one is asked for.
#[derive(Debug)]
pub struct ParentHandle {
    number: u64,
    public: Vec<u8>,
}

impl ParentHandle {
    /// The parent's public area (TPMT_PUBLIC).
    #[must_use]
    pub fn public(&self) -> &[u8] {
        &self.public
    }
}

impl Tpm {
    /// Makes a storage parent in the NULL hierarchy, whose seed the TPM replaces at every reset. One made before is forgotten.
    pub fn null_parent(&mut self) -> Result<ParentHandle, TpmError> {
        self.forget_parent();
        let failed = self.failed("make a storage parent");
        let template = parent_template().map_err(&failed)?;
        let made = self.context.execute_with_session(Some(AuthSession::Password), |context| {
            context.create_primary(Hierarchy::Null, template, None, None, None, None)
        });
        let made = made.map_err(failed)?;
        let public = match public_area(&made.out_public) {
            Ok(public) => public.bytes().to_vec(),
            Err(error) => {
                self.flush(made.key_handle);
                return Err(error);
            }
        };
        self.parents_made = self.parents_made.wrapping_add(1);
        self.parent = Some((self.parents_made, made.key_handle));
        Ok(ParentHandle { number: self.parents_made, public })
    }

    /// Opens a key that was wrapped for this parent, if the PCRs still have the values it was wrapped for. Forgets the parent.
    #[allow(clippy::needless_pass_by_value, reason = "the parent is gone afterwards, so its handle must be too")]
    pub fn import_unseal(
        &mut self,
        parent: ParentHandle,
        wrapped: &WrappedKey,
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let handle = self.parent_handle(&parent)?;
        let opened = self.open_under(handle, wrapped);
        self.forget_parent();
        opened
    }

    pub(super) fn forget_parent(&mut self) {
        if let Some((_, old)) = self.parent.take() {
            self.flush(old);
        }
    }

    pub(super) fn parent_handle(&self, parent: &ParentHandle) -> Result<KeyHandle, TpmError> {
        match self.parent {
            Some((number, handle)) if number == parent.number => Ok(handle),
            _ => Err(TpmError::NoParent),
        }
    }

    fn open_under(&mut self, parent: KeyHandle, wrapped: &WrappedKey) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let object = self.import(parent, wrapped)?;
        let opened = self.unseal(object);
        self.flush(object);
        opened
    }

    /// Imports and loads the sealed object.
    fn import(&mut self, parent: KeyHandle, wrapped: &WrappedKey) -> Result<KeyHandle, TpmError> {
        let malformed =
            |error: tss_esapi::Error| TpmError::Malformed { what: "the wrapped key", problem: error.to_string() };
        let public = Public::unmarshall(unsized_bytes(&wrapped.public, "the wrapped key's public area")?);
        let public = public.map_err(malformed)?;
        let duplicate = Private::try_from(unsized_bytes(&wrapped.duplicate, "the wrapped key")?).map_err(malformed)?;
        let seed = unsized_bytes(&wrapped.seed, "the wrapped key's seed")?;
        let seed = EncryptedSecret::try_from(seed).map_err(malformed)?;
        let failed = self.failed("import the wrapped key");
        let loaded = self.context.execute_with_session(Some(AuthSession::Password), |context| {
            let none = SymmetricDefinitionObject::Null;
            let private = context.import(parent.into(), None, public.clone(), duplicate, seed, none)?;
            context.load(parent, private, public)
        });
        loaded.map_err(|error| if self.is_foreign(error) { TpmError::WrongParent } else { failed(error) })
    }

    fn unseal(&mut self, object: KeyHandle) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let failed = self.failed("unseal the key");
        let list = selection_list(&[(Bank::Sha256, RELEASE_PCRS.to_vec())])?;
        let opened = self.with_policy(
            // An empty digest: the TPM takes the PCRs as they are, and the object's policy says which it wants.
            |context, session| {
                context.execute_without_session(|context| context.policy_pcr(session, Digest::default(), list))
            },
            |context, session| {
                context.execute_with_session(Some(session), |context| context.unseal(ObjectHandle::from(object)))
            },
        );
        match opened {
            Ok(key) => Ok(Zeroizing::new(key.value().to_vec())),
            Err(error) => Err(match answer(error) {
                Answer::Tpm(Some(Tss2ResponseCodeKind::PolicyFail | Tss2ResponseCodeKind::PcrChanged)) => {
                    TpmError::PolicyFailed
                }
                _ => failed(error),
            }),
        }
    }
}

fn parent_template() -> tss_esapi::Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_decrypt(true)
        .build()?;
    let parameters = PublicEccParametersBuilder::new()
        .with_symmetric(SymmetricDefinitionObject::AES_128_CFB)
        .with_ecc_scheme(EccScheme::Null)
        .with_curve(EccCurve::NistP256)
        .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
        .with_is_signing_key(false)
        .with_is_decryption_key(true)
        .with_restricted(true)
        .build()?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}
