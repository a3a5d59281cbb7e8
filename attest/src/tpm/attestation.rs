//! The attestation key: made and loaded under the endorsement key, proved to the verifier, used for quotes and
//! certifications.

use serde::{Deserialize, Serialize};
use serde_with::base64::Base64;
use serde_with::serde_as;
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind;
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Attest, Data, EccPoint, EccScheme, EncryptedSecret, HashScheme, IdObject, KeyDerivationFunctionScheme, Private,
    Public, PublicBuilder, PublicEccParametersBuilder, Signature, SignatureScheme, SymmetricDefinitionObject,
};
use tss_esapi::traits::{Marshall as _, UnMarshall as _};
use zeroize::Zeroizing;

use super::endorsement::public_area;
use super::error::{Answer, answer};
use super::pcr::{Selection, selection_list};
use super::{ParentHandle, Tpm, TpmError, endorsement_policy, unsized_bytes};
use crate::binding::Binding;
use crate::evidence::SignedQuote;
use crate::key::Bank;
use crate::quote::covers;

/// How often a quote is tried while PCRs move.
const ATTEMPTS: u32 = 16;
/// The hash of the attestation key's scheme, and so of the quotes' PCR digests.
const AK_HASH: Bank = Bank::Sha256;

/// An attestation key as it is kept between boots: only the TPM that made it can load it.
#[serde_as]
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct AkBlob {
    /// TPMT_PUBLIC.
    #[serde_as(as = "Base64")]
    pub public: Vec<u8>,
    /// The private area, encrypted by the TPM (the content of TPM2B_PRIVATE).
    #[serde_as(as = "Base64")]
    pub private: Vec<u8>,
}

/// What TPM2_Certify gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certification {
    /// TPMS_ATTEST, the bytes that were signed.
    pub message: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub signature: Vec<u8>,
}

pub(super) struct LoadedAk {
    handle: KeyHandle,
}

impl Tpm {
    /// Makes an attestation key: ECC P-256, ECDSA with SHA-256, restricted, a child of the endorsement key. Does not load it.
    ///
    /// Forgets the storage parent, if one is loaded: to make a key, a TPM needs a slot beside those of its parent and of the
    /// attestation key.
    pub fn create_ak(&mut self) -> Result<AkBlob, TpmError> {
        self.forget_parent();
        let failed = self.failed("make an attestation key");
        let template = ak_template().map_err(&failed)?;
        self.with_ek(|tpm, ek| {
            let made = tpm.with_policy(endorsement_policy, |context, session| {
                context
                    .execute_with_session(Some(session), |context| context.create(ek, template, None, None, None, None))
            });
            let made = made.map_err(failed)?;
            let public = public_area(&made.out_public)?.bytes().to_vec();
            Ok(AkBlob { public, private: made.out_private.value().to_vec() })
        })
    }

    /// Loads an attestation key that this TPM made. One loaded before is forgotten.
    pub fn load_ak(&mut self, blob: &AkBlob) -> Result<(), TpmError> {
        if let Some(old) = self.ak.take() {
            self.flush(old.handle);
        }
        let malformed =
            |error: tss_esapi::Error| TpmError::Malformed { what: "the attestation key", problem: error.to_string() };
        let public = Public::unmarshall(&blob.public).map_err(malformed)?;
        let private = Private::try_from(blob.private.clone()).map_err(malformed)?;
        let failed = self.failed("load the attestation key");
        let handle = self.with_ek(|tpm, ek| {
            let loaded = tpm.with_policy(endorsement_policy, |context, session| {
                context.execute_with_session(Some(session), |context| context.load(ek, private, public))
            });
            loaded.map_err(failed)
        })?;
        self.ak = Some(LoadedAk { handle });
        Ok(())
    }

