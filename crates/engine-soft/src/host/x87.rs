//! What the x87 unit remembers of its last instruction: opcode, instruction and operand pointers (Intel SDM vol. 1 §8.1.8 to
//! 8.1.9, AMD APM vol. 2 §11.4.4). The host's own must never show, so they are kept in software, in the XSAVE area.

use super::LastX87;
use crate::cpu::{Cpu, Mode};
use crate::operand::sreg_index;
use iced_x86::{Code, CpuidFeature, Instruction, OpKind};
use ringer_arch::cpu::{Feature, Vendor};
use ringer_arch::seg::sreg;

/// Offsets in the XSAVE area.
pub mod at {
    /// Control word.
    pub const FCW: usize = 0;
    /// Status word.
    pub const FSW: usize = 2;
    /// Abridged tag word.
    pub const FTW: usize = 4;
    /// Opcode of the last instruction.
    pub const FOP: usize = 6;
    /// Its address.
    pub const FIP: usize = 8;
    /// Its operand's.
    pub const FDP: usize = 16;
    /// MXCSR.
    pub const MXCSR: usize = 24;
    /// ST0 or MM0; the others 16 bytes apart.
    pub const ST: usize = 32;
    /// XMM0.
    pub const XMM: usize = 160;
    /// The header.
    pub const HEADER: usize = 512;
}

/// FSW.ES.
pub const ES: u16 = 0x80;

/// What an instruction does to the pointers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pointers {
    /// Leaves them: MMX, control instructions.
    Keep,
    /// Clears them: FNINIT.
    Clear,
    /// They are its own.
    Set,
}

/// Segment selectors of the last instruction.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Selectors {
    /// Of the instruction.
    pub cs: u16,
    /// Of its operand.
    pub ds: u16,
}

/// The pointers before an instruction.
#[derive(Clone, Copy)]
pub struct Saved {
    fop: u16,
    fip: u64,
    fdp: u64,
}

/// What an instruction does to the pointers.
#[must_use]
pub fn pointers(i: &Instruction) -> Pointers {
    let x87 = |f: &CpuidFeature| matches!(f, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387);
    match i.code() {
        Code::Fninit => Pointers::Clear,
        Code::Fnclex
        | Code::Fneni
        | Code::Fndisi
        | Code::Fnsetpm
        | Code::Fldcw_m2byte
        | Code::Fnstcw_m2byte
        | Code::Fnstsw_m2byte
        | Code::Fnstsw_AX
        | Code::Wait => Pointers::Keep,
        _ if i.cpuid_features().iter().any(x87) => Pointers::Set,
        _ => Pointers::Keep,
    }
}

/// Bits 10..0 of the opcode in an instruction's bytes: the low three of its first byte, and its second.
#[must_use]
pub fn opcode(bytes: &[u8]) -> u16 {
    let Some(at) = bytes.iter().position(|b| b & 0xf8 == 0xd8) else { return 0 };
    u16::from(bytes[at] & 7) << 8 | u16::from(bytes.get(at + 1).copied().unwrap_or(0))
}

fn get16(cpu: &Cpu, at: usize) -> u16 {
    u16::from_le_bytes([cpu.xsave.0[at], cpu.xsave.0[at + 1]])
}

fn get64(cpu: &Cpu, at: usize) -> u64 {
    let mut b = [0; 8];
    b.copy_from_slice(&cpu.xsave.0[at..at + 8]);
    u64::from_le_bytes(b)
}

/// MXCSR.
#[must_use]
#[inline]
pub fn mxcsr(cpu: &Cpu) -> u32 {
    let mut b = [0; 4];
    b.copy_from_slice(&cpu.xsave.0[at::MXCSR..at::MXCSR + 4]);
    u32::from_le_bytes(b)
}

/// The x87 control word.
#[must_use]
pub fn fcw(cpu: &Cpu) -> u16 {
    get16(cpu, at::FCW)
}

/// The x87 status word.
#[must_use]
pub fn fsw(cpu: &Cpu) -> u16 {
    get16(cpu, at::FSW)
}

/// The opcode register.
#[must_use]
pub fn fop(cpu: &Cpu) -> u16 {
    get16(cpu, at::FOP)
}

/// The instruction pointer.
#[must_use]
pub fn fip(cpu: &Cpu) -> u64 {
    get64(cpu, at::FIP)
}

/// The operand pointer.
#[must_use]
pub fn fdp(cpu: &Cpu) -> u64 {
    get64(cpu, at::FDP)
}

/// Whether some x87 exception is unmasked.
#[must_use]
pub fn unmasked(cpu: &Cpu) -> bool {
    fcw(cpu) & 0x3f != 0x3f
}

/// Remembers the pointers.
#[must_use]
pub fn save(cpu: &Cpu) -> Saved {
    Saved { fop: fop(cpu), fip: fip(cpu), fdp: fdp(cpu) }
}

