//! The file under a disk, and what becomes of it on the host: full, cut short, locked, not usable.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use portcullis_vmm::config::DriveConfig;
use portcullis_vmm::log::EndReason;

use crate::block::{DATA, READ_KIND, WRITE_KIND, data, numbered, queue, room, run, with_disk};
use crate::guest::Guest;
use crate::harness::{Setup, refused};
use crate::virtio::FIRST;

/// A guest that writes sector 0 and sector 1600, and then reads the first again.
fn writes_near_and_far() -> Guest {
    Guest::new()
        .virtio_start(FIRST, 0, &[queue()])
        .disk_fill(0, 512, 0x0505_0505)
        .disk(1, WRITE_KIND, 0, &[data(0, 512)])
        .disk_fill(0x10000, 0x20000, 0x0606_0606)
        .disk(2, WRITE_KIND, 1600, &[data(0x10000, 0x20000)])
        .disk(3, READ_KIND, 0, &[room(0x1000, 512)])
        .print_statuses(3)
        .print_hex(DATA + 0x1000, 1)
        .reset()
}

/// Runs the VMM from a shell, after `prepare`; gives what the guest printed.
fn run_from_shell(setup: &Setup, namespace: bool, prepare: &str) -> String {
    let vmm = setup.command();
    let mut command = Command::new(if namespace { "unshare" } else { "sh" });
    if namespace {
        if !nix::unistd::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command.args(["--mount", "sh"]);
    }
    command.args(["-c", &format!("{prepare} && exec \"$0\" \"$@\"")]).arg(vmm.get_program()).args(vmm.get_args());
    let output = command.stdin(std::process::Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{:?} {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_full_host_is_an_error_of_the_write_and_no_more() {
    let (mut setup, path) = with_disk(&writes_near_and_far(), &[]);
    let mount = path.with_file_name("small");
    std::fs::create_dir(&mount).unwrap();
    setup.config.drives[0].path_on_host = mount.join("disk");
    let mount = mount.display();
    let prepare = format!("mount -t tmpfs -o size=64k none {mount} && truncate -s 1M {mount}/disk");
    assert_eq!(run_from_shell(&setup, true, &prepare), "00010005");
    let log = std::fs::read_to_string(setup.log_path()).unwrap();
    assert!(log.contains("No space left") && log.contains("rootfs"), "{log}");
}

#[test]
fn a_limit_of_file_sizes_is_an_error_of_the_write_and_no_more() {
    let (setup, path) = with_disk(&writes_near_and_far(), &[]);
    File::options().write(true).open(path).unwrap().set_len(1 << 20).unwrap();
    // 1024 blocks of 512 bytes: the second write begins behind them.
    assert_eq!(run_from_shell(&setup, false, "ulimit -f 1024"), "00010005");
}

#[test]
fn a_file_that_is_cut_while_the_guest_runs_is_an_error_of_the_read() {
    let guest = Guest::new()
        .virtio_start(FIRST, 0, &[queue()])
        .disk(1, READ_KIND, 2, &[room(0, 1024)])
        .print("ready")
        .echo_until(b'x')
        .disk(2, READ_KIND, 2, &[room(0, 1024)])
        .disk(3, READ_KIND, 0, &[room(0, 1024)])
        .print_statuses(3)
        .reset();
    let (setup, path) = with_disk(&guest, &numbered(4));
    let mut vmm = setup.start();
    vmm.wait_for("ready");
    File::options().write(true).open(&path).unwrap().set_len(3 * 512).unwrap();
    vmm.type_in("x");
    let ended = vmm.wait();
    ended.expect_warnings(EndReason::Reset, &["unexpected end of file"]);
    assert_eq!(ended.output, "readyx000100");
}

#[test]
fn a_disk_that_is_written_belongs_to_one_vm() {
    let waits = Guest::new().print("ready").hang();
    let vm = |path: &PathBuf, is_read_only| {
        let mut setup = Setup::new(&waits);
        setup.config = setup.config.with_drive(DriveConfig { is_read_only, ..DriveConfig::new("data", path) });
        setup
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, numbered(1)).unwrap();
    let expect_refused = |setup: Setup| {
        let (code, errors) = refused(&mut setup.command());
        assert_eq!(code, 2, "{errors}");
        assert!(errors.contains("drive data"), "{errors}");
    };
    let mut writer = vm(&path, false).start();
    writer.wait_for("ready");
    expect_refused(vm(&path, false));
    expect_refused(vm(&path, true));
    drop(writer);
    let mut readers = [vm(&path, true).start(), vm(&path, true).start()];
    for reader in &mut readers {
        reader.wait_for("ready");
    }
    expect_refused(vm(&path, false));
    drop(readers);
    vm(&path, false).start().wait_for("ready");
    // Nor to two drives of the same one.
    let mut twice = vm(&path, false);
    twice.config = twice.config.with_drive(DriveConfig::new("again", &path));
    let (code, errors) = refused(&mut twice.command());
    assert!(code == 2 && errors.contains("drive again") && errors.contains("in use"), "{errors}");
}

#[test]
fn the_root_device_is_the_first_and_named_on_the_command_line() {
    // The command line lies where the boot protocol's zero page says: offset 0x228.
    let guest = Guest::new().copy32(FIRST + 0x100, DATA).copy32(FIRST + 0x1100, DATA + 4).print_hex(DATA, 8).reset();
    let (mut setup, path) = with_disk(&guest, &numbered(1));
    let root = path.with_file_name("root");
    std::fs::write(&root, numbered(7)).unwrap();
    let root = DriveConfig { is_root_device: true, is_read_only: true, ..DriveConfig::new("root", root) };
    setup.config = setup.config.with_drive(root);
    assert_eq!(run(setup, &path).0, "0700000001000000");
}

#[test]
fn drives_that_cannot_be_used_are_refused_by_name() {
    for (change, part) in [
        ((|drive| drive.path_on_host = "/nonexistent/disk".into()) as fn(&mut DriveConfig), "/nonexistent/disk"),
        (|drive| drive.path_on_host = "/dev/null".into(), "neither a regular file nor a block device"),
        (|drive| drive.key_fd = Some(3), "drives.key_fd"),
        (|drive| drive.offset = 1, "drives.offset"),
        (|drive| drive.offset = 1 << 40, "drive rootfs"),
    ] {
        let (mut setup, _) = with_disk(&Guest::new().reset(), &numbered(1));
        change(&mut setup.config.drives[0]);
        let (code, errors) = refused(&mut setup.command());
        assert!(code == 2 && errors.contains(part), "{code} {errors}");
    }
}
