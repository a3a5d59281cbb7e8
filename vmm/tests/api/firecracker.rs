//! Requests to Firecracker and to this VMM, side by side.
//!
//! `firecracker.txt` holds requests and what Firecracker 1.16.0 answered to them. Here this VMM gets the same requests, and
//! answers the same, but for the differences that `docs/FIRECRACKER.md` explains. Run with `PORTCULLIS_VMM` set to the path
//! of that Firecracker, this test shows that the file is true: then the answers are Firecracker's, without exception.
//!
//! A line is `STATUS METHOD PATH BODY`. Behind the status stands `D` where the answer calls the request deprecated, and
//! `>STATUS(difference)` where this VMM answers otherwise, on purpose. A line that begins with `=` is the body of the answer
//! before it. `== name` begins with a new process. `@kernel` and its like are files, `@x2000` is 2000 times `x`.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::client::{LIMIT, program};
use crate::guest::Guest;
use crate::tap::TestTap;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api/firecracker.txt");
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/FIRECRACKER.md");
/// Files of the folder, longer names first.
const FILES: [&str; 12] = [
    "readonly", "metrics", "kernel", "initrd", "serial", "absent", "memory", "disk2", "vsock", "state", "disk", "text",
];
/// What of an answer is each program's own, or what Firecracker does not say.
const OWN: [&str; 4] = ["app_name", "vmm_version", "logger", "metrics"];

/// The files that requests name, and the taps.
struct Place {
    dir: tempfile::TempDir,
    taps: [TestTap; 2],
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        write("kernel", &Guest::new().hang().elf());
        write("initrd", &[b'i'; 600]);
        write("text", "this is text\n".repeat(100).as_bytes());
        for (name, len) in [("disk", 8192), ("disk2", 16384), ("readonly", 4096)] {
            write(name, &vec![0; len]);
        }
        std::fs::set_permissions(dir.path().join("readonly"), PermissionsExt::from_mode(0o444)).unwrap();
        Self { dir, taps: [TestTap::new(), TestTap::new()] }
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// The text with the names of this place.
    fn fill(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for name in FILES {
            text = text.replace(&format!("@{name}"), &self.at(name));
        }
        for (name, value) in [("@log", self.at("log")), ("@dir", self.at("")), ("@tap2", self.taps[1].name.clone())] {
            text = text.replace(name, value.trim_end_matches('/'));
        }
        text = text.replace("@tap", &self.taps[0].name);
        while let Some((before, rest)) = text.split_once("@x") {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            text = format!("{before}{}{}", "x".repeat(rest[..digits].parse().unwrap()), &rest[digits..]);
        }
        text
    }
}

/// A process that serves the API. Killed when dropped.
struct Server<'a> {
    child: Child,
    place: &'a Place,
}

