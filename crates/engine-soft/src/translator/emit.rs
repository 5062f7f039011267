//! From guest instructions to the code of a block.
//!
//! A block is entered, left and linked with the guest's registers in their homes (the host register of the same number; RSP in R9;
//! R9 to R11 in the context), its arithmetic flags in the context, RSP at the context. R10 and R11 are scratch. Inside a
//! block the flags may be in the host's instead ([`Flags`]): they go to the context before whatever destroys them, and before
//! every place where the block may be left, so that the guest's state is exact there.

use super::asm::reg::{R9, R10, R11, RBP};
use super::asm::{Asm, Patch, abs, at, cc, ctx, rip};
use super::classify::{Class, classify};
use super::ctx::{JUMP_FACTOR, JUMP_MASK, JUMP_SHIFT, off, spilled};
use super::groups::{self, Group, Insn, Member, number};
use super::key;
use super::store::{Block, LEAST_CODE, Link, MOST_CODE, MOST_SITES, NONE, Op, Second, Store, push};
use crate::cpu::Cpu;
use crate::host::Unit;
use crate::sites::Site;
use iced_x86::{
    Code, ConditionCode, Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic as M,
    OpAccess, OpKind, Register, RflagsBits,
};
use ringer_arch::cpu::Vendor;
use std::mem::offset_of;

/// The most guest instructions of a block.
const MOST_INSNS: usize = 64;
/// The most conditional jumps that a block goes on behind, and one.
const MOST_BRANCHES: u32 = 2;
/// Refills after which a site is taken for one without locality.
const REFILLS: i8 = 100;
const ARITH: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::PF | RflagsBits::CF;

/// Where the guest's arithmetic flags are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flags {
    Context,
    Host,
    Both,
}

/// Code that stands behind the block's straight path.
pub(super) enum Cold {
    /// A site that missed: where it comes from, and the site.
    Miss { from: Patch, site: u32, write: bool },
    /// An access that is not for a site: the interpreter executes op.
    Interp { from: Patch, op: u32 },
    /// A link's way out; `patched` if `from` is the jump that is patched.
    Link { from: Vec<Patch>, link: u32 },
    /// A conditional jump's way to a place that takes more than a jump.
    Goto { from: Patch, target: i64, ip: i64, executed: u32 },
    /// The jump cache does not have it. `reload`: R11 is to be loaded from the entry that R10 names.
    Indirect { from: Patch, reload: Patch, op: u32 },
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

/// Versions of the code that a block is translated from.
#[derive(Clone, Copy, Debug)]
pub struct Versions {
    /// Of its page.
    pub first: u32,
    /// The page it goes on in, and its version.
    pub second: Option<(u64, u32)>,
}

/// Decodes the instructions of a block, at most to the end of the bytes. It goes on behind a few conditional jumps, but not into
/// code that has a block of its own.
pub fn decode(cpu: &Cpu, store: &mut Store, s: &Source<'_>, into: &mut Vec<Insn>) -> u32 {
    into.clear();
    let mut info = InstructionInfoFactory::new();
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
        into.push(Insn { i, class: c, access: groups::accesses(&mut info, &i), member: None });
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
        groups::find(into);
    }
    len
}

/// Translates decoded instructions. None if there is no room.
pub fn translate(
    store: &mut Store,
    cpu: &mut Cpu,
    s: &Source<'_>,
    insns: &[Insn],
    versions: Versions,
    count: bool,
) -> Option<u32> {
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
        code: (base - store.area.exec()) as u32,
        first_site: store.site_op.len() as u32,
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
    };
    let second = versions.second.map(|(gpa, version)| {
        let gen_site = e.store.new_gen_site(&e.cpu.mmu.sites);
        e.check_generation(gen_site);
        Box::new(Second { gpa, version, gen_site })
    });
    e.prologue(vec, x87);
    let mut open = true;
    for n in insns {
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
    e.finish_cold();
    while e.a.pos() < LEAST_CODE {
        e.a.raw(&[0xcc]);
    }
    let block = Block {
        gpa: s.gpa,
        key: s.key,
        code: 0,
        code_len: 0,
        bytes: (0, 0),
        ops: (first_op, e.store.ops.len() as u32),
        incoming: NONE,
        alive: true,
        vec,
        x87,
        second,
    };
    let Emit { a, store, .. } = e;
    debug_assert!(a.pos() < MOST_CODE);
    let n = store.add(block, versions.first, &s.bytes[..len], &a.code);
    store.asm = a;
    n
}

