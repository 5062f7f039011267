//! SYSCALL, SYSRET, SYSENTER, SYSEXIT (Intel SDM vol. 2B; AMD APM vol. 3, vol. 2 §6.1).

use crate::cpu::{Cpu, R};
use ringer_arch::cpu::Feature;
use ringer_arch::regs::{efer, rflags};
use ringer_arch::seg::{Attr, Segment, sreg};

const RCX: usize = 1;
const RDX: usize = 2;
const RSP: usize = 4;
const R11: usize = 11;

/// Rights of a flat code segment: present, code, readable, accessed, granular.
fn flat_code(selector: u16, cpl: u8, long: bool) -> Segment {
    let size = if long { 0x2000 } else { 0x4000 };
    let attr = Attr(0x809b | size | u32::from(cpl) << 5);
    Segment { selector, base: 0, limit: 0xffff_ffff, attr }
}

fn flat_stack(selector: u16, cpl: u8) -> Segment {
    Segment { selector, base: 0, limit: 0xffff_ffff, attr: Attr(0xc093 | u32::from(cpl) << 5) }
}

/// #UD unless SYSCALL and SYSRET exist here: EFER.SCE, and on Intel only in 64-bit mode.
fn require_sce(cpu: &mut Cpu) -> R<()> {
    let there = cpu.efer & efer::SCE != 0 && (cpu.is64() || (cpu.amd() && cpu.protected()));
    if there { Ok(()) } else { Err(cpu.ud()) }
}

pub(super) fn syscall(cpu: &mut Cpu) -> R<()> {
    require_sce(cpu)?;
    let star = cpu.fast.star;
    let selector = (star >> 32) as u16 & !3;
    let f = cpu.rflags();
    if cpu.long_active() {
        let target = if cpu.is64() { cpu.fast.lstar } else { cpu.fast.cstar };
        cpu.regs[RCX] = cpu.next_rip;
        cpu.regs[R11] = f & !rflags::RF;
        cpu.next_rip = target;
        cpu.seg[sreg::CS] = flat_code(selector, 0, true);
        cpu.cpl = 0;
        cpu.seg[sreg::SS] = flat_stack(selector.wrapping_add(8), 0);
        cpu.set_rflags(f & !cpu.fast.sfmask & !rflags::RF);
    } else {
        cpu.regs[RCX] = cpu.next_rip & 0xffff_ffff;
        cpu.next_rip = star & 0xffff_ffff;
        cpu.seg[sreg::CS] = flat_code(selector, 0, false);
        cpu.cpl = 0;
        cpu.seg[sreg::SS] = flat_stack(selector.wrapping_add(8), 0);
        cpu.set_rflags(f & !(rflags::IF | rflags::RF | rflags::VM));
    }
    cpu.update_mode();
    Ok(())
}

pub(super) fn sysret(cpu: &mut Cpu, wide: bool) -> R<()> {
    require_sce(cpu)?;
    cpu.require_cpl0()?;
    let base = (cpu.fast.star >> 48) as u16;
    let rcx = cpu.regs[RCX];
    let was64 = cpu.is64();
    // Intel checks here, in ring 0; AMD in ring 3, when it fetches.
    if wide && !cpu.amd() && !cpu.canonical(rcx) {
        return Err(cpu.gp(0));
    }
    cpu.seg[sreg::CS] = flat_code(if wide { base.wrapping_add(16) } else { base } | 3, 3, wide);
    let ss = base.wrapping_add(8) | 3;
    if cpu.amd() {
        // Base, limit and rights of SS stay (AMD APM vol. 3 "SYSRET").
        cpu.seg[sreg::SS].selector = ss;
    } else {
        cpu.seg[sreg::SS] = flat_stack(ss, 3);
    }
    cpu.next_rip = if wide { rcx } else { rcx & 0xffff_ffff };
    cpu.cpl = 3;
    if was64 {
        let f = cpu.regs[R11] & rflags::ALL & !(rflags::RF | rflags::VM);
        cpu.set_rflags(f | rflags::FIXED);
    } else {
        let f = cpu.rflags();
        cpu.set_rflags(f | rflags::IF);
    }
    cpu.update_mode();
    Ok(())
}

/// #UD unless SYSENTER and SYSEXIT exist here; #GP(0) in real mode and without selectors.
fn require_sep(cpu: &mut Cpu) -> R<()> {
    if !cpu.has(Feature::SEP) || (cpu.amd() && cpu.long_active()) {
        return Err(cpu.ud());
    }
    let real = cpu.mode == crate::cpu::Mode::Real;
    if real || cpu.fast.sysenter_cs & 0xfffc == 0 {
        return Err(cpu.gp(0));
    }
    Ok(())
}

pub(super) fn sysenter(cpu: &mut Cpu) -> R<()> {
    require_sep(cpu)?;
    let long = cpu.long_active();
    let selector = cpu.fast.sysenter_cs as u16 & !3;
    let m = if long { u64::MAX } else { 0xffff_ffff };
    cpu.regs[RSP] = cpu.fast.sysenter_esp & m;
    cpu.next_rip = cpu.fast.sysenter_eip & m;
    cpu.seg[sreg::CS] = flat_code(selector, 0, long);
    cpu.cpl = 0;
    cpu.seg[sreg::SS] = flat_stack(selector.wrapping_add(8), 0);
    let f = cpu.rflags() & !(rflags::VM | rflags::IF | rflags::RF);
    cpu.set_rflags(f);
    cpu.update_mode();
    Ok(())
}

pub(super) fn sysexit(cpu: &mut Cpu, wide: bool) -> R<()> {
    cpu.require_cpl0()?;
    require_sep(cpu)?;
    let (rip, rsp) = (cpu.regs[RDX], cpu.regs[RCX]);
    if wide && !(cpu.canonical(rip) && cpu.canonical(rsp)) {
        return Err(cpu.gp(0));
    }
    let m = if wide { u64::MAX } else { 0xffff_ffff };
    let base = cpu.fast.sysenter_cs as u16 & !3;
    let first = base.wrapping_add(if wide { 32 } else { 16 }) | 3;
    cpu.seg[sreg::CS] = flat_code(first, 3, wide);
    cpu.seg[sreg::SS] = flat_stack(first.wrapping_add(8), 3);
    cpu.cpl = 3;
    cpu.next_rip = rip & m;
    cpu.regs[RSP] = rsp & m;
    cpu.update_mode();
    Ok(())
}
