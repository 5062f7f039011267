//! Instructions on segment registers and descriptor tables.

use super::desc::{self, is_null, rpl, sel_fault, typ};
use super::segment;
use crate::cpu::{Cpu, R, slot};
use crate::hostops::fl;
use crate::mmu::Acc;
use crate::operand::sreg_index;
use iced_x86::{Code, Instruction, Mnemonic as M, OpKind, Register};
use ringer_arch::exception::vector;
use ringer_arch::regs::cr4;
use ringer_arch::seg::{Attr, Segment, TableReg, sreg};

/// Stores a 16-bit system value: memory takes 16 bits, a register is zero-extended as its size says.
fn store_selector(cpu: &mut Cpu, i: &Instruction, v: u16) -> R<()> {
    if i.op0_kind() == OpKind::Register {
        cpu.set_reg(i.op0_register(), u64::from(v));
        return Ok(());
    }
    let lin = cpu.mem_lin(i, 2, Acc::Write)?;
    cpu.store(lin, v)
}

/// Reads operand `n`, 16 bits in memory or the low 16 of a register.
fn read_selector(cpu: &mut Cpu, i: &Instruction, n: u32) -> R<u16> {
    if i.op_kind(n) == OpKind::Register {
        return Ok(cpu.reg(i.op_register(n)) as u16);
    }
    let lin = cpu.mem_lin(i, 2, Acc::Read)?;
    cpu.load(lin)
}

pub(super) fn mov_sreg(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    if i.op1_register().is_segment_register() {
        let v = cpu.seg[sreg_index(i.op1_register())].selector;
        return store_selector(cpu, i, v);
    }
    let index = sreg_index(i.op0_register());
    if index == sreg::CS {
        return Err(cpu.ud());
    }
    let selector = read_selector(cpu, i, 1)?;
    segment::load(cpu, index, selector)?;
    // Intel SDM vol. 3A §6.8.3: MOV and POP to SS inhibit interrupts and debug traps until after the next instruction.
    cpu.shadow |= index == sreg::SS;
    Ok(())
}

/// Operand size in bytes of PUSH and POP of a segment register.
fn stack_size(code: Code) -> u32 {
    match code {
        Code::Pushw_ES
        | Code::Pushw_CS
        | Code::Pushw_SS
        | Code::Pushw_DS
        | Code::Pushw_FS
        | Code::Pushw_GS => 2,
        Code::Popw_ES | Code::Popw_SS | Code::Popw_DS | Code::Popw_FS | Code::Popw_GS => 2,
        Code::Pushq_FS | Code::Pushq_GS | Code::Popq_FS | Code::Popq_GS => 8,
        _ => 4,
    }
}

pub(super) fn push_sreg(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let v = cpu.seg[sreg_index(i.op0_register())].selector;
    let size = stack_size(i.code());
    if size != 4 || cpu.amd() {
        return cpu.push(size, u64::from(v));
    }
    // Intel's processors write 16 bits of the 32 (SDM vol. 2B PUSH).
    let bits = cpu.stack_bits();
    let sp = cpu.regs[4].wrapping_sub(4) & Cpu::width_mask(bits);
    let lin = cpu.seg_lin(sreg::SS, sp, 2, Acc::Write)?;
    cpu.store(lin, v)?;
    cpu.set_gpr_bits(4, bits, sp);
    Ok(())
}

pub(super) fn pop_sreg(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let index = sreg_index(i.op0_register());
    let old = cpu.regs[4];
    // The width of the stack pointer is that of the old SS.
    let size = stack_size(i.code());
    // Intel's processors read no more than the selector.
    let selector = cpu.peek(if cpu.amd() { size } else { 2 }, 0)? as u16;
    cpu.add_sp(u64::from(size));
    if let Err(f) = segment::load(cpu, index, selector) {
        cpu.regs[4] = old;
        return Err(f);
    }
    cpu.shadow |= index == sreg::SS;
    Ok(())
}

/// LDS, LES, LSS, LFS, LGS.
pub(super) fn load_far_pointer(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let index = match i.mnemonic() {
        M::Lds => sreg::DS,
        M::Les => sreg::ES,
        M::Lss => sreg::SS,
        M::Lfs => sreg::FS,
        _ => sreg::GS,
    };
    let size = i.op0_register().size() as u32;
    let lin = cpu.mem_lin(i, u64::from(size) + 2, Acc::Read)?;
    let offset = cpu.load_n(lin, size)?;
    let at = cpu.lin_add(lin, u64::from(size));
    let selector = cpu.load::<u16>(at)?;
    segment::load(cpu, index, selector)?;
    cpu.set_reg(i.op0_register(), offset);
    Ok(())
}

