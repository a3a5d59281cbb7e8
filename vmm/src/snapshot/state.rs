//! What a snapshot keeps beside the memory.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};

use super::{KvmClock, SnapshotError, SnapshotLoad, at_most};
use crate::config::{MAX_DEVICES, MAX_VCPUS, NetworkInterface, VmConfig};
use crate::devices::{acpi_power, i8042, ioapic, serial};
use crate::vcpu::VcpuState;
use crate::virtio::SlotState;

/// The state of a paused VM.
#[derive(Serialize, Deserialize)]
pub struct State {
    /// Version of the VMM that made it.
    pub vmm: String,
    /// The VM's configuration, as the text of a `--config-file`.
    pub config: String,
    /// Guest memory in MiB, the length of the other file.
    pub mem_mib: u64,
    /// In order of their numbers.
    #[serde(deserialize_with = "at_most::<{ MAX_VCPUS as usize }, _, _>")]
    pub vcpus: Vec<VcpuState>,
    /// The guest's clock.
    pub clock: KvmClock,
    /// The virtio devices, in their order.
    #[serde(deserialize_with = "at_most::<MAX_DEVICES, _, _>")]
    pub devices: Vec<SlotState>,
    /// The interrupt controller.
    pub ioapic: ioapic::State,
    /// The serial line.
    pub serial: serial::State,
    /// The keyboard controller.
    pub keyboard: i8042::Controller,
    /// Power management.
    pub power: acpi_power::State,
}

/// Reads one register of a leaf.
type Register = fn(&kvm_cpuid_entry2) -> u32;

/// Where CPUID says what a guest may use: leaf, register, and the bits in it that follow other registers while it runs
/// (MWAIT, OSXSAVE, APIC, OSPKE) or that KVM and this VMM have to give themselves (x2APIC, TSC deadline, hypervisor, HTT,
/// `CmpLegacy`).
const FEATURES: [(u32, Register, u32); 6] = [
    (1, |entry| entry.ecx, (1 << 3) | (1 << 21) | (1 << 24) | (1 << 27) | (1 << 31)),
    (1, |entry| entry.edx, (1 << 9) | (1 << 28)),
    (7, |entry| entry.ebx, 0),
    (7, |entry| entry.ecx, 1 << 4),
    (0x8000_0001, |entry| entry.ecx, 1 << 1),
    (0x8000_0001, |entry| entry.edx, 1 << 9),
];

impl State {
    /// The configuration, with what a load asks to be otherwise, checked.
    pub fn config(&self, load: &SnapshotLoad) -> Result<VmConfig, SnapshotError> {
        let mut config: VmConfig =
            serde_json::from_str(&self.config).map_err(|e| SnapshotError::Config(e.to_string()))?;
        for other in &load.network_overrides {
            let of = |card: &&mut NetworkInterface| card.iface_id == other.iface_id;
            let missing = || SnapshotError::Override(format!("network interface {:?}", other.iface_id));
            let card = config.network_interfaces.iter_mut().find(of).ok_or_else(missing)?;
            card.host_dev_name.clone_from(&other.host_dev_name);
        }
        if let Some(other) = &load.vsock_override {
            let vsock = config.vsock.as_mut().ok_or_else(|| SnapshotError::Override("vsock device".to_owned()))?;
            vsock.uds_path.clone_from(&other.uds_path);
        }
        config.machine_config.track_dirty_pages = load.track_dirty_pages || load.enable_diff_snapshots;
        config.check().map_err(|e| SnapshotError::Config(e.to_string()))?;
        let expected = usize::from(config.machine_config.vcpu_count);
        if self.vcpus.len() != expected {
            return Err(SnapshotError::Vcpus { found: self.vcpus.len(), expected });
        }
        if config.machine_config.mem_size_mib != self.mem_mib {
            return Err(SnapshotError::Config("its memory is not the state's".to_owned()));
        }
        Ok(config)
    }

    /// Whether this host's processor, with what its KVM supports, can go on with the guest.
    pub fn check_cpu(&self, supported: &CpuId) -> Result<(), SnapshotError> {
        let here = supported.as_slice();
        for vcpu in &self.vcpus {
            let (made, this) = (vendor(&vcpu.cpuid), vendor(here));
            if made != this {
                return Err(SnapshotError::Vendor { made, here: this });
            }
            for (leaf, register, ignored) in FEATURES {
                let bits = value(&vcpu.cpuid, leaf, register) & !value(here, leaf, register) & !ignored;
                if bits != 0 {
                    return Err(SnapshotError::Features { leaf, bits });
                }
            }
        }
        Ok(())
    }
}

/// A register of a leaf (of its first index); 0 where there is no such leaf.
fn value(table: &[kvm_cpuid_entry2], leaf: u32, register: Register) -> u32 {
    let first = |entry: &kvm_cpuid_entry2| entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0 || entry.index == 0;
    table.iter().find(|entry| entry.function == leaf && first(entry)).map_or(0, register)
}

/// The processor's vendor, such as `AuthenticAMD`.
fn vendor(table: &[kvm_cpuid_entry2]) -> String {
    let registers: [Register; 3] = [|entry| entry.ebx, |entry| entry.edx, |entry| entry.ecx];
    let bytes: Vec<u8> = registers.iter().flat_map(|register| value(table, 0, *register).to_le_bytes()).collect();
    bytes.escape_ascii().to_string()
}
