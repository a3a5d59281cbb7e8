//! Why a vCPU cannot go on.

use std::fmt;

use kvm_bindings::kvm_run;

use crate::log::Registers;

/// KVM could not emulate an instruction (`KVM_INTERNAL_ERROR_EMULATION`).
const SUBERROR_EMULATION: u32 = 1;
/// Bytes of an instruction that KVM reports, at most.
const INSTRUCTION_BYTES: usize = 15;

/// What stopped the guest, and the registers of the vCPU that met it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("vCPU {}: {kind}", registers.vcpu)]
pub struct Fault {
    /// What happened.
    pub kind: FaultKind,
    /// The vCPU's registers. They are the guest's and may hold a tenant's secrets: they go to the log and, where the VM
    /// ends with them, to standard error, and nowhere else.
    pub registers: Box<Registers>,
}

/// What stopped the guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    /// The host's KVM has to emulate an instruction that it cannot.
    #[error(
        "this host's KVM cannot run what the guest does: it failed to emulate an instruction ({instruction}); \
         run it on a KVM with hardware virtualisation (AMD SVM or Intel VMX)"
    )]
    CannotEmulate {
        /// The instruction's bytes, if KVM tells.
        instruction: InstructionBytes,
    },
    /// Another internal error of KVM.
    #[error("KVM internal error, suberror {suberror}, data {data:x?}")]
    Internal {
        /// KVM's number for the cause.
        suberror: u32,
        /// What KVM adds to it.
        data: Vec<u64>,
    },
    /// The guest met a fault while it handled a double fault (or asked for a shutdown without a way to do it).
    #[error("the guest crashed with a triple fault")]
    TripleFault,
    /// The processor refused to enter the guest.
    #[error("the processor refused to enter the guest, hardware reason {reason:#x} on host CPU {cpu}")]
    EntryRefused {
        /// The hardware's reason.
        reason: u64,
        /// The host's CPU.
        cpu: u32,
    },
    /// The guest reported that it crashed.
    #[error("the guest reported that it crashed")]
    GuestCrash,
    /// An exit that this VMM has no use for.
    #[error("KVM gave an exit that this VMM does not handle: {0}")]
    Unhandled(String),
    /// `KVM_RUN` itself failed.
    #[error("KVM could not run the vCPU: {0}")]
    Run(std::io::ErrorKind, String),
}

impl FaultKind {
    /// Stable code for the log.
    pub fn code(&self) -> &'static str {
        match self {
            Self::CannotEmulate { .. } => "cannot-emulate",
            Self::Internal { .. } => "kvm-internal-error",
            Self::TripleFault => "triple-fault",
            Self::EntryRefused { .. } => "entry-refused",
            Self::GuestCrash => "guest-crash",
            Self::Unhandled(_) => "unhandled-exit",
            Self::Run(..) => "run-failed",
        }
    }

    /// Reads the details of a `KVM_EXIT_INTERNAL_ERROR`.
    pub(super) fn internal_error(run: &kvm_run) -> Self {
        // SAFETY: for KVM_EXIT_INTERNAL_ERROR, which the caller has got, the kernel fills this member of the union.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        let count = usize::try_from(internal.ndata).unwrap_or(usize::MAX).min(internal.data.len());
        let data: Vec<u64> = internal.data.iter().take(count).copied().collect();
        if internal.suberror == SUBERROR_EMULATION {
            Self::CannotEmulate { instruction: InstructionBytes::from_data(&data) }
        } else {
            Self::Internal { suberror: internal.suberror, data }
        }
    }
}

/// The bytes of an instruction, as KVM reports them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstructionBytes(Vec<u8>);

impl InstructionBytes {
    /// `data` is flags, then a byte of length and the bytes (`struct kvm_run`, `emulation_failure`).
    fn from_data(data: &[u64]) -> Self {
        const HAS_BYTES: u64 = 1;
        let mut words = data.iter();
        if words.next().is_none_or(|flags| flags & HAS_BYTES == 0) {
            return Self::default();
        }
        let mut bytes = words.flat_map(|word| word.to_le_bytes());
        let len = usize::from(bytes.next().unwrap_or(0)).min(INSTRUCTION_BYTES);
        Self(bytes.take(len).collect())
    }
}

impl fmt::Display for InstructionBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("KVM does not say which");
        }
        f.write_str("bytes")?;
        self.0.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instruction_bytes_are_read_and_bounded() {
        let word = u64::from_le_bytes([4, 0xf0, 0x48, 0x0f, 0xc7, 0x90, 0x90, 0x90]);
        assert_eq!(InstructionBytes::from_data(&[1, word]).to_string(), "bytes f0 48 0f c7");
        assert_eq!(InstructionBytes::from_data(&[1, u64::MAX, u64::MAX]).0.len(), INSTRUCTION_BYTES);
        for none in [&[][..], &[0, word], &[1]] {
            assert_eq!(InstructionBytes::from_data(none).to_string(), "KVM does not say which");
        }
    }
}
