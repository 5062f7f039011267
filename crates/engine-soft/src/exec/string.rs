//! MOVS, STOS, LODS, SCAS, CMPS, with REP. A repeated instruction works in runs that lie within a page on both sides, and
//! stops between elements when the processor is asked for: RIP then stays on the instruction, whose registers say how
//! far it got (Intel SDM vol. 2, REP).

use crate::cpu::{Cpu, R};
use crate::hostops::{Alu, fl};
use crate::mmu::Acc;
use crate::operand::mask;
use iced_x86::{Instruction, Mnemonic as M, OpKind};
use ringer_arch::regs::rflags;
use ringer_arch::seg::sreg;

/// Elements between looks at the stop word.
const CHUNK: u64 = 65536;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Movs,
    Stos,
    Lods,
    Scas,
    Cmps,
}

struct Op {
    kind: Kind,
    size: u32,
    addr_bits: u32,
    src_seg: usize,
}

fn decode(cpu: &Cpu, i: &Instruction) -> Op {
    let (kind, size) = match i.mnemonic() {
        M::Movsb => (Kind::Movs, 1),
        M::Movsw => (Kind::Movs, 2),
        M::Movsd => (Kind::Movs, 4),
        M::Movsq => (Kind::Movs, 8),
        M::Stosb => (Kind::Stos, 1),
        M::Stosw => (Kind::Stos, 2),
        M::Stosd => (Kind::Stos, 4),
        M::Stosq => (Kind::Stos, 8),
        M::Lodsb => (Kind::Lods, 1),
        M::Lodsw => (Kind::Lods, 2),
        M::Lodsd => (Kind::Lods, 4),
        M::Lodsq => (Kind::Lods, 8),
        M::Scasb => (Kind::Scas, 1),
        M::Scasw => (Kind::Scas, 2),
        M::Scasd => (Kind::Scas, 4),
        M::Scasq => (Kind::Scas, 8),
        M::Cmpsb => (Kind::Cmps, 1),
        M::Cmpsw => (Kind::Cmps, 2),
        M::Cmpsd => (Kind::Cmps, 4),
        _ => (Kind::Cmps, 8),
    };
    let kinds = [i.op0_kind(), i.op1_kind()];
    let is = |a, b| kinds.contains(&a) || kinds.contains(&b);
    let addr_bits = if is(OpKind::MemorySegSI, OpKind::MemoryESDI) {
        16
    } else if is(OpKind::MemorySegESI, OpKind::MemoryESEDI) {
        32
    } else {
        64
    };
    Op { kind, size, addr_bits, src_seg: cpu.memory_seg(i) }
}

/// Executes a string instruction.
///
/// # Errors
/// The fault of one of its accesses, with the registers as after the elements before it.
pub fn execute(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let op = decode(cpu, i);
    let rep = i.has_rep_prefix() || i.has_repne_prefix();
    if !rep {
        return element(cpu, &op);
    }
    if op.addr_bits == 32 && cpu.is64() && !cpu.amd() {
        clear_upper_halves(cpu, op.kind);
    }
    let until_zf = i.has_repne_prefix();
    let flags = cpu.fl;
    let compares = matches!(op.kind, Kind::Scas | Kind::Cmps);
    let m = Cpu::width_mask(op.addr_bits);
    let mut budget = CHUNK;
    loop {
        let count = cpu.regs[1] & m;
        if count == 0 {
            return Ok(());
        }
        if budget == 0 {
            cpu.next_rip = cpu.rip;
            return Ok(());
        }
        let done = match run(cpu, &op, count.min(budget)) {
            0 => {
                if let Err(f) = element(cpu, &op) {
                    // Intel's processors go back to the flags from before the instruction (SDM vol. 2B REP).
                    if compares && !cpu.amd() {
                        cpu.fl = flags;
                    }
                    return Err(f);
                }
                1
            }
            n => n,
        };
        budget -= done;
        cpu.set_gpr_bits(1, op.addr_bits, count - done);
        if compares && (cpu.fl & fl::ZF != 0) == until_zf {
            return Ok(());
        }
        let single =
            cpu.sysflags & rflags::TF != 0 || cpu.debug_trap != 0 || cpu.leave || cpu.watched.one_iteration;
        if (single || cpu.stop.load() != 0) && count != done {
            cpu.next_rip = cpu.rip;
            return Ok(());
        }
    }
}

