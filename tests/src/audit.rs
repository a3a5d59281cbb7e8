//! An auditor verifies offline what the hosts prove: with a nonce of the auditor's own, the enrolled keys as the anchor,
//! the reference values and the policy, and no connection to the verifier while judging.

use std::fs;

use serde_json::Value;
use sha2::{Digest, Sha256};

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
    host.must_run(&format!("{make} --keys /run/audit"), COMMAND_LIMIT)?;
    for file in ["evidence.json", "ak.tpmt", "ek.tpmt"] {
        fs::write(dir.join(file), host.read_file(&format!("/run/audit/{file}"))?)?;
    }
    anchored(stage, name, &fs::read(dir.join("ak.tpmt"))?)?;
    let path = |file: &str| dir.join(file).display().to_string();
    let (reference, policy) = (stage.reference().display().to_string(), stage.policy().display().to_string());
    let (evidence, ak, ek) = (path("evidence.json"), path("ak.tpmt"), path("ek.tpmt"));
    let args = ["verify", "--evidence", &evidence, "--nonce", &nonce, "--ak", &ak, "--ek", &ek];
    let args: Vec<&str> =
        args.into_iter().chain(["--reference", &reference, "--policy", &policy, "--host", name]).collect();
    let answer = stage.service.portcullis(Person::Operator, &args)?;
    Ok((answer.code, answer.json))
}

/// The key came from the host itself; what makes it an anchor is that its name is the one that was enrolled.
fn anchored(stage: &Stage, name: &str, ak: &[u8]) -> Result<(), Trouble> {
    let enrolled = stage.service.must(Person::Operator, &["host", "show", name])?;
    // TPM 2.0 Library, Part 1, section 16: the name is the name algorithm (SHA-256: 0x000b) and the digest.
    let found = format!("000b{}", hex::encode(Sha256::digest(ak)));
    if enrolled["ak_name"] == found {
        return Ok(());
    }
    Err(Trouble::Step(format!("{name} gave an attestation key ({found}) that is not the enrolled one: {enrolled}")))
}
