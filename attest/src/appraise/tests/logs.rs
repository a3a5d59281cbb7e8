//! The firmware event log: N44 to N59 and N64. Of Secure Boot's events see `secure_boot`.

use super::host::{BANKS, Host, codes};
use crate::eventlog::log_builder::{LogBuilder, variable};
use crate::eventlog::{EventType, Guid};
use crate::key::Bank;
use crate::reason::ReasonCode as Code;

/// Replaces an event by one of the same type whose digest is that of `measured`.
pub(super) fn replace(host: &mut Host, at: usize, pcr: u32, event_type: EventType, data: &[u8], measured: &[u8]) {
    host.log.events[at] = host.log.encode(pcr, event_type, data, |bank| bank.hash(measured));
}

fn set_type(event: &mut [u8], event_type: EventType) {
    event[4..8].copy_from_slice(&event_type.0.to_le_bytes());
}

/// The event that `build` makes.
pub(super) fn event(build: impl FnOnce(&mut LogBuilder)) -> Vec<u8> {
    let mut log = LogBuilder::new(&BANKS);
    build(&mut log);
    log.events.remove(0)
}

#[test]
fn an_edited_command_line_is_named_with_what_was_expected_and_found() {
    let mut host = Host::good();
    let at = host.log.position(b"kernel_cmdline");
    let text = "/vmlinuz console=ttyS0 quiet init=/bin/sh";
    replace(&mut host, at, 8, EventType::IPL, format!("kernel_cmdline: {text}\0").as_bytes(), text.as_bytes());
    host.boot_aggregate(10);
    let reasons = host.denied();
    assert_eq!(codes(&reasons), [Code::EventlogCommandLine]);
    let reason = &reasons[0];
    assert_eq!(reason.pcr, Some(8));
    assert_eq!(reason.event.as_deref(), Some("kernel command line"));
    assert_eq!(reason.expected.as_deref(), Some("/vmlinuz console=ttyS0 quiet"));
    assert_eq!(reason.found.as_deref(), Some(text));
}

#[test]
fn another_kernel_or_initrd_is_named() {
    for (name, code, words) in [
        (&b"/initrd\0"[..], Code::EventlogInitrd, "initrd"),
        (b"/vmlinuz\0", Code::EventlogKernel, "kernel file"),
        (b"grub.cfg\0", Code::EventlogBootFile, "GRUB configuration file"),
    ] {
        let mut host = Host::good();
        let at = host.log.events.iter().position(|e| e[0] == 9 && e.windows(name.len()).any(|w| w == name)).unwrap();
        replace(&mut host, at, 9, EventType::IPL, name, b"something else");
        host.boot_aggregate(10);
        let reasons = host.denied();
        assert_eq!(codes(&reasons), [code]);
        assert!(reasons[0].event.as_deref().unwrap().starts_with(words), "{:?}", reasons[0]);
        assert_eq!(reasons[0].pcr, Some(9));
    }
}

#[test]
fn n44_an_event_taken_out_of_the_replay_by_its_type_is_found() {
    let mut host = Host::good();
    let genuine = host.evidence_of(host.pcrs());
    let at = host.log.position(b"kernel_cmdline");
    // The genuine event stays, renamed; a forged copy with the genuine digest says something else.
    let digest = |bank: Bank| bank.hash(b"/vmlinuz console=ttyS0 quiet");
    let forged = host.log.encode(8, EventType::IPL, b"kernel_cmdline: /vmlinuz nothing to see\0", digest);
    set_type(&mut host.log.events[at], EventType::NO_ACTION);
    host.log.events.insert(at + 1, forged);
    let mut evidence = genuine;
    evidence.eventlog = host.log.bytes();
    let reasons = host.appraise_with(&evidence, None).unwrap_err();
    assert_eq!(codes(&reasons), [Code::EventlogForgedNoAction, Code::EventlogTextNotCovered]);

    let mut host = Host::good();
    host.log.event(5, EventType::UNUSED, b"x");
    host.accept_log();
    assert_eq!(host.codes(), [Code::EventlogUnknownEvent]);
}

