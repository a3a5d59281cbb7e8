mod digests;
mod hostile;

use portcullis_firmware_fixtures::recorded::corpus;
use proptest::prelude::*;

use super::log_builder::LogBuilder;
use super::*;

#[test]
fn real_logs_replay_as_an_independent_program_computed() {
    let Some(corpus) = corpus("replay of real logs") else { return };
    let expected = std::fs::read_to_string(corpus.join("expected-replay.json")).unwrap();
    let expected: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&expected).unwrap();
    assert!(expected.len() > 20);
    for (name, expected) in &expected {
        let bytes = std::fs::read(corpus.join("eventlogs").join(name)).unwrap();
        let log = EventLog::parse(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(log.events().len() as u64, expected["events"], "{name}");
        assert_eq!(log.trailing().len() as u64, expected["trailing_bytes"], "{name}");
        let mut banks = serde_json::Map::new();
        for bank in log.banks() {
            let pcrs: serde_json::Map<_, _> =
                log.replay(bank).into_iter().map(|(pcr, value)| (pcr.to_string(), hex::encode(value).into())).collect();
            banks.insert(if bank == Bank::Sm3_256 { "sm3".into() } else { bank.name().into() }, pcrs.into());
        }
        assert_eq!(serde_json::Value::from(banks), expected["pcrs"], "{name}");
    }
}

