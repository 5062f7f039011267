//! Events through the real-mode table and through 16- and 32-bit gates (Intel SDM vol. 3A §6.12, vol. 2A "INT n", vol. 3B
//! §20.1 and §21.2).

use super::desc::{self, Descriptor, IDT, Stack, is_null, sel_fault, typ};
use super::interrupt::{Event, handler_flags};
use super::segment::{null_segment, ss_descriptor};
use super::task;
use crate::cpu::{Cpu, R};
use ringer_arch::Exception;
use ringer_arch::exception::vector;
use ringer_arch::regs::rflags;
use ringer_arch::seg::{Segment, sreg};

/// Real mode: a table of far pointers, no error codes.
pub(super) fn real(cpu: &mut Cpu, ev: &Event) -> R<()> {
    let at = u64::from(ev.vector) * 4;
    if at + 3 > u64::from(cpu.idtr.limit) {
        return Err(cpu.gp((u32::from(ev.vector) * 8) | IDT | ev.ext()));
    }
    let lin = desc::wrap(cpu, cpu.idtr.base.wrapping_add(at));
    let entry = cpu.load_sys::<u32>(lin)?;
    let mut s = Stack::current(cpu, 0);
    s.push(cpu, 2, cpu.rflags())?;
    s.push(cpu, 2, u64::from(cpu.seg[sreg::CS].selector))?;
    s.push(cpu, 2, ev.return_ip(cpu))?;
    s.commit(cpu);
    let f = cpu.rflags() & !(rflags::IF | rflags::TF | rflags::AC | rflags::RF);
    let selector = (entry >> 16) as u16;
    let cs = &mut cpu.seg[sreg::CS];
    cs.selector = selector;
    cs.base = u64::from(selector) << 4;
    cpu.next_rip = u64::from(entry & 0xffff);
    cpu.set_rflags(f);
    cpu.update_mode();
    Ok(())
}

/// Protected and virtual-8086 mode, long mode not active.
pub(super) fn protected(cpu: &mut Cpu, ev: &Event) -> R<()> {
    let code = (u32::from(ev.vector) * 8) | IDT | ev.ext();
    let at = u64::from(ev.vector) * 8;
    if at + 7 > u64::from(cpu.idtr.limit) {
        return Err(cpu.gp(code));
    }
    let addr = desc::wrap(cpu, cpu.idtr.base.wrapping_add(at));
    let raw = cpu.load_sys::<u64>(addr)?;
    let gate = Descriptor { addr, raw, selector: 0 };
    let a = gate.attr();
    let fits =
        matches!(gate.system(), Some(typ::TASK_GATE | typ::INT16 | typ::TRAP16 | typ::INT32 | typ::TRAP32));
    if !fits || (ev.is_soft() && a.dpl() < cpu.cpl) {
        return Err(cpu.gp(code));
    }
    if !a.present() {
        return Err(cpu.raise(Exception::coded(vector::NP, code)));
    }
    if a.typ() == typ::TASK_GATE {
        return task::event(cpu, gate.gate_selector(), ev);
    }
    through_gate(cpu, ev, &gate)
}

