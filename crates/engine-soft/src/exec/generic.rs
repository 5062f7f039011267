//! Every integer instruction, in every mode and operand size, from the decoded instruction. Slow and plain: the reference of
//! the reference. Hot forms bypass it through `fast`.

use crate::cpu::{Cpu, R};
use crate::hostops::{Alu, cond_dyn, fl, rotated_by_immediate, shld, shrd};
use crate::mmu::Acc;
use crate::operand::{address_size, mask, mem_size, sext};
use iced_x86::{ConditionCode, Instruction, Mnemonic as M, OpKind, Register};
use ringer_arch::Exception;
use ringer_arch::regs::rflags;

/// Executes one instruction. On entry [`Cpu::rip`] is its address and [`Cpu::next_rip`] the one after it.
///
/// # Errors
/// The instruction faulted; see [`Cpu::exc`].
pub fn execute(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    match integer(cpu, i) {
        Some(r) => r,
        None => match crate::sys::execute(cpu, i) {
            Some(r) => r,
            None => match crate::host::execute(cpu, i) {
                Some(r) => r,
                None => Err(cpu.ud()),
            },
        },
    }
}

fn integer(cpu: &mut Cpu, i: &Instruction) -> Option<R<()>> {
    Some(match i.mnemonic() {
        M::Mov | M::Movzx | M::Movsx | M::Movsxd => return mov(cpu, i),
        M::Add | M::Or | M::Adc | M::Sbb | M::And | M::Sub | M::Xor | M::Cmp | M::Test => binary(cpu, i),
        M::Inc | M::Dec | M::Neg | M::Not => unary(cpu, i),
        M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shl | M::Sal | M::Shr | M::Sar => shift(cpu, i),
        M::Shld | M::Shrd => double_shift(cpu, i),
        M::Mul | M::Imul => multiply(cpu, i),
        M::Div | M::Idiv => divide(cpu, i),
        M::Bt | M::Bts | M::Btr | M::Btc => bit_test(cpu, i),
        M::Bsf | M::Bsr => bit_scan(cpu, i),
        M::Bswap | M::Xchg | M::Xadd | M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b | M::Movbe => {
            exchange(cpu, i)
        }
        M::Push | M::Pop => return stack(cpu, i),
        M::Pusha | M::Pushad | M::Popa | M::Popad | M::Enter | M::Leave => stack_frame(cpu, i),
        M::Lea => {
            let v = cpu.ea(i);
            cpu.set_reg(i.op0_register(), v);
            Ok(())
        }
        M::Call | M::Jmp | M::Ret => return near_transfer(cpu, i),
        M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz => count_branch(cpu, i),
        M::Cbw | M::Cwde | M::Cdqe | M::Cwd | M::Cdq | M::Cqo => widen(cpu, i),
        M::Clc | M::Stc | M::Cmc | M::Cld | M::Std | M::Lahf | M::Sahf | M::Salc => flag_ops(cpu, i),
        M::Daa | M::Das | M::Aaa | M::Aas | M::Aam | M::Aad => decimal(cpu, i),
        M::Xlatb => xlat(cpu, i),
        M::Reservednop if undefined_nop(cpu, i) => Err(cpu.ud()),
        M::Pause => pause(cpu, i),
        M::Nop | M::Reservednop | M::Endbr64 | M::Endbr32 | M::Lfence => Ok(()),
        M::Serialize if !cpu.has(ringer_arch::cpu::Feature::SERIALIZE) => Err(cpu.ud()),
        M::Mfence | M::Sfence | M::Serialize => {
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            Ok(())
        }
        M::Ud0 | M::Ud1 | M::Ud2 => Err(cpu.ud()),
        M::Movsb
        | M::Movsw
        | M::Movsq
        | M::Stosb
        | M::Stosw
        | M::Stosd
        | M::Stosq
        | M::Lodsb
        | M::Lodsw
        | M::Lodsd
        | M::Lodsq
        | M::Scasb
        | M::Scasw
        | M::Scasd
        | M::Scasq
        | M::Cmpsb
        | M::Cmpsw
        | M::Cmpsq => super::string::execute(cpu, i),
        // These two mnemonics name vector instructions too.
        M::Movsd if i.op_count() == 2 && is_string(i.op0_kind()) => super::string::execute(cpu, i),
        M::Cmpsd if i.op_count() == 2 && is_string(i.op0_kind()) => super::string::execute(cpu, i),
        _ => return conditional(cpu, i),
    })
}

