//! Wrapped keys on software TPMs: they open in the TPM, boot and state they were made for, and nowhere else (protocol
//! rule 4, N82, N83).

mod swtpm;

use portcullis_attest::appraise::BankCaveat;
use portcullis_attest::binding::{Binding, Purpose};
use portcullis_attest::eventlog::EventType;
use portcullis_attest::key::Bank;
use portcullis_attest::reason::ReasonCode;
use portcullis_attest::release::{CertifiedParent, RELEASE_PCRS, ReleaseError, WrappedKey, wrap_key};
use portcullis_attest::tpm::{ParentHandle, TpmError};
use swtpm::{Host, binding, codes, selection};
use tss_esapi::Context;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind;
use tss_esapi::handles::ObjectHandle;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{EncryptedSecret, Private, Public, SymmetricDefinitionObject};
use tss_esapi::traits::{Marshall as _, UnMarshall as _};

const KEY: [u8; 64] = [0x42; 64];

/// What the verifier does for a host that asks for a key: the parent's certification and the quote are checked, then the
/// key is wrapped.
fn release(host: &mut Host) -> (ParentHandle, WrappedKey) {
    let (parent, certified) = certified_parent(host);
    let appraisal = host.appraise(Bank::Sha256, &selection());
    let wrapped = wrap_key(&KEY, &certified, &appraisal).unwrap();
    (parent, wrapped)
}

fn certified_parent(host: &mut Host) -> (ParentHandle, CertifiedParent) {
    let asked = binding(Purpose::Parent);
    let parent = host.tpm.null_parent().unwrap();
    let proof = host.tpm.certify_parent(&parent, &asked).unwrap();
    let certified =
        CertifiedParent::verify(parent.public(), &proof.message, &proof.signature, &host.ak, &asked).unwrap();
    (parent, certified)
}

/// A host that booted.
fn booted() -> Host {
    let mut host = Host::new();
    host.boot();
    host
}

#[test]
fn a_wrapped_key_opens_where_it_was_made_for() {
    let mut host = booted();
    for _ in 0..3 {
        let (parent, wrapped) = release(&mut host);
        assert_eq!(host.tpm.import_unseal(parent, &wrapped).unwrap().as_slice(), KEY);
    }
    // PCR 10 moves with every program and is judged, not compared: it must not close the key.
    let (parent, wrapped) = release(&mut host);
    host.tpm.extend(10, &[(Bank::Sha256, vec![1; 32])]).unwrap();
    assert_eq!(host.tpm.import_unseal(parent, &wrapped).unwrap().as_slice(), KEY);
    // So does PCR 15, which systemd extends while the system runs.
    let mut host = booted();
    let (parent, wrapped) = release(&mut host);
    host.tpm.extend(15, &[(Bank::Sha256, vec![1; 32])]).unwrap();
    assert_eq!(host.tpm.import_unseal(parent, &wrapped).unwrap().as_slice(), KEY);
}

#[test]
fn n82_no_key_opens_after_a_change_of_a_static_pcr() {
    let mut host = booted();
    for pcr in RELEASE_PCRS {
        let (parent, wrapped) = release(&mut host);
        // What may follow the separators: the firmware's actions, and what boot loaders measure.
        let event_type = if pcr < 8 { EventType::EFI_ACTION } else { EventType::IPL };
        host.measure(pcr, event_type, b"more");
        let refused = host.tpm.import_unseal(parent, &wrapped).unwrap_err();
        assert!(matches!(refused, TpmError::PolicyFailed), "PCR {pcr}: {refused:?}");
    }
}

#[test]
fn n82_no_key_opens_after_a_reset() {
    let mut host = booted();
    let (parent, wrapped) = release(&mut host);
    let mut host = host.power_cycle();
    // The old parent is gone with the boot; a new one has another seed.
    assert!(matches!(host.tpm.import_unseal(parent, &wrapped), Err(TpmError::NoParent)));
    let parent = host.tpm.null_parent().unwrap();
    let refused = host.tpm.import_unseal(parent, &wrapped).unwrap_err();
    assert!(matches!(refused, TpmError::WrongParent), "{refused:?}");
}

#[test]
fn n82_no_key_opens_in_another_tpm() {
    let mut honest = booted();
    let mut tampered = booted();
    let (_, wrapped) = release(&mut honest);
    let parent = tampered.tpm.null_parent().unwrap();
    let refused = tampered.tpm.import_unseal(parent, &wrapped).unwrap_err();
    assert!(matches!(refused, TpmError::WrongParent), "{refused:?}");
}

/// Opens a wrapped key in its parent, made anew in the same boot, as any program could: with the object's empty password in
/// place of its policy.
fn unseal_by_password(tcti: &str, parent_public: &[u8], wrapped: &WrappedKey) -> Result<Vec<u8>, tss_esapi::Error> {
    let mut context = Context::new(tcti.parse().unwrap()).unwrap();
    context.set_sessions((Some(AuthSession::Password), None, None));
    // A template is the public area without its point.
    let template = [&parent_public[..parent_public.len() - 2 * (2 + 32)], &[0; 4]].concat();
    let template = Public::unmarshall(&template).unwrap();
    let parent = context.create_primary(Hierarchy::Null, template, None, None, None, None).unwrap();
    assert_eq!(parent.out_public.marshall().unwrap(), parent_public);
    let public = Public::unmarshall(&wrapped.public[2..]).unwrap();
    let duplicate = Private::try_from(&wrapped.duplicate[2..]).unwrap();
    let seed = EncryptedSecret::try_from(&wrapped.seed[2..]).unwrap();
    let none = SymmetricDefinitionObject::Null;
    let private = context.import(parent.key_handle.into(), None, public.clone(), duplicate, seed, none).unwrap();
    let object = context.load(parent.key_handle, private, public).unwrap();
    context.unseal(ObjectHandle::from(object)).map(|key| key.value().to_vec())
}

