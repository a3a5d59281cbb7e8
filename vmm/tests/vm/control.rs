//! Commands to a VM, and snapshots.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use portcullis_vmm::config::{EntropyConfig, MetricsConfig};
use portcullis_vmm::log::EndReason;

use crate::driver::Driven;
use crate::guest::{Guest, SCRATCH};
use crate::harness::Setup;
use crate::interrupts::{IRR, watch_line};
use crate::virtio::{BUFFERS, Descriptor, FIRST, QUEUE_NOTIFY, Queue, WRITE};

/// A double word that guests count in.
const COUNT: u32 = 0x700;
/// Another one, of the second vCPU.
const OTHER: u32 = 0x704;
/// The VM generation ID.
const GENERATION: u32 = 0xf_e000;

/// `inc dword [COUNT]`
fn count() -> Guest {
    Guest::new().edi(COUNT).raw(&[0xff, 0x07])
}

/// Asks the guest for what it prints at a key; gives that.
fn press(driven: &mut Driven, len: usize) -> String {
    let before = driven.vmm.output_text().len();
    driven.vmm.type_in("p");
    driven.vmm.wait_for_more(before, len)
}

/// The same, until `done` is content with it: on a busy machine things take their time.
fn press_until(driven: &mut Driven, len: usize, done: impl Fn(&str) -> bool) -> String {
    for _ in 0..500 {
        let text = press(driven, len);
        if done(&text) {
            return text;
        }
    }
    panic!("{}", press(driven, len));
}

/// A number that a guest printed in hexadecimal, little end first.
fn number(hex: &str) -> u32 {
    u32::from_str_radix(hex.trim(), 16).unwrap_or_else(|_| panic!("{hex:?}")).swap_bytes()
}

