//! Attacks, really carried out: what is sent is what an attacker would send, to the verifier and the TPMs of this run.

mod bench_tpm;

use std::time::{Duration, Instant};

use portcullis_firmware_fixtures::lab::host::Host;
use serde_json::Value;

use crate::Trouble;
use crate::narrator::{Narrator, Tone};
use crate::report::{ATTACKS, AttackReport};
use crate::scenario::{AGENT_STATE, COMMAND_LIMIT, Fleet, Placed};
use crate::service::Person;
use crate::stage::{Stage, TOOLS};

/// How long the relaying attacker may take.
const RELAY_LIMIT: Duration = Duration::from_mins(2);
/// Where the honest agent keeps the evidence that it sent last.
const KEPT_EVIDENCE: &str = "/var/lib/portcullis-agent/artifacts/attest.json";

/// What came of an attack.
struct Outcome {
    refused: bool,
    codes: Vec<String>,
    text: String,
}

impl Outcome {
    fn has(&self, code: &str) -> bool {
        self.codes.iter().any(|c| c == code)
    }

    fn from_json(json: &Value) -> Self {
        let codes = json["codes"].as_array().map(|a| a.iter().filter_map(Value::as_str).map(str::to_owned).collect());
        Self {
            // Anything but a clear yes is no refusal.
            refused: json["refused"] == true,
            codes: codes.unwrap_or_default(),
            text: json["text"].as_str().unwrap_or_default().to_owned(),
        }
    }

    /// The entry of the report: the code that names this attack, if it came back; else all that came back.
    fn report(self, name: &'static str, narrator: &Narrator) -> AttackReport {
        let attack = ATTACKS.iter().find(|attack| attack.name == name);
        let wanted = attack.map_or(&[][..], |attack| attack.codes);
        let code = wanted.iter().find(|code| self.has(code)).map_or_else(|| self.codes.join("+"), ToString::to_string);
        let what = attack.map_or("", |attack| attack.what);
        if self.refused {
            narrator.line("", Tone::Good, &format!("{name}: {what}: refused, {code}"));
        } else {
            narrator.line("", Tone::Bad, &format!("{name}: {what}: IT SUCCEEDED: {}", self.text));
        }
        AttackReport { name, refused: self.refused, code, text: self.text }
    }
}

/// Mounts the attacker's tools on a host.
fn plug_in(host: &mut Host) -> Result<(), Trouble> {
    let command = format!("mkdir -p {TOOLS} && (grep -q {TOOLS} /proc/mounts || mount -t ext4 -o ro /dev/vdd {TOOLS})");
    host.must_run(&command, COMMAND_LIMIT)?;
    Ok(())
}

fn attacker(host: &mut Host, arguments: &str) -> Result<Outcome, Trouble> {
    let said = host.must_run(&format!("{TOOLS}/portcullis-attacker {arguments}"), COMMAND_LIMIT)?;
    parse(&said)
}

fn parse(said: &str) -> Result<Outcome, Trouble> {
    let json = said.lines().last().and_then(|line| serde_json::from_str(line).ok());
    json.as_ref().map(Outcome::from_json).ok_or_else(|| Trouble::Step(format!("the attacker said {said:?}")))
}

/// A host that was denied asks for the tenant's key all the same, with the order that another host got. Says whether
/// it opened the key.
pub fn ask_for_key(host: &mut Host, placed: &Placed, narrator: &Narrator) -> Result<bool, Trouble> {
    plug_in(host)?;
    host.write_file("/run/order.jws", placed.order.as_bytes())?;
    let outcome = attacker(host, &format!("ask-key --id {} --order /run/order.jws", placed.order_id))?;
    let name = host.name().to_owned();
    if outcome.refused {
        // Its own state is one reason, and has been told; these are about the order and the host.
        let codes: std::collections::BTreeSet<&str> = outcome
            .codes
            .iter()
            .map(String::as_str)
            .filter(|c| c.starts_with("order.") || c.starts_with("host."))
            .collect();
        let codes = codes.into_iter().collect::<Vec<_>>().join(", ");
        narrator.line(&name, Tone::Refused, &format!("asks for the tenant's key all the same, gets none: {codes}"));
    } else {
        narrator.line(&name, Tone::Bad, &format!("asked for the tenant's key: {}", outcome.text));
    }
    Ok(!outcome.refused)
}

/// Carries out all attacks, in an order in which none spoils what a later one needs.
pub fn all(
    stage: &Stage,
    fleet: &mut Fleet,
    placed: &Placed,
    narrator: &Narrator,
) -> Result<Vec<AttackReport>, Trouble> {
    plug_in(fleet.host("tampered")?)?;
    let honest = fleet.host("honest")?;
    let evidence = honest.read_file(KEPT_EVIDENCE)?;
    let eventlog = honest.read_file("/sys/kernel/security/tpm0/binary_bios_measurements")?;
    let ima = honest.read_file("/sys/kernel/security/ima/binary_runtime_measurements")?;
    let wrapped_path = format!("{AGENT_STATE}/vms/{}/wrapped.json", placed.order_id);
    let wrapped = honest.read_file(&wrapped_path)?;

    let mut reports = vec![
        replay(fleet, &evidence)?.report("replay", narrator),
        relay(fleet, narrator)?.report("relay", narrator),
        forged_log(fleet, &eventlog)?.report("forged-log", narrator),
        foreign_blob(fleet, &wrapped)?.report("foreign-blob", narrator),
    ];
    let honest = stage.service.must(Person::Operator, &["host", "show", "honest"])?;
    if honest["trust"] != "trusted" {
        return Err(Trouble::Step(format!("the attacks in honest's name cost it the verifier's trust: {honest}")));
    }
    narrator.waiting("bench-tpm: a TPM on a desk is extended, event by event, from honest's logs");
    reports.push(bench_tpm::attack(stage, &eventlog, &ima)?.report("bench-tpm", narrator));
    reports.push(after_reset(fleet, &wrapped_path, narrator)?.report("after-reset", narrator));
    Ok(reports)
}