/// Sets the pointers.
pub fn put(cpu: &mut Cpu, fop: u16, fip: u64, fdp: u64) {
    let x = &mut cpu.xsave.0;
    x[at::FOP..at::FOP + 2].copy_from_slice(&fop.to_le_bytes());
    x[at::FIP..at::FIP + 8].copy_from_slice(&fip.to_le_bytes());
    x[at::FDP..at::FDP + 8].copy_from_slice(&fdp.to_le_bytes());
}

/// Sets the pointers after an instruction that the host has run on the XSAVE area, which now shows the host's.
pub fn set_pointers(cpu: &mut Cpu, i: &Instruction, what: Pointers, own: u16, before: Saved) {
    let Saved { mut fop, mut fip, mut fdp } = before;
    match what {
        Pointers::Keep => {}
        Pointers::Clear => {
            (fop, fip, fdp) = (0, 0, 0);
            cpu.host.selectors = Selectors::default();
        }
        Pointers::Set => {
            let es = fsw(cpu) & ES != 0;
            let amd = cpu.model.vendor() == Vendor::Amd;
            let visible = !cpu.has(Feature::ZERO_FCS_FDS);
            let mask = Cpu::width_mask(cpu.bits());
            // Intel processors note the opcode of excepting instructions only (SDM vol. 1 §8.1.9).
            if amd || es {
                fop = own;
            }
            fip = cpu.next_rip.wrapping_sub(i.len() as u64) & mask;
            cpu.host.selectors.cs = if visible { cpu.seg[sreg::CS].selector } else { 0 };
            let memory = (0..i.op_count()).any(|o| i.op_kind(o) == OpKind::Memory);
            if memory && (es || !cpu.has(Feature::FDP_EXCPTN_ONLY)) {
                fdp = cpu.ea(i);
                let ds = cpu.seg[sreg_index(i.memory_segment())].selector;
                cpu.host.selectors.ds = if visible { ds } else { 0 };
            }
        }
    }
    put(cpu, fop, fip, fdp);
}

/// Sets the pointers to those of an instruction that has run as itself.
pub fn set_last(cpu: &mut Cpu, last: &LastX87<'_>) {
    let (i, own) = (last.insn, opcode(last.bytes));
    let before = save(cpu);
    let es = fsw(cpu) & ES != 0 && !last.calm;
    let visible = !cpu.has(Feature::ZERO_FCS_FDS);
    let fop = if cpu.model.vendor() == Vendor::Amd || es { own } else { before.fop };
    cpu.host.selectors.cs = if visible { cpu.seg[sreg::CS].selector } else { 0 };
    let memory = (0..i.op_count()).any(|o| i.op_kind(o) == OpKind::Memory);
    let operand = last.operand.filter(|_| !cpu.has(Feature::FDP_EXCPTN_ONLY) || memory && es);
    if operand.is_some() {
        // An earlier instruction's segment is not known any more: nearly always it is DS.
        let n = if memory { sreg_index(i.memory_segment()) } else { sreg::DS };
        let ds = cpu.seg[n].selector;
        cpu.host.selectors.ds = if visible { ds } else { 0 };
    }
    put(cpu, fop, last.ip, operand.unwrap_or(before.fdp));
}

/// Whether addresses in environments are segment × 16 + offset.
#[must_use]
pub fn real_format(cpu: &Cpu) -> bool {
    matches!(cpu.mode, Mode::Real | Mode::V86)
}

/// The full tag word of the state in the XSAVE area, from the abridged one and the registers (Intel SDM vol. 2A
/// "FXSAVE", table 3-45).
#[must_use]
pub fn full_tags(cpu: &Cpu) -> u16 {
    let top = usize::from(fsw(cpu) >> 11 & 7);
    let used = cpu.xsave.0[at::FTW];
    let mut tags = 0;
    for phys in 0..8 {
        let tag: u16 = if used >> phys & 1 == 0 {
            3
        } else {
            let r = &cpu.xsave.0[at::ST + 16 * ((phys + 8 - top) & 7)..][..10];
            let exponent = u16::from_le_bytes([r[8], r[9]]) & 0x7fff;
            let zero = r[..8].iter().all(|b| *b == 0);
            match exponent {
                0 if zero => 1,
                0 | 0x7fff => 2,
                _ if r[7] & 0x80 == 0 => 2,
                _ => 0,
            }
        };
        tags |= tag << (2 * phys);
    }
    tags
}

/// The abridged tag word.
#[must_use]
pub fn abridged_tags(full: u16) -> u8 {
    (0..8).fold(0, |a, n| a | u8::from(full >> (2 * n) & 3 != 3) << n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags() {
        assert_eq!(abridged_tags(0xffff), 0);
        assert_eq!(abridged_tags(0x3fff), 0x80);
        assert_eq!(abridged_tags(0), 0xff);
    }

    #[test]
    fn opcodes() {
        let op = opcode;
        assert_eq!(op(&[0xd9, 0xe8]), 0x1e8);
        assert_eq!(op(&[0x41, 0xdd, 0x40, 0x08]), 0x540);
        assert_eq!(op(&[0xdc, 0xc1]), 0x4c1);
    }
}
