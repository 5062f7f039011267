//! The code around translated code: the way in, the ways out, and the second try of a site that missed.

use super::asm::reg::{R8, R9, R10, R11, R12, R13, R14, R15, RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP};
use super::asm::{Asm, Patch, at, cc, ctx};
use super::ctx::{JUMP_FACTOR, JUMP_MASK, JUMP_SHIFT, exit, off};
use super::places;
use crate::mmu::Entry;
use crate::sites::{LOG_LEN, LOGGED, LOGS, Site, StackSite};
use std::mem::offset_of;

/// Host addresses of the stubs.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Stubs {
    pub enter: u64,
    pub link: u64,
    /// A jump to another page that is not good now, with its [`crate::sites::Bridge`] in R11.
    pub bridge: u64,
    /// The same as at the end of a block that ends in an indirect jump, with the guest address in R11 and its op in R10.
    pub jump: u64,
    /// An indirect jump that the jump cache does not know, with the guest address in R11 and its op in R10.
    pub indirect: u64,
    pub interp: u64,
    pub stale: u64,
    pub x87: u64,
    pub hot: u64,
    pub often: u64,

    /// Where faults continue.
    pub fault: u64,
    /// Called: loads the vector state.
    pub load_vec: u64,
    /// Called: the entry of the soft TLB that R11 names is not that of the address whose difference from its tag for reads, for writes, is in
    /// R10. Behind the call stands what the access is.
    pub look: [u64; 2],
    /// Called, by user and by supervisor code, for a read and for a write: the stack's site is not that of the address whose difference from its tag is
    /// in R10. Behind the call stands what the access is.
    pub stack: [[u64; 2]; 2],
    /// Called, for a read and for a write, of [`checked`] bytes: turns the guest address in R10 into the host's. They take the place of the same
    /// inline where code is to be small.
    pub check: [[u64; CHECKS]; 2],
    /// The same of an access near the stack pointer, by user and by supervisor code.
    pub check_stack: [[[u64; CHECKS]; 2]; 2],
    /// Second try for a read, for a write, with what is left of the address in R10 and the site in R11.
    pub miss: [u64; 2],
    /// Bytes of all.
    pub len: usize,
}

/// Sizes of accesses that there are stubs for: 1, 2, 4, 8, 16, 24 and so on.
pub const CHECKS: usize = 19;

/// Bytes that stub `n` of each kind checks.
#[must_use]
pub fn checked(n: usize) -> u64 {
    if n < 3 { 1 << n } else { (n as u64 - 2) * 8 }
}

/// The stub that checks `size` bytes, or a few more, if there is one.
#[must_use]
pub fn checks(size: u64) -> Option<usize> {
    let n = match size {
        1 | 2 => size as usize - 1,
        3 | 4 => 2,
        _ => size.div_ceil(8) as usize + 2,
    };
    (n < CHECKS).then_some(n)
}

/// Guest registers whose home is the host register of the same number.
const SAME: [u8; 12] = [RAX, RCX, RDX, RBX, RBP, RSI, RDI, R8, R12, R13, R14, R15];
const XMM: i32 = 160;
const YMM_HI: i32 = 576;
const MXCSR: i32 = 24;

