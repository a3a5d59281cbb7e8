//! Freshness and the boot instance: N39 to N43.

use super::host::{Host, codes};
use crate::appraise::{Appraisal, Judged, static_digest};
use crate::key::Bank;
use crate::reason::{Reason, ReasonCode as Code};
use crate::release::{ReleaseError, wrap_key};

/// The same host after `change`, judged with what was judged before.
fn after(change: fn(&mut Host)) -> (Judged, Result<Appraisal, Vec<Reason>>) {
    let judged = Host::good().appraise().unwrap().judged();
    let mut host = Host::good();
    host.clock_ms += 1_000;
    change(&mut host);
    let evidence = host.evidence_of(host.pcrs());
    let appraisal = host.appraise_with(&evidence, Some(&judged));
    (judged, appraisal)
}

fn denied(change: fn(&mut Host)) -> Vec<Code> {
    codes(&after(change).1.expect_err("should have been denied"))
}

#[test]
fn what_was_judged_comes_back_from_its_json() {
    let judged = Host::good().appraise().unwrap().judged();
    let json = serde_json::to_string(&judged).unwrap();
    assert_eq!(serde_json::from_str::<Judged>(&json).unwrap(), judged);
}

/// What version 0.1 stored says nothing of which PCRs its digest is: PCRs 0 to 9 and 14 of the same boot still continue it.
#[test]
fn what_was_judged_by_fewer_pcrs_is_compared_by_these() {
    let appraisal = Host::good().appraise().unwrap();
    let mut json = serde_json::to_value(appraisal.judged()).unwrap();
    json.as_object_mut().unwrap().remove("static_of");
    let mut pcrs = appraisal.static_pcrs();
    pcrs.retain(|pcr, _| *pcr <= 9 || *pcr == 14);
    json["static_pcrs"] = hex::encode(static_digest(appraisal.bank(), &pcrs)).into();
    let old: Judged = serde_json::from_value(json).unwrap();
    let again = |host: &Host| host.appraise_with(&host.evidence_of(host.pcrs()), Some(&old));
    again(&Host::good()).unwrap().continues(&old).unwrap();
    let wrong = Judged { static_pcrs: [9; 32], ..old.clone() };
    let host = Host::good();
    let reasons = host.appraise_with(&host.evidence_of(host.pcrs()), Some(&wrong)).unwrap_err();
    assert_eq!(codes(&reasons), [Code::BootStaticPcrs]);
}

#[test]
fn the_same_boot_continues() {
    let (judged, appraisal) = after(|_| {});
    appraisal.unwrap().continues(&judged).unwrap();
}

#[test]
fn n39_the_clock_does_not_go_backwards_within_a_boot() {
    assert_eq!(denied(|host| host.clock_ms -= 1_001), [Code::BootClock]);
    after(|host| host.clock_ms -= 1_000).1.unwrap();
    // After a reset the clock may be behind: the counter says so.
    after(|host| {
        host.clock_ms = 1;
        host.reset_count += 1;
    })
    .1
    .unwrap();
}

#[test]
fn n40_counters_do_not_go_backwards() {
    assert_eq!(denied(|host| host.reset_count -= 1), [Code::BootResetCount]);
    let judged = {
        let mut host = Host::good();
        host.restart_count = 3;
        host.appraise().unwrap().judged()
    };
    let host = Host::good();
    let reasons = host.appraise_with(&host.evidence_of(host.pcrs()), Some(&judged)).unwrap_err();
    assert_eq!(codes(&reasons), [Code::BootRestartCount]);
}

#[test]
fn n41_after_a_reset_nothing_continues() {
    for change in [|host: &mut Host| host.reset_count += 1, |host: &mut Host| host.restart_count += 1] {
        let (judged, appraisal) = after(change);
        let reasons = appraisal.unwrap().continues(&judged).unwrap_err();
        assert!(codes(&reasons).contains(&Code::BootChanged));
    }
}

#[test]
fn n42_an_unsafe_clock_is_not_compared_and_the_counters_still_are() {
    after(|host| {
        host.safe = false;
        host.clock_ms = 1;
    })
    .1
    .unwrap();
    assert_eq!(
        denied(|host| {
            host.safe = false;
            host.reset_count -= 1;
        }),
        [Code::BootResetCount]
    );
    // Nor is one compared with what it said while it was unsafe.
    let mut host = Host::good();
    host.safe = false;
    let unsafe_before = host.appraise().unwrap().judged();
    host.safe = true;
    host.clock_ms = 1;
    host.appraise_with(&host.evidence_of(host.pcrs()), Some(&unsafe_before)).unwrap();
}

