//! From guest instructions to the code of a block.
//!
//! A block is entered, left and linked with the guest's registers in their homes (the host register of the same number; RSP in R9;
//! R9 to R11 in the context), its arithmetic flags in the context, RSP at the context. R10 and R11 are scratch. Inside a
//! block the flags may be in the host's instead ([`Flags`]): they go to the context before whatever destroys them, and before
//! every place where the block may be left, so that the guest's state is exact there.

use super::asm::reg::{R9, R10, R11, RBP};
use super::asm::{Asm, Patch, abs, at, cc, ctx, rip};
use super::classify::{Class, classify};
use super::ctx::{off, spilled};
use super::derive;
use super::flow::within_reach;
use super::groups::{self, Early, Insn, Member, number};
use super::key;
use super::store::{Block, LEAST_CODE, MOST_CODE, NONE, Op, Store, Versions, push};
use super::stubs::{self, stack_site};
use crate::cpu::Cpu;
use crate::host::Unit;
use crate::sites::{Site, StackSite};
use iced_x86::{
    ConditionCode, Decoder, DecoderOptions, Instruction, Mnemonic as M, OpKind, Register, RflagsBits,
};
use ringer_arch::cpu::Vendor;
use std::mem::offset_of;

/// The most guest instructions of a block.
const MOST_INSNS: usize = 64;
/// The most conditional jumps that a block goes on behind, and one.
const MOST_BRANCHES: u32 = 2;
/// Refills after which a site is taken for one without locality.
const REFILLS: i8 = 100;
pub(super) const ARITH: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::PF | RflagsBits::CF;

/// Where the guest's arithmetic flags are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flags {
    Context,
    Host,
    Both,
    /// Neither's are the guest's; each op derives them, until they are overwritten or made again for what wants them.
    Dead,
}

/// Code that stands behind the block's straight path, or if it is seldom executed, apart from it: what is executed is packed more closely then.
pub(super) enum Cold {
    /// A site that missed: where it comes from, and the site.
    Miss { from: Patch, site: u32, write: bool },
    /// The entry that an access of `size` bytes tried is not its page's: `stub` is called. The code goes on at `resume`.
    Other { from: Patch, resume: usize, size: u64, stub: u64, early: Early },
    /// The interpreter executes op.
    Interp { from: Patch, op: u32 },
    /// A link's way out; `patched` if `from` is the jump that is patched.
    Link { from: [Option<Patch>; 3], link: u32 },
    /// A conditional jump's way to a place that takes more than a jump. It is no less likely than the straight path.
    Goto { from: Patch, target: i64, ip: i64, executed: u32 },
    /// An indirect jump has been come to often.
    Often { from: Patch, op: u32 },
    /// A loop has gone round often.
    Hot { from: Patch, link: u32 },
    /// The jump cache does not have it, or the stop word is raised. `reload`: R11 is to be loaded from the entry that R10 names.
    Indirect { from: [Patch; 2], reload: Patch, op: u32 },
}

/// What to translate.
pub struct Source<'a> {
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// The bytes from there on, at most to the end of the page.
    pub bytes: &'a [u8],
    /// What under.
    pub key: u32,
    /// They are one instruction that goes on in the next page.
    pub straddles: bool,
}