/// Makes the stubs for the address that `a` starts at. `avx`: the host has it.
pub fn make(a: &mut Asm, avx: bool) -> Stubs {
    let mut s = Stubs { enter: a.here(), ..Stubs::default() };
    enter(a, avx);
    s.load_vec = a.here();
    load_vec(a, 8, avx);
    a.store_imm32(ctx(8 + off::VEC), 1);
    a.ret();
    let mut out = [0; 10];
    let mut jumps = Vec::new();
    let kinds = [
        exit::LINK,
        exit::INDIRECT,
        exit::INTERP,
        exit::STALE,
        exit::X87,
        exit::HOT,
        exit::LOOK,
        exit::OFTEN,
        exit::MEM,
        exit::BRIDGE,
    ];
    for (n, kind) in kinds.into_iter().enumerate() {
        out[n] = a.here();
        a.store_imm32(ctx(off::KIND), kind as i32);
        jumps.push(a.jmp());
    }
    for p in jumps {
        a.bind(p);
    }
    s.fault = a.here();
    leave(a, avx);
    let (look_out, mem, bridge_out, indirect_out);
    [s.link, indirect_out, s.interp, s.stale, s.x87, s.hot, look_out, s.often, mem, bridge_out] = out;
    s.bridge = a.here();
    places::bridge(a, bridge_out);
    s.indirect = a.here();
    places::indirect(a, indirect_out);
    s.jump = jump(a, s.indirect);
    for write in [false, true] {
        s.look[usize::from(write)] = a.here();
        let tag = if write { offset_of!(Entry, write) } else { offset_of!(Entry, read) } as i32;
        a.add(R10, at(R11, tag));
        a.store_imm32(ctx(8 + off::LOOK), i32::from(write));
        a.pop(R11);
        a.jmp_to(look_out);
    }
    for supervisor in [false, true] {
        for write in [false, true] {
            s.stack[usize::from(supervisor)][usize::from(write)] = a.here();
            miss_stack(a, supervisor, write, look_out);
        }
    }
    for write in [false, true] {
        s.miss[usize::from(write)] = a.here();
        miss(a, write, mem);
    }
    for write in [false, true] {
        for n in 0..CHECKS {
            let (w, size) = (usize::from(write), checked(n) as i32);
            s.check[w][n] = check(a, write, size, None, look_out);
            for supervisor in [false, true] {
                let site = stack_site(supervisor, write);
                s.check_stack[usize::from(supervisor)][w][n] = check(a, write, size, Some(site), look_out);
            }
        }
    }
    s.len = a.pos();
    s
}

/// [`Stubs::jump`]; what the jump cache does not know goes to `unknown`.
fn jump(a: &mut Asm, unknown: u64) -> u64 {
    let start = a.here();
    a.store(ctx(off::TMP), R10);
    let from = jump_by_cache(a);
    a.bind(from.other_mode);
    a.load(R11, ctx(off::JUMPS).index(R10, 0));
    for p in from.unknown {
        a.bind(p);
    }
    a.load(R10, ctx(off::TMP));
    a.jmp_to(unknown);
    start
}

/// Where a jump by the jump cache goes if that does not know it.
pub(super) struct Unknown {
    /// The guest address is in R11.
    pub(super) unknown: [Patch; 2],
    /// It is to be loaded from the entry that R10 names.
    pub(super) other_mode: Patch,
}

/// Goes on at the guest address in R11, if the jump cache knows it and the stop word is not raised. R10 and the flags are lost.
pub(super) fn jump_by_cache(a: &mut Asm) -> Unknown {
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
    let other_mode = a.jcc(cc::NE);
    a.load32(R10, ctx(off::JUMP_CODE).index(R10, 0));
    a.add(R10, ctx(off::BASE));
    a.jmp_reg(R10);
    Unknown { unknown: [other, stop], other_mode }
}

