//! The block cache: decoded blocks by guest-physical address, with a direct-mapped table by linear address in front.

use crate::block::Block;
use ringer_engine::CODE_LIMIT;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// The most instructions that are kept of those that lie in two pages.
const MOST_STRADDLING: usize = 4096;
/// Entries of the jump table.
const JUMPS: usize = 1 << 15;

/// A fast hasher for keys that are one integer.
#[derive(Default)]
pub struct IntHasher(u64);

impl Hasher for IntHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(u64::from(b));
        }
    }
    fn write_u64(&mut self, v: u64) {
        self.0 = (self.0.rotate_left(5) ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 32;
    }
    fn write_u8(&mut self, v: u8) {
        self.write_u64(u64::from(v));
    }
    fn write_u16(&mut self, v: u16) {
        self.write_u64(u64::from(v));
    }
    fn write_u32(&mut self, v: u32) {
        self.write_u64(u64::from(v));
    }
    fn write_usize(&mut self, v: usize) {
        self.write_u64(v as u64);
    }
}

/// A map with keys of integers.
pub type Map<K, V> = HashMap<K, V, BuildHasherDefault<IntHasher>>;

#[derive(Clone, Copy)]
struct Jump {
    lin: u64,
    ctx: u64,
    block: u32,
}

const NO_JUMP: Jump = Jump { lin: u64::MAX, ctx: u64::MAX, block: 0 };

/// Decoded blocks of one processor.
pub struct Cache {
    /// What all may take, in bytes.
    limit: usize,
    blocks: Vec<Block>,
    /// Bytes on the heap that they hold, those that straddle among them.
    held: usize,
    /// The most that was taken.
    peak: usize,
    by_gpa: Map<(u64, u8), u32>,
    jumps: Box<[Jump; JUMPS]>,
    straddling: Map<(u64, u64), (u8, Block)>,
}

impl Default for Cache {
    fn default() -> Cache {
        Cache {
            limit: CODE_LIMIT as usize,
            blocks: Vec::new(),
            held: 0,
            peak: 0,
            by_gpa: Map::default(),
            jumps: Box::new([NO_JUMP; JUMPS]),
            straddling: Map::default(),
        }
    }
}

fn jump_index(lin: u64) -> usize {
    (lin ^ lin >> 12) as usize & (JUMPS - 1)
}

impl Cache {
    /// Bytes of the jump table.
    pub const JUMPS_LEN: usize = JUMPS * size_of::<Jump>();

    /// From now on blocks and tables take no more than `limit` bytes, or what one block takes.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// The most bytes that blocks and tables have taken.
    #[must_use]
    pub fn peak(&self) -> usize {
        self.peak
    }

    /// Bytes that blocks and tables take; `grown`: with what they may grow by when another block comes.
    fn memory(&self, grown: bool) -> usize {
        let vec = |len: usize, capacity: usize| {
            // Both halves are there while it doubles.
            if grown && len == capacity { (capacity * 3).max(4) } else { capacity }
        };
        let map = |len: usize, capacity: usize, size: usize| {
            // Eight places for seven entries, with a byte each.
            vec(len, capacity) * 8 / 7 * (size + 1)
        };
        Cache::JUMPS_LEN
            + self.held
            + vec(self.blocks.len(), self.blocks.capacity()) * size_of::<Block>()
            + map(self.by_gpa.len(), self.by_gpa.capacity(), size_of::<((u64, u8), u32)>())
            + map(self.straddling.len(), self.straddling.capacity(), size_of::<((u64, u64), (u8, Block))>())
    }

    /// Makes room for a block.
    fn make_room(&mut self, block: &Block) {
        if self.memory(true) + block.held() > self.limit {
            self.clear();
        }
        self.held += block.held();
    }

    /// The block that linear address `lin` led to under context `ctx`.
    #[inline(always)]
    #[must_use]
    pub fn jump(&self, lin: u64, ctx: u64) -> Option<u32> {
        let j = &self.jumps[jump_index(lin)];
        (j.lin == lin && j.ctx == ctx).then_some(j.block)
    }

