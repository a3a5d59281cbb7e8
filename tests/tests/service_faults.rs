//! What goes wrong around the verifier, as people and hosts meet it: the programs are those that users run.

// The boot and the reference values that the component tests of all crates use.
#[allow(dead_code, missing_docs)]
#[path = "../../verifier/tests/support/boot.rs"]
mod boot;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use boot::Boot;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis_firmware_fixtures::tpm::{Swtpm, VendorCa};
use portcullis_tests::programs::Programs;
use portcullis_tests::service::{Answer, Authority, Person, Service};
use serde_json::Value;
use tempfile::TempDir;

/// No command here waits for anything but a local connection; a shared machine is slow.
const LIMIT: Duration = Duration::from_mins(2);

/// A verifier's rules and everything else of one test.
struct Scene {
    programs: Programs,
    dir: TempDir,
}

impl Scene {
    /// The verifier's state is made, nothing serves yet.
    fn new() -> (Self, Authority) {
        let scene = Self { programs: Programs::find().unwrap(), dir: tempfile::tempdir().unwrap() };
        let vendor = VendorCa::shared().unwrap();
        fs::create_dir(scene.path("roots")).unwrap();
        fs::copy(vendor.root_pem(), scene.path("roots/root.pem")).unwrap();
        fs::copy(vendor.issuer_pem(), scene.path("roots/issuer.pem")).unwrap();
        fs::write(scene.path("reference.toml"), boot::references()).unwrap();
        fs::write(scene.path("policy.toml"), boot::POLICY).unwrap();
        let authority = Authority::init(&scene.programs, scene.dir.path(), &["127.0.0.1"]).unwrap();
        (scene, authority)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn serve(&self, authority: Authority) -> Service {
        let (roots, reference, policy) = (self.path("roots"), self.path("reference.toml"), self.path("policy.toml"));
        authority.serve(&roots, &reference, &policy).unwrap()
    }

    fn serving() -> (Self, Service) {
        let (scene, authority) = Self::new();
        let service = scene.serve(authority);
        (scene, service)
    }

    /// Starts the service where it cannot run: exit code and what it said.
    fn refused(&self, authority: &Authority, listen: &str, reference: &Path) -> (i32, String) {
        let command = authority.serve_command(listen, &self.path("roots"), reference, &self.path("policy.toml"));
        let output = to_end(command);
        (code(&output), text(&output.stderr))
    }

    fn deposit(&self, service: &Service, name: &str, key: &[u8]) -> Answer {
        let file = self.path("volume.key");
        fs::write(&file, key).unwrap();
        let answer = service.portcullis(Person::Tenant, &["volume", "put", name, "--key-file", file.to_str().unwrap()]);
        fs::remove_file(&file).unwrap();
        answer.unwrap()
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("killed by a signal: {output:?}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that has to end by itself.
fn to_end(mut command: Command) -> Output {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let until = Instant::now() + LIMIT;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("{command:?} did not end: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

/// Sends a signal to the service and waits for its end.
fn end(service: Service, signal: Signal) -> (Authority, std::process::ExitStatus) {
    kill(Pid::from_raw(i32::try_from(service.pid()).unwrap()), signal).unwrap();
    let until = Instant::now() + LIMIT;
    while !gone(service.pid()) {
        assert!(Instant::now() < until, "the verifier does not end on {signal}: {}", service.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    service.ended().unwrap()
}

/// Whether a process has ended; its parent may not have reaped it yet.
fn gone(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
}

/// Runs `portcullis host ls` for a person, with flags that may say other than the configuration; not in JSON.
fn host_ls(scene: &Scene, config: &Path, flags: &[&str]) -> Output {
    let mut command = Command::new(scene.programs.path("portcullis"));
    command.args(["host", "--config"]).arg(config).args(flags).arg("ls");
    to_end(command)
}

/// A host: a TPM that went through a good boot, and the agent's files.
struct Machine {
    tpm: Swtpm,
    dir: TempDir,
    program: PathBuf,
}

impl Machine {
    fn new(scene: &Scene, service: &Service) -> Self {
        let tpm = Swtpm::new().unwrap();
        let mut boot = Boot::good();
        boot.extend(&tpm);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("eventlog"), boot.eventlog()).unwrap();
        fs::write(dir.path().join("ima"), boot.ima()).unwrap();
        let me = Self { tpm, dir, program: scene.programs.path("portcullis-agent") };
        me.configure(service);
        me
    }

    fn configure(&self, service: &Service) {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let config = format!(
            "host = \"honest\"\nverifier_url = {:?}\ntrust_dir = {:?}\nstate_dir = {:?}\nruntime_dir = {:?}\n\
             volumes_dir = {:?}\ntcti = {:?}\neventlog = {:?}\nima = {:?}\n",
            service.url(),
            service.trust_dir().display().to_string(),
            path("state"),
            path("run"),
            path("volumes"),
            self.tpm.tcti(),
            path("eventlog"),
            path("ima"),
        );
        fs::write(path("agent.toml"), config).unwrap();
    }

    fn agent(&self, args: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.dir.path().join("agent.toml")).arg("--json").args(args);
        to_end(command)
    }

    fn must(&self, args: &[&str]) -> Value {
        let output = self.agent(args);
        assert_eq!(code(&output), 0, "{args:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

#[test]
fn a_verifier_that_is_down_is_3_and_named_to_people_and_hosts() {
    let (scene, service) = Scene::serving();
    let machine = Machine::new(&scene, &service);
    let (url, config) = (service.url(), service.config_path(Person::Operator));
    assert_eq!(code(&host_ls(&scene, &config, &[])), 0);
    let (_, status) = end(service, Signal::SIGTERM);
    assert_eq!(status.code(), Some(0));

    let output = host_ls(&scene, &config, &[]);
    assert_eq!(code(&output), 3, "{output:?}");
    let said = text(&output.stderr);
    assert!(output.stdout.is_empty() && said.contains(&url) && said.contains("unavailable"), "{said}");
    assert_eq!(said.lines().count(), 1, "one line is enough: {said}");

    let output = machine.agent(&["attest"]);
    assert_eq!(code(&output), 3, "{output:?}");
    assert!(text(&output.stderr).contains(&url), "{output:?}");
}

#[test]
fn a_taken_port_is_3_and_the_state_stays_usable() {
    let (scene, authority) = Scene::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, said) = scene.refused(&authority, &address, &scene.path("reference.toml"));
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("cannot listen on") && said.contains(&address), "{said}");
    let service = scene.serve(authority);
    service.must(Person::Operator, &["host", "ls"]).unwrap();
}

#[test]
fn two_verifiers_do_not_share_a_state() {
    let (scene, service) = Scene::serving();
    let state = service.trust_dir();
    let mut command = Command::new(scene.programs.path("portcullis-verifier"));
    command.arg("serve").arg("--state").arg(state.parent().unwrap()).args(["--listen", "127.0.0.1:0", "--roots"]);
    command.arg(scene.path("roots")).arg("--reference").arg(scene.path("reference.toml"));
    command.arg("--policy").arg(scene.path("policy.toml"));
    let output = to_end(command);
    assert_eq!(code(&output), 3, "{output:?}");
    assert!(text(&output.stderr).contains("in use by another portcullis-verifier"), "{output:?}");
    service.must(Person::Operator, &["host", "ls"]).unwrap();
}

#[test]
fn roles_do_only_what_is_theirs() {
    let (scene, service) = Scene::serving();
    let file = scene.path("volume.key");
    fs::write(&file, [7; 32]).unwrap();
    let put = ["volume", "put", "data", "--key-file", file.to_str().unwrap()];
    for (person, args) in [
        (Person::Tenant, &["host", "ls"][..]),
        (Person::Tenant, &["host", "show", "honest"]),
        (Person::Tenant, &["host", "admit", &"ab".repeat(32), "--name", "honest"]),
        (Person::Operator, &put),
        (Person::Operator, &["volume", "ls"]),
        (Person::Operator, &["vm", "ls"]),
    ] {
        let answer = service.portcullis(person, args).unwrap();
        assert_eq!(answer.code, 1, "{args:?}: {} {}", answer.json, answer.stderr);
        let words = format!("{} {}", answer.json, answer.stderr);
        assert!(words.contains("peer.role"), "{args:?}: {words}");
    }
    // The same calls by whom they are for. Nothing of the refused ones was done.
    assert_eq!(service.must(Person::Tenant, &["volume", "ls"]).unwrap()["volumes"].as_array().map(Vec::len), Some(0));
    service.must(Person::Tenant, &put).unwrap();
    service.must(Person::Operator, &["host", "ls"]).unwrap();
    service.must(Person::Operator, &["host", "admit", &"ab".repeat(32), "--name", "honest"]).unwrap();
}

#[test]
fn wrong_certificates_keys_and_cas_get_nothing() {
    let (scene, service) = Scene::serving();
    let other_dir = scene.path("other");
    fs::create_dir(&other_dir).unwrap();
    let other = Authority::init(&scene.programs, &other_dir, &["127.0.0.1"]).unwrap();
    let of_other = |name: &str| other.person_dir(Person::Operator).join(name).display().to_string();
    let with = |args: &[&str]| {
        let output = host_ls(&scene, &service.config_path(Person::Operator), args);
        assert!(output.stdout.is_empty(), "{args:?}: {output:?}");
        assert!(!text(&output.stderr).contains("PRIVATE KEY"), "{args:?}: {output:?}");
        (code(&output), text(&output.stderr))
    };
    // Another verifier's CA: it is not the verifier that was meant.
    let (code, said) = with(&["--ca", &of_other("ca.pem")]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("certificate"), "{said}");
    // An operator of another verifier is nobody here.
    let (code, said) = with(&["--cert", &of_other("cert.pem"), "--key", &of_other("key.pem")]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("peer."), "{said}");
    // A key that does not belong to the certificate.
    let (code, said) = with(&["--key", &of_other("key.pem")]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("key"), "{said}");
    for flag in ["--ca", "--cert", "--key"] {
        let (code, said) = with(&[flag, "/nonexistent/file.pem"]);
        assert_eq!(code, 2, "{flag}: {said}");
        assert!(said.contains("/nonexistent/file.pem"), "{flag}: {said}");
    }
    service.must(Person::Operator, &["host", "ls"]).unwrap();
}

#[test]
fn unreadable_rules_are_2_and_named() {
    let (scene, authority) = Scene::new();
    fs::write(scene.path("broken.toml"), "schema = \"portcullis/reference/1\"\nname = ").unwrap();
    fs::write(scene.path("binary.toml"), [0xff; 64]).unwrap();
    for name in ["missing.toml", "broken.toml", "binary.toml", "roots"] {
        let (code, said) = scene.refused(&authority, "127.0.0.1:0", &scene.path(name));
        assert_eq!(code, 2, "{name}: {said}");
        assert!(said.contains(scene.path(name).to_str().unwrap()), "{name}: {said}");
    }
    let service = scene.serve(authority);
    service.must(Person::Operator, &["host", "ls"]).unwrap();
}

#[test]
fn kill_9_loses_no_admission_and_no_volume() {
    let (scene, service) = Scene::serving();
    let machine = Machine::new(&scene, &service);
    machine.must(&["enrol"]);
    let fingerprint = machine.must(&["ek"])["ek_fingerprint"].as_str().unwrap().to_owned();
    assert_eq!(code(&machine.agent(&["attest"])), 1, "a TPM that nobody admitted");
    service.must(Person::Operator, &["host", "admit", &fingerprint, "--name", "honest", "--note", "rack 4"]).unwrap();
    machine.must(&["attest"]);
    assert_eq!(scene.deposit(&service, "data", &[7; 32]).code, 0);
    let pid = service.pid();

    let (authority, status) = end(service, Signal::SIGKILL);
    assert!(!status.success() && gone(pid));
    let service = scene.serve(authority);
    let host = service.must(Person::Operator, &["host", "show", "honest"]).unwrap();
    assert_eq!((host["state"].as_str(), host["ek_fingerprint"].as_str()), (Some("admitted"), Some(&*fingerprint)));
    let volumes = service.must(Person::Tenant, &["volume", "ls"]).unwrap();
    assert!(volumes.to_string().contains("\"data\""), "{volumes}");
    // The name is still taken: the key of a volume is not replaced.
    assert_eq!(scene.deposit(&service, "data", &[8; 32]).code, 1);
    // The host goes on without a new enrolment.
    machine.configure(&service);
    machine.must(&["attest"]);
    assert_eq!(service.must(Person::Operator, &["host", "show", "honest"]).unwrap()["trust"], "trusted");

    // What was withdrawn stays withdrawn over the next one.
    service.must(Person::Operator, &["host", "withdraw", &fingerprint]).unwrap();
    let (authority, _) = end(service, Signal::SIGKILL);
    let service = scene.serve(authority);
    machine.configure(&service);
    assert_eq!(code(&machine.agent(&["attest"])), 1);
    assert_ne!(service.must(Person::Operator, &["host", "show", "honest"]).unwrap()["trust"], "trusted");
}

#[test]
fn sigterm_and_sigint_end_it_with_0_and_leave_nothing() {
    let (scene, mut authority) = Scene::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let service = scene.serve(authority);
        service.must(Person::Operator, &["host", "ls"]).unwrap();
        let (pid, port) = (service.pid(), service.port());
        let status;
        (authority, status) = end(service, signal);
        assert_eq!(status.code(), Some(0), "{signal}");
        assert!(gone(pid), "{signal}: the process is still there");
        TcpListener::bind(("127.0.0.1", port)).unwrap_or_else(|e| panic!("{signal}: port {port} is not free: {e}"));
        fs::File::open(authority.state().join("lock")).unwrap().try_lock().expect("the state is still locked");
        let mut left: Vec<String> =
            fs::read_dir(authority.state()).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        left.retain(|name| name.starts_with("verifier.db"));
        assert_eq!(left, ["verifier.db"], "{signal}: the database was not closed");
    }
}
