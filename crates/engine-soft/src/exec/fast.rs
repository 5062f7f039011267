//! Handlers of the hot instruction forms of 64-bit code. Each is generic over operand size and operation; the compiler makes
//! one function a form. [`super::select`] picks the handler and fills the operands.

use crate::block::{Cursor, Op, abort, next, next_unless_left};
use crate::cpu::{Cpu, slot};
use crate::hostops::{Alu, Imul, cond, fl, rotated_by_immediate};

#[inline(always)]
pub(super) fn rd<T: Alu>(cpu: &Cpu, r: u8) -> T {
    T::of_u64(cpu.regs[r as usize])
}

#[inline(always)]
pub(super) fn wr<T: Alu>(cpu: &mut Cpu, r: u8, v: T) {
    let v = v.to_u64();
    let reg = &mut cpu.regs[r as usize];
    *reg = match T::SIZE {
        1 => *reg & !0xff | v,
        2 => *reg & !0xffff | v,
        _ => v,
    };
}

/// Linear address of the memory operand; `FULL`: with index and segment base.
#[inline(always)]
pub(crate) fn ea<const FULL: bool>(cpu: &Cpu, op: &Op) -> u64 {
    let a = cpu.regs[op.base as usize].wrapping_add(op.disp as u64);
    if FULL {
        a.wrapping_add(cpu.regs[op.index as usize] << (op.scale & 3))
            .wrapping_add(cpu.regs[op.seg_slot as usize])
    } else {
        a
    }
}

/// Unwraps a memory access or leaves the handler.
macro_rules! or_abort {
    ($cpu:ident, $at:ident, $e:expr) => {
        match $e {
            Ok(v) => v,
            Err(_) => return abort($cpu, $at),
        }
    };
}

/// Loads through the soft TLB; a miss goes on in the same handler with `SLOW` set, so that the hot one needs no frame.
macro_rules! load {
    ($cpu:ident, $at:ident, $t:ty, $lin:expr, $slow:ident, $again:expr) => {
        if $slow {
            or_abort!($cpu, $at, $cpu.load_slow::<$t>($lin))
        } else {
            match $cpu.load_hit::<$t>($lin) {
                Some(v) => v,
                None => return $again($cpu, $at),
            }
        }
    };
}

/// Stores, likewise.
macro_rules! store {
    ($cpu:ident, $at:ident, $lin:expr, $v:expr, $slow:ident, $again:expr) => {
        if $slow {
            or_abort!($cpu, $at, $cpu.store_slow($lin, $v))
        } else if !$cpu.store_hit($lin, $v) {
            return $again($cpu, $at);
        }
    };
}

/// A two-operand arithmetic operation.
pub(super) trait Bin {
    const WRITES: bool = true;
    fn f<T: Alu>(a: T, b: T, f: u16) -> (T, u16);
}
macro_rules! bin_ops {
    ($($name:ident $f:ident $carry:tt;)*) => { $(
        pub(super) struct $name;
        impl Bin for $name {
            #[inline(always)]
            fn f<T: Alu>(a: T, b: T, f: u16) -> (T, u16) {
                bin_ops!(@call $f $carry a b f)
            }
        }
    )* };
    (@call $f:ident yes $a:ident $b:ident $fl:ident) => { T::$f($a, $b, $fl) };
    (@call $f:ident no $a:ident $b:ident $fl:ident) => {{ let _ = $fl; T::$f($a, $b) }};
}
bin_ops! { Add add no; Or or no; Adc adc yes; Sbb sbb yes; And and no; Sub sub no; Xor xor no; }
pub(super) struct Cmp;
impl Bin for Cmp {
    const WRITES: bool = false;
    #[inline(always)]
    fn f<T: Alu>(a: T, b: T, _: u16) -> (T, u16) {
        T::sub(a, b)
    }
}
pub(super) struct Test;
impl Bin for Test {
    const WRITES: bool = false;
    #[inline(always)]
    fn f<T: Alu>(a: T, b: T, _: u16) -> (T, u16) {
        T::and(a, b)
    }
}

pub(super) fn bin_rr<O: Bin, T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    let op = at.op();
    let (r, f) = O::f(rd::<T>(cpu, op.a), rd::<T>(cpu, op.b), cpu.fl);
    cpu.fl = f;
    if O::WRITES {
        wr(cpu, op.a, r);
    }
    next(cpu, at);
}

pub(super) fn bin_ri<O: Bin, T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    let op = at.op();
    let (r, f) = O::f(rd::<T>(cpu, op.a), T::of_u64(op.imm), cpu.fl);
    cpu.fl = f;
    if O::WRITES {
        wr(cpu, op.a, r);
    }
    next(cpu, at);
}

