//! The verifier as it really runs: its own process, its own state directory, people with certificates.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use portcullis_firmware_fixtures::child::spawn_guarded;
use serde_json::Value;

use crate::Trouble;
use crate::programs::Programs;
use crate::volume::run;

/// The verifier's id in end-to-end runs.
pub const VERIFIER_ID: &str = "verifier.lab";
/// How long the service may take from its start until it serves.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A verifier's state directory and the people it knows, before it serves.
pub struct Authority {
    programs: Programs,
    dir: PathBuf,
}

/// A person at the command line.
#[derive(Debug, Clone, Copy)]
pub enum Person {
    /// Admits hosts.
    Operator,
    /// Owns volumes and VMs.
    Tenant,
}

impl Person {
    fn name(self) -> &'static str {
        match self {
            Self::Operator => "olga",
            Self::Tenant => "tom",
        }
    }

    fn role(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Tenant => "tenant",
        }
    }
}

/// The tenant's name, which is part of the names of its volumes' files.
pub fn tenant() -> &'static str {
    Person::Tenant.name()
}

impl Authority {
    /// Makes a verifier's state, reachable at `addresses`, and certificates for both people, all below `dir`.
    pub fn init(programs: &Programs, dir: &Path, addresses: &[&str]) -> Result<Self, Trouble> {
        let me = Self { programs: programs.clone(), dir: dir.to_owned() };
        let mut init = Command::new(programs.path("portcullis-verifier"));
        init.arg("init").arg("--state").arg(me.state()).args(["--name", VERIFIER_ID, "--san"]).args(addresses);
        run(&mut init, &[])?;
        for person in [Person::Operator, Person::Tenant] {
            let mut certificate = Command::new(programs.path("portcullis-verifier"));
            certificate.arg("certificate").arg("--state").arg(me.state());
            certificate.args(["--role", person.role(), "--name", person.name(), "--out"]).arg(me.person_dir(person));
            run(&mut certificate, &[])?;
        }
        Ok(me)
    }

    /// The verifier's state directory.
    pub fn state(&self) -> PathBuf {
        self.dir.join("verifier")
    }

    /// Where a person's certificate and key lie.
    pub fn person_dir(&self, person: Person) -> PathBuf {
        self.dir.join(person.name())
    }

    /// The files that go into every host's measured initrd: name and contents.
    pub fn trust(&self) -> Result<Vec<(String, Vec<u8>)>, Trouble> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.state().join("trust"))? {
            let entry = entry?;
            files.push((entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?));
        }
        Ok(files)
    }

    /// The command that serves on `listen`.
    pub fn serve_command(&self, listen: &str, roots: &Path, reference: &Path, policy: &Path) -> Command {
        let mut command = Command::new(self.programs.path("portcullis-verifier"));
        command.arg("serve").arg("--json").arg("--state").arg(self.state()).args(["--listen", listen]);
        command.arg("--roots").arg(roots).arg("--reference").arg(reference).arg("--policy").arg(policy);
        command
    }

    /// Starts the service on a free loopback port.
    pub fn serve(self, roots: &Path, reference: &Path, policy: &Path) -> Result<Service, Trouble> {
        let mut command = self.serve_command("127.0.0.1:0", roots, reference, policy);
        let log = fs::File::create(self.dir.join("verifier.log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut process = Running(spawn_guarded(command)?);
        let port = ready(&mut process, &self.dir.join("verifier.log"))?;
        let service = Service { authority: self, process, port };
        for person in [Person::Operator, Person::Tenant] {
            service.write_config(person)?;
        }
        Ok(service)
    }
}

/// Waits for the line in which the service says where it listens.
fn ready(process: &mut Running, log: &Path) -> Result<u16, Trouble> {
    let stdout = process.0.stdout.take().ok_or_else(|| Trouble::Step("the verifier has no standard output".into()))?;
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = send.send(line);
        }
    });
    let failed = |what: &str| {
        let log = fs::read_to_string(log).unwrap_or_default();
        Trouble::Step(format!("the verifier {what}: {}", log.trim()))
    };
    let line = receive.recv_timeout(START_LIMIT).map_err(|_| failed("did not get ready"))?;
    let address = serde_json::from_str::<Value>(&line).ok().and_then(|v| v["listen"].as_str().map(str::to_owned));
    let port = address.as_deref().and_then(|a| a.rsplit(':').next()).and_then(|p| p.parse().ok());
    port.ok_or_else(|| failed(&format!("said {line:?} instead of where it listens")))
}

/// A process that ends when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A verifier that serves.
pub struct Service {
    authority: Authority,
    process: Running,
    port: u16,
}

/// How a command of a person ended.
pub struct Answer {
    /// Its exit code.
    pub code: i32,
    /// What it printed, as JSON.
    pub json: Value,
    /// What it complained of.
    pub stderr: String,
}

impl Service {
    /// The port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Waits for the end of a service that was told to end; what it leaves can be served again.
    pub fn ended(mut self) -> Result<(Authority, ExitStatus), Trouble> {
        let status = self.process.0.wait()?;
        Ok((self.authority, status))
    }

    /// Where a host or agent on this machine reaches it.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The trust directory that agents on this machine use.
    pub fn trust_dir(&self) -> PathBuf {
        self.authority.state().join("trust")
    }

    /// The service's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.authority.dir.join("verifier.log")).unwrap_or_default()
    }

    /// The person's configuration of `portcullis`.
    pub fn config_path(&self, person: Person) -> PathBuf {
        self.authority.person_dir(person).join("config.toml")
    }

    fn write_config(&self, person: Person) -> Result<(), Trouble> {
        let dir = self.authority.person_dir(person);
        let file = |name: &str| toml::Value::String(dir.join(name).display().to_string());
        let config = format!(
            "url = \"{}\"\nca = {}\ncert = {}\nkey = {}\n",
            self.url(),
            file("ca.pem"),
            file("cert.pem"),
            file("key.pem")
        );
        Ok(fs::write(self.config_path(person), config)?)
    }

    /// Runs `portcullis --json ARGS` as a person would.
    pub fn portcullis(&self, person: Person, args: &[&str]) -> Result<Answer, Trouble> {
        let mut command = Command::new(self.authority.programs.path("portcullis"));
        command.env("PORTCULLIS_CONFIG", self.config_path(person)).arg("--json").args(args);
        let output = command.stdin(Stdio::null()).output()?;
        let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Ok(Answer { code: output.status.code().unwrap_or(-1), json, stderr })
    }

    /// The same, where anything but exit code 0 is trouble.
    pub fn must(&self, person: Person, args: &[&str]) -> Result<Value, Trouble> {
        let answer = self.portcullis(person, args)?;
        if answer.code == 0 {
            return Ok(answer.json);
        }
        let words = format!("{} {}", answer.json, answer.stderr);
        Err(Trouble::Step(format!("portcullis {} ended with {}: {words}", args.join(" "), answer.code)))
    }
}
