//! Shim's settings and lists with Secure Boot on: N92 and N101.

use super::host::{Host, codes};
use super::policy::{authority, demand, host_with, replace, sha256};
use crate::appraise::{Policy, PolicyError};
use crate::eventlog::log_builder::{LogBuilder, variable};
use crate::eventlog::{EventType, Guid};
use crate::reason::ReasonCode as Code;

const AUTHORITY: EventType = EventType::EFI_VARIABLE_AUTHORITY;

/// A variable as shim measures it into PCR 7.
fn setting(log: &mut LogBuilder, name: &str, content: &[u8]) {
    log.event(7, AUTHORITY, &variable(Guid::SHIM_LOCK, name, content));
}

/// `mokutil --disable-validation`: shim says so in both PCRs.
fn disabled(log: &mut LogBuilder, content: &[u8]) {
    log.measure(14, EventType::IPL, b"MokSBState\0", content);
    setting(log, "MokSBState", content);
}

#[test]
fn n101_shims_validation_is_demanded_with_secure_boot() {
    let good = Host::good().appraise().unwrap();
    assert_eq!((good.shim_validation(), good.sbat_date()), (Some(true), Some(2_022_111_500)));
    for content in [&[1_u8][..], &[2], &[255], &[1, 0], b""] {
        let mut host = host_with(|log| disabled(log, content));
        assert_eq!(host.codes(), [Code::PolicyShimValidation], "{content:?}");
        assert_eq!(host.denied()[0].event.as_deref(), Some("MokSBState"));
        // A policy may do without, if it says so, and one that does not demand Secure Boot does.
        demand(&mut host, "[shim]\nvalidation = false");
        assert_eq!(host.appraise().unwrap().shim_validation(), Some(false));
        host.policy = Policy { secure_boot: false, ..Policy::from_toml(super::host::POLICY).unwrap() };
        host.appraise().unwrap();
    }
    // The twin: the setting is there and says that shim verifies.
    let host = host_with(|log| disabled(log, &[0]));
    assert_eq!(host.appraise().unwrap().shim_validation(), Some(true));
}

#[test]
fn n101_no_label_hides_that_validation_is_disabled() {
    let event = variable(Guid::SHIM_LOCK, "MokSBState", &[1]);
    for hide in [
        // Another setting, of which no digest covers the content.
        (|log, measured| _ = log.measure(7, AUTHORITY, &variable(Guid::SHIM_LOCK, "MokListTrusted", &[1]), measured))
            as fn(&mut LogBuilder, &[u8]),
        |log, measured| _ = log.measure(7, AUTHORITY, &variable(Guid::IMAGE_SECURITY, "db", b"x"), measured),
        |log, measured| _ = log.measure(7, EventType::EFI_SPDM_DEVICE_POLICY, b"x", measured),
        |log, measured| _ = log.event(7, EventType::EFI_SPDM_DEVICE_POLICY, measured),
    ] {
        let host = host_with(|log| {
            log.measure(14, EventType::IPL, b"MokListTrusted\0", &[1]);
            hide(log, &event);
        });
        assert_eq!(host.codes(), [Code::PolicyShimValidation]);
    }
    // An old shim, which measures the setting into PCR 14 alone, and no generation.
    for (label, content, trusted) in [
        (&b"MokSBState\0"[..], [1_u8], false),
        (b"MokListTrusted\0", [1], false),
        (b"MokListX\0", [7], false),
        (b"MokSBState\0", [0], true),
    ] {
        let mut host = host_with(|log| {
            let at = log.position(b"sbat,1,");
            log.events.remove(at);
            log.measure(14, EventType::IPL, label, &content);
        });
        demand(&mut host, "[shim]\nsbat = false");
        assert_eq!(
            host.appraise().map(|_| ()).map_err(|reasons| codes(&reasons)).err(),
            (!trusted).then(|| vec![Code::PolicyShimValidation])
        );
    }
}

#[test]
fn n101_shims_generation_is_demanded_with_secure_boot() {
    let without = || {
        host_with(|log| {
            let at = log.position(b"sbat,1,");
            log.events.remove(at);
        })
    };
    let mut host = without();
    assert_eq!(host.codes(), [Code::PolicySbat]);
    demand(&mut host, "[shim]\nsbat = false");
    host.appraise().unwrap();
    demand(&mut host, "[shim]\nsbat = false\nminimum_sbat_date = 2022111500");
    assert_eq!(host.codes(), [Code::PolicySbat]);

    let mut host = host_with(|log| {
        replace(log, b"sbat,1,", |log| setting(log, "SbatLevel", b"sbat,1,2025021800\nshim,4\ngrub,5\n"));
    });
    for (rules, trusted) in [
        ("minimum_sbat_date = 2025021800", true),
        ("minimum_sbat_date = 2025021801", false),
        ("minimum_generations = { grub = 5, shim = 4, sbat = 1 }", true),
        ("minimum_generations = { grub = 6 }", false),
        ("minimum_generations = { \"grub.debian\" = 1 }", false),
    ] {
        demand(&mut host, &format!("[shim]\n{rules}"));
        let expected = (!trusted).then(|| vec![Code::PolicySbat]);
        assert_eq!(host.appraise().map(|_| ()).map_err(|reasons| codes(&reasons)).err(), expected, "{rules}");
    }
}

