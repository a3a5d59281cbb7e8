//! What may be asked when.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use serde_json::{Value, json};

use crate::client::{Vmm, command, program};
use crate::guest::Guest;
use crate::tap::TestTap;

const EARLY: &str = "before starting the microVM";
const LATE: &str = "after starting the microVM";

/// A drive's file of some sectors.
fn disk(vmm: &Vmm, name: &str, sectors: usize) -> String {
    let path = vmm.dir.path().join(name);
    std::fs::write(&path, vec![7; sectors * 512]).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Everything that belongs before the start, with a body that is accepted there.
fn configuration(vmm: &Vmm) -> Vec<(&'static str, &'static str, Value)> {
    let at = |name: &str| vmm.dir.path().join(name);
    std::fs::write(at("kernel"), Guest::new().print("ready").hang().elf()).unwrap();
    vec![
        ("PUT", "/logger", json!({"log_path": at("other.log"), "level": "debug", "show_level": true})),
        ("PUT", "/metrics", json!({"metrics_path": at("metrics")})),
        ("PUT", "/boot-source", json!({"kernel_image_path": at("kernel"), "boot_args": "quiet"})),
        ("PUT", "/machine-config", json!({"vcpu_count": 1, "mem_size_mib": 4})),
        ("PATCH", "/machine-config", json!({"vcpu_count": 2})),
        (
            "PUT",
            "/drives/root",
            json!({"drive_id": "root", "path_on_host": disk(vmm, "a.img", 8),
            "is_root_device": true, "is_read_only": true}),
        ),
        ("PUT", "/vsock", json!({"guest_cid": 3, "uds_path": at("v.sock")})),
        ("PUT", "/entropy", json!({})),
        ("PUT", "/balloon", json!({"amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 1})),
        ("PUT", "/serial", json!({})),
    ]
}

/// Everything that needs a VM, with a body that is accepted for a paused one.
fn commands(vmm: &Vmm) -> Vec<(&'static str, &'static str, Value)> {
    let at = |name: &str| vmm.dir.path().join(name);
    vec![
        ("PATCH", "/vm", json!({"state": "Paused"})),
        ("PATCH", "/drives/root", json!({"drive_id": "root", "path_on_host": disk(vmm, "b.img", 16)})),
        ("PATCH", "/balloon", json!({"amount_mib": 2})),
        ("PATCH", "/balloon/statistics", json!({"stats_polling_interval_s": 5})),
        ("PUT", "/snapshot/create", json!({"snapshot_path": at("state"), "mem_file_path": at("memory")})),
        ("PUT", "/actions", json!({"action_type": "SendCtrlAltDel"})),
        ("PUT", "/actions", json!({"action_type": "FlushMetrics"})),
        ("PATCH", "/vm", json!({"state": "Resumed"})),
    ]
}

#[test]
fn each_request_is_for_before_or_after_the_start() {
    let mut vmm = Vmm::new();
    let start = json!({"action_type": "InstanceStart"});
    let load = json!({"snapshot_path": "/x", "mem_file_path": "/y"});
    let reads = ["/", "/version", "/machine-config", "/vm/config", "/balloon"];
    let commands = commands(&vmm);
    for (method, path, body) in &commands {
        vmm.refused(method, path, Some(body), EARLY);
    }
    vmm.refused("GET", "/balloon/statistics", None, EARLY);
    vmm.refused("GET", "/balloon", None, "no balloon");
    let configuration = configuration(&vmm);
    for (method, path, body) in &configuration {
        vmm.must(method, path, body);
    }
    vmm.refused("PUT", "/snapshot/load", Some(&load), "not allowed after configuring");
    for path in reads {
        assert_eq!(vmm.get(path).0, 200, "{path}");
    }
    vmm.act("InstanceStart");
    vmm.wait_for("ready");
    for (method, path, body) in &configuration {
        vmm.refused(method, path, Some(body), LATE);
    }
    vmm.refused("PUT", "/actions", Some(&start), LATE);
    vmm.refused("PUT", "/snapshot/load", Some(&load), LATE);
    vmm.refused("PUT", "/snapshot/create", Some(&commands[4].2), "paused");
    for (method, path, body) in &commands {
        vmm.must(method, path, body);
    }
    assert_eq!(vmm.get("/balloon/statistics").0, 200);
    for path in reads {
        assert_eq!(vmm.get(path).0, 200, "{path}");
    }
    let config = vmm.get("/vm/config").1;
    assert!(config["drives"][0]["path_on_host"].as_str().unwrap().ends_with("b.img"), "{config}");
    assert_eq!((&config["balloon"]["amount_mib"], &config["machine-config"]["vcpu_count"]), (&json!(2), &json!(2)));
    assert_eq!(vmm.get("/balloon").1["stats_polling_interval_s"], 5);
    assert!(vmm.read("other.log").contains(r#""event":"running""#), "the log went elsewhere");
}

#[test]
fn a_request_that_is_refused_changes_nothing() {
    let vmm = Vmm::new();
    vmm.must("PUT", "/machine-config", &json!({"vcpu_count": 3, "mem_size_mib": 64}));
    for body in [
        json!({"vcpu_count": 0}),
        json!({"vcpu_count": 2, "mem_size_mib": 0}),
        json!({"smt": true}),
        json!({"vcpu_count": 2, "huge_pages": "1G"}),
        json!({"vcpu_count": 2, "colour": 1}),
        json!({}),
    ] {
        vmm.refused("PATCH", "/machine-config", Some(&body), "");
    }
    vmm.must("PATCH", "/machine-config", &json!({"vcpu_count": 4, "smt": true}));
    vmm.must("PATCH", "/machine-config", &json!({"vcpu_count": 3, "smt": false}));
    vmm.must("PATCH", "/machine-config", &json!({"mem_size_mib": 65, "cpu_template": null}));
    let machine = vmm.get("/machine-config").1;
    assert_eq!((&machine["vcpu_count"], &machine["mem_size_mib"]), (&json!(3), &json!(65)));
    // A balloon larger than the memory, and then memory smaller than the balloon.
    vmm.refused("PUT", "/balloon", Some(&json!({"amount_mib": 66, "deflate_on_oom": false})), "amount_mib");
    vmm.must("PUT", "/balloon", &json!({"amount_mib": 65, "deflate_on_oom": false}));
    vmm.refused("PATCH", "/machine-config", Some(&json!({"mem_size_mib": 64})), "amount_mib");
    assert_eq!(vmm.get("/machine-config").1["mem_size_mib"], 65);
}

#[test]
fn the_machine_is_shown_as_firecracker_shows_it() {
    let vmm = Vmm::new();
    let shown =
        json!({"vcpu_count": 1, "mem_size_mib": 128, "smt": false, "track_dirty_pages": false, "huge_pages": "None"});
    assert_eq!(vmm.get("/machine-config"), (200, shown.clone()));
    vmm.must("PUT", "/machine-config", &shown);
    assert_eq!(vmm.get("/vm/config").1["machine-config"], shown);
}

#[test]
fn devices_for_which_there_is_no_place_are_refused_at_once() {
    let vmm = Vmm::new();
    let file = disk(&vmm, "x", 1);
    let put = |n: usize| {
        let drive = json!({"drive_id": format!("d{n}"), "path_on_host": file, "is_root_device": false});
        vmm.put(&format!("/drives/d{n}"), &drive)
    };
    assert!((0..16).all(|n| put(n).0 == 204));
    vmm.refused("PUT", "/entropy", Some(&json!({})), "at most 16");
    assert_eq!((put(16).0, put(3).0), (400, 204));
}

#[test]
fn metrics_that_cannot_be_written_are_tried_again_and_the_client_is_told() {
    let mut vmm = Vmm::with(&["--metrics-path", "/dev/full", "--api-dir", "/dev/full"]);
    vmm.boot_source(&Guest::new().print("ready").hang());
    vmm.act("InstanceStart");
    vmm.wait_for("ready");
    for _ in 0..2 {
        vmm.refused("PUT", "/actions", Some(&json!({"action_type": "FlushMetrics"})), "cannot write metrics");
    }
    assert_eq!(vmm.state(), "Running");
}

#[test]
fn metadata_is_put_patched_and_bounded_at_any_time() {
    let tap = TestTap::new();
    let mut vmm = Vmm::with(&["--mmds-size-limit", "100"]);
    assert_eq!(vmm.get("/mmds"), (200, json!({})));
    vmm.refused("PATCH", "/mmds", Some(&json!({"a": 1})), "PUT it first");
    vmm.must("PUT", "/mmds", &json!("text"));
    assert_eq!(vmm.get("/mmds"), (200, json!("text")));
    vmm.must("PUT", "/mmds", &json!({"latest": {"id": "i-1", "name": "web"}}));
    vmm.refused("PUT", "/mmds/config", Some(&json!({"network_interfaces": ["eth0"]})), "eth0");
    vmm.must("PUT", "/network-interfaces/eth0", &json!({"iface_id": "eth0", "host_dev_name": tap.name}));
    vmm.must("PUT", "/mmds/config", &json!({"network_interfaces": ["eth0"], "version": "V2"}));
    vmm.boot_source(&Guest::new().print("ready").hang());
    vmm.act("InstanceStart");
    vmm.wait_for("ready");
    vmm.must("PATCH", "/mmds", &json!({"latest": {"name": null, "zone": 7}}));
    let expected = json!({"latest": {"id": "i-1", "zone": 7}});
    assert_eq!(vmm.get("/mmds"), (200, expected.clone()));
    let (status, _) = vmm.put("/mmds", &json!({"long": "x".repeat(100)}));
    assert_eq!((status, vmm.get("/mmds").1), (413, expected));
    vmm.refused("PUT", "/mmds/config", Some(&json!({"network_interfaces": ["eth0"]})), LATE);
}

#[test]
fn a_vm_without_a_metadata_service_has_no_metadata_once_it_runs() {
    let mut vmm = Vmm::new();
    vmm.must("PUT", "/mmds", &json!({"a": 1}));
    vmm.boot_source(&Guest::new().print("ready").hang());
    vmm.act("InstanceStart");
    vmm.wait_for("ready");
    vmm.refused("GET", "/mmds", None, "/mmds/config");
    vmm.refused("PUT", "/mmds", Some(&json!({"a": 1})), "/mmds/config");
    vmm.refused("PATCH", "/mmds", Some(&json!({"a": 1})), "/mmds/config");
}

#[test]
fn what_is_not_there_is_found_when_it_is_named() {
    let vmm = Vmm::new();
    let (file, absent) = (disk(&vmm, "x", 1), "/nonexistent/file");
    let taken = vmm.dir.path().join("errors");
    for (path, body, word) in [
        ("/boot-source", json!({"kernel_image_path": absent}), absent),
        ("/boot-source", json!({"kernel_image_path": file, "initrd_path": absent}), absent),
        ("/drives/d", json!({"drive_id": "d", "path_on_host": absent, "is_root_device": false}), absent),
        ("/network-interfaces/e", json!({"iface_id": "e", "host_dev_name": "pct-no-such"}), "ip tuntap add"),
        ("/vsock", json!({"guest_cid": 3, "uds_path": taken}), "exists already"),
    ] {
        vmm.refused("PUT", path, Some(&body), word);
    }
    let config = vmm.get("/vm/config").1;
    assert_eq!(
        (&config["drives"], &config["network-interfaces"], &config["vsock"]),
        (&json!([]), &json!([]), &json!(null))
    );
    assert_eq!(config["boot-source"]["kernel_image_path"], "");
    // What was looked at is nobody's before the start: the socket is not there, and the disk is not locked.
    let socket = vmm.dir.path().join("v.sock");
    vmm.must("PUT", "/vsock", &json!({"guest_cid": 3, "uds_path": socket}));
    vmm.must("PUT", "/drives/d", &json!({"drive_id": "d", "path_on_host": file, "is_root_device": false}));
    assert!(!socket.exists());
    std::fs::File::open(file).unwrap().try_lock().unwrap();
}

#[test]
fn a_snapshot_is_written_described_and_loaded() {
    let mut vmm = Vmm::new();
    let folder = vmm.dir.path().to_owned();
    let at = |name: &str| folder.join(name);
    let (state, memory) = (at("state"), at("memory"));
    vmm.boot_source(&Guest::new().print("ready").hang());
    vmm.act("InstanceStart");
    vmm.wait_for("ready");
    vmm.must("PATCH", "/vm", &json!({"state": "Paused"}));
    vmm.must("PUT", "/snapshot/create", &json!({"snapshot_path": state, "mem_file_path": memory}));
    let describe = |path: &std::path::Path| {
        let mut command = program();
        command.arg("--describe-snapshot").arg(path).output().unwrap()
    };
    assert_eq!(describe(&state).stdout, b"v3\n");
    assert_eq!(describe(&memory).status.code(), Some(2));

    let other = Vmm::new();
    let load = |memory: &std::path::Path| {
        json!({"snapshot_path": state, "resume_vm": true,
        "mem_backend": {"backend_type": "File", "backend_path": memory}})
    };
    other.refused("PUT", "/snapshot/load", Some(&load(&at("absent"))), "absent");
    other.must("PUT", "/snapshot/load", &load(&memory));
    assert_eq!(other.state(), "Running");
    let config = other.get("/vm/config").1;
    assert!(config["boot-source"]["kernel_image_path"] == json!(at("kernel")), "{config}");
    assert_eq!(config["machine-config"]["mem_size_mib"], 4);
    // Its memory is mapped from this file.
    other.must("PATCH", "/vm", &json!({"state": "Paused"}));
    let again = json!({"snapshot_path": at("state2"), "mem_file_path": memory});
    other.refused("PUT", "/snapshot/create", Some(&again), "mapped");
    // Nor may the VM that has made it, or any other, take it away.
    let elsewhere = json!({"snapshot_path": at("state3"), "mem_file_path": memory});
    vmm.refused("PUT", "/snapshot/create", Some(&elsewhere), "mapped");
    other.must("PUT", "/snapshot/create", &json!({"snapshot_path": at("state2"), "mem_file_path": at("memory2")}));
    other.must("PATCH", "/vm", &json!({"state": "Resumed"}));
}

/// What lies in a folder, with permissions and length.
fn listing(folder: &std::path::Path) -> Vec<(String, u32, u64)> {
    let entry = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.unwrap();
        let data = entry.metadata().unwrap();
        (entry.file_name().into_string().unwrap(), data.permissions().mode() & 0o777, data.len())
    };
    let mut all: Vec<_> = std::fs::read_dir(folder).unwrap().map(entry).collect();
    all.sort();
    all
}

#[test]
fn a_snapshot_that_fails_leaves_nothing_and_one_that_is_made_is_its_owners_alone() {
    // Not the socket's folder: elsewhere the confined thread may remove no file.
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let dir = tempfile::tempdir().unwrap();
    let mut command = command(dir.path());
    // A disk that is full for this process only, before the memory is written.
    // SAFETY: only a system call between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: 2 << 20, rlim_max: libc::RLIM_INFINITY };
            libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit);
            Ok(())
        });
    }
    let mut vmm = Vmm::run(command, dir);
    vmm.boot_source(&Guest::new().print("ready").hang());
    vmm.act("InstanceStart");
    vmm.wait_for("ready");
    vmm.must("PATCH", "/vm", &json!({"state": "Paused"}));
    let create = |state: &str, memory: &str| json!({"snapshot_path": at(state), "mem_file_path": at(memory)});
    for (memory, word) in [("no/folder", "no/folder"), ("", "create"), ("memory", "too large")] {
        vmm.refused("PUT", "/snapshot/create", Some(&create("state", memory)), word);
        assert_eq!(listing(folder.path()), [], "{memory}");
    }
    assert_eq!(vmm.state(), "Paused");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(vmm.pid()).unwrap());
    // There is room again. What others could read before, they cannot now.
    let most = portcullis_vmm::jail::FILE_FLOOR;
    let unlimited = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the limit is live, and nothing is read back.
    let set = unsafe { libc::prlimit(pid.as_raw(), libc::RLIMIT_FSIZE, &raw const unlimited, std::ptr::null_mut()) };
    assert_eq!(set, 0);
    for name in ["state", "memory"] {
        std::fs::write(at(name), "old").unwrap();
        std::fs::set_permissions(at(name), PermissionsExt::from_mode(0o644)).unwrap();
    }
    for names in [("state", "memory"), ("state2", "memory2")] {
        vmm.must("PUT", "/snapshot/create", &create(names.0, names.1));
    }
    let all = listing(folder.path());
    let found: Vec<_> = all.iter().map(|(name, mode, len)| (name.as_str(), *mode, *len > 3)).collect();
    assert_eq!(found, ["memory", "memory2", "state", "state2"].map(|name| (name, 0o600, true)));
    let load = |state: &str, memory: &str| json!({"snapshot_path": at(state), "mem_backend": {"backend_type": "File", "backend_path": at(memory)}});
    for names in [("state", "memory"), ("state2", "memory2")] {
        Vmm::new().must("PUT", "/snapshot/load", &load(names.0, names.1));
    }
}

