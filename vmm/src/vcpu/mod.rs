//! vCPUs: their state at the start, their threads, their exits.

pub mod cpuid;
mod exit;
mod registers;
mod start;
mod state;
mod thread;

pub use exit::{Fault, FaultKind};
pub use start::{Shared, configure};
pub use state::VcpuState;
pub use thread::{Message, Threads, VcpuContext, install_kick_handler};

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
    #[error("cannot start the thread of vCPU {vcpu}: {source}")]
    Thread {
        /// The vCPU's number.
        vcpu: u8,
        /// What the system said.
        source: std::io::Error,
    },
    /// The signal that interrupts vCPU threads could not be set up.
    #[error("cannot set up the signal that interrupts vCPUs: {0}")]
    Signal(nix::errno::Errno),
}