#[test]
fn n43_another_tpm_firmware_waits_for_an_operator() {
    assert_eq!(denied(|host| host.firmware_version += 1), [Code::BootFirmwareVersion]);
}

#[test]
fn another_tpm_is_not_the_one_that_was_judged() {
    let mut judged = Host::good().appraise().unwrap().judged();
    judged.boot.ek = Some("ab".repeat(32));
    let host = Host::good();
    let reasons = host.appraise_with(&host.evidence_of(host.pcrs()), Some(&judged)).unwrap_err();
    assert_eq!(codes(&reasons), [Code::BootOtherTpm]);
}

#[test]
fn static_pcrs_that_change_within_a_boot_are_a_denial() {
    let reasons = after(|host| {
        host.log.grub("grub_cmd", "echo more");
        host.accept_log();
        // The list of programs would differ too: its first entry speaks of the PCRs.
        host.ima.entries.truncate(1);
    })
    .1
    .unwrap_err();
    assert!(codes(&reasons).contains(&Code::ImaHistoryChanged));

    let mut judged = Host::good().appraise().unwrap().judged();
    judged.static_pcrs = [9; 32];
    let host = Host::good();
    let reasons = host.appraise_with(&host.evidence_of(host.pcrs()), Some(&judged)).unwrap_err();
    assert_eq!(codes(&reasons), [Code::BootStaticPcrs]);

    // Also of a launch that is compared only after it was appraised.
    let (good, appraisal) = after(|_| {});
    let appraisal = appraisal.unwrap();
    appraisal.continues(&good).unwrap();
    let other = Judged { static_pcrs: [9; 32], ..good };
    assert_eq!(codes(&appraisal.continues(&other).unwrap_err()), [Code::BootStaticPcrs]);
}

/// The same bytes are another state in another bank.
#[test]
fn static_pcrs_are_those_of_a_bank() {
    let pcrs = (0..=9).map(|pcr| (pcr, vec![pcr; 32])).collect();
    assert_ne!(static_digest(Bank::Sha256, &pcrs), static_digest(Bank::Sm3_256, &pcrs));
    assert_eq!(static_digest(Bank::Sha256, &pcrs), static_digest(Bank::Sha256, &pcrs));
}

/// The key alone anchors that one TPM made the evidence, and nothing of which boot it was.
#[test]
fn without_the_parent_of_the_key_no_boot_is_proved() {
    let mut host = Host::good();
    let public = host.ak.public().clone();
    let judged = host.appraise().unwrap().judged();
    let ak = crate::key::EnrolledAk::without_parent(&host.ak_public()).unwrap();
    assert_eq!((ak.public(), ak.qualified_name()), (&public, None));
    let evidence = host.evidence_of(host.pcrs());
    host.ak = ak;
    // Though the caller names an endorsement key: nothing ties the attestation key to it.
    let appraisal = host.appraise_with(&evidence, None).unwrap();
    assert_eq!(appraisal.boot().ek, None);
    assert!(!appraisal.boot().is_same_boot(&appraisal.boot()));
    appraisal.continues(&appraisal.judged()).expect_err("nothing says that it is the same boot");
    assert_eq!(codes(&host.appraise_with(&evidence, Some(&judged)).unwrap_err()), [Code::BootOtherTpm]);
    // Two unknown TPMs are not one.
    let bare = appraisal.judged();
    assert_eq!(codes(&host.appraise_with(&evidence, Some(&bare)).unwrap_err()), [Code::BootOtherTpm]);
}

/// A parent outlives its TPM's resume from sleep (restartCount), and what was appraised before it does not.
#[test]
fn n82_a_key_is_wrapped_only_for_a_parent_of_the_same_boot() {
    for (resets, restarts, same) in [(0, 0, true), (1, 0, false), (0, 1, false)] {
        let mut host = Host::good();
        let appraisal = host.appraise().unwrap();
        host.reset_count += resets;
        host.restart_count += restarts;
        let wrapped = wrap_key(&[1; 32], &host.certified_parent(), &appraisal);
        assert_eq!(wrapped.is_ok(), same, "{resets} resets, {restarts} restarts later");
        assert!(same || matches!(wrapped, Err(ReleaseError::OtherBoot)));
    }
}