/// PAUSE with REX.B is XCHG R8, RAX to AMD's processors, as opcode 90 is without the F3 prefix.
fn pause(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    if i.len() < 3 || !cpu.is64() || cpu.model.vendor() != ringer_arch::cpu::Vendor::Amd {
        return Ok(());
    }
    let all = cpu.code_bytes();
    // A REX prefix counts right before the opcode only.
    let rex = all[i.len() - 2];
    if rex & 0xf0 != 0x40 {
        return Ok(());
    }
    let keep = |b: &&u8| **b != 0xf3 && **b & 0xf0 != 0x40;
    let bytes: Vec<u8> = all[..i.len() - 2].iter().filter(keep).copied().chain([rex, 0x90]).collect();
    let other = iced_x86::Decoder::new(64, &bytes, iced_x86::DecoderOptions::AMD).decode();
    if other.mnemonic() == M::Xchg { exchange(cpu, &other) } else { Ok(()) }
}

/// 0F 0D with a register: PREFETCH and PREFETCHW have none, and AMD's processors say so (APM vol. 3 PREFETCHlevel).
fn undefined_nop(cpu: &Cpu, i: &Instruction) -> bool {
    use iced_x86::Code as C;
    let prefetch = matches!(
        i.code(),
        C::Reservednop_rm16_r16_0F0D | C::Reservednop_rm32_r32_0F0D | C::Reservednop_rm64_r64_0F0D
    );
    prefetch && i.op0_kind() == OpKind::Register && cpu.model.vendor() == ringer_arch::cpu::Vendor::Amd
}

/// String operands, as iced names them.
fn is_string(k: OpKind) -> bool {
    matches!(
        k,
        OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI
    )
}

/// Operand `n`'s size in bytes.
fn op_size(i: &Instruction, n: u32) -> u32 {
    match i.op_kind(n) {
        OpKind::Register => i.op_register(n).size() as u32,
        _ => mem_size(i),
    }
}

fn is_gpr_or_memory(i: &Instruction, n: u32) -> bool {
    match i.op_kind(n) {
        OpKind::Register => i.op_register(n).is_gpr(),
        _ => true,
    }
}

fn mov(cpu: &mut Cpu, i: &Instruction) -> Option<R<()>> {
    if !is_gpr_or_memory(i, 0) || !is_gpr_or_memory(i, 1) {
        return None;
    }
    let read =
        if i.code() == iced_x86::Code::Movsxd_r16_rm16 { movsxd_source(cpu, i) } else { cpu.read_op(i, 1) };
    let v = match read {
        Ok(v) => v,
        Err(f) => return Some(Err(f)),
    };
    let v = match i.mnemonic() {
        M::Movsx | M::Movsxd => sext(v, op_size(i, 1)),
        _ => v,
    };
    Some(cpu.write_op(i, 0, v))
}

/// The source of MOVSXD with a 16-bit destination. In memory AMD's processors access 32 bits of it all the same.
fn movsxd_source(cpu: &mut Cpu, i: &Instruction) -> R<u64> {
    if i.op1_kind() == OpKind::Register || cpu.model.vendor() != ringer_arch::cpu::Vendor::Amd {
        return cpu.read_op(i, 1);
    }
    let lin = cpu.mem_lin(i, 4, Acc::Read)?;
    cpu.load_n(lin, 4)
}

/// `(result, flags)` of a two-operand instruction of `size` bytes.
fn alu(m: M, size: u32, a: u64, b: u64, f: u16) -> (u64, u16) {
    fn go<T: Alu>(m: M, a: u64, b: u64, f: u16) -> (u64, u16) {
        let (a, b) = (T::of_u64(a), T::of_u64(b));
        let (r, f) = match m {
            M::Add | M::Xadd => T::add(a, b),
            M::Or => T::or(a, b),
            M::Adc => T::adc(a, b, f),
            M::Sbb => T::sbb(a, b, f),
            M::And | M::Test => T::and(a, b),
            M::Xor => T::xor(a, b),
            _ => T::sub(a, b),
        };
        (r.to_u64(), f)
    }
    match size {
        1 => go::<u8>(m, a, b, f),
        2 => go::<u16>(m, a, b, f),
        4 => go::<u32>(m, a, b, f),
        _ => go::<u64>(m, a, b, f),
    }
}