/// [`Stubs::check`], or [`Stubs::check_stack`] with the stack's `site`, which is filled if it is not the page's: its address. If the soft TLB has no entry, leaves by `out` with the
/// guest's address, and the one behind the call in R11.
fn check(a: &mut Asm, write: bool, size: i32, site: Option<i32>, out: u64) -> u64 {
    let tag = if write { offset_of!(Entry, write) } else { offset_of!(Entry, read) } as i32;
    let (site_tag, site_host) = (offset_of!(StackSite, tag) as i32, offset_of!(StackSite, host) as i32);
    // Below the address behind the call.
    let field = |o: i32| ctx(8 + o);
    let fits = 4096 - size;
    while !a.pos().is_multiple_of(16) {
        a.raw(&[0xcc]);
    }
    let start = a.here();
    if let Some(site) = site {
        a.sub(R10, field(site + site_tag));
        a.cmp_imm(R10, fits);
        let other = a.jcc(cc::A);
        a.add(R10, field(site + site_host));
        a.ret();
        a.bind(other);
        a.add(R10, field(site + site_tag));
    }
    a.mov(R11, R10);
    a.shr(R11, 7);
    a.and_imm32(R11, ((crate::mmu::ENTRIES - 1) * size_of::<Entry>()) as i32);
    a.add(R11, field(off::TABLE));
    a.sub(R10, at(R11, tag));
    a.cmp_imm(R10, fits);
    let none = a.jcc(cc::A);
    a.add(R10, at(R11, offset_of!(Entry, host) as i32));
    if let Some(site) = site {
        a.store(field(off::TMP), RAX);
        a.load(RAX, at(R11, tag));
        a.store(field(site + site_tag), RAX);
        a.load(RAX, at(R11, offset_of!(Entry, host) as i32));
        a.store(field(site + site_host), RAX);
        a.load(RAX, field(off::TMP));
    }
    a.ret();
    a.bind(none);
    a.add(R10, at(R11, tag));
    a.store_imm32(field(off::LOOK), i32::from(write) | size << 8);
    a.pop(R11);
    a.jmp_to(out);
    start
}

/// `extern "sysv64" fn(ctx, to)`
fn enter(a: &mut Asm, avx: bool) {
    for r in [RBX, RBP, R12, R13, R14, R15] {
        a.push(r);
    }
    a.store(at(RDI, off::HOST_RSP), RSP);
    a.mov(RSP, RDI);
    a.store(ctx(off::TMP), RSI);
    a.cmp_mem_imm8(ctx(off::WANT_VEC), 0);
    let no = a.jcc(cc::E);
    a.store_imm32(ctx(off::WANT_VEC), 0);
    load_vec(a, 0, avx);
    a.store_imm32(ctx(off::VEC), 1);
    a.bind(no);
    a.load(R11, ctx(off::REGS));
    for (n, r) in [R9, R10, R11].into_iter().enumerate() {
        a.load(R10, at(R11, i32::from(r) * 8));
        a.store(ctx(n as i32 * 8), R10);
    }
    a.load32(RAX, ctx(off::FL));
    a.flags_from_ax();
    a.load(R9, at(R11, i32::from(RSP) * 8));
    for r in SAME {
        a.load(r, at(R11, i32::from(r) * 8));
    }
    a.load(R10, ctx(off::LIN));
    a.jmp_mem(ctx(off::TMP));
}

/// All guest registers to their memory, the host's own back, return.
fn leave(a: &mut Asm, avx: bool) {
    a.store(ctx(off::ARG), R11);
    a.store(ctx(off::LIN), R10);
    a.load(R11, ctx(off::REGS));
    for r in SAME {
        a.store(at(R11, i32::from(r) * 8), r);
    }
    a.store(at(R11, i32::from(RSP) * 8), R9);
    for (n, r) in [R9, R10, R11].into_iter().enumerate() {
        a.load(RAX, ctx(n as i32 * 8));
        a.store(at(R11, i32::from(r) * 8), RAX);
    }
    a.cmp_mem_imm8(ctx(off::VEC), 0);
    let no = a.jcc(cc::E);
    save_vec(a, avx);
    a.store_imm32(ctx(off::VEC), 0);
    a.bind(no);
    a.load(RSP, ctx(off::HOST_RSP));
    for r in [R15, R14, R13, R12, RBP, RBX] {
        a.pop(r);
    }
    a.ret();
}

