//! Debian's kernel on this machine's own KVM. A KVM without hardware virtualisation cannot run it: that has to come out
//! as a typed error, never as a hang.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use portcullis_firmware_fixtures::child::Guarded;
use portcullis_firmware_fixtures::lab::boot_files::BootFiles;
use portcullis_tests::programs::Programs;
use portcullis_vmm::config::VmConfig;
use portcullis_vmm::log::{EndReason, Event, LogLine, Registers};

/// Such a KVM interprets what the kernel does instruction by instruction.
const LIMIT: Duration = Duration::from_mins(15);

/// Whether this machine's processor virtualises in hardware.
fn hardware_virtualisation() -> bool {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap();
    info.lines().filter(|line| line.starts_with("flags")).any(|line| line.split(' ').any(|f| f == "svm" || f == "vmx"))
}

#[test]
fn debians_kernel_ends_in_a_typed_error_or_runs_but_never_hangs() {
    let programs = Programs::find().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    // Without an initramfs the kernel panics where it looks for its root, and resets at once. It is unpacked already:
    // interpreting its decompressor would take two minutes.
    let config = VmConfig::new(BootFiles::fetch().unwrap().vmlinux().unwrap()).with_mem_mib(192);
    let config = config.with_boot_args("console=ttyS0 panic=-1 reboot=k");
    fs::write(path("vm.json"), config.to_json().unwrap()).unwrap();
    let mut command = Command::new(programs.path("portcullis-vmm"));
    command.args(["--id", "local", "--no-api", "--boot-timer", "--config-file"]).arg(path("vm.json"));
    command.arg("--log-path").arg(path("vm.log"));
    let (console, errors) = (path("console"), path("errors"));
    command.stdin(Stdio::null());
    command.stdout(fs::File::create(&console).unwrap()).stderr(fs::File::create(&errors).unwrap());

    let mut vmm = Guarded::spawn("portcullis-vmm", command).unwrap();
    let ended = vmm.wait_for_end(LIMIT).unwrap();
    let (console, errors) = (fs::read_to_string(console).unwrap(), fs::read_to_string(errors).unwrap());
    let log = fs::read_to_string(path("vm.log")).unwrap();
    let all = format!("{ended:?}\n--- errors\n{errors}\n--- log\n{log}\n--- console\n{console}");
    let code = ended.unwrap_or_else(|| panic!("the VMM hangs: {all}")).code();
    let events: Vec<Event> = log.lines().map(|line| LogLine::parse(line).expect(line).event).collect();
    let Some(Event::End { reason, error, text, .. }) = events.last() else {
        panic!("the log does not end with the VM's end: {all}");
    };

    if hardware_virtualisation() {
        assert_eq!((code, *reason), (Some(0), EndReason::Reset), "{all}");
        assert!(console.contains("Kernel panic"), "{all}");
        return;
    }
    assert_eq!((code, *reason, error.as_deref()), (Some(1), EndReason::Error, Some("cannot-emulate")), "{all}");
    for told in [text.as_deref().unwrap_or_default(), &errors] {
        assert!(told.contains("KVM cannot run what the guest does") && told.contains("SVM"), "{told:?}: {all}");
    }
    let registers = events.iter().find_map(|event| match event {
        Event::Registers(registers) => Some(Registers::clone(registers)),
        _ => None,
    });
    assert_ne!(registers.expect("no registers in the log").rip, 0, "{all}");
}