/// What lies at an address in a snapshot's memory below the hole.
fn in_memory(path: &Path, address: u32) -> u32 {
    let mut file = std::fs::File::open(path).unwrap();
    let mut bytes = [0; 4];
    file.seek(SeekFrom::Start(address.into())).unwrap();
    file.read_exact(&mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

#[test]
fn a_vm_is_started_paused_and_resumed_by_commands() {
    let mut vm = Driven::new(Setup::new(&Guest::new().print("ready").serve_keys(&count(), COUNT, 4)));
    assert_eq!(vm.ok("state"), "Not started");
    for early in ["pause", "resume", "keys", "save x"] {
        let early = early.replace('x', vm.dir.join("early").to_str().unwrap());
        assert_eq!(vm.ask(&early).unwrap_err(), "the VM has not been started", "{early}");
    }
    vm.ok("start");
    assert_eq!(vm.ok("state"), "Running");
    assert_eq!(vm.ask("start").unwrap_err(), "the VM has been started already");
    vm.vmm.wait_for("ready");
    let first = number(&press(&mut vm, 8));
    for _ in 0..20 {
        for command in ["pause", "pause"] {
            vm.ok(command);
            assert_eq!(vm.ok("state"), "Paused");
        }
        for command in ["resume", "resume"] {
            vm.ok(command);
            assert_eq!(vm.ok("state"), "Running");
        }
    }
    press_until(&mut vm, 8, |text| number(text) > first);
    vm.vmm.type_in("q");
    vm.vmm.wait().expect_end(EndReason::Reset);
}

#[test]
fn a_start_that_fails_can_be_tried_again() {
    let mut vm = Driven::new(Setup::new(&Guest::new().print("ready").hang()));
    let kernel = vm.dir.join("kernel");
    let bytes = std::fs::read(&kernel).unwrap();
    std::fs::write(&kernel, "no kernel").unwrap();
    assert!(vm.ask("start").unwrap_err().contains("no kernel this VMM can boot"));
    assert_eq!(vm.ok("state"), "Not started");
    std::fs::write(&kernel, bytes).unwrap();
    vm.ok("start");
    vm.vmm.wait_for("ready");
    vm.vmm.signal(nix::sys::signal::Signal::SIGTERM);
    vm.vmm.wait().expect_end(EndReason::Killed);
}

#[test]
fn a_paused_vm_and_one_that_never_started_end_by_a_signal() {
    for start in [true, false] {
        let mut vm = Driven::new(Setup::new(&Guest::new().hang()));
        if start {
            vm.ok("start");
            vm.ok("pause");
        }
        vm.ok("state");
        vm.vmm.signal(nix::sys::signal::Signal::SIGTERM);
        vm.vmm.wait().expect_end(EndReason::Killed);
    }
}

#[test]
fn ctrl_alt_del_reaches_the_guest_with_its_interrupt() {
    // Waits for the interrupt, then prints the scan codes of the press.
    let guest = watch_line(Guest::new(), 1, 1).print("ready").wait_for(IRR, 2);
    let guest = (0..4).fold(guest, |guest, _| guest.in8(0x60).edi(SCRATCH).raw(&[0x88, 0x07]).print_hex(SCRATCH, 1));
    let mut vm = Driven::started(Setup::new(&guest.reset()));
    vm.vmm.wait_for("ready");
    vm.ok("keys");
    let ended = vm.vmm.wait();
    ended.expect_end(EndReason::Reset);
    assert!(ended.output.contains("1411e071"), "{}", ended.output);
}

#[test]
fn a_restored_guest_goes_on_where_it_stood() {
    let mut vm = Driven::started(Setup::new(&Guest::new().print("ready").serve_keys(&count(), COUNT, 4)));
    vm.vmm.wait_for("ready");
    let first = number(&press(&mut vm, 8));
    let path = vm.dir.join("snapshot");
    let save = format!("save {}", path.display());
    assert_eq!(vm.ask(&save).unwrap_err(), "the VM is not paused");
    vm.ok("pause");
    vm.ok(&save);
    let saved = in_memory(&path.with_extension("memory"), COUNT);
    assert!(saved >= first);

    // Loaded and not resumed it stands still: a snapshot of it holds the same.
    let mut copy = Driven::new(Setup::new(&Guest::new()));
    copy.ok(&format!("load {}", path.display()));
    assert_eq!(copy.ok("state"), "Paused");
    let again = vm.dir.join("again");
    copy.ok(&format!("save {}", again.display()));
    assert_eq!(in_memory(&again.with_extension("memory"), COUNT), saved);
    copy.ok("resume");
    press_until(&mut copy, 8, |text| number(text) > saved);
    copy.vmm.type_in("q");
    copy.vmm.wait().expect_end(EndReason::Reset);

    // So do the second snapshot, resumed at once and with its clock put forward, and the first VM itself.
    let mut second = Driven::new(Setup::new(&Guest::new()));
    println!("restored within {} us", second.ok(&format!("load {} resume realtime", again.display())));
    assert_eq!(second.ok("state"), "Running");
    vm.ok("resume");
    for vm in [&mut second, &mut vm] {
        press_until(vm, 8, |text| number(text) > saved);
        vm.vmm.type_in("q");
    }
    for vm in [second, vm] {
        vm.vmm.wait().expect_end(EndReason::Reset);
    }
}

/// Saves a paused VM as `name`; gives the command that loads it.
fn save(vm: &mut Driven, name: &str) -> (std::path::PathBuf, String) {
    let path = vm.dir.join(name);
    vm.ok("pause");
    vm.ok(&format!("save {}", path.display()));
    let load = format!("load {} resume", path.display());
    (path, load)
}

#[test]
fn two_vcpus_go_on_after_a_restore() {
    // The second one counts in 16-bit mode: inc dword [OTHER]; jmp back
    let other = [0x66, 0xff, 0x06, 0x04, 0x07, 0xeb, 0xf9];
    let guest = Guest::new()
        .copy_low(0x1_0000, &other)
        .store32(0xfee0_00f0, 0x1ff)
        .store32(0xfee0_0300, 0x000c_4500)
        .store32(0xfee0_0300, 0x000c_4610)
        .print("ready")
        .serve_keys(&count(), COUNT, 8);
    let setup = |guest: &Guest| {
        let mut setup = Setup::new(guest);
        setup.config = setup.config.with_vcpus(2);
        setup
    };
    let mut vm = Driven::started(setup(&guest));
    vm.vmm.wait_for("ready");
    // On a busy machine it takes the second one's thread a while to come to its turn.
    press_until(&mut vm, 16, |text| number(&text[..8]) > 0 && number(&text[8..]) > 0);
    let (path, load) = save(&mut vm, "two");
    let memory = path.with_extension("memory");
    let saved = [COUNT, OTHER].map(|address| in_memory(&memory, address));
    assert!(saved.iter().all(|count| *count > 0), "{saved:?}");
    // Nothing runs while it is paused.
    vm.ok(&format!("save {}", path.display()));
    assert_eq!([COUNT, OTHER].map(|address| in_memory(&memory, address)), saved);
    let mut copy = Driven::new(setup(&Guest::new()));
    assert!(copy.ok(&load).ends_with(" 2"));
    press_until(&mut copy, 16, |text| number(&text[..8]) > saved[0] && number(&text[8..]) > saved[1]);
    copy.vmm.type_in("q");
    copy.vmm.wait().expect_end(EndReason::Reset);
}

#[test]
fn thirty_two_paused_vcpus_are_saved_and_loaded() {
    let guest = Guest::new().print("ready").serve_keys(&count(), COUNT, 4);
    let setup = |guest: &Guest| {
        let mut setup = Setup::new(guest);
        setup.config = setup.config.with_vcpus(32);
        setup
    };
    let mut vm = Driven::started(setup(&guest));
    vm.vmm.wait_for("ready");
    let (_, load) = save(&mut vm, "many");
    let mut copy = Driven::new(setup(&Guest::new()));
    assert!(copy.ok(&load).ends_with(" 32"));
    press(&mut copy, 8);
    copy.vmm.type_in("q");
    copy.vmm.wait().expect_end(EndReason::Reset);
}

#[test]
fn a_device_in_use_goes_on_after_a_restore() {
    // Asks for entropy again and again: one more in the available ring, notify, wait until it is used.
    let queue = Queue::at(FIRST, 0, 8);
    let buffer = Descriptor { address: BUFFERS.into(), len: 16, flags: WRITE, next: 0 };
    let work = Guest::new()
        .edi(queue.available + 2)
        .raw(&[0x66, 0xff, 0x07, 0x66, 0x8b, 0x07])
        .store32(FIRST + QUEUE_NOTIFY, 0)
        .edi(queue.used_index())
        .raw(&[0x66, 0x3b, 0x07, 0xf3, 0x90, 0x75, 0xf9]);
    let guest = Guest::new()
        .virtio_start(FIRST, 0, &[queue])
        .descriptor(queue.descriptors, 0, buffer)
        .print("ready")
        .serve_keys(&work, queue.used_index(), 2);
    let setup = |guest: &Guest| {
        let mut setup = Setup::new(guest);
        setup.config.entropy = Some(EntropyConfig::default());
        setup
    };
    let mut vm = Driven::started(setup(&guest));
    vm.vmm.wait_for("ready");
    press(&mut vm, 4);
    // Wherever it is stopped, also with a request on its way.
    for _ in 0..5 {
        let (path, load) = save(&mut vm, "busy");
        let used = in_memory(&path.with_extension("memory"), queue.used) >> 16;
        let mut copy = Driven::new(setup(&Guest::new()));
        copy.ok(&load);
        // The index is printed little end first.
        press_until(&mut copy, 4, |text| number(&format!("{text}0000")) != used);
        copy.vmm.type_in("q");
        copy.vmm.wait().expect_end(EndReason::Reset);
        vm.ok("resume");
        press(&mut vm, 4);
    }
}

#[test]
fn a_restored_guest_has_another_generation_and_is_told() {
    let guest = watch_line(Guest::new(), 3, 2).print("ready");
    let work = Guest::new().copy32(IRR, GENERATION + 16);
    let mut vm = Driven::started(Setup::new(&guest.serve_keys(&work, GENERATION, 17)));
    vm.vmm.wait_for("ready");
    let first = press(&mut vm, 34);
    assert_eq!(press(&mut vm, 34), first, "it changes by itself");
    assert_eq!(&first[32..], "00", "an interrupt without a reason");
    let (_, load) = save(&mut vm, "first");
    let mut ids = vec![first];
    for _ in 0..2 {
        let mut copy = Driven::new(Setup::new(&Guest::new()));
        copy.ok(&load);
        let id = press_until(&mut copy, 34, |text| text.ends_with("04"));
        ids.push(id);
        copy.vmm.type_in("q");
        copy.vmm.wait().expect_end(EndReason::Reset);
    }
    // The first VM keeps its own.
    vm.ok("resume");
    assert_eq!(press(&mut vm, 34), ids[0]);
    let different: std::collections::BTreeSet<_> = ids.iter().map(|id| &id[..32]).collect();
    assert_eq!(different.len(), 3, "{ids:?}");
}

#[test]
fn files_that_are_no_snapshot_are_refused_and_something_else_may_be_tried() {
    let mut vm = Driven::started(Setup::new(&Guest::new().print("ready").serve_keys(&count(), COUNT, 4)));
    vm.vmm.wait_for("ready");
    let (good, load) = save(&mut vm, "good");
    let state = std::fs::read(good.with_extension("state")).unwrap();
    let memory = std::fs::read(good.with_extension("memory")).unwrap();
    let bad = vm.dir.join("bad");
    let mut copy = Driven::new(Setup::new(&Guest::new()));
    let mut flipped = state.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut version = state.clone();
    version[8] += 1;
    for (state, memory, error) in [
        (&state[..state.len() / 2], &memory[..], "cut short"),
        (&flipped, &memory, "checksum"),
        (&version, &memory, "version 3"),
        (b"{}", &memory, "no snapshot"),
        (&state, &memory[4096..], "memory file is no regular file of"),
    ] {
        std::fs::write(bad.with_extension("state"), state).unwrap();
        std::fs::write(bad.with_extension("memory"), memory).unwrap();
        let answer = copy.ask(&format!("load {} resume", bad.display())).unwrap_err();
        assert!(answer.contains(error), "{answer}");
        assert_eq!(copy.ok("state"), "Not started");
    }
    copy.ok(&load);
    press(&mut copy, 8);
}

#[test]
fn a_full_disk_fails_the_snapshot_and_not_the_vm() {
    let setup = Setup::new(&Guest::new().print("ready").serve_keys(&count(), COUNT, 4));
    // A limit on the size of files is a disk that is full for this process only.
    let mut vm = Driven::with(setup, |command| {
        // SAFETY: only system calls between fork and exec.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(command, || {
                let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
                libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit);
                Ok(())
            });
        }
    });
    vm.ok("start");
    vm.vmm.wait_for("ready");
    let path = vm.dir.join("full");
    vm.ok("pause");
    let answer = vm.ask(&format!("save {}", path.display())).unwrap_err();
    assert!(answer.contains("cannot write the snapshot's memory") && answer.contains("too large"), "{answer}");
    assert_eq!(vm.ok("state"), "Paused");
    assert_eq!(std::fs::metadata(path.with_extension("state")).unwrap().len(), 0);
    vm.ok("resume");
    press(&mut vm, 8);
    vm.vmm.type_in("q");
    vm.vmm.wait().expect_end(EndReason::Reset);
}

