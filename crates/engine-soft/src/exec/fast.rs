//! Handlers of the hot instruction forms of 64-bit code. Each is generic over operand size and operation; the compiler makes
//! one function a form. [`select`] picks the handler and fills the operands; `None` means [`super::generic`].

use crate::block::{Cursor, Handler, Op, abort, next, next_unless_left};
use crate::cpu::{Cpu, slot};
use crate::hostops::{Alu, cond, fl};
use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

#[inline(always)]
fn rd<T: Alu>(cpu: &Cpu, r: u8) -> T {
    T::of_u64(cpu.regs[r as usize])
}

#[inline(always)]
fn wr<T: Alu>(cpu: &mut Cpu, r: u8, v: T) {
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
trait Bin {
    const WRITES: bool = true;
    fn f<T: Alu>(a: T, b: T, f: u16) -> (T, u16);
}
macro_rules! bin_ops {
    ($($name:ident $f:ident $carry:tt;)*) => { $(
        struct $name;
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
struct Cmp;
impl Bin for Cmp {
    const WRITES: bool = false;
    #[inline(always)]
    fn f<T: Alu>(a: T, b: T, _: u16) -> (T, u16) {
        T::sub(a, b)
    }
}
struct Test;
impl Bin for Test {
    const WRITES: bool = false;
    #[inline(always)]
    fn f<T: Alu>(a: T, b: T, _: u16) -> (T, u16) {
        T::and(a, b)
    }
}

fn bin_rr<O: Bin, T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    let op = at.op();
    let (r, f) = O::f(rd::<T>(cpu, op.a), rd::<T>(cpu, op.b), cpu.fl);
    cpu.fl = f;
    if O::WRITES {
        wr(cpu, op.a, r);
    }
    next(cpu, at);
}

fn bin_ri<O: Bin, T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    let op = at.op();
    let (r, f) = O::f(rd::<T>(cpu, op.a), T::of_u64(op.imm), cpu.fl);
    cpu.fl = f;
    if O::WRITES {
        wr(cpu, op.a, r);
    }
    next(cpu, at);
}

fn bin_rm<O: Bin, T: Alu, const FULL: bool, const SLOW: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
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
fn bin_m<O: Bin, T: Alu, const FULL: bool, const IMM: bool, const SLOW: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
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

fn mov_rr<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    let v = rd::<T>(cpu, at.op().b);
    wr(cpu, at.op().a, v);
    next(cpu, at);
}

fn mov_ri<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    wr(cpu, at.op().a, T::of_u64(at.op().imm));
    next(cpu, at);
}

fn mov_rm<T: Alu, const FULL: bool, const SLOW: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let v = load!(cpu, at, T, ea::<FULL>(cpu, at.op()), SLOW, mov_rm::<T, FULL, true>);
    wr(cpu, at.op().a, v);
    next(cpu, at);
}

fn mov_m<T: Alu, const FULL: bool, const IMM: bool, const SLOW: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let op = at.op();
    let v = if IMM { T::of_u64(op.imm) } else { rd::<T>(cpu, op.b) };
    store!(cpu, at, ea::<FULL>(cpu, op), v, SLOW, mov_m::<T, FULL, IMM, true>);
    if SLOW { next_unless_left(cpu, at) } else { next(cpu, at) }
}

/// Widens `v` of type `S` for a destination register.
#[inline(always)]
fn widen<S: Alu, const SIGNED: bool>(v: S) -> u64 {
    let v = v.to_u64();
    if SIGNED {
        let s = 64 - S::BITS;
        ((v << s) as i64 >> s) as u64
    } else {
        v
    }
}

fn movx_rr<D: Alu, S: Alu, const SIGNED: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let v = widen::<S, SIGNED>(rd(cpu, at.op().b));
    wr(cpu, at.op().a, D::of_u64(v));
    next(cpu, at);
}

fn movx_rm<D: Alu, S: Alu, const SIGNED: bool, const FULL: bool, const SLOW: bool>(
    cpu: &mut Cpu,
    at: Cursor<'_>,
) {
    let v = load!(cpu, at, S, ea::<FULL>(cpu, at.op()), SLOW, movx_rm::<D, S, SIGNED, FULL, true>);
    wr(cpu, at.op().a, D::of_u64(widen::<S, SIGNED>(v)));
    next(cpu, at);
}