/// Reads operand 0, applies `f`, writes it back: in one access where it is memory, atomically under LOCK.
fn modify(cpu: &mut Cpu, i: &Instruction, lock: bool, f: impl FnMut(u64) -> u64) -> R<u64> {
    let mut f = f;
    if i.op0_kind() == OpKind::Register {
        let old = cpu.reg(i.op0_register());
        cpu.set_reg(i.op0_register(), f(old));
        return Ok(old);
    }
    let size = mem_size(i);
    let lin = cpu.mem_lin(i, u64::from(size), Acc::Write)?;
    cpu.rmw(lin, size, lock, f)
}

fn binary(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let m = i.mnemonic();
    let size = op_size(i, 0);
    let f = cpu.fl;
    let mut out = f;
    if m == M::Cmp || m == M::Test {
        let a = cpu.read_op(i, 0)?;
        let b = cpu.read_op(i, 1)?;
        cpu.fl = alu(m, size, a, b, f).1;
        return Ok(());
    }
    let b = cpu.read_op(i, 1)?;
    modify(cpu, i, i.has_lock_prefix(), |a| {
        let (r, f) = alu(m, size, a, b, f);
        out = f;
        r
    })?;
    cpu.fl = out;
    Ok(())
}

fn unary(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    fn go<T: Alu>(m: M, a: u64, f: u16) -> (u64, u16) {
        let a = T::of_u64(a);
        let (r, f) = match m {
            M::Inc => T::inc(a, f),
            M::Dec => T::dec(a, f),
            M::Neg => T::neg(a),
            _ => return (!a.to_u64(), f),
        };
        (r.to_u64(), f)
    }
    let (m, size, f) = (i.mnemonic(), op_size(i, 0), cpu.fl);
    let mut out = f;
    modify(cpu, i, i.has_lock_prefix(), |a| {
        let (r, f) = match size {
            1 => go::<u8>(m, a, f),
            2 => go::<u16>(m, a, f),
            4 => go::<u32>(m, a, f),
            _ => go::<u64>(m, a, f),
        };
        out = f;
        r
    })?;
    cpu.fl = out;
    Ok(())
}

fn shift(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    fn go<T: Alu>(m: M, a: u64, cl: u8, f: u16) -> (u64, u16) {
        let a = T::of_u64(a);
        let (r, f) = match m {
            M::Rol => T::shift::<0>(a, cl, f),
            M::Ror => T::shift::<1>(a, cl, f),
            M::Rcl => T::shift::<2>(a, cl, f),
            M::Rcr => T::shift::<3>(a, cl, f),
            M::Shr => T::shift::<5>(a, cl, f),
            M::Sar => T::shift::<7>(a, cl, f),
            _ => T::shift::<4>(a, cl, f),
        };
        (r.to_u64(), f)
    }
    let (m, size, f) = (i.mnemonic(), op_size(i, 0), cpu.fl);
    let cl = cpu.read_op(i, 1)? as u8;
    let mut out = f;
    modify(cpu, i, false, |a| {
        let (r, f) = match size {
            1 => go::<u8>(m, a, cl, f),
            2 => go::<u16>(m, a, cl, f),
            4 => go::<u32>(m, a, cl, f),
            _ => go::<u64>(m, a, cl, f),
        };
        out = f;
        r
    })?;
    let rotates =
        matches!(m, M::Rol | M::Ror) && i.op0_kind() == OpKind::Register && i.op1_kind() != OpKind::Register;
    cpu.fl = if rotates { rotated_by_immediate(f, out, cl, size * 8) } else { out };
    Ok(())
}

fn double_shift(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let size = op_size(i, 0);
    let b = cpu.read_op(i, 1)?;
    let cl = cpu.read_op(i, 2)? as u8;
    let (left, f) = (i.mnemonic() == M::Shld, cpu.fl);
    let mut out = f;
    modify(cpu, i, false, |a| {
        let (r, f) = if left { shld(size, a, b, cl, f) } else { shrd(size, a, b, cl, f) };
        out = f;
        r
    })?;
    cpu.fl = out;
    Ok(())
}

