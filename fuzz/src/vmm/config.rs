//! The configuration's file, in Firecracker's JSON.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use portcullis_vmm::config::{
    CpuConfig, CpuConfigOrPath, MAX_CMDLINE, MAX_DEVICES, MAX_MEM_MIB, MAX_VCPUS, MIN_MEM_MIB, VmConfig,
};

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

/// A CPU template that is accepted is the same when it is written and read again, and adds no feature.
pub const CPU_CONFIG: Target = Target { name: "cpu_config", body: cpu_config, max_len: 2048, seeds: |_| templates() };

fn cpu_config(bytes: &[u8]) -> bool {
    let Ok(template) = serde_json::from_slice::<CpuConfig>(bytes) else { return false };
    let text = serde_json::to_string(&template).expect("it can be written");
    assert_eq!(serde_json::from_str::<CpuConfig>(&text).expect("what was written can be read"), template);
    let mut config = VmConfig::new("k");
    config.cpu_config = Some(CpuConfigOrPath::Template(template.clone()));
    if config.check().is_err() {
        return false;
    }
    // Leaf 7 has features alone. What is hidden of them stays so.
    let features = |all: u32| kvm_cpuid_entry2 {
        function: 7,
        flags: 1,
        eax: all,
        ebx: all,
        ecx: all,
        edx: all,
        ..kvm_cpuid_entry2::default()
    };
    let table = |all| CpuId::from_entries(&[features(all)]).expect("one entry is not too many");
    if let Ok(changed) = template.apply(&table(0xffff_0000), &table(0xff00_0000)) {
        let entry = &changed.as_slice()[0];
        for register in [entry.eax, entry.ebx, entry.ecx, entry.edx] {
            assert_eq!(register & 0x0000_ffff, 0, "{register:#x}");
        }
    }
    true
}

fn templates() -> Vec<Vec<u8>> {
    let leaf = |number: &str, bitmap: &str| {
        format!(
            r#"{{"cpuid_modifiers": [{{"leaf": "{number}", "subleaf": "0x0", "flags": 1,
                "modifiers": [{{"register": "ebx", "bitmap": "{bitmap}"}}]}}]}}"#
        )
    };
    let mut texts = vec![
        "{}".to_owned(),
        leaf("0x7", "0b0xx1_xxxx_xxxx_xxxx_xxxx_xxxx_xxxx_xxxx"),
        leaf("0x7", "0b1"),
        leaf("0b111", "00"),
    ];
    texts.push(
        r#"{"kvm_capabilities": ["171", "!56"], "msr_modifiers": [{"addr": "0x10a", "bitmap": "0b01x"}]}"#.to_owned(),
    );
    texts.push(r#"{"msr_modifiers": [{"addr": "0x10", "bitmap": "0b0"}], "cpuid_modifiers": []}"#.to_owned());
    texts.into_iter().map(String::into_bytes).collect()
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
        "entropy": {}, "cpu-config": {"msr_modifiers": [{"addr": "0x10a", "bitmap": "0b0"}]}, "pmem": [], "memory-hotplug": null,
        "balloon": {"amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 1},
        "mmds-config": {"version": "V2", "network_interfaces": ["eth0"], "ipv4_address": "169.254.170.2"},
        "logger": {"log_path": "log", "level": "Info"}, "metrics": {"metrics_path": "metrics"},
        "serial": {"serial_out_path": "serial"}
    }"#;
    let small = r#"{"boot-source": {"kernel_image_path": "vmlinux"}}"#;
    [whole, small].map(|text| text.as_bytes().to_vec()).to_vec()
}
