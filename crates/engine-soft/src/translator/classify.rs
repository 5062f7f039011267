//! Which guest instructions run as themselves in translated code, and how the others are taken care of.

use crate::cache::Map;
use crate::cpu::Cpu;
use crate::host::{self, Native, Unit};
use crate::translator::{groups, key, strings};
use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, Mnemonic as M, OpAccess, OpKind, Register,
};
use ringer_arch::cpu::{Feature, Vendor};

/// What becomes of an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// It runs as itself, its memory operand redirected.
    Native {
        /// What state it needs.
        unit: Unit,
        /// Its memory operand must be aligned.
        aligned: bool,
        /// It sets the x87 pointers.
        pointers: bool,
    },
    /// Nothing: a hint.
    Nothing,
    /// PUSH of a register, an immediate or memory.
    Push,
    /// POP to a register.
    Pop,
    /// LEAVE.
    Leave,
    /// JMP or Jcc to a known place.
    Jump,
    /// LOOP and JRCXZ.
    CountJump,
    /// CALL of a known place.
    Call,
    /// JMP through a register or memory.
    JumpIndirect,
    /// CALL through a register or memory.
    CallIndirect,
    /// RET.
    Ret,
    /// SWAPGS in ring 0.
    Swapgs,
    /// CLI in ring 0.
    Cli,
    /// STI in ring 0.
    Sti,
    /// PUSHFQ.
    Pushfq,
    /// CLD or STD: what DF becomes.
    Direction(bool),
    /// STAC in ring 0 that does not change which pages can be accessed.
    Stac,
    /// MOV of CR2 to a register in ring 0.
    Cr2,
    /// MOV of a segment's selector to a register of 32 or 64 bits.
    Selector,
    /// REP MOVS or STOS, of elements of so many bytes.
    Repeat(u8),
    /// BT, BTS, BTR or BTC on memory, with the offset in a register.
    BitTest,
    /// The interpreter executes it, and the block goes on after it.
    Interp,
    /// The interpreter executes it, and it ends the block.
    InterpLast,
}

const INT: Class = Class::Native { unit: Unit::Integer, aligned: false, pointers: false };

/// What is known of the forms of instructions that came up: to find it out takes its time.
#[derive(Debug, Default)]
pub struct Natives {
    /// What [`host::native`] said of them.
    natives: Map<u32, Option<Native>>,
    /// What those of an opcode do with their operands.
    accesses: Map<u32, [OpAccess; 5]>,
}

impl Natives {
    /// What `i` does with its operands.
    pub fn accesses(&mut self, i: &Instruction) -> [OpAccess; 5] {
        // The opcode says whether an operand is written.
        let found = || groups::accesses(&mut InstructionInfoFactory::new(), i);
        *self.accesses.entry(i.code() as u32).or_insert_with(found)
    }

    fn of(&mut self, cpu: &Cpu, i: &Instruction) -> Option<Native> {
        // What it says depends on the opcode and on which operands are in memory.
        let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
        let form = (i.code() as u32) << 1 | u32::from(memory);
        *self.natives.entry(form).or_insert_with(|| host::native(cpu, i))
    }
}