fn multiply(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    use crate::hostops::multiply;
    if i.op_count() == 1 {
        let size = op_size(i, 0);
        let b = cpu.read_op(i, 0)?;
        let (lo, hi, f) = multiply(size, i.mnemonic() == M::Imul, cpu.regs[0], b, cpu.fl);
        if size == 1 {
            cpu.set_reg(Register::AX, lo);
        } else {
            cpu.set_gpr_bits(0, size * 8, lo);
            cpu.set_gpr_bits(2, size * 8, hi);
        }
        cpu.fl = f;
        return Ok(());
    }
    let size = op_size(i, 0);
    let a = cpu.read_op(i, i.op_count() - 2)?;
    let b = cpu.read_op(i, i.op_count() - 1)?;
    let (lo, _, f) = multiply(size, true, a, b, cpu.fl);
    cpu.fl = f;
    cpu.set_reg(i.op0_register(), lo);
    Ok(())
}

fn divide(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let size = op_size(i, 0);
    let d = cpu.read_op(i, 0)?;
    let m = mask(size);
    let bits = size * 8;
    let (lo, hi) = if size == 1 {
        (cpu.regs[0] & 0xff, cpu.regs[0] >> 8 & 0xff)
    } else {
        (cpu.regs[0] & m, cpu.regs[2] & m)
    };
    let n = u128::from(hi) << bits | u128::from(lo);
    let bad = Exception::DE;
    if d == 0 {
        return Err(cpu.raise(bad));
    }
    let (q, r) = if i.mnemonic() == M::Div {
        let (q, r) = (n / u128::from(d), n % u128::from(d));
        if q > u128::from(m) {
            return Err(cpu.raise(bad));
        }
        (q as u64, r as u64)
    } else {
        let s = 128 - 2 * bits;
        let n = (n << s) as i128 >> s;
        let d = i128::from(sext(d, size) as i64);
        let (q, r) = (n.wrapping_div(d), n.wrapping_rem(d));
        let half = 1i128 << (bits - 1);
        if q >= half || q < -half {
            return Err(cpu.raise(bad));
        }
        (q as u64 & m, r as u64 & m)
    };
    if size == 1 {
        cpu.set_reg(Register::AX, q | r << 8);
    } else {
        cpu.set_gpr_bits(0, bits, q);
        cpu.set_gpr_bits(2, bits, r);
    }
    Ok(())
}

fn bit_test(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let size = op_size(i, 0);
    let bits = u64::from(size) * 8;
    let index = cpu.read_op(i, 1)?;
    let bit = index & (bits - 1);
    let m = i.mnemonic();
    let change = |v: u64| match m {
        M::Bts => v | 1 << bit,
        M::Btr => v & !(1 << bit),
        M::Btc => v ^ 1 << bit,
        _ => v,
    };
    let old = if i.op0_kind() == OpKind::Register {
        let v = cpu.reg(i.op0_register());
        if m != M::Bt {
            cpu.set_reg(i.op0_register(), change(v));
        }
        v
    } else {
        // With a register index the bit string reaches far beyond the operand (Intel SDM vol. 1 §3.7.1, BT).
        let mut off = cpu.ea(i);
        if i.op1_kind() == OpKind::Register {
            let words = sext(index, size) as i64 >> bits.trailing_zeros();
            off = off.wrapping_add((words * i64::from(size)) as u64) & mask(address_size(i));
        }
        let acc = if m == M::Bt { Acc::Read } else { Acc::Write };
        let seg = cpu.memory_seg(i);
        let lin = cpu.seg_lin(seg, off, u64::from(size), acc)?;
        if m == M::Bt { cpu.load_n(lin, size)? } else { cpu.rmw(lin, size, i.has_lock_prefix(), change)? }
    };
    cpu.fl = cpu.fl & !fl::CF | if old >> bit & 1 != 0 { fl::CF } else { 0 };
    Ok(())
}

fn bit_scan(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let size = op_size(i, 0);
    let v = cpu.read_op(i, 1)?;
    let dest = i.op0_register();
    let old = cpu.reg(dest);
    let (r, f) = crate::hostops::bit_scan(size, i.mnemonic() == M::Bsr, v, old, cpu.fl);
    cpu.fl = f;
    // A zero source leaves the destination as it was, all 64 bits of it (AMD APM vol. 3, BSF; Intel hosts alike).
    if v != 0 {
        cpu.set_reg(dest, r);
    }
    Ok(())
}

