//! Handlers in 64-bit code: of plain vector moves, and of stubs, whose memory is in the TLB. All else, faults among it, goes
//! the common way: [`run_host`].

use super::code::copy16;
use super::x87::at;
use crate::block::{Cursor, Handler, Op, next};
use crate::cpu::Cpu;
use crate::decode::run_host;
use crate::exec::fast::ea;
use crate::exec::select::memory;
use iced_x86::{Code, Instruction, OpKind, Register};
use ringer_arch::regs::{cr0, cr4, xcr0};
use ringer_arch::state::XSAVE_YMM_HI;

/// The handler of an instruction, if it is one of these, with the op's operands filled. `next` is the offset of the next
/// instruction from the start of the block.
#[must_use]
pub fn select(op: &mut Op, i: &Instruction, next: u64) -> Option<Handler> {
    let memory_at = (0..i.op_count()).find(|o| i.op_kind(*o) == OpKind::Memory);
    match memory_at {
        Some(n) => {
            if !memory(op, i, next) {
                return None;
            }
            let hot = if n == 0 {
                op.a = number(i.op1_register());
                to_memory(i.code())
            } else {
                op.a = number(i.op0_register());
                from_memory(i.code())
            };
            Some(hot.unwrap_or(stub::<true>))
        }
        None => {
            op.a = number(i.op0_register());
            op.b = number(i.op1_register());
            Some(registers(i).unwrap_or(stub::<false>))
        }
    }
}

fn number(r: Register) -> u8 {
    r.number() as u8 & 15
}

fn from_memory(c: Code) -> Option<Handler> {
    use Code as C;
    Some(match c {
        C::Movups_xmm_xmmm128 | C::Movupd_xmm_xmmm128 | C::Movdqu_xmm_xmmm128 => load::<16, false, false>,
        C::Movaps_xmm_xmmm128 | C::Movapd_xmm_xmmm128 | C::Movdqa_xmm_xmmm128 => load::<16, true, false>,
        C::VEX_Vmovups_xmm_xmmm128 | C::VEX_Vmovupd_xmm_xmmm128 | C::VEX_Vmovdqu_xmm_xmmm128 => {
            load::<16, false, true>
        }
        C::VEX_Vmovaps_xmm_xmmm128 | C::VEX_Vmovapd_xmm_xmmm128 | C::VEX_Vmovdqa_xmm_xmmm128 => {
            load::<16, true, true>
        }
        C::VEX_Vmovups_ymm_ymmm256 | C::VEX_Vmovupd_ymm_ymmm256 | C::VEX_Vmovdqu_ymm_ymmm256 => {
            load::<32, false, true>
        }
        C::VEX_Vmovaps_ymm_ymmm256 | C::VEX_Vmovapd_ymm_ymmm256 | C::VEX_Vmovdqa_ymm_ymmm256 => {
            load::<32, true, true>
        }
        C::Movq_xmm_xmmm64 | C::Movsd_xmm_xmmm64 | C::Movq_xmm_rm64 => load_scalar::<8, false>,
        C::Movss_xmm_xmmm32 | C::Movd_xmm_rm32 => load_scalar::<4, false>,
        C::VEX_Vmovq_xmm_xmmm64 | C::VEX_Vmovsd_xmm_m64 | C::VEX_Vmovq_xmm_rm64 => load_scalar::<8, true>,
        C::VEX_Vmovss_xmm_m32 | C::VEX_Vmovd_xmm_rm32 => load_scalar::<4, true>,
        _ => return None,
    })
}

fn to_memory(c: Code) -> Option<Handler> {
    use Code as C;
    Some(match c {
        C::Movups_xmmm128_xmm | C::Movupd_xmmm128_xmm | C::Movdqu_xmmm128_xmm => store::<16, false, false>,
        C::Movaps_xmmm128_xmm | C::Movapd_xmmm128_xmm | C::Movdqa_xmmm128_xmm => store::<16, true, false>,
        C::VEX_Vmovups_xmmm128_xmm | C::VEX_Vmovupd_xmmm128_xmm | C::VEX_Vmovdqu_xmmm128_xmm => {
            store::<16, false, true>
        }
        C::VEX_Vmovaps_xmmm128_xmm | C::VEX_Vmovapd_xmmm128_xmm | C::VEX_Vmovdqa_xmmm128_xmm => {
            store::<16, true, true>
        }
        C::VEX_Vmovups_ymmm256_ymm | C::VEX_Vmovupd_ymmm256_ymm | C::VEX_Vmovdqu_ymmm256_ymm => {
            store::<32, false, true>
        }
        C::VEX_Vmovaps_ymmm256_ymm | C::VEX_Vmovapd_ymmm256_ymm | C::VEX_Vmovdqa_ymmm256_ymm => {
            store::<32, true, true>
        }
        C::Movq_xmmm64_xmm | C::Movsd_xmmm64_xmm | C::Movq_rm64_xmm => store_scalar::<8, false>,
        C::Movss_xmmm32_xmm | C::Movd_rm32_xmm => store_scalar::<4, false>,
        C::VEX_Vmovq_xmmm64_xmm | C::VEX_Vmovsd_m64_xmm | C::VEX_Vmovq_rm64_xmm => store_scalar::<8, true>,
        C::VEX_Vmovss_m32_xmm | C::VEX_Vmovd_rm32_xmm => store_scalar::<4, true>,
        _ => return None,
    })
}

