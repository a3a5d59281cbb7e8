//! Claims from logs of real and of made-up boots, all of them through a quote.

mod uki;

use std::path::PathBuf;

use portcullis_firmware_fixtures::recorded::{self, RecordedBoot};
use proptest::prelude::*;

use uki::uki_boot;

use super::*;
use crate::appraise::stop::Stop;
use crate::appraise::tests::host::Host;
use crate::eventlog::log_builder::{LogBuilder, signature_list, utf16, variable};
use crate::eventlog::{EventLog, EventType, Guid};
use crate::evidence::Evidence;
use crate::quote::VerifiedQuote;

const BANKS: [Bank; 2] = [Bank::Sha256, Bank::Sha384];

/// A host whose firmware logged this, with a quote of all PCRs that the log tells of.
fn host(log: Vec<u8>, bank: Bank) -> Host {
    let mut host = Host::good();
    let mut pcrs: Vec<u8> = JUDGED_PCRS.to_vec();
    if let Ok(log) = EventLog::parse(&log) {
        pcrs.extend(log.replay(bank).into_keys());
    }
    pcrs.push(10);
    pcrs.sort_unstable();
    pcrs.dedup();
    host.selection = [(bank, pcrs)].into();
    host.raw_log = Some(log);
    host.boot_aggregate(10);
    host
}

/// What the evidence proves.
fn claims<'a>(
    host: &Host,
    evidence: &'a Evidence,
    bank: Bank,
    cache: &'a CertificateCache,
) -> Result<Claims<'a>, Denial> {
    let quote = VerifiedQuote::verify(evidence, &host.ak, &Host::binding())?;
    Claims::read(ReplayedLog::replay(quote, evidence, None)?, bank, cache)
}