#[test]
fn what_is_left_of_a_snapshot_after_kill_9_is_never_half_a_one() {
    let setup = |guest: &Guest| {
        let mut setup = Setup::new(guest);
        setup.config = setup.config.with_mem_mib(64);
        setup
    };
    // A byte in each page of 60 MiB: mov byte [rdi], 0x55; add edi, 4096; dec ecx; jnz back
    let fill = Guest::new().edi(0x20_0000).raw(&[0xb9, 0, 0x3c, 0, 0]);
    let fill = fill.raw(&[0xc6, 0x07, 0x55, 0x81, 0xc7, 0, 0x10, 0, 0, 0xff, 0xc9, 0x75, 0xf3]);
    let guest = fill.print("ready").serve_keys(&count(), COUNT, 4);
    let mut refused = 0;
    for delay_us in [0, 2_000, 5_000, 10_000, 20_000, 60_000] {
        let mut vm = Driven::started(setup(&guest));
        vm.vmm.wait_for("ready");
        vm.ok("pause");
        let path = vm.dir.join("half");
        vm.tell(&format!("save {}", path.display()));
        std::thread::sleep(std::time::Duration::from_micros(delay_us));
        vm.vmm.signal(nix::sys::signal::Signal::SIGKILL);
        vm.vmm.wait_killed();
        if !path.with_extension("state").exists() || !path.with_extension("memory").exists() {
            continue;
        }
        let mut copy = Driven::new(setup(&Guest::new()));
        if copy.ask(&format!("load {} resume", path.display())).is_err() {
            refused += 1;
            continue;
        }
        // It was finished before the end came: then it is whole.
        let memory = std::fs::read(path.with_extension("memory")).unwrap();
        let filled = memory[0x20_0000..0x20_0000 + (60 << 20)].iter().step_by(4096);
        assert!(filled.copied().all(|byte| byte == 0x55));
        press(&mut copy, 8);
    }
    println!("{refused} of 6 were refused");
}

