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

/// Logs of machines whose PCRs are known: one lists some events' digests in another order than the header's, in the other
/// Windows' own events have SHA-256 digests alone.
#[test]
fn n52_genuine_logs_with_digests_in_another_order_or_of_some_banks_replay() {
    let Some(corpus) = corpus("replay of genuine logs") else { return };
    let genuine = corpus.join("genuine");
    let pcrs = std::fs::read_to_string(genuine.join("real-pcrs.json")).unwrap();
    let pcrs: serde_json::Value = serde_json::from_str(&pcrs).unwrap();
    let read = |name: &str| std::fs::read(genuine.join(name).with_extension("bin")).unwrap();
    let leads_to = |log: &EventLog<'_>, machine: &str, bank: Bank, left_out: &[u8]| {
        let replayed = log.replay(bank);
        for (pcr, value) in replayed.iter().filter(|(pcr, _)| !left_out.contains(pcr)) {
            let held = &pcrs[machine][bank.name()][pcr.to_string()];
            assert_eq!(held, &hex::encode(value), "{machine}: {bank} PCR {pcr}");
        }
        replayed.into_keys().collect::<Vec<_>>()
    };
    let both = [Bank::Sha1, Bank::Sha256];

    let bytes = read("metal-hpe-dl160");
    let log = EventLog::parse(&bytes).unwrap();
    assert_eq!((log.events().len(), log.banks()), (132, both.to_vec()));
    for bank in both {
        // PCR 0 of this machine is what its log does not say, from whichever locality it starts.
        let told = leads_to(&log, "metal-hpe-dl160", bank, &[0]);
        assert_eq!(told, (0..=9).chain([14]).collect::<Vec<_>>());
    }

    let bytes = read("metal-t480s-windows");
    let log = EventLog::parse(&bytes).unwrap();
    assert_eq!((log.events().len(), log.declared_banks(), log.banks()), (54, both.to_vec(), vec![Bank::Sha256]));
    let told = leads_to(&log, "metal-t480s-windows", Bank::Sha256, &[]);
    assert_eq!(told, (0..=7).chain(11..=14).collect::<Vec<_>>());
    assert_eq!(log.replay(Bank::Sha1), [].into());
    assert_eq!(log.first_without_digest(Bank::Sha1).map(|event| (event.number, event.pcr)), Some((44, 11)));
    let told: Vec<u8> = (0..24).filter(|pcr| log.extends_pcr(*pcr) && log.replays_pcr(Bank::Sha1, *pcr)).collect();
    assert_eq!(told, (0..=7).collect::<Vec<_>>(), "the firmware's own events have digests of both banks");
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
fn n52_a_spec_id_header_that_contradicts_itself_is_refused() {
    const BODY: usize = 32;
    // An unknown version.
    assert!(matches!(error_of(|b| b[BODY + 14] = b'4'), EventLogError::SpecId(_)));
    // No algorithms, and more than a TPM has.
    assert!(matches!(error_of(|b| b[BODY + 24] = 0), EventLogError::SpecId(_)));
    assert!(matches!(error_of(|b| b[BODY + 24..BODY + 28].fill(0xff)), EventLogError::SpecId(_)));
    // As many as are read, and one more.
    let of_algorithms = |count: u8| {
        let mut bytes = good().bytes();
        (bytes[28], bytes[BODY + 24]) = (bytes[28] + (count - 3) * 4, count);
        let unknown: Vec<u8> = (3..count).flat_map(|number| [number, 1, 32, 0]).collect();
        bytes.splice(BODY + 40..BODY + 40, unknown);
        EventLog::parse(&bytes).map(|log| log.events().len()).map_err(|error| error.to_string())
    };
    assert!(of_algorithms(16).is_ok(), "{:?}", of_algorithms(16));
    assert!(of_algorithms(17).is_err_and(|error| error.contains("declares 17 digest algorithms")));
    // A digest size that SHA-1 does not have.
    assert!(matches!(error_of(|b| b[BODY + 30] = 32), EventLogError::SpecId(_)));
    // The same algorithm twice, with the size that it has: one that is known here, and one that is not.
    let twice = |algorithm: [u8; 4]| {
        error_of(|b| {
            for place in [BODY + 28, BODY + 36] {
                b[place..place + 4].copy_from_slice(&algorithm);
            }
        })
    };
    assert_eq!(twice([4, 0, 20, 0]), EventLogError::SpecId("declares algorithm 0x0004 twice".to_owned()));
    assert_eq!(twice([0x27, 0, 32, 0]), EventLogError::SpecId("declares algorithm 0x0027 twice".to_owned()));
    // An algorithm that is not known, of an impossible size; of a possible one the header holds, and the events do not fit.
    let sha3_256_of = |size: u8| error_of(|b| (b[BODY + 36], b[BODY + 38]) = (0x27, size));
    assert!(matches!(sha3_256_of(0), EventLogError::SpecId(_)));
    assert!(matches!(sha3_256_of(65), EventLogError::SpecId(_)));
    assert!(matches!(sha3_256_of(64), EventLogError::Digests { event: 1, .. }));
    // Nothing but that.
    let only = |id: u8| {
        error_of(|b| {
            (b[28], b[BODY + 24], b[BODY + 28]) = (b[28] - 8, 1, id);
            b.drain(BODY + 32..BODY + 40);
        })
    };
    assert!(matches!(only(0x27), EventLogError::SpecId(_)));
    assert!(matches!(only(4), EventLogError::Digests { event: 1, .. }));
    // Vendor information that is longer than the header, and bytes that nothing declares.
    assert!(matches!(error_of(|b| b[BODY + 40] = 1), EventLogError::SpecId(_)));
    assert!(matches!(
        error_of(|b| {
            b[28] += 1;
            b.insert(BODY + 41, 0);
        }),
        EventLogError::SpecId(_)
    ));
    // A header that would extend a PCR, or that carries a digest.
    assert!(matches!(error_of(|b| b[4] = 8), EventLogError::SpecId(_)));
    assert!(matches!(error_of(|b| b[8] = 1), EventLogError::SpecId(_)));
    // A header in the middle.
    assert!(matches!(
        error_of(|b| b.extend(good().no_action(b"Spec ID Event03\0").events.last().unwrap())),
        EventLogError::SpecId(_)
    ));
}