fn exchange(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    match i.mnemonic() {
        M::Bswap => {
            let r = i.op0_register();
            let v = cpu.reg(r);
            // The 16-bit form is undefined; processors clear the register's low word.
            let v = match r.size() {
                8 => v.swap_bytes(),
                4 => u64::from((v as u32).swap_bytes()),
                _ => 0,
            };
            cpu.set_reg(r, v);
            Ok(())
        }
        M::Movbe => {
            let size = mem_size(i);
            let v = cpu.read_op(i, 1)?;
            cpu.write_op(i, 0, v.swap_bytes() >> (64 - size * 8))
        }
        M::Xchg => {
            let b = cpu.reg(i.op1_register());
            let old = modify(cpu, i, true, |_| b)?;
            cpu.set_reg(i.op1_register(), old);
            Ok(())
        }
        M::Xadd => {
            let size = op_size(i, 0);
            let b = cpu.reg(i.op1_register());
            let f = cpu.fl;
            let old = match i.op0_kind() {
                OpKind::Register => cpu.reg(i.op0_register()),
                _ => modify(cpu, i, i.has_lock_prefix(), |a| alu(M::Add, size, a, b, f).0)?,
            };
            let (sum, f) = alu(M::Add, size, old, b, f);
            cpu.set_reg(i.op1_register(), old);
            if i.op0_kind() == OpKind::Register {
                cpu.set_reg(i.op0_register(), sum);
            }
            cpu.fl = f;
            Ok(())
        }
        M::Cmpxchg => {
            let size = op_size(i, 0);
            let acc = cpu.regs[0] & mask(size);
            let new = cpu.reg(i.op1_register());
            let old = if i.op0_kind() == OpKind::Register {
                let old = cpu.reg(i.op0_register());
                // The destination is written either way: a failing 32-bit compare clears the upper half of the
                // accumulator only.
                if old == acc {
                    cpu.set_reg(i.op0_register(), new);
                }
                old
            } else {
                modify(cpu, i, i.has_lock_prefix(), |a| if a == acc { new } else { a })?
            };
            cpu.fl = alu(M::Cmp, size, acc, old, cpu.fl).1;
            if old != acc {
                if size == 1 {
                    cpu.set_reg(Register::AL, old);
                } else {
                    cpu.set_gpr_bits(0, size * 8, old);
                }
            }
            Ok(())
        }
        _ => compare_exchange_wide(cpu, i),
    }
}

fn compare_exchange_wide(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let equal;
    if i.mnemonic() == M::Cmpxchg8b {
        let lin = cpu.mem_lin(i, 8, Acc::Write)?;
        let old = cpu.regs[0] & mask(4) | cpu.regs[2] << 32;
        let new = cpu.regs[3] & mask(4) | cpu.regs[1] << 32;
        let seen = cpu.rmw(lin, 8, i.has_lock_prefix(), |v| if v == old { new } else { v })?;
        equal = seen == old;
        if !equal {
            cpu.regs[0] = seen & mask(4);
            cpu.regs[2] = seen >> 32;
        }
    } else {
        let lin = cpu.aligned_mem_lin(i, 16, Acc::Write)?;
        let old = u128::from(cpu.regs[2]) << 64 | u128::from(cpu.regs[0]);
        let new = u128::from(cpu.regs[1]) << 64 | u128::from(cpu.regs[3]);
        let seen = cpu.compare_exchange_16(lin, old, new)?;
        equal = seen == old;
        if !equal {
            cpu.regs[0] = seen as u64;
            cpu.regs[2] = (seen >> 64) as u64;
        }
    }
    cpu.fl = cpu.fl & !fl::ZF | if equal { fl::ZF } else { 0 };
    Ok(())
}

/// Operand size of a stack instruction in bytes.
fn stack_size(i: &Instruction) -> u32 {
    i.stack_pointer_increment().unsigned_abs()
}

