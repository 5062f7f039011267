//! Hints, fences, MXCSR, random numbers and other small instructions.

use super::Special;
use super::class::{is_fence, is_prefetch};
use super::x87::{self, at};
use crate::cpu::{Cpu, R};
use crate::hostops::fl;
use crate::mmu::Acc;
use iced_x86::{Code, Instruction, OpKind};
use ringer_arch::cpu::Feature;
use ringer_arch::state::XSAVE_YMM_HI;

/// The instruction, if it is one of this module.
#[must_use]
pub fn find(i: &Instruction) -> Option<Special> {
    Some(match i.code() {
        c if is_prefetch(c) => |_, _| Ok(()),
        c if is_fence(c) => fence,
        Code::Wait => |_, _| Ok(()),
        Code::Movnti_m32_r32 | Code::Movnti_m64_r64 => movnti,
        Code::Ldmxcsr_m32 | Code::VEX_Vldmxcsr_m32 => ldmxcsr,
        Code::Stmxcsr_m32 | Code::VEX_Vstmxcsr_m32 => stmxcsr,
        Code::VEX_Vzeroall => vzeroall,
        Code::VEX_Vzeroupper => vzeroupper,
        Code::Fnstcw_m2byte => |cpu, i| store_word(cpu, i, x87::fcw(cpu)),
        Code::Fnstsw_m2byte => |cpu, i| store_word(cpu, i, x87::fsw(cpu)),
        Code::Rdrand_r16 | Code::Rdrand_r32 | Code::Rdrand_r64 => random,
        Code::Rdseed_r16 | Code::Rdseed_r32 | Code::Rdseed_r64 => random,
        _ => return None,
    })
}

/// Whether an instruction of [`find`]'s may run as itself in translated code.
#[must_use]
pub fn runs_as_itself(i: &Instruction) -> bool {
    is_prefetch(i.code())
        || is_fence(i.code())
        || matches!(
            i.code(),
            Code::Wait
                | Code::Movnti_m32_r32
                | Code::Movnti_m64_r64
                | Code::Stmxcsr_m32
                | Code::VEX_Vstmxcsr_m32
                | Code::VEX_Vzeroall
                | Code::VEX_Vzeroupper
                | Code::Fnstcw_m2byte
                | Code::Fnstsw_m2byte
                | Code::Fnstsw_AX
        )
}

fn fence(_: &mut Cpu, _: &Instruction) -> R<()> {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(())
}

fn movnti(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let v = cpu.reg(i.op1_register());
    cpu.write_op(i, 0, v)
}

fn store_word(cpu: &mut Cpu, i: &Instruction, v: u16) -> R<()> {
    let lin = cpu.mem_lin(i, 2, Acc::Write)?;
    cpu.store(lin, v)
}

/// The bits that MXCSR has.
#[must_use]
pub fn mxcsr_mask(cpu: &Cpu) -> u32 {
    if cpu.has(Feature::MISALIGNSSE) { 0x2_ffff } else { 0xffff }
}

fn ldmxcsr(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let lin = cpu.mem_lin(i, 4, Acc::Read)?;
    let v: u32 = cpu.load(lin)?;
    if v & !mxcsr_mask(cpu) != 0 {
        return Err(cpu.gp(0));
    }
    cpu.xsave.0[at::MXCSR..at::MXCSR + 4].copy_from_slice(&v.to_le_bytes());
    Ok(())
}

fn stmxcsr(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let lin = cpu.mem_lin(i, 4, Acc::Write)?;
    cpu.store(lin, x87::mxcsr(cpu))
}

/// Vector registers that the mode can name.
#[must_use]
pub fn vectors(cpu: &Cpu) -> usize {
    if cpu.is64() { 16 } else { 8 }
}

fn vzeroupper(cpu: &mut Cpu, _: &Instruction) -> R<()> {
    let n = vectors(cpu);
    cpu.xsave.0[XSAVE_YMM_HI..XSAVE_YMM_HI + 16 * n].fill(0);
    Ok(())
}

fn vzeroall(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let n = vectors(cpu);
    cpu.xsave.0[at::XMM..at::XMM + 16 * n].fill(0);
    vzeroupper(cpu, i)
}

/// RDRAND and RDSEED: the host kernel's random numbers, which never run out (Intel SDM vol. 2B: CF set, the others clear).
fn random(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    debug_assert_eq!(i.op0_kind(), OpKind::Register);
    let v = super::code::random_u64();
    let keep = cpu.fl & !fl::ALL;
    cpu.fl = if v.is_some() { keep | fl::CF } else { keep };
    cpu.set_reg(i.op0_register(), v.unwrap_or(0));
    Ok(())
}
