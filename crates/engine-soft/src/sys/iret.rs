//! IRET in all forms (Intel SDM vol. 2A "IRET").

use super::desc::{self, Stack, is_null, rpl, sel_fault};
use super::flags::set_v86_flags;
use super::segment::{bad_long_code, check_ss, drop_inner_segments, null_segment};
use super::{task, v86};
use crate::cpu::{Cpu, Mode, R};
use iced_x86::{Instruction, Mnemonic as M};
use ringer_arch::exception::vector;
use ringer_arch::regs::rflags;
use ringer_arch::seg::{Segment, sreg};

/// Flags that 16 bits hold and every IRET restores.
const LOW: u64 = rflags::ARITH | rflags::TF | rflags::DF | rflags::NT;

pub(super) fn iret(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    // NMIs are unblocked even if it faults (Intel SDM vol. 3C §26.3).
    cpu.nmi_blocked = false;
    cpu.leave = true;
    let size = match i.mnemonic() {
        M::Iret => 2,
        M::Iretd => 4,
        _ => 8,
    };
    match cpu.mode {
        Mode::Real => real(cpu, size),
        Mode::V86 => from_v86(cpu, size),
        _ if cpu.sysflags & rflags::NT != 0 => {
            if cpu.long_active() {
                return Err(cpu.gp(0));
            }
            task::nested_return(cpu)
        }
        _ => protected(cpu, size),
    }
}

fn pop_real(cpu: &mut Cpu, size: u32) -> R<(Stack, u64, u16, u64)> {
    let mut s = Stack::current(cpu, 0);
    let ip = s.pop(cpu, size)?;
    let cs = s.pop_selector(cpu, size)?;
    let f = s.pop(cpu, size)?;
    if ip > u64::from(cpu.seg[sreg::CS].limit) {
        return Err(cpu.gp(0));
    }
    Ok((s, ip, cs, f))
}

fn finish_real(cpu: &mut Cpu, s: &Stack, ip: u64, selector: u16) {
    s.commit(cpu);
    let cs = &mut cpu.seg[sreg::CS];
    cs.selector = selector;
    cs.base = u64::from(selector) << 4;
    cpu.next_rip = ip;
    cpu.update_mode();
}

fn real(cpu: &mut Cpu, size: u32) -> R<()> {
    let (s, ip, cs, f) = pop_real(cpu, size)?;
    let mut mask = LOW | rflags::IF | rflags::IOPL;
    if size == 4 {
        mask |= rflags::RF | rflags::AC | rflags::ID;
    }
    let new = cpu.rflags() & !mask | f & mask;
    cpu.set_rflags(new);
    finish_real(cpu, &s, ip, cs);
    Ok(())
}

fn from_v86(cpu: &mut Cpu, size: u32) -> R<()> {
    if cpu.iopl() == 3 {
        let (s, ip, cs, f) = pop_real(cpu, size)?;
        let mut mask = LOW | rflags::IF;
        if size == 4 {
            mask |= rflags::RF | rflags::AC | rflags::ID;
        }
        let new = cpu.rflags() & !mask | f & mask;
        cpu.set_rflags(new);
        finish_real(cpu, &s, ip, cs);
        return Ok(());
    }
    if size != 2 || cpu.cr4 & ringer_arch::regs::cr4::VME == 0 {
        return Err(cpu.gp(0));
    }
    let (s, ip, cs, f) = pop_real(cpu, size)?;
    set_v86_flags(cpu, f)?;
    finish_real(cpu, &s, ip, cs);
    Ok(())
}

