//! Guest instructions that run as themselves: their registers put in the host's, their memory operand checked and redirected.

use super::asm::reg::{R10, R11};
use super::asm::{at, cc, ctx};
use super::ctx::{X87_CALM, off, spilled};
use super::emit::{ARITH, Cold, Emit, Flags, home, needs};
use super::groups::{self, Group, Insn, Member, number};
use super::rewrite::retarget;
use crate::host::Unit;
use iced_x86::{Code, Instruction, Mnemonic as M, OpAccess, OpKind, Register, RflagsBits};

fn is_high_byte(r: Register) -> bool {
    matches!(r, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// Host register `n`, as wide as `like`.
fn sized(n: u8, like: Register) -> Register {
    let base = match like.size() {
        1 => {
            return [
                Register::AL,
                Register::CL,
                Register::DL,
                Register::BL,
                Register::SPL,
                Register::BPL,
                Register::SIL,
                Register::DIL,
                Register::R8L,
                Register::R9L,
                Register::R10L,
                Register::R11L,
                Register::R12L,
                Register::R13L,
                Register::R14L,
                Register::R15L,
            ][usize::from(n)];
        }
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    };
    base + u32::from(n)
}

impl Emit<'_> {
    pub(super) fn lea(&mut self, i: &Instruction) -> Option<()> {
        let r = i.op0_register();
        let same = r.size() as u32 == crate::operand::address_size(i);
        if r.size() < 4 {
            return None;
        }
        let before = self.a.pos();
        let n = number(r);
        let to = home(n).unwrap_or(R10);
        if self.address(i, to).is_none() {
            self.a.code.truncate(before);
            return None;
        }
        if r.size() == 4 && !same {
            self.a.mov32(to, to);
        }
        if let Some(s) = spilled(n) {
            self.a.store(ctx(s), R10);
        }
        Some(())
    }

    pub(super) fn native(&mut self, n: &Insn, unit: Unit, aligned: bool, pointers: bool) -> Option<()> {
        let i = &n.i;
        let access = n.access;
        let memory = (0..i.op_count()).find(|n| i.op_kind(*n) == OpKind::Memory);
        let mut out = *i;
        let mut regs = Borrowed::default();
        let (mut high, mut extended) = (false, memory.is_some());
        let mut same = self.wide();
        let most = if memory.is_some() { 1 } else { 2 };
        for n in 0..i.op_count() {
            if i.op_kind(n) != OpKind::Register || !i.op_register(n).is_gpr() {
                continue;
            }
            let r = i.op_register(n);
            if is_high_byte(r) {
                high = true;
                continue;
            }
            let g = number(r);
            let host = match home(g) {
                Some(h) => h,
                None => {
                    let written = groups::writes(access[n as usize]);
                    regs.take(g, written, most)?
                }
            };
            extended |= host >= 8 || r.size() == 1 && host >= 4;
            if host != g {
                same = false;
                out.set_op_register(n, sized(host, r));
            }
        }
        if high && extended {
            return self.store_high(i, n.member);
        }
        out.set_code(encodable(i.code()));
        self.emit_native(
            i,
            &mut out,
            &regs,
            Plan { memory, access, unit, aligned, pointers, member: n.member, same },
        )
    }

    fn emit_native(
        &mut self,
        i: &Instruction,
        out: &mut Instruction,
        regs: &Borrowed,
        p: Plan,
    ) -> Option<()> {
        let before = self.a.pos();
        let flags_before = self.flags;
        let ops_before = self.store.ops.len();
        let needs = needs(i);
        let changes = i.rflags_modified() & ARITH != 0;
        let divides = matches!(i.mnemonic(), M::Div | M::Idiv);
        let traps = divides || p.unit != Unit::Integer;
        let member = self.live_member(p.member);
        let mut op = None;
        if let Some(Member { group: Some(g), .. }) = member {
            op = Some(self.open_group(i, g));
        } else if p.memory.is_some() && (member.is_none() || p.aligned) || traps || p.pointers {
            op = Some(self.new_op(i));
        }
        if traps {
            // A fault of the host's takes the flags from the context.
            match op {
                Some(op) => self.settle(op),
                None => self.spill(),
            }
        }
        let ok = (|| {
            let mut offset = 0;
            if let Some(m) = p.memory {
                let size = i.memory_size().size() as u64;
                if !(1..=64).contains(&size) {
                    return None;
                }
                let disp = match member {
                    Some(m) => {
                        self.member_operand(i, op, m, size, &p);
                        m.offset
                    }
                    None => {
                        self.operand(i, op, size, groups::writes(p.access[m as usize]), &p)?;
                        0
                    }
                };
                offset = disp;
                out.set_memory_base(Register::R10);
                out.set_memory_index(Register::None);
                out.set_memory_index_scale(1);
                out.set_memory_displacement64(disp as i64 as u64);
                out.set_memory_displ_size(match i8::try_from(disp) {
                    Ok(0) => 0,
                    Ok(_) => 1,
                    Err(_) => 8,
                });
                out.set_segment_prefix(Register::None);
            }
            if self.flags == Flags::Dead && needs != 0 {
                self.fetch_flags();
            }
            if self.flags == Flags::Context && needs != 0 {
                let whole = i.rflags_modified() & ARITH != 0
                    && needs == RflagsBits::CF
                    && ARITH & !(i.rflags_written() | i.rflags_cleared() | i.rflags_set()) & !RflagsBits::CF
                        == 0;
                if whole {
                    self.a.bt_mem(ctx(off::FL), 8);
                } else {
                    self.fetch_flags();
                }
            }
            for (g, s, _) in regs.iter() {
                self.a.load(s, ctx(spilled(g)?));
            }
            if !p.same || self.as_it_is(i, p.memory.is_some(), offset).is_none() {
                self.encode(out)?;
            }
            if p.pointers {
                // Not before it: it may find an exception pending, and has not run then.
                self.note_x87(op?, p.memory.is_some());
            } else if i.mnemonic() == M::Fldcw {
                // It has found none pending, but may have unmasked one.
                self.a.store_imm8(ctx(off::X87_OP + 3), (X87_CALM >> 24) as u8);
            }
            for (g, s, written) in regs.iter() {
                if written {
                    self.a.store(ctx(spilled(g)?), s);
                }
            }
            Some(())
        })();
        if ok.is_none() {
            // The interpreter takes it. Sites and ops that were made for it stay unused; cold code that refers to this must go.
            self.a.code.truncate(before);
            self.store.ops.truncate(ops_before);
            if self.group_op.is_some_and(|o| o as usize >= ops_before) {
                self.group_op = None;
            }
            self.flags = flags_before;
            while self.cold.last().is_some_and(|c| c.position().is_some_and(|p| p >= before)) {
                self.cold.pop();
            }
            return None;
        }
        if divides {
            // What a division does to the flags is nothing, as the interpreter has it.
            self.flags = Flags::Context;
        } else if changes {
            self.flags = Flags::Host;
            self.producer = Some(self.at);
        }
        if let Some(op) = op {
            self.close_member(op);
        }
        Some(())
    }

    /// The host address of the operand to R10.
    fn operand(&mut self, i: &Instruction, op: Option<u32>, size: u64, write: bool, p: &Plan) -> Option<()> {
        let op = op?;
        self.settle(op);
        self.address(i, R10)?;
        if p.pointers {
            self.a.store(ctx(off::X87_NEXT), R10);
        }
        self.add_segment(i)?;
        if p.aligned {
            // First: what is not aligned must not make the page dirty.
            self.a.test_low_byte(R10, (size - 1) as u8);
            let from = self.a.jcc(cc::NE);
            self.cold.push(Cold::Interp { from, op });
        }
        let stack = i.memory_base().full_register() == Register::RSP && i.memory_index() == Register::None;
        self.check_near(op, i, size, write, stack);
        Some(())
    }

    /// MOV of AH, CH, DH or BH to memory: with an extended register for its address there is no such instruction.
    fn store_high(&mut self, i: &Instruction, member: Option<Member>) -> Option<()> {
        if i.code() != Code::Mov_rm8_r8 || i.op0_kind() != OpKind::Memory || !self.store.bmi2 {
            return None;
        }
        let (before, ops_before, flags_before) = (self.a.pos(), self.store.ops.len(), self.flags);
        let (op, offset) = match self.live_member(member) {
            Some(Member { group: Some(g), offset, .. }) => (self.open_group(i, g), offset),
            Some(m) => (self.new_op(i), m.offset),
            None => {
                let op = self.new_op(i);
                self.settle(op);
                if self.address(i, R10).and_then(|()| self.add_segment(i)).is_none() {
                    self.a.code.truncate(before);
                    self.store.ops.truncate(ops_before);
                    self.flags = flags_before;
                    return None;
                }
                self.check(op, i, 1, true);
                (op, 0)
            }
        };
        self.a.rorx32(R11, number(i.op1_register()), 8);
        self.a.store8(at(R10, offset), R11);
        self.close_member(op);
        Some(())
    }

    /// What is left to be done for an operand whose group's host address is in R10.
    fn member_operand(&mut self, i: &Instruction, op: Option<u32>, m: Member, size: u64, p: &Plan) {
        if p.pointers {
            // Not by `address`, which may load a base register into R10.
            let b = self.in_register(number(i.memory_base()), R11);
            self.a.lea(R11, at(b, i.memory_displacement64() as i32));
            self.a.store(ctx(off::X87_NEXT), R11);
        }
        if p.aligned
            && let Some(op) = op
        {
            self.settle(op);
            self.a.lea(R11, at(R10, m.offset));
            self.a.test_low_byte(R11, (size - 1) as u8);
            let from = self.a.jcc(cc::NE);
            self.cold.push(Cold::Interp { from, op });
            self.clobber();
        }
    }

    /// A member of a group whose check has come, or comes now.
    pub(super) fn live_member(&self, m: Option<Member>) -> Option<Member> {
        m.filter(|m| m.group.is_some() || self.group_op.is_some())
    }

    /// The check of a group of which `i` is the first.
    pub(super) fn open_group(&mut self, i: &Instruction, g: Group) -> u32 {
        let op = self.new_op(i);
        self.store.ops[op as usize].insns = g.insns;
        self.settle(op);
        let b = self.in_register(g.base, R10);
        self.a.lea(R10, at(b, g.lowest));
        let stack = g.base == groups::RSP;
        self.check_early(op, i, u64::from(g.size), g.write, stack, g.early);
        self.group_op = Some(op);
        op
    }

    /// The check of a stack access of `i` at `disp` from RSP, if its group has not had it; its op, and where it is from R10.
    pub(super) fn stack_slot(
        &mut self,
        i: &Instruction,
        member: Option<Member>,
        disp: i32,
        write: bool,
    ) -> (u32, i32) {
        match (self.live_member(member), self.group_op) {
            (Some(Member { group: Some(g), offset, .. }), _) => (self.open_group(i, g), offset),
            (Some(m), Some(_)) => (self.new_op(i), m.offset),
            _ => {
                let op = self.new_op(i);
                self.settle(op);
                self.sp_to_r10(disp);
                self.check_near(op, i, self.slot_size() as u64, write, true);
                (op, 0)
            }
        }
    }

    /// The op of `i` ends here, unless it is that of a group, which goes on.
    pub(super) fn close_member(&mut self, op: u32) {
        if self.group_op != Some(op) {
            self.close_op(op);
        }
    }

    /// The bytes of a guest instruction, with its memory operand, if it has one, at R10 and `offset`.
    fn as_it_is(&mut self, i: &Instruction, memory: bool, offset: i32) -> Option<()> {
        let start = usize::try_from(i.ip() as i64 - self.start).ok()?;
        let bytes = self.bytes.get(start..start + i.len())?;
        if memory {
            return retarget(bytes, offset, &mut self.a.code);
        }
        self.a.raw(bytes);
        Some(())
    }

    /// Encodes a guest instruction as it now is.
    pub(super) fn encode(&mut self, i: &Instruction) -> Option<()> {
        let (here, before) = (self.a.here(), self.a.pos());
        let e = &mut self.store.encoder;
        e.set_buffer(std::mem::take(&mut self.a.code));
        let ok = e.encode(i, here).is_ok();
        self.a.code = e.take_buffer();
        if !ok {
            self.a.code.truncate(before);
        }
        ok.then_some(())
    }

    /// Notes the x87 instruction that has run.
    pub(super) fn note_x87(&mut self, op: u32, memory: bool) {
        if !self.x87_page_noted {
            self.x87_page_noted = true;
            // The scratch register of an operand in the context is not in use: x87 instructions have none.
            self.a.load(R11, ctx(off::VPAGE));
            self.a.store(ctx(off::X87_PAGE), R11);
        }
        self.a.store_imm32(ctx(off::X87_OP), op as i32 + 1);
        if memory {
            self.a.load(R11, ctx(off::X87_NEXT));
            self.a.store(ctx(off::X87_OPERAND), R11);
        }
    }
}

/// Guest registers that stand in scratch registers while an instruction runs: register, scratch, whether it is written.
#[derive(Clone, Copy, Default)]
struct Borrowed {
    all: [(u8, u8, bool); 2],
    len: usize,
}

impl Borrowed {
    /// A scratch register for guest register `g`, if there is one: of `most` scratch registers in all.
    pub(super) fn take(&mut self, g: u8, written: bool, most: usize) -> Option<u8> {
        if let Some(known) = self.all[..self.len].iter_mut().find(|k| k.0 == g) {
            known.2 |= written;
            return Some(known.1);
        }
        if self.len >= most {
            return None;
        }
        let s = [R11, R10][self.len];
        self.all[self.len] = (g, s, written);
        self.len += 1;
        Some(s)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u8, u8, bool)> + '_ {
        self.all[..self.len].iter().copied()
    }
}

/// What [`Emit::emit_native`] is to do.
struct Plan {
    memory: Option<u32>,
    access: [OpAccess; 5],
    unit: Unit,
    aligned: bool,
    pointers: bool,
    member: Option<Member>,
    /// All its registers are in the host's of the same numbers.
    same: bool,
}

/// The same instruction in a form that can have any register or address.
fn encodable(c: Code) -> Code {
    match c {
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Xchg_r16_AX => Code::Xchg_rm16_r16,
        Code::Xchg_r32_EAX => Code::Xchg_rm32_r32,
        Code::Xchg_r64_RAX => Code::Xchg_rm64_r64,
        c => c,
    }
}
