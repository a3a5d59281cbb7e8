//! The guest's clock, which KVM keeps.

use kvm_bindings::{KVM_CLOCK_REALTIME, kvm_clock_data};
use kvm_ioctls::{Cap, VmFd};
use serde::{Deserialize, Serialize};

use crate::vm::KvmError;

/// What a snapshot keeps of it.
#[derive(Serialize, Deserialize, Clone, Default)]
pub struct KvmClock {
    clock: kvm_clock_data,
    /// Nanoseconds since 1970 when the clock was read.
    realtime: u64,
}

impl KvmClock {
    /// Reads it while the vCPUs stand still.
    pub fn save(vm: &VmFd) -> Result<Self, KvmError> {
        let step = |source| KvmError::Step { step: "tell the guest's clock", source };
        Ok(Self { clock: vm.get_clock().map_err(step)?, realtime: realtime() })
    }

    /// Nanoseconds that have passed since the snapshot, by the host's clock.
    pub fn elapsed_ns(&self) -> u64 {
        realtime().saturating_sub(self.realtime)
    }

    /// Lets the clock of a VM whose vCPUs have their state go on from where it stood, or, with `elapsed_ns`, as if that
    /// had passed.
    pub fn restore(&self, vm: &VmFd, elapsed_ns: u64) -> Result<(), KvmError> {
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
        vm.set_clock(&clock).map_err(|source| KvmError::Step { step: "set the guest's clock", source })
    }
}

/// Nanoseconds since 1970.
fn realtime() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
