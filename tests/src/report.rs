//! What a run of the main job showed, and whether that is what it should show.

use std::fmt::Write as _;

use serde::Serialize;

/// The whole run; its JSON form is what `scripts/demo --json` writes.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Wall time of the run in seconds, without building the programs.
    pub seconds: f64,
    /// One entry a host, in the order of their introduction.
    pub hosts: Vec<HostReport>,
    /// One entry an attack that was carried out.
    pub attacks: Vec<AttackReport>,
}

/// What became of one host.
#[derive(Debug, Clone, Serialize)]
pub struct HostReport {
    /// The host's name.
    pub name: String,
    /// Whether the verifier trusted it.
    pub trusted: bool,
    /// Why not, as the verifier said it.
    pub reasons: Vec<serde_json::Value>,
    /// Whether a tenant's VM was placed on it.
    pub placed: bool,
    /// Whether the tenant's volume key was opened by its TPM.
    pub key_opened: bool,
    /// The tenant's VM, where one was started.
    pub vm: Option<VmReport>,
}

/// What became of the tenant's VM.
#[derive(Debug, Clone, Serialize)]
pub struct VmReport {
    /// The guest's kernel release, as the guest printed it.
    pub kernel: String,
    /// Whether the guest's init ran.
    pub booted: bool,
    /// Milliseconds from the VMM's start to the guest's init.
    pub boot_ms: u64,
}

/// What became of one attack.
#[derive(Debug, Clone, Serialize)]
pub struct AttackReport {
    /// The attack's name.
    pub name: &'static str,
    /// Whether it got nothing.
    pub refused: bool,
    /// The stable code of the refusal that names this attack; of the first refusal where none does.
    pub code: String,
    /// What was done and what came back, in a sentence.
    pub text: String,
}

/// An attack that a whole run carries out.
pub struct Attack {
    /// Its name in the report.
    pub name: &'static str,
    /// What is done, for a person who watches.
    pub what: &'static str,
    /// The codes of which one must come back. A refusal for another reason would show that the attack was broken, not
    /// that it was recognised.
    pub codes: &'static [&'static str],
}

/// The attacks, in the order of the report.
pub const ATTACKS: [Attack; 6] = [
    Attack {
        name: "replay",
        what: "honest's evidence of before is sent again for a fresh challenge",
        codes: &["quote.nonce-mismatch", "quote.binding-mismatch"],
    },
    Attack {
        name: "relay",
        what: "tampered has honest's TPM quote the challenge that tampered got",
        codes: &["quote.signature-invalid"],
    },
    Attack {
        name: "forged-log",
        what: "tampered quotes itself, but sends honest's event log",
        codes: &["eventlog.pcr-mismatch"],
    },
    Attack {
        name: "foreign-blob",
        what: "tampered's TPM is given the key that was wrapped for honest",
        codes: &["tpm.wrong-parent"],
    },
    Attack {
        name: "bench-tpm",
        what: "a genuine TPM on a desk, extended from honest's logs, asks for trust",
        codes: &["endorsement.not-admitted"],
    },
    Attack {
        name: "after-reset",
        what: "honest itself opens its wrapped key again after a reboot",
        codes: &["tpm.wrong-parent"],
    },
];

impl Report {
    /// Everything that did not come out as it should; empty after a good run.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (name, check) in [("honest", honest as HostCheck), ("tampered", tampered), ("insecure", insecure)] {
            match self.hosts.iter().find(|h| h.name == name) {
                Some(host) => faults.extend(check(host).into_iter().map(|f| format!("{name}: {f}"))),
                None => faults.push(format!("{name}: the host is missing from the report")),
            }
        }
        for Attack { name, codes, .. } in ATTACKS {
            match self.attacks.iter().find(|a| a.name == name) {
                Some(a) if !a.refused => faults.push(format!("{name}: the attack succeeded: {}", a.text)),
                Some(a) if !codes.contains(&a.code.as_str()) => {
                    faults.push(format!(
                        "{name}: refused with {}, not with {}: {}",
                        a.code,
                        codes.join(" or "),
                        a.text
                    ));
                }
                Some(_) => {}
                None => faults.push(format!("{name}: the attack was not carried out")),
            }
        }
        faults
    }

    /// The closing table.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let yes = |b: bool| if b { "yes" } else { "no" };
        let _ = writeln!(out, "{:<10} {:<8} {:<7} {:<11} why", "host", "trusted", "placed", "key opened");
        for h in &self.hosts {
            let why = match &h.vm {
                Some(vm) => format!("tenant VM: Linux {}, init after {} ms", vm.kernel, vm.boot_ms),
                None => h.reasons.first().map(text_of).unwrap_or_default(),
            };
            let row = (yes(h.trusted), yes(h.placed), yes(h.key_opened));
            let _ = writeln!(out, "{:<10} {:<8} {:<7} {:<11} {why}", h.name, row.0, row.1, row.2);
        }
        let _ = writeln!(out, "\n{:<13} {:<8} code", "attack", "refused");
        for a in &self.attacks {
            let _ = writeln!(out, "{:<13} {:<8} {}", a.name, yes(a.refused), a.code);
        }
        out
    }
}

