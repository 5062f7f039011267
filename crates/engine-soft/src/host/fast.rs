//! Plain vector moves, without a stub: most of what string routines and compiled code run.

use super::Special;
use super::code::{copy16, copy32};
use super::x87::at;
use crate::cpu::{Cpu, R};
use crate::mmu::Acc;
use iced_x86::{Code, Instruction, OpKind, Register};
use ringer_arch::state::XSAVE_YMM_HI;

/// The instruction, if it is one of this module.
#[must_use]
pub fn find(i: &Instruction) -> Option<Special> {
    let memory = (0..i.op_count()).any(|o| i.op_kind(o) == OpKind::Memory);
    if memory { from_memory(i.code()).or_else(|| to_memory(i.code())) } else { registers(i) }
}

fn from_memory(c: Code) -> Option<Special> {
    use Code as C;
    Some(match c {
        C::Movups_xmm_xmmm128 | C::Movupd_xmm_xmmm128 | C::Movdqu_xmm_xmmm128 | C::Lddqu_xmm_m128 => {
            load::<16, false, false>
        }
        C::Movaps_xmm_xmmm128 | C::Movapd_xmm_xmmm128 | C::Movdqa_xmm_xmmm128 => load::<16, true, false>,
        C::VEX_Vmovups_xmm_xmmm128
        | C::VEX_Vmovupd_xmm_xmmm128
        | C::VEX_Vmovdqu_xmm_xmmm128
        | C::VEX_Vlddqu_xmm_m128 => load::<16, false, true>,
        C::VEX_Vmovaps_xmm_xmmm128 | C::VEX_Vmovapd_xmm_xmmm128 | C::VEX_Vmovdqa_xmm_xmmm128 => {
            load::<16, true, true>
        }
        C::VEX_Vmovups_ymm_ymmm256
        | C::VEX_Vmovupd_ymm_ymmm256
        | C::VEX_Vmovdqu_ymm_ymmm256
        | C::VEX_Vlddqu_ymm_m256 => load::<32, false, true>,
        C::VEX_Vmovaps_ymm_ymmm256 | C::VEX_Vmovapd_ymm_ymmm256 | C::VEX_Vmovdqa_ymm_ymmm256 => {
            load::<32, true, true>
        }
        C::Movq_xmm_xmmm64 | C::Movsd_xmm_xmmm64 | C::Movq_xmm_rm64 => load_scalar::<8, false>,
        C::Movss_xmm_xmmm32 | C::Movd_xmm_rm32 => load_scalar::<4, false>,
        C::VEX_Vmovq_xmm_xmmm64 | C::VEX_Vmovsd_xmm_m64 | C::VEX_Vmovq_xmm_rm64 => load_scalar::<8, true>,
        C::VEX_Vmovss_xmm_m32 | C::VEX_Vmovd_xmm_rm32 => load_scalar::<4, true>,
        C::Movlps_xmm_m64 | C::Movlpd_xmm_m64 => load_half::<0>,
        C::Movhps_xmm_m64 | C::Movhpd_xmm_m64 => load_half::<8>,
        _ => return None,
    })
}

fn to_memory(c: Code) -> Option<Special> {
    use Code as C;
    Some(match c {
        C::Movups_xmmm128_xmm | C::Movupd_xmmm128_xmm | C::Movdqu_xmmm128_xmm => store::<16, false>,
        C::VEX_Vmovups_xmmm128_xmm | C::VEX_Vmovupd_xmmm128_xmm | C::VEX_Vmovdqu_xmmm128_xmm => {
            store::<16, false>
        }
        C::Movaps_xmmm128_xmm | C::Movapd_xmmm128_xmm | C::Movdqa_xmmm128_xmm => store::<16, true>,
        C::VEX_Vmovaps_xmmm128_xmm | C::VEX_Vmovapd_xmmm128_xmm | C::VEX_Vmovdqa_xmmm128_xmm => {
            store::<16, true>
        }
        C::Movntps_m128_xmm | C::Movntpd_m128_xmm | C::Movntdq_m128_xmm => store::<16, true>,
        C::VEX_Vmovntps_m128_xmm | C::VEX_Vmovntpd_m128_xmm | C::VEX_Vmovntdq_m128_xmm => store::<16, true>,
        C::VEX_Vmovups_ymmm256_ymm | C::VEX_Vmovupd_ymmm256_ymm | C::VEX_Vmovdqu_ymmm256_ymm => {
            store::<32, false>
        }
        C::VEX_Vmovaps_ymmm256_ymm | C::VEX_Vmovapd_ymmm256_ymm | C::VEX_Vmovdqa_ymmm256_ymm => {
            store::<32, true>
        }
        C::VEX_Vmovntps_m256_ymm | C::VEX_Vmovntpd_m256_ymm | C::VEX_Vmovntdq_m256_ymm => store::<32, true>,
        C::Movq_xmmm64_xmm
        | C::Movsd_xmmm64_xmm
        | C::Movq_rm64_xmm
        | C::Movlps_m64_xmm
        | C::Movlpd_m64_xmm => store_part::<8, 0>,
        C::VEX_Vmovq_xmmm64_xmm | C::VEX_Vmovsd_m64_xmm | C::VEX_Vmovq_rm64_xmm => store_part::<8, 0>,
        C::VEX_Vmovlps_m64_xmm | C::VEX_Vmovlpd_m64_xmm => store_part::<8, 0>,
        C::Movhps_m64_xmm | C::Movhpd_m64_xmm | C::VEX_Vmovhps_m64_xmm | C::VEX_Vmovhpd_m64_xmm => {
            store_part::<8, 8>
        }
        C::Movss_xmmm32_xmm | C::Movd_rm32_xmm | C::VEX_Vmovss_m32_xmm | C::VEX_Vmovd_rm32_xmm => {
            store_part::<4, 0>
        }
        _ => return None,
    })
}

