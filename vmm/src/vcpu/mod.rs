//! vCPUs: their state at the start, their threads, their exits.

pub mod cpuid;
mod exit;
mod registers;
mod start;
mod state;
pub mod template;
mod thread;

pub use exit::{Fault, FaultKind};
pub use start::{Shared, configure, first_run};
pub use state::VcpuState;
pub use template::{CpuConfig, TemplateError};
pub use thread::{Message, Threads, VcpuContext, install_kick_handler};

/// What to do when the kernel makes no more threads (EAGAIN of `clone` and of the first `KVM_RUN`).
pub(crate) const RAISE_LIMITS: &str = "if it is the limit of processes, raise pids.max of the VM's cgroup, or RLIMIT_NPROC \
                                       (ulimit -u) of its user";

/// Why a vCPU could not be made or configured. Exit code 3: this host's KVM is at fault.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// KVM refused a step.
    #[error("vCPU {vcpu}: KVM refused to {step}: {source}")]
    Kvm {
        /// The vCPU's number.
        vcpu: u8,
        /// What was asked.
        step: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// KVM does not run the first vCPU. KVM makes a thread of its own when a VM runs for the first time.
    #[error("vCPU 0: KVM refused to run it for the first time: {0}; KVM makes a thread for that: {RAISE_LIMITS}")]
    FirstRun(kvm_ioctls::Error),
    /// KVM took fewer model-specific registers than it was given.
    #[error("vCPU {vcpu}: KVM refused the model-specific register {index:#x}")]
    Msr {
        /// The vCPU's number.
        vcpu: u8,
        /// The register.
        index: u32,
    },
    /// A boot structure of the first vCPU did not fit into guest memory.
    #[error("cannot write the first vCPU's {0} into guest memory")]
    Write(&'static str),
    /// More CPUID entries than KVM takes.
    #[error("the CPUID table has more entries than KVM takes")]
    Cpuid,
    /// A thread could not be started.
    #[error("cannot start the thread of vCPU {vcpu}: {source}; {RAISE_LIMITS}")]
    Thread {
        /// The vCPU's number.
        vcpu: u8,
        /// What the system said.
        source: std::io::Error,
    },
    /// The CPU template does not go together with this host.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The signal that interrupts vCPU threads could not be set up.
    #[error("cannot set up the signal that interrupts vCPUs: {0}")]
    Signal(nix::errno::Errno),
}
