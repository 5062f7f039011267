//! Debug registers, breakpoints, single step (Intel SDM vol. 3B ch. 18).

use crate::cpu::{Cpu, Fault, R};
use iced_x86::{Instruction, Register};
use ringer_arch::Exception;
use ringer_arch::exception::vector;
use ringer_arch::regs::{cr4, dr, rflags};
use ringer_arch::seg::sreg;

/// DR7: the eight enable bits.
const DR7_ENABLES: u64 = 0xff;
/// DR7 bits that can be 1.
const DR7_WRITABLE: u64 = 0xffff_23ff;
/// DR6 bits that software can change.
const DR6_WRITABLE: u64 = 0xe00f;

pub(super) fn mov_dr(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let write = i.op0_register().is_dr();
    let (d, gpr) =
        if write { (i.op0_register(), i.op1_register()) } else { (i.op1_register(), i.op0_register()) };
    let n = match d {
        Register::DR0 => 0,
        Register::DR1 => 1,
        Register::DR2 => 2,
        Register::DR3 => 3,
        Register::DR4 if cpu.cr4 & cr4::DE == 0 => 6,
        Register::DR5 if cpu.cr4 & cr4::DE == 0 => 7,
        Register::DR6 => 6,
        Register::DR7 => 7,
        _ => return Err(cpu.ud()),
    };
    cpu.require_cpl0()?;
    if cpu.dr[7] & dr::DR7_GD != 0 {
        return Err(raise_fault(cpu, dr::DR6_BD));
    }
    if !write {
        let v = cpu.dr[n];
        cpu.set_reg(gpr, v);
        return Ok(());
    }
    let v = cpu.reg(gpr);
    if n >= 6 && v >> 32 != 0 {
        return Err(cpu.gp(0));
    }
    set_dr(cpu, n, v);
    Ok(())
}

/// DR6 and DR7 with their constant bits as they are.
pub(super) fn fixed(dr6: u64, dr7: u64) -> (u64, u64) {
    (dr6 & DR6_WRITABLE | dr::DR6_FIXED, dr7 & DR7_WRITABLE | dr::DR7_FIXED)
}

/// Sets debug register `n` and drops TLB entries that may hide a watched page.
pub(super) fn set_dr(cpu: &mut Cpu, n: usize, v: u64) {
    let enabled = cpu.dr[7] & DR7_ENABLES;
    cpu.dr[n] = match n {
        6 => fixed(v, 0).0,
        7 => fixed(0, v).1,
        _ => v,
    };
    if n != 6 && (enabled | cpu.dr[7]) & DR7_ENABLES != 0 {
        cpu.mmu.flush_all();
    }
    cpu.leave = true;
}

fn note(cpu: &mut Cpu, bits: u64) {
    // Bits 3:0 tell of this exception alone; the others stay until software clears them.
    cpu.dr[6] = cpu.dr[6] & !0xf | bits;
    cpu.dr[7] &= !dr::DR7_GD;
}

/// A #DB that is a fault (instruction breakpoint, general detect): RF is in the flags that it pushes.
pub(super) fn raise_fault(cpu: &mut Cpu, bits: u64) -> Fault {
    note(cpu, bits);
    cpu.sysflags |= rflags::RF;
    cpu.raise(Exception::plain(vector::DB))
}

/// A #DB that is a trap; [`Cpu::rip`] is the address to return to.
pub(super) fn raise_trap(cpu: &mut Cpu, bits: u64) -> Fault {
    note(cpu, bits);
    cpu.raise(Exception::plain(vector::DB))
}

/// The breakpoints of kind `rw` (DR7's R/W field) that are enabled and lie in `at..at+len`.
fn matching(cpu: &Cpu, rw: u64, at: u64, len: u64) -> u64 {
    let mut hits = 0;
    for n in 0..4 {
        let field = cpu.dr[7] >> (16 + 4 * n);
        let size = [1, 2, 8, 4][(field >> 2 & 3) as usize];
        let first = cpu.dr[n] & !(size - 1);
        let overlaps = at < first.wrapping_add(size) && first < at.wrapping_add(len);
        if cpu.dr[7] >> (2 * n) & 3 != 0 && field & 3 == rw && overlaps {
            hits |= 1 << n;
        }
    }
    hits
}

/// Whether an instruction breakpoint stands at the current instruction and RF does not hold it off; [`Cpu::exc`] is set
/// then. To be asked before each instruction while DR7 enables any.
pub fn code_breakpoint(cpu: &mut Cpu) -> bool {
    if cpu.dr[7] & DR7_ENABLES == 0 || cpu.sysflags & rflags::RF != 0 {
        return false;
    }
    let lin = if cpu.is64() { cpu.rip } else { cpu.seg[sreg::CS].base.wrapping_add(cpu.rip) & 0xffff_ffff };
    let hits = matching(cpu, 0, lin, 1);
    if hits == 0 {
        return false;
    }
    raise_fault(cpu, hits);
    true
}

/// Notes I/O breakpoints that an access of `len` bytes at `port` hits.
pub(super) fn watch_port(cpu: &mut Cpu, port: u16, len: u32) {
    if cpu.dr[7] & DR7_ENABLES == 0 || cpu.cr4 & cr4::DE == 0 {
        return;
    }
    let hits = matching(cpu, 2, u64::from(port), u64::from(len));
    if hits != 0 {
        cpu.debug_trap |= hits;
        cpu.leave = true;
    }
}
