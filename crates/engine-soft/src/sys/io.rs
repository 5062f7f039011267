//! Port I/O: IN, OUT, INS, OUTS and who may (Intel SDM vol. 1 ch. 19).

use super::{debug, desc};
use crate::cpu::{Cpu, R};
use crate::mmu::Acc;
use crate::operand::mask;
use iced_x86::{Instruction, Mnemonic as M, OpKind};
use ringer_arch::regs::{cr0, rflags};
use ringer_arch::seg::sreg;

/// Offset in a TSS of the I/O map's own offset.
const TSS_IO_BASE: u64 = 0x66;

/// #GP(0) unless the program may use ports `port..port+size`: by IOPL, or by the TSS's I/O permission map.
fn check_port(cpu: &mut Cpu, port: u16, size: u32) -> R<()> {
    let v86 = cpu.sysflags & rflags::VM != 0;
    if cpu.cr0 & cr0::PE == 0 || (cpu.cpl <= cpu.iopl() && !v86) {
        return Ok(());
    }
    let (base, limit) = (cpu.tr.base, u64::from(cpu.tr.limit));
    let tss32 =
        cpu.tr.attr.present() && !cpu.tr.attr.unusable() && cpu.tr.attr.typ() == desc::typ::TSS32_BUSY;
    if !tss32 || limit < TSS_IO_BASE + 1 {
        return Err(cpu.gp(0));
    }
    let at = desc::wrap(cpu, base.wrapping_add(TSS_IO_BASE));
    let map = u64::from(cpu.load_sys::<u16>(at)?);
    // Two bytes are read always, so that the map must go one byte beyond the last port's (Intel SDM vol. 1 §19.5.2).
    let byte = map + u64::from(port) / 8;
    if byte + 1 > limit {
        return Err(cpu.gp(0));
    }
    let at = desc::wrap(cpu, base.wrapping_add(byte));
    let bits = cpu.load_sys::<u16>(at)?;
    let wanted = ((1u16 << size) - 1) << (port & 7);
    if bits & wanted != 0 {
        return Err(cpu.gp(0));
    }
    Ok(())
}

fn port_read(cpu: &mut Cpu, port: u16, size: u32) -> u64 {
    cpu.stats.pio += 1;
    let mut buf = [0xff; 4];
    cpu.io.pio_read(port, &mut buf[..size as usize]);
    debug::watch_port(cpu, port, size);
    u64::from(u32::from_le_bytes(buf)) & mask(size)
}

fn port_write(cpu: &mut Cpu, port: u16, size: u32, v: u64) {
    cpu.stats.pio += 1;
    cpu.io.pio_write(port, &(v as u32).to_le_bytes()[..size as usize]);
    debug::watch_port(cpu, port, size);
}

fn port_operand(cpu: &Cpu, i: &Instruction, n: u32) -> u16 {
    match i.op_kind(n) {
        OpKind::Register => cpu.regs[2] as u16,
        _ => u16::from(i.immediate8()),
    }
}

pub(super) fn in_out(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    if i.mnemonic() == M::In {
        let size = i.op0_register().size() as u32;
        let port = port_operand(cpu, i, 1);
        check_port(cpu, port, size)?;
        let v = port_read(cpu, port, size);
        cpu.set_reg(i.op0_register(), v);
    } else {
        let size = i.op1_register().size() as u32;
        let port = port_operand(cpu, i, 0);
        check_port(cpu, port, size)?;
        let v = cpu.reg(i.op1_register());
        port_write(cpu, port, size, v);
    }
    // The access may have raised an interrupt, a reset or the end of the machine.
    cpu.leave |= cpu.stop.load() != 0;
    Ok(())
}

/// Element size of a string I/O instruction.
fn element(i: &Instruction) -> u32 {
    match i.mnemonic() {
        M::Insb | M::Outsb => 1,
        M::Insw | M::Outsw => 2,
        _ => 4,
    }
}

fn address_bits(kind: OpKind) -> u32 {
    match kind {
        OpKind::MemoryESDI | OpKind::MemorySegSI => 16,
        OpKind::MemoryESEDI | OpKind::MemorySegESI => 32,
        _ => 64,
    }
}

/// Moves an index register on by an element in the direction of DF.
fn advance(cpu: &mut Cpu, reg: usize, bits: u32, size: u32) {
    let step = u64::from(size);
    let step = if cpu.sysflags & rflags::DF != 0 { step.wrapping_neg() } else { step };
    cpu.set_gpr_bits(reg, bits, cpu.regs[reg].wrapping_add(step));
}

/// Runs a string instruction's iterations. Between two of them requests from outside and debug traps break in; the instruction is then
/// left as the next to execute, with RCX telling what is still to do.
fn repeat(cpu: &mut Cpu, i: &Instruction, bits: u32, mut one: impl FnMut(&mut Cpu) -> R<()>) -> R<()> {
    if !i.has_rep_prefix() && !i.has_repne_prefix() {
        one(cpu)?;
        cpu.leave |= cpu.stop.load() != 0;
        return Ok(());
    }
    let m = Cpu::width_mask(bits);
    let stepping = cpu.sysflags & rflags::TF != 0 || cpu.watched.one_iteration;
    while cpu.regs[1] & m != 0 {
        one(cpu)?;
        cpu.set_gpr_bits(1, bits, cpu.regs[1].wrapping_sub(1));
        let more = cpu.regs[1] & m != 0;
        if cpu.stop.load() != 0 || cpu.debug_trap != 0 || cpu.watched.hit.is_some() || stepping {
            cpu.leave = true;
            if more {
                cpu.next_rip = cpu.rip;
                return Ok(());
            }
        }
    }
    Ok(())
}

pub(super) fn ins(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let (size, bits) = (element(i), address_bits(i.op0_kind()));
    let port = cpu.regs[2] as u16;
    check_port(cpu, port, size)?;
    repeat(cpu, i, bits, |cpu| {
        let off = cpu.regs[7] & Cpu::width_mask(bits);
        let lin = cpu.seg_lin(sreg::ES, off, u64::from(size), Acc::Write)?;
        // The port is read only if the value has a place to go.
        cpu.probe_write(lin, u64::from(size))?;
        let v = port_read(cpu, port, size);
        cpu.store_n(lin, size, v)?;
        advance(cpu, 7, bits, size);
        Ok(())
    })
}

pub(super) fn outs(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let (size, bits) = (element(i), address_bits(i.op1_kind()));
    let port = cpu.regs[2] as u16;
    let seg = cpu.memory_seg(i);
    check_port(cpu, port, size)?;
    repeat(cpu, i, bits, |cpu| {
        let off = cpu.regs[6] & Cpu::width_mask(bits);
        let lin = cpu.seg_lin(seg, off, u64::from(size), Acc::Read)?;
        let v = cpu.load_n(lin, size)?;
        port_write(cpu, port, size, v);
        advance(cpu, 6, bits, size);
        Ok(())
    })
}