/// What becomes of `i` in code that is translated under `k`.
#[must_use]
pub fn classify(cpu: &Cpu, natives: &mut Natives, i: &Instruction, k: u32) -> Class {
    let fallback = if i.flow_control() != FlowControl::Next || i.mnemonic() == M::Hlt {
        Class::InterpLast
    } else {
        Class::Interp
    };
    let ring0 = k & key::RING0 != 0;
    match i.mnemonic() {
        // Behind it nothing tells whether the last x87 instruction raised something, and so whether its opcode is noted.
        M::Fnclex if cpu.model.vendor() != Vendor::Amd => return Class::Interp,
        M::Swapgs if ring0 && k & key::BITS64 != 0 => return Class::Swapgs,
        M::Cli if ring0 => return Class::Cli,
        M::Sti if ring0 => return Class::Sti,
        M::Pushfq if k & key::BITS64 != 0 => return Class::Pushfq,
        M::Cld | M::Std => return Class::Direction(i.mnemonic() == M::Std),
        // Elsewhere they change the mode, which the block is translated under.
        M::Clac if ring0 && k & key::AC == 0 && cpu.has(Feature::SMAP) => return Class::Nothing,
        M::Stac if ring0 && k & key::AC != 0 && cpu.has(Feature::SMAP) => return Class::Stac,
        M::Mov if ring0 && k & key::BITS64 != 0 && i.op1_register() == Register::CR2 => return Class::Cr2,
        M::Mov if i.op1_kind() == OpKind::Register && i.op1_register().is_segment_register() => {
            let wide = i.op0_kind() == OpKind::Register && i.op0_register().size() >= 4;
            return if wide { Class::Selector } else { fallback };
        }
        M::Bt | M::Bts | M::Btr | M::Btc
            if i.op0_kind() == OpKind::Memory && i.op1_kind() == OpKind::Register =>
        {
            return Class::BitTest;
        }
        _ => {}
    }
    if let Some(size) = strings::repeated(i)
        && k & key::BITS64 != 0
    {
        return Class::Repeat(size);
    }
    let known = flow(i, k).or_else(|| stack(i, k)).or_else(|| integer(cpu, i));
    if let Some(c) = known {
        return c;
    }
    if host::prepare(i).is_none() || i.flow_control() != FlowControl::Next {
        return fallback;
    }
    let Some(n) = natives.of(cpu, i) else { return fallback };
    if n.nothing {
        return Class::Nothing;
    }
    // As themselves they would clear all sixteen.
    if k & key::BITS64 == 0 && matches!(i.mnemonic(), M::Vzeroupper | M::Vzeroall) {
        return fallback;
    }
    let open = match n.unit {
        Unit::Integer => true,
        Unit::Sse => k & key::SSE != 0,
        Unit::Avx => k & key::AVX != 0,
        Unit::X87 => k & key::X87 != 0,
    };
    if !open {
        return fallback;
    }
    Class::Native { unit: n.unit, aligned: n.aligned, pointers: n.pointers }
}

fn flow(i: &Instruction, k: u32) -> Option<Class> {
    let wide = k & key::BITS64 != 0;
    let near = |op: u32| {
        let want = if wide { OpKind::NearBranch64 } else { OpKind::NearBranch32 };
        i.op_kind(op) == want
    };
    // An operand of the mode's own width; others are rare.
    let operand = || {
        if i.op0_kind() == OpKind::Register {
            i.op0_register().size() == if wide { 8 } else { 4 }
        } else {
            i.memory_size().size() == if wide { 8 } else { 4 }
        }
    };
    Some(match i.flow_control() {
        FlowControl::UnconditionalBranch if i.is_jmp_short_or_near() && near(0) => Class::Jump,
        FlowControl::ConditionalBranch if i.is_jcc_short_or_near() && near(0) => Class::Jump,
        FlowControl::ConditionalBranch
            if matches!(i.code(), Code::Jrcxz_rel8_64 | Code::Loop_rel8_64_RCX) && near(0) =>
        {
            Class::CountJump
        }
        FlowControl::Call if i.is_call_near() && near(0) => Class::Call,
        FlowControl::IndirectBranch if i.is_jmp_near_indirect() && operand() => Class::JumpIndirect,
        FlowControl::IndirectCall if i.is_call_near_indirect() && operand() => Class::CallIndirect,
        FlowControl::Return
            if matches!(i.code(), Code::Retnq | Code::Retnq_imm16) && wide
                || matches!(i.code(), Code::Retnd | Code::Retnd_imm16) && !wide =>
        {
            Class::Ret
        }
        _ => return None,
    })
}

