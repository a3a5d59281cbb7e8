use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use super::*;
use crate::config::VmConfig;
use crate::vcpu::VcpuState;

/// A state as a VM with one vCPU has it, made without KVM.
pub(crate) fn state() -> State {
    let mut vcpu = VcpuState::default();
    vcpu.cpuid = table(*b"AuthenticAMD", 1 << 25);
    State {
        vmm: "0.0.0".to_owned(),
        config: VmConfig::new("/k").to_json().unwrap(),
        mem_mib: 128,
        vcpus: vec![vcpu],
        clock: KvmClock::default(),
        ioapic: crate::devices::ioapic::State::default(),
        devices: Vec::new(),
        serial: crate::devices::serial::State::default(),
        keyboard: crate::devices::i8042::Controller::default(),
        power: crate::devices::acpi_power::State::default(),
    }
}

/// A processor of this vendor with these features in leaf 1.
fn table(vendor: [u8; 12], features: u32) -> Vec<kvm_cpuid_entry2> {
    let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
    let zero = kvm_cpuid_entry2 { ebx: word(0), edx: word(4), ecx: word(8), ..kvm_cpuid_entry2::default() };
    vec![zero, kvm_cpuid_entry2 { function: 1, ecx: features, ..kvm_cpuid_entry2::default() }]
}

fn load(more: &str) -> SnapshotLoad {
    serde_json::from_str(&format!(r#"{{"snapshot_path": "/s", "mem_file_path": "/m"{more}}}"#)).unwrap()
}

#[test]
fn another_processor_is_refused_unless_it_can_do_the_same_or_more() {
    let check = |vendor: &[u8; 12], features: u32| {
        let here = CpuId::from_entries(&table(*vendor, features)).unwrap();
        state().check_cpu(&here)
    };
    assert!(check(b"AuthenticAMD", 1 << 25).is_ok());
    assert!(check(b"AuthenticAMD", u32::MAX).is_ok());
    assert!(
        matches!(check(b"AuthenticAMD", 1 << 26), Err(SnapshotError::Features { leaf: 1, bits }) if bits == 1 << 25)
    );
    match check(b"GenuineIntel", 1 << 25) {
        Err(SnapshotError::Vendor { made, here }) => {
            assert_eq!((made.as_str(), here.as_str()), ("AuthenticAMD", "GenuineIntel"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn configuration_and_state_have_to_go_together() {
    assert!(state().config(&load("")).is_ok());
    let vcpus = State { config: VmConfig::new("/k").with_vcpus(2).to_json().unwrap(), ..state() };
    assert!(matches!(vcpus.config(&load("")), Err(SnapshotError::Vcpus { found: 1, expected: 2 })));
    let memory = State { mem_mib: 127, ..state() };
    assert!(matches!(memory.config(&load("")), Err(SnapshotError::Config(_))));
    for bad in [String::new(), "{}".to_owned(), VmConfig::new("/k").with_mem_mib(0).to_json().unwrap()] {
        assert!(matches!(State { config: bad, ..state() }.config(&load("")), Err(SnapshotError::Config(_))));
    }
}

#[test]
fn overrides_find_what_they_name_or_are_refused() {
    let text = r#"{"boot-source": {"kernel_image_path": "/k"},
        "network-interfaces": [{"iface_id": "eth0", "host_dev_name": "tap0"}, {"iface_id": "eth1", "host_dev_name": "tap1"}],
        "vsock": {"guest_cid": 3, "uds_path": "/v"}}"#;
    let state = || State { config: text.to_owned(), ..state() };
    let config = state()
        .config(&load(
            r#", "network_overrides": [{"iface_id": "eth1", "host_dev_name": "other"}], "vsock_override": {"uds_path": "/w"}"#,
        ))
        .unwrap();
    let taps: Vec<_> = config.network_interfaces.iter().map(|card| card.host_dev_name.as_str()).collect();
    assert_eq!((taps, config.vsock.unwrap().uds_path), (vec!["tap0", "other"], "/w".into()));
    let missing = state().config(&load(r#", "network_overrides": [{"iface_id": "eth2", "host_dev_name": "t"}]"#));
    assert!(matches!(missing, Err(SnapshotError::Override(name)) if name.contains("eth2")));
    let none = tests::state().config(&load(r#", "vsock_override": {"uds_path": "/w"}"#));
    assert!(matches!(none, Err(SnapshotError::Override(_))));
}

#[test]
fn a_failed_write_leaves_nothing_that_could_be_loaded() {
    let ram = crate::memory::reserve(2).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let open =
        |name: &str| File::options().read(true).write(true).create(true).truncate(false).open(dir.path().join(name));
    let good = Files { state: open("state").unwrap(), memory: open("memory").unwrap() };
    let base = Base::booted();
    let written = |kind| Written { state: state(), ram: &ram, kind, base: &base, track: false };
    write(&good, &written(SnapshotType::Full), true).unwrap();
    assert!(read(&open("state").unwrap()).is_ok());
    // Of a longer one that was there nothing is left behind the new one's end.
    let length = good.state.metadata().unwrap().len();
    good.state.set_len(length + 100).unwrap();
    write(&good, &written(SnapshotType::Full), true).unwrap();
    assert_eq!(good.state.metadata().unwrap().len(), length);
    // The memory's file can only be read: an earlier state, which it would now belong to, must be gone.
    for kind in [SnapshotType::Full, SnapshotType::Diff] {
        write(&good, &written(kind), true).unwrap();
        let half = Files { state: open("state").unwrap(), memory: File::open(dir.path().join("memory")).unwrap() };
        let failed = write(&half, &written(kind), true).err();
        assert!(matches!(failed, Some(SnapshotError::Write { what: "memory", .. })), "{failed:?}");
        assert!(matches!(read(&open("state").unwrap()), Err(SnapshotError::Format(FormatError::NotASnapshot))));
    }
}
