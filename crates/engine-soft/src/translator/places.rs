//! How translated code finds its next block by itself where what it knew of a jump is out of date.
//!
//! What a link to another page and an entry of the jump cache know is good for one generation of code addresses. A new address space is
//! a new generation, but what its pages hold is mostly translated already. So translated code knows two tables more: what code pages mean in
//! the generation at hand ([`Page`]), and all blocks by what they were translated from ([`Places`]). With the
//! first, a link to another page sees that it leads where it did ([`bridge`]), and with both, an indirect jump finds its block ([`indirect`]).
//!
//! What is found so is what [`Translator::find`](super::vcpu) would find:
//!
//! - A [`Page`] is noted when code of the page was looked up through the MMU, after the page was noted as entered there. Whatever gives a
//!   linear address another meaning changes the generation, which ends what was noted.
//! - A version that was raised by this processor has its page's blocks dropped before translated code goes on; one that another
//!   raised, when the stop word is next looked at, as for all links.
//! - While there are breakpoints, translated code sees no block by its place.

use super::asm::reg::{R10, R11, RAX, RCX, RSP};
use super::asm::{Asm, Patch, at, cc, ctx};
use super::ctx::{Ctx, JUMP_FACTOR, JUMP_MASK, JUMP_SHIFT, off};
use crate::sites::Bridge;
use std::mem::offset_of;

/// Code pages that are known at once, by their linear addresses.
pub const PAGES: usize = 4096;

/// What a linear address of code means. Empty ones have a `gen_key` of 0.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Page {
    /// The linear address.
    pub vpage: u64,
    /// Generation of code addresses and mode in which it does.
    pub gen_key: u64,
    /// The page: [`place`] of its first byte.
    pub place: u64,
    /// To a power of two.
    pub _pad: u64,
}

/// Where a block stands. Empty ones have a `place` of 0.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Place {
    /// [`place`] of its first byte.
    place: u64,
    /// Its code, from the start of the area.
    code: u32,
    block: u32,
}

const EMPTY: Place = Place { place: 0, code: 0, block: 0 };
/// A table without blocks.
static NO_PLACES: [Place; 1] = [EMPTY];
/// Entries of the smallest table that has some.
const LEAST: usize = 512;

/// All blocks by place: a table with a power of two of entries, at most three quarters of them in use, each block in the first free
/// one from its index on.
#[derive(Debug, Default)]
pub struct Places {
    entries: Vec<Place>,
    used: usize,
}

impl Places {
    /// The block at `place`.
    #[must_use]
    pub fn get(&self, place: u64) -> Option<u32> {
        self.find(place).ok().map(|i| self.entries[i].block)
    }

    /// The entry of `place`, or the free one that it would have.
    fn find(&self, place: u64) -> Result<usize, usize> {
        let mask = self.entries.len().wrapping_sub(1);
        let mut i = index(place) & mask;
        loop {
            match self.entries.get(i) {
                Some(e) if e.place == place => return Ok(i),
                Some(e) if e.place != 0 => i = (i + 1) & mask,
                _ => return Err(i),
            }
        }
    }

    /// Lets `place` be that of `block`, whose code is at `code`.
    pub fn insert(&mut self, place: u64, code: u32, block: u32) {
        let new = Place { place, code, block };
        if let Ok(i) = self.find(place) {
            self.entries[i] = new;
            return;
        }
        if self.is_full() {
            let len = (self.entries.len() * 2).max(LEAST);
            for e in std::mem::replace(&mut self.entries, vec![EMPTY; len]) {
                if e.place != 0 {
                    self.put(e);
                }
            }
        }
        self.put(new);
        self.used += 1;
    }

    fn put(&mut self, new: Place) {
        if let Err(i) = self.find(new.place) {
            self.entries[i] = new;
        }
    }

    /// Blocks in it.
    #[must_use]
    pub fn count(&self) -> usize {
        self.used
    }

    fn is_full(&self) -> bool {
        (self.used + 1) * 4 > self.entries.len() * 3
    }

    /// Forgets `block` at `place`, if it is the one there.
    pub fn remove(&mut self, place: u64, block: u32) {
        let Ok(mut free) = self.find(place) else { return };
        if self.entries[free].block != block {
            return;
        }
        self.used -= 1;
        // What comes behind it without a gap, and could not be found with one here, moves up.
        let mask = self.entries.len() - 1;
        let mut i = free;
        loop {
            i = (i + 1) & mask;
            let e = self.entries[i];
            if e.place == 0 {
                break;
            }
            let from_index = i.wrapping_sub(index(e.place)) & mask;
            if from_index >= i.wrapping_sub(free) & mask {
                self.entries[free] = e;
                free = i;
            }
        }
        self.entries[free] = EMPTY;
    }