fn stack(cpu: &mut Cpu, i: &Instruction) -> Option<R<()>> {
    if !is_gpr_or_memory(i, 0) {
        return None;
    }
    let size = stack_size(i);
    if i.mnemonic() == M::Push {
        return Some(cpu.read_op(i, 0).and_then(|v| cpu.push(size, v)));
    }
    Some((|| {
        let v = cpu.peek(size, 0)?;
        // POP to memory addressed by RSP uses the incremented RSP (Intel SDM vol. 2, POP).
        let sp = cpu.regs[4];
        cpu.add_sp(u64::from(size));
        if let Err(f) = cpu.write_op(i, 0, v) {
            cpu.regs[4] = sp;
            return Err(f);
        }
        Ok(())
    })())
}

fn stack_frame(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    match i.mnemonic() {
        M::Pusha | M::Pushad => {
            let size = if i.mnemonic() == M::Pusha { 2 } else { 4 };
            let saved = cpu.regs[4];
            for r in 0..8 {
                let v = if r == 4 { saved } else { cpu.regs[r] };
                if let Err(f) = cpu.push(size, v) {
                    cpu.regs[4] = saved;
                    return Err(f);
                }
            }
            Ok(())
        }
        M::Popa | M::Popad => {
            let size = if i.mnemonic() == M::Popa { 2 } else { 4 };
            let mut v = [0; 8];
            for (n, slot) in v.iter_mut().enumerate() {
                *slot = cpu.peek(size, n as u64 * u64::from(size))?;
            }
            cpu.add_sp(8 * u64::from(size));
            for (n, &v) in v.iter().enumerate() {
                if 7 - n != 4 {
                    cpu.set_gpr_bits(7 - n, size * 8, v);
                }
            }
            Ok(())
        }
        M::Leave => {
            let size = stack_size_leave(cpu, i);
            let sp = cpu.regs[4];
            let bits = cpu.stack_bits();
            cpu.set_gpr_bits(4, bits, cpu.regs[5]);
            match cpu.pop(size) {
                Ok(v) => cpu.set_gpr_bits(5, size * 8, v),
                Err(f) => {
                    cpu.regs[4] = sp;
                    return Err(f);
                }
            }
            Ok(())
        }
        _ => enter(cpu, i),
    }
}

fn stack_size_leave(cpu: &Cpu, i: &Instruction) -> u32 {
    use iced_x86::Code;
    match i.code() {
        Code::Leavew => 2,
        Code::Leaved => 4,
        Code::Leaveq => 8,
        _ => cpu.bits() / 8,
    }
}

/// ENTER (Intel SDM vol. 2): builds the frame, then makes sure that the new stack top can be written.
fn enter(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    use iced_x86::Code;
    let size = match i.code() {
        Code::Enterw_imm16_imm8 => 2,
        Code::Enterd_imm16_imm8 => 4,
        _ => 8,
    };
    let alloc = u64::from(i.immediate16());
    let level = i.immediate8_2nd() & 31;
    let (sp0, bp0) = (cpu.regs[4], cpu.regs[5]);
    let bits = cpu.stack_bits();
    let r = (|| {
        cpu.push(size, bp0)?;
        let frame = cpu.regs[4];
        if level > 0 {
            let mut bp = bp0;
            for _ in 1..level {
                bp = bp.wrapping_sub(u64::from(size)) & Cpu::width_mask(bits);
                let lin = cpu.seg_lin(2, bp, u64::from(size), Acc::Read)?;
                let v = cpu.load_n(lin, size)?;
                cpu.push(size, v)?;
            }
            cpu.push(size, frame)?;
        }
        let sp = cpu.regs[4].wrapping_sub(alloc) & Cpu::width_mask(bits);
        let lin = cpu.seg_lin(2, sp, u64::from(size), Acc::Write)?;
        cpu.require_alignment(lin, u64::from(size))?;
        cpu.probe_write(lin, u64::from(size))?;
        Ok((sp, frame))
    })();
    cpu.regs[4] = sp0;
    let (sp, frame) = r?;
    cpu.set_gpr_bits(4, bits, sp);
    cpu.set_gpr_bits(5, size * 8, frame);
    Ok(())
}

/// Target of a direct near branch, truncated to the operand size.
fn near_target(cpu: &Cpu, i: &Instruction) -> u64 {
    let t = i.near_branch_target().wrapping_sub(i.next_ip()).wrapping_add(cpu.next_rip);
    let width = match i.op0_kind() {
        OpKind::NearBranch16 => 16,
        OpKind::NearBranch32 => 32,
        _ => 64,
    };
    t & Cpu::width_mask(width)
}

