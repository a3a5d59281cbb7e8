//! A genuine TPM on the attacker's desk, extended from an honest host's public logs: its quotes are perfect.

use std::fs;
use std::process::{Command, Stdio};

use portcullis_attest::eventlog::EventLog;
use portcullis_attest::ima::ImaList;
use portcullis_attest::key::Bank;
use portcullis_firmware_fixtures::tpm::Swtpm;
use serde_json::Value;

use super::Outcome;
use crate::Trouble;
use crate::stage::Stage;
use crate::volume::run;

/// Extends a TPM that no operator admitted from `honest`'s logs, enrols it and has it attest with the honest agent's
/// own program.
pub(super) fn attack(stage: &Stage, eventlog: &[u8], ima: &[u8]) -> Result<Outcome, Trouble> {
    let tpm = Swtpm::new()?;
    extend(&tpm, eventlog, ima)?;
    let dir = stage.dir().join("bench");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("eventlog"), eventlog)?;
    fs::write(dir.join("ima"), ima)?;
    let path = |name: &str| dir.join(name).display().to_string();
    let config = format!(
        "host = \"bench\"\nverifier_url = \"{}\"\ntrust_dir = \"{}\"\nstate_dir = \"{}\"\nruntime_dir = \"{}\"\n\
         tcti = \"{}\"\neventlog = \"{}\"\nima = \"{}\"\n",
        stage.service.url(),
        stage.service.trust_dir().display(),
        path("state"),
        path("run"),
        tpm.tcti(),
        path("eventlog"),
        path("ima")
    );
    fs::write(dir.join("agent.toml"), config)?;
    let agent = |command: &str| {
        let mut agent = Command::new(stage.programs.path("portcullis-agent"));
        agent.arg("--config").arg(dir.join("agent.toml")).args(["--json", command]).stdin(Stdio::null()).output()
    };
    let enrolled = agent("enrol")?;
    if !enrolled.status.success() {
        let words = String::from_utf8_lossy(&enrolled.stderr).into_owned();
        return Err(Trouble::Step(format!("the TPM on the desk could not even enrol: {words}")));
    }
    let attested = agent("attest")?;
    let json: Value = serde_json::from_slice(&attested.stdout).unwrap_or(Value::Null);
    let reasons = json["reasons"].as_array().cloned().unwrap_or_default();
    let texts: Vec<&str> = reasons.iter().filter_map(|r| r["text"].as_str()).collect();
    let codes: Vec<String> = reasons.iter().filter_map(|r| r["code"].as_str()).map(str::to_owned).collect();
    // Any other reason beside would mean that the extended PCRs were not perfect, and admission was not put to the test.
    let codes = if codes.len() == 1 { codes } else { vec![codes.join("+")] };
    Ok(Outcome { refused: attested.status.code() == Some(1), codes, text: texts.join("; ") })
}

fn extend(tpm: &Swtpm, eventlog: &[u8], ima: &[u8]) -> Result<(), Trouble> {
    let words = |what: &str, e: &dyn std::fmt::Display| Trouble::Step(format!("honest's {what}: {e}"));
    let mut specs = Vec::new();
    let log = EventLog::parse(eventlog).map_err(|e| words("event log", &e))?;
    for event in log.events().iter().filter(|event| event.extends()) {
        let digests: Vec<String> =
            event.digests.iter().map(|(bank, digest)| format!("{}={}", bank.name(), hex::encode(digest))).collect();
        specs.push(format!("{}:{}", event.pcr, digests.join(",")));
    }
    let list = ImaList::parse_binary(ima).map_err(|e| words("IMA list", &e))?;
    for entry in list.entries() {
        let digest = |bank: Bank| format!("{}={}", bank.name(), hex::encode(bank.hash(&entry.template_data())));
        specs.push(format!("10:{}", log.banks().into_iter().map(digest).collect::<Vec<_>>().join(",")));
    }
    // Several PCRs a command: a process for each event would take longer than all the rest.
    for some in specs.chunks(8) {
        run(Command::new("tpm2_pcrextend").env("TPM2TOOLS_TCTI", tpm.tcti()).args(some), &[])?;
    }
    Ok(())
}
