//! Claims on unified kernel images.

use super::*;

#[test]
fn the_recorded_unified_kernel_image_shows_its_sections() {
    let log = EventLog::parse(recorded::UKI_EVENT_LOG).unwrap();
    let pcrs: serde_json::Value = serde_json::from_str(recorded::UKI_PCRS_JSON).unwrap();
    for bank in log.banks() {
        for (pcr, value) in log.replay(bank) {
            assert_eq!(pcrs[bank.name()][pcr.to_string()], hex::encode(value), "{bank} PCR {pcr}");
        }
    }
    with_claims(recorded::UKI_EVENT_LOG.to_vec(), Bank::Sha256, |claims| {
        let sections = claims.uki();
        let names: Vec<_> = sections.iter().map(|claim| claim.value.name.as_str()).collect();
        assert_eq!(names, [".linux", ".osrel", ".cmdline", ".initrd"]);
        assert_eq!(sections[2].ground.digest, Bank::Sha256.hash(recorded::UKI_COMMAND_LINE.as_bytes()));
        // The image gives its command line to the kernel in it, whose own stub measures it once more.
        let line = claims.command_line().unwrap();
        assert_eq!((line.value.measurer, line.value.text), (Measurer::KernelStub, None));
        assert!(CommandLine::is_digest_of(recorded::UKI_COMMAND_LINE, line.ground.digest, Bank::Sha256));
        // And so with the initrd.
        let initrds: Vec<_> =
            claims.initrd().into_iter().map(|claim| (claim.ground.pcr, claim.ground.digest)).collect();
        assert_eq!(initrds, [(9, sections[3].ground.digest), (11, sections[3].ground.digest)]);
        let kernels: Vec<_> =
            claims.kernel().into_iter().map(|claim| (claim.value.measurer, claim.ground.pcr)).collect();
        assert_eq!(kernels, [(Measurer::Firmware, 4), (Measurer::Systemd, 11)]);
        assert!(!claims.secure_boot().unwrap().value);
    });
}

/// A unified kernel image, as systemd-stub measures it, started by systemd-boot.
pub(super) fn uki_boot() -> LogBuilder {
    let mut log = LogBuilder::good_boot(&BANKS);
    log.events.retain(|event| !matches!(event[0], 8 | 9 | 14));
    for (name, content) in
        [(".linux", &b"kernel"[..]), (".osrel", b"ID=test"), (".cmdline", b"quiet"), (".initrd", b"initrd")]
    {
        let label = utf16(&format!("{name}\0"));
        log.measure(11, EventType::IPL, &label, format!("{name}\0").as_bytes());
        log.measure(11, EventType::IPL, &label, content);
    }
    let given = utf16("root=/dev/vda rw\0");
    log.event(12, EventType::IPL, &given);
    log.measure(13, EventType::IPL, &utf16("System extension initrd\0"), b"cpio");
    log
}

#[test]
fn a_unified_kernel_images_sections_rest_on_their_names_digests() {
    with_claims(uki_boot().bytes(), Bank::Sha256, |claims| {
        let sections: Vec<_> =
            claims.uki().into_iter().map(|claim| (claim.value.name, claim.ground.digest.to_vec())).collect();
        let of = |content: &[u8]| Bank::Sha256.hash(content);
        assert_eq!(
            sections,
            [
                (".linux".to_owned(), of(b"kernel")),
                (".osrel".to_owned(), of(b"ID=test")),
                (".cmdline".to_owned(), of(b"quiet")),
                (".initrd".to_owned(), of(b"initrd")),
            ]
        );
        let line = claims.command_line().unwrap();
        assert_eq!((line.value.measurer, line.ground.pcr), (Measurer::Systemd, 12));
        assert_eq!(line.value.text.as_deref(), Some("root=/dev/vda rw"));
        assert!(claims.kernel().iter().any(|claim| claim.ground.digest == of(b"kernel")));
        let initrds: Vec<_> = claims.initrd().into_iter().map(|claim| claim.ground.digest.to_vec()).collect();
        assert_eq!(initrds, [of(b"initrd"), of(b"cpio")]);
    });
    // A label alone makes no section: the digest before must be that of the name.
    let mut log = uki_boot();
    let name = log.events.iter().position(|event| event[0] == 11).unwrap();
    let label = utf16(".linux\0");
    log.events[name] = log.encode(11, EventType::IPL, &label, |bank| bank.hash(b"something else"));
    with_claims(log.bytes(), Bank::Sha256, |claims| {
        assert!(claims.uki().iter().all(|claim| claim.value.name != ".linux"));
    });
}

#[test]
fn n91_no_label_and_no_type_hides_a_unified_kernel_images_section() {
    let of = |content: &[u8]| Bank::Sha256.hash(content);
    let genuine = uki_boot();
    let first = genuine.events.iter().position(|event| event[0] == 11).unwrap();
    // The name of the command line, its content, or both.
    for (name, content) in [(true, false), (false, true), (true, true)] {
        for event_type in [EventType::IPL, EventType::EVENT_TAG, EventType::COMPACT_HASH] {
            for label in [utf16(".osrel\0"), utf16("nothing\0"), Vec::new()] {
                let mut log = genuine.clone();
                let mut relabel = |at: usize, measured: &[u8]| {
                    log.events[at] = log.encode(11, event_type, &label, |bank| bank.hash(measured));
                };
                if name {
                    relabel(first + 4, b".cmdline\0");
                }
                if content {
                    relabel(first + 5, b"quiet");
                }
                with_claims(log.bytes(), Bank::Sha256, |claims| {
                    let lines: Vec<_> = claims.command_lines().iter().map(|line| line.ground.digest.to_vec()).collect();
                    assert!(lines.contains(&of(b"quiet")), "{name}, {content}, {event_type}, {label:?}");
                });
            }
        }
    }
    // A name before the genuine ones does not shift what is whose.
    let mut log = genuine.clone();
    let early = log.encode(11, EventType::IPL, &utf16(".osrel\0"), |bank| bank.hash(b".osrel\0"));
    log.events.insert(first, early);
    with_claims(log.bytes(), Bank::Sha256, |claims| {
        let of_name = |name: &str| {
            let named = claims.uki().into_iter().filter(|claim| claim.value.name == name);
            named.map(|claim| claim.ground.digest.to_vec()).collect::<Vec<_>>()
        };
        assert_eq!((of_name(".linux"), of_name(".cmdline")), (vec![of(b"kernel")], vec![of(b"quiet")]));
    });
    // The twin: a section's content without its name before it is no section, and a name that no specification lists is one.
    let mut log = genuine;
    log.events.truncate(first);
    let own = utf16(".own\0");
    log.measure(11, EventType::IPL, &utf16(".cmdline\0"), b"quiet");
    log.measure(11, EventType::IPL, &own, b".own\0").measure(11, EventType::IPL, &own, b"content");
    with_claims(log.bytes(), Bank::Sha256, |claims| {
        let sections: Vec<_> = claims.uki().into_iter().map(|claim| claim.value.name).collect();
        assert_eq!(sections, [".own"]);
    });
}