/// Decodes the instructions of a block, at most to the end of the bytes. It goes on behind a few conditional jumps, but not into
/// code that has a block of its own.
pub fn decode(cpu: &Cpu, store: &mut Store, s: &Source<'_>, into: &mut Vec<Insn>) -> u32 {
    into.clear();
    let mut branches = 0;
    let amd = cpu.model.vendor() == Vendor::Amd;
    let options = if amd { DecoderOptions::AMD } else { DecoderOptions::NONE };
    let bits = if s.key & key::BITS64 != 0 { 64 } else { 32 };
    let mut d = Decoder::with_ip(bits, s.bytes, s.gpa & 0xfff, options);
    let mut len = 0;
    let most = if s.straddles { 1 } else { MOST_INSNS };
    while into.len() < most && d.can_decode() {
        let i = d.decode();
        // Cut off by the end of the page, or undefined: the interpreter looks at it.
        if i.is_invalid() {
            break;
        }
        let c = classify(cpu, &mut store.natives, &i, s.key);
        len += i.len() as u32;
        into.push(Insn { i, class: c, access: store.natives.accesses(&i), member: None });
        let ends = match c {
            Class::Jump => i.condition_code() == ConditionCode::None,
            Class::CountJump
            | Class::Call
            | Class::JumpIndirect
            | Class::CallIndirect
            | Class::Ret
            | Class::InterpLast => true,
            _ => false,
        };
        if store.cuts.contains(&(d.ip() as u16 & 0xfff)) {
            break;
        }
        branches += u32::from(c == Class::Jump);
        let behind =
            c == Class::Jump && (branches >= MOST_BRANCHES || store.has(s.gpa + u64::from(len), s.key));
        if ends || behind {
            break;
        }
    }
    if let Some(last) = into.last_mut()
        && last.class == Class::Sti
    {
        // The stop word may be looked at behind a block, and no interrupt may come in its shadow.
        last.class = Class::InterpLast;
    }
    if s.key & key::BITS64 != 0 {
        let page = s.gpa & !0xfff;
        groups::find(into, |i| store.may_group(page | i.ip() & 0xfff));
    }
    len
}

/// Translates decoded instructions. None if there is no room.
pub fn translate<'a>(
    store: &'a mut Store,
    cpu: &'a mut Cpu,
    s: &Source<'a>,
    insns: &'a [Insn],
    mut versions: Versions,
    count: bool,
) -> Option<u32> {
    store.mark();
    let len: usize = insns.iter().map(|n| n.i.len()).sum();
    let vec = insns.iter().any(|n| matches!(n.class, Class::Native { unit: Unit::Sse | Unit::Avx, .. }));
    let x87 = insns.iter().any(|n| matches!(n.class, Class::Native { unit: Unit::X87, .. }));
    let base = store.next_code();
    let mut a = std::mem::take(&mut store.asm);
    a.start(base);
    let first_op = store.ops.len() as u32;
    let mut e = Emit {
        a,
        block: store.blocks.len() as u32,
        hot: store.is_hot(s.gpa),
        dense: store.is_dense(s.gpa),
        store,
        cpu,
        key: s.key,
        flags: Flags::Context,
        cold: Vec::new(),
        gpa_page: s.gpa & !0xfff,
        group_op: None,
        x87_page_noted: false,
        count,
        executed: 0,
        ip: 0,
        insns,
        at: 0,
        producer: None,
        bytes: s.bytes,
        start: (s.gpa & 0xfff) as i64,
        vec,
        x87,
    };
    if let Some(second) = &mut versions.second {
        second.gen_site = e.store.new_gen_site(&e.cpu.mmu.sites);
        e.check_generation(second.gen_site);
    }
    e.prologue(vec, x87);
    let mut open = true;
    for (at, n) in insns.iter().enumerate() {
        e.at = at;
        e.ip = n.i.ip() as i64;
        open = e.insn(n);
        e.executed += 1;
        if n.member.is_some_and(|m| m.last)
            && let Some(op) = e.group_op.take()
            && open
        {
            e.close_op(op);
        }
    }
    if open {
        let end = (s.gpa & 0xfff) as i64 + len as i64;
        e.goto(end, false);
    }
    e.finish_gotos();
    while e.a.pos() < LEAST_CODE {
        e.a.raw(&[0xcc]);
    }
    e.finish_cold();
    let block = Block {
        gpa: s.gpa,
        key: s.key as u8,
        code: 0,
        bytes: 0,
        len: 0,
        first_op,
        incoming: NONE,
        alive: true,
        hot: e.hot,
        vec,
        x87,
        straddles: false,
    };
    let Emit { a, store, .. } = e;
    debug_assert!(a.pos() < MOST_CODE);
    let n = store.add(block, versions, &s.bytes[..len], a.parts());
    store.asm = a;
    n
}