fn protected(cpu: &mut Cpu, size: u32) -> R<()> {
    let mut s = Stack::current(cpu, 0);
    let ip = s.pop(cpu, size)?;
    let selector = s.pop_selector(cpu, size)?;
    let f = s.pop(cpu, size)?;
    if size == 4 && f & rflags::VM != 0 && cpu.cpl == 0 && !cpu.long_active() {
        return v86::enter(cpu, s, ip, selector, f);
    }
    // 64-bit code pops SS:RSP whichever ring it returns to, and before anything is checked.
    let stack = |s: &mut Stack, cpu: &mut Cpu| -> R<(u64, u16)> {
        Ok((s.pop(cpu, size)?, s.pop_selector(cpu, size)?))
    };
    let early = if cpu.is64() { Some(stack(&mut s, cpu)?) } else { None };
    let cs = return_cs(cpu, selector)?;
    check_target(cpu, &cs, ip)?;
    let from_cpl = cpu.cpl;
    let outer = match early {
        None if rpl(selector) > cpu.cpl => Some(stack(&mut s, cpu)?),
        other => other,
    };
    let t = match outer {
        Some((sp, ss)) => Some(return_stack(cpu, &cs, ss, sp)?),
        None => None,
    };
    finish(cpu, &s, t, cs, ip);
    let mask = flag_mask(size, from_cpl, cpu.iopl());
    let new = cpu.rflags() & !mask | f & mask;
    cpu.set_rflags(new);
    Ok(())
}

fn flag_mask(size: u32, cpl: u8, iopl: u8) -> u64 {
    let mut m = LOW;
    if size != 2 {
        m |= rflags::RF | rflags::AC | rflags::ID;
    }
    if cpl <= iopl {
        m |= rflags::IF;
    }
    if cpl == 0 {
        m |= rflags::IOPL;
        if size != 2 {
            m |= rflags::VIF | rflags::VIP;
        }
    }
    m
}

/// The code segment that a far return or IRET goes to, checked and marked accessed.
pub(super) fn return_cs(cpu: &mut Cpu, selector: u16) -> R<Segment> {
    if is_null(selector) {
        return Err(cpu.gp(0));
    }
    let d = desc::read(cpu, selector, vector::GP, 0)?;
    let a = d.attr();
    let level = rpl(selector);
    let bad_level = if a.is_conforming() { a.dpl() > level } else { a.dpl() != level };
    if !a.is_code() || level < cpu.cpl || bad_level || bad_long_code(cpu, a) {
        return Err(sel_fault(cpu, vector::GP, selector, 0));
    }
    if !a.present() {
        return Err(sel_fault(cpu, vector::NP, selector, 0));
    }
    desc::set_accessed(cpu, &d)?;
    Ok(d.segment())
}

/// Whether code in `cs` runs in 64-bit mode.
pub(super) fn is_long_code(cpu: &Cpu, cs: &Segment) -> bool {
    cpu.long_active() && cs.attr.long()
}

/// #GP(0) for an instruction pointer that code in `cs` cannot have.
pub(super) fn check_target(cpu: &mut Cpu, cs: &Segment, ip: u64) -> R<()> {
    let bad = if is_long_code(cpu, cs) { !cpu.canonical(ip) } else { ip > u64::from(cs.limit) };
    if bad { Err(cpu.gp(0)) } else { Ok(()) }
}

/// The stack that a return to code segment `cs` pops.
pub(super) fn return_stack(cpu: &mut Cpu, cs: &Segment, ss: u16, sp: u64) -> R<Stack> {
    let level = rpl(cs.selector);
    let long = is_long_code(cpu, cs);
    let seg = if is_null(ss) {
        if !long || level == 3 || rpl(ss) != level {
            return Err(cpu.gp(0));
        }
        null_segment(cpu, sreg::SS, ss)
    } else {
        check_ss(cpu, ss, level, vector::GP, 0)?
    };
    let mut s = Stack::of_segment(seg, sp, level, 0);
    if long {
        s.bits = 64;
    }
    Ok(s)
}

/// Makes the results of a far return the processor's: `old` is the stack popped from, `new` the one returned to, if any.
pub(super) fn finish(cpu: &mut Cpu, old: &Stack, new: Option<Stack>, cs: Segment, ip: u64) {
    old.commit(cpu);
    let level = rpl(cs.selector);
    let outer = level > cpu.cpl;
    cpu.seg[sreg::CS] = cs;
    cpu.cpl = level;
    if let Some(s) = new {
        cpu.seg[sreg::SS] = s.seg;
        // With a 16-bit stack only SP is loaded.
        if s.bits == 16 {
            cpu.set_gpr_bits(4, 16, s.sp);
        } else {
            s.commit(cpu);
        }
    }
    if outer {
        drop_inner_segments(cpu);
    }
    cpu.next_rip = ip;
    cpu.update_mode();
}