#[test]
fn n45_an_event_that_extends_nothing_carries_no_digest_and_changes_nothing() {
    let mut host = Host::good();
    host.log.no_action(b"SP800-155 Event\0something");
    host.appraise().unwrap();
    let forged = host.log.encode(0, EventType::NO_ACTION, b"x", |bank| bank.hash(b"x"));
    host.log.events.push(forged);
    assert_eq!(host.codes(), [Code::EventlogForgedNoAction]);
}

#[test]
fn n46_an_image_under_another_type_is_another_event() {
    let mut host = Host::good();
    let at = host.log.events.iter().rposition(|e| e[0] == 4).unwrap();
    set_type(&mut host.log.events[at], EventType::EFI_PLATFORM_FIRMWARE_BLOB);
    assert_eq!(host.codes(), [Code::EventlogUnexpectedType]);
    // Though the reference values may have been recorded from such a log.
    assert_eq!(host.accept_log().codes(), [Code::EventlogUnexpectedType]);
    // Under a type that its PCR allows, reference values that expect an image are not met.
    let mut host = Host::good();
    set_type(&mut host.log.events[at], EventType::IPL);
    assert_eq!(host.codes(), [Code::EventlogEventUnexpected, Code::EventlogEventMissing]);
}

#[test]
fn n47_each_firmware_pcr_has_exactly_one_good_separator() {
    for pcr in 0..=7_u32 {
        let separators = |host: &Host| {
            host.log.events.iter().position(|e| e[0] == u8::try_from(pcr).unwrap() && e[4..8] == [4, 0, 0, 0]).unwrap()
        };
        // Missing.
        let mut host = Host::good();
        let at = separators(&host);
        host.log.events.remove(at);
        // A PCR with nothing but the separator is then not extended at all.
        let missing = host.accept_log().codes();
        assert!(
            missing == [Code::EventlogSeparatorMissing]
                || missing == [Code::EventlogBankUnextended]
                || pcr == 7 && missing.contains(&Code::EventlogSeparatorMissing),
            "{pcr}: {missing:?}"
        );
        // Twice.
        let mut host = Host::good();
        let again = host.log.events[at].clone();
        host.log.events.insert(at + 1, again);
        assert_eq!(host.accept_log().codes(), [Code::EventlogSeparatorRepeated], "{pcr}");
        // The other good content, and both bad ones.
        for (content, expected) in [
            ([0xff; 4], None),
            ([1, 0, 0, 0], Some(Code::EventlogSeparatorError)),
            ([2, 0, 0, 0], Some(Code::EventlogSeparatorError)),
        ] {
            let mut host = Host::good();
            replace(&mut host, at, pcr, EventType::SEPARATOR, &content, &content);
            host.accept_log();
            match expected {
                None => drop(host.appraise().unwrap()),
                Some(code) => assert!(host.codes().contains(&code), "{pcr}"),
            }
        }
        // The only one, under another type.
        for event_type in [EventType::ACTION, EventType::EVENT_TAG, EventType::S_CRTM_CONTENTS, EventType(0x8401)] {
            let mut host = Host::good();
            set_type(&mut host.log.events[at], event_type);
            let codes = host.accept_log().codes();
            assert!(codes.contains(&Code::EventlogSeparatorRepeated), "{pcr}, {event_type}: {codes:?}");
        }
        // Under another type, with either good content: the digest tells.
        for content in [[0; 4], [0xff; 4]] {
            let mut host = Host::good();
            let hidden = event(|log| {
                log.event(pcr, EventType::EFI_ACTION, &content);
            });
            host.log.events.insert(at + 1, hidden);
            let codes = host.accept_log().codes();
            assert!(codes.contains(&Code::EventlogSeparatorRepeated), "{pcr}: {codes:?}");
        }
    }
}