/// What `i` needs of the flags: all of them, the carry alone, nothing.
pub(super) fn needs(i: &Instruction) -> u32 {
    if matches!(i.mnemonic(), M::Div | M::Idiv) {
        // The guest's stay as they are, in the context.
        return 0;
    }
    let read = i.rflags_read() & ARITH;
    let changed = i.rflags_modified() & ARITH;
    // Of those that leave flags undefined, these give what does not depend on what they were.
    let settled = matches!(
        i.mnemonic(),
        M::And | M::Or | M::Xor | M::Test | M::Andn | M::Bzhi | M::Blsi | M::Blsr | M::Blsmsk
    ) || matches!(i.mnemonic(), M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd)
        && constant_count(i).is_some_and(|n| n != 0);
    let written = i.rflags_written() | i.rflags_cleared() | i.rflags_set();
    let kept = if changed == 0 {
        0
    } else if settled {
        ARITH & !changed
    } else {
        ARITH & !written
    };
    read | kept
}

/// The count of a shift if it is an immediate, as the processor masks it.
fn constant_count(i: &Instruction) -> Option<u64> {
    let n = i.op_count() - 1;
    if !matches!(i.op_kind(n), OpKind::Immediate8) {
        return None;
    }
    let size =
        if i.op0_kind() == OpKind::Register { i.op0_register().size() } else { i.memory_size().size() };
    let masked = i.immediate(n) & if size == 8 { 63 } else { 31 };
    // Counts beyond the operand leave flags that are no one's promise.
    (masked < size as u64 * 8).then_some(masked)
}

pub(super) struct Emit<'a> {
    pub(super) a: Asm,
    pub(super) store: &'a mut Store,
    pub(super) cpu: &'a mut Cpu,
    pub(super) block: u32,
    /// What runs here runs often: its accesses are worth sites.
    pub(super) hot: bool,
    /// There is more code than fits.
    pub(super) dense: bool,
    pub(super) key: u32,
    pub(super) flags: Flags,
    pub(super) cold: Vec<Cold>,
    pub(super) gpa_page: u64,
    /// The op of the first instruction of the group at hand.
    pub(super) group_op: Option<u32>,
    pub(super) x87_page_noted: bool,
    /// Executed instructions are counted.
    pub(super) count: bool,
    pub(super) executed: u32,
    /// The instruction at hand, from the start of the page.
    pub(super) ip: i64,
    /// All instructions, and which is at hand.
    pub(super) insns: &'a [Insn],
    pub(super) at: usize,
    /// The last that left its flags in the host's.
    pub(super) producer: Option<usize>,
    /// The guest's bytes, and where they start in the page.
    pub(super) bytes: &'a [u8],
    pub(super) start: i64,
    /// The block expects vector, x87 state in the host's registers.
    pub(super) vec: bool,
    pub(super) x87: bool,
}

/// The host register that is guest register `r`'s home, if it has one.
pub(super) fn home(r: u8) -> Option<u8> {
    match r {
        4 => Some(R9),
        9..=11 => None,
        _ => Some(r),
    }
}