/// `tampered` answers a fresh challenge, as `honest`, with evidence that `honest` sent before: as it was, and with the
/// fresh challenge written on its envelope, so that only what the TPM signed can give it away.
fn replay(fleet: &mut Fleet, evidence: &[u8]) -> Result<Outcome, Trouble> {
    let tampered = fleet.host("tampered")?;
    tampered.write_file("/run/old-evidence.json", evidence)?;
    let plain = attacker(tampered, "replay --as honest --evidence /run/old-evidence.json")?;
    let relabelled = attacker(tampered, "replay --as honest --relabel --evidence /run/old-evidence.json")?;
    let text = format!("as it was: {}; relabelled: {}", plain.text, relabelled.text);
    Ok(Outcome { refused: plain.refused && relabelled.refused, codes: relabelled.codes, text })
}

/// `tampered` has `honest`'s TPM quote its challenge: once in its own name, once in `honest`'s name.
fn relay(fleet: &mut Fleet, narrator: &Narrator) -> Result<Outcome, Trouble> {
    let own = relay_as(fleet, "tampered", narrator)?;
    let other = relay_as(fleet, "honest", narrator)?;
    if own.refused && !other.has("quote.tls-key-mismatch") {
        // In honest's name the signature is good; what must give it away is the TLS key that the quote binds.
        return Ok(other);
    }
    let text = format!("in its own name: {}; in honest's name: {}", own.text, other.text);
    Ok(Outcome { refused: own.refused && other.refused, codes: own.codes, text })
}

fn relay_as(fleet: &mut Fleet, name: &str, narrator: &Narrator) -> Result<Outcome, Trouble> {
    narrator.waiting(&format!("relay: honest's TPM quotes the challenge that tampered got as {name}"));
    let tampered = fleet.host("tampered")?;
    let relay = format!("relay --as {name} --nonce-out /run/nonce.new --evidence-in /run/relayed.json");
    tampered.must_run("rm -f /run/nonce.new /run/relayed.json /run/relay.status", COMMAND_LIMIT)?;
    let background = format!(
        "setsid sh -c '{TOOLS}/portcullis-attacker {relay} >/run/relay.out 2>&1; echo $? >/run/relay.status' \
         </dev/null >/dev/null 2>&1 &"
    );
    tampered.must_run(&background, COMMAND_LIMIT)?;
    wait_for(tampered, "test -s /run/nonce.new -o -e /run/relay.status")?;
    let nonce = tampered.must_run("cat /run/nonce.new", COMMAND_LIMIT)?;

    let honest = fleet.host("honest")?;
    honest.must_run(&format!("portcullis-agent evidence --nonce {nonce} --out /run/evidence.json"), COMMAND_LIMIT)?;
    let evidence = honest.read_file("/run/evidence.json")?;

    let tampered = fleet.host("tampered")?;
    tampered.write_file("/run/relayed.new", &evidence)?;
    tampered.must_run("mv /run/relayed.new /run/relayed.json", COMMAND_LIMIT)?;
    wait_for(tampered, "test -s /run/relay.status")?;
    parse(&tampered.must_run("cat /run/relay.out", COMMAND_LIMIT)?)
}

fn wait_for(host: &mut Host, condition: &str) -> Result<(), Trouble> {
    let until = Instant::now() + RELAY_LIMIT;
    while host.run(condition, COMMAND_LIMIT)?.status != 0 {
        if Instant::now() > until {
            return Err(Trouble::Step(format!("{}: {condition:?} did not come true", host.name())));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// `tampered` quotes its own state, which nobody can forge, and sends `honest`'s event log with it.
fn forged_log(fleet: &mut Fleet, eventlog: &[u8]) -> Result<Outcome, Trouble> {
    let tampered = fleet.host("tampered")?;
    tampered.write_file("/run/honest-log", eventlog)?;
    attacker(tampered, "forged-log --eventlog /run/honest-log")
}

/// `tampered` tries to open the key that was wrapped for `honest`.
fn foreign_blob(fleet: &mut Fleet, wrapped: &[u8]) -> Result<Outcome, Trouble> {
    let tampered = fleet.host("tampered")?;
    tampered.write_file("/run/wrapped.json", wrapped)?;
    attacker(tampered, "open-blob --wrapped /run/wrapped.json")
}

/// `honest` opens its own blob, is rebooted, and tries again.
fn after_reset(fleet: &mut Fleet, wrapped: &str, narrator: &Narrator) -> Result<Outcome, Trouble> {
    let honest = fleet.host("honest")?;
    plug_in(honest)?;
    let open = format!("open-blob --wrapped {wrapped}");
    let before = attacker(honest, &open)?;
    if before.refused {
        // Without this the refusal after the reset would prove nothing.
        return Err(Trouble::Step(format!("honest's blob does not open in the boot it is for: {}", before.text)));
    }
    narrator.line("honest", Tone::Plain, "opens its own blob once more in this boot; now it is rebooted");
    narrator.waiting("honest reboots");
    honest.reboot()?;
    plug_in(honest)?;
    attacker(honest, &open)
}
