//! Loads on a disk and a network card of stock Linux, with QEMU's virtio devices as peers: the same host, kernel, loads,
//! file and tap, and queues of the same length.
//!
//! The disk's file lies in the host's memory, so that what is measured is the way to it. That file system knows no direct
//! I/O: QEMU works with the host's cache too (`cache=writeback`), as we do.

use std::path::Path;

use portcullis_vmm::config::{CacheType, DriveConfig, NetworkInterface, VmConfig};
use serde_json::Value;

use super::{Lab, load};
use crate::report::{Report, Row};
use crate::rounds::Summary;

/// Guest memory in MiB.
const MEM_MIB: u64 = 256;
/// Lives of each VMM for each kind of load. They are short: the longer one is, the likelier it meets the emulator's fault.
const LIVES: usize = 5;
/// Kinds of loads.
const KINDS: [&str; 2] = ["disk", "network"];
const BOOT_ARGS: &str = "console=ttyS0 quiet panic=-1 pci=off then=load";

/// What is measured of each load: its name, how people call it, and its unit.
const LOADS: [(&str, &str, &str); 7] = [
    ("read", "random reads of 4 KiB, one at a time", "a second"),
    ("write", "random writes of 4 KiB, one at a time", "a second"),
    ("read-32", "random reads of 4 KiB, 32 at once", "a second"),
    ("write-32", "random writes of 4 KiB, 32 at once", "a second"),
    ("round-trip", "datagrams there and back", "a second"),
    ("send", "a stream to the host", "MiB a second"),
    ("receive", "a stream from the host", "MiB a second"),
];

/// The VMMs, and what runs a guest with one kind of loads.
fn programs(kind: &str) -> Vec<(&'static str, String)> {
    let qemu = |aio: &str, vhost: &str| {
        format!(
            "qemu-system-x86_64 -M microvm,rtc=on -accel kvm -cpu host -m {MEM_MIB} -nodefaults -no-user-config \
             -display none -no-reboot -serial stdio -kernel vmlinuz -initrd loaded -append '{BOOT_ARGS} kind={kind} reboot=t' \
             -drive if=none,id=d,file=disk,format=raw,cache=writeback,aio={aio} \
             -device virtio-blk-device,drive=d,queue-size=256,num-queues=1 \
             -netdev tap,id=n,ifname=tap0,script=no,downscript=no,vhost={vhost} -device virtio-net-device,netdev=n"
        )
    };
    vec![
        ("portcullis-vmm", format!("./portcullis-vmm --no-api --level Off --config-file {kind}.json")),
        ("QEMU microvm", qemu("threads", "off")),
        ("QEMU, io_uring and vhost-net", qemu("io_uring", "on")),
    ]
}

/// Measures every VMM.
pub fn run(report: &mut Report, vmm: &Path) {
    let mut lab = Lab::boot(vmm);
    let drive = DriveConfig { cache_type: CacheType::Writeback, ..DriveConfig::new("disk", "/tmp/disk") };
    let config = VmConfig::new("/tmp/vmlinuz").with_initrd("/tmp/loaded").with_mem_mib(MEM_MIB).with_drive(drive);
    for kind in KINDS {
        let mut config = config.clone().with_boot_args(format!("{BOOT_ARGS} kind={kind} reboot=k"));
        config.network_interfaces.push(NetworkInterface::new("net", "tap0"));
        lab.write(&format!("/tmp/{kind}.json"), config.to_json().expect("a configuration").as_bytes());
    }
    let host = load::HOST;
    lab.must(&format!(
        "tunctl -t tap0 && ip address add {host}/24 dev tap0 && ip link set tap0 up && ip link set lo up"
    ));
    lab.must(&format!("dd if=/dev/urandom of=/tmp/disk bs=1M count={} 2>/dev/null", load::DISK_BYTES >> 20));
    let measured: Vec<Vec<(&str, Value)>> = KINDS
        .iter()
        .map(|kind| {
            let programs = programs(kind).into_iter();
            programs.map(|(name, command)| (name, lab.measure(&format!("loads {LIVES} {command}")))).collect()
        })
        .collect();
    report.section("Loads on virtio devices of stock Linux, by a clock that counts instructions, a nanosecond each");
    for (kind, measured) in KINDS.iter().zip(&measured) {
        for (name, figures) in measured {
            let standstills = Summary::of(vec![number(figures, "standstills")]);
            report.row(Row::figure(&format!("{kind}: guests that stood still, not counted"), name, standstills, ""));
        }
        for (load, about, unit) in LOADS {
            if measured.iter().any(|(_, figures)| !each(figures, load, rate).is_empty()) {
                compare(report, measured, load, about, unit);
            }
        }
    }
}

/// One load on all VMMs.
fn compare(report: &mut Report, measured: &[(&str, Value)], load: &str, about: &str, unit: &'static str) {
    for (name, figures) in measured {
        let rates = each(figures, load, rate);
        let mut row = Row::figure(about, name, Summary::of(rates.clone()), unit);
        if let [(_, ours), (peer, theirs), ..] = measured
            && std::ptr::eq(ours, figures)
        {
            let pairs = rates.iter().zip(each(theirs, load, rate));
            row = row.times(peer, Summary::of(pairs.map(|(ours, theirs)| ours / theirs).collect()));
        }
        report.row(row);
    }
    for (name, figures) in measured {
        report.row(Row::figure("exits for it", name, Summary::of(each(figures, load, exits)), ""));
    }
}

/// A figure of every repetition of a load.
fn each(figures: &Value, load: &str, figure: fn(&Value) -> f64) -> Vec<f64> {
    let all = figures["loads"].as_array().expect("loads");
    all.iter().filter(|one| one["name"] == load).map(figure).collect()
}

fn number(one: &Value, field: &str) -> f64 {
    one[field].as_f64().expect("a number")
}

/// Requests or MiB a second.
fn rate(one: &Value) -> f64 {
    amount(one) / number(one, "nanos") * 1e9
}

/// Exits of a request, or of a MiB.
fn exits(one: &Value) -> f64 {
    number(one, "exits") / amount(one)
}

/// Requests or MiB.
fn amount(one: &Value) -> f64 {
    let amount = number(one, "amount");
    if one["name"] == "send" || one["name"] == "receive" { amount / f64::from(1 << 20) } else { amount }
}
