//! `cpu-config`: a CPU template, as Firecracker writes them.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::bits::{Bitmap, Number, digits_only, quoted};
use super::msrs;
use crate::config::{ConfigError, objects_only};
use crate::snapshot::at_most;

/// Most capabilities of KVM that a template asks for.
const MAX_CAPABILITIES: usize = 64;
/// Most leaves: KVM's table for `CPUID` has no more.
const MAX_LEAVES: usize = 256;
/// Most modifiers of a leaf: it has four registers.
const MAX_REGISTERS: usize = 4;
/// Most model-specific registers. KVM lists between one and two hundred.
const MAX_MSRS: usize = 256;

/// A CPU template. Where nothing is said the guest's processor is the host's, less what a VM cannot have.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct CpuConfig {
    /// What KVM must be able to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "at_most::<MAX_CAPABILITIES, _, _>")]
    pub kvm_capabilities: Vec<KvmCapability>,
    /// Changes of what `CPUID` answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "at_most::<MAX_LEAVES, _, _>")]
    pub cpuid_modifiers: Vec<CpuidModifier>,
    /// Values of model-specific registers.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "at_most::<MAX_MSRS, _, _>")]
    pub msr_modifiers: Vec<MsrModifier>,
    #[serde(default, skip_serializing)]
    vcpu_features: ArmOnly,
    #[serde(default, skip_serializing)]
    reg_modifiers: ArmOnly,
}

/// Changes of one leaf of `CPUID`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct CpuidModifier {
    /// The leaf.
    pub leaf: Number,
    /// The subleaf; 0 where the leaf has none.
    pub subleaf: Number,
    /// KVM's flags of the leaf: 1 (`KVM_CPUID_FLAG_SIGNIFCANT_INDEX`) where it has subleaves.
    pub flags: u32,
    /// Changes of its registers.
    #[serde(deserialize_with = "at_most::<MAX_REGISTERS, _, _>")]
    pub modifiers: Vec<RegisterModifier>,
}

/// A register in which `CPUID` answers.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eax => "eax",
            Self::Ebx => "ebx",
            Self::Ecx => "ecx",
            Self::Edx => "edx",
        })
    }
}

/// A change of one register of a leaf.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct RegisterModifier {
    /// The register.
    pub register: Register,
    /// Its bits.
    pub bitmap: Bitmap<u32>,
}

/// A change of a model-specific register.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct MsrModifier {
    /// The register.
    pub addr: Number,
    /// Its bits.
    pub bitmap: Bitmap<u64>,
}

objects_only!(CpuConfig, CpuidModifier, RegisterModifier, MsrModifier);

/// A capability of KVM, by its number (`KVM_CAP_…`): text, with `!` before it if it is not needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvmCapability {
    /// A VM is refused where KVM lacks it.
    Needed(u32),
    /// Firecracker does without. What this VMM cannot do without is needed all the same.
    NotNeeded(u32),
}

impl Serialize for KvmCapability {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Needed(number) => serializer.collect_str(number),
            Self::NotNeeded(number) => serializer.collect_str(&format_args!("!{number}")),
        }
    }
}

impl<'de> Deserialize<'de> for KvmCapability {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let capability = match text.strip_prefix('!') {
            Some(digits) => digits_only(digits, 10).map(Self::NotNeeded),
            None => digits_only(&text, 10).map(Self::Needed),
        };
        let wrong = || format!("{} is no number of a KVM capability, with or without ! before it", quoted(&text));
        capability.ok_or_else(|| D::Error::custom(wrong()))
    }
}

/// What only templates for other processors have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ArmOnly;

impl<'de> Deserialize<'de> for ArmOnly {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom("vcpu_features and reg_modifiers are for ARM processors, and this one is x86-64"))
    }
}

impl CpuConfig {
    /// The model-specific registers that the template sets.
    pub fn msrs(&self) -> Vec<u32> {
        self.msr_modifiers.iter().map(|modifier| modifier.addr.0).collect()
    }

    /// Checks what can be said without KVM.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let mut registers = BTreeSet::new();
        for CpuidModifier { leaf, subleaf, modifiers, .. } in &self.cpuid_modifiers {
            for register in modifiers.iter().map(|modifier| modifier.register) {
                if !registers.insert((leaf, subleaf, register)) {
                    return Err(ConfigError::OutOfRange {
                        field: "cpu-config.cpuid_modifiers",
                        found: format!("{register} of leaf {:#x}, subleaf {:#x} twice", leaf.0, subleaf.0),
                        allowed: "one bitmap for a register".to_owned(),
                    });
                }
            }
        }
        msrs::check(&self.msrs())
    }
}
