//! How VMs begin and end.

use nix::sys::signal::Signal;
use portcullis_vmm::log::{EndReason, Event, MarkSource};

use crate::guest::{Guest, SCRATCH};
use crate::harness::Setup;

#[test]
fn a_guest_prints_and_resets() {
    let ended = Setup::new(&Guest::new().print("hello\n").reset()).run();
    ended.expect_clean(EndReason::Reset);
    assert_eq!(ended.output, "hello\n");
    let names: Vec<_> = ended
        .events
        .iter()
        .map(|event| match event {
            Event::Start { vcpus: 1, mem_mib: 4, .. } => "start",
            Event::Confined { seccomp: true, no_new_privs: true, .. } => "confined",
            Event::Running { .. } => "running",
            Event::End { serial_out: 6, serial_lost: 0, .. } => "end",
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(names, ["start", "confined", "running", "end"]);
}

#[test]
fn a_guest_powers_off_through_acpi() {
    let ended = Setup::new(&Guest::new().print("bye").power_off()).run();
    ended.expect_clean(EndReason::PowerOff);
    assert_eq!(ended.output, "bye");
}

#[test]
fn where_a_pc_has_its_firmware_is_a_reset() {
    // mov eax, F000:FFF0; jmp rax
    let guest = Guest::new().print("bye").raw(&[0xb8, 0xf0, 0xff, 0x0f, 0x00, 0xff, 0xe0]);
    Setup::new(&guest.hang()).run().expect_clean(EndReason::Reset);
}

#[test]
fn a_pvh_guest_gets_its_start_info() {
    // cmp dword [ebx], magic; jne over the message
    let message = Guest::new().print("start info");
    let len = u8::try_from(message.elf().len() - Guest::new().elf().len()).unwrap();
    let guest = Guest::new().raw(&[0x81, 0x3b, 0x78, 0xc5, 0x6e, 0x33, 0x75, len]);
    let guest = "start info".bytes().fold(guest, |guest, byte| guest.out8(0x3f8, byte));
    let ended = Setup::with_kernel(&guest.reset().pvh_elf()).run();
    ended.expect_clean(EndReason::Reset);
    assert_eq!(ended.output, "start info");
}

#[test]
fn a_guest_finds_its_initrd_and_command_line() {
    // RSI holds the boot parameters: cmd_line_ptr at 0x228, ramdisk_image at 0x218. Prints one byte of each.
    let load = |field: u32| {
        // mov edi, [rsi + field]; mov al, [rdi]; mov dx, 0x3f8; out dx, al
        let mut code = vec![0x8b, 0xbe];
        code.extend(field.to_le_bytes());
        code.extend([0x8a, 0x07, 0x66, 0xba, 0xf8, 0x03, 0xee]);
        code
    };
    let mut setup = Setup::new(&Guest::new().raw(&load(0x228)).raw(&load(0x218)).reset());
    let initrd = setup.dir.path().join("initrd");
    std::fs::write(&initrd, "I").unwrap();
    setup.config = setup.config.with_initrd(initrd).with_boot_args("C");
    let ended = setup.run();
    ended.expect_clean(EndReason::Reset);
    assert_eq!(ended.output, "CI");
}

#[test]
fn four_vcpus_start_and_know_their_numbers() {
    smp(4, "123");
}

#[test]
fn thirty_two_vcpus_start() {
    smp(32, "");
}

/// The first vCPU starts the others; each prints its APIC id as one character and counts itself.
fn smp(vcpus: u8, expected: &str) {
    let at = 0x1_0000;
    let [low, high, ..] = SCRATCH.to_le_bytes();
    // 16-bit code: cpuid leaf 1; al = ebx >> 24 + '0'; out 0x3f8, al; lock inc byte [SCRATCH]; hlt for ever.
    let other = [
        0x66, 0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0x66, 0xc1, 0xeb, 24, 0x88, 0xd8, 0x04, b'0', 0xba, 0xf8, 0x03, 0xee, 0xf0,
        0xfe, 0x06, low, high, 0xf4, 0xeb, 0xfd,
    ];
    let guest = Guest::new()
        .copy_low(at, &other)
        // Local APIC on; INIT, then SIPI with vector 0x10, to all but self.
        .store32(0xfee0_00f0, 0x1ff)
        .store32(0xfee0_0300, 0x000c_4500)
        .store32(0xfee0_0300, 0x000c_4610)
        .wait_for(SCRATCH, vcpus - 1)
        .reset();
    let mut setup = Setup::new(&guest);
    setup.config = setup.config.with_vcpus(vcpus);
    let ended = setup.run();
    ended.expect_clean(EndReason::Reset);
    let mut ids: Vec<char> = ended.output.chars().collect();
    ids.sort_unstable();
    assert_eq!(ids.len(), usize::from(vcpus) - 1);
    if !expected.is_empty() {
        assert_eq!(String::from_iter(ids), expected);
    }
}

#[test]
fn both_boot_marks_are_logged_once() {
    let guest = Guest::new()
        .out8(0x80, 0x41)
        .out8(0x80, 123)
        .out8(0x80, 123)
        .store8(0xc000_0000, 123)
        .store8(0xc000_0000, 123)
        .store8(0xd000_0000, 123)
        .reset();
    let ended = Setup::new(&guest).run();
    ended.expect_clean(EndReason::Reset);
    let boots = ended.boots();
    let sources: Vec<_> = boots.iter().map(|mark| (mark.source, mark.value)).collect();
    assert_eq!(sources, [(MarkSource::Port80, 123), (MarkSource::Mmio, 123)]);
    let early = ended.events.iter().filter(|e| matches!(e, Event::GuestMark(mark) if mark.value == 0x41)).count();
    assert_eq!(early, 1);
    let Some(Event::End { run_us, .. }) = ended.events.last() else { panic!("{ended:?}") };
    let setup =
        ended.events.iter().find_map(|e| if let Event::Running { setup_us } = e { Some(*setup_us) } else { None });
    assert!(setup.unwrap() <= boots[0].boot_us && boots[0].boot_us <= *run_us);
}

#[test]
fn without_the_flag_there_is_no_boot_timer() {
    let setup = Setup::new(&Guest::new().out8(0x80, 123).store8(0xc000_0000, 123).reset());
    let mut command = crate::harness::with_config(&setup.config_file());
    let status = command.arg("--log-path").arg(setup.log_path()).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(!std::fs::read_to_string(setup.log_path()).unwrap().contains("guest-boot"));
}

#[test]
fn signals_end_a_running_vm_cleanly() {
    for (vcpus, signal) in [(1, Signal::SIGTERM), (4, Signal::SIGINT), (1, Signal::SIGHUP), (2, Signal::SIGQUIT)] {
        let mut setup = Setup::new(&Guest::new().print("ready").hang());
        setup.config = setup.config.with_vcpus(vcpus);
        let mut vmm = setup.start();
        vmm.wait_for("ready");
        vmm.signal(signal);
        vmm.wait().expect_clean(EndReason::Killed);
    }
}

#[test]
fn after_kill_9_nothing_is_left() {
    let setup = Setup::new(&Guest::new().print("ready").hang());
    let dir = setup.dir.path().to_owned();
    let mut before: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    before.extend(["vm.json".into(), "vm.log".into()]);
    let mut vmm = setup.start();
    vmm.wait_for("ready");
    let pid = vmm.pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    assert_eq!(children, "", "the VMM has child processes");
    vmm.signal(Signal::SIGKILL);
    let mut after: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    before.sort();
    after.sort();
    assert_eq!(after, before);
    drop(vmm);
    // And the next one starts.
    Setup::new(&Guest::new().reset()).run().expect_clean(EndReason::Reset);
}
