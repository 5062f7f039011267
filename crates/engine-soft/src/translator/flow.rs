//! How a block is left: jumps, calls, returns, and what stands behind its straight path.

use super::asm::reg::{R10, R11};
use super::asm::{Patch, at, cc, ctx, rip};
use super::ctx::off;
use super::emit::{Cold, Emit, Flags};
use super::groups::{Member, number};
use super::key;
use super::store::{Link, NONE, Told, push};
use super::stubs::{Unknown, jump_by_cache};
use iced_x86::{Code, ConditionCode, Instruction, OpKind};

impl Emit<'_> {
    /// Where a branch leads, from the start of the page.
    pub(super) fn target(&self, i: &Instruction) -> i64 {
        if self.wide() { i.near_branch64() as i64 } else { i64::from(i.near_branch32() as i32) }
    }

    pub(super) fn new_link(&mut self, at: Patch, target: i64, gen_site: u32) -> u32 {
        let (block, at) = (self.block, (self.a.address(at.0) - self.store.area.exec()) as u32);
        // Within reach, as all that come here.
        let target = target as i32;
        push(&mut self.store.links, Link { block, at, unlinked: 0, target, gen_site, to: NONE, next: NONE });
        let link = self.store.links.len() as u32 - 1;
        self.store.unbridge(link);
        link
    }

    pub(super) fn tally(&mut self, executed: u32) {
        if self.count {
            self.a.add_mem_imm(ctx(off::INSTRET), executed as i32, true);
        }
    }

    /// Looks at the stop word; the jump that leaves. The flags are lost.
    pub(super) fn poll(&mut self) -> Patch {
        self.a.load(R11, ctx(off::STOP));
        self.a.cmp_mem_imm8(at(R11, 0), 0);
        self.a.jcc(cc::NE)
    }

    /// Goes on at `target` of this page, or of another. The flags must be in the context.
    pub(super) fn goto(&mut self, target: i64, call: bool) {
        self.spill();
        self.tally(self.executed + u32::from(call));
        let mut from = [None; 3];
        let same_page = (0..4096).contains(&target);
        if target <= self.ip || call {
            from[0] = Some(self.poll());
        }
        let round = same_page && !call && target <= self.ip && !self.hot;
        let counted = round.then(|| self.count_round());
        let gen_site = if same_page { NONE } else { self.store.new_gen_site(&self.cpu.mmu.sites) };
        if !same_page {
            let p = self.store.area.site(gen_site);
            self.a.load(R11, rip(p));
            self.a.cmp(R11, ctx(off::GEN));
            from[1] = Some(self.a.jcc(cc::NE));
            self.a.add_mem_imm(ctx(off::VPAGE), (target & !0xfff) as i32, self.key & key::BITS64 != 0);
        }
        let p = self.a.jmp();
        let link = self.new_link(p, target, gen_site);
        if same_page {
            from[2] = Some(p);
        } else {
            // It is not taken before it leads somewhere.
            self.a.bind(p);
        }
        if let Some(from) = counted {
            self.cold.push(Cold::Hot { from, link });
        }
        self.cold.push(Cold::Link { from, link });
        self.flags = Flags::Context;
    }

    /// Counts a way back within the page, or an indirect jump; the jump that leaves when it was gone often. The flags are lost.
    fn count_round(&mut self) -> Patch {
        let sites = &self.cpu.mmu.sites;
        let site = self.store.new_counter(sites);
        self.a.add_mem_imm(rip(self.store.area.site(site)), -1, false);
        self.a.jcc(cc::S)
    }

    pub(super) fn jump(&mut self, i: &Instruction) -> bool {
        let target = self.target(i);
        if !within_reach(target) {
            self.interp_last(i);
            return false;
        }
        let code = match i.condition_code() {
            ConditionCode::None => {
                self.executed += 1;
                self.goto(target, false);
                self.executed -= 1;
                return false;
            }
            c => c as u8 - ConditionCode::o as u8,
        };
        if self.flags == Flags::Dead {
            self.fetch_flags();
        }
        self.spill();
        let bit = match code >> 1 {
            0 => Some((0, 1)),
            1 => Some((1, 0x01)),
            2 => Some((1, 0x40)),
            3 => Some((1, 0x41)),
            4 => Some((1, 0x80)),
            5 => Some((1, 0x04)),
            _ => None,
        };
        let mut cond = code;
        match bit {
            Some((byte, mask)) if self.flags == Flags::Context => {
                self.a.test_byte(ctx(off::FL + byte), mask);
                cond = if code & 1 == 0 { cc::NE } else { cc::E };
            }
            _ => self.fetch_flags(),
        }
        let backward = target <= i.ip() as i64 && target >= 0;
        if backward && !self.count {
            // The way back is the usual one.
            let over = self.a.jcc(cond ^ 1);
            let flags = self.flags;
            self.executed += 1;
            self.goto(target, false);
            self.executed -= 1;
            self.a.bind(over);
            self.flags = flags;
        } else {
            let from = self.a.jcc(cond);
            if (0..4096).contains(&target) && !backward && !self.count {
                let link = self.new_link(from, target, NONE);
                self.cold.push(Cold::Link { from: [Some(from), None, None], link });
            } else {
                self.cold.push(Cold::Goto { from, target, ip: self.ip, executed: self.executed + 1 });
            }
        }
        true
    }

    pub(super) fn count_jump(&mut self, i: &Instruction) {
        self.spill();
        // Neither touches the flags, so both may stand wherever they are.
        let short = match i.code() {
            Code::Jrcxz_rel8_64 => [0xe3, 2],
            _ => [0xe2, 2],
        };
        self.a.raw(&short);
        self.a.raw(&[0xeb, 0]);
        let hole = self.a.pos();
        self.executed += 1;
        self.goto(self.target(i), false);
        let d = self.a.pos() - hole;
        // A goto's straight part is far below 128 bytes.
        self.a.code[hole - 1] = d as u8;
        self.goto(i.next_ip() as i64, false);
        self.executed -= 1;
    }

    pub(super) fn indirect(&mut self, i: &Instruction, call: bool) {
        let size = self.slot_size();
        let op = self.new_op(i);
        self.spill();
        if !call && !self.hot && self.store.may_be_hot() {
            let from = self.count_round();
            self.clobber();
            self.cold.push(Cold::Often { from, op });
        }
        if i.op0_kind() == OpKind::Memory {
            let before = self.a.pos();
            if self.address(i, R10).is_none() || self.add_segment(i).is_none() {
                self.a.code.truncate(before);
                return self.interp_last(i);
            }
            self.check(op, i, size as u64, false);
            self.load_slot(R11, 0);
        } else {
            let r = number(i.op0_register());
            let h = self.in_register(r, R11);
            if self.wide() {
                if h != R11 {
                    self.a.mov(R11, h);
                }
            } else {
                self.a.mov32(R11, h);
            }
        }
        if call {
            if self.wide() {
                // A target that is not canonical faults before anything is pushed, or before the stack pointer moves. With 57 bits of address this sends too many
                // to the interpreter, which does no harm.
                self.a.mov(R10, R11);
                self.a.shr(R10, 47);
                self.a.lea(R10, at(R10, 1));
                self.a.and_imm32(R10, 0x1_fffe);
                let from = self.a.jcc(cc::NE);
                self.cold.push(Cold::Interp { from, op });
            }
            self.a.store(ctx(off::TMP + 16), R11);
            self.sp_to_r10(-size);
            self.check_near(op, i, size as u64, true, true);
            self.a.load(R11, ctx(off::VPAGE));
            self.a.lea(R11, at(R11, i.next_ip() as i32));
            self.store_slot(0, R11);
            self.move_sp(-size);
            self.a.load(R11, ctx(off::TMP + 16));
            self.store.ops[op as usize].undo = size as i8;
        }
        self.go_to_r11(op);
    }

    pub(super) fn ret(&mut self, i: &Instruction, member: Option<Member>) {
        let size = self.slot_size();
        let extra = if i.op_count() > 0 { i.immediate16() } else { 0 };
        if extra > 100 {
            return self.interp_last(i);
        }
        let (mut op, disp) = self.stack_slot(i, member, 0, false);
        // Before R11 is taken.
        self.spill();
        self.load_slot(R11, disp);
        let by = size + i32::from(extra);
        self.move_sp(by);
        if self.group_op.take() == Some(op) {
            // The op that an indirect jump that is not to be names is this instruction's alone.
            op = self.new_op(i);
        }
        self.store.ops[op as usize].undo = -by as i8;
        self.go_to_r11(op);
    }

    /// Goes on at the guest address in R11.
    pub(super) fn go_to_r11(&mut self, op: u32) {
        debug_assert!(self.flags != Flags::Host, "R11 would be lost");
        self.tally(self.executed + 1);
        if self.dense && !self.hot {
            self.a.mov_imm32(R10, op);
            self.a.jmp_to(self.store.stubs.jump);
            return;
        }
        let Unknown { unknown, other_mode } = jump_by_cache(&mut self.a);
        self.cold.push(Cold::Indirect { from: unknown, reload: other_mode, op });
    }

    /// What stands behind the straight path: the rest of [`Emit::cold`] stands apart.
    pub(super) fn finish_gotos(&mut self) {
        let (gotos, rest) =
            std::mem::take(&mut self.cold).into_iter().partition(|c| matches!(c, Cold::Goto { .. }));
        self.cold = rest;
        // They make cold code of their own.
        let gotos: Vec<Cold> = gotos;
        for c in gotos {
            self.cold_piece(c);
        }
    }

    pub(super) fn finish_cold(&mut self) {
        self.a.apart(self.store.next_cold());
        for c in std::mem::take(&mut self.cold) {
            self.cold_piece(c);
        }
    }

    pub(super) fn cold_piece(&mut self, c: Cold) {
        let stubs = self.store.stubs;
        match c {
            Cold::Miss { from, site, write } => {
                let p = self.store.area.site(site);
                self.a.bind(from);
                self.a.lea(R11, rip(p));
                self.a.jmp_to(stubs.miss[usize::from(write)]);
            }
            Cold::Other { from, resume, size, stub, early } => {
                self.a.bind(from);
                self.a.call(stub);
                let back = (self.a.here() - self.a.address(resume)) as u32;
                let told = Told { back, size: size as u16, early, vec: self.vec, x87: self.x87 };
                self.a.raw(&told.bytes());
            }
            Cold::Hot { from, link } => {
                self.a.bind(from);
                self.a.mov_imm32(R11, link);
                self.a.jmp_to(stubs.hot);
            }
            Cold::Often { from, op } => {
                self.a.bind(from);
                self.a.mov_imm32(R11, op);
                self.a.jmp_to(stubs.often);
            }
            Cold::Interp { from, op } => {
                self.a.bind(from);
                self.a.mov_imm32(R11, op);
                self.a.jmp_to(stubs.interp);
            }
            Cold::Link { from, link } => {
                let here = self.here();
                self.store.links[link as usize].unlinked = here;
                for p in from.into_iter().flatten() {
                    self.a.bind(p);
                }
                let gen_site = self.store.links[link as usize].gen_site;
                if gen_site == NONE {
                    self.a.mov_imm32(R11, link);
                    self.a.jmp_to(stubs.link);
                } else {
                    self.a.lea(R11, rip(self.store.area.site(gen_site)));
                    self.a.jmp_to(stubs.bridge);
                }
            }
            Cold::Goto { from, target, ip, executed } => {
                self.a.bind(from);
                self.flags = Flags::Context;
                (self.ip, self.executed) = (ip, executed);
                self.goto(target, false);
            }
            Cold::Indirect { from, reload, op } => {
                self.a.bind(reload);
                self.a.load(R11, ctx(off::JUMPS).index(R10, 0));
                for p in from {
                    self.a.bind(p);
                }
                self.a.mov_imm32(R10, op);
                self.a.jmp_to(stubs.indirect);
            }
        }
    }
}

/// Whether a jump's distance, from the start of its page, surely fits what moves [`off::VPAGE`].
pub(super) fn within_reach(target: i64) -> bool {
    (-0x7fff_0000..=0x7fff_0000).contains(&target)
}