/// XMM and YMM registers and MXCSR from the XSAVE area; R11 and the flags are lost. `down`: how far RSP is below the context.
///
/// Where all upper halves are zero they are left in the state that VZEROUPPER puts them in: with anything else there, be it zeros,
/// processors take long over the next SSE instruction that is not VEX-encoded (Intel Optimization Reference Manual, "Mixing AVX
/// code with SSE code").
fn load_vec(a: &mut Asm, down: i32, avx: bool) {
    a.load(R11, ctx(down + off::XSAVE));
    if !avx {
        for x in 0..16u8 {
            a.movaps(x, at(R11, XMM + 16 * i32::from(x)), false);
        }
        a.ldmxcsr(at(R11, MXCSR));
        return;
    }
    // vmovups ymm0, [r11+YMM_HI]; vorps ymm0, ymm0, [r11+YMM_HI+32n]...; vptest ymm0, ymm0
    a.raw(&[0xc4, 0xc1, 0x7c, 0x10, 0x83]);
    a.imm32(YMM_HI);
    for n in 1..8 {
        a.raw(&[0xc4, 0xc1, 0x7c, 0x56, 0x83]);
        a.imm32(YMM_HI + 32 * n);
    }
    a.raw(&[0xc4, 0xe2, 0x7d, 0x17, 0xc0]);
    a.raw(&[0xc5, 0xf8, 0x77]);
    for x in 0..16u8 {
        // vmovaps xmm, [r11+XMM+16x]
        a.raw(&[0xc4, if x >= 8 { 0x41 } else { 0xc1 }, 0x78, 0x28, 0x83 | (x & 7) << 3]);
        a.imm32(XMM + 16 * i32::from(x));
    }
    let zero = a.jcc(cc::E);
    for x in 0..16u8 {
        vex128(a, 0x18, x);
    }
    a.bind(zero);
    a.ldmxcsr(at(R11, MXCSR));
}

fn save_vec(a: &mut Asm, avx: bool) {
    a.load(R11, ctx(off::XSAVE));
    for x in 0..16u8 {
        a.movaps(x, at(R11, XMM + 16 * i32::from(x)), true);
        if avx {
            vex128(a, 0x19, x);
        }
    }
    a.stmxcsr(at(R11, MXCSR));
    a.ldmxcsr(ctx(off::HOST_MXCSR));
    if avx {
        a.raw(&[0xc5, 0xf8, 0x77]);
    }
}

/// `vinsertf128 ymm, ymm, [r11+YMM_HI+16n], 1` (op 18), `vextractf128` the other way (op 19).
fn vex128(a: &mut Asm, op: u8, n: u8) {
    // Inverted R and B (R11 is extended), map 3.
    let r = if n >= 8 { 0x43 } else { 0xc3 };
    let vvvv = if op == 0x18 { (!n & 15) << 3 } else { 0x78 };
    a.raw(&[0xc4, r, 0x05 | vvvv, op, 0x83 | (n & 7) << 3]);
    a.imm32(YMM_HI + 16 * i32::from(n));
    a.raw(&[1]);
}

/// The soft TLB's entry for the guest address in R10 to RAX, and its offset in the page to RCX; the jump that leaves if the tag at `tag` is another's.
fn probe(a: &mut Asm, tag: i32) -> Patch {
    a.mov(RAX, R10);
    a.shr(RAX, 7);
    a.and_imm32(RAX, ((crate::mmu::ENTRIES - 1) * size_of::<Entry>()) as i32);
    a.add(RAX, ctx(off::TABLE));
    a.mov(RCX, R10);
    a.sub(RCX, at(RAX, tag));
    a.cmp_imm(RCX, 4095);
    a.jcc(cc::A)
}

