//! `portcullis eventlog`: what people see of a log, and what scripts replay.

use std::path::{Path, PathBuf};
use std::process::Command;

use portcullis_firmware_fixtures::recorded;
use serde_json::{Value, json};

/// Runs the program, checks the exit code and gives both outputs.
fn run(arguments: &[&str], code: i32) -> (String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis")).args(arguments).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\nstdout: {stdout}\nstderr: {stderr}");
    (stdout, stderr)
}

fn replay(path: &Path) -> Value {
    serde_json::from_str(&run(&["eventlog", "replay", path.to_str().unwrap(), "--json"], 0).0).unwrap()
}

/// A file with these bytes.
fn file(dir: &tempfile::TempDir, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join("log.bin");
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_recorded_log_replays_to_the_recorded_pcrs() {
    let dir = tempfile::tempdir().unwrap();
    for boot in &recorded::ALL {
        let replayed = replay(&file(&dir, boot.event_log));
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
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    let Ok(expected) = std::fs::read_to_string(corpus.join("expected-replay.json")) else {
        eprintln!("ATTENTION: no corpus of real logs at {}: replay of real logs was NOT checked", corpus.display());
        return;
    };
    let expected: serde_json::Map<String, Value> = serde_json::from_str(&expected).unwrap();
    for (name, expected) in expected {
        let replayed = replay(&corpus.join("eventlogs").join(&name));
        let expected = json!({
            "banks": expected["pcrs"], "events": expected["events"], "trailing_bytes": expected["trailing_bytes"],
        });
        assert_eq!(replayed, expected, "{name}");
    }
}

#[test]
fn what_follows_the_last_event_is_counted_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let log = recorded::SECURE_BOOT.event_log;
    let whole = replay(&file(&dir, log));
    for (tail, words) in [
        (&[0_u8; 40][..], "40 bytes of zeros follow the last event"),
        (&[0xff; 9], "9 bytes of erased flash (0xff) follow"),
        (b"this is no event, whatever else it may be", "41 bytes that are no event follow"),
    ] {
        let path = file(&dir, &[log, tail].concat());
        let replayed = replay(&path);
        assert_eq!((&replayed["banks"], &replayed["events"]), (&whole["banks"], &whole["events"]));
        assert_eq!(replayed["trailing_bytes"], tail.len());
        for command in ["replay", "show"] {
            let (stdout, _) = run(&["eventlog", command, path.to_str().unwrap()], 0);
            assert!(stdout.contains(words), "{command}: {stdout}");
        }
    }
}

#[test]
fn n52_n53_n59_a_log_that_cannot_be_read_is_2_and_says_where() {
    let dir = tempfile::tempdir().unwrap();
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
        let path = file(&dir, &bytes);
        for command in ["replay", "show"] {
            let (stdout, stderr) = run(&["eventlog", command, path.to_str().unwrap()], 2);
            assert!(stdout.is_empty() && stderr.contains(words), "{command}: {stderr}");
        }
    }
    let (_, stderr) = run(&["eventlog", "show", file(&dir, log).to_str().unwrap(), "--bank", "sm3"], 2);
    assert!(stderr.contains("no digests of bank sm3"), "{stderr}");
}

/// Bytes of the events behind the header, of a log with three banks.
fn recorded_events(log: &[u8]) -> usize {
    let size = u32::from_le_bytes(log[28..32].try_into().unwrap());
    log.len() - 32 - size as usize
}

#[test]
fn events_are_shown_with_type_meaning_and_what_their_digest_covers() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, recorded::SECURE_BOOT.event_log);
    let (stdout, _) = run(&["eventlog", "show", path.to_str().unwrap()], 0);
    let line = |needle: &str| stdout.lines().find(|line| line.contains(needle)).unwrap_or_else(|| panic!("{stdout}"));
    let state = line("Secure Boot on");
    assert!(state.starts_with("4 ") && state.contains("EV_EFI_VARIABLE_DRIVER_CONFIG") && state.contains(" data "));
    let command_line = line("kernel command line");
    assert!(command_line.contains(" text ") && command_line.ends_with("/vmlinuz console=ttyS0 loglevel=5"));
    let initrd = line("  initrd  ");
    assert!(initrd.contains(" no ") && initrd.ends_with("/initrd"), "{initrd}");

    let json = run(&["eventlog", "show", path.to_str().unwrap(), "--json"], 0).0;
    let json: Value = serde_json::from_str(&json).unwrap();
    let event = &json["events"][3];
    assert_eq!((&event["number"], &event["pcr"]), (&json!(4), &json!(7)));
    assert_eq!((&event["meaning"], &event["covered"]), (&json!("Secure Boot on"), &json!("data")));
    assert_eq!(event["digests"].as_object().unwrap().len(), 3);
    assert_eq!(json["bank"], "sha256");
}