/// Of the registers of a repeated instruction with 32-bit addresses Intel's processors clear these upper halves at the start, even
/// if there is nothing to do or the first element faults (Linux arch/x86/kvm/emulate.c, string_registers_quirk).
fn clear_upper_halves(cpu: &mut Cpu, kind: Kind) {
    let registers: &[usize] = match kind {
        Kind::Movs => &[1, 6, 7],
        Kind::Stos => &[1, 7],
        _ => &[1],
    };
    for r in registers {
        cpu.regs[*r] &= 0xffff_ffff;
    }
}

/// Steps an index register by `n` elements in the direction of DF.
fn step(cpu: &mut Cpu, op: &Op, r: usize, n: u64) {
    let bytes = n.wrapping_mul(u64::from(op.size));
    let v = cpu.regs[r];
    let v = if cpu.sysflags & rflags::DF != 0 { v.wrapping_sub(bytes) } else { v.wrapping_add(bytes) };
    cpu.set_gpr_bits(r, op.addr_bits, v);
}

fn src_lin(cpu: &mut Cpu, op: &Op) -> R<u64> {
    let off = cpu.regs[6] & Cpu::width_mask(op.addr_bits);
    cpu.seg_lin(op.src_seg, off, u64::from(op.size), Acc::Read)
}

fn dst_lin(cpu: &mut Cpu, op: &Op, acc: Acc) -> R<u64> {
    let off = cpu.regs[7] & Cpu::width_mask(op.addr_bits);
    cpu.seg_lin(sreg::ES, off, u64::from(op.size), acc)
}

fn compare(cpu: &mut Cpu, size: u32, a: u64, b: u64) {
    cpu.fl = match size {
        1 => u8::sub(a as u8, b as u8).1,
        2 => u16::sub(a as u16, b as u16).1,
        4 => u32::sub(a as u32, b as u32).1,
        _ => u64::sub(a, b).1,
    };
}

fn element(cpu: &mut Cpu, op: &Op) -> R<()> {
    let size = op.size;
    match op.kind {
        Kind::Movs => {
            let s = src_lin(cpu, op)?;
            let v = cpu.load_n(s, size)?;
            let d = dst_lin(cpu, op, Acc::Write)?;
            cpu.store_n(d, size, v)?;
        }
        Kind::Stos => {
            let d = dst_lin(cpu, op, Acc::Write)?;
            let v = cpu.regs[0];
            cpu.store_n(d, size, v)?;
        }
        Kind::Lods => {
            let s = src_lin(cpu, op)?;
            let v = cpu.load_n(s, size)?;
            if size == 1 {
                cpu.regs[0] = cpu.regs[0] & !0xff | v;
            } else {
                cpu.set_gpr_bits(0, size * 8, v);
            }
        }
        Kind::Scas => {
            let d = dst_lin(cpu, op, Acc::Read)?;
            let v = cpu.load_n(d, size)?;
            compare(cpu, size, cpu.regs[0] & mask(size), v);
        }
        Kind::Cmps => {
            let s = src_lin(cpu, op)?;
            let a = cpu.load_n(s, size)?;
            let d = dst_lin(cpu, op, Acc::Read)?;
            let b = cpu.load_n(d, size)?;
            compare(cpu, size, a, b);
        }
    }
    if matches!(op.kind, Kind::Movs | Kind::Lods | Kind::Cmps) {
        step(cpu, op, 6, 1);
    }
    if op.kind != Kind::Lods {
        step(cpu, op, 7, 1);
    }
    Ok(())
}

/// Moves or stores as many of `count` elements as lie in one page on both sides, upwards; 0 if that is none or the case
/// is not a plain one. 64-bit addressing only: elsewhere limits and wrap-around are checked element by element.
fn run(cpu: &mut Cpu, op: &Op, count: u64) -> u64 {
    let plain = cpu.sysflags & (rflags::DF | rflags::TF) == 0 && !cpu.watched.one_iteration;
    if op.addr_bits != 64 || !cpu.is64() || !plain {
        return 0;
    }
    let size = u64::from(op.size);
    let bytes = count.saturating_mul(size);
    let Ok(d) = dst_lin(cpu, op, Acc::Write) else {
        cpu.exc = None;
        return 0;
    };
    let n = match op.kind {
        Kind::Stos => cpu.fill_run(d, bytes, op.size, cpu.regs[0]) / size,
        Kind::Movs => {
            let Ok(s) = src_lin(cpu, op) else {
                cpu.exc = None;
                return 0;
            };
            cpu.copy_run(d, s, bytes, op.size) / size
        }
        _ => 0,
    };
    if n != 0 {
        if op.kind == Kind::Movs {
            step(cpu, op, 6, n);
        }
        step(cpu, op, 7, n);
    }
    n
}