/// Register forms: whole-register moves, zeroing, and moves from and to general registers.
fn registers(i: &Instruction) -> Option<Special> {
    use Code as C;
    let zeroing2 = i.op0_register() == i.op1_register();
    let zeroing3 = i.op1_register() == i.op2_register();
    Some(match i.code() {
        C::Movups_xmm_xmmm128
        | C::Movupd_xmm_xmmm128
        | C::Movdqu_xmm_xmmm128
        | C::Movaps_xmm_xmmm128
        | C::Movapd_xmm_xmmm128
        | C::Movdqa_xmm_xmmm128
        | C::Movups_xmmm128_xmm
        | C::Movupd_xmmm128_xmm
        | C::Movdqu_xmmm128_xmm
        | C::Movaps_xmmm128_xmm
        | C::Movapd_xmmm128_xmm
        | C::Movdqa_xmmm128_xmm => copy::<16, false>,
        C::VEX_Vmovups_xmm_xmmm128
        | C::VEX_Vmovupd_xmm_xmmm128
        | C::VEX_Vmovdqu_xmm_xmmm128
        | C::VEX_Vmovaps_xmm_xmmm128
        | C::VEX_Vmovapd_xmm_xmmm128
        | C::VEX_Vmovdqa_xmm_xmmm128 => copy::<16, true>,
        C::VEX_Vmovups_ymm_ymmm256
        | C::VEX_Vmovupd_ymm_ymmm256
        | C::VEX_Vmovdqu_ymm_ymmm256
        | C::VEX_Vmovaps_ymm_ymmm256
        | C::VEX_Vmovapd_ymm_ymmm256
        | C::VEX_Vmovdqa_ymm_ymmm256 => copy::<32, true>,
        C::Pxor_xmm_xmmm128 | C::Xorps_xmm_xmmm128 | C::Xorpd_xmm_xmmm128 if zeroing2 => zero::<false>,
        C::VEX_Vpxor_xmm_xmm_xmmm128
        | C::VEX_Vxorps_xmm_xmm_xmmm128
        | C::VEX_Vxorpd_xmm_xmm_xmmm128
        | C::VEX_Vpxor_ymm_ymm_ymmm256
        | C::VEX_Vxorps_ymm_ymm_ymmm256
        | C::VEX_Vxorpd_ymm_ymm_ymmm256
            if zeroing3 =>
        {
            zero::<true>
        }
        C::Movd_xmm_rm32 | C::Movq_xmm_rm64 => from_gpr::<false>,
        C::VEX_Vmovd_xmm_rm32 | C::VEX_Vmovq_xmm_rm64 => from_gpr::<true>,
        C::Movd_rm32_xmm | C::Movq_rm64_xmm | C::VEX_Vmovd_rm32_xmm | C::VEX_Vmovq_rm64_xmm => to_gpr,
        _ => return None,
    })
}

/// Number of a vector register.
fn number(r: Register) -> usize {
    r.number() & 15
}

fn low(n: usize) -> usize {
    at::XMM + 16 * n
}

fn high(n: usize) -> usize {
    XSAVE_YMM_HI + 16 * n
}

fn set_low(cpu: &mut Cpu, n: usize, v: &[u8]) {
    cpu.xsave.0[low(n)..low(n) + 16].copy_from_slice(v);
}

fn set_high(cpu: &mut Cpu, n: usize, v: &[u8]) {
    cpu.xsave.0[high(n)..high(n) + 16].copy_from_slice(v);
}

/// Linear address of an operand of `N` bytes.
#[inline(always)]
fn address<const N: usize, const ALIGNED: bool>(cpu: &mut Cpu, i: &Instruction, acc: Acc) -> R<u64> {
    if ALIGNED { cpu.aligned_mem_lin(i, N as u64, acc) } else { cpu.mem_lin(i, N as u64, acc) }
}

