//! Far JMP, CALL and RET: direct, through call gates, to tasks (Intel SDM vol. 2A "CALL", "JMP", vol. 2B "RET", vol. 3A §5.8).

use super::desc::{self, Descriptor, Stack, is_null, rpl, sel_fault, typ};
use super::iret::{check_target, finish, is_long_code, return_cs, return_stack};
use super::legacy_int::inner_stack;
use super::long_int::tss_rsp;
use super::segment::bad_long_code;
use super::task;
use crate::cpu::{Cpu, R};
use crate::mmu::Acc;
use iced_x86::{Code, Instruction};
use ringer_arch::exception::vector;
use ringer_arch::seg::{Attr, Segment, sreg};

/// A far pointer operand.
struct Target {
    selector: u16,
    offset: u64,
    /// Operand size in bytes.
    size: u32,
}

fn target(cpu: &mut Cpu, i: &Instruction) -> R<Target> {
    let size = match i.code() {
        Code::Call_ptr1616 | Code::Jmp_ptr1616 => {
            return Ok(Target {
                selector: i.far_branch_selector(),
                offset: u64::from(i.far_branch16()),
                size: 2,
            });
        }
        Code::Call_ptr1632 | Code::Jmp_ptr1632 => {
            return Ok(Target {
                selector: i.far_branch_selector(),
                offset: u64::from(i.far_branch32()),
                size: 4,
            });
        }
        Code::Call_m1616 | Code::Jmp_m1616 => 2,
        Code::Call_m1632 | Code::Jmp_m1632 => 4,
        _ => 8,
    };
    // AMD's processors take a 32-bit offset whatever REX.W says, but then push 64 bits.
    let push = if size == 4 && cpu.is64() && has_rex_w(&cpu.code_bytes()[..i.len()]) { 8 } else { size };
    let lin = cpu.mem_lin(i, u64::from(size) + 2, Acc::Read)?;
    let offset = cpu.load_n(lin, size)?;
    let at = cpu.lin_add(lin, u64::from(size));
    Ok(Target { selector: cpu.load(at)?, offset, size: push })
}

/// Whether the REX prefix, the last before the opcode, has W set.
fn has_rex_w(bytes: &[u8]) -> bool {
    let is_prefix =
        |b: &u8| matches!(b, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 | 0x40..=0x4f);
    let before = bytes.iter().take_while(|b| is_prefix(b)).last();
    before.is_some_and(|b| b & 0xf8 == 0x48)
}

/// Sets CS as real and virtual-8086 mode do.
fn set_real_cs(cpu: &mut Cpu, selector: u16, ip: u64) {
    let cs = &mut cpu.seg[sreg::CS];
    cs.selector = selector;
    cs.base = u64::from(selector) << 4;
    cpu.next_rip = ip;
    cpu.update_mode();
}

fn set_cs(cpu: &mut Cpu, mut cs: Segment, cpl: u8, ip: u64) {
    cs.selector = cs.selector & !3 | u16::from(cpl);
    cpu.seg[sreg::CS] = cs;
    cpu.cpl = cpl;
    cpu.next_rip = ip;
    cpu.update_mode();
}

pub(super) fn jump(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let t = target(cpu, i)?;
    if !cpu.protected() {
        if t.offset > u64::from(cpu.seg[sreg::CS].limit) {
            return Err(cpu.gp(0));
        }
        set_real_cs(cpu, t.selector, t.offset);
        return Ok(());
    }
    let d = far_descriptor(cpu, t.selector)?;
    match d.system() {
        None => {
            let cs = direct_cs(cpu, &d)?;
            let ip = offset_in(cpu, &cs, t.offset);
            check_target(cpu, &cs, ip)?;
            desc::set_accessed(cpu, &d)?;
            set_cs(cpu, cs, cpu.cpl, ip);
            Ok(())
        }
        Some(typ::CALL16 | typ::CALL32) => {
            let g = gate(cpu, &d)?;
            let a = g.code.attr();
            let fits = if a.is_conforming() { a.dpl() <= cpu.cpl } else { a.dpl() == cpu.cpl };
            if !fits {
                return Err(sel_fault(cpu, vector::GP, g.code.selector, 0));
            }
            let cs = g.segment(cpu)?;
            check_target(cpu, &cs, g.offset)?;
            desc::set_accessed(cpu, &g.code)?;
            set_cs(cpu, cs, cpu.cpl, g.offset);
            Ok(())
        }
        Some(_) => task::far_transfer(cpu, &d, false),
    }
}