impl<'a> Server<'a> {
    fn start(place: &'a Place) -> Self {
        let _ = std::fs::remove_file(place.at("vsock"));
        let mut command = program();
        command.args(["--api-sock", &place.at("api.sock"), "--id", "web-1"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Self { child, place };
        let limit = std::time::Instant::now() + LIMIT;
        while UnixStream::connect(server.place.at("api.sock")).is_err() {
            assert!(std::time::Instant::now() < limit, "the socket did not come");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        server
    }

    /// Status, whether the answer calls the request deprecated, and its body.
    fn send(&self, method: &str, path: &str, body: Option<&str>) -> (u16, bool, Value) {
        let mut stream = UnixStream::connect(self.place.at("api.sock")).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let length = body.map(|body| format!("Content-Length: {}\r\n", body.len())).unwrap_or_default();
        let request = format!("{method} {path} HTTP/1.1\r\n{length}\r\n{}", body.unwrap_or_default());
        stream.write_all(request.as_bytes()).unwrap();
        // Firecracker keeps the connection whatever it is asked.
        let mut text = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            let whole = String::from_utf8_lossy(&text);
            if let Some((head, body)) = whole.split_once("\r\n\r\n") {
                let head = head.to_ascii_lowercase();
                let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                let length = field("content-length:").map_or(0, |length| length.parse().unwrap());
                if body.len() >= length {
                    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap();
                    return (status, field("deprecation:").is_some(), serde_json::from_str(body).unwrap_or_default());
                }
            }
            let count = stream.read(&mut chunk).unwrap();
            assert!(count > 0, "{method} {path}: no whole answer: {whole}");
            text.extend_from_slice(&chunk[..count]);
        }
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(self.place.at("api.sock"));
    }
}

/// Where two bodies differ: what Firecracker says is there, and says the same. `serial` is ours.
fn difference(theirs: &Value, ours: &Value, at: &str) -> Option<String> {
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            let more = ours.keys().find(|key| !theirs.contains_key(*key) && *key != "serial");
            let more = more.map(|key| format!("{at}.{key} is not Firecracker's"));
            let differs = |(key, value): (&String, &Value)| match ours.get(key) {
                None => Some(format!("{at}.{key} is not there")),
                Some(_) if OWN.contains(&key.as_str()) => None,
                Some(own) => difference(value, own, &format!("{at}.{key}")),
            };
            more.or_else(|| theirs.iter().find_map(differs))
        }
        (Value::Array(theirs), Value::Array(ours)) if theirs.len() == ours.len() => {
            theirs.iter().zip(ours).find_map(|(theirs, ours)| difference(theirs, ours, &format!("{at}[]")))
        }
        _ => (theirs != ours).then(|| format!("{at}: {ours}, and Firecracker says {theirs}")),
    }
}

/// Whether the program that is tested is Firecracker itself.
fn is_firecracker() -> bool {
    let output = Command::new(program().get_program()).arg("--version").output().unwrap();
    output.stdout.starts_with(b"Firecracker")
}

#[test]
fn answers_are_firecrackers_but_for_what_the_documents_say() {
    let (place, theirs) = (Place::new(), is_firecracker());
    let [table, document] = [TABLE, DOCUMENT].map(|path| std::fs::read_to_string(path).unwrap());
    let (mut server, mut scenario, mut answer) = (None, "", Value::Null);
    let (mut requests, mut same, mut wrong) = (0u32, 0u32, Vec::new());
    for line in table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix("== ") {
            server = None;
            scenario = name;
            server.get_or_insert_with(|| Server::start(&place));
            continue;
        }
        if let Some(body) = line.strip_prefix("= ") {
            let body: Value = serde_json::from_str(&place.fill(body)).unwrap();
            wrong.extend(difference(&body, &answer, "").map(|found| format!("{scenario}: {found}")));
            continue;
        }
        let mut words = line.splitn(4, ' ');
        let [status, method, path] = [(); 3].map(|()| words.next().unwrap());
        let body = words.next().map(|body| place.fill(body));
        let (expected, own) = status.split_once('>').map_or((status, None), |(status, own)| (status, Some(own)));
        let (found, deprecated, body) = server.as_ref().unwrap().send(method, path, body.as_deref());
        answer = body;
        let found = format!("{found}{}", if deprecated { "D" } else { "" });
        requests += 1;
        same += u32::from(found == expected);
        let wanted = match own.filter(|_| !theirs) {
            None => expected,
            Some(own) => {
                let (status, difference) = own.strip_suffix(')').and_then(|own| own.split_once('(')).unwrap();
                let explained = document.contains(&format!("| {} |", difference.replace('_', " ")));
                assert!(explained, "{difference} is not explained in {DOCUMENT}");
                status
            }
        };
        if found != wanted {
            wrong.push(format!("{scenario}: {line:.300}\n    answered {found} {answer}"));
        }
    }
    println!("{same} of {requests} answers have Firecracker's status");
    assert!(wrong.is_empty(), "{} answers:\n{}", wrong.len(), wrong.join("\n"));
    assert!(requests > 700 && (theirs || same * 100 >= requests * 94), "{same} of {requests}");
}
