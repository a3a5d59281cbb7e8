//! Memory that the guest gives back and takes again, and random numbers that it gets.

use serde_json::{Value, json};

use crate::harness::{Check, Lab};
use crate::stock_guest::{self, VM};

/// What the balloon is to take, in MiB: most of what the guest has free.
const LARGE: u64 = 96;

pub const CHECKS: [Check; 4] = [
    ("balloon: the guest says how it is", the_guest_says_how_it_is),
    ("balloon: what it takes is the host's again, and what it gives the guest's", it_takes_and_gives),
    ("balloon: it gives way before programs are killed", it_gives_way_before_programs_are_killed),
    ("entropy: random numbers come from the host", random_numbers_come_from_the_host),
];

fn statistics(lab: &mut Lab) -> Value {
    lab.get(VM, "/balloon/statistics")
}

/// Asks for another size and waits until the guest says that the balloon has it.
fn inflate(lab: &mut Lab, mib: u64) {
    lab.change(VM, "PATCH", "/balloon", &json!({ "amount_mib": mib }));
    wait_for(lab, |statistics| statistics["actual_mib"] == mib);
    assert_eq!(statistics(lab)["target_pages"], mib * 256);
}

fn wait_for(lab: &mut Lab, fits: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..600 {
        let statistics = statistics(lab);
        if fits(&statistics) {
            return statistics;
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    panic!("the balloon stays so: {}", statistics(lab));
}

/// Memory of the VMM's process, in KiB.
fn resident(lab: &mut Lab) -> u64 {
    lab.must(&format!("awk '/VmRSS/ {{ print $2 }}' /proc/$(cat /run/vm/{VM}/pid)/status")).parse().unwrap()
}

/// Lets the guest use memory: a file that is nowhere else.
fn fill(lab: &mut Lab, mib: u64) {
    lab.guest(VM, &format!("dd if=/dev/zero of=/mnt/fill bs=1M count={mib} 2>&1"));
}

fn the_guest_says_how_it_is(lab: &mut Lab) {
    stock_guest::ensure(lab);
    let free = |s: &Value| s["free_memory"].as_u64();
    let first = wait_for(lab, |statistics| free(statistics).is_some());
    let total = first["total_memory"].as_u64().unwrap();
    assert!(total < stock_guest::MEM_MIB << 20 && free(&first).unwrap() < total, "{first}");
    fill(lab, 32);
    // It tells every second.
    wait_for(lab, |statistics| free(statistics).unwrap() + (24 << 20) < free(&first).unwrap());
    lab.guest(VM, "rm /mnt/fill");
    assert!(lab.counted(VM, "balloon", "stats_updates_count") >= 2);
}

fn it_takes_and_gives(lab: &mut Lab) {
    stock_guest::ensure(lab);
    // The host has given the guest what it has touched, and gets nothing back by itself.
    fill(lab, LARGE);
    lab.guest(VM, "rm /mnt/fill");
    let used = resident(lab);
    inflate(lab, LARGE);
    let inflated = resident(lab);
    assert!(inflated + LARGE * 1024 / 2 < used, "{used} KiB before, {inflated} KiB after");
    let free = lab.guest(VM, "awk '/MemFree/ { print $2 }' /proc/meminfo").parse::<u64>().unwrap();
    assert!(free < (stock_guest::MEM_MIB - LARGE) * 1024, "{free}");
    inflate(lab, 0);
    fill(lab, LARGE);
    let back = resident(lab);
    assert!(back > inflated + LARGE * 1024 / 2, "{inflated} KiB before, {back} KiB after");
    lab.guest(VM, "rm /mnt/fill");
    assert_eq!(lab.counted(VM, "balloon", "event_fails"), 0);
}

fn it_gives_way_before_programs_are_killed(lab: &mut Lab) {
    stock_guest::ensure(lab);
    inflate(lab, LARGE);
    fill(lab, LARGE);
    let after = wait_for(lab, |statistics| statistics["actual_mib"].as_u64().unwrap() < LARGE);
    assert_eq!(after["target_mib"], LARGE);
    lab.guest(VM, "test $(stat -c %s /mnt/fill) = 100663296 && rm /mnt/fill");
    assert_eq!(lab.guest(VM, "dmesg | grep -c 'Killed process' || true"), "0");
    inflate(lab, 0);
}

fn random_numbers_come_from_the_host(lab: &mut Lab) {
    stock_guest::ensure(lab);
    assert_eq!(lab.guest(VM, "cat /sys/class/misc/hw_random/rng_current"), "virtio_rng.0");
    let before = lab.counted(VM, "entropy", "entropy_bytes");
    let numbers = lab.guest(VM, "for i in 1 2; do head -c 4096 /dev/hwrng | sha256sum; done");
    let (first, second) = numbers.split_once('\n').unwrap_or_default();
    assert_ne!(first, second);
    assert!(lab.counted(VM, "entropy", "entropy_bytes") >= before + 8192);
}
