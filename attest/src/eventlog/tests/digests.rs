//! What a header declares, and the digests of events beside that.

use portcullis_firmware_fixtures::recorded::corpus;

use super::*;

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
