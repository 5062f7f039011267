//! Picks the handler of `fast` for an instruction of 64-bit code and fills the operands; `None` means
//! [`super::generic`].

use super::fast::*;
use crate::block::{Handler, Op};
use crate::cpu::slot;
use crate::hostops::Alu;
use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

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

/// One handler by operand size, for 2 bytes and more.
macro_rules! by_wide {
    ($size:expr, $f:ident) => {
        match $size {
            2 => Some($f::<u16> as Handler),
            4 => Some($f::<u32> as Handler),
            8 => Some($f::<u64> as Handler),
            _ => None,
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
    op.stack = op.seg_slot == slot::ZERO && crate::operand::is_stack_base(base);
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
            return by_wide!(size, imul_rri);
        }
        return by_wide!(size, imul_rr);
    }
    if i.op_count() == 3 || !memory(op, i, next) {
        return None;
    }
    by_wide!(size, imul_rm)
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
            i.is_jcc_short_or_near().then_some(by_cc!(cc, jcc))
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
            Some(bt_ri)
        }
        M::Xchg if i.op0_kind() == OpKind::Register && plain(i.op0_register()) && plain(i.op1_register()) => {
            (op.a, op.b) = (number(i.op0_register()), number(i.op1_register()));
            Some(by_size!(i.op0_register().size(), xchg_rr))
        }
        M::Cdqe => Some(cdqe),
        M::Cqo => Some(cqo),
        M::Cdq => Some(cdq),
        M::Pause if i.len() != 2 => None,
        M::Nop | M::Endbr64 | M::Pause | M::Lfence => Some(nop),
        M::Mfence | M::Sfence => Some(fence),
        _ if i.is_jcc_short_or_near() => select_transfer(op, i, next),
        _ => select_conditional(op, i, next),
    }
}

/// The handler that does the work of instruction `i`, which [`select`] took, and of the conditional branch `jcc` behind it in
/// one go; `None` for pairs that are not worth one.
#[must_use]
pub fn fuse(i: &Instruction, jcc: &Instruction) -> Option<Handler> {
    let cc = super::generic::condition_number(jcc.condition_code())?;
    if !jcc.is_jcc_short_or_near() {
        return None;
    }
    if i.mnemonic() == M::Dec && i.op0_kind() == OpKind::Register {
        return match i.op0_register().size() {
            4 => Some(by_cc!(cc, dec_jcc, u32)),
            8 => Some(by_cc!(cc, dec_jcc, u64)),
            _ => None,
        };
    }
    let f = form(i)?;
    let size = match f {
        Form::MemImm => i.memory_size().size(),
        _ => i.op0_register().size(),
    };
    macro_rules! pick {
        ($op:ident) => {
            match (f, size) {
                (Form::RegReg, 1) => by_cc!(cc, bin_rr_jcc, $op, u8),
                (Form::RegReg, 4) => by_cc!(cc, bin_rr_jcc, $op, u32),
                (Form::RegReg, 8) => by_cc!(cc, bin_rr_jcc, $op, u64),
                (Form::RegImm, 1) => by_cc!(cc, bin_ri_jcc, $op, u8),
                (Form::RegImm, 4) => by_cc!(cc, bin_ri_jcc, $op, u32),
                (Form::RegImm, 8) => by_cc!(cc, bin_ri_jcc, $op, u64),
                (Form::MemImm, 1) => by_cc!(cc, bin_mi_jcc, $op, u8),
                (Form::MemImm, 4) => by_cc!(cc, bin_mi_jcc, $op, u32),
                (Form::MemImm, 8) => by_cc!(cc, bin_mi_jcc, $op, u64),
                _ => return None,
            }
        };
    }
    Some(match i.mnemonic() {
        M::Cmp => pick!(Cmp),
        M::Test => pick!(Test),
        _ => return None,
    })
}
