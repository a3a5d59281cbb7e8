//! `portcullis-agent run` against the real verifier and a software TPM: it proves, launches, ends, cleans up.
//!
//! Only device-mapper and the VMM have stand-ins (see `support/host.rs`); the whole way with both of them real is
//! tested in the lab.

mod support;

use std::fs::File;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use portcullis_attest::evidence::Evidence;
use portcullis_attest::key::Bank;
use portcullis_attest::release::WrappedKey;
use portcullis_verifier::api::{LaunchRequest, LaunchResponse, OrderState, Trust, VmView};
use portcullis_verifier::order::VolumeFile;
use serde_json::Value;
use support::host::{Host, KERNEL, KEY, RunningAgent};
use support::verifier::Verifier;
use support::{wait_for, wait_or_tell};

/// One agent on a machine at a time: each cleans up what it takes for another's leftovers.
fn alone() -> Flock<File> {
    assert!(nix::unistd::geteuid().is_root(), "these tests mount volumes and so need root");
    // Mappings are the host's, whatever folder each run of the tests has for its own files.
    let path = "/tmp/portcullis-agent-tests.lock";
    Flock::lock(File::create(path).unwrap(), FlockArg::LockExclusive).unwrap()
}

struct Scene {
    verifier: Verifier,
    host: Host,
    _alone: Flock<File>,
}

impl Scene {
    /// An admitted host with a volume whose key the verifier knows.
    fn new() -> Self {
        let alone = alone();
        let verifier = Verifier::started();
        let host = Host::new("honest", &verifier);
        let fingerprint = host.expect(&["ek"], 0).0.trim().to_owned();
        verifier.person("olga").admit(&fingerprint, "honest", "a test").unwrap();
        host.make_volume("data");
        verifier.person("alice").put_volume("data", KEY).unwrap();
        Self { verifier, host, _alone: alone }
    }

    /// Runs SQL on the verifier's database, behind its back.
    fn sql(&self, statements: &str) {
        let database = rusqlite::Connection::open(self.verifier.database()).unwrap();
        database.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
        database.execute_batch(statements).unwrap();
    }

    fn trust(&self) -> Option<Trust> {
        Some(self.verifier.person("olga").host("honest").ok()?.trust)
    }

    /// Starts the agent and waits until the verifier trusts the host.
    fn run(&self) -> RunningAgent {
        let agent = self.host.run();
        wait_for("trust", || (self.trust() == Some(Trust::Trusted)).then_some(()));
        agent
    }

    fn launch(&self, volume: &str, kernel: &[u8]) -> LaunchResponse {
        let request = LaunchRequest {
            name: "web".to_owned(),
            vcpus: 2,
            mem_mib: 64,
            cmdline: "console=ttyS0".to_owned(),
            kernel: VolumeFile { path: "boot/vmlinuz".to_owned(), sha256: hex::encode(Bank::Sha256.hash(kernel)) },
            initrd: None,
            volume: volume.to_owned(),
            host: None,
        };
        // A host that has just attested may need a moment to be placeable again after an earlier VM.
        wait_for("a placement", || self.verifier.person("alice").launch(&request).ok())
    }

    fn vm(&self, order: &str) -> VmView {
        let vms = self.verifier.person("alice").vms().unwrap().vms;
        vms.into_iter().find(|vm| vm.order_id == order).unwrap()
    }

    fn wait_until(&self, order: &str, state: OrderState) -> VmView {
        wait_or_tell(
            &format!("{state:?}"),
            || Some(self.vm(order)).filter(|vm| vm.state == state),
            || {
                let log = std::fs::read_to_string(self.host.path("agent.log")).unwrap_or_default();
                format!("{:?}\n{:?}\n{log}", self.vm(order), self.host.status(order))
            },
        )
    }

    /// Launches a VM and waits until the verifier knows that it runs.
    fn running(&self) -> String {
        let order = self.launch("data", KERNEL).order_id;
        self.wait_until(&order, OrderState::Running);
        order
    }

    /// The process that runs the VM.
    fn process(&self, order: &str) -> String {
        let console = self.host.console(order);
        let line = console.lines().find_map(|line| line.strip_prefix("process: ")).unwrap();
        format!("/proc/{line}")
    }

