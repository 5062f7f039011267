//! Instructions that name more memory than their operand says: repeated MOVS and STOS, and bit tests with an offset in a register.

use super::asm::reg::{R10, R11, RCX, RDI, RSI};
use super::asm::{at, cc, ctx};
use super::ctx::off;
use super::emit::{Cold, Emit, Flags};
use super::groups::number;
use iced_x86::{Code, Instruction, Mnemonic as M, OpKind, Register};
use ringer_arch::regs::rflags;

/// Bytes of an element of a repeated MOVS or STOS that has code of its own: one with 64-bit addresses and no segment that has a base.
#[must_use]
pub fn repeated(i: &Instruction) -> Option<u8> {
    let size = match i.code() {
        Code::Movsb_m8_m8 | Code::Stosb_m8_AL => 1,
        Code::Movsw_m16_m16 | Code::Stosw_m16_AX => 2,
        Code::Movsd_m32_m32 | Code::Stosd_m32_EAX => 4,
        Code::Movsq_m64_m64 | Code::Stosq_m64_RAX => 8,
        _ => return None,
    };
    let plain = i.op0_kind() == OpKind::MemoryESRDI
        && matches!(i.op1_kind(), OpKind::MemorySegRSI | OpKind::Register)
        && !matches!(i.segment_prefix(), Register::FS | Register::GS)
        && (i.has_rep_prefix() || i.has_repne_prefix());
    plain.then_some(size)
}

impl Emit<'_> {
    /// REP MOVS or STOS of `size` bytes each, upwards and within a page on either side; the interpreter executes all others.
    pub(super) fn repeat(&mut self, i: &Instruction, size: u8) {
        self.spill();
        let op = self.new_op(i);
        let moves = i.op1_kind() != OpKind::Register;
        // The count first: with none nothing may be accessed, and what comes then cannot overflow.
        self.a.lea(R11, at(RCX, -1));
        self.a.cmp_imm(R11, 4095);
        self.leave_if(cc::A, op);
        self.a.load(R10, ctx(off::SYSFLAGS));
        self.a.test_mem(at(R10, 0), rflags::DF as u32);
        self.leave_if(cc::NE, op);
        self.clobber();
        if moves {
            self.run_in_page(i, op, RSI, size, false);
            self.a.store(ctx(off::TMP + 16), R10);
        }
        self.run_in_page(i, op, RDI, size, true);
        let a = &mut self.a;
        a.mov(R11, RDI);
        a.mov(RDI, R10);
        if moves {
            a.push(RSI);
            a.load(RSI, ctx(8 + off::TMP + 16));
        }
        let opcode = if moves { 0xa4 } else { 0xaa } | u8::from(size > 1);
        match size {
            2 => a.raw(&[0x66, 0xf3, opcode]),
            8 => a.raw(&[0xf3, 0x48, opcode]),
            _ => a.raw(&[0xf3, opcode]),
        }
        // The guest's pointers move as far as the host's did.
        a.sub_reg(RDI, R10);
        a.lea(RDI, at(RDI, 0).index(R11, 0));
        if moves {
            a.sub(RSI, ctx(8 + off::TMP + 16));
            a.pop(R11);
            a.lea(RSI, at(RSI, 0).index(R11, 0));
        }
        self.close_op(op);
    }

    fn leave_if(&mut self, condition: u8, op: u32) {
        let from = self.a.jcc(condition);
        self.cold.push(Cold::Interp { from, op });
    }

    /// R10 to the host's address for the elements that RCX counts at `pointer`, if all of them lie in its page.
    fn run_in_page(&mut self, i: &Instruction, op: u32, pointer: u8, size: u8, write: bool) {
        self.a.mov32(R11, pointer);
        self.a.and_imm32(R11, 4095);
        self.a.lea(R11, at(R11, 0).index(RCX, size.trailing_zeros() as u8));
        self.a.cmp_imm(R11, 4096);
        self.leave_if(cc::A, op);
        self.a.mov(R10, pointer);
        self.check(op, i, 1, write);
    }

    /// BT and its kin on memory, with the bit's offset in a register: it reaches beyond the operand. None if that cannot be said.
    pub(super) fn bit_test(&mut self, i: &Instruction) -> Option<()> {
        let (size, log2) = match i.op1_register().size() {
            8 => (8u64, 6),
            4 => (4, 5),
            _ => return None,
        };
        if !self.wide() || crate::operand::address_size(i) != 8 {
            return None;
        }
        let g = number(i.op1_register());
        let (before, ops_before) = (self.a.pos(), self.store.ops.len());
        let flags_before = self.flags;
        self.spill();
        let op = self.new_op(i);
        let done = self.address(i, R10).and_then(|()| self.add_segment(i));
        if done.is_none() {
            self.a.code.truncate(before);
            self.store.ops.truncate(ops_before);
            self.flags = flags_before;
            return None;
        }
        self.words(g, size, log2);
        self.a.add_reg(R10, R11);
        self.clobber();
        self.check(op, i, size, i.mnemonic() != M::Bt);
        // The host adds the offset once more.
        self.words(g, size, log2);
        self.a.sub_reg(R10, R11);
        self.fetch_flags();
        let mut out = *i;
        out.set_memory_base(Register::R10);
        out.set_memory_index(Register::None);
        out.set_memory_index_scale(1);
        out.set_memory_displacement64(0);
        out.set_memory_displ_size(0);
        out.set_segment_prefix(Register::None);
        let h = self.in_register(g, R11);
        let first = if size == 8 { Register::RAX } else { Register::EAX };
        out.set_op1_register(first + u32::from(h));
        // A general register and memory off R10: there is nothing that the encoder could refuse.
        self.encode(&out)?;
        self.flags = Flags::Host;
        self.producer = None;
        self.close_op(op);
        Some(())
    }

    /// R11 to the bytes from operand to operand that the bit offset in guest register `g` reaches.
    fn words(&mut self, g: u8, size: u64, log2: u8) {
        let h = self.in_register(g, R11);
        if size == 8 {
            if h != R11 {
                self.a.mov(R11, h);
            }
        } else {
            self.a.movsxd(R11, h);
        }
        self.a.sar(R11, log2);
        self.a.shl(R11, size.trailing_zeros() as u8);
    }
}
