//! Why a VM could not run or go on, and the exit code of that.

use std::path::PathBuf;

use crate::boot::BootError;
use crate::config::ConfigError;
use crate::devices::DeviceError;
use crate::jail::JailError;
use crate::memory::MemoryError;
use crate::snapshot::SnapshotError;
use crate::vcpu::{Fault, RAISE_LIMITS, VcpuError};

use super::KvmError;

/// Why a VM ended otherwise than it should.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// Kernel, initrd or memory size do not go together.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// No KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A vCPU could not be made.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The process could not be confined.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The guest could not go on.
    #[error(transparent)]
    Guest(Fault),
    /// Signals could not be taken over.
    #[error("cannot take over signals: {0}")]
    Signals(nix::errno::Errno),
    /// An event counter could not be made.
    #[error("cannot make an event counter: {0}")]
    EventFd(std::io::Error),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}; {RAISE_LIMITS}")]
    Thread(std::io::Error),
    /// A device could not be made from what the configuration says.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The configuration is not one that [`VmConfig::check`](crate::config::VmConfig::check) lets pass.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A snapshot could not be loaded.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Metrics cannot go where they should.
    #[error("cannot write metrics to {path}: {source}")]
    Metrics {
        /// The file or FIFO.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The host gave no random bytes.
    #[error("the host gives no random bytes: {0}")]
    Random(std::io::Error),
    /// The process that hands out the guest's pages has ended.
    #[error("the page-fault handler has ended: the guest's memory is gone with it")]
    HandlerEnded,
    /// Waiting for events failed.
    #[error("cannot wait for events: {0}")]
    Poll(nix::errno::Errno),
    /// Waiting for the devices' events failed.
    #[error("cannot wait for the devices' events: {0}")]
    Devices(std::io::Error),
}

impl VmError {
    /// Stable code for the log.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Boot(error) => match error {
                BootError::TooLittleMemory { .. } => "too-little-memory",
                BootError::Read { .. } | BootError::NotAFile { .. } => "unreadable-file",
                BootError::Format { .. } | BootError::Truncated { .. } => "bad-kernel",
                BootError::Write(_) => "boot-structures",
            },
            Self::Kvm(_) => "kvm-unavailable",
            Self::Memory(_) => "no-memory",
            Self::Vcpu(VcpuError::Template(_)) => "cpu-config",
            Self::HandlerEnded => "page-fault-handler",
            Self::Vcpu(_) => "vcpu-setup",
            Self::Jail(_) => "jail",
            Self::Device(_) => "device",
            Self::Snapshot(_) => "snapshot",
            Self::Metrics { .. } => "metrics",
            Self::Config(_) => "configuration",
            Self::Guest(fault) => fault.kind.code(),
            Self::Signals(_)
            | Self::EventFd(_)
            | Self::Thread(_)
            | Self::Random(_)
            | Self::Poll(_)
            | Self::Devices(_) => "system",
        }
    }

    /// The process's exit code: 1 the guest failed, 2 what it was given is not usable, 3 the host lacks something.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Guest(_) => 1,
            Self::Boot(_)
            | Self::Config(_)
            | Self::Snapshot(_)
            | Self::Metrics { .. }
            | Self::Vcpu(VcpuError::Template(_)) => 2,
            Self::Device(error) => error.exit_code(),
            _ => 3,
        }
    }
}