/// Asks for the claims of a boot that has none of the IMA list's.
fn with_claims<T>(log: Vec<u8>, bank: Bank, ask: impl FnOnce(&Claims<'_>) -> T) -> T {
    let mut host = host(log, bank);
    host.ima.entries.clear();
    let evidence = host.evidence_of(host.pcrs());
    let cache = CertificateCache::new();
    let claims = claims(&host, &evidence, bank, &cache).unwrap_or_else(|reasons| panic!("{reasons:#?}"));
    ask(&claims)
}

fn recorded_claims<T>(boot: &RecordedBoot, ask: impl FnOnce(&Claims<'_>) -> T) -> T {
    with_claims(boot.event_log.to_vec(), Bank::Sha256, ask)
}

#[test]
fn the_recorded_boot_says_who_vouched_for_what() {
    recorded_claims(&recorded::SECURE_BOOT, |claims| {
        let state = claims.secure_boot().unwrap();
        assert!(state.value);
        assert_eq!((state.ground.event, state.ground.pcr, state.ground.coverage), (4, 7, Coverage::Data));
        assert_eq!(Some(state.ground.digest), claims.replayed().log().events()[3].digests.get(Bank::Sha256));

        let subjects = |claim: Option<Claim<'_, Arc<SignatureDatabase>>>| claim.unwrap().value.to_string();
        assert_eq!(subjects(claims.platform_key()), "Debian UEFI Secure Boot (PK/KEK key)");
        assert!(subjects(claims.exchange_keys()).ends_with("Microsoft Corporation KEK CA 2011"));
        let db = claims.db().unwrap().value;
        assert_eq!(db.certificates()[1].subject.as_deref(), Some("Microsoft Corporation UEFI CA 2011"));
        // The fingerprint that Microsoft publishes for it.
        assert_eq!(
            hex::encode(db.certificates()[1].fingerprint),
            "48e99b991f57fc52f76149599bff0a58c47154229b9f8d603ac40d3500248507"
        );
        let dbx = claims.dbx().unwrap().value;
        assert_eq!((dbx.certificates().len(), dbx.sha256().len(), dbx.others()), (0, 1, 0));
        assert!(dbx.has_sha256(&dbx.sha256()[0]) && !dbx.has_sha256(&[0; 32]));

        let verified = claims.verified_by();
        let by: Vec<_> = verified
            .iter()
            .map(|verified| {
                let names = verified.authorities.iter().map(|claim| claim.value.entry.to_string()).collect::<Vec<_>>();
                (verified.image.value.label.clone().unwrap_or_default(), names.join(" or "))
            })
            .collect();
        let (microsoft, either) = (
            "Microsoft Corporation UEFI CA 2011".to_owned(),
            "Microsoft Corporation UEFI CA 2011 or Debian Secure Boot CA".to_owned(),
        );
        assert_eq!(
            by,
            [
                // Only the firmware can have started the first image, and it knows db alone.
                ("\\EFI\\BOOT\\BOOTX64.EFI".to_owned(), microsoft),
                ("\\EFI\\BOOT\\grubx64.efi".to_owned(), either.clone()),
                (String::new(), either.clone()),
                (String::new(), either),
            ]
        );
        let lists: Vec<_> = claims.shim_lists().into_iter().map(|claim| claim.value.label).collect();
        assert_eq!(lists, ["MokList", "MokListX", "MokListTrusted"]);
        let sbat = claims.sbat_level().unwrap().value;
        assert_eq!(
            (sbat.date(), sbat.generation("shim"), sbat.generation("grub")),
            (Some(2_025_021_800), Some(4), Some(5))
        );
        assert_eq!(sbat.generation("sbat"), Some(1));
        assert!(claims.shim_validation().unwrap().value);
        assert!(claims.unread_authorities().is_empty());
        assert_eq!(sbat.generation("fwupd"), None);
    });
}

#[test]
fn the_recorded_boot_says_what_the_kernel_was_given() {
    recorded_claims(&recorded::SECURE_BOOT, |claims| {
        let line = claims.command_line().unwrap();
        assert_eq!(line.value.text.as_deref(), Some("/vmlinuz console=ttyS0 loglevel=5"));
        assert_eq!((line.value.measurer, line.ground.pcr, line.ground.coverage), (Measurer::Grub, 8, Coverage::Text));
        let commands: Vec<_> = claims.grub_commands().iter().map(|claim| claim.value.0).collect();
        assert_eq!(commands.last(), Some(&"boot"));
        assert!(commands.contains(&"linuxefi /vmlinuz console=ttyS0 loglevel=5"));
        let kernels: Vec<_> = claims.kernel().iter().map(|claim| (claim.value.measurer, claim.ground.pcr)).collect();
        assert_eq!(kernels, [(Measurer::Grub, 9), (Measurer::Firmware, 4)]);
        let initrds: Vec<_> =
            claims.initrd().iter().map(|claim| (claim.value.label.clone(), claim.ground.pcr)).collect();
        assert_eq!(initrds, [(Some("/initrd".to_owned()), 9)]);
        assert_eq!(claims.boot_order().unwrap().value, [1, 0, 2]);
        assert_eq!(claims.firmware_code().len(), 2);
        assert!(claims.uki().is_empty() && claims.option_roms().is_empty() && claims.dma_protection().is_none());
    });
    recorded_claims(&recorded::DIRECT, |claims| {
        assert!(!claims.secure_boot().unwrap().value);
        assert_eq!(claims.shim_validation(), None);
        assert!(claims.verified_by().iter().all(|verified| verified.authorities.is_empty()));
        let line = claims.command_line().unwrap();
        assert_eq!((line.value.measurer, line.value.text), (Measurer::KernelStub, None));
        // The stub logs no text, but its digest is that of a text that one can guess.
        let given = "console=ttyS0 loglevel=5 initrd=initrd";
        assert!(CommandLine::is_digest_of(given, line.ground.digest, Bank::Sha256));
        assert!(!CommandLine::is_digest_of("console=ttyS0 initrd=initrd", line.ground.digest, Bank::Sha256));
        assert_eq!(claims.initrd()[0].value.measurer, Measurer::KernelStub);
        assert_eq!(claims.kernel()[0].value.label.as_deref(), Some("kernel"));
    });
}

#[test]
fn a_command_line_of_which_no_digest_covers_the_text_has_no_text() {
    // Also under a label that calls it something harmless.
    for label in ["root=/dev/vda rw\0", "Credentials initrd\0", "root=/dev/vda\0 init=/bin/sh"] {
        let mut log = uki_boot();
        let at = log.events.iter().position(|event| event[0] == 12).unwrap();
        log.events[at] = log.encode(12, EventType::IPL, &utf16(label), |bank| bank.hash(&utf16("init=/bin/sh\0")));
        with_claims(log.bytes(), Bank::Sha256, |claims| {
            let lines: Vec<_> = claims.command_lines().into_iter().filter(|line| line.ground.pcr == 12).collect();
            assert_eq!(lines.len(), 1, "{label:?}");
            assert_eq!(lines[0].value.text, None, "{label:?}");
        });
    }
    // A text that goes on behind a terminator is none.
    let mut log = uki_boot();
    let at = log.events.iter().position(|event| event[0] == 12).unwrap();
    let hidden = utf16("quiet\0init=/bin/sh\0");
    log.events[at] = log.encode(12, EventType::IPL, &hidden, |bank| bank.hash(&hidden));
    with_claims(log.bytes(), Bank::Sha256, |claims| assert_eq!(claims.command_line().unwrap().value.text, None));
    // Nor is one of which only the beginning would be repeated.
    let lengthy = utf16(&format!("{}init=/bin/sh\0", "quiet ".repeat(2000)));
    log.events[at] = log.encode(12, EventType::IPL, &lengthy, |bank| bank.hash(&lengthy));
    with_claims(log.bytes(), Bank::Sha256, |claims| assert_eq!(claims.command_line().unwrap().value.text, None));
}

#[test]
fn what_some_boot_loaders_log_too_much_or_too_little_is_not_believed_but_the_rest_is() {
    let given = utf16("root=/dev/vda rw");
    let terminated = [&given[..], &[0, 0]].concat();
    for (data, measured) in [
        (&terminated, &given),
        (&[&terminated[..], &[0]].concat(), &terminated),
        (&[&given[..], &[0]].concat(), &terminated),
    ] {
        let mut log = uki_boot();
        let at = log.events.iter().position(|event| event[0] == 12).unwrap();
        log.events[at] = log.encode(12, EventType::IPL, data, |bank| bank.hash(measured));
        with_claims(log.bytes(), Bank::Sha256, |claims| {
            let line = claims.command_line().unwrap();
            assert!(matches!(line.ground.coverage, Coverage::Beginning(_)), "{:?}", line.ground.coverage);
            assert_eq!(line.value.text.as_deref(), Some("root=/dev/vda rw"));
        });
    }
    // Old shims: the variable, then some bytes of which the last was not measured.
    let mut log = LogBuilder::good_boot(&BANKS);
    let mut data = variable(Guid::IMAGE_SECURITY, "db", &[0x30, 0x03, 1, 1, 1]);
    data.extend([0, 0, 0, 0, 0]);
    let measured = data.clone();
    data.push(0xaf);
    log.measure(7, EventType::EFI_VARIABLE_AUTHORITY, &data, &measured);
    with_claims(log.bytes(), Bank::Sha256, |claims| {
        assert_eq!(claims.authorities().len(), 1, "the good boot's own entry is no certificate");
        assert!(claims.authorities()[0].value.is_db);
    });
}

#[test]
fn an_image_that_is_itself_listed_was_verified_by_that() {
    let mut log = LogBuilder::good_boot(&BANKS);
    let listed = [&[9; 16][..], &Bank::Sha256.hash(b"shim")].concat();
    log.event(7, EventType::EFI_VARIABLE_AUTHORITY, &variable(Guid::IMAGE_SECURITY, "db", &listed));
    let certificate = [&[9; 16][..], &[0x30, 0x03, 1, 1, 1]].concat();
    log.event(7, EventType::EFI_VARIABLE_AUTHORITY, &variable(Guid::SHIM_LOCK, "MokListRT", &certificate));
    with_claims(log.bytes(), Bank::Sha256, |claims| {
        let verified = claims.verified_by();
        let entries: Vec<Vec<_>> = verified
            .iter()
            .map(|verified| verified.authorities.iter().map(|claim| claim.value.variable.name()).collect())
            .collect();
        assert_eq!(entries, [vec!["db"], vec!["MokListRT"], vec!["MokListRT"]]);
    });
}

#[test]
fn drivers_of_cards_and_what_firmware_says_of_itself_are_claimed() {
    let mut log = LogBuilder::good_boot(&BANKS);
    log.measure(2, EventType::EFI_BOOT_SERVICES_DRIVER, &[0; 32], b"network card");
    log.measure(2, EventType::EFI_RUNTIME_SERVICES_DRIVER, &[0; 32], b"another card");
    let early = |build: &dyn Fn(&mut LogBuilder)| {
        let mut other = LogBuilder::new(&BANKS);
        build(&mut other);
        other.events.remove(0)
    };
    log.events.insert(1, early(&|log| _ = log.measure(0, EventType::POST_CODE, b"ACPI DATA", b"tables")));
    let volume = |log: &mut LogBuilder| {
        _ = log.measure(0, EventType::EFI_PLATFORM_FIRMWARE_BLOB2, b"\x05DXEFV\0\0", b"volume");
    };
    log.events.insert(2, early(&volume));
    log.event(7, EventType::EFI_ACTION, b"DMA Protection Disabled");
    log.event(7, EventType::EFI_VARIABLE_AUTHORITY, &variable(Guid::SHIM_LOCK, "MokListTrusted", &[1]));
    with_claims(log.bytes(), Bank::Sha384, |claims| {
        let kinds: Vec<_> = claims.option_roms().into_iter().map(|claim| claim.value.kind).collect();
        assert_eq!(kinds, [ImageKind::BootServicesDriver, ImageKind::RuntimeServicesDriver]);
        assert_eq!(claims.option_roms()[0].ground.digest, Bank::Sha384.hash(b"network card"));
        assert_eq!(claims.firmware_version().unwrap().value.text, "EDK II 2022.11");
        let labels: Vec<_> = claims.firmware_code().into_iter().filter_map(|claim| claim.value.label).collect();
        assert_eq!(labels, ["ACPI DATA", "DXEFV"]);
        assert!(!claims.dma_protection().unwrap().value);
        assert!(claims.mok_list_trusted().unwrap().value);
    });
}

#[test]
fn a_certificate_that_was_seen_before_is_not_read_again() {
    let log = LogBuilder::good_boot(&BANKS);
    let list = signature_list(b"db");
    log.position(&variable(Guid::IMAGE_SECURITY, "db", &list));
    let host = host(log.bytes(), Bank::Sha256);
    let evidence = host.evidence_of(host.pcrs());
    let cache = CertificateCache::new();
    let db = || claims(&host, &evidence, Bank::Sha256, &cache).unwrap().db().unwrap().value;
    assert!(Arc::ptr_eq(&db(), &db()));
}

fn real_logs() -> Option<PathBuf> {
    Some(recorded::corpus("what real logs claim")?.join("eventlogs"))
}

/// What firmware and boot loaders really log must not look like an attack. Logs that are cut, or whose boot loader puts
/// its text where firmware measures, are left out.
#[test]
fn real_logs_contradict_nothing() {
    const NOT_WHOLE: [&str; 3] = ["misc-sb_cert.bin", "misc-short_no_action.bin", "hygon-sm3.bin"];
    let Some(corpus) = real_logs() else { return };
    let cache = CertificateCache::new();
    let mut states = Vec::new();
    for file in std::fs::read_dir(corpus).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if NOT_WHOLE.contains(&name.as_str()) {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let log = EventLog::parse(&bytes).unwrap();
        let bank = if log.banks().contains(&Bank::Sha256) { Bank::Sha256 } else { Bank::Sha1 };
        let coverages = Coverages::of(log.events(), bank, Stop::never()).unwrap();
        let covered = CoveredLog::new(log.events(), &coverages, bank);
        let mut reasons = Vec::new();
        let separators = Separators::read(&log, bank, &mut reasons);
        reasons.extend(contradictions::check(covered, &separators));
        Settings::read(covered, &separators, &mut reasons);
        let state = SecureBoot::read(covered, &separators, &cache, &mut reasons).state().map(|claim| claim.value);
        states.push((name.clone(), state));
        assert_eq!(reasons, [], "{name}");
    }
    let on: Vec<_> = states.iter().filter(|(_, on)| *on == Some(true)).map(|(name, _)| name.as_str()).collect();
    assert!(states.iter().all(|(_, state)| state.is_some()), "{states:?}");
    for name in ["gcp-rhel8-uefi.bin", "gcp-cos-101-amd-sev.bin", "tools-event-moklisttrusted.bin"] {
        assert!(on.contains(&name), "{name}");
    }
    assert!(!on.contains(&"gcp-ubuntu-2104-no-secure-boot.bin"));
}

/// No genuine event is refused for its type: neither of the project's recordings, nor of real machines, also in logs that
/// are cut. One log of the corpus counts measurement registers of a confidential VM, not PCRs.
#[test]
fn n91_real_events_have_the_types_of_their_pcrs() {
    const NOT_OF_PCRS: &str = "hygon-sm3.bin";
    let boots = [recorded::ALL.as_slice(), &[recorded::DIRECT, recorded::SEABIOS]].concat();
    let mut logs: Vec<_> = boots.iter().map(|boot| (boot.name.to_owned(), boot.event_log.to_vec())).collect();
    logs.push(("uki".to_owned(), recorded::UKI_EVENT_LOG.to_vec()));
    let corpus = recorded::corpus("the types of real events");
    for folder in corpus.iter().flat_map(|corpus| [corpus.join("eventlogs"), corpus.join("genuine")]) {
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.extension().is_some_and(|end| end == "bin") && name != NOT_OF_PCRS {
                logs.push((name, std::fs::read(&path).unwrap()));
            }
        }
    }
    for (name, bytes) in &logs {
        let log = match EventLog::parse(bytes) {
            Ok(log) => log,
            // What the parser refuses is its own tests' business.
            Err(error) => {
                eprintln!("{name}: {error}");
                continue;
            }
        };
        for bank in log.banks() {
            let coverages = Coverages::of(log.events(), bank, Stop::never()).unwrap();
            for covered in CoveredLog::new(log.events(), &coverages, bank).iter() {
                assert!(placement::belongs(&covered), "{name}, {bank}: {:?}", covered.event);
            }
        }
    }
}

#[test]
fn real_logs_say_who_vouched_and_what_was_started() {
    let Some(corpus) = real_logs() else { return };
    let ask = |name: &str, ask: &dyn Fn(&Claims<'_>)| {
        with_claims(std::fs::read(corpus.join(name)).unwrap(), Bank::Sha256, ask);
    };
    let signers = |claims: &Claims<'_>| {
        claims.authorities().iter().map(|claim| claim.value.entry.to_string()).collect::<Vec<_>>()
    };
    // An old shim, which logs a byte more than it measures.
    ask("gcp-cos-85-amd-sev.bin", &|claims| {
        assert_eq!(signers(claims), ["UEFI DB Key v10"; 3]);
        assert!(claims.command_line().unwrap().value.text.unwrap().starts_with("/syslinux/vmlinuz.A init="));
        assert_eq!(claims.firmware_version().unwrap().value.text, "GCE Virtual Firmware v1");
    });
    // Red Hat's GRUB, with its own prefixes.
    ask("gcp-rhel8-uefi.bin", &|claims| {
        assert_eq!(signers(claims), ["Microsoft Corporation UEFI CA 2011", "Red Hat Secure Boot CA 5"]);
        let line = claims.command_line().unwrap().value.text.unwrap();
        assert!(line.starts_with("(hd0,gpt2)/boot/vmlinuz-4.18.0-240.22.1.el8_3.x86_64 root="), "{line}");
    });
    // systemd-boot, which logs a byte less than it measures.
    ask("metal-arch-linux-workstation.bin", &|claims| {
        let line = claims.command_line().unwrap();
        assert_eq!(line.value.measurer, Measurer::Systemd);
        assert!(line.value.text.unwrap().ends_with("l1tf=off"));
        assert_eq!(claims.firmware_version().unwrap().value.text, "546bfb1e-1d0c-4055-a4ad-4ef4bf17b83a");
        assert_eq!((claims.option_roms().len(), claims.dbx().unwrap().value.sha256().len()), (1, 77));
    });
    ask("tools-event-moklisttrusted.bin", &|claims| {
        assert!(claims.mok_list_trusted().unwrap().value);
        assert!(claims.shim_validation().unwrap().value);
        assert_eq!(claims.uncovered_settings().count(), 0);
        assert_eq!(signers(claims).len(), 2);
    });
}

