//! The state in which vCPUs start.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::{CpuConfig, VcpuError, cpuid, template};
use crate::boot::Entry;
use crate::memory::{GuestRam, layout};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of RFLAGS that is always set.
const RFLAGS_FIXED: u64 = 2;

/// Selectors that Linux's boot protocol names `__BOOT_CS` and `__BOOT_DS`, and a task state segment.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

/// Page table entries.
const PRESENT_WRITABLE: u64 = 3;
const LARGE: u64 = 1 << 7;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRINGS: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, memory is write-back unless said otherwise.
const MTRR_WRITE_BACK: u64 = (1 << 11) | 6;

/// What the configuration of every vCPU of a VM shares.
pub struct Shared<'a> {
    /// CPUID as this host's KVM supports it.
    pub supported: &'a CpuId,
    /// What is changed of that, and of model-specific registers.
    pub template: Option<&'a CpuConfig>,
    /// Number of vCPUs of the VM.
    pub vcpus: u8,
    /// Whether two of them are the threads of a core.
    pub smt: bool,
    /// Whether KVM emulates the LAPIC's TSC-deadline mode.
    pub tsc_deadline: bool,
    /// How the first one starts.
    pub entry: Entry,
}

/// Configures vCPU `vcpu`, and gives its CPUID. All but the first wait for INIT and SIPI, so that they need no registers.
pub fn configure(fd: &VcpuFd, vcpu: u8, shared: &Shared<'_>, ram: &GuestRam) -> Result<CpuId, VcpuError> {
    let kvm = |step| move |source| VcpuError::Kvm { vcpu, step, source };
    let own = |from: &CpuId| cpuid::for_vcpu(from, vcpu, shared.vcpus, shared.smt, shared.tsc_deadline);
    let mut table = own(shared.supported)?;
    if let Some(template) = shared.template {
        table = own(&template.apply(shared.supported, &table)?)?;
    }
    fd.set_cpuid2(&table).map_err(kvm("set its CPUID"))?;
    if let Some(template) = shared.template {
        let shown = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(kvm("tell its CPUID"))?;
        template.check_shown(&table, &shown)?;
        template::msrs::set(fd, &template.msr_modifiers)?;
    }
    set_msrs(fd, vcpu)?;
    if vcpu == 0 {
        let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..kvm_fpu::default() };
        fd.set_fpu(&fpu).map_err(kvm("set its FPU"))?;
        write_tables(ram, shared.entry)?;
        set_sregs(fd, shared.entry).map_err(kvm("set its system registers"))?;
        fd.set_regs(&start_registers(shared.entry)).map_err(kvm("set its registers"))?;
    }
    Ok(table)
}

/// Enters KVM once with the first vCPU of a VM and leaves before the guest's first instruction.
///
/// What KVM makes when a VM runs for the first time is made here, where an error can still be told. Linux 6.13 and later
/// make a thread of the VMM's process (recovery of huge pages), which counts against `pids.max` and `RLIMIT_NPROC`; if it
/// cannot be made, `KVM_RUN` fails with EAGAIN each time. Later on, EAGAIN is no error: a vCPU that its siblings have not
/// started returns it too.
pub fn first_run(fd: &mut VcpuFd) -> Result<(), VcpuError> {
    fd.set_kvm_immediate_exit(1);
    let result = fd.run().map(drop);
    fd.set_kvm_immediate_exit(0);
    match result {
        Err(error) if error.errno() != libc::EINTR => Err(VcpuError::FirstRun(error)),
        _ => Ok(()),
    }
}

fn set_msrs(fd: &VcpuFd, vcpu: u8) -> Result<(), VcpuError> {
    let entries = [(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRINGS), (MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK)]
        .map(|(index, data)| kvm_msr_entry { index, data, ..kvm_msr_entry::default() });
    let msrs = Msrs::from_entries(&entries).map_err(|_| VcpuError::Cpuid)?;
    let set = fd.set_msrs(&msrs).map_err(|source| VcpuError::Kvm {
        vcpu,
        step: "set its model-specific registers",
        source,
    })?;
    match entries.get(set) {
        None => Ok(()),
        Some(refused) => Err(VcpuError::Msr { vcpu, index: refused.index }),
    }
}

/// A flat 4 GiB segment. `kind` is the type field: 11 code, 3 data, both accessed.
fn flat(selector: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..kvm_segment::default()
    }
}

