//! Labels that no digest covers, and firmware events that an operating system made: N91 to N93 and N102.

use super::host::{BANKS, Host, codes};
use super::logs::{event, replace as replace_event};
use super::policy::{CERTIFICATE, authority, demand, host_with, replace, sha256};
use crate::eventlog::log_builder::{LogBuilder, utf16, variable};
use crate::eventlog::{EventType, Guid};
use crate::key::Bank;
use crate::reason::ReasonCode as Code;

fn set_type(event: &mut [u8], event_type: EventType) {
    event[4..8].copy_from_slice(&event_type.0.to_le_bytes());
}

/// Every type that the profile names, and one that it does not.
fn types() -> impl Iterator<Item = EventType> {
    (0..0x14).chain(0x8000_0001..=0x8000_0010).chain(0x8000_00e0..=0x8000_00e4).chain([0x8401]).map(EventType)
}

/// The retyped host: denied, or judged as if the type were the true one.
fn never_hides(host: &mut Host, code: Code, what: &str) {
    let reasons = host.denied();
    assert!(
        codes(&reasons).iter().all(|found| *found == code
            || matches!(
                found,
                Code::EventlogUnexpectedType
                    | Code::EventlogDigestMismatch
                    | Code::EventlogForgedNoAction
                    | Code::EventlogUnknownEvent
                    | Code::EventlogSeparatorError
                    | Code::EventlogAfterSeparator
                    | Code::SecureBootMalformed
                    | Code::SecureBootRepeated
                    | Code::EventlogPcrMismatch
                    | Code::SecureBootNoAuthority
            )),
        "{what}: {reasons:?}"
    );
}

#[test]
fn n91_an_option_rom_is_seen_under_every_type() {
    for event_type in types() {
        let mut host = host_with(|log| {
            log.measure(2, event_type, &[0; 32], b"network card");
        });
        demand(&mut host, "[firmware]\noption_roms = []");
        never_hides(&mut host, Code::PolicyOptionRom, &event_type.to_string());
        // The twin: it is one of those that the policy names.
        if matches!(event_type, EventType::EFI_BOOT_SERVICES_DRIVER | EventType::EFI_PLATFORM_FIRMWARE_BLOB) {
            demand(&mut host, &format!("[firmware]\noption_roms = [\"{}\"]", sha256(b"network card")));
            host.appraise().unwrap();
        }
    }
    // Data that a digest covers are no image, unless they begin as one.
    for (data, trusted) in [(&b"\x01"[..], true), (b"MZ and so on", false), (b"PE\0\0", false)] {
        let mut host = host_with(|log| _ = log.event(2, EventType::EVENT_TAG, data));
        demand(&mut host, "[firmware]\noption_roms = []");
        assert_eq!(host.appraise().is_ok(), trusted, "{data:?}");
    }
}

#[test]
fn n91_a_kernel_image_is_seen_under_every_type() {
    let kernels = format!("kernels = [\"{}\", \"{}\"]", sha256(b"the kernel"), sha256(b"kernel image"));
    for event_type in types() {
        let mut host = host_with(|log| {
            let at = log.events.iter().rposition(|event| event[0] == 4).unwrap();
            let mut evil = LogBuilder::new(&BANKS);
            evil.measure(4, event_type, b"data", b"an old kernel");
            log.events.insert(at + 1, evil.events.remove(0));
        });
        demand(&mut host, &kernels);
        never_hides(&mut host, Code::PolicyKernel, &event_type.to_string());
    }
    let mut host = Host::good();
    demand(&mut host, &kernels);
    host.appraise().unwrap();
}

