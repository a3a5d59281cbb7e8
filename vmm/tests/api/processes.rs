//! A VMM that may not make as many processes and threads as it needs.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use serde_json::json;

use crate::client::{self, LIMIT, Vmm};
use crate::guest::Guest;

/// A control group of its own with a limit on processes. Only root can make one.
struct Group(PathBuf);

impl Group {
    fn new(max: u32) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // cgroup v1 has the controller in a hierarchy of its own.
        let root = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new).into_iter().find(|root| root.is_dir());
        let name = format!("portcullis-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::SeqCst));
        let group = Self(root.expect("no cgroup file system").join(name));
        std::fs::create_dir(&group.0).expect("ATTENTION: cannot make a cgroup, so no limit was tried");
        group.limit(max);
        group
    }

    fn limit(&self, max: u32) {
        std::fs::write(self.0.join("pids.max"), max.to_string()).unwrap();
    }

    /// Lets the program of `command` run in this group.
    fn confine(&self, command: &mut Command) {
        let procs = std::fs::File::options().write(true).open(self.0.join("cgroup.procs")).unwrap();
        // SAFETY: only a system call between fork and exec.
        unsafe { command.pre_exec(move || (&procs).write_all(b"0")) };
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let limit = Instant::now() + LIMIT;
        // The kernel takes a moment to forget who has ended.
        while std::fs::remove_dir(&self.0).is_err() && Instant::now() < limit {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

#[test]
fn a_limit_on_processes_is_an_error_and_never_a_silent_wait() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("kernel"), Guest::new().reset().elf()).unwrap();
    let config = json!({"boot-source": {"kernel_image_path": at("kernel")},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 4}});
    std::fs::write(at("vm.json"), config.to_string()).unwrap();
    let mut codes = Vec::new();
    for max in 1..=4 {
        let group = Group::new(max);
        let mut command = client::program();
        command.arg("--config-file").arg(at("vm.json")).stdin(Stdio::null()).stderr(Stdio::piped());
        group.confine(&mut command);
        let mut child = command.spawn().unwrap();
        let begin = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if begin.elapsed() > LIMIT / 4 {
                child.kill().unwrap();
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = output.status.code();
        assert!(code == Some(0) || code == Some(3) && errors.contains("pids.max"), "{max}: {code:?} {errors}");
        codes.push(code);
    }
    assert_eq!((codes.first(), codes.last()), (Some(&Some(3)), Some(&Some(0))), "{codes:?}");
}

#[test]
fn kvms_own_thread_that_cannot_be_made_is_named_and_the_load_can_be_tried_again() {
    let mut first = Vmm::new();
    first.boot_source(&Guest::new().print("ready").hang());
    first.act("InstanceStart");
    first.wait_for("ready");
    first.must("PATCH", "/vm", &json!({"state": "Paused"}));
    let (state, memory) = (first.dir.path().join("state"), first.dir.path().join("memory"));
    first.must("PUT", "/snapshot/create", &json!({"snapshot_path": state, "mem_file_path": memory}));

    // The main thread and the API's, and none beside.
    let group = Group::new(2);
    let dir = tempfile::tempdir().unwrap();
    let mut command = client::command(dir.path());
    group.confine(&mut command);
    let vmm = Vmm::run(command, dir);
    let load = json!({"snapshot_path": state, "resume_vm": true,
        "mem_backend": {"backend_type": "File", "backend_path": memory}});
    vmm.refused("PUT", "/snapshot/load", Some(&load), "run it for the first time");
    vmm.refused("PUT", "/snapshot/load", Some(&load), "pids.max");
    assert_eq!(vmm.state(), "Not started");
    group.limit(4);
    vmm.must("PUT", "/snapshot/load", &load);
    assert_eq!(vmm.state(), "Running");
}