pub(super) fn call(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let t = target(cpu, i)?;
    if !cpu.protected() {
        let mut s = Stack::current(cpu, 0);
        s.push(cpu, t.size, u64::from(cpu.seg[sreg::CS].selector))?;
        s.push(cpu, t.size, cpu.next_rip)?;
        if t.offset > u64::from(cpu.seg[sreg::CS].limit) {
            return Err(cpu.gp(0));
        }
        s.commit(cpu);
        set_real_cs(cpu, t.selector, t.offset);
        return Ok(());
    }
    let d = far_descriptor(cpu, t.selector)?;
    match d.system() {
        None => {
            let cs = direct_cs(cpu, &d)?;
            let ip = offset_in(cpu, &cs, t.offset);
            call_same(cpu, &d, cs, ip, t.size)
        }
        Some(typ::CALL16 | typ::CALL32) => call_gate(cpu, &d),
        Some(_) => task::far_transfer(cpu, &d, true),
    }
}

/// A far pointer's offset in `cs`: of 64 bits 32-bit code takes the lower 32 (Intel SDM vol. 2A JMP; AMD's processors have no such pointers).
fn offset_in(cpu: &Cpu, cs: &Segment, offset: u64) -> u64 {
    if is_long_code(cpu, cs) { offset } else { offset & 0xffff_ffff }
}

fn far_descriptor(cpu: &mut Cpu, selector: u16) -> R<Descriptor> {
    if is_null(selector) {
        return Err(cpu.gp(0));
    }
    desc::read(cpu, selector, vector::GP, 0)
}

/// The code segment of a far transfer without a gate, which stays in its ring.
fn direct_cs(cpu: &mut Cpu, d: &Descriptor) -> R<Segment> {
    let a = d.attr();
    let level =
        if a.is_conforming() { a.dpl() <= cpu.cpl } else { rpl(d.selector) <= cpu.cpl && a.dpl() == cpu.cpl };
    if !a.is_code() || !level || bad_long_code(cpu, a) {
        return Err(sel_fault(cpu, vector::GP, d.selector, 0));
    }
    if !a.present() {
        return Err(sel_fault(cpu, vector::NP, d.selector, 0));
    }
    Ok(d.segment())
}

/// Pushes the return address on the current stack and goes to `cs`:`ip` in the same ring.
fn call_same(cpu: &mut Cpu, d: &Descriptor, cs: Segment, ip: u64, size: u32) -> R<()> {
    let mut s = Stack::current(cpu, 0);
    // A call from compatibility mode into 64-bit code pushes on the new mode's stack.
    if is_long_code(cpu, &cs) {
        s.bits = 64;
    } else if cpu.is64() {
        // And one from 64-bit code into compatibility mode does, too.
        s.bits = if cpu.seg[sreg::SS].attr.big() { 32 } else { 16 };
    }
    s.push(cpu, size, u64::from(cpu.seg[sreg::CS].selector))?;
    s.push(cpu, size, cpu.next_rip)?;
    check_target(cpu, &cs, ip)?;
    desc::set_accessed(cpu, d)?;
    s.commit(cpu);
    set_cs(cpu, cs, cpu.cpl, ip);
    Ok(())
}

/// A call gate and the code that it leads to, checked but for rings.
struct Gate {
    code: Descriptor,
    offset: u64,
    /// Bytes of each push: 2, 4, or 8.
    size: u32,
    /// Parameters to copy to an inner stack.
    count: u32,
}

impl Gate {
    fn segment(&self, cpu: &mut Cpu) -> R<Segment> {
        if !self.code.attr().present() {
            return Err(sel_fault(cpu, vector::NP, self.code.selector, 0));
        }
        Ok(self.code.segment())
    }
}

fn gate(cpu: &mut Cpu, d: &Descriptor) -> R<Gate> {
    let a = d.attr();
    let long = cpu.long_active();
    if a.dpl() < cpu.cpl.max(rpl(d.selector)) || (long && a.typ() == typ::CALL16) {
        return Err(sel_fault(cpu, vector::GP, d.selector, 0));
    }
    let upper = if long { desc::read_upper(cpu, d, 0)? } else { 0 };
    if !a.present() {
        return Err(sel_fault(cpu, vector::NP, d.selector, 0));
    }
    let selector = d.gate_selector();
    if is_null(selector) {
        return Err(cpu.gp(0));
    }
    let code = desc::read(cpu, selector, vector::GP, 0)?;
    let ca = code.attr();
    let bad_mode = long && (!ca.long() || ca.big());
    if !ca.is_code() || ca.dpl() > cpu.cpl || bad_mode {
        return Err(sel_fault(cpu, vector::GP, selector, 0));
    }
    let offset = match (long, a.typ()) {
        (true, _) => d.gate_offset() | upper << 32,
        (false, typ::CALL16) => d.gate_offset() & 0xffff,
        _ => d.gate_offset(),
    };
    let size = match (long, a.typ()) {
        (true, _) => 8,
        (false, typ::CALL16) => 2,
        _ => 4,
    };
    let count = if long { 0 } else { (d.raw >> 32 & 31) as u32 };
    Ok(Gate { code, offset, size, count })
}

