//! The state of KVM's own devices: interrupt controllers and clock.

use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::{Cap, VmFd};
use serde::{Deserialize, Serialize};

use crate::vm::KvmError;

/// What a snapshot keeps of them.
#[derive(Serialize, Deserialize, Clone, Default)]
pub struct KvmState {
    /// Both PICs and the IOAPIC.
    irqchips: [kvm_irqchip; 3],
    clock: kvm_clock_data,
    /// Nanoseconds since 1970 when the clock was read.
    realtime: u64,
}

impl KvmState {
    /// Reads it while the vCPUs stand still.
    pub fn save(vm: &VmFd) -> Result<Self, KvmError> {
        let step = |step| move |source| KvmError::Step { step, source };
        let chip = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..kvm_irqchip::default() };
            vm.get_irqchip(&mut chip).map(|()| chip).map_err(step("tell the state of its interrupt controllers"))
        };
        let irqchips = [chip(KVM_IRQCHIP_PIC_MASTER)?, chip(KVM_IRQCHIP_PIC_SLAVE)?, chip(KVM_IRQCHIP_IOAPIC)?];
        let clock = vm.get_clock().map_err(step("tell the guest's clock"))?;
        Ok(Self { irqchips, clock, realtime: realtime() })
    }

    /// Nanoseconds that have passed since the snapshot, by the host's clock.
    pub fn elapsed_ns(&self) -> u64 {
        realtime().saturating_sub(self.realtime)
    }

    /// Puts a VM whose vCPUs have their state into this one. Its clock goes on from where it stood, or, with
    /// `elapsed_ns`, as if that had passed.
    pub fn restore(&self, vm: &VmFd, elapsed_ns: u64) -> Result<(), KvmError> {
        let step = |step| move |source| KvmError::Step { step, source };
        let ids = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];
        for (chip, chip_id) in self.irqchips.iter().zip(ids) {
            let chip = kvm_irqchip { chip_id, ..*chip };
            vm.set_irqchip(&chip).map_err(step("set the state of its interrupt controllers"))?;
        }
        let can = vm.check_extension_int(Cap::AdjustClock);
        let exact = u32::try_from(can).is_ok_and(|can| can & KVM_CLOCK_REALTIME != 0)
            && self.clock.flags & KVM_CLOCK_REALTIME != 0
            && elapsed_ns > 0;
        let clock = if exact {
            // KVM reads its own clocks once more, in one moment.
            kvm_clock_data { flags: KVM_CLOCK_REALTIME, ..self.clock }
        } else {
            kvm_clock_data { clock: self.clock.clock.saturating_add(elapsed_ns), ..kvm_clock_data::default() }
        };
        vm.set_clock(&clock).map_err(step("set the guest's clock"))
    }
}

/// Nanoseconds since 1970.
fn realtime() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