/// A host that starts its kernel without shim has nothing of shim's to show.
#[test]
fn n101_a_host_without_shim_is_asked_for_nothing_of_it() {
    let mut host = host_with(|log| {
        log.events.retain(|event| event[0] != 14);
        let at = log.position(b"sbat,1,");
        log.events.remove(at);
    });
    assert_eq!(host.appraise().unwrap().shim_validation(), None);
    demand(&mut host, &format!("[shim]\nminimum_sbat_date = 9999999999\nmok_lists = [\"{}\"]", sha256(b"x")));
    host.appraise().unwrap();
}

#[test]
fn n101_a_key_that_the_owner_enrolled_is_another_list() {
    let enrolled = |log: &mut LogBuilder| {
        replace(log, b"MokList\0", |log| _ = log.measure(14, EventType::IPL, b"MokList\0", b"mok list and one more"));
    };
    // Reference values list what is measured into PCR 14.
    let mut host = Host::good();
    enrolled(&mut host.log);
    host.boot_aggregate(10);
    assert_eq!(host.codes(), [Code::EventlogEventMismatch]);
    assert_eq!(host.denied()[0].pcr, Some(14));
    // A policy may name the lists itself, whatever the reference values were recorded from.
    let rules = format!("[shim]\nmok_lists = [\"{}\"]", sha256(b"mok list"));
    let mut good = Host::good();
    demand(&mut good, &rules);
    good.appraise().unwrap();
    let mut host = host_with(enrolled);
    host.appraise().unwrap();
    demand(&mut host, &rules);
    assert_eq!(host.codes(), [Code::PolicyMokList]);
    // The list is told by its place, not by its name.
    let mut host = host_with(|log| {
        replace(log, b"MokList\0", |log| {
            log.measure(14, EventType::IPL, b"MokListX\0", b"mok list and one more");
        });
        log.measure(14, EventType::IPL, b"MokList\0", b"mok list");
    });
    demand(&mut host, &rules);
    assert_eq!(host.codes(), [Code::PolicyMokList]);
    let short = format!("{}[shim]\nmok_lists = [\"00\"]", super::host::POLICY);
    assert!(matches!(Policy::from_toml(&short), Err(PolicyError::Digest("mok_lists", _))));
}

/// An operating system can extend PCR 7 as well. What comes second, or behind what shim does last, is not shim's.
#[test]
fn n92_settings_of_shim_that_come_late_are_refused() {
    let other = [&[9; 16][..], super::policy::CERTIFICATE].concat();
    for (name, content) in [("SbatLevel", &b"sbat,1,2099010100\n"[..]), ("MokListTrusted", &[0]), ("MokSBState", &[0])]
    {
        // Of the same name with another content.
        let host = host_with(|log| {
            if name != "SbatLevel" {
                setting(log, name, &[1]);
            }
            setting(log, name, content);
        });
        let found = host.codes();
        assert!(found.contains(&Code::ShimAmbiguous), "{name}: {found:?}");
        // The first of its name, but behind an authority of shim's own.
        let host = host_with(|log| {
            if name == "SbatLevel" {
                let at = log.position(b"sbat,1,");
                log.events.remove(at);
            }
            setting(log, "MokListRT", &other);
            setting(log, name, content);
        });
        assert_eq!(host.codes(), [Code::ShimAmbiguous], "{name}");
        // The twins: before that authority, and the same once more.
        let host = host_with(|log| {
            if name == "SbatLevel" {
                let at = log.position(b"sbat,1,");
                log.events.remove(at);
            }
            setting(log, name, content);
            setting(log, "MokListRT", &other);
            setting(log, name, content);
        });
        host.appraise().unwrap();
    }
    // Before the separator there is no shim: nothing of it is believed.
    let mut host = host_with(|log| {
        replace(log, b"sbat,1,", |log| authority(log, "db", super::policy::CERTIFICATE));
        let mut early = LogBuilder::new(&super::host::BANKS);
        setting(&mut early, "SbatLevel", b"sbat,1,2099010100\n");
        log.events.insert(3, early.events.remove(0));
    });
    assert_eq!(host.codes(), [Code::PolicySbat]);
    demand(&mut host, "[shim]\nsbat = false");
    assert_eq!(host.appraise().unwrap().sbat_date(), None);
}
