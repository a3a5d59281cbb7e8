//! What is kept of a host: the PCR banks that were pinned, and what stays with its TPM's admission once it is forgotten.

use super::*;

#[test]
fn n90_banks_are_pinned_once_and_replaced_after_an_operators_word() {
    let (_dir, store) = placed();
    let same = Enrolment { ak_name: "a".into(), ..enrolment("h1", EK) };
    let pinned = || store.host("h1", 1).unwrap().unwrap().banks;
    assert_eq!((store.enrol(&same, &banks(), 1).unwrap(), pinned()), (vec![], Some(banks())));
    for other in [r#"{"sha256":"extended"}"#, r#"{"sha1":"extended","sha256":"extended"}"#, "{}"] {
        let other: PinnedBanks = serde_json::from_str(other).unwrap();
        assert_eq!(store.enrol(&same, &other, 1).unwrap(), [ServiceCode::EnrolmentBanksConflict]);
        assert_eq!(pinned(), Some(banks()));
    }
    let other: PinnedBanks = serde_json::from_str(r#"{"sha256":"extended"}"#).unwrap();
    assert_eq!((store.forget_banks("h1").unwrap(), store.forget_banks("h2").unwrap()), (Some(true), None));
    assert_eq!((pinned(), store.host("h1", 1).unwrap().unwrap().trusted_until), (None, None));
    assert_eq!((store.enrol(&same, &other, 1).unwrap(), pinned()), (vec![], Some(other)));
}

/// To forget a host is no way to other banks, nor to get rid of a certificate that will be revoked.
#[test]
fn n90_a_forgotten_host_keeps_its_banks_and_certificate_while_its_tpm_is_admitted() {
    let (_dir, store) = placed();
    let same = Enrolment { ak_name: "a".into(), ..enrolment("h1", EK) };
    let certified = Enrolment { certificate: "verified".into(), ek_certificate: Some(vec![7]), ..same.clone() };
    let other: PinnedBanks = serde_json::from_str(r#"{"sha256":"extended"}"#).unwrap();
    assert_eq!(store.enrol(&certified, &banks(), 1).unwrap(), []);
    let forget = |at| assert_eq!(store.remove_host("h1", at).unwrap(), Some(true));
    let row = || store.host("h1", 60).unwrap().unwrap();
    // Also after it was forgotten twice, and with another attestation key.
    for ak_name in ["b", "c"] {
        forget(60);
        let new = Enrolment { ak_name: ak_name.into(), ..same.clone() };
        assert_eq!(store.enrol(&new, &other, 60).unwrap(), [ServiceCode::EnrolmentBanksConflict]);
        assert!(store.host("h1", 60).unwrap().is_none());
        assert_eq!(store.enrol(&new, &banks(), 60).unwrap(), []);
        assert_eq!((row().banks, row().ek_certificate), (Some(banks()), Some(vec![7])));
        assert!(row().admitted && row().is_certified() && row().trusted_until.is_none());
    }
    // Another certificate is taken, as from a host that is there.
    forget(60);
    let renewed = Enrolment { ek_certificate: Some(vec![8]), ..same.clone() };
    assert_eq!(store.enrol(&renewed, &banks(), 60).unwrap(), []);
    assert_eq!((row().ek_certificate.clone(), row().is_certified()), (Some(vec![8]), false));
    // An operator's word accepts others: for the host that is there, and for one that was forgotten.
    for before in [false, true] {
        if before {
            assert_eq!(store.forget_banks("h1").unwrap(), Some(true));
        }
        forget(60);
        if !before {
            assert_eq!((store.forget_banks("h1").unwrap(), store.forget_banks("h1").unwrap()), (Some(true), None));
        }
        let next = if before { banks() } else { other.clone() };
        assert_eq!(store.enrol(&same, &next, 60).unwrap(), []);
        assert_eq!(row().banks, Some(next));
    }
    // It goes with the admission, whichever goes first; and it is of this TPM alone.
    for host_first in [true, false] {
        if host_first {
            forget(60);
        }
        assert!(store.withdraw(EK).unwrap());
        if !host_first {
            forget(60);
        }
        admit(&store, EK, "h1");
        let next = if host_first { other.clone() } else { banks() };
        assert_eq!(store.enrol(&same, &next, 60).unwrap(), []);
        assert_eq!((row().banks, row().ek_certificate), (Some(next), None));
    }
    forget(60);
    assert!(store.withdraw(EK).unwrap());
    let another = enrolment("h1", &"b".repeat(64));
    admit(&store, &another.ek, "h1");
    assert_eq!(store.enrol(&another, &other, 60).unwrap(), []);
}

/// Root can make it necessary to forget a host; that does not open it for new work.
#[test]
fn a_forgotten_host_stays_cordoned_while_its_tpm_is_admitted() {
    let (_dir, store) = placed();
    let same = Enrolment { ak_name: "a".into(), ..enrolment("h1", EK) };
    let cordon = || store.host("h1", 60).unwrap().unwrap().cordon;
    for reason in [Some("disk fails"), None] {
        assert!(store.cordon("h1", reason).unwrap());
        assert_eq!(store.remove_host("h1", 60).unwrap(), Some(true));
        assert_eq!(store.enrol(&same, &banks(), 60).unwrap(), []);
        assert_eq!(cordon().as_deref(), reason);
        // Enrolling again, as agents do at each start, changes nothing.
        assert_eq!((store.enrol(&same, &banks(), 60).unwrap(), cordon().as_deref()), (vec![], reason));
    }
}

/// Anybody can enrol under the name of a host that was forgotten. An operator who accepts the banks that this one shows does
/// not accept others of the admitted TPM.
#[test]
fn n90_the_banks_of_another_tpm_are_not_accepted_for_the_admitted_one() {
    let (_dir, store) = placed();
    let same = Enrolment { ak_name: "a".into(), ..enrolment("h1", EK) };
    assert_eq!(store.enrol(&same, &banks(), 1).unwrap(), []);
    assert_eq!(store.remove_host("h1", 60).unwrap(), Some(true));
    let other: PinnedBanks = serde_json::from_str(r#"{"sha256":"extended"}"#).unwrap();
    assert_eq!(store.enrol(&enrolment("h1", &"b".repeat(64)), &other, 60).unwrap(), []);
    assert_eq!(store.forget_banks("h1").unwrap(), Some(false));
    assert_eq!(store.enrol(&same, &other, 60).unwrap(), [ServiceCode::EnrolmentBanksConflict]);
    // The twin: once that one is forgotten, the word is for the admitted TPM.
    assert_eq!(store.remove_host("h1", 60).unwrap(), Some(true));
    assert_eq!(store.forget_banks("h1").unwrap(), Some(true));
    assert_eq!(store.enrol(&same, &other, 60).unwrap(), []);
}