#[test]
fn n82_no_key_opens_with_a_password_in_place_of_the_policy() {
    let mut host = booted();
    let (parent, wrapped) = release(&mut host);
    let parent_public = parent.public().to_vec();
    assert_eq!(host.tpm.import_unseal(parent, &wrapped).unwrap().as_slice(), KEY);
    let Host { tpm, swtpm, .. } = host;
    drop(tpm);
    let refused = unseal_by_password(&swtpm.tcti(), &parent_public, &wrapped).unwrap_err();
    let tss_esapi::Error::Tss2Error(code) = refused else { panic!("{refused:?}") };
    assert_eq!(code.kind(), Some(Tss2ResponseCodeKind::AuthUnavailable));
}

#[test]
fn a_wrapped_key_that_was_tampered_with_does_not_open() {
    let mut host = booted();
    for field in 0..2 {
        let (parent, mut wrapped) = release(&mut host);
        let bytes = if field == 0 { &mut wrapped.public } else { &mut wrapped.duplicate };
        *bytes.last_mut().unwrap() ^= 1;
        let refused = host.tpm.import_unseal(parent, &wrapped).unwrap_err();
        assert!(matches!(refused, TpmError::WrongParent), "{refused:?}");
    }
}

#[test]
fn n83_a_parent_certified_for_something_else_or_by_another_is_refused() {
    let mut honest = Host::new();
    let tampered = Host::new();
    let asked = binding(Purpose::Parent);
    let parent = honest.tpm.null_parent().unwrap();
    let proof = honest.tpm.certify_parent(&parent, &asked).unwrap();
    let verify = |public: &[u8], ak, expected: &Binding| {
        CertifiedParent::verify(public, &proof.message, &proof.signature, ak, expected).map_err(|bad| codes(&bad))
    };
    verify(parent.public(), &honest.ak, &asked).unwrap();

    let other = Binding { nonce: vec![1; 32], ..asked.clone() };
    assert_eq!(verify(parent.public(), &honest.ak, &other).unwrap_err(), [ReasonCode::ParentBindingMismatch]);
    let other = Binding { purpose: Purpose::Launch, ..asked.clone() };
    assert_eq!(verify(parent.public(), &honest.ak, &other).unwrap_err(), [ReasonCode::ParentBindingMismatch]);
    assert_eq!(verify(parent.public(), &tampered.ak, &asked).unwrap_err(), [ReasonCode::ParentNotCertified]);
    // A parent made in software, or any other than the certified one.
    let mut software = parent.public().to_vec();
    *software.last_mut().unwrap() ^= 1;
    let denied = verify(&software, &honest.ak, &asked).unwrap_err();
    assert_eq!(denied, [ReasonCode::ParentNotCertified, ReasonCode::ParentHierarchy]);
    // A quote is no certification.
    let quote = honest.tpm.quote(&asked, &selection()).unwrap();
    let denied =
        CertifiedParent::verify(parent.public(), &quote.message, &quote.signature, &honest.ak, &asked).unwrap_err();
    assert_eq!(codes(&denied), [ReasonCode::ParentNotCertified]);
}

#[test]
fn no_key_is_wrapped_across_tpms_or_boots() {
    let (mut host, mut other) = (booted(), booted());
    let (_, parent) = certified_parent(&mut host);
    let foreign = other.appraise(Bank::Sha256, &selection());
    assert!(matches!(wrap_key(&KEY, &parent, &foreign), Err(ReleaseError::OtherTpm)));
    let mut host = host.power_cycle();
    host.boot();
    let later = host.appraise(Bank::Sha256, &selection());
    assert!(matches!(wrap_key(&KEY, &parent, &later), Err(ReleaseError::OtherBoot)));

    let (_, parent) = certified_parent(&mut host);
    assert!(matches!(wrap_key(&[], &parent, &later), Err(ReleaseError::KeyLength(0))));
    assert!(matches!(wrap_key(&[0; 129], &parent, &later), Err(ReleaseError::KeyLength(129))));
    // Keys are bound to the sha256 bank, whichever bank was judged.
    let [_, _, sha384] = <[_; 3]>::try_from(selection()).unwrap();
    let other_bank = host.appraise(Bank::Sha384, &[sha384]);
    assert!(matches!(wrap_key(&KEY, &parent, &other_bank), Err(ReleaseError::PcrMissing(0))));
    // Nor are they bound to a sha256 bank into which the firmware does not measure.
    let mut host = Host::new();
    host.banks = vec![Bank::Sha384];
    host.boot();
    let (_, parent) = certified_parent(&mut host);
    let blank = host.appraise(Bank::Sha384, &selection());
    assert!(matches!(wrap_key(&KEY, &parent, &blank), Err(ReleaseError::Bank(BankCaveat::Unextended))));
}
