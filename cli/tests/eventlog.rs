//! `portcullis eventlog`: what people see of a log, and what scripts replay.

mod program;

use portcullis_firmware_fixtures::recorded::{self, RecordedBoot};
use program::{json, run};
use serde_json::{Value, json as object};
use tempfile::TempDir;

/// A directory with the file `log`.
fn with_log(bytes: &[u8]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("log"), bytes).unwrap();
    dir
}

fn replay(log: &[u8]) -> Value {
    json(with_log(log).path(), &["eventlog", "replay", "log"], 0)
}

fn show(log: &[u8]) -> String {
    run(with_log(log).path(), &["eventlog", "show", "log"], 0).0
}

#[test]
fn a_recorded_log_replays_to_the_recorded_pcrs() {
    let boots: [&RecordedBoot; 5] = [
        &recorded::SECURE_BOOT,
        &recorded::TAMPERED,
        &recorded::SECURE_BOOT_OFF,
        &recorded::DIRECT,
        &recorded::SEABIOS,
    ];
    for boot in boots {
        let replayed = replay(boot.event_log);
        assert_eq!(replayed["trailing_bytes"], 0, "{}", boot.name);
        let pcrs: Value = serde_json::from_str(boot.pcrs_json).unwrap();
        let banks = replayed["banks"].as_object().unwrap();
        assert_eq!(banks.len(), 3, "{}", boot.name);
        for (bank, values) in banks {
            for (pcr, value) in values.as_object().unwrap() {
                assert_eq!(*value, pcrs[bank][pcr], "{}: {bank} PCR {pcr}", boot.name);
            }
            // PCRs that no event mentions are left out.
            assert!(values.get("10").is_none() && values.get("7").is_some());
        }
    }
}

#[test]
fn real_logs_replay_as_an_independent_program_computed() {
    let Some(corpus) = recorded::corpus("replay of real logs") else { return };
    let expected = std::fs::read_to_string(corpus.join("expected-replay.json")).unwrap();
    let expected: serde_json::Map<String, Value> = serde_json::from_str(&expected).unwrap();
    for (name, expected) in expected {
        let replayed = json(&corpus.join("eventlogs"), &["eventlog", "replay", &name], 0);
        assert_eq!(replayed["banks"], expected["pcrs"], "{name}");
        assert_eq!(replayed["events"], expected["events"], "{name}");
        assert_eq!(replayed["trailing_bytes"], expected["trailing_bytes"], "{name}");
    }
}

#[test]
fn what_follows_the_last_event_is_counted_and_named() {
    let log = recorded::SECURE_BOOT.event_log;
    let whole = replay(log);
    for (tail, words) in [
        (&[0_u8; 40][..], "40 bytes of zeros follow the last event"),
        (&[0xff; 9], "9 bytes of erased flash (0xff) follow"),
        (b"this is no event, whatever else it may be", "41 bytes that are no event follow"),
    ] {
        let longer = [log, tail].concat();
        let replayed = replay(&longer);
        assert_eq!((&replayed["banks"], &replayed["events"]), (&whole["banks"], &whole["events"]));
        assert_eq!(replayed["trailing_bytes"], tail.len());
        let dir = with_log(&longer);
        for command in ["replay", "show"] {
            let (stdout, _) = run(dir.path(), &["eventlog", command, "log"], 0);
            assert!(stdout.contains(words), "{command}: {stdout}");
        }
    }
}

