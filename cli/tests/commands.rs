//! The command line as a person or a script meets it: exit codes, messages, and that nothing is printed twice.

mod program;

use std::process::Command;

use program::run;

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn bad_arguments_are_2_and_help_is_0() {
    let dir = dir();
    for arguments in [
        &["no-such-command"][..],
        &[],
        &["host"],
        &["host", "admit", "short"],
        &["vm", "launch", "--name", "x"],
        &["vm", "launch", "--name", "x", "--volume", "v", "--kernel", "k", "--kernel-sha256", "zz"],
        &["vm", "launch", "--name", "x", "--volume", "v", "--kernel", "k", "--vcpus", "0"],
        &["eventlog", "show"],
        &["eventlog", "show", "x", "--bank", "md5"],
        &["verify", "--evidence", "x"],
    ] {
        let (stdout, stderr) = run(dir.path(), arguments, 2);
        assert!(stdout.is_empty() && !stderr.is_empty(), "{arguments:?}: {stdout}");
    }
    for arguments in [&["--help"][..], &["vm", "launch", "--help"], &["verify", "--help"], &["volume", "put", "--help"]]
    {
        let (stdout, _) = run(dir.path(), arguments, 0);
        assert!(stdout.contains("Example"), "{arguments:?}: {stdout}");
    }
}

/// How to reach a verifier is nothing to tell a command that asks none.
#[test]
fn only_commands_that_ask_the_verifier_take_its_address() {
    let dir = dir();
    let takes_it = |command: &[&str]| {
        let (help, _) = run(dir.path(), &[command, &["--help"]].concat(), 0);
        assert_eq!(help.contains("Connection:"), help.contains("--url"), "{command:?}: {help}");
        help.contains("--url")
    };
    for command in [&["host"][..], &["host", "ls"], &["volume", "put"], &["vm", "launch"]] {
        assert!(takes_it(command), "{command:?}");
    }
    for command in [
        &[][..],
        &["verify"],
        &["reference", "make"],
        &["result", "check"],
        &["quote", "check"],
        &["ek", "check"],
        &["eventlog", "show"],
        &["ima", "replay"],
    ] {
        assert!(!takes_it(command), "{command:?}");
    }
    run(dir.path(), &["eventlog", "show", "x", "--url", "https://x"], 2);
}

#[test]
fn an_unwritable_standard_error_changes_no_exit_code() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    let status = command.args(["eventlog", "show", "/nonexistent"]).stderr(full).status().unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
fn unreadable_and_broken_files_are_2_and_named() {
    let dir = dir();
    std::fs::write(dir.path().join("junk"), b"junk").unwrap();
    std::fs::write(dir.path().join("empty"), b"").unwrap();
    for (arguments, word) in [
        (&["eventlog", "show", "missing"][..], "missing"),
        (&["eventlog", "show", "empty"], "empty"),
        (&["eventlog", "replay", "junk"], "junk"),
        (&["eventlog", "replay", "."], "cannot read ."),
        (&["ima", "replay", "missing"], "missing"),
        (&["ima", "replay", "junk"], "junk"),
        (&["host", "ls", "--config", "missing.toml"], "missing.toml"),
        (&["verify", "--evidence", "missing", "--nonce", NONCE, "--reference", "r", "--policy", "p"], "missing"),
        (&["verify", "--evidence", "junk", "--nonce", NONCE, "--reference", "r", "--policy", "p"], "junk"),
        (&["verify", "--evidence", "junk", "--nonce", "zz", "--reference", "r", "--policy", "p"], "--nonce"),
    ] {
        let (stdout, stderr) = run(dir.path(), arguments, 2);
        assert!(stdout.is_empty(), "{stdout}");
        assert!(stderr.starts_with("error: ") && stderr.contains(word), "{arguments:?}: {stderr}");
    }
}

#[test]
fn with_json_the_error_is_json_too() {
    let dir = dir();
    let (stdout, stderr) = run(dir.path(), &["--json", "eventlog", "show", "missing"], 2);
    let value: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert!(value["error"]["text"].as_str().unwrap().contains("missing"));
    assert!(stderr.starts_with("error: "));
}

#[test]
fn without_a_verifier_the_missing_part_is_named() {
    let dir = dir();
    let (_, stderr) = run(dir.path(), &["host", "ls"], 2);
    assert!(stderr.contains("--url"), "{stderr}");
    std::fs::create_dir(dir.path().join("portcullis")).unwrap();
    let config = dir.path().join("portcullis/config.toml");
    std::fs::write(&config, "url = \"https://127.0.0.1:1\"\nca = \"ca.pem\"\n").unwrap();
    let (_, stderr) = run(dir.path(), &["host", "ls"], 2);
    assert!(stderr.contains("portcullis/ca.pem"), "relative to the configuration: {stderr}");
    std::fs::write(&config, "uri = \"https://127.0.0.1:1\"\n").unwrap();
    let (_, stderr) = run(dir.path(), &["host", "ls"], 2);
    assert!(stderr.contains("config.toml") && stderr.contains("uri"), "{stderr}");
}

const NONCE: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