fn near_transfer(cpu: &mut Cpu, i: &Instruction) -> Option<R<()>> {
    if i.op_count() > 0 && matches!(i.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32) {
        return None;
    }
    if i.is_jmp_far_indirect() || i.is_call_far_indirect() {
        return None;
    }
    Some(near(cpu, i))
}

fn near(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    if i.mnemonic() == M::Ret {
        let extra = if i.op_count() == 1 { i.immediate(0) & 0xffff } else { 0 };
        let size = stack_size(i) - extra as u32;
        let target = cpu.peek(size, 0)?;
        cpu.branch_to(target)?;
        cpu.add_sp(u64::from(size) + extra);
        return Ok(());
    }
    let target = match i.op0_kind() {
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => near_target(cpu, i),
        _ => cpu.read_op(i, 0)?,
    };
    let back = cpu.next_rip;
    if i.mnemonic() != M::Call {
        return cpu.branch_to(target);
    }
    if !cpu.amd() {
        // Intel's processors have stored the return address when they find that the target is no address.
        let sp = cpu.regs[4];
        cpu.push(stack_size(i), back)?;
        return cpu.branch_to(target).inspect_err(|_| cpu.regs[4] = sp);
    }
    cpu.branch_to(target)?;
    cpu.push(stack_size(i), back)
}

fn count_branch(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    use iced_x86::Code as C;
    // The counter's width is the address size, which iced puts into the code.
    let bits = match i.code() {
        C::Loopne_rel8_16_CX
        | C::Loopne_rel8_32_CX
        | C::Loope_rel8_16_CX
        | C::Loope_rel8_32_CX
        | C::Loop_rel8_16_CX
        | C::Loop_rel8_32_CX
        | C::Jcxz_rel8_16
        | C::Jcxz_rel8_32 => 16,
        C::Loopne_rel8_64_RCX
        | C::Loopne_rel8_16_RCX
        | C::Loope_rel8_64_RCX
        | C::Loope_rel8_16_RCX
        | C::Loop_rel8_64_RCX
        | C::Loop_rel8_16_RCX
        | C::Jrcxz_rel8_64
        | C::Jrcxz_rel8_16 => 64,
        _ => 32,
    };
    let m = Cpu::width_mask(bits);
    let zf = cpu.fl & fl::ZF != 0;
    let is_loop = matches!(i.mnemonic(), M::Loop | M::Loope | M::Loopne);
    let count = if is_loop { cpu.regs[1].wrapping_sub(1) } else { cpu.regs[1] } & m;
    let taken = match i.mnemonic() {
        M::Loop => count != 0,
        M::Loope => count != 0 && zf,
        M::Loopne => count != 0 && !zf,
        _ => count == 0,
    };
    if taken {
        let t = near_target(cpu, i);
        cpu.branch_to(t)?;
    }
    if is_loop {
        cpu.set_gpr_bits(1, bits, count);
    }
    Ok(())
}

fn widen(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let a = cpu.regs[0];
    match i.mnemonic() {
        M::Cbw => cpu.set_gpr_bits(0, 16, sext(a, 1)),
        M::Cwde => cpu.set_gpr_bits(0, 32, sext(a, 2)),
        M::Cdqe => cpu.regs[0] = sext(a, 4),
        M::Cwd => cpu.set_gpr_bits(2, 16, sext(a, 2) >> 32),
        M::Cdq => cpu.set_gpr_bits(2, 32, sext(a, 4) >> 32),
        _ => cpu.regs[2] = (a as i64 >> 63) as u64,
    }
    Ok(())
}

fn flag_ops(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    match i.mnemonic() {
        M::Clc => cpu.fl &= !fl::CF,
        M::Stc => cpu.fl |= fl::CF,
        M::Cmc => cpu.fl ^= fl::CF,
        M::Cld => cpu.sysflags &= !rflags::DF,
        M::Std => cpu.sysflags |= rflags::DF,
        M::Lahf => cpu.set_reg(Register::AH, u64::from(cpu.fl >> 8 & 0xd5 | 2)),
        M::Sahf => cpu.fl = cpu.fl & fl::OF | (cpu.reg(Register::AH) as u16) << 8 & 0xd500 | 0x200,
        _ => {
            let v = if cpu.fl & fl::CF != 0 { 0xff } else { 0 };
            cpu.set_reg(Register::AL, v);
        }
    }
    Ok(())
}