fn call_gate(cpu: &mut Cpu, d: &Descriptor) -> R<()> {
    let g = gate(cpu, d)?;
    let cs = g.segment(cpu)?;
    let a = cs.attr;
    if a.is_conforming() || a.dpl() == cpu.cpl {
        return call_same(cpu, &g.code, cs, g.offset, g.size);
    }
    let cpl = a.dpl();
    if cpu.long_active() {
        return call_inner_long(cpu, &g, cs, cpl);
    }
    let (mut s, ss) = inner_stack(cpu, cpl, 0)?;
    let mut old = Stack::current(cpu, 0);
    let mut params = [0; 31];
    for p in &mut params[..g.count as usize] {
        *p = old.pop(cpu, g.size)?;
    }
    s.push(cpu, g.size, u64::from(cpu.seg[sreg::SS].selector))?;
    s.push(cpu, g.size, cpu.regs[4])?;
    for p in params[..g.count as usize].iter().rev() {
        s.push(cpu, g.size, *p)?;
    }
    s.push(cpu, g.size, u64::from(cpu.seg[sreg::CS].selector))?;
    s.push(cpu, g.size, cpu.next_rip)?;
    check_target(cpu, &cs, g.offset)?;
    desc::set_accessed(cpu, &g.code)?;
    desc::set_accessed(cpu, &ss)?;
    cpu.seg[sreg::SS] = s.seg;
    s.commit(cpu);
    set_cs(cpu, cs, cpl, g.offset);
    Ok(())
}

/// Long mode: the stack pointer from the TSS as it is, a null SS, no parameters.
fn call_inner_long(cpu: &mut Cpu, g: &Gate, cs: Segment, cpl: u8) -> R<()> {
    let rsp = tss_rsp(cpu, 4 + 8 * u64::from(cpl), 0)?;
    let mut s = Stack { seg: Segment::default(), sp: rsp, bits: 64, cpl, code: 0 };
    s.push(cpu, 8, u64::from(cpu.seg[sreg::SS].selector))?;
    s.push(cpu, 8, cpu.regs[4])?;
    s.push(cpu, 8, u64::from(cpu.seg[sreg::CS].selector))?;
    s.push(cpu, 8, cpu.next_rip)?;
    check_target(cpu, &cs, g.offset)?;
    desc::set_accessed(cpu, &g.code)?;
    cpu.seg[sreg::SS] = Segment {
        selector: u16::from(cpl),
        limit: 0xffff_ffff,
        attr: Attr(Attr::UNUSABLE | u32::from(cpl) << 5),
        base: 0,
    };
    s.commit(cpu);
    set_cs(cpu, cs, cpl, g.offset);
    Ok(())
}

pub(super) fn ret(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let size = match i.code() {
        Code::Retfw | Code::Retfw_imm16 => 2,
        Code::Retfd | Code::Retfd_imm16 => 4,
        _ => 8,
    };
    let extra = if i.op_count() > 0 { u64::from(i.immediate16()) } else { 0 };
    let mut s = Stack::current(cpu, 0);
    let ip = s.pop(cpu, size)?;
    let selector = s.pop_selector(cpu, size)?;
    if !cpu.protected() {
        if ip > u64::from(cpu.seg[sreg::CS].limit) {
            return Err(cpu.gp(0));
        }
        s.skip(extra);
        s.commit(cpu);
        set_real_cs(cpu, selector, ip);
        return Ok(());
    }
    let cs = return_cs(cpu, selector)?;
    check_target(cpu, &cs, ip)?;
    s.skip(extra);
    if rpl(selector) == cpu.cpl {
        finish(cpu, &s, None, cs, ip);
        return Ok(());
    }
    let sp = s.pop(cpu, size)?;
    let ss = s.pop_selector(cpu, size)?;
    let mut outer = return_stack(cpu, &cs, ss, sp)?;
    // The parameters are on the outer stack, too.
    outer.skip(extra);
    finish(cpu, &s, Some(outer), cs, ip);
    Ok(())
}