#[test]
fn n91_a_signer_is_seen_under_every_type() {
    let entry = [&[7; 16][..], &[0x30, 3, 2, 1, 6]].concat();
    let hidden = variable(Guid::IMAGE_SECURITY, "db", &entry);
    let signers = format!("boot_signers = [\"{}\"]", sha256(CERTIFICATE));
    let with = |place: usize, event_type: EventType, data: &[u8], measured: &[u8]| {
        let mut host = host_with(|log| {
            replace(log, b"Microsoft UEFI CA", |log| authority(log, "db", CERTIFICATE));
            let more = event(|log| _ = log.measure(7, event_type, data, measured));
            let at = secure_boots(log)[place] + 1;
            log.events.insert(at, more);
        });
        demand(&mut host, &format!("{signers}\n[shim]\nvalidation = false"));
        host
    };
    // Before PCR 7's separator, where drivers are verified, and behind everything.
    let separator = secure_boots(&Host::good().log).len() - 3;
    let places = [0, separator - 1, separator, separator + 2];
    for (place, covered) in places.into_iter().flat_map(|place| [(place, true), (place, false)]) {
        for event_type in types() {
            let data: &[u8] = if covered { &hidden } else { b"what the log says" };
            let mut host = with(place, event_type, data, &hidden);
            never_hides(&mut host, Code::PolicyBootSigner, &format!("{event_type}, {place}, {covered}"));
        }
    }
    // A variable of the firmware's that the profile does not name, and one of a device's database that no digest covers.
    let devices = variable(Guid::DEVICE_SIGNATURE, "devdb", &entry);
    let vendors = variable(Guid::GLOBAL, "vendor's db", &entry);
    for (event_type, data, measured) in [
        (EventType::EFI_VARIABLE_DRIVER_CONFIG, &vendors, &vendors),
        (EventType::EFI_SPDM_DEVICE_POLICY, &devices, &hidden),
        (EventType::EFI_SPDM_DEVICE_AUTHORITY, &devices, &hidden),
        // The name of a device's database alone, under a type that images are verified by.
        (EventType::EFI_VARIABLE_AUTHORITY, &devices, &devices),
    ] {
        let host = with(separator - 1, event_type, data, measured);
        assert_eq!(host.codes(), [Code::PolicyBootSigner], "{event_type}");
    }
    // Behind the separator the firmware looks at no device's firmware any more.
    let late = with(separator + 2, EventType::EFI_SPDM_DEVICE_POLICY, &devices, &devices);
    assert_eq!(late.codes(), [Code::PolicyBootSigner]);
    // The twins: what the profile names verifies no image, nor do the firmware's own words, and a device's database
    // verifies devices.
    for (place, event_type, data) in [
        (separator - 1, EventType::EFI_VARIABLE_DRIVER_CONFIG, &variable(Guid::GLOBAL, "AuditMode", &[0])),
        (separator - 1, EventType::EFI_VARIABLE_DRIVER_CONFIG, &variable(Guid::GLOBAL, "DeployedMode", &[1])),
        (separator - 1, EventType::EFI_VARIABLE_DRIVER_CONFIG, &variable(Guid::IMAGE_SECURITY, "dbt", &[])),
        (separator - 1, EventType::EFI_VARIABLE_DRIVER_CONFIG, &variable(Guid::IMAGE_SECURITY, "dbr", &[])),
        (separator - 1, EventType::EFI_SPDM_DEVICE_POLICY, &devices),
        (separator - 1, EventType::EFI_SPDM_DEVICE_AUTHORITY, &devices),
        (separator - 1, EventType::EFI_ACTION, &b"DMA Protection Disabled".to_vec()),
        (separator + 2, EventType::EFI_ACTION, &b"DMA Protection Disabled".to_vec()),
    ] {
        let host = with(place, event_type, data, data);
        host.appraise().unwrap_or_else(|reasons| panic!("{event_type}, {place}: {reasons:?}"));
    }
    // The policy's signer before the separator, as where it signed a card's driver.
    let known = variable(Guid::IMAGE_SECURITY, "db", &[&[7; 16][..], CERTIFICATE].concat());
    with(separator - 1, EventType::EFI_VARIABLE_AUTHORITY, &known, &known).appraise().unwrap();
}

/// Places of PCR 7's events.
fn secure_boots(log: &LogBuilder) -> Vec<usize> {
    (0..log.events.len()).filter(|at| log.events[*at][0] == 7).collect()
}

/// GRUB's files are told apart by their names alone. Under no type does a kernel become no file of GRUB's.
#[test]
fn n91_the_files_of_grub_are_files_under_every_type() {
    let kernels = format!("kernels = [\"{}\"]", sha256(b"kernel image"));
    for event_type in types() {
        let mut host = Host::good();
        for event in host.log.events.iter_mut().filter(|event| event[0] == 9) {
            set_type(event, event_type);
        }
        host.accept_log();
        demand(&mut host, &kernels);
        never_hides(&mut host, Code::PolicyKernel, &event_type.to_string());
    }
}