fn load<const N: usize, const ALIGNED: bool, const VEX: bool>(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let lin = address::<N, ALIGNED>(cpu, i, Acc::Read)?;
    let mut buf = [0; 32];
    match cpu.fast_ptr(lin, N as u64, false) {
        // SAFETY: fast_ptr vouches for N bytes at p.
        Some(p) => unsafe { if N == 32 { copy32(buf.as_mut_ptr(), p) } else { copy16(buf.as_mut_ptr(), p) } },
        _ => slow_read(cpu, lin, &mut buf[..N])?,
    }
    let n = number(i.op0_register());
    set_low(cpu, n, &buf[..16]);
    if VEX {
        // The upper half of a 128-bit operand is zero in the buffer.
        set_high(cpu, n, &buf[16..]);
    }
    Ok(())
}

fn store<const N: usize, const ALIGNED: bool>(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let lin = address::<N, ALIGNED>(cpu, i, Acc::Write)?;
    let n = number(i.op1_register());
    let mut buf = [0; 32];
    buf[..16].copy_from_slice(&cpu.xsave.0[low(n)..low(n) + 16]);
    if N == 32 {
        buf[16..].copy_from_slice(&cpu.xsave.0[high(n)..high(n) + 16]);
    }
    match cpu.fast_ptr(lin, N as u64, true) {
        // SAFETY: fast_ptr vouches for N bytes at p.
        Some(p) => unsafe {
            let p = p.cast_mut();
            if N == 32 { copy32(p, buf.as_ptr()) } else { copy16(p, buf.as_ptr()) }
        },
        _ => {
            super::check_alignment(cpu, lin, N)?;
            cpu.write_bytes(lin, &buf[..N])?;
        }
    }
    Ok(())
}

#[cold]
#[inline(never)]
fn slow_read(cpu: &mut Cpu, lin: u64, buf: &mut [u8]) -> R<()> {
    super::check_alignment(cpu, lin, buf.len())?;
    cpu.read_bytes(lin, buf)
}

fn load_int<const N: usize>(cpu: &mut Cpu, lin: u64) -> R<u64> {
    if N == 8 { cpu.load::<u64>(lin) } else { Ok(u64::from(cpu.load::<u32>(lin)?)) }
}

/// The low part from memory, the rest zero.
fn load_scalar<const N: usize, const VEX: bool>(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let lin = address::<N, false>(cpu, i, Acc::Read)?;
    let v = load_int::<N>(cpu, lin)?;
    set_scalar::<VEX>(cpu, number(i.op0_register()), v);
    Ok(())
}

fn set_scalar<const VEX: bool>(cpu: &mut Cpu, n: usize, v: u64) {
    set_low(cpu, n, &u128::from(v).to_le_bytes());
    if VEX {
        set_high(cpu, n, &[0; 16]);
    }
}

/// Eight bytes at offset `AT` of the register, the others stay.
fn load_half<const AT: usize>(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let lin = address::<8, false>(cpu, i, Acc::Read)?;
    let v: u64 = cpu.load(lin)?;
    let to = low(number(i.op0_register())) + AT;
    cpu.xsave.0[to..to + 8].copy_from_slice(&v.to_le_bytes());
    Ok(())
}

/// `N` bytes at offset `AT` of the register to memory.
fn store_part<const N: usize, const AT: usize>(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let lin = address::<N, false>(cpu, i, Acc::Write)?;
    let v = part(cpu, number(i.op1_register()), AT);
    if N == 8 { cpu.store(lin, v) } else { cpu.store(lin, v as u32) }
}

fn part(cpu: &Cpu, n: usize, offset: usize) -> u64 {
    let mut b = [0; 8];
    b.copy_from_slice(&cpu.xsave.0[low(n) + offset..low(n) + offset + 8]);
    u64::from_le_bytes(b)
}

fn copy<const N: usize, const VEX: bool>(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let (to, from) = (number(i.op0_register()), number(i.op1_register()));
    cpu.xsave.0.copy_within(low(from)..low(from) + 16, low(to));
    if N == 32 {
        cpu.xsave.0.copy_within(high(from)..high(from) + 16, high(to));
    } else if VEX {
        set_high(cpu, to, &[0; 16]);
    }
    Ok(())
}

fn zero<const VEX: bool>(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let n = number(i.op0_register());
    set_low(cpu, n, &[0; 16]);
    if VEX {
        set_high(cpu, n, &[0; 16]);
    }
    Ok(())
}

fn from_gpr<const VEX: bool>(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let v = cpu.reg(i.op1_register());
    set_scalar::<VEX>(cpu, number(i.op0_register()), v);
    Ok(())
}

fn to_gpr(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let v = part(cpu, number(i.op1_register()), 0);
    cpu.set_reg(i.op0_register(), v);
    Ok(())
}
