//! Events through 16-byte gates in long mode (Intel SDM vol. 3A §6.14, vol. 2A "INT n").

use super::desc::{self, IDT, Stack, is_null, sel_fault, typ};
use super::interrupt::{Event, handler_flags};
use super::segment::bad_long_code;
use crate::cpu::{Cpu, R};
use ringer_arch::Exception;
use ringer_arch::exception::vector;
use ringer_arch::seg::{Attr, Segment, sreg};

struct Gate {
    selector: u16,
    offset: u64,
    ist: u8,
    interrupt: bool,
}

fn read_gate(cpu: &mut Cpu, ev: &Event) -> R<Gate> {
    let code = (u32::from(ev.vector) * 8) | IDT | ev.ext();
    let at = u64::from(ev.vector) * 16;
    if at + 15 > u64::from(cpu.idtr.limit) {
        return Err(cpu.gp(code));
    }
    let base = cpu.idtr.base;
    let low = cpu.load_sys::<u64>(base.wrapping_add(at))?;
    let high = cpu.load_sys::<u64>(base.wrapping_add(at + 8))?;
    let attr = Attr((low >> 40) as u32 & 0xff);
    let fits = !attr.is_code_or_data() && matches!(attr.typ(), typ::INT32 | typ::TRAP32);
    if !fits || (ev.is_soft() && attr.dpl() < cpu.cpl) {
        return Err(cpu.gp(code));
    }
    if !attr.present() {
        return Err(cpu.raise(Exception::coded(vector::NP, code)));
    }
    let offset = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
    Ok(Gate {
        selector: (low >> 16) as u16,
        offset,
        ist: (low >> 32 & 7) as u8,
        interrupt: attr.typ() == typ::INT32,
    })
}

/// A stack pointer from the TSS at `offset`.
pub(super) fn tss_rsp(cpu: &mut Cpu, offset: u64, ext: u32) -> R<u64> {
    if cpu.tr.attr.unusable() || offset + 7 > u64::from(cpu.tr.limit) {
        let tr = cpu.tr.selector;
        return Err(sel_fault(cpu, vector::TS, tr, ext));
    }
    let at = cpu.tr.base.wrapping_add(offset);
    let rsp = cpu.load_sys::<u64>(at)?;
    if !cpu.canonical(rsp) {
        return Err(cpu.raise(Exception::coded(vector::SS, ext)));
    }
    Ok(rsp)
}

pub(super) fn deliver(cpu: &mut Cpu, ev: &Event) -> R<()> {
    let gate = read_gate(cpu, ev)?;
    let ext = ev.ext();
    if is_null(gate.selector) {
        return Err(cpu.gp(ext));
    }
    let d = desc::read(cpu, gate.selector, vector::GP, ext)?;
    let a = d.attr();
    if !a.is_code() || a.dpl() > cpu.cpl {
        return Err(sel_fault(cpu, vector::GP, gate.selector, ext));
    }
    if !a.present() {
        return Err(sel_fault(cpu, vector::NP, gate.selector, ext));
    }
    if !a.long() || bad_long_code(cpu, a) {
        return Err(sel_fault(cpu, vector::GP, gate.selector, ext));
    }
    let cpl = if a.is_conforming() { cpu.cpl } else { a.dpl() };
    let inner = cpl < cpu.cpl;
    let rsp = if gate.ist != 0 {
        tss_rsp(cpu, 0x24 + 8 * u64::from(gate.ist - 1), ext)?
    } else if inner {
        tss_rsp(cpu, 4 + 8 * u64::from(cpl), ext)?
    } else {
        cpu.regs[4]
    };
    let mut s = Stack { seg: Segment::default(), sp: rsp & !15, bits: 64, cpl, code: ext };
    s.push(cpu, 8, u64::from(cpu.seg[sreg::SS].selector))?;
    s.push(cpu, 8, cpu.regs[4])?;
    s.push(cpu, 8, ev.flags(cpu))?;
    s.push(cpu, 8, u64::from(cpu.seg[sreg::CS].selector))?;
    s.push(cpu, 8, ev.return_ip(cpu))?;
    if let Some(code) = ev.code {
        s.push(cpu, 8, u64::from(code))?;
    }
    if !cpu.canonical(gate.offset) {
        return Err(cpu.gp(ext));
    }
    desc::set_accessed(cpu, &d)?;
    let mut cs = d.segment();
    cs.selector = cs.selector & !3 | u16::from(cpl);
    cpu.seg[sreg::CS] = cs;
    if inner {
        cpu.seg[sreg::SS] = Segment {
            selector: u16::from(cpl),
            limit: 0xffff_ffff,
            attr: Attr(Attr::UNUSABLE | u32::from(cpl) << 5),
            base: 0,
        };
    }
    s.commit(cpu);
    cpu.next_rip = gate.offset;
    cpu.cpl = cpl;
    let f = handler_flags(cpu.rflags(), gate.interrupt);
    cpu.set_rflags(f);
    cpu.update_mode();
    Ok(())
}
