//! What is refused before a guest runs: exit code 2 for what was given, 3 for what the host lacks.

use std::path::Path;
use std::process::Command;

use portcullis_vmm::log::{Event, LogLine};

use crate::guest::Guest;
use crate::harness::{Setup, program, refused, with_config};

/// Asserts exit code and a message that names what matters.
fn expect(command: &mut Command, code: i32, parts: &[&str]) {
    let (found, errors) = refused(command);
    assert_eq!(found, code, "{errors}");
    for part in parts {
        assert!(errors.contains(part), "{part:?} is not in {errors:?}");
    }
}

fn config_text(text: &str) -> (tempfile::TempDir, Command) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.json");
    std::fs::write(&path, text).unwrap();
    let command = with_config(&path);
    (dir, command)
}

#[test]
fn bad_usage() {
    expect(&mut program(), 2, &["--config-file", "--api-sock"]);
    expect(program().arg("--no-api"), 2, &["--config-file"]);
    expect(program().arg("--api-sock"), 2, &["--api-sock"]);
    expect(program().args(["--config-file", "x", "--id", "a/b"]), 2, &["--id"]);
    expect(program().args(["--config-file", "x", "--level", "loud"]), 2, &["--level"]);
}

#[test]
fn help_and_version_are_given() {
    let help = program().arg("--help").output().unwrap();
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(help.status.success() && text.contains("Examples:") && text.contains("Exit codes:"));
    let version = program().arg("--version").output().unwrap();
    let expected = concat!("portcullis-vmm ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(String::from_utf8(version.stdout).unwrap(), expected);
}

#[test]
fn bad_configurations() {
    expect(&mut with_config(Path::new("/nonexistent.json")), 2, &["/nonexistent.json"]);
    let (_dir, mut command) = config_text("{\"boot-source\": ");
    expect(&mut command, 2, &["vm.json", "line 1"]);
    let (_dir, mut command) = config_text(r#"{"boot-source": {"kernel_image_path": "/k"}, "pmem": [{}]}"#);
    expect(&mut command, 2, &["'pmem'"]);
    let (_dir, mut command) = config_text(r#"{"boot-source": {"kernel_image_path": "/k"}, "colour": 1}"#);
    expect(&mut command, 2, &["colour"]);
}

#[test]
fn more_devices_than_there_are_places_are_refused() {
    let config = |drives: usize| {
        let drives: Vec<_> = (0..drives)
            .map(|n| serde_json::json!({"drive_id": format!("d{n}"), "path_on_host": "/nonexistent", "is_root_device": false}))
            .collect();
        serde_json::json!({"boot-source": {"kernel_image_path": "/k"}, "drives": drives, "entropy": {}}).to_string()
    };
    let (_dir, mut command) = config_text(&config(16));
    expect(&mut command, 2, &["17 virtio devices", "at most 16"]);
    let (_dir, mut command) = config_text(&config(15));
    expect(&mut command, 2, &["kernel", "/k"]);
}

#[test]
fn limits_that_cannot_be_are_refused_and_nothing_is_no_wish() {
    let text = |limiter: &str| {
        format!(r#"{{"boot-source": {{"kernel_image_path": "/k"}}, "entropy": {{"rate_limiter": {limiter}}}}}"#)
    };
    let (_dir, mut command) = config_text(&text(r#"{"bandwidth": {"size": 1, "refill_time": 18446744073709551615}}"#));
    expect(&mut command, 2, &["rate_limiter.bandwidth.refill_time"]);
    for good in [r#"{"bandwidth": {"size": 1, "refill_time": 1}}"#, "null"] {
        let (_dir, mut command) = config_text(&text(good));
        expect(&mut command, 2, &["kernel", "/k"]);
    }
}

#[test]
fn a_fifo_is_no_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    expect(program().arg("--describe-snapshot").arg(path), 2, &["no snapshot"]);
}

#[test]
fn unusable_kernels() {
    let (_dir, mut command) = config_text(r#"{"boot-source": {"kernel_image_path": "/nonexistent/vmlinuz"}}"#);
    expect(&mut command, 2, &["kernel", "/nonexistent/vmlinuz"]);
    let (_dir, mut command) = config_text(r#"{"boot-source": {"kernel_image_path": "/dev/zero"}}"#);
    expect(&mut command, 2, &["/dev/zero", "regular file"]);

    let text = Setup::with_kernel(b"not a kernel at all");
    expect(&mut text.command(), 2, &["neither a bzImage nor an ELF image"]);

    let mut whole = Guest::new().reset().elf();
    whole.pop();
    expect(&mut Setup::with_kernel(&whole).command(), 2, &["truncated"]);
}

#[test]
fn an_unreadable_initrd_is_named() {
    let mut setup = Setup::new(&Guest::new().reset());
    setup.config = setup.config.with_initrd("/nonexistent/initrd.img");
    expect(&mut setup.command(), 2, &["initrd", "/nonexistent/initrd.img"]);
}

#[test]
fn too_little_memory_is_said_so_in_the_log_too() {
    let guest = Guest::new().raw(&vec![0x90; 4 << 20]);
    let setup = Setup::new(&guest);
    expect(&mut setup.command(), 2, &["too little memory"]);
    let log = std::fs::read_to_string(setup.log_path()).unwrap();
    let last = LogLine::parse(log.lines().last().unwrap()).unwrap().event;
    assert!(matches!(&last, Event::End { error: Some(code), .. } if code == "too-little-memory"), "{last:?}");
}

#[test]
fn a_log_that_cannot_be_written_is_named() {
    let setup = Setup::new(&Guest::new().reset());
    let mut command = with_config(&setup.config_file());
    expect(command.args(["--log-path", "/nonexistent/vm.log"]), 2, &["/nonexistent/vm.log"]);
}

/// Runs the VMM in a mount namespace of its own in which `prepare` was done.
fn in_namespace(setup: &Setup, prepare: &str) -> Command {
    let mut command = Command::new("unshare");
    // Root needs no user namespace, which containers and chroots refuse.
    if std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) != 0) {
        command.arg("--map-root-user");
    }
    command.args(["--mount", "sh", "-c", &format!("{prepare} && exec \"$0\" \"$@\"")]);
    let vmm = setup.command();
    command.arg(vmm.get_program()).args(vmm.get_args());
    command
}

#[test]
fn without_dev_kvm_it_says_what_to_do() {
    let setup = Setup::new(&Guest::new().reset());
    expect(&mut in_namespace(&setup, "mount -t tmpfs none /dev"), 3, &["/dev/kvm is not available", "kvm_amd"]);
    let log = std::fs::read_to_string(setup.log_path()).unwrap();
    assert!(log.contains(r#""error":"kvm-unavailable""#), "{log}");
}

#[test]
fn what_is_not_kvm_is_not_taken_for_it() {
    let setup = Setup::new(&Guest::new().reset());
    expect(&mut in_namespace(&setup, "mount --bind /dev/null /dev/kvm"), 3, &["not KVM's device"]);
}

#[test]
fn an_unwritable_standard_error_changes_no_exit_code() {
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut refused = with_config(Path::new("/nonexistent.json"));
    assert_eq!(refused.stderr(full()).status().unwrap().code(), Some(2));
    // The guest's mark makes a line of the log that cannot be written.
    let setup = Setup::new(&Guest::new().out8(0x80, 1).reset());
    let mut runs = with_config(&setup.config_file());
    runs.arg("--boot-timer").stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    assert_eq!(runs.stderr(full()).status().unwrap().code(), Some(0));
}