pub(super) fn swapgs(cpu: &mut Cpu) -> R<()> {
    if !cpu.is64() {
        return Err(cpu.ud());
    }
    cpu.require_cpl0()?;
    std::mem::swap(&mut cpu.fast.kernel_gs_base, &mut cpu.seg[sreg::GS].base);
    cpu.regs[slot::SEG_BASE as usize + sreg::GS] = cpu.seg[sreg::GS].base;
    Ok(())
}

/// Sets the base of FS or GS, as the MSRs and WRFSBASE do.
pub(super) fn set_base(cpu: &mut Cpu, index: usize, v: u64) {
    cpu.seg[index].base = v;
    cpu.regs[slot::SEG_BASE as usize + index] = v;
}

pub(super) fn fs_gs_base(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    if !cpu.is64() || cpu.cr4 & cr4::FSGSBASE == 0 {
        return Err(cpu.ud());
    }
    let (index, write) = match i.mnemonic() {
        M::Rdfsbase => (sreg::FS, false),
        M::Rdgsbase => (sreg::GS, false),
        M::Wrfsbase => (sreg::FS, true),
        _ => (sreg::GS, true),
    };
    let r = i.op0_register();
    if !write {
        let v = cpu.seg[index].base;
        cpu.set_reg(r, v);
        return Ok(());
    }
    let v = cpu.reg(r);
    // Intel's processors go by the address width in use, AMD's by the widest they have.
    let fits = if cpu.amd() { cpu.canonical_base(v) } else { cpu.canonical(v) };
    if !fits {
        return Err(cpu.gp(0));
    }
    set_base(cpu, index, v);
    Ok(())
}

/// LGDT and LIDT.
pub(super) fn load_table(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    cpu.require_cpl0()?;
    let long = cpu.is64();
    let bytes = if long { 8 } else { 4 };
    let lin = cpu.mem_lin(i, 2 + bytes, Acc::Read)?;
    let limit = cpu.load::<u16>(lin)?;
    let at = cpu.lin_add(lin, 2);
    let mut base = cpu.load_n(at, bytes as u32)?;
    if matches!(i.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) {
        base &= 0xff_ffff;
    }
    if long && !cpu.canonical_base(base) {
        return Err(cpu.gp(0));
    }
    let table = TableReg { base, limit };
    if i.mnemonic() == M::Lgdt {
        cpu.gdtr = table;
    } else {
        cpu.idtr = table;
    }
    Ok(())
}

/// #GP(0) where CR4.UMIP keeps rings above 0 from reading system registers (Intel SDM vol. 3A §2.5).
pub(super) fn check_umip(cpu: &mut Cpu) -> R<()> {
    if cpu.cr4 & cr4::UMIP != 0 && cpu.cpl > 0 {
        return Err(cpu.gp(0));
    }
    Ok(())
}

/// SGDT and SIDT. With a 16-bit operand size, too, all 32 bits of the base are stored.
pub(super) fn store_table(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    check_umip(cpu)?;
    let table = if i.mnemonic() == M::Sgdt { cpu.gdtr } else { cpu.idtr };
    let bytes = if cpu.is64() { 8 } else { 4 };
    let lin = cpu.mem_lin(i, 2 + bytes, Acc::Write)?;
    let mut buf = [0; 10];
    buf[..2].copy_from_slice(&table.limit.to_le_bytes());
    buf[2..].copy_from_slice(&table.base.to_le_bytes());
    cpu.write_bytes(lin, &buf[..2 + bytes as usize])
}

fn require_protected(cpu: &mut Cpu) -> R<()> {
    if cpu.protected() { Ok(()) } else { Err(cpu.ud()) }
}

/// A system segment (LDT or TSS) with the upper half of its base in long mode.
fn system_segment(cpu: &mut Cpu, d: &desc::Descriptor) -> R<Segment> {
    let mut s = d.segment();
    if cpu.long_active() {
        let upper = desc::read_upper(cpu, d, 0)?;
        s.base |= (upper & 0xffff_ffff) << 32;
        if !cpu.canonical_base(s.base) {
            return Err(sel_fault(cpu, vector::GP, d.selector, 0));
        }
    }
    Ok(s)
}

pub(super) fn lldt(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    require_protected(cpu)?;
    cpu.require_cpl0()?;
    let selector = read_selector(cpu, i, 0)?;
    if is_null(selector) {
        cpu.ldtr = Segment { selector, attr: Attr(Attr::UNUSABLE), ..Segment::default() };
        return Ok(());
    }
    if selector & 4 != 0 {
        return Err(sel_fault(cpu, vector::GP, selector, 0));
    }
    let d = desc::read(cpu, selector, vector::GP, 0)?;
    if d.system() != Some(typ::LDT) {
        return Err(sel_fault(cpu, vector::GP, selector, 0));
    }
    if !d.attr().present() {
        return Err(sel_fault(cpu, vector::NP, selector, 0));
    }
    cpu.ldtr = system_segment(cpu, &d)?;
    Ok(())
}