    fn failed(&self, order: &str) -> Value {
        self.wait_until(order, OrderState::Ended);
        let status = self.host.status(order).unwrap();
        assert_eq!(status["state"], "failed", "{status}");
        self.host.nothing_is_left(order);
        status
    }
}

#[test]
fn a_vm_runs_and_ends_with_the_agent() {
    let scene = Scene::new();
    scene.host.configure("keep_artifacts", "true");
    let agent = scene.run();
    let order = scene.running();
    let status = scene.host.status(&order).unwrap();
    assert_eq!(status["state"], "running", "{status}");
    assert_eq!((status["key_opened"].as_bool(), status["boot_ms"].as_u64()), (Some(true), Some(1234)), "{status}");
    assert_eq!(status["kernel"], "6.1.0-test", "{status}");
    let vm = scene.vm(&order);
    assert!(vm.detail.contains("1234 ms") && vm.detail.contains("6.1.0-test"), "{vm:?}");
    let console = scene.host.console(&order);
    assert!(console.contains(std::str::from_utf8(KERNEL).unwrap()), "the VMM reads the volume's kernel: {console}");
    for part in [&format!("--id {order}"), "\"vcpu_count\": 2", "\"mem_size_mib\": 64", "console=ttyS0"] {
        assert!(console.contains(part), "{part} in {console}");
    }
    // Mounted for the agent and its VMs only.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&order), "{mounts}");
    scene.host.no_file_holds_the_key();
    let wrapped = scene.host.path("state/vms").join(&order).join("wrapped.json");
    serde_json::from_slice::<WrappedKey>(&std::fs::read(wrapped).unwrap()).unwrap();
    Evidence::from_json(&std::fs::read(scene.host.path("state/artifacts/attest.json")).unwrap()).unwrap();
    let process = scene.process(&order);
    assert!(Path::new(&process).exists());
    assert!(agent.terminate().success());
    assert!(!Path::new(&process).exists());
    scene.host.nothing_is_left(&order);
    let vm = scene.vm(&order);
    assert_eq!(vm.state, OrderState::Ended);
    assert!(vm.detail.contains("told to stop"), "{vm:?}");
    let status = scene.host.status(&order).unwrap();
    assert_eq!((status["state"].as_str(), status["receipt_owed"].as_bool()), (Some("ended"), Some(false)));
}

#[test]
fn a_vm_that_powers_off_frees_its_volume_for_the_next() {
    let scene = Scene::new();
    let _agent = scene.run();
    let order = scene.running();
    std::fs::write(scene.host.path("power-off"), "").unwrap();
    let vm = scene.wait_until(&order, OrderState::Ended);
    assert!(vm.detail.contains("powered off"), "{vm:?}");
    scene.host.nothing_is_left(&order);
    std::fs::remove_file(scene.host.path("power-off")).unwrap();
    assert_ne!(scene.running(), order);
}

#[test]
fn after_kill_9_nothing_is_stuck() {
    let scene = Scene::new();
    let agent = scene.run();
    let order = scene.running();
    let process = scene.process(&order);
    agent.kill9();
    wait_for("the VM's end", || (!Path::new(&process).exists()).then_some(()));
    assert_eq!(scene.vm(&order).state, OrderState::Running, "nobody could tell the verifier");
    let agent = scene.run();
    let vm = scene.wait_until(&order, OrderState::Ended);
    assert!(vm.detail.contains("the agent ended"), "{vm:?}");
    scene.host.nothing_is_left(&order);
    scene.running();
    assert!(agent.terminate().success());
}

/// A VM whose volume could not be closed; the verifier knows no end of it.
fn stuck(scene: &Scene, order: &str) {
    let status =
        wait_for("a VM that is stuck", || scene.host.status(order).filter(|status| status["state"] == "stuck"));
    assert_eq!(status["receipt_owed"], false, "{status}");
    assert!(status["reason"].as_str().unwrap().contains("could not be closed"), "{status}");
    // Through a few rounds of the agent, which attests every second.
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert_eq!(scene.vm(order).state, OrderState::Running, "the end of a VM was told whose volume is open");
}

