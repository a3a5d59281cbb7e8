//! What can happen to a VM, as it stands in the log.

use serde::{Deserialize, Serialize};
use tracing::{error, info};

/// How a VM ended.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum EndReason {
    /// The guest reset itself (i8042, ACPI reset register).
    Reset,
    /// The guest powered off (ACPI S5).
    PowerOff,
    /// SIGTERM, SIGINT, SIGHUP or SIGQUIT.
    Killed,
    /// Something went wrong; `error` and `text` say what.
    Error,
}

impl EndReason {
    /// The reason as it stands in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::PowerOff => "power-off",
            Self::Killed => "killed",
            Self::Error => "error",
        }
    }
}

/// Where the guest wrote a boot mark.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum MarkSource {
    /// I/O port 0x80, Cloud Hypervisor's debug port.
    Port80,
    /// Firecracker's memory-mapped boot timer.
    Mmio,
}

impl MarkSource {
    /// The source as it stands in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Port80 => "port80",
            Self::Mmio => "mmio",
        }
    }
}

/// A mark that the guest set.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Where it was written.
    pub source: MarkSource,
    /// The byte that was written.
    pub value: u8,
    /// Microseconds since the VMM's process began.
    pub boot_us: u64,
    /// Microseconds of processor time that the VMM's process had used.
    pub cpu_us: u64,
}

macro_rules! registers {
    ($($name:ident),+ $(,)?) => {
        /// A vCPU's registers when it could not go on.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[allow(missing_docs)] // each is the register of that name
        pub struct Registers {
            /// The vCPU's number.
            pub vcpu: u8,
            $(#[serde(with = "hex_number")] pub $name: u64,)+
        }

        impl Registers {
            /// Writes them as one line of the log.
            fn emit(&self) {
                error!(event = "registers", vcpu = self.vcpu, $($name = %format_args!("{:#x}", self.$name)),+);
            }
        }

        impl std::fmt::Display for Registers {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "vcpu={}", self.vcpu)?;
                $(write!(f, concat!(" ", stringify!($name), "={:#x}"), self.$name)?;)+
                Ok(())
            }
        }
    };
}

registers!(
    rip, rflags, rsp, rbp, rax, rbx, rcx, rdx, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, cr0, cr2, cr3, cr4,
    efer, cs, cs_base
);

/// Registers stand in JSON as `"0x…"`: JSON numbers lose bits above 2^53 in many readers.
mod hex_number {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:#x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.strip_prefix("0x").ok_or_else(|| D::Error::custom("a register is written as 0x…"))?;
        u64::from_str_radix(digits, 16).map_err(D::Error::custom)
    }
}

/// One event. The table of [`crate::log`] says when each is written.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The configuration was read and accepted.
    Start {
        /// The VM's name, from `--id`.
        id: String,
        /// Version of `portcullis-vmm`.
        version: String,
        /// The process.
        pid: u32,
        /// Number of vCPUs.
        vcpus: u8,
        /// Guest memory in MiB.
        mem_mib: u64,
    },
    /// The process is confined.
    Confined {
        /// System-call filters are on in every thread.
        seccomp: bool,
        /// What the kernel enforces of Landlock: `full`, or `partial` on an older kernel; `none` only where it was left out.
        landlock: String,
        /// No way to more rights through `execve`.
        no_new_privs: bool,
        /// No thread has any capability.
        #[serde(default)]
        capabilities: bool,
        /// As whom it runs: `own` (it was started as another than root), `nobody`, or `root: ` and the reason.
        #[serde(default)]
        user: String,
    },
    /// vCPUs run.
    Running {
        /// Microseconds from the process's begin to this.
        setup_us: u64,
    },
    /// The guest says that it has booted.
    GuestBoot(Mark),
    /// The guest set another mark.
    GuestMark(Mark),
    /// Registers of the vCPU that could not go on.
    Registers(Box<Registers>),
    /// The VM has ended.
    End {
        /// How.
        reason: EndReason,
        /// Stable code of the error, for `reason` = `error`.
        #[serde(default)]
        error: Option<String>,
        /// The error in words.
        #[serde(default)]
        text: Option<String>,
        /// Microseconds from the process's begin to this.
        run_us: u64,
        /// Bytes that the guest wrote to its serial line and that were passed on.
        serial_out: u64,
        /// Bytes that the guest wrote to its serial line and that were dropped.
        serial_lost: u64,
    },
    /// An event of a later version.
    #[serde(other)]
    Other,
}

impl Event {
    /// Writes the event to the log.
    pub fn emit(&self) {
        match self {
            Self::Start { id, version, pid, vcpus, mem_mib } => {
                info!(event = "start", id, version, pid, vcpus, mem_mib);
            }
            Self::Confined { seccomp, landlock, no_new_privs, capabilities, user } => {
                info!(event = "confined", seccomp, landlock, no_new_privs, capabilities, user);
            }
            Self::Running { setup_us } => info!(event = "running", setup_us),
            Self::GuestBoot(mark) => emit_mark("guest-boot", mark),
            Self::GuestMark(mark) => emit_mark("guest-mark", mark),
            Self::Registers(registers) => registers.emit(),
            Self::End { reason, error, text, run_us, serial_out, serial_lost } => {
                let reason = reason.as_str();
                match error {
                    None => info!(event = "end", reason, run_us, serial_out, serial_lost),
                    Some(error) => error!(event = "end", reason, error, text, run_us, serial_out, serial_lost),
                }
            }
            Self::Other => {}
        }
    }
}

fn emit_mark(event: &'static str, mark: &Mark) {
    let Mark { source, value, boot_us, cpu_us } = mark;
    info!(event, source = source.as_str(), value, boot_us, cpu_us);
}