    /// Bytes that it takes; `grown`: with what another block may make it grow by.
    #[must_use]
    pub fn in_memory(&self, grown: bool) -> usize {
        let len = self.entries.len();
        // Both tables are there while it doubles.
        let len = if grown && self.is_full() { (len * 3).max(LEAST) } else { len };
        len * size_of::<Place>()
    }

    /// Lets translated code see the blocks, or none of them.
    pub fn show(&self, c: &mut Ctx, all: bool) {
        let seen = if all && !self.entries.is_empty() { &self.entries } else { &NO_PLACES[..] };
        c.places = seen.as_ptr() as u64;
        c.place_mask = ((seen.len() - 1) * size_of::<Place>()) as u32;
    }
}

/// In every [`place`], so that none is 0.
const SOMEWHERE: u64 = 1 << 63;

/// A guest-physical address, of 52 bits, and a mode in one word.
#[must_use]
#[inline]
pub fn place(gpa: u64, key: u8) -> u64 {
    SOMEWHERE | gpa << 8 | u64::from(key)
}

/// The [`place`] of the page of `gpa`.
#[must_use]
#[inline]
pub fn page(gpa: u64, key: u8) -> u64 {
    place(gpa & !0xfff, key)
}

fn page_index(vpage: u64) -> usize {
    (vpage >> 12) as usize & (PAGES - 1)
}

/// Where an endless table would have `place`.
fn index(place: u64) -> usize {
    (place.wrapping_mul(JUMP_FACTOR as u64) >> PLACE_SHIFT) as usize / size_of::<Place>()
}

/// How far the product is shifted to have the offset of the entry at its end: the address begins 8 bits further up than in the jump cache.
const PLACE_SHIFT: u8 = JUMP_SHIFT + 8;
/// What a linear address is shifted by to have the offset of its [`Page`].
const PAGE_SHIFT: u8 = 12 - size_of::<Page>().ilog2() as u8;
const PAGE_MASK: i32 = ((PAGES - 1) * size_of::<Page>()) as i32;

/// Notes that the page of `gpa` was found and entered at `vpage`.
pub fn note_page(c: &mut Ctx, vpage: u64, gpa: u64, gen_key: u64) {
    c.pages[page_index(vpage)] = Page { vpage, gen_key, place: page(gpa, gen_key as u8), _pad: 0 };
}

fn of_page(field: usize) -> i32 {
    off::PAGES + field as i32
}

/// Looks at the stop word; RAX is lost.
fn poll(a: &mut Asm) -> Patch {
    a.load(RAX, ctx(off::STOP));
    a.cmp_mem_imm8(at(RAX, 0), 0);
    a.jcc(cc::NE)
}

/// The offset of the [`Page`] of the guest address in R10 to RAX, and the address of the page to R10; the jump that leaves if it is
/// another's.
fn look_up(a: &mut Asm) -> Patch {
    a.mov(RAX, R10);
    a.shr(RAX, PAGE_SHIFT);
    a.and_imm32(RAX, PAGE_MASK);
    a.and_imm(R10, -4096);
    a.cmp(R10, at(RSP, of_page(offset_of!(Page, vpage))).index(RAX, 0));
    a.jcc(cc::NE)
}

/// Jumped to by a link to another page that is not good now, or at which the stop word is raised, with its [`Bridge`] in R11. Goes on where it
/// leads if the page there is the one that it is known to lead to; else leaves by `out`.
///
/// In 32-bit code a target beyond 4 GiB, or below 0, is no page that is noted.
pub fn bridge(a: &mut Asm, out: u64) {
    let known = |o: usize| at(R11, o as i32);
    let page = |o: usize| at(RSP, of_page(o)).index(RAX, 0);
    a.store(ctx(off::TMP), RAX);
    let stop = poll(a);
    a.load32(R10, known(offset_of!(Bridge, target)));
    a.movsxd(R10, R10);
    a.add(R10, ctx(off::VPAGE));
    let other = look_up(a);
    a.load(R10, page(offset_of!(Page, place)));
    a.cmp(R10, known(offset_of!(Bridge, page)));
    let elsewhere = a.jcc(cc::NE);
    a.load(R10, page(offset_of!(Page, gen_key)));
    a.cmp(R10, ctx(off::GEN));
    let old = a.jcc(cc::NE);
    a.store(known(offset_of!(Bridge, gen_key)), R10);
    a.load(R10, page(offset_of!(Page, vpage)));
    a.store(ctx(off::VPAGE), R10);
    a.load(RAX, ctx(off::TMP));
    a.load32(R11, known(offset_of!(Bridge, code)));
    a.add(R11, ctx(off::BASE));
    a.jmp_reg(R11);
    for p in [stop, other, elsewhere, old] {
        a.bind(p);
    }
    a.load(RAX, ctx(off::TMP));
    a.jmp_to(out);
}

