//! Debian's own kernel, an initramfs of one busybox: the ways a VM begins and ends.

use std::fs;

use portcullis_firmware_fixtures::lab::boot_files::BootFiles;
use portcullis_firmware_fixtures::lab::cpio::{Archive, Entry};
use portcullis_vmm::config::{HugePages, VmConfig};
use portcullis_vmm::log::{EndReason, Event};

use crate::harness::{Check, Lab, all};

/// Guest memory: Debian's kernel wants more than the default of 128 MiB leaves it.
const MEM_MIB: u64 = 192;

/// The guest's init. `then`, from the kernel's command line, says what it does once it is up. The write of 123 is the
/// VMM's boot mark.
const GUEST_INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox devmem 0xc0000000 8 123
/bin/busybox mount -t proc proc /proc
exec </dev/console >/dev/console 2>&1
echo \"guest: init on $(nproc) vCPU, Linux $(uname -r)\"
case $then in
poweroff) poweroff -f ;;
reboot) reboot -f ;;
panic) echo c >/proc/sysrq-trigger ;;
listen) read -r line; echo \"guest: heard $(echo \"$line\" | rev)\"; read -r line; echo \"guest: and $line\"; poweroff -f ;;
busy) taskset -c 1 sh -c 'echo \"guest: second vCPU counts $(seq 1 20000 | wc -l)\"'; poweroff -f ;;
esac
while :; do sleep 1; done
";

/// A guest that does `then` when it is up.
fn guest(then: &str) -> VmConfig {
    let config = VmConfig::new("/mnt/vmlinuz").with_initrd("/mnt/initrd").with_mem_mib(MEM_MIB);
    config.with_boot_args(format!("console=ttyS0 quiet then={then}"))
}

fn extra(config: VmConfig, words: &str) -> VmConfig {
    let args = format!("{} {words}", config.boot_source.cmdline());
    config.with_boot_args(args)
}

/// Gives the note with the PVH entry another type, so that the ELF file's own entry is left: the 64-bit one.
fn without_pvh(mut vmlinux: Vec<u8>) -> Vec<u8> {
    // Sizes of name and descriptor, the type XEN_ELFNOTE_PHYS32_ENTRY, the name.
    let note = b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0";
    let found: Vec<usize> =
        vmlinux.windows(note.len()).enumerate().filter(|(_, w)| w == note).map(|(at, _)| at).collect();
    let [at] = found[..] else { panic!("the kernel has its PVH note at {found:?}") };
    vmlinux[at + 8] = 0xff;
    vmlinux
}

/// A host with kernel, initrd and half a kernel.
fn lab() -> Lab {
    let files = BootFiles::fetch().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut archive = Archive::new();
    archive.put("/dev/console", Entry::Character(5, 1));
    archive.put("/proc", Entry::Directory);
    archive.put("/bin/busybox", Entry::File(0o755, fs::read(files.busybox()).unwrap()));
    archive.put("/init", Entry::File(0o755, GUEST_INIT.as_bytes().to_vec()));
    let path = |name: &str| dir.path().join(name);
    fs::write(path("initrd"), archive.to_bytes()).unwrap();
    let kernel = fs::read(files.kernel()).unwrap();
    fs::write(path("vmlinuz"), &kernel).unwrap();
    fs::write(path("truncated"), &kernel[..kernel.len() / 2]).unwrap();
    let unpacked = fs::read(files.vmlinux().unwrap()).unwrap();
    fs::write(path("vmlinux"), &unpacked).unwrap();
    fs::write(path("vmlinux-without-pvh"), without_pvh(unpacked)).unwrap();
    Lab::new(
        &["initrd", "vmlinuz", "truncated", "vmlinux", "vmlinux-without-pvh"]
            .map(path)
            .each_ref()
            .map(std::path::PathBuf::as_path),
    )
}

fn boots_with_one_vcpu_and_powers_off(lab: &mut Lab) {
    let ended = lab.boot("one", &guest("poweroff"));
    ended.expect_clean(EndReason::PowerOff);
    ended.expect_booted(1);
}

fn boots_with_two_vcpus_that_both_run(lab: &mut Lab) {
    let ended = lab.boot("two", &guest("busy").with_vcpus(2));
    ended.expect_clean(EndReason::PowerOff);
    ended.expect_booted(2);
    assert!(ended.console.contains("guest: second vCPU counts 20000"), "{ended:?}");
}

fn boots_an_elf_kernel_by_its_pvh_note(lab: &mut Lab) {
    boots_a_kernel(lab, "pvh", "/mnt/vmlinux");
}

fn boots_an_elf_kernel_without_such_a_note(lab: &mut Lab) {
    boots_a_kernel(lab, "elf", "/mnt/vmlinux-without-pvh");
}

fn boots_a_kernel(lab: &mut Lab, name: &str, kernel: &str) {
    let mut config = guest("poweroff");
    config.boot_source.kernel_image_path = kernel.into();
    let ended = lab.boot(name, &config);
    ended.expect_clean(EndReason::PowerOff);
    ended.expect_booted(1);
}

