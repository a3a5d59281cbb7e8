use super::*;
use std::sync::mpsc::{Receiver, channel};

struct Running {
    dir: tempfile::TempDir,
    machine: Machine,
    wakes: Receiver<Wake>,
}

/// Runs a shell script in the VMM's place.
fn run(script: &str, max_log_bytes: u64) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("vmm");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let (send, wakes) = channel();
    let path = |name: &str| dir.path().join(name);
    let setup = MachineSetup {
        order: "0123",
        program: &program,
        config: &path("config.json"),
        console: &path("console.log"),
        log: &path("vmm.log"),
        max_log_bytes,
    };
    let machine = Machine::start(&setup, &send).unwrap();
    Running { dir, machine, wakes }
}

impl Running {
    /// Everything the VM says until both streams are closed.
    fn events(&self) -> Vec<MachineEvent> {
        let mut events = Vec::new();
        while events.iter().filter(|event| **event == MachineEvent::Closed).count() < 2 {
            match self.wakes.recv_timeout(Duration::from_secs(20)).unwrap() {
                Wake::Machine(order, event) => {
                    assert_eq!(order, "0123");
                    events.push(event);
                }
                Wake::Stop => panic!("nobody asked to stop"),
            }
        }
        events.retain(|event| *event != MachineEvent::Closed);
        events
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap()
    }
}

#[test]
fn what_a_vm_said_last_is_there_when_it_has_ended() {
    let mut running = run(
        r#"head -c 1000000 /dev/zero >&2
           echo >&2
           echo '{"timestamp":"t","level":"INFO","event":"end","reason":"power-off","run_us":5,"serial_out":1,"serial_lost":0}' >&2"#,
        4096,
    );
    while running.machine.ended().is_none() {
        std::thread::yield_now();
    }
    running.machine.wait_for_last_words();
    let told: Vec<Wake> = running.wakes.try_iter().collect();
    let end = |wake: &Wake| matches!(wake, Wake::Machine(_, MachineEvent::Ending(_)));
    assert!(told.iter().any(end), "the end was not told: {} events", told.len());
}

#[test]
fn the_boot_mark_the_kernel_and_the_end_are_told() {
    let mut running = run(
        r#"echo "[    0.000000] Linux version 6.1.0-40-cloud-amd64 (debian-kernel@lists.debian.org) (gcc-12)"
           echo '{"timestamp":"t","level":"INFO","event":"guest-boot","source":"port80","value":65,"boot_us":2345678,"cpu_us":1}' >&2
           echo 'not json' >&2
           echo '{"timestamp":"t","level":"INFO","event":"guest-boot","source":"port80","value":65,"boot_us":9999999,"cpu_us":1}' >&2
           echo '{"timestamp":"t","level":"INFO","event":"end","reason":"reset","run_us":5,"serial_out":1,"serial_lost":0}' >&2"#,
        4096,
    );
    let events = running.events();
    for event in [
        MachineEvent::Kernel("6.1.0-40-cloud-amd64".into()),
        MachineEvent::Booted(2345),
        MachineEvent::Ending("the guest reset itself".into()),
    ] {
        assert_eq!(events.iter().filter(|other| **other == event).count(), 1, "{event:?} in {events:?}");
    }
    assert_eq!(events.len(), 3);
    running.machine.end();
    assert!(running.machine.ended().unwrap().success());
    assert!(running.read("console.log").contains("Linux version"));
    assert!(running.read("vmm.log").contains("not json"));
}

#[test]
fn a_flood_is_cut_and_does_not_stop_the_guest() {
    let running = run("head -c 3000000 /dev/zero | tr '\\0' x; head -c 3000000 /dev/zero >&2", 4096);
    assert!(running.events().is_empty());
    for name in ["console.log", "vmm.log"] {
        let text = running.read(name);
        assert!(text.len() < 4096 + 100 && text.ends_with("is dropped]\n"), "{name}: {} bytes", text.len());
    }
}

#[test]
fn a_vm_that_ignores_sigterm_is_killed() {
    let mut running = run("trap '' TERM; echo ready; while :; do sleep 0.1; done", 4096);
    while running.read("console.log").is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let started = Instant::now();
    running.machine.end();
    assert!(started.elapsed() >= GRACE && running.machine.ended().is_some());
    assert!(running.events().is_empty());
}

#[test]
fn a_dropped_machine_leaves_no_process() {
    let running = run("echo $$; exec sleep 100", 4096);
    while !running.read("console.log").ends_with('\n') {
        std::thread::sleep(Duration::from_millis(5));
    }
    let process = Path::new("/proc").join(running.read("console.log").trim());
    assert!(process.exists());
    drop(running.machine);
    assert!(!process.exists());
}

#[test]
fn a_release_of_the_guests_choice_is_harmless() {
    assert_eq!(release(b"Linux version 6.1\x1b[2J (x)"), Some("6.1".into()));
    assert_eq!(release(b"Linux version 6.1"), None);
    assert_eq!(release(b"Linux version  x"), None);
    assert_eq!(release(format!("Linux version {} ", "9".repeat(500)).as_bytes()).unwrap().len(), 64);
}

#[test]
fn words_for_receipts_are_printable() {
    let text = ending(EndReason::Error, Some("kvm.internal"), Some(&"a\u{1b}[2J\n".repeat(1000)));
    assert!(text.starts_with("kvm.internal: a") && text.chars().count() == 1000);
    assert!(!text.contains(|c: char| c.is_control()));
}

#[test]
fn a_missing_vmm_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (send, _wakes) = channel();
    let setup = MachineSetup {
        order: "0123",
        program: Path::new("/nonexistent/portcullis-vmm"),
        config: dir.path(),
        console: &dir.path().join("console.log"),
        log: &dir.path().join("vmm.log"),
        max_log_bytes: 4096,
    };
    let error = Machine::start(&setup, &send).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/portcullis-vmm"), "{error}");
}
