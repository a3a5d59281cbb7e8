//! The real service, as a process of its own on a loopback port, with its own state.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use portcullis_firmware_fixtures::tpm::VendorCa;
use portcullis_verifier::client::{Client, Identity, Limits};
use tempfile::TempDir;

use super::boot;

/// The verifier's id in the tests.
pub const VERIFIER: &str = "verifier.test";
const PROGRAM: &str = env!("CARGO_BIN_EXE_portcullis-verifier");

/// Runs the program with `args` and waits for it.
pub fn run(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).output().unwrap()
}

/// A verifier's files: state, rules, people's certificates.
pub struct Setup {
    pub dir: TempDir,
    /// Variables that the service is started with.
    pub env: Vec<(String, String)>,
    config: Vec<String>,
}

impl Setup {
    /// A new verifier that trusts the lab's TPM vendor and [`boot::Boot::good`]. `config` lines go to its TOML file.
    pub fn new(config: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = config.iter().map(|line| (*line).to_owned()).collect();
        let setup = Self { dir, env: Vec::new(), config };
        let state = setup.path("state");
        let made = run(&["init", "--state", &state, "--name", VERIFIER, "--san", "127.0.0.1", "localhost"]);
        assert!(made.status.success(), "{made:?}");
        for (role, name) in [("operator", "olga"), ("tenant", "alice"), ("tenant", "bob")] {
            let args = ["certificate", "--state", &state, "--role", role, "--name", name, "--out", &setup.path(name)];
            let made = run(&args);
            assert!(made.status.success(), "{made:?}");
        }
        std::fs::create_dir(setup.path("roots")).unwrap();
        let vendor = VendorCa::shared().unwrap();
        std::fs::copy(vendor.root_pem(), setup.path("roots/root.pem")).unwrap();
        std::fs::copy(vendor.issuer_pem(), setup.path("roots/issuer.pem")).unwrap();
        setup.write("reference.toml", &boot::references());
        setup.write("policy.toml", boot::POLICY);
        setup.write("config.toml", &setup.config.join("\n"));
        setup
    }

    /// A copy of all its files, the state among them. No service may run on it.
    pub fn copy(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let from = format!("{}/.", self.dir.path().display());
        let copied = Command::new("cp").args(["-a", &from, dir.path().to_str().unwrap()]).status().unwrap();
        assert!(copied.success());
        Self { dir, env: self.env.clone(), config: self.config.clone() }
    }

    /// A path inside the setup's directory.
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// Writes a file of the setup.
    pub fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path(name), content).unwrap();
    }

    /// The arguments that serve on `listen`.
    pub fn serve_args(&self, listen: &str) -> Vec<String> {
        let (state, roots, reference) = (self.path("state"), self.path("roots"), self.path("reference.toml"));
        let (policy, config) = (self.path("policy.toml"), self.path("config.toml"));
        [
            "--json",
            "serve",
            "--state",
            &state,
            "--listen",
            listen,
            "--roots",
            &roots,
            "--reference",
            &reference,
            "--policy",
            &policy,
            "--config",
            &config,
        ]
        .iter()
        .map(|arg| (*arg).to_owned())
        .collect()
    }

    /// Starts the service on a free port and waits until it is ready.
    pub fn serve(&self) -> Running {
        self.serve_with(&self.serve_args("127.0.0.1:0"))
    }

    /// The same with arguments of the caller's.
    pub fn serve_with(&self, args: &[String]) -> Running {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        self.serve_logging_to(args, log)
    }

    /// The same with its log in a file of the caller's.
    pub fn serve_logging_to(&self, args: &[String], log: std::fs::File) -> Running {
        let mut command = Command::new(PROGRAM);
        command.args(args).env("PORTCULLIS_LOG", "info,portcullis_verifier=debug");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("the service did not start: {line:?}, log: {}", self.log()));
        assert_eq!(ready["ready"], true, "{line}");
        let url = format!("https://{}", ready["listen"].as_str().unwrap());
        let ca = std::fs::read(self.path("state/trust/ca.pem")).unwrap();
        Running { child, url, ca, people: self.dir.path().to_owned() }
    }

    /// What the service logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

/// A running service. Killed when it is dropped.
pub struct Running {
    child: Child,
    pub url: String,
    pub ca: Vec<u8>,
    people: PathBuf,
}

impl Running {
    /// A client with this identity, or with none.
    pub fn client(&self, identity: Option<&Identity>) -> Client {
        Client::new(&self.url, &self.ca, identity, Limits::default()).unwrap()
    }

    /// A client of one of the people that [`Setup::new`] made: olga, alice, bob.
    pub fn person(&self, name: &str) -> Client {
        let read = |file: &str| std::fs::read(self.people.join(name).join(file)).unwrap();
        self.client(Some(&Identity::from_pem(&read("cert.pem"), &read("key.pem")).unwrap()))
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM and waits.
    pub fn terminate(mut self) -> ExitStatus {
        let killed = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(killed.success());
        wait(&mut self.child)
    }

    /// Sends SIGKILL and waits.
    pub fn kill9(mut self) {
        self.child.kill().unwrap();
        assert_eq!(self.child.wait().unwrap().signal(), Some(9));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Gone already in tests that ended it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a process, but not for ever.
pub fn wait(child: &mut Child) -> ExitStatus {
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    panic!("the process did not end");
}

/// Starts a service that must refuse to start: its exit code and what it said.
pub fn refused(args: &[String]) -> (i32, String) {
    let mut child = Command::new(PROGRAM).args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let status = wait(&mut child);
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (status.code().unwrap(), said)
}

/// Whether a file is readable by its owner only.
pub fn mode(path: impl AsRef<Path>) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}