fn lea<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    // The segment base does not take part in LEA: `select` leaves its slot zero.
    let v = T::of_u64(ea::<true>(cpu, at.op()));
    wr(cpu, at.op().a, v);
    next(cpu, at);
}

fn inc_dec<T: Alu, const DEC: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let a = rd::<T>(cpu, at.op().a);
    let (r, f) = if DEC { T::dec(a, cpu.fl) } else { T::inc(a, cpu.fl) };
    cpu.fl = f;
    wr(cpu, at.op().a, r);
    next(cpu, at);
}

fn inc_dec_m<T: Alu, const DEC: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
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

fn neg<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    let (r, f) = T::neg(rd(cpu, at.op().a));
    cpu.fl = f;
    wr(cpu, at.op().a, r);
    next(cpu, at);
}

fn not<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    let v = T::of_u64(!cpu.regs[at.op().a as usize]);
    wr(cpu, at.op().a, v);
    next(cpu, at);
}

/// Shift by a non-zero immediate (below the operand's size) or by CL (`b` = RCX).
fn shift<T: Alu, const OP: u8, const BY_CL: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let cl = if BY_CL { cpu.regs[1] as u8 } else { at.op().imm as u8 };
    let (r, f) = T::shift::<OP>(rd(cpu, at.op().a), cl, cpu.fl);
    cpu.fl = f;
    wr(cpu, at.op().a, r);
    next(cpu, at);
}

#[inline(always)]
fn imul<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>, a: T, b: T) {
    let (r, _, f) = crate::hostops::multiply(T::SIZE as u32, true, a.to_u64(), b.to_u64(), cpu.fl);
    cpu.fl = f;
    wr(cpu, at.op().a, T::of_u64(r));
    next(cpu, at);
}

fn imul_rr<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    let (a, b) = (rd::<T>(cpu, at.op().a), rd::<T>(cpu, at.op().b));
    imul(cpu, at, a, b);
}

fn imul_rri<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    let a = rd::<T>(cpu, at.op().b);
    imul(cpu, at, a, T::of_u64(at.op().imm));
}

fn imul_rm<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    let b = or_abort!(cpu, at, cpu.load::<T>(ea::<true>(cpu, at.op())));
    let a = rd::<T>(cpu, at.op().a);
    imul(cpu, at, a, b);
}

fn mul_r<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    let b = rd::<T>(cpu, at.op().a).to_u64();
    let (lo, hi, f) = crate::hostops::multiply(T::SIZE as u32, false, cpu.regs[0], b, cpu.fl);
    cpu.fl = f;
    wr(cpu, 0, T::of_u64(lo));
    wr(cpu, 2, T::of_u64(hi));
    next(cpu, at);
}

fn div_r<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
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

fn bt_ri<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    let bit = cpu.regs[at.op().a as usize] >> (at.op().imm & 63) & 1;
    cpu.fl = cpu.fl & !fl::CF | if bit != 0 { fl::CF } else { 0 };
    next(cpu, at);
}

fn bt_rr<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    let bit = cpu.regs[at.op().a as usize] >> (cpu.regs[at.op().b as usize] & u64::from(T::BITS - 1)) & 1;
    cpu.fl = cpu.fl & !fl::CF | if bit != 0 { fl::CF } else { 0 };
    next(cpu, at);
}

fn xchg_rr<T: Alu>(cpu: &mut Cpu, at: Cursor<'_>) {
    let (a, b) = (rd::<T>(cpu, at.op().a), rd::<T>(cpu, at.op().b));
    wr(cpu, at.op().a, b);
    wr(cpu, at.op().b, a);
    next(cpu, at);
}

fn cdqe(cpu: &mut Cpu, at: Cursor<'_>) {
    cpu.regs[0] = cpu.regs[0] as i32 as i64 as u64;
    next(cpu, at);
}

fn cqo(cpu: &mut Cpu, at: Cursor<'_>) {
    cpu.regs[2] = (cpu.regs[0] as i64 >> 63) as u64;
    next(cpu, at);
}

fn cdq(cpu: &mut Cpu, at: Cursor<'_>) {
    cpu.regs[2] = u64::from((cpu.regs[0] as i32 >> 31) as u32);
    next(cpu, at);
}

fn nop(cpu: &mut Cpu, at: Cursor<'_>) {
    next(cpu, at);
}

fn setcc<const CC: u8>(cpu: &mut Cpu, at: Cursor<'_>) {
    let v = u8::from(cond::<CC>(cpu.fl));
    wr(cpu, at.op().a, v);
    next(cpu, at);
}

