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
/// As Firecracker's documents have it, and quiet.
const BOOT_ARGS: &str = "console=ttyS0 quiet panic=-1 pci=off";

/// The VMMs, and what runs the guest. QEMU's microvm has no keyboard controller: a triple fault ends it.
fn programs() -> [(&'static str, String); 3] {
    let ours = |name: &str| format!("./portcullis-vmm --no-api --level Off --config-file {name}.json");
    let qemu = format!(
        "qemu-system-x86_64 -M microvm,rtc=on -accel kvm -cpu host -m {MEM_MIB} -nodefaults -no-user-config -display none \
         -no-reboot -serial stdio -kernel vmlinuz -initrd initrd -append '{BOOT_ARGS} reboot=t'"
    );
    [("portcullis-vmm", ours("vm")), ("portcullis-vmm, huge_pages 2M", ours("huge")), ("QEMU microvm", qemu)]
}

/// One field of every life, in units of so many nanoseconds or exits.
fn each(figures: &Value, field: &str, unit: f64) -> Summary {
    let lives = figures["lives"].as_array().expect("lives");
    Summary::of(lives.iter().map(|life| life[field].as_f64().expect("a number") / unit).collect())
}

/// Measures every VMM.
pub fn run(report: &mut Report, vmm: &Path) {
    let mut lab = Lab::boot(vmm);
    lab.must(&format!("echo {} >/proc/sys/vm/nr_hugepages", MEM_MIB / 2));
    for (name, then, pages) in
        [("vm", "", HugePages::None), ("huge", "", HugePages::TwoMib), ("listen", "then=listen", HugePages::None)]
    {
        let config = VmConfig::new("/tmp/vmlinuz").with_initrd("/tmp/initrd").with_mem_mib(MEM_MIB);
        let mut config = config.with_boot_args(format!("{BOOT_ARGS} reboot=k {then}"));
        config.machine_config.huge_pages = pages;
        lab.write(&format!("/tmp/{name}.json"), config.to_json().expect("a configuration").as_bytes());
    }
    report.section("Cold boot of stock Linux, in milliseconds of a clock that counts instructions, a nanosecond each");
    let mut cold = Vec::new();
    for (name, command) in programs() {
        // The first only warms up.
        lab.measure(&format!("lives 1 {command}"));
        let figures = lab.measure(&format!("lives {BOOTS} {command}"));
        let init = each(&figures, "sign", 1e6);
        report.row(Row::figure("until the guest's init", name, init, "ms"));
        report.row(Row::figure("until the end", name, each(&figures, "end", 1e6), "ms"));
        report.row(Row::figure("exits until the guest's init", name, each(&figures, "exits", 1.0), ""));
        let guests = lab.measure(&format!("guests {BOOTS} {command}"));
        let (all, guest) = (each(&figures, "cpu", 1e6).median, each(&guests, "guest", 1e6).median);
        report.row(Row::figure("processor time, the guest's among it", name, Summary::of(vec![all]), "ms"));
        report.row(Row::figure("the VMM's own", name, Summary::of(vec![all - guest]), "ms"));
        let share = Summary::of(vec![100.0 * (1.0 - guest / all)]);
        report.row(Row::figure("the VMM's own share of the processor", name, share, "%"));
        cold.push(init);
    }
    restores(report, &mut lab, cold.first().expect("a VMM"));
}

fn restores(report: &mut Report, lab: &mut Lab, cold: &Summary) {
    report.section("The same guest restored from a snapshot, until it answers");
    let program = format!("./portcullis-vmm --level Off --api-sock {}", inside::SOCKET);
    lab.measure(&format!("snapshot {program} --config-file listen.json"));
    lab.measure(&format!("restores 1 {program}"));
    let figures = lab.measure(&format!("restores {RESTORES} {program}"));
    report.row(Row::figure("until the API says it is loaded", "portcullis-vmm", each(&figures, "loaded", 1e6), "ms"));
    report.row(Row::figure("until the guest's answer", "portcullis-vmm", each(&figures, "answer", 1e6), "ms"));
    let share = each(&figures, "answer", 1e4 * cold.median);
    report.row(Row::figure("of a cold boot until the guest's init", "portcullis-vmm", share, "%"));
}
