//! The main job: three hosts boot at the same time, one is trusted, gets a tenant's VM and the tenant's key.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use portcullis_firmware_fixtures::lab::host::Host;
use serde_json::Value;

use crate::Trouble;
use crate::attacks;
use crate::audit;
use crate::narrator::{Narrator, Tone};
use crate::report::{HostReport, Report, VmReport};
use crate::service::{Person, Service};
use crate::stage::{HOSTS, Stage, TAMPERED, tenant};

/// How long the hosts may take until the verifier has judged all of them: a minute when nothing else runs.
const JUDGED_LIMIT: Duration = Duration::from_mins(8);
/// How many reasons are shown on the way.
const SHOWN: usize = 2;
/// How long a tenant's VM may take from its order to its init.
const VM_LIMIT: Duration = Duration::from_mins(5);
/// How long one command on a host may take.
pub(crate) const COMMAND_LIMIT: Duration = Duration::from_mins(1);
/// Where the agent keeps its state on a host.
pub(crate) const AGENT_STATE: &str = "/var/lib/portcullis-agent";

/// What the console shows on the way up, and what that means.
const MILESTONES: [(&str, &str); 3] = [
    ("] tsc:", "firmware, shim and GRUB are through; the kernel runs"),
    ("portcullis-initrd: IMA policy loaded", "measured initrd: IMA policy loaded, kexec disabled"),
    ("host: up", "host is up, the agent starts"),
];

/// The hosts while they run.
pub struct Fleet {
    hosts: BTreeMap<&'static str, Host>,
}

impl Fleet {
    /// One host.
    pub fn host(&mut self, name: &str) -> Result<&mut Host, Trouble> {
        self.hosts.get_mut(name).ok_or_else(|| Trouble::Step(format!("{name} does not run")))
    }
}

/// What the tenant got.
pub struct Placed {
    /// The order's id.
    pub order_id: String,
    /// The order's JWS.
    pub order: String,
    /// Where.
    pub host: String,
}

/// Runs the main job and the attacks, and says what came of each.
pub fn run(narrator: &Narrator) -> Result<Report, Trouble> {
    narrator.act("The stage");
    let mut stage = Stage::set(narrator)?;

    narrator.act("Three hosts boot");
    let mut fleet = boot(&mut stage, narrator)?;
    let mut reports = judged(&stage.service, narrator)?;

    narrator.act("A tenant asks for a VM");
    let placed = place(&stage, narrator, &mut reports)?;
    for name in HOSTS {
        fleet.host(name)?.wait_ready()?;
    }
    if let Some(report) = reports.iter_mut().find(|r| r.name == placed.host) {
        report.placed = true;
        let host = fleet.host(&placed.host)?;
        (report.key_opened, report.vm) = tenant_vm(host, &placed, narrator)?;
    }
    for report in reports.iter_mut().filter(|r| r.name != placed.host) {
        report.key_opened = attacks::ask_for_key(fleet.host(&report.name)?, &placed, narrator)?;
    }

    narrator.act("An auditor looks, offline");
    audit::offline(&stage, &mut fleet, narrator)?;

    narrator.act("Attacks");
    let attacks = attacks::all(&stage, &mut fleet, &placed, narrator)?;
    ended(&stage.service, &placed, narrator)?;
    Ok(Report { seconds: narrator.seconds(), hosts: reports, attacks })
}