#[test]
fn n52_n53_n59_a_log_that_cannot_be_read_is_2_and_says_where() {
    let log = recorded::SECURE_BOOT.event_log;
    let mut other_pcr = log.to_vec();
    let first = log.len() - recorded_events(log);
    other_pcr[first] = 24;
    for (bytes, words) in [
        (Vec::new(), "empty"),
        (log[..log.len() - 3].to_vec(), "cut short"),
        (other_pcr, "PCRs 0 to 23"),
        ([&log[..56], &[0; 4], &log[60..]].concat(), "Spec ID"),
    ] {
        let dir = with_log(&bytes);
        for command in ["replay", "show"] {
            let (stdout, stderr) = run(dir.path(), &["eventlog", command, "log"], 2);
            assert!(stdout.is_empty() && stderr.contains(words), "{command}: {stderr}");
        }
    }
    let (_, stderr) = run(with_log(log).path(), &["eventlog", "show", "log", "--bank", "sm3"], 2);
    assert!(stderr.contains("no digests of bank sm3"), "{stderr}");
}

#[test]
fn a_foreign_file_is_called_so() {
    let dir = with_log(b"This is the text of some other file, as it may lie anywhere.\n");
    std::fs::write(dir.path().join("list"), recorded::SECURE_BOOT.ima).unwrap();
    for (file, words) in [("log", "begins with \"This is the text\""), ("list", "begins with 0x0a000000")] {
        for command in ["replay", "show"] {
            let (_, stderr) = run(dir.path(), &["eventlog", command, file], 2);
            assert!(stderr.contains("not a firmware event log") && stderr.contains(words), "{command}: {stderr}");
            let answer = json(dir.path(), &["eventlog", command, file], 2);
            assert!(answer["error"]["text"].as_str().unwrap().contains(words), "{answer}");
        }
    }
}

/// Bytes of the events behind the header, of a log with three banks.
fn recorded_events(log: &[u8]) -> usize {
    let size = u32::from_le_bytes(log[28..32].try_into().unwrap());
    log.len() - 32 - size as usize
}

#[test]
fn events_are_shown_with_type_meaning_and_what_their_digest_covers() {
    let stdout = show(recorded::SECURE_BOOT.event_log);
    let line = |needle: &str| stdout.lines().find(|line| line.contains(needle)).unwrap_or_else(|| panic!("{stdout}"));
    let state = line("Secure Boot on");
    assert!(state.starts_with("4 ") && state.contains("EV_EFI_VARIABLE_DRIVER_CONFIG") && state.contains(" data "));
    let command_line = line("kernel command line");
    assert!(command_line.contains(" text ") && command_line.ends_with("/vmlinuz console=ttyS0 loglevel=5"));
    let initrd = line("  initrd  ");
    assert!(initrd.contains(" no ") && initrd.ends_with("/initrd"), "{initrd}");

    let answer = json(with_log(recorded::SECURE_BOOT.event_log).path(), &["eventlog", "show", "log"], 0);
    let event = &answer["events"][3];
    assert_eq!((&event["number"], &event["pcr"]), (&object!(4), &object!(7)));
    assert_eq!((&event["meaning"], &event["covered"]), (&object!("Secure Boot on"), &object!("data")));
    assert_eq!(event["digests"].as_object().unwrap().len(), 3);
    assert_eq!(answer["bank"], "sha256");
}

#[test]
fn a_log_without_uefi_is_shown_in_its_own_words() {
    let stdout = show(recorded::SEABIOS.event_log);
    let rows: Vec<Vec<&str>> =
        stdout.lines().skip(1).map(|line| line.split("  ").filter(|s| !s.is_empty()).collect()).collect();
    let meanings: Vec<(&str, &str)> = rows.iter().map(|row| (row[1].trim(), row[3].trim())).collect();
    let separators = ["0", "1", "2", "3", "4", "5", "6", "7"].map(|pcr| (pcr, "separator"));
    let start = [
        ("1", "SMBIOS structure"),
        ("2", "firmware action"),
        ("2", "option ROM that was run"),
        ("2", "option ROM that was run"),
        ("4", "firmware action"),
    ];
    assert_eq!(meanings, [&start[..], &separators].concat(), "{stdout}");
    assert!(stdout.contains("Start Option ROM Scan") && stdout.contains("Calling INT 19h"), "{stdout}");
    assert!(!stdout.contains("Secure Boot"), "{stdout}");
}