#[test]
fn the_end_of_a_vm_is_told_only_when_its_volume_is_closed() {
    let scene = Scene::new();
    let mut agent = scene.run();
    std::fs::write(scene.host.path("refuse-close"), "").unwrap();
    let order = scene.running();
    std::fs::write(scene.host.path("power-off"), "").unwrap();
    stuck(&scene, &order);
    agent.says("portcullis host fence");
    // The next agent does not take it for closed either.
    agent.kill9();
    let agent = scene.run();
    stuck(&scene, &order);
    std::fs::remove_file(scene.host.path("refuse-close")).unwrap();
    let vm = scene.wait_until(&order, OrderState::Ended);
    assert!(vm.detail.contains("powered off") && vm.detail.contains("could not be closed"), "{vm:?}");
    scene.host.nothing_is_left(&order);
    std::fs::remove_file(scene.host.path("power-off")).unwrap();
    assert_ne!(scene.running(), order);
    assert!(agent.terminate().success());
}

#[test]
fn a_volume_that_something_still_uses_is_not_closed() {
    let scene = Scene::new();
    let agent = scene.run();
    std::fs::write(scene.host.path("hold"), "").unwrap();
    let order = scene.running();
    std::fs::write(scene.host.path("power-off"), "").unwrap();
    stuck(&scene, &order);
    let holder = std::fs::read_to_string(scene.host.path("holder")).unwrap();
    assert!(std::process::Command::new("kill").arg(holder.trim()).status().unwrap().success());
    scene.wait_until(&order, OrderState::Ended);
    scene.host.nothing_is_left(&order);
    assert!(agent.terminate().success());
}

#[test]
fn a_launch_that_fails_with_its_volume_stuck_is_not_told_as_ended() {
    let scene = Scene::new();
    std::fs::write(scene.host.path("refuse-close"), "").unwrap();
    let _agent = scene.run();
    let order = scene.launch("data", b"what the tenant believes is there").order_id;
    let status =
        wait_for("a VM that is stuck", || scene.host.status(&order).filter(|status| status["state"] == "stuck"));
    assert!(status["reason"].as_str().unwrap().contains("boot/vmlinuz"), "{status}");
    assert_eq!(scene.vm(&order).state, OrderState::Released);
    std::fs::remove_file(scene.host.path("refuse-close")).unwrap();
    scene.wait_until(&order, OrderState::Ended);
    scene.host.nothing_is_left(&order);
}

#[test]
fn a_volume_made_with_another_key_is_told_and_undone() {
    let scene = Scene::new();
    scene.host.make_volume("other");
    scene.verifier.person("alice").put_volume("other", &[9; 32]).unwrap();
    let _agent = scene.run();
    let order = scene.launch("other", KERNEL).order_id;
    let status = scene.failed(&order);
    assert_eq!(status["key_opened"], false);
    assert!(status["reason"].as_str().unwrap().contains("opens no key slot"), "{status}");
    assert!(scene.vm(&order).detail.contains("opens no key slot"));
}

#[test]
fn another_kernel_than_ordered_is_not_started() {
    let scene = Scene::new();
    let _agent = scene.run();
    let order = scene.launch("data", b"what the tenant believes is there").order_id;
    let status = scene.failed(&order);
    assert_eq!(status["key_opened"], true);
    assert!(status["reason"].as_str().unwrap().contains("boot/vmlinuz"), "{status}");
    assert!(scene.host.console(&order).is_empty());
}

#[test]
fn a_missing_vmm_is_told_and_undone() {
    let scene = Scene::new();
    scene.host.configure("vmm", "\"/nonexistent/portcullis-vmm\"");
    let _agent = scene.run();
    let order = scene.launch("data", KERNEL).order_id;
    let status = scene.failed(&order);
    assert!(status["reason"].as_str().unwrap().contains("/nonexistent/portcullis-vmm"), "{status}");
}

#[test]
fn a_denied_host_loses_its_vms() {
    let scene = Scene::new();
    let _agent = scene.run();
    let order = scene.running();
    // A list that no longer leads to what the TPM signs.
    std::fs::write(scene.host.path("ima"), &scene.host.boot.ima()[..150]).unwrap();
    wait_for("the VM's end", || scene.host.status(&order).filter(|status| status["state"] == "ended"));
    let status = scene.host.status(&order).unwrap();
    assert!(status["reason"].as_str().unwrap().contains("fenced"), "{status}");
    scene.host.nothing_is_left(&order);
    assert_eq!(scene.trust(), Some(Trust::Untrusted));
}