#[test]
fn n48_a_wrong_startup_locality_is_a_denial() {
    let mut host = Host::good();
    let at = host.log.events.len();
    host.log.no_action(b"StartupLocality\0\x03");
    let late = host.log.events.remove(at);
    // At the beginning it is believed, for PCR 0 then starts elsewhere.
    host.log.events.insert(0, late.clone());
    host.accept_log().appraise().unwrap();
    let mut evidence = Host::good().evidence_of(Host::good().pcrs());
    evidence.eventlog.extend(&late);
    let host = Host::good();
    let evidence = crate::evidence::Evidence { eventlog: evidence.eventlog, ..host.evidence_of(host.pcrs()) };
    assert_eq!(codes(&host.appraise_with(&evidence, None).unwrap_err()), [Code::EventlogLocality]);
}

#[test]
fn n50_a_digest_that_is_not_of_what_the_event_says_is_refused() {
    // "Secure Boot on", with the digest of "off": the log leads to the quoted PCR 7, and lies.
    let mut host = Host::good();
    let at = host.log.position(&crate::eventlog::log_builder::utf16("SecureBoot"));
    let on = variable(Guid::GLOBAL, "SecureBoot", &[1]);
    let off = variable(Guid::GLOBAL, "SecureBoot", &[0]);
    replace(&mut host, at, 7, EventType::EFI_VARIABLE_DRIVER_CONFIG, &on, &off);
    assert!(host.accept_log().codes().contains(&Code::EventlogDigestMismatch));

    let mut host = Host::good();
    let at = host.log.position(b"Calling EFI");
    replace(&mut host, at, 4, EventType::EFI_ACTION, b"Calling EFI Application from Boot Option", b"x");
    assert_eq!(host.accept_log().codes(), [Code::EventlogDigestMismatch]);
}

#[test]
fn n50_types_whose_digest_is_of_their_data_have_that_digest() {
    for (pcr, event_type) in [
        (4, EventType::ACTION),
        (4, EventType::EFI_ACTION),
        (1, EventType::EFI_VARIABLE_DRIVER_CONFIG),
        (1, EventType::EFI_VARIABLE_BOOT2),
        (5, EventType::EFI_GPT_EVENT),
    ] {
        let mut host = Host::good();
        host.log.event(pcr, event_type, b"what was measured");
        host.accept_log().appraise().unwrap_or_else(|reasons| panic!("{event_type}: {reasons:?}"));
        let mut host = Host::good();
        host.log.measure(pcr, event_type, b"what the log says", b"what was measured");
        assert_eq!(host.accept_log().codes(), [Code::EventlogDigestMismatch], "{event_type}");
    }
    // The version of the firmware: only the first, before the separator.
    for (measured, expected) in [(&b"1.0"[..], None), (b"2.0", Some(Code::EventlogDigestMismatch))] {
        let mut host = Host::good();
        replace(&mut host, 0, 0, EventType::S_CRTM_VERSION, b"1.0", measured);
        let verdict = host.accept_log().appraise();
        assert_eq!(verdict.map(|_| ()).map_err(|reasons| codes(&reasons)).err(), expected.map(|code| vec![code]));
    }
}

#[test]
fn n52_n59_a_header_or_an_event_that_contradicts_itself_is_a_denial() {
    let host = Host::good();
    let good = host.log.bytes();
    let first = good.len() - host.log.events.concat().len();
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    for (what, eventlog) in [
        ("another signature", changed(32, b's')),
        ("no algorithms", changed(32 + 24, 0)),
        ("a digest size that SHA-1 does not have", changed(32 + 30, 32)),
        ("vendor information beyond the header", changed(32 + 40, 9)),
        ("no digests", changed(first + 8, 0)),
        ("more digests than declared", changed(first + 8, 4)),
        ("an algorithm that was not declared", changed(first + 12, 0x0d)),
        ("a PCR that no TPM has", changed(first, 24)),
    ] {
        let mut evidence = host.evidence_of(host.pcrs());
        evidence.eventlog = eventlog;
        assert_eq!(codes(&host.appraise_with(&evidence, None).unwrap_err()), [Code::EventlogUnreadable], "{what}");
    }
}

