//! A VMM with an API socket, and requests to it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::guest::Guest;

/// Longest that anything here may take. It takes milliseconds; a shared machine may be a hundred times slower.
pub const LIMIT: Duration = Duration::from_mins(1);

/// Status and body of a response; `Null` where there is no body.
pub type Answer = (u16, Value);

/// A VMM that serves its API. Killed when dropped.
pub struct Vmm {
    pub dir: tempfile::TempDir,
    child: Child,
}

/// The program: that of this build, or the one that the environment names (the VMM as it is installed, in `scripts/test`).
pub fn program() -> Command {
    let other = std::env::var_os("PORTCULLIS_VMM");
    Command::new(other.unwrap_or_else(|| env!("CARGO_BIN_EXE_portcullis-vmm").into()))
}

/// The command line of a VMM whose files lie in `dir`.
pub fn command(dir: &Path) -> Command {
    let mut command = program();
    // Paths in examples are relative.
    command.current_dir(dir);
    command.arg("--api-sock").arg(dir.join("api.sock")).args(["--id", "web-1", "--boot-timer"]);
    // All folders of these tests: some requests name files of another VM's.
    command.arg("--api-dir").arg(std::env::temp_dir());
    command.arg("--log-path").arg(dir.join("vm.log"));
    command
}

impl Vmm {
    /// A VMM without a VM.
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// A VMM with more arguments.
    pub fn with(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = command(dir.path());
        command.args(arguments);
        Self::run(command, dir)
    }

    pub fn run(mut command: Command, dir: tempfile::TempDir) -> Self {
        let output = std::fs::File::create(dir.path().join("output")).unwrap();
        let errors = std::fs::File::create(dir.path().join("errors")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn().unwrap();
        let mut vmm = Self { dir, child };
        vmm.wait_until("the socket", |vmm| UnixStream::connect(vmm.socket()).is_ok());
        vmm
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("api.sock")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A file in the VMM's folder, as text.
    pub fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&std::fs::read(self.dir.path().join(name)).unwrap_or_default()).into_owned()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn wait_until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let limit = Instant::now() + LIMIT;
        while !holds(self) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "{what}: ended with {ended:?}: {}", self.read("errors"));
            assert!(Instant::now() < limit, "{what} did not come: {}", self.read("vm.log"));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until the guest has printed `text`.
    pub fn wait_for(&mut self, text: &str) {
        self.wait_until(text, |vmm| vmm.read("output").contains(text));
    }

    /// Waits for the end of the process.
    pub fn end(&mut self) -> ExitStatus {
        let limit = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < limit, "the VMM did not end: {}", self.read("vm.log"));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// One request on a connection of its own.
    pub fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let (_, status, body) = self.exchange(method, path, body);
        (status, body)
    }

    /// The same, with the whole response before its parts.
    pub fn exchange(&self, method: &str, path: &str, body: Option<&Value>) -> (String, u16, Value) {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut stream = self.connect();
        let length = body.len();
        let text = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(text.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (status, body) = answer(&text);
        crate::openapi::conforms(method, path, status, &body);
        (text, status, body)
    }

    /// A request that need not be answered: what comes before the connection is closed.
    pub fn try_send(&self, method: &str, path: &str, body: &Value) -> String {
        let mut stream = self.connect();
        let (body, mut answer) = (body.to_string(), Vec::new());
        let head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).unwrap();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, None)
    }

    pub fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, Some(body))
    }

    /// A request that has to be carried out.
    pub fn must(&self, method: &str, path: &str, body: &Value) {
        let (status, answer) = self.send(method, path, Some(body));
        assert_eq!((status, &answer), (204, &Value::Null), "{method} {path} {body}");
    }

    /// A request that has to be refused with words that contain `word`.
    pub fn refused(&self, method: &str, path: &str, body: Option<&Value>, word: &str) {
        let (status, answer) = self.send(method, path, body);
        assert_eq!(status, 400, "{method} {path} {body:?}: {answer}");
        let fault = answer["fault_message"].as_str().unwrap_or_default();
        assert!(fault.contains(word), "{method} {path} {body:?}: {answer}");
        assert_eq!(answer.as_object().map(serde_json::Map::len), Some(1), "{answer}");
    }

    /// Gives the VM this guest to boot.
    pub fn boot_source(&self, guest: &Guest) {
        let kernel = self.dir.path().join("kernel");
        std::fs::write(&kernel, guest.elf()).unwrap();
        self.must("PUT", "/boot-source", &json!({"kernel_image_path": kernel}));
        self.must("PUT", "/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 4}));
    }

    pub fn act(&self, action: &str) {
        self.must("PUT", "/actions", &json!({"action_type": action}));
    }

    pub fn state(&self) -> String {
        self.get("/").1["state"].as_str().unwrap_or_default().to_owned()
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Takes a response apart.
pub fn answer(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response but {text:?}"));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no response but {text:?}"));
    let body = if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() };
    (status, body)
}