#[test]
fn a_verifier_that_comes_late_or_goes_away_is_waited_for() {
    let mut scene = Scene::new();
    scene.verifier.stop();
    let mut agent = scene.host.run();
    agent.says("unavailable");
    scene.verifier.start();
    wait_for("trust", || (scene.trust() == Some(Trust::Trusted)).then_some(()));
    let order = scene.running();
    scene.verifier.stop();
    // The VM goes on, and its end is told when the verifier is back.
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(scene.host.status(&order).unwrap()["state"], "running");
    std::fs::write(scene.host.path("power-off"), "").unwrap();
    wait_for("the VM's end", || scene.host.status(&order).filter(|status| status["state"] == "ended"));
    scene.verifier.start();
    scene.wait_until(&order, OrderState::Ended);
    assert!(agent.terminate().success());
}

#[test]
fn one_agent_a_host() {
    let scene = Scene::new();
    let other_tpm = portcullis_firmware_fixtures::tpm::Swtpm::new().unwrap();
    let agent = scene.run();
    let (_, stderr) = scene.host.expect(&["attest"], 3);
    assert!(stderr.contains("held by another portcullis-agent"), "{stderr}");
    // Nor with a state of its own: it would take the other's volumes for leftovers.
    scene.host.configure("state_dir", &format!("{:?}", scene.host.path("other-state")));
    scene.host.configure("tcti", &format!("{:?}", other_tpm.tcti()));
    let (_, stderr) = scene.host.expect(&["run"], 3);
    assert!(stderr.contains("run/lock") && stderr.contains("held by another portcullis-agent"), "{stderr}");
    assert!(agent.terminate().success());
}

#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let scene = Scene::new();
    let agent = scene.host.run_logging_to("/dev/full".into());
    wait_for("trust", || (scene.trust() == Some(Trust::Trusted)).then_some(()));
    scene.running();
    assert!(agent.terminate().success());
}

#[test]
fn an_order_and_receipts_outlast_a_verifier_that_fails() {
    let scene = Scene::new();
    // The volume's key cannot be read: every release is an internal error.
    scene.sql("CREATE TABLE kept AS SELECT * FROM volumes; UPDATE volumes SET sealed_key = x'00'");
    // Nor can a receipt be written down.
    let refuse = "CREATE TRIGGER broken BEFORE INSERT ON receipts BEGIN SELECT RAISE(ABORT, 'broken'); END";
    scene.sql(refuse);
    let mut agent = scene.run();
    let order = scene.launch("data", KERNEL).order_id;
    agent.says("the launch failed");
    assert_eq!(scene.vm(&order).state, OrderState::Placed);
    scene.sql("UPDATE volumes SET sealed_key = (SELECT sealed_key FROM kept)");
    scene.wait_until(&order, OrderState::Released);
    agent.says("the receipt was not taken");
    scene.sql("DROP TRIGGER broken");
    scene.wait_until(&order, OrderState::Running);
    scene.sql(refuse);
    std::fs::write(scene.host.path("power-off"), "").unwrap();
    agent.says("a receipt is still owed");
    scene.sql("DROP TRIGGER broken");
    scene.wait_until(&order, OrderState::Ended);
    scene.host.nothing_is_left(&order);
    assert!(agent.terminate().success());
}

#[test]
fn what_was_judged_is_not_sent_again_but_by_a_new_agent() {
    let scene = Scene::new();
    scene.host.configure("keep_artifacts", "true");
    let sent = || {
        let json = std::fs::read(scene.host.path("state/artifacts/attest.json")).ok()?;
        Some(Evidence::from_json(&json).unwrap())
    };
    let agent = scene.run();
    let whole = scene.host.boot.ima();
    // boot_aggregate and the agent: nothing is new.
    wait_for("evidence that goes on", || sent().filter(|sent| sent.ima_from == 2 && sent.ima.is_empty()));
    let order = scene.running();
    agent.kill9();
    std::fs::remove_file(scene.host.path("state/artifacts/attest.json")).unwrap();
    // Only its first evidence is looked at.
    scene.host.configure("interval_s", "3600");
    let agent = scene.host.run();
    let first = wait_for("evidence of the new agent", sent);
    assert_eq!((first.ima_from, first.ima), (0, whole));
    scene.wait_until(&order, OrderState::Ended);
    assert!(agent.terminate().success());
}