#[test]
fn n52_an_event_whose_digests_are_not_those_of_the_header_is_refused() {
    const FIRST: usize = 32 + 41;
    let refused = |change: &dyn Fn(&mut Vec<u8>), words: &str| match error_of(change) {
        EventLogError::Digests { event: 1, what, .. } => assert!(what.contains(words), "{what}"),
        other => panic!("{other}"),
    };
    // None at all, one more than declared, and as many as there can be.
    refused(&|b| b[FIRST + 8] = 0, "has 0 digests, 1 to 3");
    refused(&|b| b[FIRST + 8] = 4, "has 4 digests");
    refused(&|b| b[FIRST + 8..FIRST + 12].fill(0xff), "has 4294967295 digests");
    // An algorithm that was not declared.
    refused(&|b| b[FIRST + 12] = 0x0d, "algorithm 0x000d, which the header does not declare");
    // The same one twice, beside each other or not: the second digest is cut to the size of the first.
    let first = good().events[0].clone();
    let (sha1, sha256) = (first[12..34].to_vec(), first[34..68].to_vec());
    let end = first[118..].to_vec();
    for (digests, words) in [
        ([sha1.clone(), sha1.clone(), sha256.clone()], "two digests of algorithm 0x0004"),
        ([sha1, sha256.clone(), sha256], "two digests of algorithm 0x000b"),
    ] {
        let event = [first[..12].to_vec(), digests.concat(), end.clone()].concat();
        refused(&|b| drop(b.splice(FIRST..FIRST + first.len(), event.clone())), words);
    }
}

/// The parts of an event of [`BANKS`]: what stands before its digests, those with their algorithms, what stands behind.
fn parts(event: &[u8]) -> (&[u8], [&[u8]; 3], &[u8]) {
    (&event[..8], [&event[12..34], &event[34..68], &event[68..118]], &event[118..])
}

fn with_digests(event: &[u8], order: &[usize]) -> Vec<u8> {
    let (front, digests, end) = parts(event);
    let count = u32::try_from(order.len()).unwrap().to_le_bytes();
    let chosen: Vec<u8> = order.iter().flat_map(|place| digests[*place]).copied().collect();
    [front, &count, &chosen, end].concat()
}

#[test]
fn n52_digests_in_another_order_are_the_same_digests() {
    let genuine = good();
    let bytes = genuine.bytes();
    let expected = EventLog::parse(&bytes).unwrap();
    for order in [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        // In every event, and in some: genuine firmware changes its mind.
        for every in [1, 3] {
            let mut other = genuine.clone();
            for event in other.events.iter_mut().step_by(every) {
                *event = with_digests(event, &order);
            }
            let bytes = other.bytes();
            let log = EventLog::parse(&bytes).unwrap();
            assert_eq!(log.banks(), BANKS);
            for bank in BANKS {
                assert_eq!(log.replay(bank), expected.replay(bank), "{order:?} {bank}");
            }
        }
    }
}