    /// Opens a credential (TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET) that was made for this endorsement key and the loaded
    /// attestation key.
    pub fn activate_credential(&mut self, blob: &[u8], secret: &[u8]) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let malformed =
            |error: tss_esapi::Error| TpmError::Malformed { what: "the credential", problem: error.to_string() };
        let blob = IdObject::try_from(unsized_bytes(blob, "the credential")?).map_err(malformed)?;
        let secret = EncryptedSecret::try_from(unsized_bytes(secret, "the credential's secret")?).map_err(malformed)?;
        let ak = self.ak_handle()?;
        let failed = self.failed("open the credential");
        self.with_ek(|tpm, ek| {
            let opened = tpm.with_policy(endorsement_policy, |context, session| {
                context.execute_with_sessions((Some(AuthSession::Password), Some(session), None), |context| {
                    context.activate_credential(ak, ek, blob, secret)
                })
            });
            match opened {
                Ok(secret) => Ok(Zeroizing::new(secret.value().to_vec())),
                Err(error) if tpm.is_foreign(error) => Err(TpmError::WrongCredential),
                Err(error) => Err(failed(error)),
            }
        })
    }

    /// Quotes the selected PCRs with the loaded attestation key, bound to `binding`, together with their values. Programs
    /// that start meanwhile move PCR 10: then quote and values do not match, and both are taken again.
    pub fn quote(&mut self, binding: &Binding, selection: &[(Bank, Vec<u8>)]) -> Result<SignedQuote, TpmError> {
        for _ in 0..ATTEMPTS {
            let pcrs = self.read_pcrs(selection)?;
            let (message, signature) = self.quote_once(binding, selection)?;
            if covers(&message, &pcrs, AK_HASH) {
                return Ok(SignedQuote { message, signature, pcrs });
            }
        }
        Err(TpmError::PcrsMoved(ATTEMPTS))
    }

    /// Quotes PCRs 0 to 15 of every active bank ([`Tpm::active_pcrs`]), all in one quote: a discrete TPM takes half a second
    /// for each.
    pub fn quote_active(&mut self, binding: &Binding) -> Result<SignedQuote, TpmError> {
        let selection = self.active_pcrs()?;
        self.quote(binding, &selection)
    }

    fn quote_once(&mut self, binding: &Binding, selection: Selection<'_>) -> Result<(Vec<u8>, Vec<u8>), TpmError> {
        let ak = self.ak_handle()?;
        let list = selection_list(selection)?;
        let failed = self.failed("quote");
        let data = Data::try_from(binding.extra_data().as_slice()).map_err(&failed)?;
        let quoted = self.context.execute_with_session(Some(AuthSession::Password), |context| {
            context.quote(ak, data, SignatureScheme::Null, list)
        });
        signed(quoted).map_err(failed)
    }

    /// Has the loaded attestation key certify a storage parent, bound to `binding`.
    pub fn certify_parent(&mut self, parent: &ParentHandle, binding: &Binding) -> Result<Certification, TpmError> {
        let ak = self.ak_handle()?;
        let parent = self.parent_handle(parent)?;
        let failed = self.failed("certify the storage parent");
        let data = Data::try_from(binding.extra_data().as_slice()).map_err(&failed)?;
        let sessions = (Some(AuthSession::Password), Some(AuthSession::Password), None);
        let certified = self
            .context
            .execute_with_sessions(sessions, |context| context.certify(parent.into(), ak, data, SignatureScheme::Null));
        let (message, signature) = signed(certified).map_err(failed)?;
        Ok(Certification { message, signature })
    }

    /// Whether this is what a TPM answers to something that was encrypted to another key or for another object.
    pub(super) fn is_foreign(&mut self, error: tss_esapi::Error) -> bool {
        use Tss2ResponseCodeKind::{Binding, EccPoint, Failure, Integrity, Size, Value};
        match answer(error) {
            Answer::Tpm(Some(Integrity | Value | EccPoint | Binding | Size)) => true,
            // libtpms calls it a failure when RSA-OAEP does not decrypt, and goes on working.
            Answer::Tpm(Some(Failure)) => self.context.get_random(8).is_ok(),
            _ => false,
        }
    }

    fn ak_handle(&self) -> Result<KeyHandle, TpmError> {
        self.ak.as_ref().map(|ak| ak.handle).ok_or(TpmError::NoAk)
    }
}

fn signed(result: tss_esapi::Result<(Attest, Signature)>) -> Result<(Vec<u8>, Vec<u8>), tss_esapi::Error> {
    let (attest, signature) = result?;
    Ok((attest.marshall()?, signature.marshall()?))
}

fn ak_template() -> tss_esapi::Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        // Its authorisation is empty: there is nothing to guess, so nothing to lock out after crashes.
        .with_no_da(true)
        .with_restricted(true)
        .with_sign_encrypt(true)
        .build()?;
    let parameters = PublicEccParametersBuilder::new()
        .with_symmetric(SymmetricDefinitionObject::Null)
        .with_ecc_scheme(EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256)))
        .with_curve(EccCurve::NistP256)
        .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
        .with_is_signing_key(true)
        .with_is_decryption_key(false)
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
