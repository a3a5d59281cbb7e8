//! Cold boots, and what of them is the VMM's own work.

use std::path::Path;

use portcullis_vmm::config::VmConfig;
use serde_json::Value;

use super::Lab;
use crate::report::{Report, Row};
use crate::rounds::Summary;

/// Guest memory in MiB.
const MEM_MIB: u64 = 192;
/// Boots of each VMM. The kernel counts guests' time in ticks of 4 ms: so many boots make some thousand ticks.
const BOOTS: usize = 5;
/// As Firecracker's documents have it, and quiet.
const BOOT_ARGS: &str = "console=ttyS0 quiet panic=-1 pci=off";

/// The VMMs, and what runs the guest. QEMU's microvm has no keyboard controller: a triple fault ends it.
fn programs() -> [(&'static str, String); 2] {
    let ours = "./portcullis-vmm --no-api --level Off --config-file vm.json".to_owned();
    let qemu = format!(
        "qemu-system-x86_64 -M microvm,rtc=on -accel kvm -cpu host -m {MEM_MIB} -nodefaults -no-user-config -display none \
         -no-reboot -serial stdio -kernel vmlinuz -initrd initrd -append '{BOOT_ARGS} reboot=t'"
    );
    [("portcullis-vmm", ours), ("QEMU microvm", qemu)]
}

/// One field of every life.
fn each(figures: &Value, field: &str) -> Vec<f64> {
    let lives = figures["lives"].as_array().expect("lives");
    lives.iter().map(|life| life[field].as_f64().expect("a number")).collect()
}

/// Measures every VMM.
pub fn run(report: &mut Report, vmm: &Path) {
    let mut lab = Lab::boot(vmm, &[]);
    let config = VmConfig::new("/tmp/vmlinuz").with_initrd("/tmp/initrd").with_mem_mib(MEM_MIB);
    lab.write(
        "/tmp/vm.json",
        config.with_boot_args(format!("{BOOT_ARGS} reboot=k")).to_json().expect("a configuration").as_bytes(),
    );
    report.section("Cold boot of stock Linux, counted: a nanosecond is an instruction of the host");
    for (name, command) in programs() {
        // The first only warms up.
        lab.measure(&format!("lives 1 {command}"));
        let figures = lab.measure(&format!("lives {BOOTS} {command}"));
        let millions = |field| Summary::of(each(&figures, field).iter().map(|value| value / 1e6).collect());
        report.row(Row::figure("until the guest's init", name, millions("sign"), "ms"));
        report.row(Row::figure("until the end", name, millions("end"), "ms"));
        report.row(Row::figure("exits until the guest's init", name, Summary::of(each(&figures, "exits")), ""));
        let number = |field: &str| figures[field].as_f64().expect("a number");
        let share = 100.0 * (1.0 - number("guests") / number("cpu"));
        report.row(Row::figure("the VMM's own share", name, Summary::of(vec![share]), "%"));
    }
}
