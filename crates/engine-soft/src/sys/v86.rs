//! Virtual-8086 mode's own interrupt table (VME, Intel SDM vol. 3B §21.3.3, method 5 and 6), and returning to that mode.

use super::desc;
use super::flags::v86_image;
use crate::cpu::{Cpu, R};
use ringer_arch::regs::{cr4, rflags};
use ringer_arch::seg::{Attr, Segment, sreg};

/// Whether INT `n` in virtual-8086 mode goes through the program's own interrupt table: CR4.VME, and the bit of `n` in the
/// TSS's redirection map is 0.
pub(super) fn redirected(cpu: &mut Cpu, n: u8) -> R<bool> {
    if cpu.cr4 & cr4::VME == 0 {
        return Ok(false);
    }
    // The 32-byte map stands right below the I/O permission map.
    let base = cpu.tr.base;
    if cpu.tr.attr.typ() != desc::typ::TSS32_BUSY || cpu.tr.limit < 0x67 {
        return Err(cpu.gp(0));
    }
    let io = u64::from(cpu.load_sys::<u16>(desc::wrap(cpu, base.wrapping_add(0x66)))?);
    let Some(byte) = (io + u64::from(n) / 8).checked_sub(32) else { return Err(cpu.gp(0)) };
    if byte > u64::from(cpu.tr.limit) {
        return Err(cpu.gp(0));
    }
    let map = cpu.load_sys::<u8>(desc::wrap(cpu, base.wrapping_add(byte)))?;
    Ok(map >> (n & 7) & 1 == 0)
}

/// INT `n` as real mode does it, without leaving virtual-8086 mode.
pub(super) fn software_interrupt(cpu: &mut Cpu, n: u8) -> R<()> {
    let entry = cpu.load::<u32>(u64::from(n) * 4)?;
    let with_if = cpu.iopl() == 3;
    let f = cpu.rflags();
    let image = if with_if { f } else { v86_image(f) };
    let mut s = desc::Stack::current(cpu, 0);
    s.push(cpu, 2, image & 0xffff)?;
    s.push(cpu, 2, u64::from(cpu.seg[sreg::CS].selector))?;
    s.push(cpu, 2, cpu.next_rip & 0xffff)?;
    s.commit(cpu);
    let off = if with_if { rflags::IF } else { rflags::VIF };
    cpu.set_rflags(f & !(off | rflags::TF | rflags::NT | rflags::RF));
    cpu.seg[sreg::CS] = segment((entry >> 16) as u16);
    cpu.next_rip = u64::from(entry & 0xffff);
    cpu.update_mode();
    Ok(())
}

/// A segment register of virtual-8086 mode.
pub(super) fn segment(selector: u16) -> Segment {
    Segment { selector, base: u64::from(selector) << 4, limit: 0xffff, attr: Attr(0xf3) }
}

/// The end of an IRET from ring 0 whose popped EFLAGS has VM set: `eip`, `cs` and `eflags` are popped, the rest follows on
/// the stack (Intel SDM vol. 2A "IRET", RETURN-TO-VIRTUAL-8086-MODE).
pub(super) fn enter(cpu: &mut Cpu, mut stack: desc::Stack, eip: u64, cs: u16, eflags: u64) -> R<()> {
    let esp = stack.pop(cpu, 4)?;
    let mut s = [0u16; 5];
    for v in &mut s {
        *v = stack.pop(cpu, 4)? as u16;
    }
    if eip > 0xffff {
        return Err(cpu.gp(0));
    }
    let [ss, es, ds, fs, gs] = s;
    for (index, selector) in
        [(sreg::ES, es), (sreg::CS, cs), (sreg::SS, ss), (sreg::DS, ds), (sreg::FS, fs), (sreg::GS, gs)]
    {
        cpu.seg[index] = segment(selector);
    }
    cpu.regs[4] = esp;
    cpu.next_rip = eip;
    cpu.cpl = 3;
    cpu.set_rflags(eflags & rflags::ALL | rflags::FIXED);
    cpu.update_mode();
    Ok(())
}