/// Turns the hosts on at the same time and follows them until the verifier has judged each.
fn boot(stage: &mut Stage, narrator: &Narrator) -> Result<Fleet, Trouble> {
    let mut hosts = BTreeMap::new();
    for name in HOSTS {
        hosts.insert(name, stage.start(name)?);
        let what = match name {
            "tampered" => format!("power on; the same image but for its kernel command line: {TAMPERED}"),
            "insecure" => "power on; the same image, Secure Boot off".to_owned(),
            _ => "power on; as in the reference values".to_owned(),
        };
        narrator.line(name, Tone::Plain, &what);
    }
    narrator.waiting("three machines boot: firmware, shim, GRUB, Linux");
    let mut passed: BTreeMap<&str, usize> = HOSTS.iter().map(|name| (*name, 0)).collect();
    let until = Instant::now() + JUDGED_LIMIT;
    loop {
        for (name, host) in &mut hosts {
            let console = host.console();
            let at = passed.entry(name).or_default();
            while let Some((mark, words)) = MILESTONES.get(*at)
                && console.contains(mark)
            {
                narrator.line(name, Tone::Plain, words);
                *at += 1;
            }
            if let Some(status) = host.ended_by_itself()? {
                return Err(Trouble::Step(format!("{name} ended while it booted ({status}):\n{}", tail(&console))));
            }
        }
        let views = stage.service.must(Person::Operator, &["host", "ls"])?;
        let judged = |name: &&str| view(&views, name).is_some_and(|v| !v["attested_at"].is_null());
        if HOSTS.iter().all(judged) {
            return Ok(Fleet { hosts });
        }
        if Instant::now() > until {
            return Err(not_judged(&mut hosts, &views));
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Everything that may explain why a host was not judged.
fn not_judged(hosts: &mut BTreeMap<&'static str, Host>, views: &Value) -> Trouble {
    let mut words = "not every host was judged in time".to_owned();
    for (name, host) in hosts {
        if view(views, name).is_some_and(|v| !v["attested_at"].is_null()) {
            continue;
        }
        let log = host.wait_ready().and_then(|()| host.run("tail -n 30 /var/log/portcullis-agent.log", COMMAND_LIMIT));
        let log = log.map_or_else(|error| error.to_string(), |output| output.text());
        for part in ["\n--- ", name, ": console\n", &tail(&host.console()), "\n--- ", name, ": agent\n", &log] {
            words += part;
        }
    }
    Trouble::Step(words)
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

fn view<'a>(views: &'a Value, name: &str) -> Option<&'a Value> {
    views["hosts"].as_array()?.iter().find(|v| v["host"] == name)
}

/// What the verifier thinks of each host.
fn judged(service: &Service, narrator: &Narrator) -> Result<Vec<HostReport>, Trouble> {
    let views = service.must(Person::Operator, &["host", "ls"])?;
    let mut reports = Vec::new();
    for name in HOSTS {
        let view = view(&views, name).ok_or_else(|| Trouble::Step(format!("the verifier forgot {name}")))?;
        let trusted = view["trust"] == "trusted";
        let mut reasons = view["reasons"].as_array().cloned().unwrap_or_default();
        // That the host is not trusted is what the others explain.
        reasons.retain(|r| r["code"] != "host.untrusted");
        if trusted {
            narrator.line(name, Tone::Good, "trusted: quote, event log and IMA list are as they should be");
        }
        // The verifier names every reason; a person wants the first few now and can have all of them in the JSON.
        for reason in reasons.iter().take(SHOWN) {
            narrator.line(name, Tone::Refused, &in_words(reason));
        }
        if reasons.len() > SHOWN {
            narrator.line(name, Tone::Refused, &format!("and {} more reasons", reasons.len() - SHOWN));
        }
        reports.push(HostReport { name: name.into(), trusted, reasons, placed: false, key_opened: false, vm: None });
    }
    Ok(reports)
}

/// A reason as a person reads it.
pub(crate) fn in_words(reason: &Value) -> String {
    let field = |name: &str| reason[name].as_str().unwrap_or_default();
    let mut words = format!("denied, {}: {}", field("code"), field("text"));
    if let Some(pcr) = reason["pcr"].as_u64() {
        words = format!("{words} (PCR {pcr})");
    }
    for name in ["expected", "found"] {
        if !field(name).is_empty() {
            words = format!("{words}\n{:>20}{name:<9}{}", "", field(name));
        }
    }
    words
}

/// The tenant asks for its VM: first anywhere, then on each host that was denied.
fn place(stage: &Stage, narrator: &Narrator, reports: &mut [HostReport]) -> Result<Placed, Trouble> {
    let launch = |extra: &[&str]| {
        let t = &stage.tenant;
        let mut args = vec!["vm", "launch", "--name", "web", "--volume", tenant::VOLUME, "--vcpus", "1"];
        args.extend(["--mem-mib", "192", "--kernel", tenant::KERNEL, "--kernel-sha256", &t.kernel_sha256]);
        args.extend(["--initrd", tenant::INITRD, "--initrd-sha256", &t.initrd_sha256]);
        args.extend(["--cmdline", "console=ttyS0 quiet"]);
        args.extend(extra);
        stage.service.portcullis(Person::Tenant, &args)
    };
    for report in reports.iter_mut().filter(|r| r.name != "honest") {
        let answer = launch(&["--host", &report.name])?;
        report.placed = answer.code == 0;
        let tone = if report.placed { Tone::Bad } else { Tone::Refused };
        let words = if report.placed { "the tenant's VM was placed here!" } else { "no tenant work is placed here" };
        narrator.line(&report.name, tone, words);
    }
    let answer = launch(&[])?;
    if answer.code != 0 {
        return Err(Trouble::Step(format!("no host got the tenant's VM: {} {}", answer.json, answer.stderr)));
    }
    let text = |name: &str| answer.json[name].as_str().unwrap_or_default().to_owned();
    let placed = Placed { order_id: text("order_id"), order: text("order"), host: text("host") };
    narrator.line(&placed.host, Tone::Good, &format!("the tenant's VM is placed here, order {}", placed.order_id));
    Ok(placed)
}

/// The tenant hears that its VM ended by itself: the host closed the volume before it said so.
fn ended(service: &Service, placed: &Placed, narrator: &Narrator) -> Result<(), Trouble> {
    let until = Instant::now() + VM_LIMIT;
    loop {
        let views = service.must(Person::Tenant, &["vm", "ls"])?;
        let vm =
            views["vms"].as_array().and_then(|vms| vms.iter().find(|vm| vm["order_id"] == placed.order_id.as_str()));
        let vm = vm.ok_or_else(|| Trouble::Step("the verifier forgot the tenant's VM".to_owned()))?;
        let detail = vm["detail"].as_str().unwrap_or_default();
        if vm["state"] == "ended" && detail.contains("powered off") && !detail.contains("could not be closed") {
            narrator.line(
                &placed.host,
                Tone::Good,
                &format!("the tenant's VM has ended, its volume is free: {detail}"),
            );
            return Ok(());
        }
        if vm["state"] == "ended" || Instant::now() > until {
            return Err(Trouble::Step(format!("the tenant's VM did not end as it should: {vm}")));
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Follows the tenant's VM until its init ran: whether the key was opened, and what the guest said.
fn tenant_vm(host: &mut Host, placed: &Placed, narrator: &Narrator) -> Result<(bool, Option<VmReport>), Trouble> {
    let dir = format!("{AGENT_STATE}/vms/{}", placed.order_id);
    let until = Instant::now() + VM_LIMIT;
    let mut key_opened = false;
    narrator.waiting("the agent quotes again over the order; the verifier releases the key; the VM boots");
    loop {
        let status = host.run(&format!("cat {dir}/status.json"), COMMAND_LIMIT)?;
        let status: Value = serde_json::from_slice(&status.stdout).unwrap_or(Value::Null);
        if !key_opened && status["key_opened"] == true {
            key_opened = true;
            narrator.line(&placed.host, Tone::Good, "the TPM opened the tenant's key; the volume is open");
        }
        let console = host.run(&format!("cat {dir}/console.log"), COMMAND_LIMIT)?.text();
        // A line without its end is still being written.
        let lines = console.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let said: Vec<&str> = lines.filter(|line| line.starts_with("tenant:")).collect();
        if let (Some(boot_ms), true) = (status["boot_ms"].as_u64(), said.len() >= 3) {
            for line in &said {
                narrator.line(&placed.host, Tone::Good, line.trim_end());
            }
            let kernel = said.iter().find_map(|l| l.split("Linux ").nth(1)?.split_whitespace().next());
            let kernel = kernel.unwrap_or_default().to_owned();
            return Ok((key_opened, Some(VmReport { kernel, booted: true, boot_ms })));
        }
        if Instant::now() > until || status["state"] == "failed" {
            let log = host.run("tail -n 20 /var/log/portcullis-agent.log", COMMAND_LIMIT)?.text();
            let kernel =
                host.run("dmesg | tail -n 15; grep -c . /proc/crypto; lsmod | head -n 30", COMMAND_LIMIT)?.text();
            let vmm = host.run(&format!("tail -n 20 {dir}/vmm.log"), COMMAND_LIMIT)?.text();
            let console = tail(&console);
            narrator.line(
                &placed.host,
                Tone::Bad,
                &format!("no VM: {status}\n{log}\n--- kernel\n{kernel}\n--- vmm\n{vmm}\n--- console\n{console}"),
            );
            return Ok((key_opened, None));
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}