fn through_gate(cpu: &mut Cpu, ev: &Event, gate: &Descriptor) -> R<()> {
    let ext = ev.ext();
    let selector = gate.gate_selector();
    if is_null(selector) {
        return Err(cpu.gp(ext));
    }
    let d = desc::read(cpu, selector, vector::GP, ext)?;
    let a = d.attr();
    if !a.is_code() || a.dpl() > cpu.cpl {
        return Err(sel_fault(cpu, vector::GP, selector, ext));
    }
    if !a.present() {
        return Err(sel_fault(cpu, vector::NP, selector, ext));
    }
    let v86 = cpu.sysflags & rflags::VM != 0;
    let cpl = if a.is_conforming() { cpu.cpl } else { a.dpl() };
    if v86 && cpl != 0 {
        return Err(sel_fault(cpu, vector::GP, selector, ext));
    }
    let wide = matches!(gate.attr().typ(), typ::INT32 | typ::TRAP32);
    let size = if wide { 4 } else { 2 };
    let offset = gate.gate_offset() & if wide { 0xffff_ffff } else { 0xffff };
    let inner = cpl < cpu.cpl;
    let mut new_ss = None;
    let mut s = if inner {
        let (stack, ss) = inner_stack(cpu, cpl, ext)?;
        new_ss = Some(ss);
        stack
    } else {
        Stack::current(cpu, ext)
    };
    if v86 {
        for index in [sreg::GS, sreg::FS, sreg::DS, sreg::ES] {
            s.push(cpu, size, u64::from(cpu.seg[index].selector))?;
        }
    }
    if inner {
        s.push(cpu, size, u64::from(cpu.seg[sreg::SS].selector))?;
        s.push(cpu, size, cpu.regs[4])?;
    }
    s.push(cpu, size, ev.flags(cpu))?;
    s.push(cpu, size, u64::from(cpu.seg[sreg::CS].selector))?;
    s.push(cpu, size, ev.return_ip(cpu))?;
    if let Some(code) = ev.code {
        s.push(cpu, size, u64::from(code))?;
    }
    let mut cs = d.segment();
    if offset > u64::from(cs.limit) {
        return Err(cpu.gp(ext));
    }
    desc::set_accessed(cpu, &d)?;
    if let Some(ss) = new_ss {
        desc::set_accessed(cpu, &ss)?;
        cpu.seg[sreg::SS] = ss.segment();
    }
    if v86 {
        for index in [sreg::GS, sreg::FS, sreg::DS, sreg::ES] {
            cpu.seg[index] = null_segment(cpu, index, 0);
        }
    }
    s.commit(cpu);
    cs.selector = cs.selector & !3 | u16::from(cpl);
    cpu.seg[sreg::CS] = cs;
    cpu.cpl = cpl;
    cpu.next_rip = offset;
    let interrupt = matches!(gate.attr().typ(), typ::INT16 | typ::INT32);
    let f = handler_flags(cpu.rflags(), interrupt);
    cpu.set_rflags(f);
    cpu.update_mode();
    Ok(())
}

/// SS and ESP for ring `cpl` from the TSS, and SS's descriptor, checked (Intel SDM vol. 2A "INT n", INTER-PRIVILEGE-LEVEL-INTERRUPT).
pub(super) fn inner_stack(cpu: &mut Cpu, cpl: u8, ext: u32) -> R<(Stack, Descriptor)> {
    let (selector, sp) = tss_stack(cpu, cpl, ext)?;
    if is_null(selector) {
        return Err(cpu.raise(Exception::coded(vector::TS, ext)));
    }
    let d = ss_descriptor(cpu, selector, cpl, vector::TS, ext)?;
    let seg: Segment = d.segment();
    Ok((Stack::of_segment(seg, sp, cpl, u32::from(selector & !3) | ext), d))
}

fn tss_stack(cpu: &mut Cpu, cpl: u8, ext: u32) -> R<(u16, u64)> {
    let wide = matches!(cpu.tr.attr.typ(), typ::TSS32 | typ::TSS32_BUSY);
    let (offset, size) = if wide { (4 + 8 * u64::from(cpl), 4) } else { (2 + 4 * u64::from(cpl), 2) };
    if cpu.tr.attr.unusable() || offset + size + 1 > u64::from(cpu.tr.limit) {
        let tr = cpu.tr.selector;
        return Err(sel_fault(cpu, vector::TS, tr, ext));
    }
    let at = desc::wrap(cpu, cpu.tr.base.wrapping_add(offset));
    let sp = if wide { u64::from(cpu.load_sys::<u32>(at)?) } else { u64::from(cpu.load_sys::<u16>(at)?) };
    let at = desc::wrap(cpu, cpu.tr.base.wrapping_add(offset + size));
    Ok((cpu.load_sys::<u16>(at)?, sp))
}
