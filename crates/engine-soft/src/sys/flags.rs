//! CLI, STI, PUSHF, POPF, CLAC, STAC, with the rules of IOPL, virtual-8086 mode extensions (VME) and protected-mode virtual
//! interrupts (PVI) (Intel SDM vol. 2, vol. 3B ch. 21).

use crate::cpu::{Cpu, Mode, R};
use iced_x86::{Instruction, Mnemonic as M};
use ringer_arch::cpu::Feature;
use ringer_arch::regs::{cr4, rflags};

/// What CLI, STI, PUSHF and POPF work on here.
enum IfRule {
    /// IF itself.
    Real,
    /// VIF stands for IF.
    Virtual,
    /// #GP(0).
    Denied,
}

fn if_rule(cpu: &Cpu) -> IfRule {
    if cpu.mode == Mode::Real || cpu.cpl <= cpu.iopl() {
        return IfRule::Real;
    }
    let bit = if cpu.mode == Mode::V86 { cr4::VME } else { cr4::PVI };
    if cpu.cpl == 3 && cpu.cr4 & bit != 0 { IfRule::Virtual } else { IfRule::Denied }
}

pub(super) fn cli(cpu: &mut Cpu) -> R<()> {
    match if_rule(cpu) {
        IfRule::Real => cpu.sysflags &= !rflags::IF,
        IfRule::Virtual => cpu.sysflags &= !rflags::VIF,
        IfRule::Denied => return Err(cpu.gp(0)),
    }
    Ok(())
}

pub(super) fn sti(cpu: &mut Cpu) -> R<()> {
    match if_rule(cpu) {
        IfRule::Real => {
            if cpu.sysflags & rflags::IF == 0 {
                cpu.sysflags |= rflags::IF;
                cpu.shadow = true;
                cpu.leave = true;
            }
        }
        IfRule::Virtual => {
            if cpu.sysflags & rflags::VIP != 0 {
                return Err(cpu.gp(0));
            }
            cpu.sysflags |= rflags::VIF;
        }
        IfRule::Denied => return Err(cpu.gp(0)),
    }
    Ok(())
}

pub(super) fn set_ac(cpu: &mut Cpu, on: bool) -> R<()> {
    if !cpu.has(Feature::SMAP) || cpu.cpl != 0 {
        return Err(cpu.ud());
    }
    cpu.sysflags = if on { cpu.sysflags | rflags::AC } else { cpu.sysflags & !rflags::AC };
    // Only the rights of data accesses change, and those go by the TLB in force.
    cpu.select_tlb();
    Ok(())
}

fn size_of(m: M) -> u32 {
    match m {
        M::Pushf | M::Popf => 2,
        M::Pushfd | M::Popfd => 4,
        _ => 8,
    }
}

/// Whether virtual-8086 mode lets PUSHF and POPF through as they are; with IOPL below 3 only the 16-bit forms, on VIF.
fn v86_on_vif(cpu: &mut Cpu, size: u32) -> R<bool> {
    if cpu.mode != Mode::V86 || cpu.iopl() == 3 {
        return Ok(false);
    }
    if cpu.cr4 & cr4::VME == 0 || size != 2 {
        return Err(cpu.gp(0));
    }
    Ok(true)
}

/// FLAGS as a virtual-8086 program with IOPL below 3 sees them: IOPL 3, VIF as IF.
pub(super) fn v86_image(f: u64) -> u64 {
    let shown = f & !rflags::IF | rflags::IOPL;
    if f & rflags::VIF != 0 { shown | rflags::IF } else { shown }
}

pub(super) fn pushf(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let size = size_of(i.mnemonic());
    let virtual_if = v86_on_vif(cpu, size)?;
    let f = cpu.rflags();
    let image = if virtual_if { v86_image(f) } else { f & !(rflags::VM | rflags::RF) };
    cpu.push(size, image)
}

pub(super) fn popf(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let size = size_of(i.mnemonic());
    if v86_on_vif(cpu, size)? {
        let v = cpu.peek(2, 0)?;
        set_v86_flags(cpu, v)?;
        cpu.add_sp(2);
        return Ok(());
    }
    let v = cpu.pop(size)?;
    let mut mask = rflags::ARITH | rflags::TF | rflags::DF | rflags::NT;
    if size != 2 {
        mask |= rflags::AC | rflags::ID;
    }
    if cpu.cpl <= cpu.iopl() || cpu.mode == Mode::Real {
        mask |= rflags::IF;
    }
    if cpu.cpl == 0 {
        mask |= rflags::IOPL;
    }
    // RF is cleared; VM, VIF and VIP stay.
    let old = cpu.rflags();
    let new = old & !(mask | rflags::RF) | v & mask;
    cpu.set_rflags(new);
    // Interrupts may be let in, or the next instruction be stepped.
    cpu.leave |= new & (!old & rflags::IF | rflags::TF) != 0;
    Ok(())
}

/// POPF and IRET of 16 bits in virtual-8086 mode with VME and IOPL below 3: IF goes to VIF, and IOPL stays.
pub(super) fn set_v86_flags(cpu: &mut Cpu, v: u64) -> R<()> {
    if v & rflags::TF != 0 || (v & rflags::IF != 0 && cpu.sysflags & rflags::VIP != 0) {
        return Err(cpu.gp(0));
    }
    let mask = rflags::ARITH | rflags::TF | rflags::DF | rflags::NT;
    let mut new = cpu.rflags() & !(mask | rflags::VIF | rflags::RF) | v & mask;
    if v & rflags::IF != 0 {
        new |= rflags::VIF;
    }
    cpu.set_rflags(new);
    cpu.leave = true;
    Ok(())
}