fn cmov_rr<T: Alu, const CC: u8>(cpu: &mut Cpu, at: Cursor<'_>) {
    let v = rd::<T>(cpu, if cond::<CC>(cpu.fl) { at.op().b } else { at.op().a });
    wr(cpu, at.op().a, v);
    next(cpu, at);
}

fn cmov_rm<T: Alu, const CC: u8>(cpu: &mut Cpu, at: Cursor<'_>) {
    let v = or_abort!(cpu, at, cpu.load::<T>(ea::<true>(cpu, at.op())));
    let v = if cond::<CC>(cpu.fl) { v } else { rd(cpu, at.op().a) };
    wr(cpu, at.op().a, v);
    next(cpu, at);
}

fn push<const IMM: bool, const SLOW: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let v = if IMM { at.op().imm } else { cpu.regs[at.op().a as usize] };
    let sp = cpu.regs[4].wrapping_sub(8);
    store!(cpu, at, sp, v, SLOW, push::<IMM, true>);
    cpu.regs[4] = sp;
    if SLOW { next_unless_left(cpu, at) } else { next(cpu, at) }
}

fn pop_r<const SLOW: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let v = load!(cpu, at, u64, cpu.regs[4], SLOW, pop_r::<true>);
    cpu.regs[4] = cpu.regs[4].wrapping_add(8);
    cpu.regs[at.op().a as usize] = v;
    next(cpu, at);
}

fn leave_frame(cpu: &mut Cpu, at: Cursor<'_>) {
    let bp = cpu.regs[5];
    let v = or_abort!(cpu, at, cpu.load::<u64>(bp));
    cpu.regs[4] = bp.wrapping_add(8);
    cpu.regs[5] = v;
    next(cpu, at);
}

#[inline(always)]
fn go(cpu: &mut Cpu, offset: u64) {
    cpu.rip = cpu.regs[slot::BLOCK as usize].wrapping_add(offset);
}

fn jmp(cpu: &mut Cpu, at: Cursor<'_>) {
    go(cpu, at.op().disp as u64);
}

fn jcc<const CC: u8>(cpu: &mut Cpu, at: Cursor<'_>) {
    let op = at.op();
    go(cpu, if cond::<CC>(cpu.fl) { op.disp as u64 } else { op.imm });
}

fn call<const SLOW: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let back = cpu.regs[slot::BLOCK as usize].wrapping_add(at.op().imm);
    let sp = cpu.regs[4].wrapping_sub(8);
    store!(cpu, at, sp, back, SLOW, call::<true>);
    cpu.regs[4] = sp;
    go(cpu, at.op().disp as u64);
}