#[test]
fn n52_a_bank_replays_if_every_event_that_extends_has_its_digest() {
    let genuine = good();
    let bytes = genuine.bytes();
    let expected = EventLog::parse(&bytes).unwrap();
    for (at, (lacking, order)) in [(0, [1, 2]), (1, [2, 0]), (2, [0, 1])].into_iter().enumerate() {
        let mut other = genuine.clone();
        other.events[at] = with_digests(&other.events[at], &order);
        let pcr = other.events[at][0];
        let bytes = other.bytes();
        let log = EventLog::parse(&bytes).unwrap();
        assert_eq!(log.declared_banks(), BANKS);
        for (place, bank) in BANKS.into_iter().enumerate() {
            assert_eq!(log.banks().contains(&bank), place != lacking, "{bank}");
            let values = if place == lacking { [].into() } else { expected.replay(bank) };
            assert_eq!(log.replay(bank), values, "{bank}");
            assert_eq!(log.replays_pcr(bank, pcr), place != lacking);
            assert!((0..24).filter(|other| *other != pcr).all(|other| log.replays_pcr(bank, other)));
            let first = (place == lacking).then_some(at + 1);
            assert_eq!(log.first_without_digest(bank).map(|event| event.number), first);
        }
    }
    // An event that extends nothing needs none.
    let mut log = genuine;
    log.no_action(b"nothing");
    let last = log.events.last_mut().unwrap();
    *last = with_digests(last, &[0]);
    assert_eq!(EventLog::parse(&log.bytes()).unwrap().banks(), BANKS);
}

#[test]
fn n53_a_log_cut_short_anywhere_is_refused_unless_it_ends_with_an_event() {
    let log = good();
    let bytes = log.bytes();
    let mut ends = std::collections::BTreeSet::new();
    let mut end = bytes.len() - log.events.concat().len();
    for event in &log.events {
        end += event.len();
        ends.insert(end);
    }
    for cut in 0..bytes.len() {
        match EventLog::parse(&bytes[..cut]) {
            Ok(log) if ends.contains(&cut) => assert!(log.trailing().is_empty()),
            // A beginning of a header of nothing but zeros cannot be told from padding; it is reported as such.
            Ok(log) => {
                assert!(!log.trailing().is_empty() && log.trailing().iter().all(|byte| *byte == 0), "cut at {cut}");
            }
            Err(_) => {}
        }
    }
}

#[test]
fn n53_sizes_up_to_four_gibibytes_and_a_million_events_end_in_an_error() {
    let mut log = good();
    let mut event = log.encode(5, EventType::ACTION, b"", |bank| bank.hash(b""));
    let size = event.len() - 4;
    event[size..].fill(0xff);
    log.events.push(event);
    log.event(5, EventType::ACTION, b"more");
    assert!(matches!(EventLog::parse(&log.bytes()), Err(EventLogError::Truncated { field: "the event", .. })));

    let tiny = good().encode(5, EventType::ACTION, b"", |bank| bank.hash(b""));
    let bytes = [good().bytes(), tiny.repeat(1_000_000 * 42 / tiny.len() + 1)].concat();
    assert_eq!(EventLog::parse(&bytes).err(), Some(EventLogError::TooManyEvents));
    assert_eq!(EventLog::parse(&vec![0; MAX_BYTES + 1]).err(), Some(EventLogError::TooLarge(MAX_BYTES + 1)));
}

#[test]
fn n53_a_hostile_file_of_64_mib_takes_no_longer_than_its_bytes() {
    let ((), done) = crate::work::of(hostile_files);
    assert!(done <= 5 * MAX_BYTES, "{done} steps");
}

fn hostile_files() {
    // Zeros are events of PCR 0 in the old form: all of them up to the last byte.
    let mut zeros = vec![0; MAX_BYTES];
    zeros[MAX_BYTES - 1] = 1;
    assert_eq!(EventLog::parse(&zeros).err(), Some(EventLogError::TooManyEvents));
    let mut bytes = good().bytes();
    bytes.resize(MAX_BYTES, 0xff);
    assert_eq!(EventLog::parse(&bytes).unwrap().trailing().len(), MAX_BYTES - good().bytes().len());
    bytes[MAX_BYTES - 1] = 0;
    assert!(EventLog::parse(&bytes).is_ok_and(|log| !log.trailing().is_empty()));
}

#[test]
fn a_foreign_file_is_no_empty_log() {
    for (bytes, begin) in [
        (&b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x01\0\0\0\x01\0\x08\x06\0\0\0"[..], "0x89504e470d0a1a0a0000000d49484452"),
        (b"Once upon a time there was a text file of some length.\n", "\"Once upon a time\""),
        (b"hi\n", "\"hi\\n\""),
        (&[0; 4096], "0x00000000000000000000000000000000"),
        (&[0xff; 64], "0xffffffffffffffffffffffffffffffff"),
    ] {
        let error = EventLog::parse(bytes).unwrap_err();
        assert_eq!(error, EventLogError::Foreign { begin: begin.to_owned() });
        assert!(error.to_string().starts_with("not a firmware event log: "), "{error}");
    }
    // Nothing at all, and a log that ends behind its header, are empty.
    assert_eq!(EventLog::parse(b"").unwrap_err(), EventLogError::Empty);
    let header = LogBuilder::new(&BANKS).bytes();
    assert_eq!(EventLog::parse(&header).unwrap_err(), EventLogError::Empty);
    assert!(EventLog::parse(&good().bytes()).is_ok());
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
