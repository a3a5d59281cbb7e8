//! An auditor verifies offline what the hosts prove: with a nonce of the auditor's own, the verifier's statement of their
//! enrolment as the anchor, the reference values and the policy, and no connection to the verifier while judging.

use std::fs;

use serde_json::Value;

use crate::Trouble;
use crate::narrator::{Narrator, Tone};
use crate::scenario::{COMMAND_LIMIT, Fleet};
use crate::service::Person;
use crate::stage::Stage;

/// Has two hosts make evidence and judges it with `portcullis verify`; anything but yes for `honest` and no for
/// `tampered` is trouble.
pub fn offline(stage: &Stage, fleet: &mut Fleet, narrator: &Narrator) -> Result<(), Trouble> {
    for (name, wanted) in [("honest", 0), ("tampered", 1)] {
        let (code, answer) = verify(stage, fleet, name)?;
        if code != wanted {
            return Err(Trouble::Step(format!(
                "{name}: offline verification ended with {code}, not {wanted}: {answer}"
            )));
        }
        let (tone, words) = if wanted == 0 {
            (Tone::Good, "verified offline, with the auditor's own nonce")
        } else {
            (Tone::Refused, "denied offline, too")
        };
        narrator.line(name, tone, words);
    }
    Ok(())
}

fn verify(stage: &Stage, fleet: &mut Fleet, name: &str) -> Result<(i32, Value), Trouble> {
    let dir = stage.dir().join("audit").join(name);
    fs::create_dir_all(&dir)?;
    let mut nonce = [0; 32];
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| Trouble::Step("the random generator failed".into()))?;
    let nonce = hex::encode(nonce);
    let host = fleet.host(name)?;
    let make =
        format!("mkdir -p /run/audit && portcullis-agent evidence --nonce {nonce} --out /run/audit/evidence.json");
    host.must_run(&make, COMMAND_LIMIT)?;
    fs::write(dir.join("evidence.json"), host.read_file("/run/audit/evidence.json")?)?;
    let path = |file: &str| dir.join(file).display().to_string();
    let (reference, policy) = (stage.reference().display().to_string(), stage.policy().display().to_string());
    let (evidence, enrolment, keys) = (path("evidence.json"), path("host.enrolment"), path("verifier-keys.json"));
    let said = stage.service.must(Person::Operator, &["host", "enrolment", name, "--keys-out", &keys])?;
    fs::write(&enrolment, said["enrolment"].as_str().unwrap_or_default())?;
    let args = ["verify", "--evidence", &evidence, "--nonce", &nonce, "--enrolment", &enrolment];
    let rules = ["--verifier-keys", &keys, "--reference", &reference, "--policy", &policy];
    let args: Vec<&str> = args.into_iter().chain(rules).collect();
    let answer = stage.service.portcullis(Person::Operator, &args)?;
    Ok((answer.code, answer.json))
}