/// Goes to an absolute target; a non-canonical one is #GP(0) on the branch itself.
#[inline(always)]
fn go_absolute(cpu: &mut Cpu, at: Cursor<'_>, target: u64) -> bool {
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

fn ret<const SLOW: bool>(cpu: &mut Cpu, at: Cursor<'_>) {
    let target = load!(cpu, at, u64, cpu.regs[4], SLOW, ret::<true>);
    if go_absolute(cpu, at, target) {
        cpu.regs[4] = cpu.regs[4].wrapping_add(8 + at.op().imm);
    }
}

fn jmp_r(cpu: &mut Cpu, at: Cursor<'_>) {
    let target = cpu.regs[at.op().a as usize];
    go_absolute(cpu, at, target);
}

fn jmp_m(cpu: &mut Cpu, at: Cursor<'_>) {
    let target = or_abort!(cpu, at, cpu.load::<u64>(ea::<true>(cpu, at.op())));
    go_absolute(cpu, at, target);
}

#[inline(always)]
fn call_absolute(cpu: &mut Cpu, at: Cursor<'_>, target: u64) {
    let back = cpu.regs[slot::BLOCK as usize].wrapping_add(at.op().imm);
    let sp = cpu.regs[4].wrapping_sub(8);
    if go_absolute(cpu, at, target) {
        if cpu.store::<u64>(sp, back).is_err() {
            at_call_push(cpu, at);
        } else {
            cpu.regs[4] = sp;
        }
    }
}

/// The push of an indirect call faulted: through the stack segment, whatever segment the target came from.
#[cold]
fn at_call_push(cpu: &mut Cpu, at: Cursor<'_>) {
    abort(cpu, at);
    if cpu.exc == Some(ringer_arch::Exception::GP0) {
        cpu.exc = Some(ringer_arch::Exception::SS0);
    }
}

fn call_r(cpu: &mut Cpu, at: Cursor<'_>) {
    let target = cpu.regs[at.op().a as usize];
    call_absolute(cpu, at, target);
}

fn call_m(cpu: &mut Cpu, at: Cursor<'_>) {
    let target = or_abort!(cpu, at, cpu.load::<u64>(ea::<true>(cpu, at.op())));
    call_absolute(cpu, at, target);
}

/// One of two handlers by whether the memory operand has an index or segment base; the fast variant.
macro_rules! by_full {
    ($full:expr, $f:ident :: <$($g:ty),*> $(, $imm:literal)?) => {
        if $full {
            $f::<$($g,)* true $(, $imm)?, false> as Handler
        } else {
            $f::<$($g,)* false $(, $imm)?, false> as Handler
        }
    };
}

/// One handler by operand size in bytes.
macro_rules! by_size {
    ($size:expr, $f:ident $(, $g:tt)*) => {
        match $size {
            1 => $f::<u8 $(, $g)*> as Handler,
            2 => $f::<u16 $(, $g)*> as Handler,
            4 => $f::<u32 $(, $g)*> as Handler,
            _ => $f::<u64 $(, $g)*> as Handler,
        }
    };
}

/// One handler by condition code.
macro_rules! by_cc {
    ($cc:expr, $f:ident $(, $t:ty)*) => {
        match $cc {
            0 => $f::<$($t,)* 0> as Handler, 1 => $f::<$($t,)* 1>, 2 => $f::<$($t,)* 2>, 3 => $f::<$($t,)* 3>,
            4 => $f::<$($t,)* 4>, 5 => $f::<$($t,)* 5>, 6 => $f::<$($t,)* 6>, 7 => $f::<$($t,)* 7>,
            8 => $f::<$($t,)* 8>, 9 => $f::<$($t,)* 9>, 10 => $f::<$($t,)* 10>, 11 => $f::<$($t,)* 11>,
            12 => $f::<$($t,)* 12>, 13 => $f::<$($t,)* 13>, 14 => $f::<$($t,)* 14>, _ => $f::<$($t,)* 15>,
        }
    };
}

/// How the two operands of an arithmetic instruction stand.
#[derive(Clone, Copy)]
enum Form {
    RegReg,
    RegImm,
    RegMem,
    MemReg,
    MemImm,
}

fn form(i: &Instruction) -> Option<Form> {
    let imm = |n| i.op_kind(n) >= OpKind::Immediate8 && i.op_kind(n) <= OpKind::Immediate32to64;
    Some(match (i.op0_kind(), i.op1_kind()) {
        (OpKind::Register, OpKind::Register) => Form::RegReg,
        (OpKind::Register, OpKind::Memory) => Form::RegMem,
        (OpKind::Memory, OpKind::Register) => Form::MemReg,
        (OpKind::Register, _) if imm(1) => Form::RegImm,
        (OpKind::Memory, _) if imm(1) => Form::MemImm,
        _ => return None,
    })
}

/// A general register that its number alone identifies (not AH to BH).
fn plain(r: Register) -> bool {
    r.is_gpr() && !matches!(r, Register::AH | Register::CH | Register::DH | Register::BH)
}

fn number(r: Register) -> u8 {
    r.full_register().number() as u8
}

/// Fills the memory operand's fields; false if it is not of the plain kind. `next` is the offset of the next instruction.
pub(crate) fn memory(op: &mut Op, i: &Instruction, next: u64) -> bool {
    let base = i.memory_base();
    let index = i.memory_index();
    op.disp = i.memory_displacement64() as i64;
    op.base = match base {
        Register::None => slot::ZERO,
        Register::RIP => {
            op.disp = op.disp.wrapping_sub(i.next_ip() as i64).wrapping_add(next as i64);
            slot::BLOCK
        }
        r if r.is_gpr64() => number(r),
        _ => return false,
    };
    op.index = match index {
        Register::None => slot::ZERO,
        r if r.is_gpr64() => number(r),
        _ => return false,
    };
    op.scale = i.memory_index_scale().trailing_zeros() as u8;
    op.seg_slot = match i.memory_segment() {
        Register::FS => slot::SEG_BASE + 4,
        Register::GS => slot::SEG_BASE + 5,
        _ => slot::ZERO,
    };
    op.stack = i.memory_segment() == Register::SS;
    // A displacement of 32 bits without registers in 64-bit code may come with an address-size prefix: leave that alone.
    base != Register::None || index != Register::None || i.memory_displ_size() == 8
}

fn is_full(op: &Op) -> bool {
    op.index != slot::ZERO || op.seg_slot != slot::ZERO
}

fn binary<O: Bin>(f: Form, size: u32, full: bool) -> Handler {
    fn sized<O: Bin, T: Alu>(f: Form, full: bool) -> Handler {
        match f {
            Form::RegReg => bin_rr::<O, T>,
            Form::RegImm => bin_ri::<O, T>,
            Form::RegMem => by_full!(full, bin_rm::<O, T>),
            Form::MemReg => by_full!(full, bin_m::<O, T>, false),
            Form::MemImm => by_full!(full, bin_m::<O, T>, true),
        }
    }
    match size {
        1 => sized::<O, u8>(f, full),
        2 => sized::<O, u16>(f, full),
        4 => sized::<O, u32>(f, full),
        _ => sized::<O, u64>(f, full),
    }
}

fn mov_handler(f: Form, size: u32, full: bool) -> Handler {
    fn sized<T: Alu>(f: Form, full: bool) -> Handler {
        match f {
            Form::RegReg => mov_rr::<T>,
            Form::RegImm => mov_ri::<T>,
            Form::RegMem => by_full!(full, mov_rm::<T>),
            Form::MemReg => by_full!(full, mov_m::<T>, false),
            Form::MemImm => by_full!(full, mov_m::<T>, true),
        }
    }
    match size {
        1 => sized::<u8>(f, full),
        2 => sized::<u16>(f, full),
        4 => sized::<u32>(f, full),
        _ => sized::<u64>(f, full),
    }
}

/// Two-operand instructions: MOV and arithmetic.
fn select_binary(op: &mut Op, i: &Instruction, next: u64) -> Option<Handler> {
    let f = form(i)?;
    for n in 0..2 {
        if i.op_kind(n) == OpKind::Register && !plain(i.op_register(n)) {
            return None;
        }
    }
    let mut size = 0;
    if i.op0_kind() == OpKind::Register {
        op.a = number(i.op0_register());
        size = i.op0_register().size() as u32;
    }
    if i.op1_kind() == OpKind::Register {
        op.b = number(i.op1_register());
        size = i.op1_register().size() as u32;
    }
    match f {
        Form::RegMem | Form::MemReg | Form::MemImm => {
            if !memory(op, i, next) {
                return None;
            }
            if size == 0 {
                size = i.memory_size().size() as u32;
            }
        }
        Form::RegReg | Form::RegImm => {}
    }
    if matches!(f, Form::RegImm | Form::MemImm) {
        op.imm = i.immediate(1);
    }
    let full = is_full(op);
    Some(match i.mnemonic() {
        M::Mov => mov_handler(f, size, full),
        M::Add => binary::<Add>(f, size, full),
        M::Or => binary::<Or>(f, size, full),
        M::Adc => binary::<Adc>(f, size, full),
        M::Sbb => binary::<Sbb>(f, size, full),
        M::And => binary::<And>(f, size, full),
        M::Sub => binary::<Sub>(f, size, full),
        M::Xor => binary::<Xor>(f, size, full),
        M::Cmp => binary::<Cmp>(f, size, full),
        M::Test => binary::<Test>(f, size, full),
        _ => return None,
    })
}

fn select_movx(op: &mut Op, i: &Instruction, next: u64) -> Option<Handler> {
    let d = i.op0_register();
    op.a = number(d);
    let signed = i.mnemonic() != M::Movzx;
    let wide = match d.size() {
        8 => true,
        4 => false,
        _ => return None,
    };
    macro_rules! pick {
        ($f:ident, $src:expr $(, $g:literal)*) => {
            match ($src, signed, wide) {
                (1, false, _) => $f::<u64, u8, false $(, $g)*> as Handler,
                (1, true, false) => $f::<u32, u8, true $(, $g)*>,
                (1, true, true) => $f::<u64, u8, true $(, $g)*>,
                (2, false, _) => $f::<u64, u16, false $(, $g)*>,
                (2, true, false) => $f::<u32, u16, true $(, $g)*>,
                (2, true, true) => $f::<u64, u16, true $(, $g)*>,
                (_, _, true) => $f::<u64, u32, true $(, $g)*>,
                (_, _, false) => $f::<u64, u32, false $(, $g)*>,
            }
        };
    }
    if i.op1_kind() == OpKind::Register {
        if !plain(i.op1_register()) {
            return None;
        }
        op.b = number(i.op1_register());
        return Some(pick!(movx_rr, i.op1_register().size()));
    }
    if !memory(op, i, next) {
        return None;
    }
    let size = i.memory_size().size();
    Some(if is_full(op) { pick!(movx_rm, size, true, false) } else { pick!(movx_rm, size, false, false) })
}

fn select_unary(op: &mut Op, i: &Instruction, next: u64) -> Option<Handler> {
    if i.op0_kind() == OpKind::Memory {
        if !matches!(i.mnemonic(), M::Inc | M::Dec) || !memory(op, i, next) {
            return None;
        }
        let size = i.memory_size().size();
        return Some(if i.mnemonic() == M::Dec {
            by_size!(size, inc_dec_m, true)
        } else {
            by_size!(size, inc_dec_m, false)
        });
    }
    let r = i.op0_register();
    if !plain(r) {
        return None;
    }
    op.a = number(r);
    Some(match i.mnemonic() {
        M::Inc => by_size!(r.size(), inc_dec, false),
        M::Dec => by_size!(r.size(), inc_dec, true),
        M::Neg => by_size!(r.size(), neg),
        M::Not => by_size!(r.size(), not),
        M::Mul if r.size() == 4 => mul_r::<u32>,
        M::Mul if r.size() == 8 => mul_r::<u64>,
        M::Div if r.size() == 4 => div_r::<u32>,
        M::Div if r.size() == 8 => div_r::<u64>,
        _ => return None,
    })
}

fn select_shift(op: &mut Op, i: &Instruction) -> Option<Handler> {
    if i.op0_kind() != OpKind::Register || !plain(i.op0_register()) {
        return None;
    }
    let r = i.op0_register();
    op.a = number(r);
    let by_cl = i.op1_kind() == OpKind::Register;
    if !by_cl {
        op.imm = u64::from(i.immediate8());
    }
    macro_rules! pick {
        ($n:literal) => {
            if by_cl { by_size!(r.size(), shift, $n, true) } else { by_size!(r.size(), shift, $n, false) }
        };
    }
    Some(match i.mnemonic() {
        M::Rol => pick!(0),
        M::Ror => pick!(1),
        M::Shl | M::Sal => pick!(4),
        M::Shr => pick!(5),
        M::Sar => pick!(7),
        _ => return None,
    })
}

fn select_imul(op: &mut Op, i: &Instruction, next: u64) -> Option<Handler> {
    if i.op_count() < 2 {
        return None;
    }
    let size = i.op0_register().size();
    op.a = number(i.op0_register());
    if i.op1_kind() == OpKind::Register {
        op.b = number(i.op1_register());
        if i.op_count() == 3 {
            op.imm = i.immediate(2);
            return Some(by_size!(size, imul_rri));
        }
        return Some(by_size!(size, imul_rr));
    }
    if i.op_count() == 3 || !memory(op, i, next) {
        return None;
    }
    Some(by_size!(size, imul_rm))
}

/// Near transfers of control. `next` is the offset of the next instruction from the block's start.
fn select_transfer(op: &mut Op, i: &Instruction, next: u64) -> Option<Handler> {
    op.imm = next;
    match i.op0_kind() {
        OpKind::NearBranch64 => {
            op.disp = i.near_branch_target().wrapping_sub(i.next_ip()).wrapping_add(next) as i64;
            match i.mnemonic() {
                M::Jmp => return Some(jmp),
                M::Call => {
                    op.stack = true;
                    return Some(call::<false>);
                }
                _ => {}
            }
            let cc = super::generic::condition_number(i.condition_code())?;
            i.is_jcc_short_or_near().then(|| by_cc!(cc, jcc))
        }
        OpKind::Register if i.op0_register().is_gpr64() => {
            op.a = number(i.op0_register());
            match i.mnemonic() {
                M::Jmp => Some(jmp_r),
                M::Call => {
                    op.stack = true;
                    Some(call_r)
                }
                _ => None,
            }
        }
        OpKind::Memory if i.memory_size().size() == 8 => match i.mnemonic() {
            M::Jmp if memory(op, i, next) => Some(jmp_m),
            M::Call if memory(op, i, next) => Some(call_m),
            _ => None,
        },
        _ => None,
    }
}

fn select_conditional(op: &mut Op, i: &Instruction, next: u64) -> Option<Handler> {
    let cc = super::generic::condition_number(i.condition_code())?;
    if i.op0_kind() != OpKind::Register || !plain(i.op0_register()) {
        return None;
    }
    op.a = number(i.op0_register());
    if i.op_count() == 1 {
        return Some(by_cc!(cc, setcc));
    }
    let size = i.op0_register().size();
    if i.op1_kind() == OpKind::Register {
        op.b = number(i.op1_register());
        return match size {
            8 => Some(by_cc!(cc, cmov_rr, u64)),
            4 => Some(by_cc!(cc, cmov_rr, u32)),
            _ => None,
        };
    }
    if !memory(op, i, next) {
        return None;
    }
    match size {
        8 => Some(by_cc!(cc, cmov_rm, u64)),
        4 => Some(by_cc!(cc, cmov_rm, u32)),
        _ => None,
    }
}

fn select_stack(op: &mut Op, i: &Instruction) -> Option<Handler> {
    if i.stack_pointer_increment().unsigned_abs() != 8 {
        return None;
    }
    op.stack = true;
    match i.op0_kind() {
        OpKind::Register if i.op0_register().is_gpr64() => {
            op.a = number(i.op0_register());
            Some(if i.mnemonic() == M::Push { push::<false, false> } else { pop_r::<false> })
        }
        OpKind::Register | OpKind::Memory => None,
        _ => {
            op.imm = i.immediate(0);
            Some(push::<true, false>)
        }
    }
}

/// Picks the handler of a hot form and fills the operands of `op`; `None` for all else. Only for 64-bit mode.
/// `next` is the offset of the next instruction from the block's start.
pub fn select(op: &mut Op, i: &Instruction, next: u64) -> Option<Handler> {
    use iced_x86::Code;
    if i.has_lock_prefix() {
        return None;
    }
    match i.mnemonic() {
        M::Mov | M::Add | M::Or | M::Adc | M::Sbb | M::And | M::Sub | M::Xor | M::Cmp | M::Test => {
            select_binary(op, i, next)
        }
        M::Movzx | M::Movsx | M::Movsxd => select_movx(op, i, next),
        M::Lea => {
            op.a = number(i.op0_register());
            let ok = memory(op, i, next);
            op.seg_slot = slot::ZERO;
            match i.op0_register().size() {
                8 if ok => Some(lea::<u64>),
                4 if ok => Some(lea::<u32>),
                _ => None,
            }
        }
        M::Inc | M::Dec | M::Neg | M::Not | M::Mul | M::Div => select_unary(op, i, next),
        M::Rol | M::Ror | M::Shl | M::Sal | M::Shr | M::Sar => select_shift(op, i),
        M::Imul => select_imul(op, i, next),
        M::Push | M::Pop => select_stack(op, i),
        M::Jmp | M::Call => select_transfer(op, i, next),
        M::Ret => {
            op.stack = true;
            op.imm = if i.op_count() == 1 { i.immediate(0) & 0xffff } else { 0 };
            matches!(i.code(), Code::Retnq | Code::Retnq_imm16).then_some(ret::<false> as Handler)
        }
        M::Leave => {
            op.stack = true;
            (i.code() == Code::Leaveq).then_some(leave_frame as Handler)
        }
        M::Bt if i.op0_kind() == OpKind::Register => {
            let r = i.op0_register();
            op.a = number(r);
            if i.op1_kind() == OpKind::Register {
                op.b = number(i.op1_register());
                return Some(by_size!(r.size(), bt_rr));
            }
            op.imm = u64::from(i.immediate8()) & (r.size() as u64 * 8 - 1);
            Some(by_size!(r.size(), bt_ri))
        }
        M::Xchg if i.op0_kind() == OpKind::Register && plain(i.op0_register()) && plain(i.op1_register()) => {
            (op.a, op.b) = (number(i.op0_register()), number(i.op1_register()));
            Some(by_size!(i.op0_register().size(), xchg_rr))
        }
        M::Cdqe => Some(cdqe),
        M::Cqo => Some(cqo),
        M::Cdq => Some(cdq),
        M::Nop | M::Endbr64 | M::Pause | M::Lfence | M::Mfence | M::Sfence => Some(nop),
        _ if i.is_jcc_short_or_near() => select_transfer(op, i, next),
        _ => select_conditional(op, i, next),
    }
}