/// Pages of the host's pool that no VM has touched.
fn free_huge_pages(lab: &mut Lab) -> u64 {
    lab.must("sed -n 's/^HugePages_Free: *//p' /proc/meminfo").parse().unwrap()
}

fn its_memory_is_of_huge_pages(lab: &mut Lab) {
    let mut config = guest("listen");
    config.machine_config.huge_pages = HugePages::TwoMib;
    let all = MEM_MIB / 2;
    // One less than it takes.
    lab.must(&format!("echo {} >/proc/sys/vm/nr_hugepages", all - 1));
    let (code, errors) = refused(lab, &config.to_json().unwrap());
    assert_eq!(code, 3, "{errors}");
    assert!(errors.contains("no 192 MiB of huge pages") && errors.contains("vm.nr_hugepages"), "{errors}");
    lab.must(&format!("echo {all} >/proc/sys/vm/nr_hugepages"));
    assert_eq!(free_huge_pages(lab), all);
    lab.start("huge", &config);
    lab.wait_for("huge", "guest: init");
    let free = free_huge_pages(lab);
    assert!(free < all, "the guest has none of the {all}");
    // All of them are its own, whether it has touched them or not.
    let (code, errors) = refused(lab, &config.with_mem_mib(2).to_json().unwrap());
    assert!(code == 3 && errors.contains("huge pages"), "{code}: {errors}");
    lab.must("echo x >/run/vm/huge/in; echo x >/run/vm/huge/in");
    lab.ended("huge").expect_clean(EndReason::PowerOff);
    lab.expect_nothing_left();
    assert_eq!(free_huge_pages(lab), all);
    lab.must("echo 0 >/proc/sys/vm/nr_hugepages");
}

fn resets_through_the_i8042(lab: &mut Lab) {
    let ended = lab.boot("reset", &extra(guest("reboot"), "reboot=k"));
    ended.expect_clean(EndReason::Reset);
    ended.expect_booted(1);
}

fn resets_as_linux_chooses(lab: &mut Lab) {
    let ended = lab.boot("reset-default", &guest("reboot").with_vcpus(2));
    ended.expect_clean(EndReason::Reset);
    ended.expect_booted(2);
}

fn a_panic_with_a_timeout_is_a_reset(lab: &mut Lab) {
    let ended = lab.boot("panic", &extra(guest("panic"), "panic=1"));
    ended.expect_clean(EndReason::Reset);
    ended.expect_booted(1);
    assert!(ended.console.contains("Kernel panic - not syncing: sysrq triggered crash"), "{ended:?}");
}

fn without_its_initramfs_the_kernel_panics_and_resets(lab: &mut Lab) {
    let mut config = extra(guest("poweroff"), "panic=-1");
    config.boot_source.initrd_path = None;
    let ended = lab.boot("no-initrd", &config);
    ended.expect_clean(EndReason::Reset);
    assert!(ended.console.contains("Kernel panic - not syncing: VFS"), "{ended:?}");
    assert!(!ended.events.iter().any(|e| matches!(e, Event::GuestBoot(_))), "{ended:?}");
}

fn what_is_typed_reaches_the_guest(lab: &mut Lab) {
    lab.start("typed", &guest("listen"));
    lab.wait_for("typed", "guest: init");
    lab.must("echo 'sllucrop si siht' >/run/vm/typed/in");
    lab.wait_for("typed", "guest: heard this is porculls");
    // Longer than the line's FIFO of 16 bytes.
    let long = "0123456789".repeat(20);
    lab.must(&format!("echo {long} >/run/vm/typed/in"));
    let ended = lab.ended("typed");
    ended.expect_clean(EndReason::PowerOff);
    assert!(ended.console.contains(&format!("guest: and {long}")), "{ended:?}");
}

fn sigterm_ends_it_with_its_reason(lab: &mut Lab) {
    lab.start("term", &guest("wait").with_vcpus(2));
    lab.wait_for("term", "guest: init");
    lab.signal("term", "TERM");
    let ended = lab.ended("term");
    ended.expect_clean(EndReason::Killed);
    ended.expect_booted(2);
    lab.expect_nothing_left();
}

fn kill_9_leaves_nothing(lab: &mut Lab) {
    lab.start("killed", &guest("wait").with_vcpus(2));
    lab.wait_for("killed", "guest: init");
    assert_ne!(lab.must("cat /sys/module/kvm_amd/refcnt"), "0", "the check for leftovers checks nothing");
    lab.signal("killed", "KILL");
    let ended = lab.ended("killed");
    assert_eq!(ended.code, 128 + 9);
    assert!(!ended.events.iter().any(|e| matches!(e, Event::End { .. })), "{ended:?}");
    lab.expect_nothing_left();
    assert_eq!(lab.must("ls /run/vm/killed | sort | tr '\\n' ' '"), "code console errors in log pid vm.json");
}

