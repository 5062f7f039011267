//! System instructions that every kernel executes all the time, without the way through the interpreter.

use super::asm::reg::{R9, R10, R11};
use super::asm::{at, cc, ctx};
use super::ctx::{off, spilled};
use super::emit::{Cold, Emit, home};
use super::groups::number;
use crate::cpu::slot;
use iced_x86::{Instruction, Register};
use ringer_arch::regs::rflags;
use ringer_arch::seg::{Segment, sreg};
use std::mem::offset_of;

const IF: u32 = rflags::IF as u32;

impl Emit<'_> {
    /// SWAPGS (Intel SDM vol. 2B): the base that addresses go by is kept in four places.
    pub(super) fn swapgs(&mut self) {
        let a = &mut self.a;
        a.load(R11, ctx(off::GS));
        a.store(ctx(off::TMP + 16), R11);
        a.load(R10, ctx(off::KERNEL_GS_BASE));
        a.load(R11, at(R10, 0));
        a.store(ctx(off::GS), R11);
        a.load(R10, ctx(off::GS_BASE));
        a.store(at(R10, 0), R11);
        a.load(R10, ctx(off::REGS));
        a.store(at(R10, 8 * (i32::from(slot::SEG_BASE) + sreg::GS as i32)), R11);
        a.load(R10, ctx(off::KERNEL_GS_BASE));
        a.load(R11, ctx(off::TMP + 16));
        a.store(at(R10, 0), R11);
    }

    /// MOV of a selector to a register.
    pub(super) fn selector(&mut self, i: &Instruction) {
        let s = i.op1_register() as i32 - Register::ES as i32;
        let field = s * size_of::<Segment>() as i32 + offset_of!(Segment, selector) as i32;
        let g = number(i.op0_register());
        let to = home(g).unwrap_or(R11);
        self.a.load(R10, ctx(off::SEGMENTS));
        self.a.load16(to, at(R10, field));
        if let Some(s) = spilled(g) {
            self.a.store(ctx(s), R11);
        }
    }

    /// MOV of CR2 to a register.
    pub(super) fn cr2(&mut self, i: &Instruction) {
        let g = number(i.op0_register());
        let to = home(g).unwrap_or(R11);
        self.a.load(R10, ctx(off::CR2));
        self.a.load(to, at(R10, 0));
        if let Some(s) = spilled(g) {
            self.a.store(ctx(s), R11);
        }
    }

    /// CLD or STD.
    pub(super) fn direction(&mut self, down: bool) {
        self.spill();
        self.a.load(R10, ctx(off::SYSFLAGS));
        if down {
            self.a.or_mem(at(R10, 0), rflags::DF as u32);
        } else {
            self.a.and_mem(at(R10, 0), !(rflags::DF as u32));
        }
        self.clobber();
    }

    /// STAC where user pages are accessible already: because AC is set, or because SMAP is off.
    pub(super) fn stac(&mut self) {
        self.spill();
        self.a.load(R10, ctx(off::SYSFLAGS));
        self.a.or_mem(at(R10, 0), rflags::AC as u32);
        self.clobber();
    }

    pub(super) fn cli(&mut self) {
        self.spill();
        self.a.load(R10, ctx(off::SYSFLAGS));
        self.a.and_mem(at(R10, 0), !IF);
        self.clobber();
    }

    /// STI. With an interrupt waiting, what follows is the interpreter's: the shadow of one instruction, then the interrupt. With none,
    /// one that comes within the shadow cannot be told from one that comes after it.
    pub(super) fn sti(&mut self, i: &Instruction) {
        self.spill();
        let op = self.new_op(i);
        self.a.load(R10, ctx(off::SYSFLAGS));
        self.a.test_mem(at(R10, 0), IF);
        let is_set = self.a.jcc(cc::NE);
        self.a.cmp_mem_imm8(ctx(off::IRQ), 0);
        let from = self.a.jcc(cc::NE);
        self.cold.push(Cold::Interp { from, op });
        self.a.or_mem(at(R10, 0), IF);
        self.a.bind(is_set);
        self.clobber();
        self.close_op(op);
    }

    /// PUSHFQ. RF and VM are clear in what is pushed, as they are in what runs here.
    pub(super) fn pushfq(&mut self, i: &Instruction) {
        self.spill();
        let op = self.new_op(i);
        let a = &mut self.a;
        a.load(R10, ctx(off::SYSFLAGS));
        a.load(R11, at(R10, 0));
        a.load8(R10, ctx(off::FL + 1));
        a.and_imm32(R10, (rflags::ARITH & 0xff) as i32);
        a.or_reg(R11, R10);
        a.or_imm(R11, rflags::FIXED as i32);
        a.test_byte(ctx(off::FL), 1);
        let no = a.jcc(cc::E);
        a.or_imm(R11, rflags::OF as i32);
        a.bind(no);
        a.store(ctx(off::TMP + 16), R11);
        a.lea(R10, at(R9, -8));
        self.clobber();
        self.check_near(op, i, 8, true, true);
        self.a.load(R11, ctx(off::TMP + 16));
        self.a.store(at(R10, 0), R11);
        self.a.lea(R9, at(R9, -8));
        self.close_op(op);
    }
}