    /// Remembers where `lin` leads under `ctx`.
    pub fn set_jump(&mut self, lin: u64, ctx: u64, block: u32) {
        self.jumps[jump_index(lin)] = Jump { lin, ctx, block };
    }

    /// The block with number `n`.
    #[inline(always)]
    #[must_use]
    pub fn block(&self, n: u32) -> &Block {
        &self.blocks[n as usize]
    }

    /// The same, to change.
    pub fn block_mut(&mut self, n: u32) -> &mut Block {
        &mut self.blocks[n as usize]
    }

    /// The block decoded at `gpa` under `key`.
    #[must_use]
    pub fn find(&self, gpa: u64, key: u8) -> Option<u32> {
        self.by_gpa.get(&(gpa, key)).copied()
    }

    /// Puts a block in, in place of the one that was decoded there before.
    pub fn insert(&mut self, gpa: u64, key: u8, block: Block) -> u32 {
        self.make_room(&block);
        if let Some(n) = self.find(gpa, key) {
            let old = std::mem::replace(&mut self.blocks[n as usize], block);
            self.held -= old.held();
            return n;
        }
        let n = self.blocks.len() as u32;
        self.blocks.push(block);
        self.by_gpa.insert((gpa, key), n);
        self.peak = self.peak.max(self.memory(false));
        n
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        // Their memory goes too: the engine's other tables may want it.
        self.blocks = Vec::new();
        self.held = 0;
        self.by_gpa = Map::default();
        self.straddling = Map::default();
        self.jumps.fill(NO_JUMP);
    }

    /// Whether the instruction that straddles `first` and `second` is kept and still has the same bytes.
    #[must_use]
    pub fn straddling(&self, first: u64, second: u64, key: u8, bytes: &[u8]) -> bool {
        self.straddling.get(&(first, second)).is_some_and(|(k, b)| *k == key && bytes.starts_with(&b.bytes))
    }

    /// The instruction that straddles `first` and `second`.
    #[must_use]
    pub fn straddling_block(&self, first: u64, second: u64) -> Option<&Block> {
        self.straddling.get(&(first, second)).map(|(_, b)| b)
    }

    /// Keeps such an instruction.
    pub fn insert_straddling(&mut self, first: u64, second: u64, key: u8, block: Block) {
        if self.straddling.len() >= MOST_STRADDLING {
            self.clear();
        }
        self.make_room(&block);
        if let Some((_, old)) = self.straddling.insert((first, second), (key, block)) {
            self.held -= old.held();
        }
        self.peak = self.peak.max(self.memory(false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{How, decode};

    fn block(gpa: u64) -> Block {
        let code = [0x90; 40];
        let d = decode(&code, How { bits: 64, amd: false, limit: usize::MAX });
        Block {
            ops: d.ops,
            gpa,
            len: d.len,
            accesses: 0,
            version: 0,
            bytes: Box::from(code),
            trusted: true,
            epoch: 0,
        }
    }

    #[test]
    fn keeps_to_its_limit() {
        let limit = 2 << 20;
        let mut c = Cache::default();
        c.set_limit(limit);
        let mut dropped = 0;
        for n in 0..4096 {
            let before = c.blocks.len();
            c.insert(n * 64, 0, block(n * 64));
            c.insert_straddling(n, n, 0, block(n * 64));
            dropped += usize::from(c.blocks.len() < before);
            assert!(c.memory(false) <= limit, "{} at {n}", c.memory(false));
        }
        assert!(dropped > 0 && c.peak() <= limit && c.peak() > limit / 2, "{dropped} {}", c.peak());
    }

    #[test]
    fn a_block_that_is_replaced_is_not_counted() {
        let mut c = Cache::default();
        c.insert(0, 0, block(0));
        let one = c.memory(false);
        for _ in 0..100 {
            c.insert(0, 0, block(0));
        }
        assert_eq!(c.memory(false), one);
    }
}
