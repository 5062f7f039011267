//! FNSTENV, FLDENV, FNSAVE, FRSTOR in their four formats (Intel SDM vol. 1 §8.1.10, figures 8-9 to 8-12): in 64-bit mode the
//! host knows the protected-mode ones only, and would store its own addresses.

use super::x87::{self, ES, Selectors, at};
use super::{Special, read_area, touch, write_area};
use crate::cpu::{Cpu, R};
use crate::mmu::Acc;
use iced_x86::{Code, Instruction};

/// FSW.B, which follows ES.
const BUSY: u16 = 0x8000;

/// The instruction, if it is one of this module.
#[must_use]
pub fn find(i: &Instruction) -> Option<Special> {
    Some(match i.code() {
        Code::Fnstenv_m14byte => fnstenv::<2>,
        Code::Fnstenv_m28byte => fnstenv::<4>,
        Code::Fldenv_m14byte => fldenv::<2>,
        Code::Fldenv_m28byte => fldenv::<4>,
        Code::Fnsave_m94byte => fnsave::<2>,
        Code::Fnsave_m108byte => fnsave::<4>,
        Code::Frstor_m94byte => frstor::<2>,
        Code::Frstor_m108byte => frstor::<4>,
        Code::Fninit => fninit,
        Code::Fnstsw_AX => |cpu, _| {
            let v = x87::fsw(cpu);
            cpu.set_gpr_bits(0, 16, u64::from(v));
            Ok(())
        },
        _ => return None,
    })
}

/// The seven fields of an environment: control, status, tags, then the pointers.
fn fields(cpu: &Cpu, wide: bool) -> [u32; 7] {
    let (fop, fip, fdp) = (u32::from(x87::fop(cpu) & 0x7ff), x87::fip(cpu) as u32, x87::fdp(cpu) as u32);
    let Selectors { cs, ds } = cpu.host.selectors;
    let (cs, ds) = (u32::from(cs), u32::from(ds));
    let pointers = if x87::real_format(cpu) {
        let (i, d) = (fip.wrapping_add(cs << 4), fdp.wrapping_add(ds << 4));
        if wide {
            [i & 0xffff, (i >> 16) << 12 | fop, d & 0xffff, (d >> 16) << 12]
        } else {
            [i, (i >> 16) << 12 | fop, d, (d >> 16) << 12]
        }
    } else if wide {
        [fip, fop << 16 | cs, fdp, 0xffff_0000 | ds]
    } else {
        [fip, cs, fdp, ds]
    };
    let upper = if wide { 0xffff_0000 } else { 0 };
    let word = |v: u16| upper | u32::from(v);
    let [i, ic, d, dc] = pointers;
    [word(x87::fcw(cpu)), word(x87::fsw(cpu)), word(x87::full_tags(cpu)), i, ic, d, dc]
}

/// Linear address of an environment of `len` bytes. Its first field and its last byte are what faults first.
fn area<const W: usize>(cpu: &mut Cpu, i: &Instruction, len: usize, acc: Acc) -> R<u64> {
    let lin = cpu.mem_lin(i, 1, acc)?;
    cpu.require_alignment(lin, W as u64)?;
    touch(cpu, i, 0, W as u64, acc)?;
    touch(cpu, i, len as u64 - 1, 1, acc)?;
    Ok(lin)
}

/// The environment as bytes: `W` is 2 or 4 bytes a field.
fn environment<const W: usize>(cpu: &Cpu) -> [u8; 28] {
    let mut b = [0; 28];
    for (n, f) in fields(cpu, W == 4).iter().enumerate() {
        b[n * W..(n + 1) * W].copy_from_slice(&f.to_le_bytes()[..W]);
    }
    b
}

fn put16(cpu: &mut Cpu, at: usize, v: u16) {
    cpu.xsave.0[at..at + 2].copy_from_slice(&v.to_le_bytes());
}

/// The status word with ES and B as the flags and masks call for.
#[must_use]
pub fn summarized(fcw: u16, fsw: u16) -> u16 {
    let pending = fsw & !fcw & 0x3f != 0;
    if pending { fsw | ES | BUSY } else { fsw & !(ES | BUSY) }
}

