//! Masked moves and gathers: only the elements that the mask selects are accessed, each on its own, without alignment
//! checks (Intel SDM vol. 2 "VMASKMOV", "VPMASKMOV", "MASKMOVDQU", "VGATHERDPS" and others).

use super::Special;
use super::x87::{self, at};
use crate::cpu::{Cpu, Fault, R};
use crate::mmu::Acc;
use crate::operand::{address_size, mask, sext};
use iced_x86::{Code, Instruction, Register};
use ringer_arch::Exception;
use ringer_arch::seg::sreg;
use ringer_arch::state::XSAVE_YMM_HI;

/// The instruction, if it is one of this module.
#[must_use]
pub fn find(i: &Instruction) -> Option<Special> {
    use Code as C;
    Some(match i.code() {
        C::VEX_Vmaskmovps_xmm_xmm_m128 | C::VEX_Vpmaskmovd_xmm_xmm_m128 => masked_load::<4, 16>,
        C::VEX_Vmaskmovps_ymm_ymm_m256 | C::VEX_Vpmaskmovd_ymm_ymm_m256 => masked_load::<4, 32>,
        C::VEX_Vmaskmovpd_xmm_xmm_m128 | C::VEX_Vpmaskmovq_xmm_xmm_m128 => masked_load::<8, 16>,
        C::VEX_Vmaskmovpd_ymm_ymm_m256 | C::VEX_Vpmaskmovq_ymm_ymm_m256 => masked_load::<8, 32>,
        C::VEX_Vmaskmovps_m128_xmm_xmm | C::VEX_Vpmaskmovd_m128_xmm_xmm => masked_store::<4, 16>,
        C::VEX_Vmaskmovps_m256_ymm_ymm | C::VEX_Vpmaskmovd_m256_ymm_ymm => masked_store::<4, 32>,
        C::VEX_Vmaskmovpd_m128_xmm_xmm | C::VEX_Vpmaskmovq_m128_xmm_xmm => masked_store::<8, 16>,
        C::VEX_Vmaskmovpd_m256_ymm_ymm | C::VEX_Vpmaskmovq_m256_ymm_ymm => masked_store::<8, 32>,
        C::Maskmovdqu_rDI_xmm_xmm | C::VEX_Vmaskmovdqu_rDI_xmm_xmm => maskmovdqu,
        C::Maskmovq_rDI_mm_mm => maskmovq,
        C::VEX_Vpgatherdd_xmm_vm32x_xmm | C::VEX_Vgatherdps_xmm_vm32x_xmm => gather::<4, 4, 4>,
        C::VEX_Vpgatherdd_ymm_vm32y_ymm | C::VEX_Vgatherdps_ymm_vm32y_ymm => gather::<4, 4, 8>,
        C::VEX_Vpgatherdq_xmm_vm32x_xmm | C::VEX_Vgatherdpd_xmm_vm32x_xmm => gather::<8, 4, 2>,
        C::VEX_Vpgatherdq_ymm_vm32x_ymm | C::VEX_Vgatherdpd_ymm_vm32x_ymm => gather::<8, 4, 4>,
        C::VEX_Vpgatherqd_xmm_vm64x_xmm | C::VEX_Vgatherqps_xmm_vm64x_xmm => gather::<4, 8, 2>,
        C::VEX_Vpgatherqd_xmm_vm64y_xmm | C::VEX_Vgatherqps_xmm_vm64y_xmm => gather::<4, 8, 4>,
        C::VEX_Vpgatherqq_xmm_vm64x_xmm | C::VEX_Vgatherqpd_xmm_vm64x_xmm => gather::<8, 8, 2>,
        C::VEX_Vpgatherqq_ymm_vm64y_ymm | C::VEX_Vgatherqpd_ymm_vm64y_ymm => gather::<8, 8, 4>,
        _ => return None,
    })
}

/// The value of a vector register, all 32 bytes.
fn vector(cpu: &Cpu, r: Register) -> [u8; 32] {
    let n = r.number() & 15;
    let mut v = [0; 32];
    v[..16].copy_from_slice(&cpu.xsave.0[at::XMM + 16 * n..][..16]);
    v[16..].copy_from_slice(&cpu.xsave.0[XSAVE_YMM_HI + 16 * n..][..16]);
    v
}