pub(super) fn ltr(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    require_protected(cpu)?;
    cpu.require_cpl0()?;
    let selector = read_selector(cpu, i, 0)?;
    if is_null(selector) {
        return Err(cpu.gp(0));
    }
    if selector & 4 != 0 {
        return Err(sel_fault(cpu, vector::GP, selector, 0));
    }
    let d = desc::read(cpu, selector, vector::GP, 0)?;
    let fits = match d.system() {
        Some(typ::TSS32) => true,
        Some(typ::TSS16) => !cpu.long_active(),
        _ => false,
    };
    if !fits {
        return Err(sel_fault(cpu, vector::GP, selector, 0));
    }
    if !d.attr().present() {
        return Err(sel_fault(cpu, vector::NP, selector, 0));
    }
    let mut s = system_segment(cpu, &d)?;
    desc::set_busy(cpu, &d, true)?;
    s.attr.0 |= 2;
    cpu.tr = s;
    Ok(())
}

/// SLDT and STR.
pub(super) fn store_system_selector(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    require_protected(cpu)?;
    check_umip(cpu)?;
    let v = if i.mnemonic() == M::Sldt { cpu.ldtr.selector } else { cpu.tr.selector };
    store_selector(cpu, i, v)
}

/// LAR, LSL, VERR, VERW: ZF says whether the descriptor may be seen from here; no fault for a bad selector.
pub(super) fn inspect(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    require_protected(cpu)?;
    let m = i.mnemonic();
    let selector = read_selector(cpu, i, if matches!(m, M::Lar | M::Lsl) { 1 } else { 0 })?;
    let visible = desc::probe(cpu, selector)?.filter(|d| may_inspect(cpu, m, d));
    let Some(d) = visible else {
        cpu.fl &= !fl::ZF;
        return Ok(());
    };
    match m {
        M::Lar => cpu.set_reg(i.op0_register(), d.raw >> 32 & 0x00ff_ff00),
        M::Lsl => cpu.set_reg(i.op0_register(), u64::from(d.segment().limit)),
        _ => {}
    }
    cpu.fl |= fl::ZF;
    Ok(())
}

fn may_inspect(cpu: &Cpu, m: M, d: &desc::Descriptor) -> bool {
    let a = d.attr();
    let long = cpu.long_active();
    // Types that each instruction accepts: Intel SDM vol. 2A tables 3-53 (LAR) and 3-56 (LSL).
    let type_fits = match (m, d.system()) {
        (M::Verr, None) => a.is_readable(),
        (M::Verw, None) => a.is_writable(),
        (_, None) => true,
        (M::Lar, Some(t)) => match t {
            typ::LDT | typ::TSS32 | typ::TSS32_BUSY | typ::CALL32 => true,
            typ::TSS16 | typ::TSS16_BUSY | typ::CALL16 | typ::TASK_GATE => !long,
            _ => false,
        },
        (M::Lsl, Some(t)) => match t {
            typ::LDT | typ::TSS32 | typ::TSS32_BUSY => true,
            typ::TSS16 | typ::TSS16_BUSY => !long,
            _ => false,
        },
        _ => false,
    };
    type_fits && (a.is_conforming() || a.dpl() >= cpu.cpl.max(rpl(d.selector)))
}

pub(super) fn arpl(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    require_protected(cpu)?;
    let src = cpu.reg(i.op1_register()) as u16;
    let register = i.op0_kind() == OpKind::Register;
    let dst = if register {
        cpu.reg(i.op0_register()) as u16
    } else {
        let lin = cpu.mem_lin(i, 2, Acc::Read)?;
        cpu.load::<u16>(lin)?
    };
    if rpl(dst) >= rpl(src) {
        cpu.fl &= !fl::ZF;
        return Ok(());
    }
    let v = dst & !3 | src & 3;
    if register {
        set_low16(cpu, i.op0_register(), v);
    } else {
        // Only now is it a write.
        let lin = cpu.mem_lin(i, 2, Acc::Write)?;
        cpu.store(lin, v)?;
    }
    cpu.fl |= fl::ZF;
    Ok(())
}

fn set_low16(cpu: &mut Cpu, r: Register, v: u16) {
    let n = r.full_register().number() & 15;
    cpu.set_gpr_bits(n, 16, u64::from(v));
}