/// Jumped to by an indirect jump that the jump cache does not know, or at which the stop word is raised, with the guest address in R11 and
/// its op in R10. Goes on there if the block is known by its place, and notes it; else leaves by `out` with both.
pub fn indirect(a: &mut Asm, out: u64) {
    let tmp = |n: i32| ctx(off::TMP + 8 * n);
    let page = |o: usize| at(RSP, of_page(o)).index(RAX, 0);
    let place = |o: usize| at(R10, o as i32).index(RCX, 0);
    a.store(tmp(0), RAX);
    a.store(tmp(1), RCX);
    a.store(tmp(2), R10);
    let stop = poll(a);
    a.mov(R10, R11);
    let other = look_up(a);
    a.load(RCX, ctx(off::GEN));
    a.cmp(RCX, page(offset_of!(Page, gen_key)));
    let old = a.jcc(cc::NE);
    a.load(RAX, page(offset_of!(Page, place)));
    a.mov32(RCX, R11);
    a.and_imm32(RCX, 0xfff);
    a.shl(RCX, 8);
    a.add_reg(RAX, RCX);
    a.imul_imm(RCX, RAX, JUMP_FACTOR);
    a.shr(RCX, PLACE_SHIFT);
    a.load(R10, ctx(off::PLACES));
    let next = a.here();
    a.and32(RCX, ctx(off::PLACE_MASK));
    a.cmp(RAX, place(offset_of!(Place, place)));
    let found = a.jcc(cc::E);
    // The upper half, which holds what every place has.
    a.cmp_mem_imm8(place(offset_of!(Place, place) + 4), 0);
    let unknown = a.jcc(cc::E);
    a.lea32(RCX, at(RCX, size_of::<Place>() as i32));
    a.jmp_to(next);
    a.bind(found);
    a.load32(RAX, place(offset_of!(Place, code)));
    a.mov(R10, R11);
    a.and_imm(R10, -4096);
    a.store(ctx(off::VPAGE), R10);
    a.imul_imm(R10, R11, JUMP_FACTOR);
    a.shr(R10, JUMP_SHIFT);
    a.and_imm32(R10, JUMP_MASK);
    a.load32(RCX, ctx(off::GEN));
    a.store(ctx(off::JUMPS).index(R10, 0), R11);
    a.store32(ctx(off::JUMP_CODE).index(R10, 0), RAX);
    a.store32(ctx(off::JUMP_GEN).index(R10, 0), RCX);
    a.mov(R11, RAX);
    a.add(R11, ctx(off::BASE));
    a.load(RCX, tmp(1));
    a.load(RAX, tmp(0));
    a.jmp_reg(R11);
    for p in [stop, other, old, unknown] {
        a.bind(p);
    }
    a.load(R10, tmp(2));
    a.load(RCX, tmp(1));
    a.load(RAX, tmp(0));
    a.jmp_to(out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn places_are_found_until_they_are_removed() {
        let mut all = BTreeMap::new();
        let mut p = Places::default();
        let mut seed = 1u64;
        for n in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Few enough that some are met again, some of them next to one another.
            let at = place(seed >> 50, 0);
            if seed >> 40 & 3 == 0 {
                let block = all.get(&at).copied().unwrap_or(0);
                p.remove(at, block + 1);
                assert_eq!(p.get(at), all.get(&at).copied());
                p.remove(at, block);
                all.remove(&at);
            } else {
                p.insert(at, 0, n);
                all.insert(at, n);
            }
            assert_eq!((p.get(at), p.used), (all.get(&at).copied(), all.len()));
        }
        assert!((0..1 << 14).all(|gpa| p.get(place(gpa, 0)) == all.get(&place(gpa, 0)).copied()));
        assert!(p.used * 4 <= p.entries.len() * 3 && p.used > 2000);
    }
}