impl Emit<'_> {
    pub(super) fn wide(&self) -> bool {
        self.key & key::BITS64 != 0
    }

    /// Bytes of a stack slot.
    pub(super) fn slot_size(&self) -> i32 {
        if self.wide() { 8 } else { 4 }
    }

    /// Leaves unless the generation of code addresses is the one under which the next page was found to hold what it should.
    pub(super) fn check_generation(&mut self, site: u32) {
        let p = self.store.area.site(site);
        self.a.load(R11, rip(p));
        self.a.cmp(R11, ctx(off::GEN));
        let good = self.a.jcc(cc::E);
        self.a.mov_imm32(R11, self.block);
        self.a.jmp_to(self.store.stubs.stale);
        self.a.bind(good);
    }

    pub(super) fn prologue(&mut self, vec: bool, x87: bool) {
        let a = &mut self.a;
        if x87 {
            a.cmp_mem_imm8(ctx(off::X87), 0);
            let there = a.jcc(cc::NE);
            a.mov_imm32(R11, self.block);
            a.jmp_to(self.store.stubs.x87);
            a.bind(there);
        }
        if vec {
            a.cmp_mem_imm8(ctx(off::VEC), 0);
            let there = a.jcc(cc::NE);
            a.call(self.store.stubs.load_vec);
            a.bind(there);
        }
    }

    /// The flags to the context, if they are not there.
    pub(super) fn spill(&mut self) {
        if self.flags == Flags::Host {
            self.a.save_flags(ctx(off::FL), R11);
            self.flags = Flags::Both;
        }
    }

    /// The flags to the host's, if they are not there. R11 is lost.
    pub(super) fn fetch_flags(&mut self) {
        match self.flags {
            Flags::Context => {
                self.a.restore_flags(ctx(off::FL), R11);
                self.flags = Flags::Both;
            }
            Flags::Dead => {
                let again = self.producer.and_then(|p| derive::again(&self.insns[p].i));
                let made = again.and_then(|i| self.encode(&i));
                debug_assert!(made.is_some());
                self.flags = Flags::Host;
            }
            Flags::Host | Flags::Both => {}
        }
    }

    pub(super) fn clobber(&mut self) {
        debug_assert!(self.flags != Flags::Host);
        if self.flags != Flags::Dead {
            self.flags = Flags::Context;
        }
    }

    /// [`Emit::spill`] before op may leave, unless the flags need not be saved for what comes from there on.
    pub(super) fn settle(&mut self, op: u32) {
        if self.flags == Flags::Host
            && let Some(p) = self.producer
            && self.need_not_save(p)
        {
            self.flags = Flags::Dead;
            self.store.ops[op as usize].notes |= Op::DERIVES;
        }
        self.spill();
    }

    /// Whether the flags that instruction `p` left need not be saved before the one at hand.
    fn need_not_save(&self, p: usize) -> bool {
        // What 64-bit code has can be encoded.
        let may = self.wide() && derive::again(&self.insns[p].i).is_some();
        derive::last(&self.insns[p..], self.at - p, may)
    }

    pub(super) fn new_op(&mut self, i: &Instruction) -> u32 {
        let op = Op {
            block: self.block,
            offset: (i.ip() & 0xfff) as u16,
            notes: if self.flags == Flags::Dead { Op::DERIVES } else { 0 },
            before: self.executed as u8,
            insns: 1,
            undo: 0,
            start: self.here(),
            gap: 0,
        };
        push(&mut self.store.ops, op);
        self.store.ops.len() as u32 - 1
    }

    /// Offset in the area of what comes next.
    pub(super) fn here(&self) -> u32 {
        (self.a.here() - self.store.area.exec()) as u32
    }

    /// The op of `i` ends here.
    pub(super) fn close_op(&mut self, op: u32) {
        let here = self.here();
        let o = &mut self.store.ops[op as usize];
        o.gap = (here - o.start) as u16;
    }

    /// Emits one instruction; false if nothing comes after it.
    pub(super) fn insn(&mut self, n: &Insn) -> bool {
        let (i, c) = (&n.i, n.class);
        match c {
            Class::Nothing => {}
            Class::Native { unit, aligned, pointers } => {
                let done = match unit {
                    Unit::Integer if i.mnemonic() == M::Lea => self.lea(i),
                    _ => self.native(n, unit, aligned, pointers),
                };
                if done.is_none() {
                    self.interp(i);
                }
            }
            Class::Push => self.push(i, n.member),
            Class::Pop => self.pop(i, n.member),
            Class::Leave => self.leave(i),
            Class::Swapgs => self.swapgs(),
            Class::Cli => self.cli(),
            Class::Sti => self.sti(i),
            Class::Pushfq => self.pushfq(i),
            Class::Direction(down) => self.direction(down),
            Class::Stac => self.stac(),
            Class::Cr2 => self.cr2(i),
            Class::Selector => self.selector(i),
            Class::Repeat(size) => self.repeat(i, size),
            Class::BitTest => {
                if self.bit_test(i).is_none() {
                    self.interp(i);
                }
            }
            Class::Interp => self.interp(i),
            Class::InterpLast => {
                self.interp_last(i);
                return false;
            }
            Class::Jump => return self.jump(i),
            Class::CountJump => {
                self.count_jump(i);
                return false;
            }
            Class::Call if !within_reach(self.target(i)) => {
                self.interp_last(i);
                return false;
            }
            Class::Call => {
                let op = self.push_return(i, n.member);
                let t = self.target(i);
                if self.group_op == Some(op) || self.group_op.is_none() {
                    self.close_op(op);
                }
                if let Some(group) = self.group_op.take() {
                    self.close_op(group);
                }
                self.goto(t, true);
                return false;
            }
            Class::JumpIndirect | Class::CallIndirect => {
                self.indirect(i, c == Class::CallIndirect);
                return false;
            }
            Class::Ret => {
                self.ret(i, n.member);
                return false;
            }
        }
        true
    }

    /// Leaves the block for the interpreter to execute `i`.
    pub(super) fn interp(&mut self, i: &Instruction) {
        self.spill();
        let op = self.new_op(i);
        self.a.mov_imm32(R11, op);
        self.a.jmp_to(self.store.stubs.interp);
        self.close_op(op);
        // It comes back with the flags in both places.
        self.flags = Flags::Both;
    }

    /// The same for the last instruction of a block.
    pub(super) fn interp_last(&mut self, i: &Instruction) {
        self.interp(i);
        if let Some(op) = self.store.ops.last_mut() {
            op.gap = 0;
        }
    }

    /// Address of the memory operand to host register `to`, without its segment's base. None if that cannot be said. Leaves the
    /// flags; R10 and R11 are lost.
    pub(super) fn address(&mut self, i: &Instruction, to: u8) -> Option<()> {
        let narrow = match crate::operand::address_size(i) {
            8 => false,
            4 => true,
            _ => return None,
        };
        let (base, index) = (i.memory_base(), i.memory_index());
        if index.is_vector_register() || base == Register::EIP {
            return None;
        }
        let disp = i.memory_displacement64() as i64;
        if base == Register::None && index == Register::None {
            let v = if narrow { u64::from(disp as u32) } else { disp as u64 };
            self.a.mov_imm(to, v);
            return Some(());
        }
        let d = if narrow { disp as u32 as i32 } else { i32::try_from(disp).ok()? };
        if base == Register::RIP {
            self.a.load(to, ctx(off::VPAGE));
            self.a.lea(to, at(to, d));
            return Some(());
        }
        let b = (base != Register::None).then(|| self.in_register(number(base), R10));
        let x = (index != Register::None).then(|| self.in_register(number(index), R11));
        let scale = i.memory_index_scale().trailing_zeros() as u8;
        let m = match (b, x) {
            (Some(b), None) if d == 0 => {
                if narrow {
                    self.a.mov32(to, b);
                } else if b != to {
                    self.a.mov(to, b);
                }
                return Some(());
            }
            (Some(b), None) => at(b, d),
            (Some(b), Some(x)) => at(b, d).index(x, scale),
            (None, Some(x)) => abs(d).index(x, scale),
            (None, None) => return None,
        };
        if narrow {
            self.a.lea32(to, m);
        } else {
            self.a.lea(to, m);
        }
        Some(())
    }

    /// Adds the base of the operand's segment to R10.
    pub(super) fn add_segment(&mut self, i: &Instruction) -> Option<()> {
        let field = match i.memory_segment() {
            Register::FS => off::FS,
            Register::GS => off::GS,
            // Never for writing, and not always for reading.
            Register::CS if !self.wide() => return None,
            _ => return Some(()),
        };
        if !self.wide() {
            return None;
        }
        self.spill();
        self.a.add(R10, ctx(field));
        self.clobber();
        Some(())
    }

    /// A host register that holds guest register `r`: its home, or `scratch` after a load.
    pub(super) fn in_register(&mut self, r: u8, scratch: u8) -> u8 {
        if let Some(h) = home(r) {
            return h;
        }
        self.a.load(scratch, ctx(spilled(r).unwrap_or(0)));
        scratch
    }

    /// Turns the guest address in R10 into the host's of `size` bytes, or leaves for op. R11 is lost on the slow way; the flags
    /// are in the context alone after it.
    pub(super) fn check(&mut self, op: u32, i: &Instruction, size: u64, write: bool) {
        self.check_near(op, i, size, write, false);
    }

    /// [`Emit::check`] for what is near the stack pointer if `stack` says so.
    pub(super) fn check_near(&mut self, op: u32, i: &Instruction, size: u64, write: bool, stack: bool) {
        self.check_early(op, i, size, write, stack, Early::All);
    }

    /// The same; `early` says what may be looked up for it.
    pub(super) fn check_early(
        &mut self,
        op: u32,
        i: &Instruction,
        size: u64,
        write: bool,
        stack: bool,
        early: Early,
    ) {
        let limit = (4096 - size) as i32;
        let gpa = self.gpa_page | i.ip() & 0xfff;
        self.spill();
        let sites = &self.cpu.mmu.sites;
        if self.hot && !self.store.scattered.contains_key(&gpa) {
            let site = self.store.new_site(sites, op, size, write, REFILLS);
            let p = self.store.area.site(site);
            self.a.sub(R10, rip(p + offset_of!(Site, tag) as u64));
            self.a.cmp_imm(R10, limit);
            let from = self.a.jcc(cc::A);
            self.a.add(R10, rip(p + offset_of!(Site, host) as u64));
            let here = self.here();
            self.store.set_resume(site, here, early);
            self.cold.push(Cold::Miss { from, site, write });
        } else {
            let stack = stack && self.has_stack_site();
            match stubs::checks(size).filter(|_| self.dense && !self.hot) {
                Some(stub) => self.call_check(op, stub, write, stack, early),
                None if stack => self.check_stack(size, write, early),
                None => self.check_table(size, write, early),
            }
        }
        self.clobber();
    }

    /// The same by the stubs of number `n`, which check as much or a little more: what lies at the very end of its page then is looked at by the interpreter.
    fn call_check(&mut self, op: u32, n: usize, write: bool, stack: bool, early: Early) {
        let (stubs, write) = (&self.store.stubs, usize::from(write));
        let supervisor = usize::from(self.key & key::USER == 0);
        self.a.call(if stack { stubs.check_stack[supervisor][write][n] } else { stubs.check[write][n] });
        self.store.ops[op as usize].notes |= early.bits();
    }

    /// Supervisor code under which user pages come and go with AC shares tables with what must not reach them.
    fn has_stack_site(&self) -> bool {
        self.key & key::USER != 0 || self.key & key::AC == 0
    }

    /// The same by the stack's site.
    fn check_stack(&mut self, size: u64, write: bool, early: Early) {
        let supervisor = self.key & key::USER == 0;
        let site = stack_site(supervisor, write);
        let a = &mut self.a;
        a.sub(R10, ctx(site + offset_of!(StackSite, tag) as i32));
        a.cmp_imm(R10, (4096 - size) as i32);
        let from = a.jcc(cc::A);
        a.add(R10, ctx(site + offset_of!(StackSite, host) as i32));
        let (resume, stub) = (a.pos(), self.store.stubs.stack[usize::from(supervisor)][usize::from(write)]);
        self.cold.push(Cold::Other { from, resume, size, stub, early });
    }

    /// The same by the soft TLB itself.
    fn check_table(&mut self, size: u64, write: bool, early: Early) {
        use crate::mmu::{ENTRIES, Entry};
        let tag = if write { offset_of!(Entry, write) } else { offset_of!(Entry, read) } as i32;
        let a = &mut self.a;
        a.mov(R11, R10);
        a.shr(R11, 7);
        a.and_imm32(R11, ((ENTRIES - 1) * size_of::<Entry>()) as i32);
        a.add(R11, ctx(off::TABLE));
        a.sub(R10, at(R11, tag));
        a.cmp_imm(R10, (4096 - size) as i32);
        let from = a.jcc(cc::A);
        a.add(R10, at(R11, offset_of!(Entry, host) as i32));
        let (resume, stub) = (a.pos(), self.store.stubs.look[usize::from(write)]);
        self.cold.push(Cold::Other { from, resume, size, stub, early });
    }

    /// Moves RSP by `by`, leaving the flags.
    pub(super) fn move_sp(&mut self, by: i32) {
        if self.wide() {
            self.a.lea(R9, at(R9, by));
        } else {
            self.a.lea32(R9, at(R9, by));
        }
    }

    /// R10 to the guest's stack pointer plus `disp`.
    pub(super) fn sp_to_r10(&mut self, disp: i32) {
        if !self.wide() {
            self.a.lea32(R10, at(R9, disp));
        } else if disp == 0 {
            self.a.mov(R10, R9);
        } else {
            self.a.lea(R10, at(R9, disp));
        }
    }

    pub(super) fn store_slot(&mut self, disp: i32, r: u8) {
        if self.wide() {
            self.a.store(at(R10, disp), r);
        } else {
            self.a.store32(at(R10, disp), r);
        }
    }

    pub(super) fn load_slot(&mut self, r: u8, disp: i32) {
        if self.wide() {
            self.a.load(r, at(R10, disp));
        } else {
            self.a.load32(r, at(R10, disp));
        }
    }

    pub(super) fn push(&mut self, i: &Instruction, member: Option<Member>) {
        let size = self.slot_size();
        if i.op0_kind() == OpKind::Memory {
            return self.push_memory(i);
        }
        let (op, disp) = self.stack_slot(i, member, -size, true);
        if i.op0_kind() == OpKind::Register {
            let r = self.in_register(number(i.op0_register()), R11);
            self.store_slot(disp, r);
        } else {
            let v = i.immediate(0) as i32;
            if self.wide() {
                self.a.store_imm64(at(R10, disp), v);
            } else {
                self.a.store_imm32(at(R10, disp), v);
            }
        }
        self.move_sp(-size);
        self.close_member(op);
    }

    pub(super) fn push_memory(&mut self, i: &Instruction) {
        let size = self.slot_size();
        let op = self.new_op(i);
        self.spill();
        let before = self.a.pos();
        if self.address(i, R10).is_none() || self.add_segment(i).is_none() {
            self.a.code.truncate(before);
            self.store.ops.pop();
            return self.interp(i);
        }
        self.check(op, i, size as u64, false);
        self.load_slot(R11, 0);
        self.a.store(ctx(off::TMP + 16), R11);
        self.sp_to_r10(-size);
        self.check_near(op, i, size as u64, true, true);
        self.a.load(R11, ctx(off::TMP + 16));
        self.store_slot(0, R11);
        self.move_sp(-size);
        self.close_op(op);
    }

    pub(super) fn pop(&mut self, i: &Instruction, member: Option<Member>) {
        let size = self.slot_size();
        let (op, disp) = self.stack_slot(i, member, 0, false);
        let n = number(i.op0_register());
        match (home(n), spilled(n)) {
            // POP RSP: what is loaded stays.
            (Some(R9), _) => self.load_slot(R9, disp),
            (Some(h), _) => {
                self.load_slot(h, disp);
                self.move_sp(size);
            }
            (None, s) => {
                self.load_slot(R11, disp);
                self.a.store(ctx(s.unwrap_or(0)), R11);
                self.move_sp(size);
            }
        }
        self.close_member(op);
    }

    pub(super) fn leave(&mut self, i: &Instruction) {
        let size = self.slot_size();
        let op = self.new_op(i);
        self.spill();
        if self.wide() {
            self.a.mov(R10, RBP);
        } else {
            self.a.mov32(R10, RBP);
        }
        self.check_near(op, i, size as u64, false, true);
        if self.wide() {
            self.a.lea(R9, at(RBP, size));
        } else {
            self.a.lea32(R9, at(RBP, size));
        }
        self.load_slot(RBP, 0);
        self.close_op(op);
    }

    /// Pushes the address of the instruction after the call `i`.
    pub(super) fn push_return(&mut self, i: &Instruction, member: Option<Member>) -> u32 {
        let size = self.slot_size();
        let (op, disp) = self.stack_slot(i, member, -size, true);
        self.a.load(R11, ctx(off::VPAGE));
        self.a.lea(R11, at(R11, i.next_ip() as i32));
        self.store_slot(disp, R11);
        self.move_sp(-size);
        op
    }
}

impl Cold {
    /// Where it is jumped from.
    pub(super) fn position(&self) -> Option<usize> {
        match self {
            Cold::Miss { from, .. }
            | Cold::Other { from, .. }
            | Cold::Interp { from, .. }
            | Cold::Hot { from, .. }
            | Cold::Often { from, .. }
            | Cold::Goto { from, .. } => Some(from.0),
            Cold::Indirect { from, .. } => Some(from[0].0),
            Cold::Link { from, .. } => from.iter().flatten().map(|p| p.0).next(),
        }
    }
}