/// Everything that can be asked.
fn ask_all(claims: &Claims<'_>) {
    let _ = (claims.secure_boot(), claims.platform_key(), claims.exchange_keys(), claims.db(), claims.dbx());
    let _ = (claims.verified_by(), claims.shim_lists(), claims.sbat_level().map(|claim| claim.value.date()));
    let _ =
        (claims.mok_list_trusted(), claims.grub_commands(), claims.command_line(), claims.kernel(), claims.initrd());
    let _ =
        (claims.uki(), claims.firmware_version(), claims.firmware_code(), claims.dma_protection(), claims.boot_order());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// A claim of a text is only made where its digest is that of the text: whatever is changed in a log.
    #[test]
    fn no_damage_makes_a_claim_that_no_digest_covers(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        unified in any::<bool>(),
    ) {
        let mut log = if unified { uki_boot() } else { LogBuilder::good_boot(&BANKS) };
        for (at, value) in changes {
            let event = at.index(log.events.len());
            let at = at.index(log.events[event].len());
            log.events[event][at] = value;
        }
        let mut host = host(log.bytes(), Bank::Sha256);
        host.ima.entries.clear();
        let evidence = host.evidence_of(host.pcrs());
        let cache = CertificateCache::new();
        if let Ok(claims) = claims(&host, &evidence, Bank::Sha256, &cache) {
            ask_all(&claims);
            for claim in claims.grub_commands() {
                prop_assert!(claim.ground.digest == Bank::Sha256.hash(claim.value.0.as_bytes()));
            }
            for claim in claims.command_lines() {
                let Some(text) = claim.value.text else { continue };
                let (ascii, wide) = (text.as_bytes(), utf16(&text));
                let terminated = utf16(&format!("{text}\0"));
                let covered = [ascii, &wide, &terminated].iter().any(|text| claim.ground.digest == Bank::Sha256.hash(text));
                prop_assert!(covered || claim.ground.coverage == Coverage::Data, "{text}");
            }
        }
    }
}