pub(super) fn bin_rm<O: Bin, T: Alu, const FULL: bool, const SLOW: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let op = at.op();
    let b = load!(cpu, at, T, ea::<FULL>(cpu, op), SLOW, bin_rm::<O, T, FULL, true>);
    let (r, f) = O::f(rd::<T>(cpu, op.a), b, cpu.fl);
    cpu.fl = f;
    if O::WRITES {
        wr(cpu, op.a, r);
    }
    next(cpu, at);
}

/// Memory destination, register (`IMM`: immediate) source.
pub(super) fn bin_m<O: Bin, T: Alu, const FULL: bool, const IMM: bool, const SLOW: bool>(
    cpu: &mut Cpu,
    at: Cursor<'_>,
) {
    let op = at.op();
    let lin = ea::<FULL>(cpu, op);
    let b = if IMM { T::of_u64(op.imm) } else { rd::<T>(cpu, op.b) };
    if !O::WRITES {
        let a = load!(cpu, at, T, lin, SLOW, bin_m::<O, T, FULL, IMM, true>);
        cpu.fl = O::f(a, b, cpu.fl).1;
        return next(cpu, at);
    }
    let f = cpu.fl;
    let mut out = f;
    let change = |a: T| {
        let (r, g) = O::f(a, b, f);
        out = g;
        r
    };
    if SLOW {
        or_abort!(cpu, at, cpu.modify_slow(lin, change));
        cpu.fl = out;
        return next_unless_left(cpu, at);
    }
    if !cpu.modify_hit(lin, change) {
        return bin_m::<O, T, FULL, IMM, true>(cpu, at);
    }
    cpu.fl = out;
    next(cpu, at);
}

pub(super) fn mov_rr<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    let v = rd::<T>(cpu, at.op().b);
    wr(cpu, at.op().a, v);
    next(cpu, at);
}

pub(super) fn mov_ri<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    wr(cpu, at.op().a, T::of_u64(at.op().imm));
    next(cpu, at);
}

pub(super) fn mov_rm<T: Alu, const FULL: bool, const SLOW: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let v = load!(cpu, at, T, ea::<FULL>(cpu, at.op()), SLOW, mov_rm::<T, FULL, true>);
    wr(cpu, at.op().a, v);
    next(cpu, at);
}

pub(super) fn mov_m<T: Alu, const FULL: bool, const IMM: bool, const SLOW: bool>(
    cpu: &mut Cpu,
    at: Cursor<'_>,
) {
    let op = at.op();
    let v = if IMM { T::of_u64(op.imm) } else { rd::<T>(cpu, op.b) };
    store!(cpu, at, ea::<FULL>(cpu, op), v, SLOW, mov_m::<T, FULL, IMM, true>);
    if SLOW { next_unless_left(cpu, at) } else { next(cpu, at) }
}

/// Widens `v` of type `S` for a destination register.
#[inline(always)]
pub(super) fn widen<S: Alu, const SIGNED: bool>(v: S) -> u64 {
    let v = v.to_u64();
    if SIGNED {
        let s = 64 - S::BITS;
        ((v << s) as i64 >> s) as u64
    } else {
        v
    }
}

pub(super) fn movx_rr<D: Alu, S: Alu, const SIGNED: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let v = widen::<S, SIGNED>(rd(cpu, at.op().b));
    wr(cpu, at.op().a, D::of_u64(v));
    next(cpu, at);
}

pub(super) fn movx_rm<D: Alu, S: Alu, const SIGNED: bool, const FULL: bool, const SLOW: bool>(
    cpu: &mut Cpu,
    at: Cursor<'_>,
) {
    let v = load!(cpu, at, S, ea::<FULL>(cpu, at.op()), SLOW, movx_rm::<D, S, SIGNED, FULL, true>);
    wr(cpu, at.op().a, D::of_u64(widen::<S, SIGNED>(v)));
    next(cpu, at);
}

pub(super) fn lea<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    // The segment base does not take part in LEA: `select` leaves its slot zero.
    let v = T::of_u64(ea::<true>(cpu, at.op()));
    wr(cpu, at.op().a, v);
    next(cpu, at);
}

pub(super) fn inc_dec<T: Alu, const DEC: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let a = rd::<T>(cpu, at.op().a);
    let (r, f) = if DEC { T::dec(a, cpu.fl) } else { T::inc(a, cpu.fl) };
    cpu.fl = f;
    wr(cpu, at.op().a, r);
    next(cpu, at);
}

