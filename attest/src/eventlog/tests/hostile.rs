//! Files that are cut short, too large, or something else.

use super::*;

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
