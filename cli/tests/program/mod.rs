//! The program itself, run as a person or a script runs it.
#![allow(dead_code, reason = "every test file uses some of it")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Runs the program in `dir` and gives its exit code and both outputs. No configuration but what the test gives.
pub fn output(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(arguments)
        .current_dir(dir)
        .env_remove("PORTCULLIS_CONFIG")
        .env("XDG_CONFIG_HOME", dir)
        .output()
        .unwrap();
    let code = output.status.code().unwrap_or_else(|| panic!("{arguments:?}: {}", output.status));
    (code, String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// Runs the program, checks the exit code and gives both outputs.
pub fn run(dir: &Path, arguments: &[&str], code: i32) -> (String, String) {
    let (found, stdout, stderr) = output(dir, arguments);
    assert_eq!(found, code, "{arguments:?}\nstdout: {stdout}\nstderr: {stderr}");
    (stdout, stderr)
}

/// Like [`run`], for commands that print JSON.
pub fn json(dir: &Path, arguments: &[&str], code: i32) -> Value {
    let (stdout, _) = run(dir, &[&["--json"], arguments].concat(), code);
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {stdout}"))
}

/// The codes of the reasons in an answer, in its order.
pub fn codes(answer: &Value) -> Vec<&str> {
    let reasons = answer["reasons"].as_array().into_iter().flatten();
    reasons.map(|reason| reason["code"].as_str().unwrap()).collect()
}