/// Jumped to by a site that missed: what is left of the guest address in R10, the site in R11. Looks the address up in the soft TLB,
/// fills the site, and goes on behind its check with the host address in R10, or leaves by `out` with the guest's.
fn miss(a: &mut Asm, write: bool, out: u64) {
    let tag = if write { offset_of!(Entry, write) } else { offset_of!(Entry, read) } as i32;
    let tmp = |n: i32| ctx(off::TMP + 8 * n);
    let site = |o: usize| at(R11, o as i32);
    a.add(R10, site(offset_of!(Site, tag)));
    a.store(tmp(0), RAX);
    a.store(tmp(1), RCX);
    let other = probe(a, tag);
    // The limit is 16 bits; RCX is below 4096.
    a.raw(&[0x66]);
    a.cmp32(RCX, site(offset_of!(Site, limit)));
    let cross = a.jcc(cc::A);
    a.test_byte(site(offset_of!(Site, flags)), LOGGED);
    let logged = a.jcc(cc::NE);
    let mut out_of = vec![other, cross];
    let mut fill = Vec::new();
    // The log of the address's half: the sign says which.
    a.test_reg(R10, R10);
    let upper = a.jcc(cc::S);
    for half in 0..LOGS as i32 {
        if half == 1 {
            a.bind(upper);
        }
        let (len, log) = (ctx(off::LOG_LEN + 4 * half), off::LOG + half * LOG_LEN as i32 * 4);
        a.load32(RCX, len);
        a.cmp_imm32(RCX, LOG_LEN as i32);
        out_of.push(a.jcc(cc::AE));
        a.store32(ctx(log).index(RCX, 2), R11);
        a.inc32(len);
        a.or_byte(site(offset_of!(Site, flags)), LOGGED);
        fill.push(a.jmp());
    }
    // It holds another page: it may be a site without locality. One of the other half would be in the other log.
    a.bind(logged);
    a.load(RCX, site(offset_of!(Site, tag)));
    a.xor_reg(RCX, R10);
    out_of.push(a.jcc(cc::S));
    a.dec8(site(offset_of!(Site, refills)));
    out_of.push(a.jcc(cc::S));
    for p in fill {
        a.bind(p);
    }
    a.load(RCX, at(RAX, tag));
    a.store(site(offset_of!(Site, tag)), RCX);
    a.sub_reg(R10, RCX);
    a.load(RCX, at(RAX, offset_of!(Entry, host) as i32));
    a.store(site(offset_of!(Site, host)), RCX);
    a.add_reg(R10, RCX);
    a.load(RCX, tmp(1));
    a.load(RAX, tmp(0));
    a.load32(R11, site(offset_of!(Site, resume)));
    a.add(R11, ctx(off::BASE));
    a.jmp_reg(R11);
    for p in out_of {
        a.bind(p);
    }
    a.load(RCX, tmp(1));
    a.load(RAX, tmp(0));
    a.jmp_to(out);
}

/// Where the stack's site for an access is in the context.
pub(super) fn stack_site(supervisor: bool, write: bool) -> i32 {
    let n = 2 * usize::from(supervisor) + usize::from(write);
    off::STACK + (n * size_of::<StackSite>()) as i32
}

/// [`Stubs::stack`]: looks the address up in the soft TLB, fills the site, and goes on behind the check with the host address in R10, or leaves by
/// `out` with the guest's.
fn miss_stack(a: &mut Asm, supervisor: bool, write: bool, out: u64) {
    let tag = if write { offset_of!(Entry, write) } else { offset_of!(Entry, read) } as i32;
    let (site_tag, site_host) = (offset_of!(StackSite, tag) as i32, offset_of!(StackSite, host) as i32);
    let site = stack_site(supervisor, write);
    let tmp = |n: i32| ctx(off::TMP + 8 * n);
    a.pop(R11);
    a.add(R10, ctx(site + site_tag));
    a.store(tmp(0), RAX);
    a.store(tmp(1), RCX);
    let other = probe(a, tag);
    // Its bytes are 16 bits, far below what they and RCX could overflow: add cx, [r11+4]
    a.raw(&[0x66, 0x41, 0x03, 0x4b, 0x04]);
    a.cmp_imm32(RCX, 4096);
    let cross = a.jcc(cc::A);
    a.load(RCX, at(RAX, tag));
    a.store(ctx(site + site_tag), RCX);
    a.sub_reg(R10, RCX);
    a.load(RCX, at(RAX, offset_of!(Entry, host) as i32));
    a.store(ctx(site + site_host), RCX);
    a.add_reg(R10, RCX);
    a.load32(RCX, at(R11, 0));
    a.sub_reg(R11, RCX);
    a.load(RCX, tmp(1));
    a.load(RAX, tmp(0));
    a.jmp_reg(R11);
    for p in [other, cross] {
        a.bind(p);
    }
    a.load(RCX, tmp(1));
    a.load(RAX, tmp(0));
    a.store_imm32(ctx(off::LOOK), i32::from(write));
    a.jmp_to(out);
}
