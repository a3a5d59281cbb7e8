//! Cold boots, what of them is the VMM's own work, and restores from a snapshot.

use std::path::Path;

use portcullis_vmm::config::{HugePages, VmConfig};
use serde_json::Value;

use super::{Lab, inside};
use crate::report::{Report, Row};
use crate::rounds::Summary;

/// Guest memory in MiB.
const MEM_MIB: u64 = 192;
/// Boots of each VMM, and as many again in which its guest's time is taken.
const BOOTS: usize = 5;
/// Restores.
const RESTORES: usize = 9;
/// As Firecracker's documents have it, with what it gives of its own to look less for a keyboard, and silent: Linux says
/// on the console that it has no PCI.
const BOOT_ARGS: &str = "console=ttyS0 quiet loglevel=1 panic=-1 pci=off i8042.noaux i8042.nomux i8042.dumbkbd";
/// Kernel and initramfs lie where they would on any host: in the cache of a file system on a disk.
const KERNEL: &str = "/srv/vmlinuz";
const INITRD: &str = "/srv/initrd";

/// The VMMs, and what runs the guest. QEMU's microvm has no keyboard controller: a triple fault ends it.
fn programs() -> [(&'static str, String); 3] {
    let ours = |name: &str| format!("./portcullis-vmm --no-api --level Off --config-file {name}.json");
    let qemu = format!(
        "qemu-system-x86_64 -M microvm,rtc=on -accel kvm -cpu host -m {MEM_MIB} -nodefaults -no-user-config -display none \
         -no-reboot -serial stdio -kernel {KERNEL} -initrd {INITRD} -append '{BOOT_ARGS} reboot=t'"
    );
    [("portcullis-vmm", ours("vm")), ("portcullis-vmm, huge_pages 2M", ours("huge")), ("QEMU microvm", qemu)]
}

/// One field of every life, by its path, in units of so many nanoseconds or exits.
fn each(figures: &Value, field: &str, unit: f64) -> Summary {
    let lives = figures["lives"].as_array().expect("lives");
    let number = |life: &Value| life.pointer(field).and_then(Value::as_f64).expect("a number");
    Summary::of(lives.iter().map(|life| number(life) / unit).collect())
}

/// Measures every VMM.
pub fn run(report: &mut Report, vmm: &Path) {
    let mut lab = Lab::boot(vmm);
    lab.must(&format!("echo {} >/proc/sys/vm/nr_hugepages", MEM_MIB / 2));
    for (name, then, pages) in
        [("vm", "", HugePages::None), ("huge", "", HugePages::TwoMib), ("listen", "then=listen", HugePages::None)]
    {
        let config = VmConfig::new(KERNEL).with_initrd(INITRD).with_mem_mib(MEM_MIB);
        let mut config = config.with_boot_args(format!("{BOOT_ARGS} reboot=k {then}"));
        config.machine_config.huge_pages = pages;
        lab.write(&format!("/tmp/{name}.json"), config.to_json().expect("a configuration").as_bytes());
    }
    report.section("Cold boot of stock Linux, in milliseconds of a clock that counts instructions, a nanosecond each");
    let mut cold = Vec::new();
    for (name, command) in programs() {
        cold.push(boots(report, &mut lab, name, &command));
    }
    restores(report, &mut lab, cold.first().expect("a VMM"));
}

/// Boots of one VMM; gives back how long they took until the guest's init.
fn boots(report: &mut Report, lab: &mut Lab, name: &str, command: &str) -> Summary {
    // The first only warms up.
    lab.measure(&format!("lives 1 {command}"));
    let figures = lab.measure(&format!("lives {BOOTS} {command}"));
    let guests = lab.measure(&format!("guests {BOOTS} {command}"));
    report.row(Row::figure("exits until the guest's init", name, each(&figures, "/sign/exits", 1.0), ""));
    for (until, point) in [("until the guest's init", "/sign"), ("until the end", "/end")] {
        report.row(Row::figure(until, name, each(&figures, &format!("{point}/time"), 1e6), "ms"));
        let all = each(&figures, &format!("{point}/cpu"), 1e6).median;
        let own = all - each(&guests, point, 1e6).median;
        for (what, value, unit) in [
            ("processor time, the guest's among it", all, "ms"),
            ("the VMM's own", own, "ms"),
            ("the VMM's own share of the processor", 100.0 * own / all, "%"),
        ] {
            report.row(Row::figure(&format!("{what}, {until}"), name, Summary::of(vec![value]), unit));
        }
    }
    let stood = [&figures, &guests].map(|lives| lives["standstills"].as_f64().expect("a number")).iter().sum();
    report.row(Row::figure("guests that stood still, not counted", name, Summary::of(vec![stood]), ""));
    each(&figures, "/sign/time", 1e6)
}

fn restores(report: &mut Report, lab: &mut Lab, cold: &Summary) {
    report.section("The same guest restored from a snapshot, until it answers");
    let program = format!("./portcullis-vmm --level Off --api-sock {}", inside::SOCKET);
    lab.measure(&format!("snapshot {program} --config-file listen.json"));
    lab.measure(&format!("restores 1 {program}"));
    let figures = lab.measure(&format!("restores {RESTORES} {program}"));
    report.row(Row::figure("until the API says it is loaded", "portcullis-vmm", each(&figures, "/loaded", 1e6), "ms"));
    report.row(Row::figure("until the guest's answer", "portcullis-vmm", each(&figures, "/answer", 1e6), "ms"));
    let share = each(&figures, "/answer", 1e4 * cold.median);
    report.row(Row::figure("of a cold boot until the guest's init", "portcullis-vmm", share, "%"));
}