#[test]
fn drives_are_replaced_by_name_and_only_one_is_the_root() {
    let vmm = Vmm::new();
    let file = disk(&vmm, "x", 1);
    let drive = |id: &str, root: bool| json!({"drive_id": id, "path_on_host": file, "is_root_device": root});
    vmm.must("PUT", "/drives/a", &drive("a", true));
    vmm.must("PUT", "/drives/b", &drive("b", false));
    vmm.refused("PUT", "/drives/b", Some(&drive("b", true)), "is_root_device");
    vmm.must("PUT", "/drives/a", &drive("a", false));
    vmm.must("PUT", "/drives/b", &drive("b", true));
    assert_eq!(vmm.get("/vm/config").1["drives"].as_array().unwrap().len(), 2);
    vmm.refused("PUT", "/drives/a", Some(&drive("b", false)), "names");
    vmm.refused("PUT", "/drives/a%62", Some(&drive("a", false)), "name in a path");
    vmm.refused("PUT", "/drives/", Some(&drive("a", false)), "Invalid request");
    vmm.refused("DELETE", "/drives/a", None, "not supported");
    let mut asynchronous = drive("a", false);
    asynchronous["io_engine"] = json!("Async");
    vmm.refused("PUT", "/drives/a", Some(&asynchronous), "io_engine");
}

