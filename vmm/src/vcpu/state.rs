//! A vCPU's whole state, for snapshots.

use kvm_bindings::{
    CpuId, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::VcpuError;
use crate::snapshot::at_most;

/// Registers that are read or set with one call; KVM takes 256 at most.
const CHUNK: usize = 128;
/// Most model-specific registers of one vCPU. KVM lists between one and two hundred.
const MAX_MSRS: usize = 2048;
/// Most entries of a table for `CPUID`: KVM takes no more.
const MAX_CPUID: usize = 256;
const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// How far the clock rates of two hosts may differ without being adapted, in parts of a million. Two runs of the same
/// kernel on the same machine measure rates that differ by some tens.
const RATE_TOLERANCE: u64 = 250;

/// What a snapshot keeps of a vCPU.
#[derive(Serialize, Deserialize, Default)]
pub struct VcpuState {
    /// What its `CPUID` answers.
    #[serde(deserialize_with = "at_most::<MAX_CPUID, _, _>")]
    pub cpuid: Vec<kvm_cpuid_entry2>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    /// Index and value.
    #[serde(deserialize_with = "at_most::<MAX_MSRS, _, _>")]
    msrs: Vec<(u32, u64)>,
    /// Rate of the time-stamp counter.
    tsc_khz: u32,
}

impl VcpuState {
    /// Reads the state of a vCPU that stands still. `cpuid` is what it was configured with (KVM adds to it, on some hosts
    /// what is not the guest's), `msrs` the registers that this host's KVM can save.
    pub fn save(fd: &VcpuFd, vcpu: u8, cpuid: &[kvm_cpuid_entry2], msrs: &[u32]) -> Result<Self, VcpuError> {
        let kvm = |step| move |source| VcpuError::Kvm { vcpu, step, source };
        // First: KVM takes in pending INIT and SIPI with it, which change registers.
        let mp_state = fd.get_mp_state().map_err(kvm("tell whether it runs"))?;
        Ok(Self {
            cpuid: cpuid.to_vec(),
            mp_state,
            regs: fd.get_regs().map_err(kvm("tell its registers"))?,
            sregs: fd.get_sregs().map_err(kvm("tell its system registers"))?,
            xsave: fd.get_xsave().map_err(kvm("tell its FPU"))?,
            xcrs: fd.get_xcrs().map_err(kvm("tell its extended control registers"))?,
            debug: fd.get_debug_regs().map_err(kvm("tell its debug registers"))?,
            lapic: fd.get_lapic().map_err(kvm("tell its local APIC"))?,
            msrs: read_msrs(fd, msrs).map_err(kvm("tell its model-specific registers"))?,
            tsc_khz: fd.get_tsc_khz().map_err(kvm("tell the rate of its time-stamp counter"))?,
            // Last: reading the rest must not have left an event half delivered.
            events: fd.get_vcpu_events().map_err(kvm("tell its events"))?,
        })
    }

    /// Puts a vCPU that was just made into this state. Its time-stamp counter goes on as if `elapsed_ns` had passed.
    pub fn restore(&self, fd: &VcpuFd, vcpu: u8, elapsed_ns: u64) -> Result<(), VcpuError> {
        let kvm = |step| move |source| VcpuError::Kvm { vcpu, step, source };
        let cpuid = CpuId::from_entries(&self.cpuid).map_err(|_| VcpuError::Cpuid)?;
        fd.set_cpuid2(&cpuid).map_err(kvm("set its CPUID"))?;
        self.restore_rate(fd).map_err(kvm("set the rate of its time-stamp counter"))?;
        fd.set_mp_state(self.mp_state).map_err(kvm("set whether it runs"))?;
        fd.set_regs(&self.regs).map_err(kvm("set its registers"))?;
        fd.set_sregs(&self.sregs).map_err(kvm("set its system registers"))?;
        set_xsave(fd, &self.xsave).map_err(kvm("set its FPU"))?;
        fd.set_xcrs(&self.xcrs).map_err(kvm("set its extended control registers"))?;
        fd.set_debug_regs(&self.debug).map_err(kvm("set its debug registers"))?;
        fd.set_lapic(&self.lapic).map_err(kvm("set its local APIC"))?;
        self.restore_msrs(fd, vcpu, elapsed_ns)?;
        fd.set_vcpu_events(&self.events).map_err(kvm("set its events"))
    }

    fn restore_rate(&self, fd: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        let (saved, here) = (u64::from(self.tsc_khz), u64::from(fd.get_tsc_khz()?));
        let close = saved.abs_diff(here) * 1_000_000 <= here * RATE_TOLERANCE;
        if close { Ok(()) } else { fd.set_tsc_khz(self.tsc_khz) }
    }

    fn restore_msrs(&self, fd: &VcpuFd, vcpu: u8, elapsed_ns: u64) -> Result<(), VcpuError> {
        let ticks = u128::from(elapsed_ns) * u128::from(self.tsc_khz) / 1_000_000;
        let ticks = u64::try_from(ticks).unwrap_or(0);
        let entry = |&(index, data): &(u32, u64)| {
            let data = if index == MSR_TSC { data.wrapping_add(ticks) } else { data };
            kvm_msr_entry { index, data, ..kvm_msr_entry::default() }
        };
        let mut entries: Vec<kvm_msr_entry> = self.msrs.iter().take(MAX_MSRS).map(entry).collect();
        // The deadline is compared with the counter: it comes last.
        entries.sort_by_key(|entry| entry.index == MSR_TSC_DEADLINE);
        let mut rest = entries.as_slice();
        while !rest.is_empty() {
            let (chunk, _) = rest.split_at(rest.len().min(CHUNK));
            let msrs = Msrs::from_entries(chunk).map_err(|_| VcpuError::Cpuid)?;
            let step = "set its model-specific registers";
            let set = fd.set_msrs(&msrs).map_err(|source| VcpuError::Kvm { vcpu, step, source })?;
            rest = rest.get(set..).unwrap_or_default();
            if set < chunk.len() {
                // Refused. Nothing is lost where the register holds that value anyway: some can only be read.
                let Some((refused, behind)) = rest.split_first() else { break };
                if read_msrs(fd, &[refused.index]).ok().as_deref() != Some(&[(refused.index, refused.data)]) {
                    return Err(VcpuError::Msr { vcpu, index: refused.index });
                }
                rest = behind;
            }
        }
        Ok(())
    }
}

fn set_xsave(fd: &VcpuFd, xsave: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: the area has the 4096 bytes that KVM reads. It reads more only for features that a process has to ask for
    // first, and this one does not.
    unsafe { fd.set_xsave(xsave) }
}

/// Reads what can be read of these registers: KVM lists some that this guest's processor does not have.
pub(super) fn read_msrs(fd: &VcpuFd, list: &[u32]) -> Result<Vec<(u32, u64)>, kvm_ioctls::Error> {
    let mut found = Vec::with_capacity(list.len().min(MAX_MSRS));
    let mut rest = list.get(..MAX_MSRS).unwrap_or(list);
    while !rest.is_empty() {
        let (chunk, _) = rest.split_at(rest.len().min(CHUNK));
        let entries: Vec<_> = chunk.iter().map(|&index| kvm_msr_entry { index, ..kvm_msr_entry::default() }).collect();
        let mut msrs = Msrs::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        let read = fd.get_msrs(&mut msrs)?;
        found.extend(msrs.as_slice().iter().take(read).map(|entry| (entry.index, entry.data)));
        let refused = usize::from(read < chunk.len());
        rest = rest.get(read + refused..).unwrap_or_default();
    }
    Ok(found)
}