fn set_vector(cpu: &mut Cpu, r: Register, v: &[u8; 32]) {
    let n = r.number() & 15;
    cpu.xsave.0[at::XMM + 16 * n..][..16].copy_from_slice(&v[..16]);
    cpu.xsave.0[XSAVE_YMM_HI + 16 * n..][..16].copy_from_slice(&v[16..]);
}

/// Element `n` of `E` bytes.
fn element<const E: usize>(v: &[u8; 32], n: usize) -> u64 {
    let mut b = [0; 8];
    b[..E].copy_from_slice(&v[n * E..(n + 1) * E]);
    u64::from_le_bytes(b)
}

fn selected<const E: usize>(v: &[u8; 32], n: usize) -> bool {
    v[n * E + E - 1] & 0x80 != 0
}

fn masked_load<const E: usize, const N: usize>(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let m = vector(cpu, i.op1_register());
    check_limit::<E, N>(cpu, i, &m, Acc::Read)?;
    let mut v = [0; 32];
    let off = cpu.ea(i);
    for n in (0..N / E).filter(|n| selected::<E>(&m, *n)) {
        let lin = part_lin(cpu, i, off, n * E, E, Acc::Read)?;
        cpu.read_bytes(lin, &mut v[n * E..(n + 1) * E])?;
    }
    set_vector(cpu, i.op0_register(), &v);
    Ok(())
}

/// Outside 64-bit mode the whole operand must be within the segment if any of it is selected.
fn check_limit<const E: usize, const N: usize>(
    cpu: &mut Cpu,
    i: &Instruction,
    m: &[u8; 32],
    acc: Acc,
) -> R<()> {
    if !cpu.is64() && (0..N / E).any(|n| selected::<E>(m, n)) {
        cpu.mem_lin(i, N as u64, acc)?;
    }
    Ok(())
}

/// Linear address of `len` bytes at `at` in the memory operand at offset `off`.
fn part_lin(cpu: &mut Cpu, i: &Instruction, off: u64, at: usize, len: usize, acc: Acc) -> R<u64> {
    // An operand may reach further than its address size.
    let wrap = if cpu.is64() { u64::MAX } else { 0xffff_ffff };
    let off = off.wrapping_add(at as u64) & wrap;
    element_lin(cpu, i, off, len as u64, acc)
}

/// [`Cpu::seg_lin`] of an element, whose alignment nobody checks: across the canonical boundary it is no #AC.
fn element_lin(cpu: &mut Cpu, i: &Instruction, off: u64, len: u64, acc: Acc) -> R<u64> {
    let seg = cpu.memory_seg(i);
    cpu.seg_lin(seg, off, len, acc).inspect_err(|_| {
        if cpu.exc.is_some_and(|e| e.vector == ringer_arch::exception::vector::AC) {
            cpu.exc = Some(if seg == sreg::SS { Exception::SS0 } else { Exception::GP0 });
        }
    })
}

fn masked_store<const E: usize, const N: usize>(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let m = vector(cpu, i.op1_register());
    check_limit::<E, N>(cpu, i, &m, Acc::Write)?;
    let v = vector(cpu, i.op2_register());
    let off = cpu.ea(i);
    // All or nothing: addresses and rights first.
    let mut at = [None; 8];
    for n in (0..N / E).filter(|n| selected::<E>(&m, *n)) {
        let lin = part_lin(cpu, i, off, n * E, E, Acc::Write)?;
        cpu.probe_write(lin, E as u64)?;
        at[n] = Some(lin);
    }
    for (n, lin) in at.iter().enumerate() {
        if let Some(lin) = *lin {
            cpu.write_bytes(lin, &v[n * E..(n + 1) * E])?;
        }
    }
    Ok(())
}

fn maskmovdqu(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let v = vector(cpu, i.op1_register());
    let m = vector(cpu, i.op2_register());
    store_bytes(cpu, i, &v[..16], &m[..16])
}

fn maskmovq(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    // MM registers are the physical x87 registers, the XSAVE area is ordered from the top of the stack.
    let top = usize::from(x87::fsw(cpu) >> 11 & 7);
    let mm = |r: Register| -> [u8; 8] {
        let mut b = [0; 8];
        b.copy_from_slice(&cpu.xsave.0[at::ST + 16 * ((r.number() + 8 - top) & 7)..][..8]);
        b
    };
    let (v, m) = (mm(i.op1_register()), mm(i.op2_register()));
    // Even if the store faults.
    super::envs::enter_mmx(cpu);
    store_bytes(cpu, i, &v, &m)
}

