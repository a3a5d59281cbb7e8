//! Changes of what `CPUID` answers.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use super::TemplateError;
use super::config::{CpuidModifier, Register};

/// Bits that [`crate::vcpu::cpuid`] sets by the number of vCPUs, whatever a template says: HTT, and AMD's `CmpLegacy`.
const HTT: u32 = 1 << 28;
const CMP_LEGACY: u32 = 1 << 1;

/// What a template may make of a register.
#[derive(Clone, Copy)]
enum Rule {
    /// Each bit is a feature (or nobody knows what it is): only what guests have may be set. Some bits are overwritten.
    Features { overwritten: u32 },
    /// A number that says how much there is: at most as much.
    AtMost,
    /// The maker's name: nothing else.
    Vendor,
    /// What is overwritten as a whole, and numbers that give the guest nothing: model, names, caches, frequencies.
    Any,
}

fn rule(leaf: u32, subleaf: u32, register: Register) -> Rule {
    use Register::{Eax, Ebx, Ecx, Edx};
    match (leaf, register) {
        (0 | 0x8000_0000, Ebx | Ecx | Edx) => Rule::Vendor,
        // The highest leaf; sizes of the extended state.
        (0 | 0x8000_0000, Eax) | (0xd, Ebx) => Rule::AtMost,
        (0xd, Ecx) if subleaf == 0 => Rule::AtMost,
        (0xd, Eax) if subleaf > 1 => Rule::AtMost,
        (1, Edx) => Rule::Features { overwritten: HTT },
        (0x8000_0001, Ecx) => Rule::Features { overwritten: CMP_LEGACY },
        // Family, model and stepping; APIC id and sizes; how many vCPUs there are.
        (1, Eax | Ebx)
        | (0x8000_0008, Ecx)
        // Caches and TLBs, frequencies, the name, topology.
        | (
            2 | 4 | 0xb | 0x15 | 0x16 | 0x1f | 0x8000_0002..=0x8000_0006 | 0x8000_001d | 0x8000_001e | 0x8000_0026,
            _,
        ) => Rule::Any,
        (_, Eax | Ebx | Ecx | Edx) => Rule::Features { overwritten: 0 },
    }
}

fn find(table: &[kvm_cpuid_entry2], leaf: u32, subleaf: u32) -> Option<usize> {
    table.iter().position(|entry| (entry.function, entry.index) == (leaf, subleaf))
}

fn value(entry: &mut kvm_cpuid_entry2, register: Register) -> &mut u32 {
    match register {
        Register::Eax => &mut entry.eax,
        Register::Ebx => &mut entry.ebx,
        Register::Ecx => &mut entry.ecx,
        Register::Edx => &mut entry.edx,
    }
}

/// Changes the table that KVM supports. `usual` is what a guest without a template would see.
pub(super) fn apply(modifiers: &[CpuidModifier], supported: &CpuId, usual: &CpuId) -> Result<CpuId, TemplateError> {
    let (mut table, usual) = (supported.as_slice().to_vec(), usual.as_slice());
    for modifier in modifiers {
        let (leaf, subleaf) = (modifier.leaf.0, modifier.subleaf.0);
        let entry = find(&table, leaf, subleaf).and_then(|at| table.get_mut(at));
        let entry = entry.ok_or(TemplateError::NoLeaf { leaf, subleaf })?;
        if entry.flags != modifier.flags {
            return Err(TemplateError::Flags { leaf, subleaf, found: modifier.flags, here: entry.flags });
        }
        // What a guest does not see at all has no features.
        let mut without = find(usual, leaf, subleaf).and_then(|at| usual.get(at).copied()).unwrap_or_default();
        for change in &modifier.modifiers {
            let (register, bitmap) = (change.register, change.bitmap);
            let (value, usual) = (value(entry, register), *value(&mut without, register));
            let new = bitmap.apply(*value);
            match rule(leaf, subleaf, register) {
                Rule::Features { overwritten } => {
                    let bits = bitmap.ones() & !usual & !overwritten;
                    if bits != 0 {
                        return Err(TemplateError::NotSupported { leaf, subleaf, register, bits });
                    }
                }
                Rule::AtMost if new > usual => {
                    return Err(TemplateError::TooMuch { leaf, subleaf, register, found: new, most: usual });
                }
                Rule::Vendor if new != usual => return Err(TemplateError::Vendor { leaf, register }),
                Rule::AtMost | Rule::Vendor | Rule::Any => {}
            }
            *value = new;
        }
    }
    CpuId::from_entries(&table).map_err(|_| TemplateError::Table)
}

/// Checks what KVM shows of the `table` that it was given: some KVMs show what a processor can do whatever they are told.
pub(super) fn check_shown(modifiers: &[CpuidModifier], table: &CpuId, shown: &CpuId) -> Result<(), TemplateError> {
    let entry = |table: &CpuId, leaf, subleaf| {
        find(table.as_slice(), leaf, subleaf).and_then(|at| table.as_slice().get(at).copied()).unwrap_or_default()
    };
    for modifier in modifiers {
        let (leaf, subleaf) = (modifier.leaf.0, modifier.subleaf.0);
        let (mut wanted, mut found) = (entry(table, leaf, subleaf), entry(shown, leaf, subleaf));
        for change in &modifier.modifiers {
            let register = change.register;
            let bits = change.bitmap.zeros() & !*value(&mut wanted, register) & *value(&mut found, register);
            if bits != 0 && matches!(rule(leaf, subleaf, register), Rule::Features { .. }) {
                return Err(TemplateError::Shown { leaf, subleaf, register, bits });
            }
        }
    }
    Ok(())
}
