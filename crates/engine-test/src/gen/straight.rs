//! Straight code: instructions out of the model's forms, with registers and memory operands of our choice.

use super::Gen;
use super::pool::banned;
use crate::layout as l;
use iced_x86::{FlowControl, Instruction, Mnemonic as M, OpAccess, OpKind, Register};
use ringer_difftest::interp::decode_at;
use ringer_difftest::{encode, undefined, values};

/// What kinds of instructions to choose from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// As the program's mixture has it.
    Any,
    /// What leaves flags alone.
    Quiet,
    /// What reads flags.
    Consumer,
    /// Integer instructions of every day.
    Hot,
}

impl Gen<'_> {
    /// A few instructions.
    pub(super) fn straight(&mut self) {
        let n = 1 + self.r.below(8);
        for _ in 0..n {
            self.any(Kind::Any);
        }
    }

    /// One instruction, with those that prepare it.
    pub(super) fn any(&mut self, kind: Kind) {
        for _ in 0..8 {
            if self.attempt(kind) {
                return;
            }
        }
    }

    fn choose_form(&mut self, kind: Kind) -> encode::Bytes {
        let c = self.classes();
        let bits = self.bits;
        let list = match kind {
            Kind::Quiet => &c.quiet,
            Kind::Consumer => &c.consumers,
            Kind::Hot => &c.hot,
            Kind::Any => {
                let mut x = self.r.below(100);
                let lists = [&c.hot, &c.int, &c.bmi, &c.sse, &c.avx, &c.x87];
                let mut chosen = &c.hot;
                for (list, share) in lists.into_iter().zip(self.mix) {
                    if x < share {
                        chosen = list;
                        break;
                    }
                    x -= share;
                }
                if self.r.chance(1) && self.r.chance(30) { &c.absent } else { chosen }
            }
        };
        let list = if list.is_empty() { &c.hot } else { list };
        encode::form(&mut self.r, list, 0, bits)
    }

    fn attempt(&mut self, kind: Kind) -> bool {
        let bytes = self.choose_form(kind);
        let raw = &bytes.b[..bytes.len];
        let mut i = decode_at(raw, self.lin(self.cursor), self.pool.options, self.bits);
        if i.is_invalid() {
            // #UD, if it is one.
            if self.r.chance(20) && raw.len() > 1 {
                self.emit(&bytes.b[..bytes.len]);
                return true;
            }
            return false;
        }
        let m = i.mnemonic();
        if i.flow_control() != FlowControl::Next || i.is_stack_instruction() || banned(m) || self.unwanted(&i)
        {
            return false;
        }
        let written = self.written(&i);
        if written & self.locked != 0 || written & self.pointers != 0 && !self.r.chance(6) {
            return false;
        }
        let memory = (0..i.op_count()).any(|o| i.op_kind(o) == OpKind::Memory);
        if !self.prepare(&i) {
            return false;
        }
        let as_it_came = !memory && self.r.chance(50);
        if as_it_came {
            self.emit(&bytes.b[..i.len()]);
        } else {
            if memory && m != M::Xlatb && m != M::Lea {
                let size = operand_size(&i);
                let mut t = self.target(size);
                if undefined::is_xsave(m) && self.r.chance(90) || size > 128 {
                    t = l::DATA + self.r.pick(&[1, 8]) * l::PAGE + self.r.below(60) * 64;
                }
                if !self.place_operand(&mut i, t) {
                    return false;
                }
            } else if m == M::Lea && !self.lea(&mut i) {
                return false;
            }
            if !self.emit_insn(&i) {
                return false;
            }
        }
        for n in 0..16 {
            if written >> n & 1 != 0 {
                self.known[n] = None;
            }
        }
        true
    }

    fn unwanted(&mut self, i: &Instruction) -> bool {
        let special = |r: Register| r.is_cr() || r.is_dr() || r.is_segment_register() || r.is_tr();
        let moves = (0..i.op_count()).any(|o| i.op_kind(o) == OpKind::Register && special(i.op_register(o)));
        if moves && i.mnemonic() == M::Mov {
            let store = i.op1_kind() == OpKind::Register && i.op1_register().is_segment_register();
            return !store;
        }
        match i.mnemonic() {
            M::Fxrstor
            | M::Fxrstor64
            | M::Xrstor
            | M::Xrstor64
            | M::Xrstors
            | M::Xrstors64
            | M::Frstor
            | M::Fldenv
            | M::Ldmxcsr
            | M::Vldmxcsr
            | M::Fldcw => !self.r.chance(20),
            M::Vzeroall | M::Fninit | M::Emms => !self.r.chance(30),
            // By one more than the operand's bits, or a multiple of that: what OF is then depends on more than the operands.
            M::Rcl | M::Rcr if i.op0_register().size() <= 2 || i.memory_size().size() <= 2 => {
                match i.op1_kind() {
                    OpKind::Immediate8 => matches!(i.immediate8() & 31, 9 | 17 | 18 | 27),
                    _ => i.op0_kind() == OpKind::Memory,
                }
            }
            // Mostly #DE.
            M::Div | M::Idiv => !self.r.chance(25),
            _ => false,
        }
    }

    /// Bits of the general registers that `i` writes.
    fn written(&mut self, i: &Instruction) -> u32 {
        let mut bits = 0;
        for u in self.info.info(i).used_registers() {
            let writes = matches!(
                u.access(),
                OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
            );
            if writes && u.register().is_gpr() {
                bits |= 1 << u.register().full_register().number();
            }
        }
        bits
    }

    /// Sets registers that decide where an instruction reaches without a ModRM operand.
    fn prepare(&mut self, i: &Instruction) -> bool {
        let kinds = [i.op0_kind(), i.op1_kind(), i.op2_kind()];
        let has = |k: &[OpKind]| kinds.iter().any(|x| k.contains(x));
        let source = has(&[OpKind::MemorySegRSI, OpKind::MemorySegESI, OpKind::MemorySegSI]);
        let dest = has(&[
            OpKind::MemoryESRDI,
            OpKind::MemoryESEDI,
            OpKind::MemoryESDI,
            OpKind::MemorySegRDI,
            OpKind::MemorySegEDI,
            OpKind::MemorySegDI,
        ]);
        let size = i.memory_size().size().max(1) as u64;
        let rep = i.has_rep_prefix() || i.has_repne_prefix();
        if source || dest {
            if self.locked & 0b1100_0010 != 0 {
                return false;
            }
            if source {
                let t = self.target(size);
                self.set(6, t & self.mask());
            }
            if dest {
                let t = self.target(size);
                self.set(7, t & self.mask());
            }
            if rep {
                let n = if self.r.chance(80) { self.r.below(12) } else { self.r.below(200) };
                self.set(1, n);
            }
            return true;
        }
        match i.mnemonic() {
            M::Xlatb => {
                if self.locked & 8 != 0 {
                    return false;
                }
                let t = self.target(256);
                self.set(3, t & self.mask());
            }
            M::Bt | M::Bts | M::Btr | M::Btc
                if i.op0_kind() == OpKind::Memory
                    && i.op1_kind() == OpKind::Register
                    && self.r.chance(85) =>
            {
                let n = i.op1_register().full_register().number() as u8;
                if self.locked >> n & 1 != 0 {
                    return false;
                }
                let v = self.r.below(1 << 10);
                self.set(n, v);
            }
            M::Div | M::Idiv if self.r.chance(70) => {
                if self.locked & 4 != 0 {
                    return false;
                }
                self.set(2, 0);
            }
            _ => {}
        }
        true
    }

    pub(super) fn mask(&self) -> u64 {
        if self.bits == 64 { u64::MAX } else { 0xffff_ffff }
    }

    /// Address arithmetic over whatever registers hold.
    fn lea(&mut self, i: &mut Instruction) -> bool {
        if self.r.chance(50) {
            let t = self.target(8);
            return self.place_operand(i, t);
        }
        if i.memory_base() == Register::RIP {
            i.set_memory_displacement64(self.lin(self.cursor));
        }
        true
    }

    /// A value of interest.
    pub(super) fn value(&mut self) -> u64 {
        values::int(&mut self.r) & self.mask()
    }
}

/// Bytes that the memory operand reaches over.
fn operand_size(i: &Instruction) -> u64 {
    match i.mnemonic() {
        M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64 => 512,
        m if undefined::is_xsave(m) => 832,
        _ => i.memory_size().size().max(1) as u64,
    }
}