fn registers(i: &Instruction) -> Option<Handler> {
    use Code as C;
    Some(match i.code() {
        C::Movups_xmm_xmmm128 | C::Movaps_xmm_xmmm128 | C::Movapd_xmm_xmmm128 | C::Movdqa_xmm_xmmm128 => copy,
        C::Pxor_xmm_xmmm128 | C::Xorps_xmm_xmmm128 if i.op0_register() == i.op1_register() => zero::<false>,
        C::VEX_Vpxor_xmm_xmm_xmmm128 | C::VEX_Vxorps_xmm_xmm_xmmm128
            if i.op1_register() == i.op2_register() =>
        {
            zero::<true>
        }
        _ => return None,
    })
}

/// Whether SSE, or AVX, instructions may execute now; in 64-bit mode.
#[inline(always)]
fn open<const VEX: bool>(cpu: &Cpu) -> bool {
    if VEX {
        const BOTH: u64 = xcr0::SSE | xcr0::AVX;
        cpu.cr0 & cr0::TS == 0 && cpu.cr4 & cr4::OSXSAVE != 0 && cpu.xcr0 & BOTH == BOTH
    } else {
        cpu.cr0 & (cr0::EM | cr0::TS) == 0 && cpu.cr4 & cr4::OSFXSR != 0
    }
}

fn low(n: u8) -> usize {
    at::XMM + 16 * usize::from(n & 15)
}

fn high(n: u8) -> usize {
    XSAVE_YMM_HI + 16 * usize::from(n & 15)
}

/// The host address of the memory operand if all is plain.
#[inline(always)]
fn operand<const N: u64, const ALIGNED: bool, const VEX: bool>(
    cpu: &Cpu,
    op: &Op,
    write: bool,
) -> Option<*mut u8> {
    let lin = ea::<true>(cpu, op);
    if !open::<VEX>(cpu) || ALIGNED && lin & (N - 1) != 0 {
        return None;
    }
    cpu.fast_ptr(lin, N, write).map(<*const u8>::cast_mut)
}

fn stub<const MEMORY: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let op = at.op();
    let lin = if MEMORY { ea::<true>(cpu, op) } else { 0 };
    if let Some(d) = &op.insn
        && super::run_quickly::<MEMORY>(cpu, &d.host, lin)
    {
        return next(cpu, at);
    }
    run_host(cpu, at);
}

fn load<const N: u64, const ALIGNED: bool, const VEX: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let op = at.op();
    let Some(p) = operand::<N, ALIGNED, VEX>(cpu, op, false) else { return run_host(cpu, at) };
    let x = cpu.xsave.0.as_mut_ptr();
    // SAFETY: `operand` found N bytes; `low` and `high` are offsets of 16 bytes in the area.
    unsafe {
        copy16(x.add(low(op.a)), p);
        if N == 32 {
            copy16(x.add(high(op.a)), p.add(16));
        }
    }
    if VEX && N == 16 {
        cpu.xsave.0[high(op.a)..high(op.a) + 16].fill(0);
    }
    next(cpu, at);
}

fn store<const N: u64, const ALIGNED: bool, const VEX: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let op = at.op();
    let Some(p) = operand::<N, ALIGNED, VEX>(cpu, op, true) else { return run_host(cpu, at) };
    let x = cpu.xsave.0.as_ptr();
    // SAFETY: as in `load`.
    unsafe {
        copy16(p, x.add(low(op.a)));
        if N == 32 {
            copy16(p.add(16), x.add(high(op.a)));
        }
    }
    next(cpu, at);
}

fn load_scalar<const N: u64, const VEX: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let op = at.op();
    let lin = ea::<true>(cpu, op);
    let v = if N == 8 { cpu.load_hit::<u64>(lin) } else { cpu.load_hit::<u32>(lin).map(u64::from) };
    let Some(v) = v.filter(|_| open::<VEX>(cpu)) else { return run_host(cpu, at) };
    set::<VEX>(cpu, op.a, v);
    next(cpu, at);
}

/// Sets the low quadword, clears the rest: with VEX of all the register.
#[inline(always)]
fn set<const VEX: bool>(cpu: &mut Cpu, n: u8, v: u64) {
    cpu.xsave.0[low(n)..low(n) + 16].copy_from_slice(&u128::from(v).to_le_bytes());
    if VEX {
        cpu.xsave.0[high(n)..high(n) + 16].fill(0);
    }
}

fn store_scalar<const N: u64, const VEX: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let op = at.op();
    if !open::<VEX>(cpu) {
        return run_host(cpu, at);
    }
    let mut b = [0; 8];
    b.copy_from_slice(&cpu.xsave.0[low(op.a)..low(op.a) + 8]);
    let v = u64::from_le_bytes(b);
    let lin = ea::<true>(cpu, op);
    let done = if N == 8 { cpu.store_hit(lin, v) } else { cpu.store_hit(lin, v as u32) };
    if !done {
        return run_host(cpu, at);
    }
    next(cpu, at);
}

fn copy(cpu: &mut Cpu, at: Cursor<'_>) {
    let op = at.op();
    if !open::<false>(cpu) {
        return run_host(cpu, at);
    }
    cpu.xsave.0.copy_within(low(op.b)..low(op.b) + 16, low(op.a));
    next(cpu, at);
}

fn zero<const VEX: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let op = at.op();
    if !open::<VEX>(cpu) {
        return run_host(cpu, at);
    }
    set::<VEX>(cpu, op.a, 0);
    next(cpu, at);
}