pub(super) fn inc_dec_m<T: Alu, const DEC: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let lin = ea::<true>(cpu, at.op());
    let f = cpu.fl;
    let mut out = f;
    or_abort!(
        cpu,
        at,
        cpu.modify_slow::<T>(lin, |a| {
            let (r, g) = if DEC { T::dec(a, f) } else { T::inc(a, f) };
            out = g;
            r
        })
    );
    cpu.fl = out;
    next_unless_left(cpu, at);
}

pub(super) fn neg<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    let (r, f) = T::neg(rd(cpu, at.op().a));
    cpu.fl = f;
    wr(cpu, at.op().a, r);
    next(cpu, at);
}

pub(super) fn not<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    let v = T::of_u64(!cpu.regs[at.op().a as usize]);
    wr(cpu, at.op().a, v);
    next(cpu, at);
}

/// Shift by a non-zero immediate (below the operand's size) or by CL (`b` = RCX).
pub(super) fn shift<T: Alu, const OP: u8, const BY_CL: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let cl = if BY_CL { cpu.regs[1] as u8 } else { at.op().imm as u8 };
    let (r, f) = T::shift::<OP>(rd(cpu, at.op().a), cl, cpu.fl);
    // ROL and ROR.
    let rotates = !BY_CL && OP < 2;
    cpu.fl = if rotates { rotated_by_immediate(cpu.fl, f, cl, 8 * size_of::<T>() as u32) } else { f };
    wr(cpu, at.op().a, r);
    next(cpu, at);
}

#[inline(always)]
pub(super) fn imul<T: Imul>(cpu: &mut Cpu, at: Cursor<'_>, a: T, b: T) {
    let (r, f) = T::imul(a, b, cpu.fl);
    cpu.fl = f;
    wr(cpu, at.op().a, r);
    next(cpu, at);
}

pub(super) fn imul_rr<T: Imul>(cpu: &mut Cpu, at: Cursor<'_>) {
    let (a, b) = (rd::<T>(cpu, at.op().a), rd::<T>(cpu, at.op().b));
    imul(cpu, at, a, b);
}

pub(super) fn imul_rri<T: Imul>(cpu: &mut Cpu, at: Cursor<'_>) {
    let a = rd::<T>(cpu, at.op().b);
    imul(cpu, at, a, T::of_u64(at.op().imm));
}

pub(super) fn imul_rm<T: Imul>(cpu: &mut Cpu, at: Cursor<'_>) {
    let b = or_abort!(cpu, at, cpu.load::<T>(ea::<true>(cpu, at.op())));
    let a = rd::<T>(cpu, at.op().a);
    imul(cpu, at, a, b);
}

pub(super) fn mul_r<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    let b = rd::<T>(cpu, at.op().a).to_u64();
    let (lo, hi, f) = crate::hostops::multiply(T::SIZE as u32, false, cpu.regs[0], b, cpu.fl);
    cpu.fl = f;
    wr(cpu, 0, T::of_u64(lo));
    wr(cpu, 2, T::of_u64(hi));
    next(cpu, at);
}

pub(super) fn div_r<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    let d = u128::from(rd::<T>(cpu, at.op().a).to_u64());
    let (lo, hi) = (rd::<T>(cpu, 0).to_u64(), rd::<T>(cpu, 2).to_u64());
    if u128::from(hi) >= d {
        cpu.raise(ringer_arch::Exception::DE);
        return abort(cpu, at);
    }
    let (q, r) = if hi == 0 {
        (lo / d as u64, lo % d as u64)
    } else {
        let n = u128::from(hi) << T::BITS | u128::from(lo);
        ((n / d) as u64, (n % d) as u64)
    };
    wr(cpu, 0, T::of_u64(q));
    wr(cpu, 2, T::of_u64(r));
    next(cpu, at);
}

pub(super) fn bt_ri(cpu: &mut Cpu, at: Cursor<'_>) {
    let bit = cpu.regs[at.op().a as usize] >> (at.op().imm & 63) & 1;
    cpu.fl = cpu.fl & !fl::CF | if bit != 0 { fl::CF } else { 0 };
    next(cpu, at);
}

pub(super) fn bt_rr<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    let bit = cpu.regs[at.op().a as usize] >> (cpu.regs[at.op().b as usize] & u64::from(T::BITS - 1)) & 1;
    cpu.fl = cpu.fl & !fl::CF | if bit != 0 { fl::CF } else { 0 };
    next(cpu, at);
}

pub(super) fn xchg_rr<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    let (a, b) = (rd::<T>(cpu, at.op().a), rd::<T>(cpu, at.op().b));
    wr(cpu, at.op().a, b);
    wr(cpu, at.op().b, a);
    next(cpu, at);
}

