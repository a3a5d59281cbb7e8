//! CPU templates: what the guest's processor is said to be, by Firecracker's `cpu-config`.
//!
//! A template changes bits of `CPUID` and of model-specific registers (MSRs). The parts of it, in the order of a VM's start:
//!
//! 1. [`config`]: the JSON, checked before anything is made of it.
//! 2. [`msrs::protect`]: the guest cannot write the MSRs that the template sets. It is KVM's filter, one for the VM, and is set
//!    again when a snapshot is loaded.
//! 3. [`cpuid::apply`]: changes the table that KVM supports, before [`super::cpuid`] puts in what is the VM's own. So a template
//!    cannot show the guest what this VMM hides, and what it says of the topology is overwritten, as in Firecracker. KVM's own
//!    table is read back.
//! 4. [`msrs::set`]: sets the MSRs of each vCPU, before those that the boot needs.

mod bits;
pub mod config;
pub(super) mod cpuid;
pub mod msrs;

use kvm_bindings::CpuId;

pub use config::{CpuConfig, KvmCapability};

use config::Register;

impl CpuConfig {
    /// The table that KVM supports, changed by this template. `usual` is what a guest without one would see.
    pub fn apply(&self, supported: &CpuId, usual: &CpuId) -> Result<CpuId, TemplateError> {
        cpuid::apply(&self.cpuid_modifiers, supported, usual)
    }

    /// Checks that what this template hides is hidden in what KVM shows of the `table` that it was given.
    pub fn check_shown(&self, table: &CpuId, shown: &CpuId) -> Result<(), TemplateError> {
        cpuid::check_shown(&self.cpuid_modifiers, table, shown)
    }
}

/// Why a template does not go together with this host. Exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// It changes what is not there.
    #[error(
        "cpu-config changes CPUID leaf {leaf:#x}, subleaf {subleaf:#x}, which this host's KVM does not have; leave it out"
    )]
    NoLeaf {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
    },
    /// It is about another kind of leaf.
    #[error(
        "cpu-config gives CPUID leaf {leaf:#x}, subleaf {subleaf:#x} the flags {found}; this host's KVM has {here}: say that"
    )]
    Flags {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
        /// In the template.
        found: u32,
        /// Of this KVM.
        here: u32,
    },
    /// It sets what guests on this host do not have.
    #[error(
        "cpu-config sets bits {bits:#x} in {register} of CPUID leaf {leaf:#x}, subleaf {subleaf:#x}, which guests on this host \
         do not have; a template takes features away and adds none: write 0 or x there"
    )]
    NotSupported {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
        /// The register.
        register: Register,
        /// What is not supported.
        bits: u32,
    },
    /// KVM does not hide what it hides.
    #[error(
        "cpu-config clears bits {bits:#x} in {register} of CPUID leaf {leaf:#x}, subleaf {subleaf:#x}, which this host's KVM \
         shows to guests all the same; write x there"
    )]
    Shown {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
        /// The register.
        register: Register,
        /// What is shown.
        bits: u32,
    },
    /// A size or a number of leaves above what there is.
    #[error(
        "cpu-config makes {register} of CPUID leaf {leaf:#x}, subleaf {subleaf:#x} {found:#x}; allowed is at most {most:#x}, \
         which guests on this host have"
    )]
    TooMuch {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
        /// The register.
        register: Register,
        /// What the template makes of it.
        found: u32,
        /// What guests have without.
        most: u32,
    },
    /// It changes the maker's name.
    #[error(
        "cpu-config changes the vendor of the processor ({register} of CPUID leaf {leaf:#x}); a guest sees the host's: leave it out"
    )]
    Vendor {
        /// The leaf.
        leaf: u32,
        /// The register.
        register: Register,
    },
    /// More leaves than KVM takes.
    #[error("the CPUID table has more entries than KVM takes")]
    Table,
    /// KVM cannot read a register.
    #[error("cpu-config changes the model-specific register {0:#x}, which this host's KVM does not have; leave it out")]
    NoMsr(u32),
    /// KVM does not take a value.
    #[error(
        "cpu-config sets the model-specific register {index:#x} to {wanted:#x}, which this host's KVM does not take (it is \
         {found:#x}); write x where it differs"
    )]
    MsrValue {
        /// The register.
        index: u32,
        /// By the template.
        wanted: u64,
        /// What it is.
        found: u64,
    },
}

#[cfg(test)]
mod tests;
