//! The API: what a client sends, from the bytes on its connection to the VM's commands.
//!
//! Requests name files, which the API opens, empties and writes. So they are answered on a thread of their own that
//! reaches one folder only, by Landlock; without it this target refuses to run. A VM that would need KVM is not there:
//! another thread carries out commands as far as they go without.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use landlock::{ABI, Access, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus};
use nix::sched::{CloneFlags, unshare};
use portcullis_vmm::api::Session;
use portcullis_vmm::api::http::{Limits, Parsed, Request, Response, parse};
use portcullis_vmm::api::server::Service;
use portcullis_vmm::config::VmConfig;
use portcullis_vmm::devices;
use portcullis_vmm::mmds::{Mmds, SharedMmds};
use portcullis_vmm::snapshot;
use portcullis_vmm::virtio::{EventLoop, Slot};
use portcullis_vmm::vm::control::{Commands, connect};
use portcullis_vmm::vm::{Command, ControlError, Options, VmState};
use serde_json::Value;
use vmm_sys_util::eventfd::EventFd;

use super::Target;
use super::config::configurations;
use super::{in_proportion, memory};

/// A flag, and the bytes of one connection.
pub const API: Target = Target { name: "api", body: api, max_len: 4096, seeds: |_| seeds() };

const LIMITS: Limits = Limits { head: 1024, body: 2048 };
/// Files that are there, and what they hold.
const FILES: [(&str, usize); 4] = [("vmlinux", 4096), ("disk", 8192), ("state", 64), ("memory", 4096)];
/// Most that a session's metadata may hold.
const METADATA: usize = 256;

/// One input, and where its judgement goes.
struct Job {
    bytes: Vec<u8>,
    done: std::sync::mpsc::SyncSender<bool>,
}

static WORKER: LazyLock<Mutex<Sender<Job>>> = LazyLock::new(|| {
    let (jobs, inbox) = channel();
    std::thread::spawn(move || work(&inbox));
    Mutex::new(jobs)
});

fn api(bytes: &[u8]) -> bool {
    let (done, result) = sync_channel(1);
    let job = Job { bytes: bytes.to_vec(), done };
    let worker = WORKER.lock().unwrap_or_else(PoisonError::into_inner);
    worker.send(job).expect("the worker lives");
    result.recv().expect("what a request asked for did not hold, see the thread's words")
}

/// The worker's thread: confined, in its own folder.
fn work(inbox: &Receiver<Job>) {
    let folder = own_folder();
    confine(&folder);
    let (sessions, commands) = channel();
    // It inherits what this thread may reach.
    std::thread::spawn(move || commands.iter().for_each(|commands| obey(&commands)));
    while let Ok(job) = inbox.recv() {
        furnish(&folder);
        let result = in_proportion(job.bytes.len(), || talk(&job.bytes, &sessions));
        let _ = job.done.send(result);
    }
}