pub(super) fn cdqe(cpu: &mut Cpu, at: Cursor<'_>) {
    cpu.regs[0] = cpu.regs[0] as i32 as i64 as u64;
    next(cpu, at);
}

pub(super) fn cqo(cpu: &mut Cpu, at: Cursor<'_>) {
    cpu.regs[2] = (cpu.regs[0] as i64 >> 63) as u64;
    next(cpu, at);
}

pub(super) fn cdq(cpu: &mut Cpu, at: Cursor<'_>) {
    cpu.regs[2] = u64::from((cpu.regs[0] as i32 >> 31) as u32);
    next(cpu, at);
}

pub(super) fn nop(cpu: &mut Cpu, at: Cursor<'_>) {
    next(cpu, at);
}

/// MFENCE and SFENCE. The guest's accesses are the host's, so the host's fence orders them: its store buffer, which lets loads pass
/// earlier stores, and its write-combining buffers, where non-temporal stores wait, which run as themselves. Loads are in order
/// anyway (Intel SDM vol. 3A §9.2.2), so that LFENCE has nothing to do.
pub(super) fn fence(cpu: &mut Cpu, at: Cursor<'_>) {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    next(cpu, at);
}

pub(super) fn setcc<const CC: u8>(cpu: &mut Cpu, at: Cursor<'_>) {
    let v = u8::from(cond::<CC>(cpu.fl));
    wr(cpu, at.op().a, v);
    next(cpu, at);
}

pub(super) fn cmov_rr<T: Alu, const CC: u8>(cpu: &mut Cpu, at: Cursor<'_>) {
    let v = rd::<T>(cpu, if cond::<CC>(cpu.fl) { at.op().b } else { at.op().a });
    wr(cpu, at.op().a, v);
    next(cpu, at);
}

pub(super) fn cmov_rm<T: Alu, const CC: u8>(cpu: &mut Cpu, at: Cursor<'_>) {
    let v = or_abort!(cpu, at, cpu.load::<T>(ea::<true>(cpu, at.op())));
    let v = if cond::<CC>(cpu.fl) { v } else { rd(cpu, at.op().a) };
    wr(cpu, at.op().a, v);
    next(cpu, at);
}

pub(super) fn push<const IMM: bool, const SLOW: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let v = if IMM { at.op().imm } else { cpu.regs[at.op().a as usize] };
    let sp = cpu.regs[4].wrapping_sub(8);
    store!(cpu, at, sp, v, SLOW, push::<IMM, true>);
    cpu.regs[4] = sp;
    if SLOW { next_unless_left(cpu, at) } else { next(cpu, at) }
}

pub(super) fn pop_r<const SLOW: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let v = load!(cpu, at, u64, cpu.regs[4], SLOW, pop_r::<true>);
    cpu.regs[4] = cpu.regs[4].wrapping_add(8);
    cpu.regs[at.op().a as usize] = v;
    next(cpu, at);
}

pub(super) fn leave_frame(cpu: &mut Cpu, at: Cursor<'_>) {
    let bp = cpu.regs[5];
    let v = or_abort!(cpu, at, cpu.load::<u64>(bp));
    cpu.regs[4] = bp.wrapping_add(8);
    cpu.regs[5] = v;
    next(cpu, at);
}

#[inline(always)]
pub(super) fn go(cpu: &mut Cpu, offset: u64) {
    cpu.rip = cpu.regs[slot::BLOCK as usize].wrapping_add(offset);
}

pub(super) fn jmp(cpu: &mut Cpu, at: Cursor<'_>) {
    go(cpu, at.op().disp as u64);
}

pub(super) fn jcc<const CC: u8>(cpu: &mut Cpu, at: Cursor<'_>) {
    let op = at.op();
    go(cpu, if cond::<CC>(cpu.fl) { op.disp as u64 } else { op.imm });
}

/// The conditional branch behind the op at `at`, with flags `f` fresh from it.
#[inline(always)]
pub(super) fn branch_behind<const CC: u8>(cpu: &mut Cpu, at: Cursor<'_>, f: u16) {
    cpu.fl = f;
    let jcc = at.step().op();
    go(cpu, if cond::<CC>(f) { jcc.disp as u64 } else { jcc.imm });
}

pub(super) fn bin_rr_jcc<O: Bin, T: Alu, const CC: u8>(cpu: &mut Cpu, at: Cursor<'_>) {
    let op = at.op();
    let (_, f) = O::f(rd::<T>(cpu, op.a), rd::<T>(cpu, op.b), cpu.fl);
    branch_behind::<CC>(cpu, at, f);
}