/// GRUB loads the policy's kernel and then another one, whose file the log calls an initrd. The command lines tell.
#[test]
fn n91_a_second_kernel_of_grub_is_not_an_initrd() {
    for (label, digest, trusted) in [
        (&b"/initrd-6.1\0"[..], &b"an old kernel"[..], false),
        (b"/vmlinuz-6.1\0", b"an old kernel", false),
        // The twin: it is called a kernel, and is one of the policy's.
        (b"/vmlinuz-6.1\0", b"the kernel", true),
    ] {
        let mut host = host_with(|log| {
            log.grub("grub_cmd", "linux /vmlinuz-6.1 quiet");
            log.measure(9, EventType::IPL, label, digest);
            log.grub("kernel_cmdline", "/vmlinuz-6.1 quiet");
        });
        demand(&mut host, &format!("kernels = [\"{}\", \"{}\"]", sha256(b"the kernel"), sha256(b"kernel image")));
        let expected = (!trusted).then(|| vec![Code::PolicyKernel]);
        assert_eq!(host.appraise().map(|_| ()).map_err(|reasons| codes(&reasons)).err(), expected);
    }
}

#[test]
fn n91_an_action_is_a_text() {
    for (data, trusted) in
        [(&b"Start Option ROM Scan"[..], true), (b"Calling INT 19h\0", true), (b"\x01\0\0", false), (b"", false)]
    {
        for event_type in [EventType::ACTION, EventType::EFI_ACTION] {
            let host = host_with(|log| _ = log.event(4, event_type, data));
            let expected = (!trusted).then(|| vec![Code::EventlogUnexpectedType]);
            assert_eq!(host.appraise().map(|_| ()).map_err(|reasons| codes(&reasons)).err(), expected, "{data:?}");
        }
    }
}

#[test]
fn n92_what_the_firmware_says_of_itself_comes_before_the_separator() {
    let version = utf16("EDK II 2099.01\0");
    for event_type in [
        EventType::S_CRTM_VERSION,
        EventType::S_CRTM_CONTENTS,
        EventType::POST_CODE,
        EventType::POST_CODE2,
        EventType::EFI_PLATFORM_FIRMWARE_BLOB,
        EventType::EFI_PLATFORM_FIRMWARE_BLOB2,
        EventType::EFI_HCRTM_EVENT,
    ] {
        let host = host_with(|log| _ = log.event(0, event_type, &version));
        assert_eq!(host.codes(), [Code::EventlogAfterSeparator], "{event_type}");
        // The twin: the firmware measured it.
        let mut host = Host::good();
        host.log.events.insert(
            usize::from(event_type != EventType::S_CRTM_VERSION),
            event(|log| _ = log.event(0, event_type, &version)),
        );
        if event_type == EventType::S_CRTM_VERSION {
            // With another content than the one behind it, both cannot be true.
            assert_eq!(host.accept_log().codes(), [Code::EventlogRepeated]);
            host.log.events.remove(1);
        }
        host.accept_log().appraise().unwrap_or_else(|reasons| panic!("{event_type}: {reasons:?}"));
    }
    // A firmware without a version has none, whatever is added later.
    let mut host = host_with(|log| _ = log.events.remove(0));
    demand(&mut host, "[firmware]\nversions = [\"EDK II 2099.01\"]");
    assert_eq!(host.codes(), [Code::PolicyFirmwareVersion]);
    host.log.event(0, EventType::S_CRTM_VERSION, &version);
    assert_eq!(host.accept_log().codes(), [Code::EventlogAfterSeparator]);
}