/// A folder of this process's own; those of processes that are gone are taken away.
fn own_folder() -> PathBuf {
    const NAME: &str = "portcullis-fuzz-api-";
    let temporary = std::env::temp_dir();
    for entry in fs::read_dir(&temporary).expect("the folder of temporary files").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.strip_prefix(NAME).is_some_and(|number| !Path::new("/proc").join(number).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let folder = temporary.join(format!("{NAME}{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// This thread, and those that it makes, reach files of one folder, which is where relative names begin.
fn confine(folder: &Path) {
    unshare(CloneFlags::CLONE_FS).expect("a working folder of this thread's own");
    std::env::set_current_dir(folder).expect("it was made");
    let all = AccessFs::from_all(ABI::V5);
    let rules = Ruleset::default().handle_access(all).and_then(Ruleset::create).expect("a set of rules");
    let beneath = PathBeneath::new(PathFd::new(folder).expect("it was made"), all);
    let status = rules.add_rule(beneath).and_then(landlock::RulesetCreated::restrict_self).expect("Landlock");
    assert_ne!(status.ruleset, RulesetStatus::NotEnforced, "without Landlock a request could empty any file");
    assert!(fs::read("/proc/version").is_err() && fs::write("/dev/null", "").is_err(), "outside is out of reach");
}

/// The folder as each session finds it.
fn furnish(folder: &Path) {
    for entry in fs::read_dir(folder).expect("the folder").flatten() {
        let known = FILES.iter().any(|(name, _)| entry.file_name() == *name);
        if !known {
            let path = entry.path();
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
    }
    for (name, len) in FILES {
        if fs::metadata(folder.join(name)).is_ok_and(|data| data.len() == len as u64) {
            continue;
        }
        fs::write(folder.join(name), vec![0; len]).expect("a small file");
    }
}

/// A whole session.
fn talk(bytes: &[u8], sessions: &Sender<Commands>) -> bool {
    let Some((flags, mut rest)) = bytes.split_first() else { return false };
    let bell = EventFd::new(libc::EFD_NONBLOCK).expect("an event counter");
    let (controller, commands) = connect(Arc::new(bell)).expect("a pair of ends");
    sessions.send(commands).expect("somebody who obeys");
    let metadata = Mmds::new(METADATA).into_shared();
    let options = Options { id: "fuzz".to_owned(), boot_timer: false, metadata };
    // With a configuration the VM has begun already, and waits for nobody.
    let launched = (flags & 1 != 0).then(|| VmConfig::new("vmlinux"));
    let mut session = Session::new(&options, controller, launched);
    let mut fine = false;
    loop {
        match parse(rest, LIMITS) {
            Ok(Parsed::Partial { .. }) => {
                assert!(rest.len() < LIMITS.head + LIMITS.body, "a request that is too long is waited for");
                return fine;
            }
            Ok(Parsed::Complete(request, len)) => {
                assert!(len > 0 && len <= rest.len() && request.body.len() <= LIMITS.body);
                let response = session.answer(&request);
                judge(&request, &response);
                fine |= matches!(response.status.code(), 200 | 204);
                rest = &rest[len..];
                if !request.keep_alive {
                    return fine;
                }
            }
            Err(rejected) => {
                assert!([400, 413, 417, 431].contains(&rejected.status.code()));
                faulty(&Response::fault(rejected.status, &rejected.message));
                return false;
            }
        }
    }
}

/// Panics unless this is a response of the API's document.
fn judge(request: &Request, response: &Response) {
    match (response.status.code(), &response.body) {
        (204, None) => {}
        (200, Some(body)) => {
            let value: Value = serde_json::from_str(body).expect("a body is JSON");
            if request.path.trim_end_matches('/') == "/vm/config" {
                let config: Result<VmConfig, _> = serde_json::from_value(value);
                assert!(config.is_ok_and(|config| config.check().is_ok()));
            }
        }
        (400 | 413, Some(_)) => faulty(response),
        other => panic!("{} {}: {other:?}", request.method, request.path),
    }
    let bytes = response.to_bytes(request.keep_alive);
    let mut headers = [httparse::EMPTY_HEADER; 8];
    let mut parsed = httparse::Response::new(&mut headers);
    let head = parsed.parse(&bytes).expect("a response").unwrap();
    assert_eq!(parsed.code, Some(response.status.code()));
    assert_eq!(&bytes[head..], response.body.as_deref().unwrap_or_default().as_bytes());
}

fn faulty(response: &Response) {
    let body = response.body.as_deref().expect("a fault has a body");
    let value: Value = serde_json::from_str(body).expect("a body is JSON");
    let message = value.get("fault_message").and_then(Value::as_str);
    assert!(message.is_some_and(|message| !message.is_empty()), "{body}");
    // Whatever a client has sent, it gets no more back than it takes to see its mistake.
    assert!(body.len() <= 8 * (LIMITS.head + LIMITS.body), "a fault of {} bytes", body.len());
}

/// Carries out the commands of one session, as the main thread does, without vCPUs.
fn obey(commands: &Commands) {
    let mut events: Option<EventLoop> = None;
    while let Some(command) = commands.wait() {
        match command {
            Command::Start(config, reply) => {
                let built = if events.is_some() { Err(ControlError::AlreadyStarted) } else { build(&config) };
                reply.send(built.map(|built| {
                    events = Some(built);
                    commands.set_state(VmState::Running);
                }));
            }
            Command::LoadSnapshot { files, request, reply, .. } => {
                let state = snapshot::read(&files.state).and_then(|state| state.config(&request));
                let loaded = state.map(|config| (Box::new(config), files.memory.file()));
                reply.send(loaded.map_err(|error| ControlError::Failed(error.to_string())));
            }
            // There are no vCPUs whose state could be saved.
            Command::CreateSnapshot { reply, .. } => reply.send(Err(ControlError::NotPaused)),
            Command::Pause(reply) => reply.send(change(commands, events.is_some(), VmState::Paused)),
            Command::Resume(reply) => reply.send(change(commands, events.is_some(), VmState::Running)),
            Command::Device(work) => work(events.as_ref()),
            Command::SendCtrlAltDel(reply) | Command::FlushMetrics(reply) => reply.send(Ok(())),
        }
    }
}

fn change(commands: &Commands, started: bool, state: VmState) -> Result<(), ControlError> {
    if !started {
        return Err(ControlError::NotStarted);
    }
    commands.set_state(state);
    Ok(())
}

/// The virtio devices of a configuration, on an event loop.
fn build(config: &VmConfig) -> Result<EventLoop, ControlError> {
    let metadata: SharedMmds = Mmds::new(METADATA).into_shared();
    let made = devices::virtio(config, &metadata).map_err(|error| ControlError::Failed(error.to_string()))?;
    let mut events = EventLoop::new().map_err(|error| ControlError::Failed(error.to_string()))?;
    let ram = memory::reserve();
    for device in made {
        let line = EventFd::new(libc::EFD_NONBLOCK).expect("an event counter");
        let slot = Slot::new(device, ram.clone(), line).map_err(|error| ControlError::Failed(error.to_string()))?;
        events.add(slot).map_err(|error| ControlError::Failed(error.to_string()))?;
    }
    Ok(events)
}

fn request(method: &str, path: &str, body: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// The examples of the API's document, by path and method.
fn examples() -> Vec<(String, String, String)> {
    let document = include_str!("../../../vmm/openapi/portcullis-vmm.json");
    let document: Value = serde_json::from_str(document).expect("the document is JSON");
    let mut found = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let example = &operation["requestBody"]["content"]["application/json"]["example"];
            let body = if example.is_null() { String::new() } else { example.to_string() };
            let name = if path.contains("drives") { "rootfs" } else { "eth0" };
            found.push((method.to_uppercase(), path.replace("{id}", name).replace("{drive_id}", name), body));
        }
    }
    found
}

fn seeds() -> Vec<Vec<u8>> {
    let mut texts: Vec<String> = examples().iter().map(|(method, path, body)| request(method, path, body)).collect();
    let start = [
        request("PUT", "/boot-source", r#"{"kernel_image_path":"vmlinux"}"#),
        request("PUT", "/drives/d", r#"{"drive_id":"d","path_on_host":"disk","is_root_device":true}"#),
        request("PUT", "/balloon", r#"{"amount_mib":1,"deflate_on_oom":true,"stats_polling_interval_s":1}"#),
        request("PUT", "/entropy", "{}"),
        request("PUT", "/actions", r#"{"action_type":"InstanceStart"}"#),
    ]
    .concat();
    let after = [
        request("PATCH", "/drives/d", r#"{"drive_id":"d","path_on_host":"memory"}"#),
        request("PATCH", "/balloon", r#"{"amount_mib":2}"#),
        request("GET", "/balloon/statistics", ""),
        request("PATCH", "/vm", r#"{"state":"Paused"}"#),
        request("PUT", "/snapshot/create", r#"{"snapshot_path":"s","mem_file_path":"m"}"#),
        request("PATCH", "/vm", r#"{"state":"Resumed"}"#),
        request("GET", "/vm/config", ""),
    ]
    .concat();
    let metadata = [
        request("PUT", "/mmds", r#"{"a":{"b":"c"}}"#),
        request("PATCH", "/mmds", r#"{"a":{"b":null}}"#),
        request("GET", "/mmds", ""),
        request("GET", "/vm/config", ""),
        request("PATCH", "/machine-config", r#"{"vcpu_count":2}"#),
        request("PUT", "/logger", r#"{"log_path":"log","level":"Info"}"#),
        request("PUT", "/metrics", r#"{"metrics_path":"metrics"}"#),
    ];
    texts.extend([start.clone() + &after, metadata.concat()]);
    let load = r#"{"snapshot_path":"state","mem_backend":{"backend_type":"File","backend_path":"memory"}}"#;
    texts.push(request("PUT", "/snapshot/load", load));
    // A body and a head of the most bytes, and of one more.
    let text = |len: usize| format!("\"{}\"", "x".repeat(len - 2));
    texts.extend([LIMITS.body, LIMITS.body + 1].map(|len| request("PUT", "/mmds", &text(len))));
    texts.extend(
        [LIMITS.head - 1, LIMITS.head, LIMITS.head + LIMITS.body]
            .map(|len| format!("{:x<len$}", "GET / HTTP/1.1\r\nA: ")),
    );
    // Each part of a configuration as a request.
    let whole: Value = serde_json::from_slice(&configurations()[0]).expect("JSON");
    for part in ["machine-config", "vsock", "balloon", "mmds-config", "serial"] {
        let path = format!("/{}", part.replace("mmds-config", "mmds/config"));
        texts.push(request("PUT", &path, &whole[part].to_string()) + &request("GET", "/vm/config", ""));
    }
    texts.iter().flat_map(|text| [0, 1].map(|flags| [&[flags], text.as_bytes()].concat())).collect()
}