/// Sets control, status and tag words; the registers, ordered from the top of the stack, stay where they physically are.
fn set_words(cpu: &mut Cpu, fcw: u16, fsw: u16, tags: u8) {
    // Bit 6 always reads 1, bits 7, 13, 14, 15 always 0.
    let fcw = fcw & 0x1f3f | 0x40;
    turn(cpu, fsw >> 11 & 7);
    put16(cpu, at::FCW, fcw);
    put16(cpu, at::FSW, summarized(fcw, fsw));
    cpu.xsave.0[at::FTW] = tags;
}

/// Changes the top of the stack without moving physical registers.
pub fn turn(cpu: &mut Cpu, top: u16) {
    let old = x87::fsw(cpu) >> 11 & 7;
    let by = usize::from(top.wrapping_sub(old) & 7);
    cpu.xsave.0[at::ST..at::ST + 128].rotate_left(16 * by);
    let fsw = x87::fsw(cpu) & !0x3800 | top << 11;
    put16(cpu, at::FSW, fsw);
}

/// What any MMX instruction but EMMS does to the x87 state: top of stack 0, all registers valid.
pub fn enter_mmx(cpu: &mut Cpu) {
    turn(cpu, 0);
    cpu.xsave.0[at::FTW] = 0xff;
}

/// Takes over the fields of an environment.
fn load_fields<const W: usize>(cpu: &mut Cpu, b: &[u8]) {
    let field = |n: usize| {
        let mut v = [0; 4];
        v[..W].copy_from_slice(&b[n * W..(n + 1) * W]);
        u32::from_le_bytes(v)
    };
    let wide = W == 4;
    let low = |v: u32| v as u16;
    let (i, ic, d, dc) = (field(3), field(4), field(5), field(6));
    let (fop, fip, fdp, selectors) = if x87::real_format(cpu) {
        let address = |a: u32, c: u32| a & 0xffff | (c >> 12 & 0xffff) << 16;
        (low(ic), address(i, ic), address(d, dc), Selectors::default())
    } else {
        let fop = if wide { low(ic >> 16) } else { 0 };
        (fop, i, d, Selectors { cs: low(ic), ds: low(dc) })
    };
    set_words(cpu, low(field(0)), low(field(1)), x87::abridged_tags(low(field(2))));
    x87::put(cpu, fop & 0x7ff, u64::from(fip), u64::from(fdp));
    cpu.host.selectors = selectors;
}

fn fnstenv<const W: usize>(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let lin = area::<W>(cpu, i, 7 * W, Acc::Write)?;
    let b = environment::<W>(cpu);
    write_area(cpu, lin, &b[..7 * W])?;
    // All exceptions are masked then, so none is pending.
    let (fcw, fsw) = (x87::fcw(cpu) | 0x3f, x87::fsw(cpu));
    put16(cpu, at::FCW, fcw);
    put16(cpu, at::FSW, summarized(fcw, fsw));
    Ok(())
}

fn fldenv<const W: usize>(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let lin = area::<W>(cpu, i, 7 * W, Acc::Read)?;
    let mut b = [0; 28];
    read_area(cpu, lin, &mut b[..7 * W])?;
    load_fields::<W>(cpu, &b);
    Ok(())
}

fn fninit(cpu: &mut Cpu, _: &Instruction) -> R<()> {
    turn(cpu, 0);
    put16(cpu, at::FCW, 0x37f);
    put16(cpu, at::FSW, 0);
    cpu.xsave.0[at::FTW] = 0;
    x87::put(cpu, 0, 0, 0);
    cpu.host.selectors = Selectors::default();
    Ok(())
}

fn fnsave<const W: usize>(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let len = 7 * W + 80;
    let lin = area::<W>(cpu, i, len, Acc::Write)?;
    let mut b = [0; 108];
    b[..28].copy_from_slice(&environment::<W>(cpu));
    for n in 0..8 {
        b[7 * W + 10 * n..][..10].copy_from_slice(&cpu.xsave.0[at::ST + 16 * n..][..10]);
    }
    write_area(cpu, lin, &b[..len])?;
    fninit(cpu, i)
}

fn frstor<const W: usize>(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let len = 7 * W + 80;
    let lin = area::<W>(cpu, i, len, Acc::Read)?;
    let mut b = [0; 108];
    read_area(cpu, lin, &mut b[..len])?;
    load_fields::<W>(cpu, &b);
    for n in 0..8 {
        cpu.xsave.0[at::ST + 16 * n..][..10].copy_from_slice(&b[7 * W + 10 * n..][..10]);
    }
    Ok(())
}