fn two_vms_at_once_do_not_meet(lab: &mut Lab) {
    for name in ["left", "right"] {
        lab.start(name, &guest("listen"));
    }
    for name in ["left", "right"] {
        lab.wait_for(name, "guest: init");
    }
    assert_eq!(lab.must("pidof portcullis-vmm | wc -w"), "2");
    for name in ["left", "right"] {
        lab.must(&format!("echo {name} >/run/vm/{name}/in; echo over >/run/vm/{name}/in"));
    }
    for (name, heard, other) in [("left", "tfel", "right"), ("right", "thgir", "left")] {
        let ended = lab.ended(name);
        ended.expect_clean(EndReason::PowerOff);
        ended.expect_booted(1);
        assert!(ended.console.contains(&format!("guest: heard {heard}")), "{ended:?}");
        assert!(!ended.console.contains(other), "{ended:?}");
    }
    lab.expect_nothing_left();
}

/// Runs the VMM on a configuration text; exit code and what it complained of.
fn refused(lab: &mut Lab, config: &str) -> (i32, String) {
    lab.host.write_file("/run/refused.json", config.as_bytes()).unwrap();
    let output =
        lab.run("rm -f /run/refused.log; portcullis-vmm --config-file /run/refused.json --log-path /run/refused.log");
    assert_eq!(output.text(), "");
    (output.status, output.error_text())
}

fn a_wrong_configuration_is_2_and_named(lab: &mut Lab) {
    let good = guest("poweroff").to_json().unwrap();
    for (from, to, named) in [
        ("\"vcpu_count\": 1", "\"vcpu_count\": 0", "vcpu_count"),
        ("\"mem_size_mib\": 192", "\"mem_size_mib\": 16", "memory"),
        ("\"mem_size_mib\"", "\"memory\"", "memory"),
        ("/mnt/vmlinuz", "/mnt/other", "/mnt/other"),
        ("/mnt/initrd", "/mnt", "/mnt"),
        ("{", "", "/run/refused.json"),
    ] {
        assert!(good.contains(from), "{good}");
        let (code, errors) = refused(lab, &good.replacen(from, to, 1));
        assert_eq!(code, 2, "{to}: {errors}");
        assert!(errors.contains(named), "{to}: {errors}");
    }
    lab.expect_nothing_left();
}

fn a_truncated_kernel_is_2_and_said_so(lab: &mut Lab) {
    let config = guest("poweroff").to_json().unwrap().replace("/mnt/vmlinuz", "/mnt/truncated");
    let (code, errors) = refused(lab, &config);
    assert_eq!(code, 2, "{errors}");
    assert!(errors.contains("/mnt/truncated") && errors.contains("is truncated"), "{errors}");
    assert!(lab.must("cat /run/refused.log").contains("\"bad-kernel\""));
    lab.expect_nothing_left();
}

/// Last of all, although it gives the module back.
fn without_kvm_it_is_3_and_says_what_to_load(lab: &mut Lab) {
    lab.must("rmmod kvm_amd");
    let (code, errors) = refused(lab, &guest("poweroff").to_json().unwrap());
    assert_eq!(code, 3, "{errors}");
    assert!(errors.contains("/dev/kvm is not available") && errors.contains("load kvm_amd"), "{errors}");
    assert!(lab.must("cat /run/refused.log").contains("\"kvm-unavailable\""));
    lab.must("modprobe kvm_amd");
    let ended = lab.boot("again", &guest("poweroff"));
    ended.expect_clean(EndReason::PowerOff);
}

#[test]
fn lab_vmm_runs_debians_kernel() {
    let checks: [Check; 16] = [
        ("boots with one vCPU and powers off", boots_with_one_vcpu_and_powers_off),
        ("boots with two vCPUs that both run", boots_with_two_vcpus_that_both_run),
        ("boots an ELF kernel by its PVH note", boots_an_elf_kernel_by_its_pvh_note),
        ("boots an ELF kernel without such a note", boots_an_elf_kernel_without_such_a_note),
        ("its memory is of huge pages", its_memory_is_of_huge_pages),
        ("resets through the i8042", resets_through_the_i8042),
        ("resets as Linux chooses", resets_as_linux_chooses),
        ("a panic with a timeout is a reset", a_panic_with_a_timeout_is_a_reset),
        ("without its initramfs the kernel panics and resets", without_its_initramfs_the_kernel_panics_and_resets),
        ("what is typed reaches the guest", what_is_typed_reaches_the_guest),
        ("SIGTERM ends it with its reason", sigterm_ends_it_with_its_reason),
        ("kill -9 leaves nothing", kill_9_leaves_nothing),
        ("two VMs at once do not meet", two_vms_at_once_do_not_meet),
        ("a wrong configuration is 2 and named", a_wrong_configuration_is_2_and_named),
        ("a truncated kernel is 2 and said so", a_truncated_kernel_is_2_and_said_so),
        ("without KVM it is 3 and says what to load", without_kvm_it_is_3_and_says_what_to_load),
    ];
    all(&mut lab(), &checks);
}