/// The descriptors behind the selectors, for guests that load them again.
fn gdt(long: bool) -> [u64; 6] {
    let code: u64 = if long { 0x00af_9b00_0000_ffff } else { 0x00cf_9b00_0000_ffff };
    // A task state segment at 0 with the least limit, busy; the last entry is the high half of a long one.
    [0, 0, code, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067, 0]
}

/// GDT, and for 64-bit mode page tables that map the first 4 GiB to themselves in 2-MiB pages.
fn write_tables(ram: &GuestRam, entry: Entry) -> Result<(), VcpuError> {
    let long = matches!(entry, Entry::Long { .. });
    for (at, descriptor) in (layout::GDT..).step_by(8).zip(gdt(long)) {
        ram.write_obj(descriptor, GuestAddress(at)).map_err(|_| VcpuError::Write("GDT"))?;
    }
    if !long {
        return Ok(());
    }
    let write =
        |at: u64, value: u64| ram.write_obj(value, GuestAddress(at)).map_err(|_| VcpuError::Write("page tables"));
    let pointers = layout::PAGE_TABLES + 0x1000;
    write(layout::PAGE_TABLES, pointers | PRESENT_WRITABLE)?;
    for gib in 0..4 {
        let directory = pointers + 0x1000 * (gib + 1);
        write(pointers + gib * 8, directory | PRESENT_WRITABLE)?;
        let entries: Vec<u8> = (0..512u64)
            .flat_map(|page| (((gib << 30) + (page << 21)) | PRESENT_WRITABLE | LARGE).to_le_bytes())
            .collect();
        ram.write_slice(&entries, GuestAddress(directory)).map_err(|_| VcpuError::Write("page tables"))?;
    }
    Ok(())
}

fn set_sregs(fd: &VcpuFd, entry: Entry) -> Result<(), kvm_ioctls::Error> {
    let long = matches!(entry, Entry::Long { .. });
    let mut sregs = fd.get_sregs()?;
    sregs.cs = flat(CODE, 11, long);
    let data = flat(DATA, 3, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { base: 0, limit: 0x67, selector: TASK, type_: 11, present: 1, ..kvm_segment::default() };
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = 6 * 8 - 1;
    // No interrupt table: a fault before the guest has set up its own ends in a triple fault, and is reported.
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE | CR0_ET;
    if long {
        sregs.cr0 |= CR0_NE | CR0_PG;
        sregs.cr3 = layout::PAGE_TABLES;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME | EFER_LMA;
    } else {
        (sregs.cr3, sregs.cr4, sregs.efer) = (0, 0, 0);
    }
    fd.set_sregs(&sregs)
}

fn start_registers(entry: Entry) -> kvm_regs {
    let common = kvm_regs { rflags: RFLAGS_FIXED, ..kvm_regs::default() };
    match entry {
        Entry::Long { rip } => {
            kvm_regs { rip, rsi: layout::BOOT_PARAMS, rsp: layout::BOOT_STACK, rbp: layout::BOOT_STACK, ..common }
        }
        Entry::Pvh { eip } => kvm_regs { rip: u64::from(eip), rbx: layout::PVH_START_INFO, ..common },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::reserve;

    #[test]
    fn the_first_four_gib_map_to_themselves() {
        let ram = reserve(2).unwrap();
        write_tables(&ram, Entry::Long { rip: 0x10_0000 }).unwrap();
        let entry = |table: u64, index: u64| ram.read_obj::<u64>(GuestAddress(table + index * 8)).unwrap();
        for address in [0, 0x1f_ffff, 0x4000_0000, 0xc000_0000, 0xffff_ffffu64] {
            let level3 = entry(layout::PAGE_TABLES, 0) & !0xfff;
            let level2 = entry(level3, address >> 30) & !0xfff;
            let page = entry(level2, (address >> 21) & 511);
            assert_eq!(page & !0x1f_ffff, address & !0x1f_ffff);
            assert_eq!(page & 0x83, 0x83);
        }
        // Six pages of tables end below the command line.
        const { assert!(layout::PAGE_TABLES + 6 * 0x1000 <= layout::CMDLINE) };
    }

    #[test]
    fn descriptors_agree_with_the_segments() {
        let descriptor = gdt(true)[usize::from(CODE / 8)];
        assert_eq!((descriptor >> 53) & 1, 1, "long mode");
        assert_eq!((descriptor >> 40) & 0xf, 11, "code, accessed");
        let descriptor = gdt(false)[usize::from(CODE / 8)];
        assert_eq!((descriptor >> 54) & 1, 1, "32 bits");
        assert_eq!((gdt(true)[usize::from(DATA / 8)] >> 40) & 0xf, 3, "data, accessed");
    }
}