fn text_of(reason: &serde_json::Value) -> String {
    reason.get("text").and_then(|t| t.as_str()).unwrap_or("?").to_owned()
}

type HostCheck = fn(&HostReport) -> Vec<String>;

fn honest(h: &HostReport) -> Vec<String> {
    let mut faults = Vec::new();
    if !h.trusted || !h.reasons.is_empty() {
        let why = h.reasons.iter().map(text_of).collect::<Vec<_>>().join("; ");
        faults.push(format!("was not trusted: {why}"));
    }
    if !h.placed {
        faults.push("got no work".into());
    }
    if !h.key_opened {
        faults.push("could not open the tenant's key".into());
    }
    match &h.vm {
        Some(vm) if vm.booted && vm.kernel.starts_with("6.1") && vm.boot_ms > 0 => {}
        Some(vm) => faults.push(format!("its tenant VM did not boot as it should: {vm:?}")),
        None => faults.push("started no tenant VM".into()),
    }
    faults
}

fn denied(h: &HostReport, event: &str, pcr: u64) -> Vec<String> {
    let mut faults = Vec::new();
    if h.trusted {
        faults.push("was trusted".into());
    }
    if h.placed || h.key_opened || h.vm.is_some() {
        faults.push(format!("got work or a key: placed {}, key opened {}, vm {:?}", h.placed, h.key_opened, h.vm));
    }
    let filled = |r: &serde_json::Value, field: &str| r[field].as_str().is_some_and(|s| !s.is_empty());
    let named = h.reasons.iter().any(|r| {
        r["event"] == event
            && r["pcr"] == pcr
            && ["code", "expected", "found", "text"].iter().all(|f| filled(r, f))
            && r["expected"] != r["found"]
    });
    if !named {
        faults.push(format!("no reason names \"{event}\" in PCR {pcr} with expected and found: {:?}", h.reasons));
    }
    faults
}

fn tampered(h: &HostReport) -> Vec<String> {
    denied(h, "kernel command line", 8)
}

fn insecure(h: &HostReport) -> Vec<String> {
    denied(h, "Secure Boot off", 7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn good() -> Report {
        let reason = |event: &str, pcr: u64| json!({"code": "c", "pcr": pcr, "event": event, "expected": "a", "found": "b", "text": "t"});
        let no = |name: &str, r: serde_json::Value| HostReport {
            name: name.into(),
            trusted: false,
            reasons: vec![r],
            placed: false,
            key_opened: false,
            vm: None,
        };
        Report {
            seconds: 1.0,
            hosts: vec![
                HostReport {
                    name: "honest".into(),
                    trusted: true,
                    reasons: vec![],
                    placed: true,
                    key_opened: true,
                    vm: Some(VmReport { kernel: "6.1.0".into(), booted: true, boot_ms: 2000 }),
                },
                no("tampered", reason("kernel command line", 8)),
                no("insecure", reason("Secure Boot off", 7)),
            ],
            attacks: ATTACKS
                .iter()
                .map(|a| AttackReport { name: a.name, refused: true, code: a.codes[0].into(), text: String::new() })
                .collect(),
        }
    }

    #[test]
    fn a_good_run_has_no_faults() {
        assert_eq!(good().faults(), Vec::<String>::new());
    }

    #[test]
    fn each_thing_that_can_go_wrong_is_a_fault() {
        type Spoil = fn(&mut Report);
        let spoil: Vec<(&str, Spoil)> = vec![
            ("honest denied", |r| r.hosts[0].trusted = false),
            ("honest trusted with reasons", |r| r.hosts[0].reasons.push(json!({}))),
            ("honest not placed", |r| r.hosts[0].placed = false),
            ("key not opened", |r| r.hosts[0].key_opened = false),
            ("no vm", |r| r.hosts[0].vm = None),
            ("vm without boot time", |r| r.hosts[0].vm.as_mut().unwrap().boot_ms = 0),
            ("tampered trusted", |r| r.hosts[1].trusted = true),
            ("tampered has a key", |r| r.hosts[1].key_opened = true),
            ("tampered has no reason", |r| r.hosts[1].reasons.clear()),
            ("the reason says nothing", |r| r.hosts[1].reasons[0]["found"] = json!("a")),
            ("insecure placed", |r| r.hosts[2].placed = true),
            ("a host is missing", |r| drop(r.hosts.pop())),
            ("an attack is missing", |r| drop(r.attacks.pop())),
            ("an attack succeeded", |r| r.attacks[0].refused = false),
            ("refused for another reason", |r| r.attacks[1].code = "evidence.unreadable".into()),
        ];
        for (what, spoil) in spoil {
            let mut report = good();
            spoil(&mut report);
            assert!(!report.faults().is_empty(), "{what} went unnoticed");
        }
    }
}
