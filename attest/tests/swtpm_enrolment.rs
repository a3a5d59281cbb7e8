//! Enrolment on software TPMs: endorsement key certificates as a vendor makes them, and credentials made without a TPM.

mod swtpm;

use std::time::SystemTime;

use portcullis_attest::endorsement::{EkRoots, EndorsementKey, make_credential};
use portcullis_attest::key::PublicArea;
use portcullis_attest::reason::ReasonCode;
use portcullis_attest::tpm::{Tpm, TpmError};
use portcullis_firmware_fixtures::tpm::{Swtpm, VendorCa};
use swtpm::{Host, codes};

fn roots(vendor: &VendorCa) -> EkRoots {
    EkRoots::from_dir_files([("vendor.pem", vendor.chain_pem().unwrap())]).unwrap()
}

#[test]
fn a_vendor_vouches_for_its_tpm_and_for_no_other() {
    let mut host = Host::new();
    let certificate = host.tpm.ek_certificate().unwrap().expect("a certificate in NV");
    let now = SystemTime::now();
    let vendor = roots(host.swtpm.vendor());
    let ek = EndorsementKey::check(&host.ek_public, Some(&certificate), &[], &vendor, now).unwrap();
    assert!(ek.is_certified());
    assert!(ek.root().unwrap().contains("swtpm-localca-rootca"));

    // Padding, as an NV index larger than its certificate has, is trimmed.
    let padded = [certificate.as_slice(), &[0xFF; 100]].concat();
    EndorsementKey::check(&host.ek_public, Some(&padded), &[], &vendor, now).unwrap();

    // Another vendor with the same names.
    let stranger = roots(&VendorCa::new().unwrap());
    let denied = EndorsementKey::check(&host.ek_public, Some(&certificate), &[], &stranger, now).unwrap_err();
    assert!(codes(&denied).contains(&ReasonCode::EkChainInvalid), "{denied:?}");

    // Another TPM's certificate.
    let other = Swtpm::new().unwrap();
    let foreign = other.ek_certificate_der().unwrap();
    let denied = EndorsementKey::check(&host.ek_public, Some(&foreign), &[], &vendor, SystemTime::now()).unwrap_err();
    assert_eq!(codes(&denied), [ReasonCode::EkCertificateKeyMismatch]);
}

#[test]
fn a_credential_opens_only_in_the_tpm_with_both_keys() {
    let mut host = Host::new();
    let secret = [0xA5; 32];
    let credential = make_credential(&host.ek_public, host.ak.name(), &secret).unwrap();
    let opened = host.tpm.activate_credential(&credential.blob, &credential.secret).unwrap();
    assert_eq!(opened.as_slice(), secret);

    // For another attestation key of the same TPM.
    let other_ak = host.tpm.create_ak().unwrap();
    let name = PublicArea::parse(&other_ak.public).unwrap().name();
    let foreign = make_credential(&host.ek_public, &name, &secret).unwrap();
    let refused = host.tpm.activate_credential(&foreign.blob, &foreign.secret).unwrap_err();
    assert!(matches!(refused, TpmError::WrongCredential), "{refused:?}");

    // In another TPM.
    let mut other = Host::new();
    let refused = other.tpm.activate_credential(&credential.blob, &credential.secret).unwrap_err();
    assert!(matches!(refused, TpmError::WrongCredential), "{refused:?}");

    // Tampered with.
    let mut blob = credential.blob.clone();
    *blob.last_mut().unwrap() ^= 1;
    let refused = host.tpm.activate_credential(&blob, &credential.secret).unwrap_err();
    assert!(matches!(refused, TpmError::WrongCredential), "{refused:?}");

    // The TPM still works, and no handle was left behind by what it refused.
    for _ in 0..5 {
        assert!(host.tpm.activate_credential(&blob, &credential.secret).is_err());
    }
    let opened = host.tpm.activate_credential(&credential.blob, &credential.secret).unwrap();
    assert_eq!(opened.as_slice(), secret);
}

#[test]
fn an_attestation_key_loads_only_where_it_was_made() {
    let host = Host::new();
    let mut other = Host::new();
    assert!(other.tpm.load_ak(&host.ak_blob).is_err());
    let host = host.power_cycle();
    assert_eq!(host.ak.name(), PublicArea::parse(&host.ak_blob.public).unwrap().name());
}

#[test]
fn a_tpm_that_is_not_there_is_unavailable() {
    let refused = Tpm::open("swtpm:host=127.0.0.1,port=1").unwrap_err();
    assert!(matches!(refused, TpmError::Unavailable { .. }), "{refused:?}");
    let refused = Tpm::open("device:/dev/there-is-no-such-tpm").unwrap_err();
    assert!(matches!(refused, TpmError::Unavailable { .. }), "{refused:?}");
    let refused = Tpm::open("carrier-pigeon").unwrap_err();
    assert!(matches!(refused, TpmError::Tcti(_)), "{refused:?}");

    let mut host = Host::new();
    host.swtpm.kill9();
    let refused = host.tpm.quote(&swtpm::binding(portcullis_attest::binding::Purpose::Attest), &swtpm::selection());
    assert!(matches!(refused, Err(TpmError::Unavailable { .. })), "{refused:?}");
}
