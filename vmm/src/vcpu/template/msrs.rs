//! Values of model-specific registers (MSRs), and the filter that keeps them.
//!
//! A template's registers belong to it: the guest reads them, and gets a general protection fault when it writes. So a register
//! that every kernel writes cannot be a template's.

use std::ops::RangeInclusive;

use kvm_bindings::{
    KVM_CAP_X86_MSR_FILTER, KVM_MSR_FILTER_MAX_BITMAP_SIZE, KVM_MSR_FILTER_MAX_RANGES, Msrs, kvm_msr_entry,
};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};

use super::TemplateError;
use super::config::MsrModifier;
use crate::config::ConfigError;
use crate::vcpu::state::read_msrs;

/// Registers that guests' kernels or this VMM write, or that KVM's filter does not see (x2APIC).
const NOT_A_TEMPLATES: &[(RangeInclusive<u32>, &str)] = &[
    (0x10..=0x12, "the time-stamp counter, the old kvmclock"),
    (0x1b..=0x1b, "the base of the local APIC"),
    (0x3b..=0x3b, "the time-stamp counter's adjustment"),
    (0x48..=0x49, "speculation control"),
    (0x10b..=0x10b, "speculation control"),
    (0x174..=0x176, "SYSENTER"),
    (0x1a0..=0x1a0, "MISC_ENABLE, which the VMM sets"),
    (0x1d9..=0x1d9, "DEBUGCTL"),
    (0x200..=0x26f, "the MTRRs"),
    (0x277..=0x277, "the PAT"),
    (0x2ff..=0x2ff, "the default memory type, which the VMM sets"),
    (0x6e0..=0x6e0, "the deadline of the time-stamp counter"),
    (0x800..=0x8ff, "the x2APIC"),
    (0xda0..=0xda0, "XSS"),
    (0x4b56_4d00..=0x4b56_4dff, "KVM's own, such as kvmclock"),
    (0xc000_0080..=0xc000_0084, "EFER, SYSCALL"),
    (0xc000_0100..=0xc000_0103, "FS, GS, TSC_AUX"),
    (0xc001_011f..=0xc001_011f, "speculation control"),
    // KVM would compare the end of the last range, 2^32, as 0.
    (0xffff_ffc0..=0xffff_ffff, "the last ones"),
];
/// Registers of one word of a bitmap. KVM reads whole words.
const WORD: u32 = u64::BITS;
/// Registers of the largest bitmap.
const MOST: u32 = KVM_MSR_FILTER_MAX_BITMAP_SIZE * u8::BITS;

/// Checks that these registers can be a template's, each once.
pub(super) fn check(msrs: &[u32]) -> Result<(), ConfigError> {
    let wrong = |found, allowed: &str| {
        Err(ConfigError::OutOfRange { field: "cpu-config.msr_modifiers", found, allowed: allowed.to_owned() })
    };
    let mut sorted = msrs.to_vec();
    sorted.sort_unstable();
    if let Some([msr, _]) = sorted.array_windows().find(|[one, other]| one == other) {
        return wrong(format!("{msr:#x} twice"), "one bitmap for a register");
    }
    for msr in msrs {
        if let Some((_, name)) = NOT_A_TEMPLATES.iter().find(|(range, _)| range.contains(msr)) {
            return wrong(format!("{msr:#x} ({name})"), "registers that the guest's kernel does not write");
        }
    }
    if ranges(msrs).len() > KVM_MSR_FILTER_MAX_RANGES as usize {
        let allowed = "registers in 16 ranges of 12288, which is what KVM's filter has";
        return wrong("too scattered".to_owned(), allowed);
    }
    Ok(())
}

/// Registers that may be written, but for some.
struct Range {
    base: u32,
    /// A bit for each register: it may be written.
    allowed: Vec<u8>,
}

impl Range {
    /// The place of a register's bit, and the bit; `None` if it is beyond what a range can hold.
    fn place(&self, msr: u32) -> Option<(usize, u8)> {
        let distance = msr.checked_sub(self.base).filter(|distance| *distance < MOST)?;
        Some((usize::try_from(distance / 8).ok()?, 1 << (distance % 8)))
    }