#[test]
fn the_log_of_a_real_quote_leads_to_its_pcrs() {
    use base64::Engine as _;
    let Some(corpus) = corpus("a real quote") else { return };
    let json = std::fs::read(corpus.join("quotes/windows_gcp_shielded_vm.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let decode =
        |value: &serde_json::Value| base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap()).unwrap();
    let bytes = decode(&json["Log"]["Raw"]);
    let log = EventLog::parse(&bytes).unwrap();
    let replayed = log.replay(Bank::Sha1);
    assert!(replayed.len() >= 8);
    for pcr in json["Log"]["PCRs"].as_array().unwrap() {
        let index = u8::try_from(pcr["Index"].as_u64().unwrap()).unwrap();
        let expected = replayed.get(&index).cloned().unwrap_or_else(|| initial_value(Bank::Sha1, index, 0));
        assert_eq!(hex::encode(expected), hex::encode(decode(&pcr["Digest"])), "PCR {index}");
    }
    let state = log.events().iter().map(|event| log.describe(event)).find(|d| d.kind == EventKind::SecureBootState);
    assert_eq!(state.unwrap().words, "Secure Boot on");
}

const BANKS: [Bank; 3] = [Bank::Sha1, Bank::Sha256, Bank::Sha384];

fn good() -> LogBuilder {
    LogBuilder::good_boot(&BANKS)
}

/// The error for the good log's bytes after `change`.
fn error_of(change: impl FnOnce(&mut Vec<u8>)) -> EventLogError {
    let mut bytes = good().bytes();
    change(&mut bytes);
    EventLog::parse(&bytes).expect_err("the log should have been refused")
}

#[test]
fn guids_read_as_they_are_written() {
    assert_eq!(Guid::GLOBAL.to_string(), "8be4df61-93ca-11d2-aa0d-00e098032b8c");
    assert_eq!(Guid::IMAGE_SECURITY.to_string(), "d719b2cb-3d3a-4596-a3bc-dad00e67656f");
    assert_eq!(Guid::SHIM_LOCK.to_string(), "605dab50-e046-4300-abb6-3dd810dd8b23");
}

#[test]
fn the_good_log_reads_and_says_in_words_what_was_measured() {
    let bytes = good().bytes();
    let log = EventLog::parse(&bytes).unwrap();
    assert_eq!(log.banks(), BANKS);
    assert!(log.trailing().is_empty());
    let described: Vec<_> = log.events().iter().map(|event| log.describe(event)).collect();
    let find = |kind| described.iter().filter(|d| d.kind == kind).collect::<Vec<_>>();
    let command_line = find(EventKind::KernelCommandLine);
    assert_eq!(command_line.len(), 1);
    assert_eq!(command_line[0].words, "kernel command line");
    assert_eq!(command_line[0].text.as_deref(), Some("/vmlinuz console=ttyS0 quiet"));
    assert_eq!(command_line[0].coverage, Coverage::Text);
    let files: Vec<_> = find(EventKind::GrubFile).iter().map(|d| (d.words.as_str(), d.coverage)).collect();
    let nothing = Coverage::Nothing;
    assert_eq!(files, [("GRUB configuration file", nothing), ("kernel file", nothing), ("initrd", nothing)]);
    assert_eq!(find(EventKind::SecureBootState)[0].words, "Secure Boot on");
    assert_eq!(find(EventKind::SecureBootState)[0].coverage, Coverage::Data);
    assert_eq!(find(EventKind::BootImage)[1].text.as_deref(), Some("\\EFI\\BOOT\\grubx64.efi"));
    assert_eq!(find(EventKind::BootOrder)[0].text.as_deref(), Some("0000,0001"));
    assert_eq!(find(EventKind::BootOrder)[0].coverage, Coverage::Value);
    assert_eq!(find(EventKind::FirmwareVersion)[0].text.as_deref(), Some("EDK II 2022.11"));
    assert_eq!(find(EventKind::Separator).len(), 8);
}

/// Whatever digest it carries: nothing was extended with it.
#[test]
fn n45_an_event_that_extends_nothing_is_covered_by_nothing() {
    let coverage = |event_type| {
        let mut log = good();
        log.event(0, event_type, b"text");
        let bytes = log.bytes();
        EventLog::parse(&bytes).unwrap().events().last().unwrap().coverage(Bank::Sha256)
    };
    assert_eq!((coverage(EventType::ACTION), coverage(EventType::NO_ACTION)), (Coverage::Data, Coverage::Nothing));
}

#[test]
fn n51_a_command_line_that_its_digest_does_not_cover_is_said_to_be_a_label() {
    let mut log = good();
    let at = log.position(b"kernel_cmdline");
    log.events[at] = log.encode(8, EventType::IPL, b"kernel_cmdline: /vmlinuz quiet\0", |b| b.hash(b"/vmlinuz evil"));
    let bytes = log.bytes();
    let log = EventLog::parse(&bytes).unwrap();
    assert_eq!(log.describe(&log.events()[at]).coverage, Coverage::Nothing);
}

#[test]
fn n59_a_pcr_that_no_tpm_has_is_refused() {
    for pcr in [24, 25, 255, 256, u32::MAX] {
        let mut log = good();
        log.event(pcr, EventType::ACTION, b"x");
        assert!(matches!(EventLog::parse(&log.bytes()), Err(EventLogError::Pcr { .. })), "{pcr}");
    }
    let mut log = good();
    log.event(23, EventType::ACTION, b"x");
    assert!(EventLog::parse(&log.bytes()).is_ok());
}

#[test]
fn n48_a_startup_locality_is_alone_early_and_one_of_three() {
    let locality = |locality: u8| [&b"StartupLocality\0"[..], &[locality]].concat();
    let with = |build: &dyn Fn(&mut LogBuilder)| {
        let mut log = LogBuilder::new(&BANKS);
        build(&mut log);
        log.event(0, EventType::S_CRTM_VERSION, b"1");
        log.bytes()
    };
    for value in [0, 3, 4] {
        let bytes = with(&|log| {
            log.no_action(&locality(value));
        });
        let log = EventLog::parse(&bytes).unwrap();
        let mut start = vec![0; 32];
        start[31] = value;
        assert_eq!(log.replay(Bank::Sha256)[&0], Bank::Sha256.extend(&start, &Bank::Sha256.hash(b"1")));
    }
    let refused = |bytes: Vec<u8>| matches!(EventLog::parse(&bytes), Err(EventLogError::StartupLocality { .. }));
    for value in [1, 2, 5, 0xff] {
        assert!(refused(with(&|log| {
            log.no_action(&locality(value));
        })));
    }
    assert!(refused(with(&|log| {
        log.no_action(&locality(3)).no_action(&locality(3));
    })));
    assert!(refused(with(&|log| {
        log.event(0, EventType::S_CRTM_CONTENTS, b"x").no_action(&locality(3));
    })));
    let of_pcr = |pcr: u32| {
        with(&|log| {
            let event = log.encode(pcr, EventType::NO_ACTION, &locality(3), |bank| vec![0; bank.digest_size()]);
            log.events.push(event);
        })
    };
    assert!(!refused(of_pcr(0)) && refused(of_pcr(1)));
    assert!(refused(with(&|log| {
        log.no_action(b"StartupLocality\0");
    })));
    assert!(refused(with(&|log| {
        log.no_action(b"StartupLocality\0\x03\0");
    })));
}

#[test]
fn what_follows_the_last_event_is_reported_and_not_believed() {
    let good = good().bytes();
    for tail in [&[0; 100][..], &[0xff; 4096], &[0xff], b"garbage that is no event at all, not even the beginning"] {
        let bytes = [&good[..], tail].concat();
        let log = EventLog::parse(&bytes).unwrap();
        assert_eq!(log.trailing(), tail);
        assert_eq!(log.replay(Bank::Sha256), EventLog::parse(&good).unwrap().replay(Bank::Sha256));
    }
}

#[test]
fn n60_signature_lists_with_sizes_that_contradict_each_other_are_refused() {
    let good = log_builder::signature_list(b"certificate");
    let signatures = signature_lists(&good).unwrap();
    assert_eq!(signatures.len(), 1);
    assert_eq!((signatures[0].kind, signatures[0].data), (SignatureType::X509, &b"certificate"[..]));
    let two = [&good[..], &good].concat();
    assert_eq!(signature_lists(&two).unwrap().len(), 2);
    assert_eq!(signature_lists(&[]).unwrap(), []);
    let with = |at: usize, value: u32| {
        let mut list = good.clone();
        list[at..at + 4].copy_from_slice(&value.to_le_bytes());
        signature_lists(&list).expect_err("should have been refused")
    };
    assert_eq!(with(16, 27), SignatureListError::Underflow(27));
    assert_eq!(with(16, 0), SignatureListError::Underflow(0));
    assert!(matches!(with(16, u32::MAX), SignatureListError::Truncated { .. }));
    assert!(matches!(with(20, 28), SignatureListError::Underflow(_)));
    for size in [0, 15, 16, 28, u32::MAX] {
        assert!(matches!(with(24, size), SignatureListError::SignatureSize { .. }), "{size}");
    }
    // Signatures of an owner and nothing else.
    let size = |size: u32| size.to_le_bytes();
    let of_owners = [&good[..16], &size(28 + 32), &size(0), &size(16), &[0; 32]].concat();
    assert!(matches!(signature_lists(&of_owners), Err(SignatureListError::SignatureSize { .. })));
    for cut in 1..good.len() {
        assert!(signature_lists(&good[..cut]).is_err(), "{cut}");
    }
    // As many as are read, one byte each, and one more.
    let many = |count: u32| {
        let header = [&good[..16], &size(28 + 17 * count), &size(0), &size(17)].concat();
        signature_lists(&[header, vec![0; 17 * count as usize]].concat()).map(|signatures| signatures.len())
    };
    assert_eq!((many(16_384), many(16_385)), (Ok(16_384), Err(SignatureListError::TooMany)));
}

#[test]
fn n49_a_variable_is_all_of_its_data_and_its_name_is_text() {
    let bytes = |name: &[u16]| {
        let units = (name.len() as u64).to_le_bytes();
        let name: Vec<u8> = name.iter().copied().flat_map(u16::to_le_bytes).collect();
        [&Guid::GLOBAL.0[..], &units, &1_u64.to_le_bytes(), &name, &[7]].concat()
    };
    let of_name = |name: &[u16]| Variable::parse(&bytes(name)).map(|variable| variable.data.to_vec());
    let name: Vec<u16> = "SecureBoot".encode_utf16().collect();
    let good = bytes(&name);
    let variable = Variable::parse(&good).unwrap();
    assert!(variable.is(Guid::GLOBAL, "SecureBoot"));
    assert!(!variable.is(Guid::GLOBAL, "SecureBoo") && !variable.is(Guid::IMAGE_SECURITY, "SecureBoot"));
    assert_eq!(Variable::parse(&[&good[..], &[0]].concat()), Err(VariableError::Trailing(1)));
    assert_eq!(of_name(&vec![97; 1024]), Ok(vec![7]));
    assert_eq!(of_name(&vec![97; 1025]), Err(VariableError::NameTooLong(1025)));
    // With a terminator, or half of a character: another reader would see another name.
    assert_eq!(of_name(&[&name[..], &[0]].concat()), Err(VariableError::Name));
    assert_eq!(of_name(&[0xD800]), Err(VariableError::Name));
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        walk(&bytes);
    }

    #[test]
    fn no_damage_makes_the_parser_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = good().bytes();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        walk(&bytes);
    }
}

/// Everything that can be asked of a log.
fn walk(bytes: &[u8]) {
    let Ok(log) = EventLog::parse(bytes) else { return };
    for bank in Bank::ALL {
        for value in log.replay(bank).values() {
            assert_eq!(value.len(), bank.digest_size());
        }
    }
    for event in log.events() {
        let _ = log.describe(event);
        let _ = signature_lists(event.data);
    }
}