#[test]
fn the_last_cpu_template_counts_and_is_tried_at_the_start() {
    let vmm = Vmm::new();
    for (method, path, body) in configuration(&vmm) {
        vmm.must(method, path, &body);
    }
    let leaf = |number: &str| {
        json!({"cpuid_modifiers": [{"leaf": number, "subleaf": "0x0", "flags": 0,
            "modifiers": [{"register": "ecx", "bitmap": "0b0"}]}]})
    };
    let start = |part: &str| vmm.refused("PUT", "/actions", Some(&json!({"action_type": "InstanceStart"})), part);
    vmm.must("PUT", "/cpu-config", &leaf("0x1234"));
    assert_eq!(vmm.get("/vm/config").1["cpu-config"], Value::Null);
    start("leaf 0x1234");
    // What is refused, and a size that says nothing of templates, change nothing.
    vmm.refused("PUT", "/cpu-config", Some(&json!({"vcpu_features": []})), "ARM");
    vmm.refused("PUT", "/cpu-config", Some(&json!({"msr_modifiers": [{"addr": "0x10", "bitmap": "0b1"}]})), "0x10");
    vmm.refused(
        "PUT",
        "/machine-config",
        Some(&json!({"vcpu_count": 1, "mem_size_mib": 4, "cpu_template": "T2"})),
        "as cpu-config",
    );
    vmm.must("PUT", "/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 4}));
    start("leaf 0x1234");
    vmm.must("PUT", "/cpu-config", &leaf("0x4321"));
    start("leaf 0x4321");
    vmm.must("PATCH", "/machine-config", &json!({"cpu_template": "None"}));
    vmm.act("InstanceStart");
    vmm.refused("PUT", "/cpu-config", Some(&leaf("0x1")), LATE);
}

#[test]
fn what_firecracker_has_and_this_has_not_is_named() {
    let vmm = Vmm::new();
    for (method, path, word) in [
        ("PUT", "/pmem/p", "pmem"),
        ("GET", "/hotplug/memory", "hotplug"),
        ("PATCH", "/balloon/hinting/start", "hinting"),
        ("PUT", "/nonsense", "Invalid request"),
        ("GET", "/boot-source", "Invalid request"),
    ] {
        let body = json!({});
        vmm.refused(method, path, Some(&body).filter(|_| method != "GET"), word);
    }
    vmm.must("PUT", "/logger", &json!({"show_log_origin": true, "show_level": true, "level": "Info", "module": "x"}));
    vmm.refused("PUT", "/logger", Some(&json!({"level": "loud"})), "logger.level");
    vmm.refused("PUT", "/entropy", Some(&json!([])), "object");
    vmm.refused("PUT", "/entropy", Some(&json!({"rate_limiter": []})), "object");
    vmm.refused("GET", "/version", Some(&json!({})), "cannot have a body");
    vmm.refused("PUT", "/vm", None, "Invalid request");
    vmm.refused("PATCH", "/vm", None, "Empty PATCH");
}

#[test]
fn a_configuration_file_and_the_api_go_together() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("kernel"), Guest::new().print("ready").hang().elf()).unwrap();
    let config = json!({
        "boot-source": {"kernel_image_path": at("kernel")},
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 4},
        "metrics": {"metrics_path": at("metrics")},
        "serial": {"serial_out_path": at("serial")},
    });
    std::fs::write(at("vm.json"), config.to_string()).unwrap();
    let mut command = crate::client::command(dir.path());
    command.arg("--config-file").arg(at("vm.json"));
    let mut vmm = Vmm::run(command, dir);
    vmm.refused("PUT", "/machine-config", Some(&json!({"vcpu_count": 2, "mem_size_mib": 4})), LATE);
    vmm.wait_until("the guest's line", |vmm| vmm.read("serial").contains("ready"));
    assert_eq!(vmm.read("output"), "");
    vmm.act("FlushMetrics");
    vmm.must("PATCH", "/vm", &json!({"state": "Paused"}));
    assert_eq!(vmm.get("/vm/config").1["serial"]["serial_out_path"], config["serial"]["serial_out_path"]);
}
