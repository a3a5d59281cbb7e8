//! This host's KVM.

use std::ffi::CString;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use kvm_bindings::{
    CpuId, KVM_CAP_PMU_CAPABILITY, KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, KVM_PMU_CAP_DISABLE, kvm_enable_cap,
};
use kvm_ioctls::{Cap, Kvm, VmFd};

use super::STACK;
use crate::vcpu::CpuConfig;
use crate::vcpu::template::KvmCapability;
use crate::vcpu::template::msrs::{FilterError, protect};

/// The device.
pub const DEVICE: &str = "/dev/kvm";
/// The interface's version; it has not changed since 2007.
const API_VERSION: i32 = 12;
/// What this VMM cannot do without, with the names that people search for.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
];

/// Why there is no KVM to run a guest on. Exit code 3.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device is not there or may not be opened.
    #[error("{DEVICE} is not available: {0}; load kvm_amd or kvm_intel, or get access to the device (group kvm)")]
    Device(std::io::Error),
    /// The device is something else.
    #[error("{DEVICE} is not KVM's device, or speaks another version of its interface ({0} instead of {API_VERSION})")]
    Version(i32),
    /// This KVM lacks something.
    #[error("this host's KVM lacks {0}")]
    Capability(&'static str),
    /// This KVM lacks what a CPU template asks for.
    #[error("this host's KVM lacks the capability {0}, which kvm_capabilities of cpu-config name")]
    Asked(u32),
    /// The guest cannot be kept from writing what its CPU template sets.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// KVM refused a step.
    #[error("KVM refused to {step}: {source}")]
    Step {
        /// What was asked.
        step: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// The thread that asks KVM has ended early.
    #[error("the thread that makes the VM has ended early")]
    Thread,
}

/// Opens the device and checks that it can do what is needed.
fn open() -> Result<Kvm, KvmError> {
    let path = CString::new(DEVICE).map_err(|e| KvmError::Device(e.into()))?;
    let kvm = Kvm::new_with_path(&path).map_err(|e| KvmError::Device(e.into()))?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(KvmError::Version(version));
    }
    match NEEDED.iter().find(|(capability, _)| !kvm.check_extension(*capability)) {
        Some((_, name)) => Err(KvmError::Capability(name)),
        None => Ok(kvm),
    }
}

/// A VM without memory, devices and vCPUs.
pub struct EmptyVm {
    /// KVM's descriptor of it.
    pub vm: VmFd,
    /// Registers of a vCPU that KVM can save.
    pub msrs: Vec<u32>,
    /// Whether KVM emulates the TSC-deadline mode of local APICs.
    pub tsc_deadline: bool,
}

impl EmptyVm {
    /// Checks that KVM can do what a CPU template asks for, and keeps the guest from writing the registers that it sets.
    pub fn prepare(&mut self, template: &CpuConfig) -> Result<(), KvmError> {
        for capability in &template.kvm_capabilities {
            match capability {
                KvmCapability::Needed(number) if self.vm.check_extension_raw(u64::from(*number)) <= 0 => {
                    return Err(KvmError::Asked(*number));
                }
                KvmCapability::Needed(_) | KvmCapability::NotNeeded(_) => {}
            }
        }
        let own = template.msrs();
        protect(&self.vm, &own)?;
        // KVM lists no register that says what a processor can do.
        let more: Vec<_> = own.into_iter().filter(|msr| !self.msrs.contains(msr)).collect();
        self.msrs.extend(more);
        Ok(())
    }
}

/// The slow parts of a VM that need no configuration: the empty VM, and the CPUID that KVM supports. For the latter KVM
/// executes CPUID some hundred times, and each is an exit if this host is a VM itself. A thread of its own does both while the
/// caller goes on; [`groundwork`] does them on the calling thread.
pub struct Groundwork {
    empty: Receiver<EmptyVm>,
    supported: JoinHandle<Result<CpuId, KvmError>>,
}

impl Groundwork {
    /// Begins with it.
    pub fn begin() -> std::io::Result<Self> {
        let (done, empty) = sync_channel(1);
        let thread = std::thread::Builder::new().stack_size(STACK);
        Ok(Self { empty, supported: thread.spawn(move || lay(&done))? })
    }

    /// Waits for the empty VM. The thread then still reads the CPUID.
    pub fn empty_vm(self) -> Result<(EmptyVm, SupportedCpuid), KvmError> {
        let supported = SupportedCpuid(self.supported);
        match self.empty.recv() {
            Ok(empty) => Ok((empty, supported)),
            // There is none: the thread says why.
            Err(_) => Err(supported.wait().err().unwrap_or(KvmError::Thread)),
        }
    }
}

/// CPUID that a thread still asks for.
pub struct SupportedCpuid(JoinHandle<Result<CpuId, KvmError>>);

impl SupportedCpuid {
    /// Waits for the end of the thread.
    pub fn wait(self) -> Result<CpuId, KvmError> {
        self.0.join().unwrap_or(Err(KvmError::Thread))
    }
}

fn lay(done: &SyncSender<EmptyVm>) -> Result<CpuId, KvmError> {
    let kvm = open()?;
    // Nobody waits for it when the VM has failed for another reason.
    let _ = done.send(empty_vm(&kvm)?);
    supported_cpuid(&kvm)
}

/// An empty VM, and CPUID as this host's KVM supports it.
pub fn groundwork() -> Result<(EmptyVm, CpuId), KvmError> {
    let kvm = open()?;
    Ok((empty_vm(&kvm)?, supported_cpuid(&kvm)?))
}

fn supported_cpuid(kvm: &Kvm) -> Result<CpuId, KvmError> {
    let step = "say which CPUID it supports";
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(|source| KvmError::Step { step, source })
}

fn empty_vm(kvm: &Kvm) -> Result<EmptyVm, KvmError> {
    let vm = create_vm(kvm)?;
    let step = "list its model-specific registers";
    let msrs = kvm.get_msr_index_list().map_err(|source| KvmError::Step { step, source })?.as_slice().to_vec();
    Ok(EmptyVm { vm, msrs, tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer) })
}

/// Creates an empty VM, without performance counters where this KVM can do that.
fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    let vm = loop {
        match kvm.create_vm() {
            // Creating a VM can be interrupted by any signal.
            Err(e) if e.errno() == libc::EINTR => {}
            other => break other.map_err(|source| KvmError::Step { step: "create a VM", source })?,
        }
    };
    // CPUID alone does not take them away: AMD's first four have no bit there. They measure what runs beside the guest.
    let can = vm.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into());
    if u32::try_from(can).is_ok_and(|can| can & KVM_PMU_CAP_DISABLE != 0) {
        let off = kvm_enable_cap {
            cap: KVM_CAP_PMU_CAPABILITY,
            args: [KVM_PMU_CAP_DISABLE.into(), 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        vm.enable_cap(&off).map_err(|source| KvmError::Step { step: "take away performance counters", source })?;
    }
    Ok(vm)
}

/// Lets KVM emulate the local APICs of the vCPUs that come, and no other interrupt controller.
pub fn add_local_apics(vm: &VmFd) -> Result<(), KvmError> {
    // Its first argument is for how many interrupts KVM has to say that they have ended: none, all are edges.
    let split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..kvm_enable_cap::default() };
    vm.enable_cap(&split).map_err(|source| KvmError::Step { step: "emulate local APICs alone", source })
}