    /// Takes a register in, if it is not too far away.
    fn deny(&mut self, msr: u32) -> bool {
        let Some((byte, bit)) = self.place(msr) else { return false };
        let words = byte / size_of::<u64>() + 1;
        self.allowed.resize((words * size_of::<u64>()).max(self.allowed.len()), u8::MAX);
        if let Some(byte) = self.allowed.get_mut(byte) {
            *byte &= !bit;
        }
        true
    }
}

/// The fewest ranges in which none of these registers may be written.
fn ranges(msrs: &[u32]) -> Vec<Range> {
    let mut sorted = msrs.to_vec();
    sorted.sort_unstable();
    let mut ranges: Vec<Range> = Vec::new();
    for msr in sorted {
        if !ranges.last_mut().is_some_and(|range| range.deny(msr)) {
            let mut range = Range { base: msr - msr % WORD, allowed: Vec::new() };
            range.deny(msr);
            ranges.push(range);
        }
    }
    ranges
}

/// Why a guest cannot be kept from writing registers. Exit code 3.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// There is no filter.
    #[error(
        "this host's KVM cannot keep a guest from writing model-specific registers (KVM_CAP_X86_MSR_FILTER, Linux 5.10), as \
         msr_modifiers of cpu-config need; leave them out"
    )]
    None,
    /// KVM does not take it.
    #[error("KVM refused to keep the guest from writing model-specific registers: {0}")]
    Refused(kvm_ioctls::Error),
}

/// Keeps the guest from writing these registers. Before the first vCPU runs; what this process sets is not filtered.
pub fn protect(vm: &VmFd, msrs: &[u32]) -> Result<(), FilterError> {
    if msrs.is_empty() {
        return Ok(());
    }
    if vm.check_extension_raw(KVM_CAP_X86_MSR_FILTER.into()) <= 0 {
        return Err(FilterError::None);
    }
    let ranges = ranges(msrs);
    let filter: Vec<_> = ranges
        .iter()
        .map(|range| MsrFilterRange {
            flags: MsrFilterRangeFlags::WRITE,
            base: range.base,
            msr_count: u32::try_from(range.allowed.len()).unwrap_or(MOST / u8::BITS) * u8::BITS,
            bitmap: &range.allowed,
        })
        .collect();
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &filter).map_err(FilterError::Refused)
}

/// Sets the registers of a vCPU. Its `CPUID` is set: KVM has some registers only if that has their features.
pub(in crate::vcpu) fn set(fd: &VcpuFd, modifiers: &[MsrModifier]) -> Result<(), TemplateError> {
    for modifier in modifiers {
        let index = modifier.addr.0;
        let read = || match read_msrs(fd, &[index]).as_deref() {
            Ok([(_, value)]) => Ok(*value),
            _ => Err(TemplateError::NoMsr(index)),
        };
        let old = read()?;
        let wanted = modifier.bitmap.apply(old);
        let entry = kvm_msr_entry { index, data: wanted, ..kvm_msr_entry::default() };
        let set = Msrs::from_entries(&[entry]).is_ok_and(|msrs| fd.set_msrs(&msrs).is_ok_and(|set| set == 1));
        // KVM takes some values and keeps others. And a register that cannot be written may hold what is wanted.
        let found = if set { read()? } else { old };
        if found != wanted {
            return Err(TemplateError::MsrValue { index, wanted, found });
        }
    }
    Ok(())
}

/// Whether the filter for these registers denies one, as KVM looks it up.
#[cfg(test)]
pub(super) fn denied(msrs: &[u32]) -> impl Fn(u32) -> bool {
    let ranges = ranges(msrs);
    assert!(ranges.iter().all(|range| range.base % WORD == 0 && range.allowed.len() % size_of::<u64>() == 0));
    assert!(ranges.iter().all(|range| range.allowed.len() <= KVM_MSR_FILTER_MAX_BITMAP_SIZE as usize));
    move |msr| {
        let inside = |range: &&Range| {
            let end = range.base.wrapping_add(u32::try_from(range.allowed.len()).unwrap() * u8::BITS);
            (range.base..end).contains(&msr)
        };
        ranges.iter().find(inside).is_some_and(|range| {
            let at = usize::try_from(msr - range.base).unwrap();
            range.allowed[at / 8] & (1 << (at % 8)) == 0
        })
    }
}