/// Four bytes of zeros as a part of the root of trust are genuine on some machines, as the first of PCR 0's events.
#[test]
fn n93_a_second_separator_is_not_a_part_of_the_root_of_trust() {
    let zeros = |log: &mut LogBuilder| _ = log.measure(0, EventType::S_CRTM_CONTENTS, b"FIT Type 0x2D\0", &[0; 4]);
    let locality =
        |log: &mut LogBuilder, locality: u8| _ = log.no_action(&[b"StartupLocality\0", &[locality][..]].concat());
    // Genuine: the first; the third after the hardware's root of trust.
    for (before, first) in [(None, 0), (Some(3), 0), (Some(3), 2), (Some(4), 1)] {
        let mut host = Host::good();
        host.log.events.insert(first, event(zeros));
        if let Some(from) = before {
            host.log.events.insert(0, event(|log| locality(log, from)));
        }
        host.accept_log().appraise().unwrap_or_else(|reasons| panic!("{before:?}, {first}: {reasons:?}"));
    }
    // Anywhere else it is a separator: the firmware's own, or one that was added later.
    let separator = Host::good().log.events.iter().position(|e| e[0] == 0 && e[4..8] == [4, 0, 0, 0]).unwrap();
    for (before, at) in
        [(None, 1), (None, 2), (None, 3), (None, separator + 1), (Some(3), 3), (Some(3), separator + 1), (Some(0), 2)]
    {
        let mut host = Host::good();
        host.log.events.insert(at, event(zeros));
        if let Some(from) = before {
            host.log.events.insert(0, event(|log| locality(log, from)));
        }
        assert!(host.accept_log().codes().contains(&Code::EventlogSeparatorRepeated), "{before:?}, {at}");
    }
    // The firmware's separator hidden, a version of the attacker's behind it, and his own separator.
    let mut host = Host::good();
    set_type(&mut host.log.events[separator], EventType::S_CRTM_CONTENTS);
    host.log.event(0, EventType::S_CRTM_VERSION, &utf16("EDK II 2099.01\0"));
    host.log.event(0, EventType::SEPARATOR, &[0; 4]);
    assert!(host.accept_log().codes().contains(&Code::EventlogSeparatorRepeated));
    // The sole separator under that type is none, and is missed where it would be the first event.
    let mut host = Host::good();
    host.log.events.retain(|event| event[0] != 0);
    host.log.events.insert(0, event(|log| _ = log.event(0, EventType::S_CRTM_CONTENTS, &[0; 4])));
    assert_eq!(host.accept_log().codes(), [Code::EventlogSeparatorMissing]);
}

/// A unified kernel image, as systemd-stub measures it.
fn unified() -> Host {
    let mut host = Host::good();
    host.log.events.retain(|event| !matches!(event[0], 8 | 9 | 14));
    let section = |log: &mut LogBuilder, name: &str, content: &[u8]| {
        let label = utf16(&format!("{name}\0"));
        log.measure(11, EventType::IPL, &label, format!("{name}\0").as_bytes());
        log.measure(11, EventType::IPL, &label, content);
    };
    section(&mut host.log, ".linux", b"kernel");
    section(&mut host.log, ".cmdline", b"root=/dev/vda quiet");
    section(&mut host.log, ".initrd", b"initrd");
    host.log.event(12, EventType::IPL, &utf16("lockdown=integrity\0"));
    host.log.measure(12, EventType::IPL, &utf16("Credentials initrd\0"), b"credentials");
    host.log.measure(13, EventType::IPL, &utf16("System extension initrd\0"), b"extension");
    for pcrs in host.selection.values_mut() {
        pcrs.extend([8, 9, 11, 12, 13, 14]);
        pcrs.sort_unstable();
        pcrs.dedup();
    }
    host.policy.ima = false;
    host.boot_aggregate(10);
    host.references = vec![reference(&host)];
    host
}

/// Reference values for all that the unified image's boot measures.
fn reference(host: &Host) -> crate::reference::ReferenceValues {
    let bytes = host.log.bytes();
    let log = crate::eventlog::EventLog::parse(&bytes).unwrap();
    let mut builder = crate::reference::ReferenceBuilder::new("good", "");
    let pcrs: Vec<u8> = (0..=9).chain(11..=14).collect();
    builder.recorded(&log, &[Bank::Sha256], &pcrs);
    builder.build().unwrap()
}

/// What is changed, in which PCR, at the place of which label, under which label, to what.
type Case<'a> = (&'a str, u8, Option<&'a str>, &'a str, &'a [u8]);