pub(super) fn bin_ri_jcc<O: Bin, T: Alu, const CC: u8>(cpu: &mut Cpu, at: Cursor<'_>) {
    let op = at.op();
    let (_, f) = O::f(rd::<T>(cpu, op.a), T::of_u64(op.imm), cpu.fl);
    branch_behind::<CC>(cpu, at, f);
}

/// A miss of the soft TLB goes on in the plain handler, and from there to the branch.
pub(super) fn bin_mi_jcc<O: Bin, T: Alu, const CC: u8>(cpu: &mut Cpu, at: Cursor<'_>) {
    let op = at.op();
    let Some(a) = cpu.load_hit::<T>(ea::<true>(cpu, op)) else {
        return bin_m::<O, T, true, true, true>(cpu, at);
    };
    let (_, f) = O::f(a, T::of_u64(op.imm), cpu.fl);
    branch_behind::<CC>(cpu, at, f);
}

pub(super) fn dec_jcc<T: Alu, const CC: u8>(cpu: &mut Cpu, at: Cursor<'_>) {
    let a = at.op().a;
    let (r, f) = T::dec(rd(cpu, a), cpu.fl);
    wr(cpu, a, r);
    branch_behind::<CC>(cpu, at, f);
}

pub(super) fn call<const SLOW: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let back = cpu.regs[slot::BLOCK as usize].wrapping_add(at.op().imm);
    let sp = cpu.regs[4].wrapping_sub(8);
    store!(cpu, at, sp, back, SLOW, call::<true>);
    cpu.regs[4] = sp;
    go(cpu, at.op().disp as u64);
}

/// Goes to an absolute target; a non-canonical one is #GP(0) on the branch itself.
#[inline(always)]
pub(super) fn go_absolute(cpu: &mut Cpu, at: Cursor<'_>, target: u64) -> bool {
    if !cpu.canonical(target) {
        cpu.gp(0);
        abort(cpu, at);
        // A stack operand does not make this fault #SS: the target, not the access, is non-canonical.
        cpu.exc = Some(ringer_arch::Exception::GP0);
        return false;
    }
    cpu.rip = target;
    true
}

pub(super) fn ret<const SLOW: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let target = load!(cpu, at, u64, cpu.regs[4], SLOW, ret::<true>);
    if go_absolute(cpu, at, target) {
        cpu.regs[4] = cpu.regs[4].wrapping_add(8 + at.op().imm);
    }
}

pub(super) fn jmp_r(cpu: &mut Cpu, at: Cursor<'_>) {
    let target = cpu.regs[at.op().a as usize];
    go_absolute(cpu, at, target);
}

pub(super) fn jmp_m(cpu: &mut Cpu, at: Cursor<'_>) {
    let target = or_abort!(cpu, at, cpu.load::<u64>(ea::<true>(cpu, at.op())));
    go_absolute(cpu, at, target);
}

#[inline(always)]
pub(super) fn call_absolute(cpu: &mut Cpu, at: Cursor<'_>, target: u64) {
    let back = cpu.regs[slot::BLOCK as usize].wrapping_add(at.op().imm);
    let sp = cpu.regs[4].wrapping_sub(8);
    if go_absolute(cpu, at, target) {
        if cpu.store::<u64>(sp, back).is_err() {
            at_call_push(cpu, at);
        } else {
            cpu.regs[4] = sp;
        }
    } else if cpu.exc == Some(ringer_arch::Exception::GP0) && !cpu.amd() {
        // Intel's processors have stored the return address when they find that the target is no address.
        let stored = cpu.store::<u64>(sp, back);
        if stored.is_err() && cpu.exc == Some(ringer_arch::Exception::GP0) {
            cpu.exc = Some(ringer_arch::Exception::SS0);
        }
    }
}

/// The push of an indirect call faulted: through the stack segment, whatever segment the target came from.
#[cold]
pub(super) fn at_call_push(cpu: &mut Cpu, at: Cursor<'_>) {
    abort(cpu, at);
    if cpu.exc == Some(ringer_arch::Exception::GP0) {
        cpu.exc = Some(ringer_arch::Exception::SS0);
    }
}

pub(super) fn call_r(cpu: &mut Cpu, at: Cursor<'_>) {
    let target = cpu.regs[at.op().a as usize];
    call_absolute(cpu, at, target);
}

pub(super) fn call_m(cpu: &mut Cpu, at: Cursor<'_>) {
    let target = or_abort!(cpu, at, cpu.load::<u64>(ea::<true>(cpu, at.op())));
    call_absolute(cpu, at, target);
}