fn stack(i: &Instruction, k: u32) -> Option<Class> {
    let wide = k & key::BITS64 != 0;
    use Code as C;
    Some(match i.code() {
        C::Push_r64 | C::Push_rm64 | C::Pushq_imm8 | C::Pushq_imm32 if wide => Class::Push,
        C::Push_r32 | C::Push_rm32 | C::Pushd_imm8 | C::Pushd_imm32 if !wide => Class::Push,
        C::Pop_r64 if wide => Class::Pop,
        C::Pop_rm64 if wide && i.op0_kind() == OpKind::Register => Class::Pop,
        C::Pop_r32 if !wide => Class::Pop,
        C::Pop_rm32 if !wide && i.op0_kind() == OpKind::Register => Class::Pop,
        C::Leaveq if wide => Class::Leave,
        C::Leaved if !wide => Class::Leave,
        _ => return None,
    })
}

fn on_general_or_memory(i: &Instruction) -> bool {
    (0..i.op_count()).all(|n| i.op_kind(n) != OpKind::Register || i.op_register(n).is_gpr())
}

/// Integer instructions that every model has, or this one.
fn integer(cpu: &Cpu, i: &Instruction) -> Option<Class> {
    let yes = match i.mnemonic() {
        M::Mov | M::Movzx | M::Movsx => on_general_or_memory(i),
        M::Movsxd => i.code() != Code::Movsxd_r16_rm16,
        M::Add | M::Or | M::Adc | M::Sbb | M::And | M::Sub | M::Xor | M::Cmp | M::Test => true,
        M::Inc | M::Dec | M::Neg | M::Not | M::Lea => true,
        M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd => true,
        M::Mul | M::Imul | M::Div | M::Idiv | M::Xadd | M::Cmpxchg => true,
        M::Xchg => true,
        M::Cmpxchg8b => cpu.has(Feature::CX8),
        M::Cmpxchg16b => true,
        // In memory a bit offset in a register reaches beyond the operand.
        M::Bt | M::Bts | M::Btr | M::Btc => {
            i.op0_kind() == OpKind::Register || i.op1_kind() == OpKind::Immediate8
        }
        M::Bsf | M::Bsr => true,
        M::Bswap => i.op0_register().size() >= 4,
        M::Cbw | M::Cwde | M::Cdqe | M::Cwd | M::Cdq | M::Cqo => true,
        M::Clc | M::Stc | M::Cmc => true,
        M::Lahf | M::Sahf => true,
        M::Nop | M::Endbr64 | M::Endbr32 => return Some(Class::Nothing),
        // With a REX prefix it may be something else.
        M::Pause => i.len() == 2,
        m => return conditional(cpu, m),
    };
    if !yes || i.op_count() > 0 && (0..i.op_count()).any(|n| i.op_register(n) == Register::RIP) {
        return None;
    }
    // The interpreter refuses LOCK where it does not belong; iced calls such instructions invalid.
    let aligned = i.mnemonic() == M::Cmpxchg16b;
    Some(if aligned { Class::Native { unit: Unit::Integer, aligned, pointers: false } } else { INT })
}

fn conditional(cpu: &Cpu, m: M) -> Option<Class> {
    let set = matches!(
        m,
        M::Seta
            | M::Setae
            | M::Setb
            | M::Setbe
            | M::Sete
            | M::Setg
            | M::Setge
            | M::Setl
            | M::Setle
            | M::Setne
            | M::Setno
            | M::Setnp
            | M::Setns
            | M::Seto
            | M::Setp
            | M::Sets
    );
    let mov = matches!(
        m,
        M::Cmova
            | M::Cmovae
            | M::Cmovb
            | M::Cmovbe
            | M::Cmove
            | M::Cmovg
            | M::Cmovge
            | M::Cmovl
            | M::Cmovle
            | M::Cmovne
            | M::Cmovno
            | M::Cmovnp
            | M::Cmovns
            | M::Cmovo
            | M::Cmovp
            | M::Cmovs
    );
    (set || mov && cpu.has(Feature::CMOV)).then_some(INT)
}