/// SETcc, CMOVcc and Jcc; `None` if the instruction is none of them.
fn conditional(cpu: &mut Cpu, i: &Instruction) -> Option<R<()>> {
    let cc = condition_number(i.condition_code())?;
    let yes = cond_dyn(cc, cpu.fl);
    if i.is_jcc_short_or_near() {
        return Some(if yes {
            let t = near_target(cpu, i);
            cpu.branch_to(t)
        } else {
            Ok(())
        });
    }
    if i.op_count() == 1 {
        return Some(cpu.write_op(i, 0, u64::from(yes)));
    }
    if !is_gpr_or_memory(i, 0) || i.op0_kind() != OpKind::Register {
        return None;
    }
    // CMOVcc reads its source, and clears the upper half of a 32-bit destination, whether the condition holds or not.
    Some(cpu.read_op(i, 1).map(|v| {
        let d = i.op0_register();
        let v = if yes { v } else { cpu.reg(d) };
        cpu.set_reg(d, v);
    }))
}

/// The low four bits of the opcode of a conditional instruction.
#[must_use]
pub fn condition_number(cc: ConditionCode) -> Option<u8> {
    Some(match cc {
        ConditionCode::None => return None,
        ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        ConditionCode::g => 15,
    })
}

fn xlat(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    // iced gives the operand as [rBX + AL]: the address size is that of the base.
    let base = i.memory_base();
    let off = cpu.reg(base).wrapping_add(cpu.regs[0] & 0xff) & mask(base.size() as u32);
    let lin = cpu.seg_lin(cpu.memory_seg(i), off, 1, Acc::Read)?;
    let v = cpu.load::<u8>(lin)?;
    cpu.set_reg(Register::AL, u64::from(v));
    Ok(())
}

/// The flags of a byte result that the decimal instructions define: SF, ZF, PF.
fn result_flags(v: u8) -> u16 {
    u8::and(v, v).1 & (fl::SF | fl::ZF | fl::PF) | 0x200
}

/// Decimal adjustments (Intel SDM vol. 2, DAA, DAS, AAA, AAS, AAM, AAD).
fn decimal(cpu: &mut Cpu, i: &Instruction) -> R<()> {
    let ax = cpu.regs[0] as u16;
    let (al, ah) = (ax as u8, (ax >> 8) as u8);
    let (cf, af) = (cpu.fl & fl::CF != 0, cpu.fl & fl::AF != 0);
    let low = al & 15 > 9 || af;
    let subtract = matches!(i.mnemonic(), M::Das | M::Aas);
    let (ax, f) = match i.mnemonic() {
        M::Daa | M::Das => {
            let mut r = al;
            let mut f = 0;
            let mut carry = false;
            if low {
                let (v, c) = if subtract { r.overflowing_sub(6) } else { r.overflowing_add(6) };
                r = v;
                carry = cf || c;
                f |= fl::AF;
            }
            if al > 0x99 || cf {
                r = if subtract { r.wrapping_sub(0x60) } else { r.wrapping_add(0x60) };
                carry = true;
            }
            if carry {
                f |= fl::CF;
            }
            (u16::from(ah) << 8 | u16::from(r), f | result_flags(r))
        }
        M::Aaa | M::Aas => {
            let v = match (low, subtract) {
                (false, _) => ax,
                (true, false) => ax.wrapping_add(0x106),
                (true, true) => ax.wrapping_sub(0x106),
            };
            (v & 0xff0f, if low { fl::AF | fl::CF | 0x200 } else { 0x200 })
        }
        M::Aam => {
            let d = i.immediate8();
            if d == 0 {
                return Err(cpu.raise(Exception::DE));
            }
            let (q, r) = (al / d, al % d);
            (u16::from(q) << 8 | u16::from(r), result_flags(r))
        }
        _ => {
            let r = al.wrapping_add(ah.wrapping_mul(i.immediate8()));
            (u16::from(r), result_flags(r))
        }
    };
    cpu.set_reg(Register::AX, u64::from(ax));
    cpu.fl = f;
    Ok(())
}