#[test]
fn n51_a_command_line_beside_the_digest_of_another_is_refused() {
    let mut host = Host::good();
    let at = host.log.position(b"kernel_cmdline");
    replace(&mut host, at, 8, EventType::IPL, b"kernel_cmdline: /vmlinuz console=ttyS0 quiet\0", b"/vmlinuz evil");
    host.boot_aggregate(10);
    let reasons = host.denied();
    assert_eq!(codes(&reasons), [Code::EventlogTextNotCovered]);
    assert_eq!((reasons[0].pcr, reasons[0].event.as_deref()), (Some(8), Some("kernel command line")));
}

#[test]
fn n53_n78_a_log_that_cannot_be_read_is_a_denial() {
    let host = Host::good();
    for (eventlog, code) in [
        (Vec::new(), Code::EventlogMissing),
        (vec![1, 2, 3], Code::EventlogUnreadable),
        // A foreign file is no log that is missing.
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x01\0\0\0\x01\0\x08\x06\0\0\0".to_vec(), Code::EventlogUnreadable),
        ([host.log.bytes(), vec![0; 64]].concat(), Code::EventlogTrailing),
        (host.log.bytes()[..300].to_vec(), Code::EventlogUnreadable),
    ] {
        let mut evidence = host.evidence_of(host.pcrs());
        evidence.eventlog = eventlog;
        assert_eq!(codes(&host.appraise_with(&evidence, None).unwrap_err()), [code]);
    }
}

#[test]
fn n54_a_log_cut_short_or_too_long_names_the_pcr() {
    let host = Host::good();
    let mut cut = Host::good().log;
    cut.events.pop();
    let mut evidence = host.evidence_of(host.pcrs());
    evidence.eventlog = cut.bytes();
    let reasons = host.appraise_with(&evidence, None).unwrap_err();
    assert_eq!(codes(&reasons), [Code::EventlogPcrMismatch]);
    assert!(reasons.iter().all(|reason| reason.pcr == Some(5)));

    let mut long = Host::good().log;
    long.grub("grub_cmd", "echo more");
    evidence.eventlog = long.bytes();
    let reasons = host.appraise_with(&evidence, None).unwrap_err();
    assert_eq!(codes(&reasons), [Code::EventlogPcrMismatch]);
    assert!(reasons[0].text.contains("never extended with"), "{}", reasons[0].text);
    assert_eq!(reasons[0].event.as_deref(), Some("GRUB command"));
}

#[test]
fn n64_a_log_of_another_boot_differs_where_boots_differ() {
    let host = Host::good();
    let mut other = Host::good();
    other.log.event(5, EventType::EFI_ACTION, b"Exit Boot Services Invocation");
    let mut evidence = host.evidence_of(other.pcrs());
    evidence.eventlog = host.log.bytes();
    let reasons = host.appraise_with(&evidence, None).unwrap_err();
    assert_eq!(codes(&reasons), [Code::EventlogPcrMismatch]);
    assert!(reasons.iter().all(|reason| reason.pcr == Some(5)));
}

#[test]
fn a_host_that_has_nothing_in_common_is_denied_with_a_bounded_report() {
    let mut host = Host::good();
    for number in 0..3000 {
        host.log.grub("grub_cmd", &format!("echo {number}"));
    }
    host.boot_aggregate(10);
    let reasons = host.denied();
    assert!(reasons.len() < 20, "{}", reasons.len());
    assert!(reasons.iter().any(|reason| reason.text.contains("more events")));
}

/// A type that nobody knows stands for content that its digest covers, such as a vendor's text, and never for an image.
#[test]
fn n91_an_unknown_type_hides_no_image() {
    let unknown = EventType(0x8000_00f0);
    let with = |data: &[u8], measured: &[u8]| {
        let mut host = Host::good();
        host.log.measure(4, unknown, data, measured);
        host.accept_log().appraise().map(|_| ()).map_err(|reasons| codes(&reasons))
    };
    assert_eq!(with(b"a vendor's text", b"a vendor's text"), Ok(()));
    assert_eq!(with(b"a vendor's text", b"an image"), Err(vec![Code::EventlogUnexpectedType]));
    for image in [&b"MZ image"[..], b"PE\0\0 image", b"VZ image"] {
        assert_eq!(with(image, image), Err(vec![Code::EventlogUnexpectedType]), "{image:?}");
    }
}