/// Stores the selected bytes at DS:rDI.
fn store_bytes(cpu: &mut Cpu, i: &Instruction, v: &[u8], m: &[u8]) -> R<()> {
    let rdi = match i.op0_kind() {
        iced_x86::OpKind::MemorySegDI => Register::DI,
        iced_x86::OpKind::MemorySegEDI => Register::EDI,
        _ => Register::RDI,
    };
    let off = cpu.reg(rdi) & mask(rdi.size() as u32);
    let wrap = match cpu.amd() {
        false => mask(rdi.size() as u32),
        true if cpu.is64() => u64::MAX,
        true => 0xffff_ffff,
    };
    let seg = if i.memory_segment() == Register::None { sreg::DS } else { cpu.memory_seg(i) };
    // Intel's processors begin with the upper half.
    let first = if cpu.amd() { 0 } else { m.len() - 8 };
    if cpu.alignment_checked() {
        let lin = cpu.seg_lin(seg, off.wrapping_add(first as u64) & wrap, 8, Acc::Write)?;
        cpu.require_alignment(lin, 8)?;
    }
    let mut lins = [None; 16];
    // All bytes must be writable, selected or not: the manuals leave that to the implementation.
    for n in (first..m.len()).chain(0..first) {
        let b = m[n];
        let part = off.wrapping_add(n as u64) & wrap;
        // In two halves, each within the segment or not accessed at all.
        let lin = cpu.seg_lin(seg, part, if n % 8 == 0 { 8 } else { 1 }, Acc::Write)?;
        cpu.probe_write(lin, 1)?;
        if b & 0x80 != 0 {
            lins[n] = Some(lin);
        }
    }
    for (lin, b) in lins.iter().zip(v) {
        if let Some(lin) = *lin {
            cpu.store(lin, *b)?;
        }
    }
    Ok(())
}

/// Gathers `COUNT` elements of `E` bytes by indexes of `X` bytes. Each completed element clears its mask, so that a fault
/// leaves the instruction restartable.
fn gather<const E: usize, const X: usize, const COUNT: usize>(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let (dst, index, msk) = (i.op0_register(), i.memory_index(), i.op2_register());
    let (d, x, m) = (dst.number(), index.number(), msk.number());
    if d == x || d == m || x == m {
        return Err(cpu.ud());
    }
    let indexes = vector(cpu, index);
    let m = vector(cpu, msk);
    let mut v = vector(cpu, dst);
    let mut left = m;
    let mut loaded = false;
    if !cpu.amd() {
        // What a fault leaves of the mask is all ones or zeros (SDM vol. 2C VPGATHERDD), over the whole vector length.
        let len = if index.is_ymm() || msk.is_ymm() { 32 } else { 16 };
        left = [0; 32];
        for n in (0..len / E).filter(|n| selected::<E>(&m, *n)) {
            left[n * E..(n + 1) * E].fill(0xff);
        }
    }
    for n in 0..COUNT {
        if !selected::<E>(&m, n) {
            left[n * E..(n + 1) * E].fill(0);
            continue;
        }
        match gather_one(cpu, i, sext(element::<X>(&indexes, n), X as u32), E as u32) {
            Ok(value) => {
                v[n * E..(n + 1) * E].copy_from_slice(&value.to_le_bytes()[..E]);
                loaded = true;
            }
            Err(Fault) => {
                if !cpu.amd() && loaded && !index.is_ymm() && !msk.is_ymm() {
                    v[16..].fill(0);
                }
                set_vector(cpu, dst, &v);
                set_vector(cpu, msk, &left);
                return Err(Fault);
            }
        }
        left[n * E..(n + 1) * E].fill(0);
    }
    v[COUNT * E..].fill(0);
    set_vector(cpu, dst, &v);
    set_vector(cpu, msk, &[0; 32]);
    Ok(())
}

fn gather_one(cpu: &mut Cpu, i: &Instruction, index: u64, size: u32) -> R<u64> {
    let off = cpu.ea(i).wrapping_add(index.wrapping_mul(u64::from(i.memory_index_scale())));
    let off = off & mask(address_size(i));
    let lin = element_lin(cpu, i, off, u64::from(size), Acc::Read)?;
    let mut b = [0; 8];
    cpu.read_bytes(lin, &mut b[..size as usize])?;
    Ok(u64::from_le_bytes(b))
}