#[test]
fn n102_whatever_is_given_to_a_unified_kernel_image_is_the_references() {
    unified().appraise().unwrap();
    let other = utf16("lockdown=none\0");
    let more = utf16("init=/bin/sh\0");
    // The label of the event that is replaced, none for one more event; and what is logged and measured instead.
    let cases: [Case<'_>; 7] = [
        ("embedded command line", 11, Some(".cmdline"), ".cmdline", b"root=/dev/vda quiet init=/bin/sh"),
        ("addon", 12, Some("lockdown=integrity"), "lockdown=none", &other),
        ("one more addon", 12, None, "init=/bin/sh", &more),
        ("credential", 12, Some("Credentials initrd"), "Credentials initrd", b"other credentials"),
        ("one more credential", 12, None, "Global credentials initrd", b"more"),
        ("system extension", 13, Some("System extension initrd"), "System extension initrd", b"another extension"),
        ("one more system extension", 13, None, "System extension initrd", b"more"),
    ];
    for (what, pcr, replaced, label, measured) in cases {
        let mut host = unified();
        let label = utf16(&format!("{label}\0"));
        match replaced.map(|label| utf16(&format!("{label}\0"))) {
            Some(old) => {
                let is_old = |event: &Vec<u8>| event.windows(old.len()).any(|bytes| bytes == old);
                let at = host.log.events.iter().rposition(is_old).unwrap();
                replace_event(&mut host, at, pcr.into(), EventType::IPL, &label, measured);
            }
            None => _ = host.log.measure(pcr.into(), EventType::IPL, &label, measured),
        }
        host.boot_aggregate(10);
        let reasons = host.denied();
        assert!(reasons.iter().all(|reason| reason.pcr == Some(pcr.into())), "{what}: {reasons:?}");
        // The change is all that is wrong.
        host.references = vec![reference(&host)];
        host.appraise().unwrap_or_else(|reasons| panic!("{what}: {reasons:?}"));
    }
}

#[test]
fn n102_rules_on_arguments_see_what_a_unified_image_is_given() {
    // By digest the embedded line and the credentials are known; the addon's text is judged by the rules.
    let mut host = unified();
    let with = |host: &mut Host, rules: &str| {
        demand(host, &format!("[command_line]\n{rules}"));
        host.policy.ima = false;
    };
    with(&mut host, "forbid = [\"init\"]");
    assert!(host.appraise().unwrap().by_rule().iter().all(|rule| rule.rule == "listed"));
    with(&mut host, "forbid = [\"lockdown\"]");
    assert_eq!(host.codes(), [Code::PolicyCommandLine]);
    // Reference values that name the embedded line's text let the rules see it.
    let text = host.references[0].to_toml().unwrap();
    let digest = sha256(b"root=/dev/vda quiet");
    let listed = text.lines().find(|line| line.contains(&digest)).unwrap();
    let named = text.replacen(listed, "text = [\"root=/dev/vda quiet\"]", 1);
    host.references = vec![crate::reference::ReferenceValues::from_toml(&named).unwrap()];
    with(&mut host, "forbid = [\"init\"]");
    host.appraise().unwrap();
    with(&mut host, "forbid = [\"quiet\"]");
    assert_eq!((host.codes(), host.denied()[0].pcr), (vec![Code::PolicyCommandLine], Some(11)));
}

/// Reference values that accept two embedded lines, of which the policy's rules accept one.
#[test]
fn n102_rules_on_arguments_see_an_embedded_line_under_every_label() {
    let mut host = unified();
    let text = host.references[0].to_toml().unwrap();
    let digest = sha256(b"root=/dev/vda quiet");
    let listed = text.lines().find(|line| line.contains(&digest)).unwrap();
    let named = text.replacen(listed, "text = [\"root=/dev/vda quiet\", \"root=/dev/vda init=/bin/sh\"]", 1);
    host.references = vec![crate::reference::ReferenceValues::from_toml(&named).unwrap()];
    demand(&mut host, "[command_line]\nforbid = [\"init\"]");
    host.policy.ima = false;
    // The twin has the line that the rules accept. Whatever it is called, the other one is seen.
    let name = host.log.events.iter().position(|event| event.ends_with(&utf16(".cmdline\0"))).unwrap();
    for label in [".cmdline\0", ".osrel\0", "\0"] {
        let label = utf16(label);
        for at in [name, name + 1] {
            let measured: &[u8] = if at == name { b".cmdline\0" } else { b"root=/dev/vda quiet" };
            replace_event(&mut host, at, 11, EventType::IPL, &label, measured);
        }
        host.boot_aggregate(10);
        host.appraise().unwrap_or_else(|reasons| panic!("{label:?}: {reasons:?}"));
        replace_event(&mut host, name + 1, 11, EventType::IPL, &label, b"root=/dev/vda init=/bin/sh");
        host.boot_aggregate(10);
        assert_eq!((host.codes(), host.denied()[0].pcr), (vec![Code::PolicyCommandLine], Some(11)), "{label:?}");
    }
}