#[test]
fn metrics_are_written_when_asked_and_at_the_end() {
    let mut setup = Setup::new(&Guest::new().print("ready").serve_keys(&count(), COUNT, 4));
    // Not in the VM's own directory, which goes with it.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics");
    setup.config.metrics = Some(MetricsConfig::new(&path));
    setup.config.entropy = Some(EntropyConfig::default());
    let mut vm = Driven::started(setup);
    vm.vmm.wait_for("ready");
    press(&mut vm, 8);
    vm.ok("pause");
    vm.ok("flush");
    let lines = || -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let first = lines();
    assert_eq!(first.len(), 1);
    let count = |line: &serde_json::Value, group: &str, name: &str| line[group][name].as_u64().unwrap();
    // "ready", then at least one look for a key, the key, and what was printed.
    assert!(count(&first[0], "uart", "write_count") >= 13 && count(&first[0], "uart", "read_count") >= 2);
    assert!(count(&first[0], "vcpu", "exit_io_out") >= 13 && count(&first[0], "vcpu", "exit_io_in") >= 2);
    assert!(count(&first[0], "latencies_us", "pause_vm") > 0);
    assert_eq!(count(&first[0], "entropy", "entropy_bytes"), 0);
    assert!(first[0]["utc_timestamp_ms"].as_u64().unwrap() > 1_700_000_000_000);
    vm.ok("resume");
    vm.vmm.type_in("q");
    vm.vmm.wait().expect_end(EndReason::Reset);
    let last = lines();
    assert_eq!(last.len(), 2);
    // The guest does not use KVM's clock, and was paused once.
    let clock = [0, 1].map(|line: usize| count(&last[line], "vcpu", "kvmclock_ctrl_fails"));
    assert_eq!((clock, count(&last[1], "logger", "metrics_fails")), ([0, 1], 0));
    // Since the line before: one more number, and the reset.
    assert_eq!((count(&last[1], "uart", "write_count"), count(&last[1], "i8042", "reset_count")), (8, 1));
}

#[test]
fn metrics_that_nobody_reads_hold_nothing_up() {
    let mut setup = Setup::new(&Guest::new().print("ready").serve_keys(&count(), COUNT, 4));
    let path = setup.dir.path().join("metrics");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    setup.config.metrics = Some(MetricsConfig::new(&path));
    let mut vm = Driven::started(setup);
    vm.vmm.wait_for("ready");
    for _ in 0..200 {
        vm.ok("flush");
    }
    press(&mut vm, 8);
    // The line after those that the FIFO holds says how many there would have been.
    let mut fifo = std::fs::OpenOptions::new();
    let mut fifo = fifo.read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    let mut text = Vec::new();
    for _ in 0..2 {
        assert_eq!(fifo.read_to_end(&mut text).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        vm.ok("flush");
    }
    assert_eq!(fifo.read_to_end(&mut text).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    let lines = String::from_utf8(text).unwrap();
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let missed: u64 = lines.iter().map(|line| line["logger"]["missed_metrics_count"].as_u64().unwrap()).sum();
    assert_eq!(usize::try_from(missed).unwrap() + lines.len(), 202);
    vm.vmm.type_in("q");
    vm.vmm.wait().expect_end(EndReason::Reset);
}
