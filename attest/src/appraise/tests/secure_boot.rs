//! Secure Boot's state, keys and authorities: N49, N60 to N63.

use super::host::{Host, codes};
use super::logs::{event, replace};
use crate::eventlog::log_builder::{signature_list, variable};
use crate::eventlog::{EventType, Guid};
use crate::reason::ReasonCode as Code;

#[test]
fn secure_boot_off_is_said_in_its_own_words() {
    for state in [&[0_u8][..], &[]] {
        let mut host = Host::good();
        let at = host.log.position(&crate::eventlog::log_builder::utf16("SecureBoot"));
        let data = variable(Guid::GLOBAL, "SecureBoot", state);
        replace(&mut host, at, 7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &data, &data);
        host.boot_aggregate(10);
        let reasons = host.denied();
        assert_eq!(codes(&reasons), [Code::SecureBootDisabled]);
        assert_eq!((reasons[0].pcr, reasons[0].event.as_deref()), (Some(7), Some("Secure Boot off")));
        assert_eq!((reasons[0].expected.as_deref(), reasons[0].found.as_deref()), (Some("on"), Some("off")));
        // Also where reference values would accept it; and a policy may do without Secure Boot.
        host.accept_log();
        assert_eq!(host.codes(), [Code::SecureBootDisabled]);
        host.policy.secure_boot = false;
        host.appraise().unwrap();
    }
}

#[test]
fn n61_a_state_that_was_not_measured_is_not_on() {
    let mut host = Host::good();
    let at = host.log.position(&crate::eventlog::log_builder::utf16("SecureBoot"));
    host.log.events.remove(at);
    assert_eq!(host.accept_log().codes(), [Code::SecureBootUnknown]);
    host.policy.secure_boot = false;
    host.appraise().unwrap();
}

#[test]
fn n49_secure_boots_variables_come_once_before_the_separator_and_in_their_form() {
    let db = variable(Guid::IMAGE_SECURITY, "db", &signature_list(b"another"));
    let driver_config = EventType::EFI_VARIABLE_DRIVER_CONFIG;
    let separator = |host: &Host| host.log.events.iter().position(|e| e[0] == 7 && e[4..8] == [4, 0, 0, 0]).unwrap();

    let mut host = Host::good();
    let at = separator(&host);
    host.log.events.insert(
        at + 1,
        event(|log| {
            log.event(7, driver_config, &db);
        }),
    );
    assert_eq!(host.accept_log().codes(), [Code::EventlogAfterSeparator]);

    for (guid, name) in [
        (Guid::GLOBAL, "SecureBoot"),
        (Guid::GLOBAL, "PK"),
        (Guid::GLOBAL, "KEK"),
        (Guid::IMAGE_SECURITY, "db"),
        (Guid::IMAGE_SECURITY, "dbx"),
    ] {
        let mut host = Host::good();
        let content = if name == "SecureBoot" { vec![1] } else { signature_list(b"x") };
        host.log.events.insert(
            at,
            event(|log| {
                log.event(7, driver_config, &variable(guid, name, &content));
            }),
        );
        assert_eq!(host.accept_log().codes(), [Code::SecureBootRepeated], "{name}");
    }

    let mut host = Host::good();
    let cut_short = variable(Guid::GLOBAL, "SecureBoot", &[1]);
    let cut_short = event(|log| _ = log.event(7, driver_config, &cut_short[..cut_short.len() - 1]));
    host.log.events.insert(at, cut_short);
    assert_eq!(host.accept_log().codes(), [Code::SecureBootMalformed]);

    for state in [&[2_u8][..], &[1, 0], &[0xff], &[0; 8]] {
        let mut host = Host::good();
        let at = host.log.position(&crate::eventlog::log_builder::utf16("SecureBoot"));
        let data = variable(Guid::GLOBAL, "SecureBoot", state);
        replace(&mut host, at, 7, driver_config, &data, &data);
        assert!(host.accept_log().codes().contains(&Code::SecureBootMalformed), "{state:?}");
    }
}

#[test]
fn n60_a_damaged_signature_list_is_refused() {
    let mut host = Host::good();
    let at = host.log.events.iter().position(|e| e.windows(4).any(|w| w == [b'd', 0, b'b', 0])).unwrap();
    let mut list = signature_list(b"db");
    list[24..28].fill(0);
    let data = variable(Guid::IMAGE_SECURITY, "db", &list);
    replace(&mut host, at, 7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &data, &data);
    assert_eq!(host.accept_log().codes(), [Code::SecureBootMalformed]);
}

#[test]
fn n61_secure_boot_that_verified_nothing_is_refused() {
    let mut host = Host::good();
    host.log.events.retain(|e| !e.windows(17).any(|w| w == b"Microsoft UEFI CA"));
    assert_eq!(host.accept_log().codes(), [Code::SecureBootNoAuthority]);
    // Nor by an authority that the log only shows: its digest is of something else.
    let at = Host::good().log.position(b"Microsoft UEFI CA");
    let mut host = Host::good();
    let shown = variable(Guid::IMAGE_SECURITY, "db", b"Microsoft UEFI CA");
    replace(&mut host, at, 7, EventType::EFI_VARIABLE_AUTHORITY, &shown, b"another");
    assert_eq!(host.accept_log().codes(), [Code::SecureBootNoAuthority]);

    for name in ["PK", "KEK", "db"] {
        let mut host = Host::good();
        let needle = crate::eventlog::log_builder::variable(
            if name == "db" { Guid::IMAGE_SECURITY } else { Guid::GLOBAL },
            name,
            &signature_list(name.as_bytes()),
        );
        let at = host.log.position(&needle);
        host.log.events.remove(at);
        let reasons = host.accept_log().denied();
        assert_eq!(codes(&reasons), [Code::SecureBootVariableMissing]);
        assert_eq!(reasons[0].event.as_deref(), Some(name));
        // There, but empty: then nobody is trusted, and nothing can have been verified.
        let mut host = Host::good();
        let guid = if name == "db" { Guid::IMAGE_SECURITY } else { Guid::GLOBAL };
        let empty = variable(guid, name, &[]);
        replace(&mut host, at, 7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &empty, &empty);
        let reasons = host.accept_log().denied();
        assert_eq!(
            (codes(&reasons), reasons[0].found.as_deref()),
            (vec![Code::SecureBootVariableMissing], Some("empty"))
        );
    }
}

#[test]
fn n62_firmware_in_debug_mode_is_refused() {
    let mut host = Host::good();
    host.log.events.insert(
        3,
        event(|log| {
            log.event(7, EventType::EFI_ACTION, b"UEFI Debug Mode");
        }),
    );
    assert_eq!(host.accept_log().codes(), [Code::SecureBootDebugMode]);
}

#[test]
fn n63_secure_boot_off_stays_off_whatever_else_is_measured() {
    let mut host = Host::good();
    let at = host.log.position(&crate::eventlog::log_builder::utf16("SecureBoot"));
    let off = variable(Guid::GLOBAL, "SecureBoot", &[0]);
    replace(&mut host, at, 7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &off, &off);
    // A vendor's variable of the same name, and the true one after the separator, where an attacker could measure it.
    let on = variable(Guid::GLOBAL, "SecureBoot", &[1]);
    let vendor = variable(Guid::SHIM_LOCK, "SecureBoot", &[1]);
    host.log.events.insert(
        at,
        event(|log| {
            log.event(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &vendor);
        }),
    );
    assert_eq!(host.accept_log().codes(), [Code::SecureBootDisabled]);
    host.log.event(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &on);
    assert_eq!(host.accept_log().codes(), [Code::EventlogAfterSeparator]);
}