pub(super) struct Emit<'a> {
    pub(super) a: Asm,
    store: &'a mut Store,
    cpu: &'a mut Cpu,
    block: u32,
    /// Offset of the block's code in the area.
    code: u32,
    first_site: u32,
    key: u32,
    flags: Flags,
    pub(super) cold: Vec<Cold>,
    gpa_page: u64,
    /// The op of the first instruction of the group at hand.
    group_op: Option<u32>,
    x87_page_noted: bool,
    /// Executed instructions are counted.
    count: bool,
    executed: u32,
    /// The instruction at hand, from the start of the page.
    ip: i64,
}

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

/// The host register that is guest register `r`'s home, if it has one.
fn home(r: u8) -> Option<u8> {
    match r {
        4 => Some(R9),
        9..=11 => None,
        _ => Some(r),
    }
}

impl Emit<'_> {
    fn wide(&self) -> bool {
        self.key & key::BITS64 != 0
    }

    /// Bytes of a stack slot.
    fn slot_size(&self) -> i32 {
        if self.wide() { 8 } else { 4 }
    }

    /// Leaves unless the generation of code addresses is the one under which the next page was found to hold what it should.
    fn check_generation(&mut self, site: u32) {
        let p = self.store.area.site(site);
        self.a.load(R11, rip(p));
        self.a.cmp(R11, ctx(off::GEN));
        let good = self.a.jcc(cc::E);
        self.a.mov_imm32(R11, self.block);
        self.a.jmp_to(self.store.stubs.stale);
        self.a.bind(good);
    }

    fn prologue(&mut self, vec: bool, x87: bool) {
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
    fn fetch_flags(&mut self) {
        if self.flags == Flags::Context {
            self.a.restore_flags(ctx(off::FL), R11);
            self.flags = Flags::Both;
        }
    }

    pub(super) fn clobber(&mut self) {
        debug_assert!(self.flags != Flags::Host);
        self.flags = Flags::Context;
    }

    pub(super) fn new_op(&mut self, i: &Instruction) -> u32 {
        let op = Op {
            block: self.block,
            offset: (i.ip() & 0xfff) as u16,
            len: i.len() as u8,
            before: self.executed as u8,
            insns: 1,
            decoded: 0,
            undo: 0,
            start: self.code + self.a.pos() as u32,
            next: 0,
        };
        push(&mut self.store.ops, op);
        self.store.ops.len() as u32 - 1
    }

    /// The op of `i` ends here.
    pub(super) fn close_op(&mut self, op: u32) {
        self.store.ops[op as usize].next = self.code + self.a.pos() as u32;
    }

    /// Emits one instruction; false if nothing comes after it.
    fn insn(&mut self, n: &Insn) -> bool {
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
    fn interp(&mut self, i: &Instruction) {
        self.spill();
        let op = self.new_op(i);
        self.a.mov_imm32(R11, op);
        self.a.jmp_to(self.store.stubs.interp);
        self.close_op(op);
        // It comes back with the flags in both places.
        self.flags = Flags::Both;
    }

    /// The same for the last instruction of a block.
    fn interp_last(&mut self, i: &Instruction) {
        self.interp(i);
        if let Some(op) = self.store.ops.last_mut() {
            op.next = 0;
        }
    }

    /// Address of the memory operand to host register `to`, without its segment's base. None if that cannot be said. Leaves the
    /// flags; R10 and R11 are lost.
    fn address(&mut self, i: &Instruction, to: u8) -> Option<()> {
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
    fn add_segment(&mut self, i: &Instruction) -> Option<()> {
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
    fn in_register(&mut self, r: u8, scratch: u8) -> u8 {
        if let Some(h) = home(r) {
            return h;
        }
        self.a.load(scratch, ctx(spilled(r).unwrap_or(0)));
        scratch
    }

    /// Turns the guest address in R10 into the host's of `size` bytes, or leaves for op. R11 is lost on the slow way; the flags
    /// are in the context alone after it.
    pub(super) fn check(&mut self, op: u32, i: &Instruction, size: u64, write: bool) {
        self.spill();
        let limit = (4096 - size) as i32;
        let gpa = self.gpa_page | i.ip() & 0xfff;
        if self.store.scattered.contains(&gpa)
            || self.store.site_op.len() as u32 - self.first_site >= MOST_SITES - 80
        {
            self.check_table(op, limit, write);
        } else {
            let site = self.store.new_site(&self.cpu.mmu.sites, op, size, write, REFILLS);
            let p = self.store.area.site(site);
            self.a.sub(R10, rip(p + offset_of!(Site, tag) as u64));
            self.a.cmp_imm(R10, limit);
            let from = self.a.jcc(cc::A);
            self.a.add(R10, rip(p + offset_of!(Site, host) as u64));
            self.store.set_resume(site, self.code + self.a.pos() as u32);
            self.cold.push(Cold::Miss { from, site, write });
        }
        self.clobber();
    }

    /// The same by the soft TLB itself.
    fn check_table(&mut self, op: u32, limit: i32, write: bool) {
        use crate::mmu::{ENTRIES, Entry};
        let tag = if write { offset_of!(Entry, write) } else { offset_of!(Entry, read) } as i32;
        let a = &mut self.a;
        a.mov(R11, R10);
        a.shr(R11, 7);
        a.and_imm32(R11, ((ENTRIES - 1) * size_of::<Entry>()) as i32);
        a.add(R11, ctx(off::TABLE));
        a.sub(R10, at(R11, tag));
        a.cmp_imm(R10, limit);
        let from = a.jcc(cc::A);
        a.add(R10, at(R11, offset_of!(Entry, host) as i32));
        self.cold.push(Cold::Interp { from, op });
    }

    fn lea(&mut self, i: &Instruction) -> Option<()> {
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

    /// What `i` needs of the flags: all of them, the carry alone, nothing.
    fn needs(&mut self, i: &Instruction) -> u32 {
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

    fn native(&mut self, n: &Insn, unit: Unit, aligned: bool, pointers: bool) -> Option<()> {
        let i = &n.i;
        let access = n.access;
        let memory = (0..i.op_count()).find(|n| i.op_kind(*n) == OpKind::Memory);
        let mut out = *i;
        let mut regs = Borrowed::default();
        let (mut high, mut extended) = (false, memory.is_some());
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
                out.set_op_register(n, sized(host, r));
            }
        }
        if high && extended {
            return None;
        }
        out.set_code(encodable(i.code()));
        self.emit_native(
            i,
            &mut out,
            &regs,
            Plan { memory, access, unit, aligned, pointers, member: n.member },
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
        let needs = self.needs(i);
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
            self.spill();
        }
        let ok = (|| {
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
            if let Some(op) = op
                && traps
            {
                self.store.ops[op as usize].start = self.code + self.a.pos() as u32;
            }
            self.encode(out)?;
            if p.pointers {
                // Not before it: it may find an exception pending, and has not run then.
                self.note_x87(op?, p.memory.is_some());
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
        }
        if let Some(op) = op {
            self.close_member(op);
        }
        Some(())
    }

    /// The host address of the operand to R10.
    fn operand(&mut self, i: &Instruction, op: Option<u32>, size: u64, write: bool, p: &Plan) -> Option<()> {
        let op = op?;
        self.spill();
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
        self.check(op, i, size, write);
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
            self.spill();
            self.a.lea(R11, at(R10, m.offset));
            self.a.test_low_byte(R11, (size - 1) as u8);
            let from = self.a.jcc(cc::NE);
            self.cold.push(Cold::Interp { from, op });
            self.clobber();
        }
    }

    /// A member of a group whose check has come, or comes now.
    fn live_member(&self, m: Option<Member>) -> Option<Member> {
        m.filter(|m| m.group.is_some() || self.group_op.is_some())
    }

    /// The check of a group of which `i` is the first.
    fn open_group(&mut self, i: &Instruction, g: Group) -> u32 {
        let op = self.new_op(i);
        self.store.ops[op as usize].insns = g.insns;
        self.spill();
        let b = self.in_register(g.base, R10);
        self.a.lea(R10, at(b, g.lowest));
        self.check(op, i, u64::from(g.size), g.write);
        self.group_op = Some(op);
        op
    }

    /// The check of a stack access of `i` at `disp` from RSP, if its group has not had it; its op, and where it is from R10.
    fn stack_slot(&mut self, i: &Instruction, member: Option<Member>, disp: i32, write: bool) -> (u32, i32) {
        match (self.live_member(member), self.group_op) {
            (Some(Member { group: Some(g), offset, .. }), _) => (self.open_group(i, g), offset),
            (Some(m), Some(_)) => (self.new_op(i), m.offset),
            _ => {
                let op = self.new_op(i);
                self.spill();
                self.sp_to_r10(disp);
                self.check(op, i, self.slot_size() as u64, write);
                (op, 0)
            }
        }
    }

    /// The op of `i` ends here, unless it is that of a group, which goes on.
    fn close_member(&mut self, op: u32) {
        if self.group_op != Some(op) {
            self.close_op(op);
        }
    }

    /// Encodes a guest instruction as it now is.
    fn encode(&mut self, i: &Instruction) -> Option<()> {
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
    fn note_x87(&mut self, op: u32, memory: bool) {
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

    /// Moves RSP by `by`, leaving the flags.
    fn move_sp(&mut self, by: i32) {
        if self.wide() {
            self.a.lea(R9, at(R9, by));
        } else {
            self.a.lea32(R9, at(R9, by));
        }
    }

    /// R10 to the guest's stack pointer plus `disp`.
    fn sp_to_r10(&mut self, disp: i32) {
        if !self.wide() {
            self.a.lea32(R10, at(R9, disp));
        } else if disp == 0 {
            self.a.mov(R10, R9);
        } else {
            self.a.lea(R10, at(R9, disp));
        }
    }

    fn store_slot(&mut self, disp: i32, r: u8) {
        if self.wide() {
            self.a.store(at(R10, disp), r);
        } else {
            self.a.store32(at(R10, disp), r);
        }
    }

    fn load_slot(&mut self, r: u8, disp: i32) {
        if self.wide() {
            self.a.load(r, at(R10, disp));
        } else {
            self.a.load32(r, at(R10, disp));
        }
    }

    fn push(&mut self, i: &Instruction, member: Option<Member>) {
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

    fn push_memory(&mut self, i: &Instruction) {
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
        self.check(op, i, size as u64, true);
        self.a.load(R11, ctx(off::TMP + 16));
        self.store_slot(0, R11);
        self.move_sp(-size);
        self.close_op(op);
    }

    fn pop(&mut self, i: &Instruction, member: Option<Member>) {
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

    fn leave(&mut self, i: &Instruction) {
        let size = self.slot_size();
        let op = self.new_op(i);
        self.spill();
        if self.wide() {
            self.a.mov(R10, RBP);
        } else {
            self.a.mov32(R10, RBP);
        }
        self.check(op, i, size as u64, false);
        if self.wide() {
            self.a.lea(R9, at(RBP, size));
        } else {
            self.a.lea32(R9, at(RBP, size));
        }
        self.load_slot(RBP, 0);
        self.close_op(op);
    }

    /// Pushes the address of the instruction after the call `i`.
    fn push_return(&mut self, i: &Instruction, member: Option<Member>) -> u32 {
        let size = self.slot_size();
        let (op, disp) = self.stack_slot(i, member, -size, true);
        self.a.load(R11, ctx(off::VPAGE));
        self.a.lea(R11, at(R11, i.next_ip() as i32));
        self.store_slot(disp, R11);
        self.move_sp(-size);
        op
    }

    /// Where a branch leads, from the start of the page.
    fn target(&self, i: &Instruction) -> i64 {
        if self.wide() { i.near_branch64() as i64 } else { i64::from(i.near_branch32() as i32) }
    }

    fn new_link(&mut self, at: Patch, target: i64, gen_site: Option<u32>) -> u32 {
        let (block, at) = (self.block, self.code + at.0 as u32);
        push(&mut self.store.links, Link { block, at, unlinked: 0, target, gen_site, to: NONE, next: NONE });
        self.store.links.len() as u32 - 1
    }

    fn tally(&mut self, executed: u32) {
        if self.count {
            self.a.add_mem_imm(ctx(off::INSTRET), executed as i32, true);
        }
    }

    /// Looks at the stop word; the jump that leaves. The flags are lost.
    fn poll(&mut self) -> Patch {
        self.a.load(R11, ctx(off::STOP));
        self.a.cmp_mem_imm8(at(R11, 0), 0);
        self.a.jcc(cc::NE)
    }

    /// Goes on at `target` of this page, or of another. The flags must be in the context.
    fn goto(&mut self, target: i64, call: bool) {
        self.spill();
        self.tally(self.executed + u32::from(call));
        let mut from = Vec::new();
        let same_page = (0..4096).contains(&target);
        if target <= self.ip || call {
            from.push(self.poll());
        }
        let gen_site = (!same_page).then(|| self.store.new_gen_site(&self.cpu.mmu.sites));
        if let Some(s) = gen_site {
            let p = self.store.area.site(s);
            self.a.load(R11, rip(p));
            self.a.cmp(R11, ctx(off::GEN));
            from.push(self.a.jcc(cc::NE));
            self.a.add_mem_imm(ctx(off::VPAGE), (target & !0xfff) as i32, self.key & key::BITS64 != 0);
        }
        let p = self.a.jmp();
        let link = self.new_link(p, target, gen_site);
        if same_page {
            from.push(p);
        } else {
            // It is not taken before it leads somewhere.
            self.a.bind(p);
        }
        self.cold.push(Cold::Link { from, link });
        self.flags = Flags::Context;
    }

    fn jump(&mut self, i: &Instruction) -> bool {
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
                let link = self.new_link(from, target, None);
                self.cold.push(Cold::Link { from: vec![from], link });
            } else {
                self.cold.push(Cold::Goto { from, target, ip: self.ip, executed: self.executed + 1 });
            }
        }
        true
    }

    fn count_jump(&mut self, i: &Instruction) {
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

    fn indirect(&mut self, i: &Instruction, call: bool) {
        let size = self.slot_size();
        let op = self.new_op(i);
        self.spill();
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
                // A target that is not canonical faults before anything is pushed. With 57 bits of address this sends too many
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
            self.check(op, i, size as u64, true);
            self.a.load(R11, ctx(off::VPAGE));
            self.a.lea(R11, at(R11, i.next_ip() as i32));
            self.store_slot(0, R11);
            self.move_sp(-size);
            self.a.load(R11, ctx(off::TMP + 16));
            self.store.ops[op as usize].undo = size as i8;
        }
        self.go_to_r11(op);
    }

    fn ret(&mut self, i: &Instruction, member: Option<Member>) {
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
    fn go_to_r11(&mut self, op: u32) {
        debug_assert!(self.flags != Flags::Host, "R11 would be lost");
        self.tally(self.executed + 1);
        let a = &mut self.a;
        a.load(R10, ctx(off::STOP));
        a.cmp_mem_imm8(at(R10, 0), 0);
        let stop = a.jcc(cc::NE);
        a.imul_imm(R10, R11, JUMP_FACTOR);
        a.shr(R10, JUMP_SHIFT);
        a.and_imm32(R10, JUMP_MASK);
        a.cmp(R11, ctx(off::JUMPS).index(R10, 0));
        let other = a.jcc(cc::NE);
        a.and_imm(R11, -4096);
        a.store(ctx(off::VPAGE), R11);
        a.load32(R11, ctx(off::GEN));
        a.cmp32(R11, ctx(off::JUMP_GEN).index(R10, 0));
        let reload = a.jcc(cc::NE);
        a.load32(R10, ctx(off::JUMP_CODE).index(R10, 0));
        a.add(R10, ctx(off::BASE));
        a.jmp_reg(R10);
        self.cold.push(Cold::Indirect { from: other, reload, op });
        self.cold.push(Cold::Indirect { from: stop, reload: stop, op });
    }

    fn finish_cold(&mut self) {
        // A Goto makes cold code of its own.
        while !self.cold.is_empty() {
            for c in std::mem::take(&mut self.cold) {
                self.cold_piece(c);
            }
        }
    }

    fn cold_piece(&mut self, c: Cold) {
        let stubs = self.store.stubs;
        match c {
            Cold::Miss { from, site, write } => {
                let p = self.store.area.site(site);
                self.a.bind(from);
                self.a.lea(R11, rip(p));
                self.a.jmp_to(stubs.miss[usize::from(write)]);
            }
            Cold::Interp { from, op } => {
                self.a.bind(from);
                self.a.mov_imm32(R11, op);
                self.a.jmp_to(stubs.interp);
            }
            Cold::Link { from, link } => {
                let here = self.code + self.a.pos() as u32;
                self.store.links[link as usize].unlinked = here;
                for p in from {
                    self.a.bind(p);
                }
                self.a.mov_imm32(R11, link);
                self.a.jmp_to(stubs.link);
            }
            Cold::Goto { from, target, ip, executed } => {
                self.a.bind(from);
                self.flags = Flags::Context;
                (self.ip, self.executed) = (ip, executed);
                self.goto(target, false);
            }
            Cold::Indirect { from, reload, op } => {
                if reload != from {
                    self.a.bind(reload);
                    self.a.load(R11, ctx(off::JUMPS).index(R10, 0));
                }
                self.a.bind(from);
                self.a.mov_imm32(R10, op);
                self.a.jmp_to(stubs.indirect);
            }
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
    fn take(&mut self, g: u8, written: bool, most: usize) -> Option<u8> {
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

    fn iter(&self) -> impl Iterator<Item = (u8, u8, bool)> + '_ {
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
}

impl Cold {
    /// Where it is jumped from.
    fn position(&self) -> Option<usize> {
        match self {
            Cold::Miss { from, .. }
            | Cold::Interp { from, .. }
            | Cold::Goto { from, .. }
            | Cold::Indirect { from, .. } => Some(from.0),
            Cold::Link { from, .. } => from.first().map(|p| p.0),
        }
    }
}

/// Whether a jump's distance, from the start of its page, surely fits what moves [`off::VPAGE`].
fn within_reach(target: i64) -> bool {
    (-0x7fff_0000..=0x7fff_0000).contains(&target)
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
