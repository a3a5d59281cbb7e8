//! The configuration's file, in Firecracker's JSON.

use portcullis_vmm::config::{MAX_CMDLINE, MAX_DEVICES, MAX_MEM_MIB, MAX_VCPUS, MIN_MEM_MIB, VmConfig};

use super::Target;
use super::files::MemoryFile;

/// What is accepted is the same when it is written and read again, and within the bounds that the VMM has.
pub const VM_CONFIG: Target =
    Target { name: "vm_config", body: config, max_len: 4096, seeds: |_| [configurations(), edges()].concat() };

fn config(bytes: &[u8]) -> bool {
    let file = MemoryFile::new(bytes);
    let Ok(config) = VmConfig::from_file(&file.path()) else { return false };
    let machine = &config.machine_config;
    assert!((1..=MAX_VCPUS).contains(&machine.vcpu_count));
    assert!((MIN_MEM_MIB..=MAX_MEM_MIB).contains(&machine.mem_size_mib));
    assert!(config.drives.len() + config.network_interfaces.len() <= MAX_DEVICES);
    let cmdline = config.cmdline();
    assert!(cmdline.len() <= MAX_CMDLINE && !cmdline.contains(char::is_control), "{cmdline:?}");
    let text = config.to_json().expect("it can be written");
    let again: VmConfig = serde_json::from_str(&text).expect("what was written can be read");
    again.check().expect("what was accepted is accepted again");
    assert_eq!(again, config);
    true
}

/// Small ones, and some of which one number or one character is too much.
fn edges() -> Vec<Vec<u8>> {
    let with = |machine: &str, args: &str| {
        let source = format!(r#"{{"kernel_image_path": "k", "boot_args": "{args}"}}"#);
        format!(r#"{{"boot-source": {source}, "machine-config": {machine}}}"#).into_bytes()
    };
    let machine = |vcpus: u8, mib: u64| format!(r#"{{"vcpu_count": {vcpus}, "mem_size_mib": {mib}}}"#);
    let mut texts: Vec<_> = [(1, 2), (32, 1 << 20), (33, 128), (1, 1), (1, (1 << 20) + 1)]
        .map(|(vcpus, mib)| with(&machine(vcpus, mib), "quiet"))
        .to_vec();
    texts.extend(
        ["a\\tb".to_owned(), "x".repeat(MAX_CMDLINE), "x".repeat(MAX_CMDLINE + 1)]
            .map(|args| with(&machine(1, 2), &args)),
    );
    let cards = |count: usize| {
        let card = |number| format!(r#"{{"iface_id": "e{number}", "host_dev_name": "t{number}"}}"#);
        let cards = (0..count).map(card).collect::<Vec<_>>().join(", ");
        format!(r#"{{"boot-source": {{"kernel_image_path": "k"}}, "network-interfaces": [{cards}]}}"#).into_bytes()
    };
    texts.extend([cards(MAX_DEVICES), cards(MAX_DEVICES + 1)]);
    texts
}

/// Each part once, and a small one.
pub fn configurations() -> Vec<Vec<u8>> {
    let whole = r#"{
        "boot-source": {"kernel_image_path": "vmlinux", "initrd_path": "initrd", "boot_args": "console=ttyS0 -- -x"},
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 128, "smt": false, "track_dirty_pages": false},
        "drives": [{"drive_id": "rootfs", "path_on_host": "disk", "is_root_device": true, "partuuid": "0eaa91a0-01",
            "is_read_only": false, "cache_type": "Writeback", "io_engine": "Sync", "tenant": "a", "offset": 512,
            "rate_limiter": {"bandwidth": {"size": 1000, "one_time_burst": 5, "refill_time": 100}, "ops": null}}],
        "network-interfaces": [{"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:AC:10:00:02",
            "mtu": 1500, "rx_rate_limiter": {"ops": {"size": 1, "refill_time": 1}}}],
        "vsock": {"guest_cid": 3, "uds_path": "v.sock"},
        "entropy": {}, "cpu-config": null, "pmem": [], "memory-hotplug": null,
        "balloon": {"amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 1},
        "mmds-config": {"version": "V2", "network_interfaces": ["eth0"], "ipv4_address": "169.254.170.2"},
        "logger": {"log_path": "log", "level": "Info"}, "metrics": {"metrics_path": "metrics"},
        "serial": {"serial_out_path": "serial"}
    }"#;
    let small = r#"{"boot-source": {"kernel_image_path": "vmlinux"}}"#;
    [whole, small].map(|text| text.as_bytes().to_vec()).to_vec()
}
