//! Reading a vCPU's registers for a report.

use kvm_ioctls::VcpuFd;

use crate::log::Registers;

/// Whether a vCPU is at the first instruction of a PC's firmware (Intel SDM volume 3, 11.1.4). An INIT brings the first vCPU
/// there; there is no memory, so KVM has to emulate what it cannot read. A firmware would reset the machine.
pub(super) fn are_at_reset(registers: &Registers) -> bool {
    (registers.cs_base, registers.rip) == (0xffff_0000, 0xfff0)
}

/// The registers of a vCPU that has stopped; zeroes for what KVM does not tell.
pub(super) fn read(fd: &VcpuFd, vcpu: u8) -> Registers {
    let regs = fd.get_regs().unwrap_or_default();
    let sregs = fd.get_sregs().unwrap_or_default();
    Registers {
        vcpu,
        rip: regs.rip,
        rflags: regs.rflags,
        rsp: regs.rsp,
        rbp: regs.rbp,
        rax: regs.rax,
        rbx: regs.rbx,
        rcx: regs.rcx,
        rdx: regs.rdx,
        rsi: regs.rsi,
        rdi: regs.rdi,
        r8: regs.r8,
        r9: regs.r9,
        r10: regs.r10,
        r11: regs.r11,
        r12: regs.r12,
        r13: regs.r13,
        r14: regs.r14,
        r15: regs.r15,
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        efer: sregs.efer,
        cs: u64::from(sregs.cs.selector),
        cs_base: sregs.cs.base,
    }
}
