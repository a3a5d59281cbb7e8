//! The life of a VM by requests.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use serde_json::json;

use crate::client::{Vmm, command};
use crate::guest::Guest;

#[test]
fn a_vm_is_configured_started_paused_resumed_and_ends() {
    let mut vmm = Vmm::new();
    assert_eq!(vmm.state(), "Not started");
    vmm.boot_source(&Guest::new().print("ready").hang());
    vmm.act("InstanceStart");
    vmm.wait_for("ready");
    assert_eq!(vmm.state(), "Running");
    vmm.must("PATCH", "/vm", &json!({"state": "Paused"}));
    assert_eq!(vmm.state(), "Paused");
    vmm.must("PATCH", "/vm", &json!({"state": "Resumed"}));
    assert_eq!(vmm.state(), "Running");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(vmm.pid()).unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert!(vmm.end().success(), "{}", vmm.read("errors"));
    assert!(!vmm.socket().exists(), "the socket is left behind");
}

#[test]
fn a_guest_that_ends_ends_the_process_and_removes_the_socket() {
    let mut vmm = Vmm::new();
    vmm.boot_source(&Guest::new().print("x").reset());
    vmm.act("InstanceStart");
    assert!(vmm.end().success());
    assert!(!vmm.socket().exists());
    assert!(vmm.read("vm.log").contains(r#""reason":"reset""#));
}

#[test]
fn a_start_that_fails_can_be_tried_again() {
    let mut vmm = Vmm::new();
    vmm.refused("PUT", "/actions", Some(&json!({"action_type": "InstanceStart"})), "kernel");
    let gone = vmm.dir.path().join("gone");
    std::fs::write(&gone, "here").unwrap();
    vmm.must("PUT", "/boot-source", &json!({"kernel_image_path": gone}));
    std::fs::remove_file(&gone).unwrap();
    vmm.refused("PUT", "/actions", Some(&json!({"action_type": "InstanceStart"})), "gone");
    assert_eq!(vmm.state(), "Not started");
    // This one is found out only when the devices are there.
    let socket = vmm.dir.path().join("v.sock");
    vmm.must("PUT", "/vsock", &json!({"guest_cid": 3, "uds_path": socket}));
    let text = vmm.dir.path().join("text");
    std::fs::write(&text, "not a kernel").unwrap();
    vmm.must("PUT", "/boot-source", &json!({"kernel_image_path": text}));
    vmm.refused("PUT", "/actions", Some(&json!({"action_type": "InstanceStart"})), "neither a bzImage nor");
    assert!(!socket.exists(), "the socket of vsock is left behind");
    vmm.boot_source(&Guest::new().print("ready").hang());
    vmm.act("InstanceStart");
    vmm.wait_for("ready");
    assert!(socket.exists());
}

#[test]
fn the_socket_is_the_owners_and_taken_only_once() {
    let mut vmm = Vmm::new();
    let mode = || std::fs::metadata(vmm.socket()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    let second = || command(vmm.dir.path()).stderr(Stdio::piped()).output().unwrap();
    let refused = second();
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && errors.contains("api.sock"), "{errors}");
    // The first goes on.
    assert_eq!(vmm.state(), "Not started");
    // What a killed VM leaves is not taken over either: it might be somebody's.
    vmm.kill();
    assert!(vmm.socket().exists());
    let refused = command(vmm.dir.path()).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    std::fs::remove_file(vmm.socket()).unwrap();
}
